//! A request's and an answer's body: JSON, and behind it, if `Inference-Header-Content-Length` says where the JSON
//! ends, the tensors' elements in binary.

use std::borrow::Cow;

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use serde::ser::{SerializeSeq, Serializer};
use serde::{Deserialize, Serialize};

use super::elements::{Elements, Few, Parameters};
use crate::http::error::{ApiError, Code};
use crate::http::json;
use crate::http::oip::infer::FILES;
use crate::http::oip::tensor::{self, Datatype, Tensor, invalid};
use crate::limits::BodyLimits;

/// Largest tensor written as JSON, whose numbers take up to five times the bytes.
const TEXT_BYTES_MAX: usize = BodyLimits::DEFAULT.batch_bytes_max / 5;
const HEADER_LENGTH: &str = "inference-header-content-length";

/// A decoded request.
#[derive(Debug)]
pub struct Decoded {
    /// The client's name of it; echoed.
    pub id: String,
    /// What the request chooses, as text.
    pub parameters: Vec<(String, String)>,
    /// Its tensors.
    pub inputs: Vec<Tensor>,
    /// Wanted outputs and whether in binary; empty: all.
    pub outputs: Vec<(String, bool)>,
    /// Whether outputs that say nothing else are answered in binary.
    pub binary_outputs: bool,
}

/// Takes a body apart. Binary tensors are slices of it.
///
/// # Errors
/// 400 naming what is malformed, missing or left over.
pub fn decode(headers: &HeaderMap, body: &Bytes) -> Result<Decoded, ApiError> {
    let length = json_length(headers, body)?;
    if length == 0 && !body.is_empty() {
        return Ok(one_file(body));
    }
    let mut binary = body.clone();
    let json = binary.split_to(length);
    decode_parts(&json, binary)
}

/// Most memory that taking a body apart takes beside it; nothing if it cannot be.
pub fn decoding_bytes(headers: &HeaderMap, body: &Bytes) -> usize {
    match json_length(headers, body) {
        Err(_) => 0,
        Ok(0) => body.len(), // the one file, behind its length
        Ok(length) => body.get(..length).map_or(0, json::reading_bytes),
    }
}

/// Length of the JSON at a body's beginning; all of it where no header tells.
fn json_length(headers: &HeaderMap, body: &Bytes) -> Result<usize, ApiError> {
    let Some(length) = headers.get(HEADER_LENGTH) else { return Ok(body.len()) };
    let length: Option<usize> = length.to_str().ok().and_then(|text| text.parse().ok());
    length.filter(|length| *length <= body.len()).ok_or_else(|| {
        invalid(format!("Inference-Header-Content-Length must be a number of at most the body's {} bytes", body.len()))
    })
}

/// A body without JSON is the one element of the model's `BYTES` input.
fn one_file(body: &Bytes) -> Decoded {
    let data = tensor::join_byte_strings([&**body]);
    let inputs = vec![Tensor { name: FILES.to_owned(), datatype: Datatype::Bytes, shape: vec![1], data }];
    Decoded { id: String::new(), parameters: Vec::new(), inputs, outputs: Vec::new(), binary_outputs: true }
}

#[derive(Deserialize)]
struct RequestJson<'a> {
    #[serde(default, borrow)]
    id: Cow<'a, str>,
    #[serde(default)]
    parameters: Parameters,
    inputs: Few<InputJson>,
    #[serde(default)]
    outputs: Few<OutputWish>,
}

#[derive(Deserialize)]
struct InputJson {
    name: String,
    datatype: String,
    shape: Few<usize>,
    #[serde(default)]
    parameters: Parameters,
    #[serde(default)]
    data: Option<Elements>,
}

