//! Tensors as both transports carry them: a datatype, a shape, and little-endian elements row by row.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};

use crate::http::error::{ApiError, Code};

/// Bytes before each element of a `BYTES` tensor: its length, u32.
const LENGTH_BYTES: usize = size_of::<u32>();

/// Most dimensions of a tensor: more than any has; each takes memory, and room in errors.
pub const DIMENSIONS_MAX: usize = 16;

/// The datatypes of this server's tensors; the protocol has more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datatype {
    /// Strings of bytes, each behind its length.
    Bytes,
    /// IEEE 754 single precision.
    Fp32,
    /// Signed, 32 bits.
    Int32,
    /// A level of a colour, 0..=255.
    Uint8,
}

impl Datatype {
    /// The protocol's name of it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bytes => "BYTES",
            Self::Fp32 => "FP32",
            Self::Int32 => "INT32",
            Self::Uint8 => "UINT8",
        }
    }

    /// Reads the protocol's name.
    ///
    /// # Errors
    /// 400 for a datatype that no tensor of ours has.
    pub fn parse(name: &str) -> Result<Self, ApiError> {
        let all = [Self::Bytes, Self::Fp32, Self::Int32, Self::Uint8];
        all.into_iter().find(|datatype| datatype.as_str() == name).ok_or_else(|| {
            invalid(format!("datatype {name:.32} is not served here: `image` is BYTES, `images` FP32 or UINT8"))
        })
    }

    /// Bytes of one element; `None` where elements differ.
    pub const fn element_bytes(self) -> Option<usize> {
        match self {
            Self::Bytes => None,
            Self::Fp32 | Self::Int32 => Some(4),
            Self::Uint8 => Some(1),
        }
    }
}

/// A named tensor; the elements may be a slice of the request's body.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Which input or output it is.
    pub name: String,
    /// Type of the elements.
    pub datatype: Datatype,
    /// Size of each dimension.
    pub shape: Vec<usize>,
    /// The elements, little-endian, row by row; of `BYTES` each behind its length.
    pub data: Bytes,
}

impl Tensor {
    /// Checks that there are as many elements as the shape says.
    ///
    /// # Errors
    /// 400 if there are more or fewer, or more than [`DIMENSIONS_MAX`] dimensions. Elements of `BYTES` are checked when they are taken apart.
    pub fn new(name: String, datatype: Datatype, shape: Vec<usize>, data: Bytes) -> Result<Self, ApiError> {
        if shape.len() > DIMENSIONS_MAX {
            return Err(invalid(format!(
                "{name:.64}: a shape of {} dimensions, of at most {DIMENSIONS_MAX}",
                shape.len()
            )));
        }
        let tensor = Self { name, datatype, shape, data };
        let Some(element_bytes) = datatype.element_bytes() else { return Ok(tensor) };
        let expected = tensor.elements().and_then(|elements| elements.checked_mul(element_bytes));
        if expected == Some(tensor.data.len()) {
            return Ok(tensor);
        }
        let Self { name, shape, data, .. } = &tensor;
        let expected =
            expected.map_or_else(|| "more bytes than there are".to_owned(), |bytes| format!("{bytes} bytes"));
        let datatype = datatype.as_str();
        Err(invalid(format!("{name:.64}: {datatype} of shape {shape:?} takes {expected}, found {}", data.len())))
    }

    /// An output of this server.
    pub fn output(name: &str, datatype: Datatype, shape: &[usize], data: Bytes) -> Self {
        Self { name: name.to_owned(), datatype, shape: shape.to_vec(), data }
    }

    /// Number of elements; `None` if it is beyond all memory.
    pub fn elements(&self) -> Option<usize> {
        self.shape.iter().try_fold(1_usize, |product, side| product.checked_mul(*side))
    }

    /// The elements of a `BYTES` tensor; no copies.
    ///
    /// # Errors
    /// 400 if the lengths do not add up to the data, or their number not to the shape.
    pub fn byte_strings(&self) -> Result<Vec<Bytes>, ApiError> {
        let mut rest = self.data.clone();
        let mut strings = Vec::new();
        // No more than announced: of empty strings, the data may hold millions.
        while !rest.is_empty() && self.elements().is_some_and(|elements| strings.len() < elements) {
            let length = rest.split_to_checked(LENGTH_BYTES).and_then(|bytes| u32_of(&bytes));
            let string = length.and_then(|length| rest.split_to_checked(usize::try_from(length).ok()?));
            strings.push(string.ok_or_else(|| {
                invalid(format!("{:.64}: element {} is longer than the data that came", self.name, strings.len()))
            })?);
        }
        if Some(strings.len()) != self.elements() || !rest.is_empty() {
            let Self { name, shape, data, .. } = self;
            return Err(invalid(format!("{name:.64}: shape {shape:?} does not fit the {} bytes of data", data.len())));
        }
        Ok(strings)
    }
}

trait SplitChecked: Sized {
    fn split_to_checked(&mut self, at: usize) -> Option<Self>;
}

impl SplitChecked for Bytes {
    fn split_to_checked(&mut self, at: usize) -> Option<Self> {
        (at <= self.len()).then(|| self.split_to(at))
    }
}

fn u32_of(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.first_chunk()?))
}

/// The data of a `BYTES` tensor.
pub fn join_byte_strings<'a>(strings: impl IntoIterator<Item = &'a [u8]>) -> Bytes {
    let mut data = BytesMut::new();
    for string in strings {
        // A string came in one message of at most 64 MiB.
        data.put_u32_le(u32::try_from(string.len()).unwrap_or(u32::MAX));
        data.extend_from_slice(string);
    }
    data.freeze()
}

/// Adds a string of bytes that came in base64 to the data of a `BYTES` tensor.
///
/// # Errors
/// What is no base64; the data is then of no use.
pub fn push_base64(data: &mut Vec<u8>, text: &str) -> Result<(), base64::DecodeError> {
    let text = text.trim();
    data.reserve_exact(LENGTH_BYTES + base64::decoded_len_estimate(text.len()));
    let begin = data.len();
    data.extend_from_slice(&[0; LENGTH_BYTES]);
    STANDARD.decode_vec(text, data)?;
    // A string came in one message of at most 64 MiB.
    let length = u32::try_from(data.len() - begin - LENGTH_BYTES).unwrap_or(u32::MAX);
    if let Some(place) = data.get_mut(begin..begin + LENGTH_BYTES) {
        place.copy_from_slice(&length.to_le_bytes());
    }
    Ok(())
}

/// The data of an `FP32` tensor.
pub fn floats(values: impl IntoIterator<Item = f32>) -> Bytes {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// The data of an `INT32` tensor.
pub fn integers(values: impl IntoIterator<Item = i32>) -> Bytes {
    values.into_iter().flat_map(i32::to_le_bytes).collect()
}

/// An answer of status 400.
pub fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(Code::InvalidRequest, message)
}