#[derive(Deserialize)]
struct OutputWish {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

fn decode_parts(json: &[u8], mut binary: Bytes) -> Result<Decoded, ApiError> {
    let request: RequestJson<'_> = serde_json::from_slice(json).map_err(|error| invalid(format!("JSON: {error}")))?;
    let RequestJson { id, mut parameters, inputs: Few(inputs), outputs: Few(outputs) } = request;
    let inputs = inputs.into_iter().map(|input| take_input(input, &mut binary)).collect::<Result<_, _>>()?;
    if !binary.is_empty() {
        return Err(invalid(format!("{} bytes follow the last tensor: is a binary_data_size missing?", binary.len())));
    }
    let binary_outputs = flag(parameters.take("binary_data_output"), false)?;
    let outputs = outputs.into_iter().map(|OutputWish { name, mut parameters }| {
        let binary = flag(parameters.take("binary_data"), binary_outputs)?;
        Ok((name, binary))
    });
    let outputs = outputs.collect::<Result<_, ApiError>>()?;
    Ok(Decoded { id: id.into_owned(), parameters: parameters.0, inputs, outputs, binary_outputs })
}

fn flag(value: Option<String>, default: bool) -> Result<bool, ApiError> {
    value.map_or(Ok(default), |text| {
        let expected = |_| invalid(format!("binary_data and binary_data_output are true or false, found {text:.32}"));
        text.parse().map_err(expected)
    })
}

fn take_input(input: InputJson, binary: &mut Bytes) -> Result<Tensor, ApiError> {
    let InputJson { name, datatype, shape: Few(shape), mut parameters, data } = input;
    let datatype = Datatype::parse(&datatype)?;
    let data = match (parameters.take("binary_data_size"), data) {
        (Some(size), None) => {
            let left = binary.len();
            let size = size.parse().ok().filter(|size| *size <= left);
            binary.split_to(size.ok_or_else(|| {
                invalid(format!("{name:.64}: binary_data_size must be a number of at most the {left} bytes left"))
            })?)
        }
        (None, Some(elements)) => of_json(&name, datatype, elements)?,
        _ => return Err(invalid(format!("{name:.64} needs either `data` or the parameter binary_data_size"))),
    };
    Tensor::new(name, datatype, shape, data)
}

/// Numbers, or files in base64: JSON has no other way to write bytes.
fn of_json(name: &str, datatype: Datatype, elements: Elements) -> Result<Bytes, ApiError> {
    let misfit = || invalid(format!("{name:.64}: `data` does not hold elements of {}", datatype.as_str()));
    match (datatype, elements) {
        (_, Elements::Empty) => Ok(Bytes::new()),
        (Datatype::Fp32, Elements::Numbers(numbers)) => Ok(numbers.into()),
        (Datatype::Uint8, Elements::Numbers(numbers)) => {
            let levels = numbers.as_chunks().0.iter().map(|number| level(f32::from_le_bytes(*number)));
            levels.collect::<Option<Bytes>>().ok_or_else(misfit)
        }
        (Datatype::Bytes, Elements::Files { data, .. }) => Ok(data.into()),
        _ => Err(misfit()),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be a whole number in 0..=255")]
fn level(number: f32) -> Option<u8> {
    ((0.0..=255.0).contains(&number) && number.fract().abs() < f32::EPSILON).then_some(number as u8)
}

/// What an answer says besides its tensors.
#[derive(Debug, Serialize)]
pub struct Head<'a> {
    /// The model's name.
    pub model_name: &'a str,
    /// Its version.
    pub model_version: &'a str,
    /// As the request's.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub id: &'a str,
}

#[derive(Serialize)]
struct ResponseJson<'a> {
    #[serde(flatten)]
    head: &'a Head<'a>,
    outputs: Vec<OutputJson<'a>>,
}

#[derive(Serialize)]
struct OutputJson<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: &'a [usize],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BinarySize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Data<'a>>,
}

impl<'a> OutputJson<'a> {
    fn of((tensor, binary): &'a (Tensor, bool)) -> Self {
        let Tensor { name, datatype, shape, data } = tensor;
        Self {
            name,
            datatype: datatype.as_str(),
            shape,
            parameters: binary.then_some(BinarySize { binary_data_size: data.len() }),
            data: (!binary).then_some(Data(tensor)),
        }
    }
}

#[derive(Serialize)]
struct BinarySize {
    binary_data_size: usize,
}

/// A tensor's elements as a flat list of numbers or texts; what is no number becomes null.
struct Data<'a>(&'a Tensor);

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Tensor { datatype, data, .. } = self.0;
        let mut list = serializer.serialize_seq(None)?;
        match datatype {
            Datatype::Fp32 => {
                data.as_chunks().0.iter().try_for_each(|b| list.serialize_element(&f32::from_le_bytes(*b)))?;
            }
            Datatype::Int32 => {
                data.as_chunks().0.iter().try_for_each(|b| list.serialize_element(&i32::from_le_bytes(*b)))?;
            }
            Datatype::Uint8 => data.iter().try_for_each(|level| list.serialize_element(level))?,
            Datatype::Bytes => {
                let texts = self.0.byte_strings().unwrap_or_default(); // our own outputs are whole
                texts.iter().try_for_each(|text| list.serialize_element(&String::from_utf8_lossy(text)))?;
            }
        }
        list.end()
    }
}

/// Writes an answer: each tensor in JSON, or behind it in binary.
///
/// # Errors
/// 413 for a tensor that is too large for JSON.
pub fn encode(head: &Head<'_>, outputs: &[(Tensor, bool)]) -> Result<Response, ApiError> {
    if let Some((large, _)) = outputs.iter().find(|(tensor, binary)| !binary && tensor.data.len() > TEXT_BYTES_MAX) {
        let message = format!("{:.64} is too large for JSON: ask for it with the parameter binary_data", large.name);
        return Err(ApiError::new(Code::PayloadTooLarge, message));
    }
    let json = ResponseJson { head, outputs: outputs.iter().map(OutputJson::of).collect() };
    let binary: Vec<&Bytes> = outputs.iter().filter(|(_, binary)| *binary).map(|(tensor, _)| &tensor.data).collect();
    if binary.is_empty() {
        return Ok(Json(json).into_response());
    }
    // Names and numbers always have a JSON form.
    let text = serde_json::to_vec(&json).unwrap_or_default();
    let mut body = BytesMut::with_capacity(text.len() + binary.iter().map(|data| data.len()).sum::<usize>());
    body.extend_from_slice(&text);
    for data in binary {
        body.extend_from_slice(data);
    }
    let octets = HeaderValue::from_static("application/octet-stream");
    let mut response = body.freeze().into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, octets);
    response.headers_mut().insert(HEADER_LENGTH, HeaderValue::from(text.len()));
    Ok(response)
}
