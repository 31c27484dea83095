//! Does what a request asks, whichever transport brought it.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, Uri};
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::OwnedSemaphorePermit;
use yolo_vision::Masks;

use super::detections::{self, Batch};
use super::raw;
use super::tensor::{Datatype, Tensor, invalid};
use crate::app::App;
use crate::http::batch;
use crate::http::body::{self, Upload};
use crate::http::error::{ApiError, Code};
use crate::http::image::Image;
use crate::http::making::{Making, off_thread};
use crate::http::parameters::Wishes;
use crate::limits;
use crate::predictor::{Prediction, Predictor, Speed};

/// The input of encoded files: JPEG, PNG or WebP.
pub const FILES: &str = "image";
/// The input of tensors that are prepared already.
pub const PICTURES: &str = "images";

/// What a request asks.
#[derive(Debug)]
pub struct Asked {
    /// Its tensors.
    pub inputs: Vec<Tensor>,
    /// Names of the wanted outputs; empty: all.
    pub outputs: Vec<String>,
    /// Thresholds, filters, time-out.
    pub wishes: Wishes,
    /// When its last byte was there.
    pub received: Instant,
    /// From its first byte to its last.
    pub read: Duration,
    /// Its share of the memory for bodies.
    pub memory: Option<Arc<OwnedSemaphorePermit>>,
}

/// What it is answered.
#[derive(Debug)]
pub struct Answered {
    /// The wanted tensors, in the order of the wishes.
    pub outputs: Vec<Tensor>,
    /// Times of its slowest image.
    pub speed: Speed,
    /// What the outputs hold of the memory for bodies, where they are large.
    pub memory: Option<OwnedSemaphorePermit>,
}

/// The served model if it is the named one.
///
/// # Errors
/// 503 while it is being loaded, 404 for another name or version.
pub fn model(app: &App, name: &str, version: &str) -> Result<Arc<Predictor>, ApiError> {
    let predictor = app.serving()?;
    let model = predictor.model();
    if name == model.name && (version.is_empty() || version == model.version()) {
        return Ok(predictor);
    }
    let asked = if version.is_empty() { format!("{name:.64}") } else { format!("{name:.64} version {version:.64}") };
    let message = format!("unknown model {asked}: {} version {} is served here", model.name, model.version());
    Err(ApiError::new(Code::NotFound, message))
}

/// [`model`], where no name means the only one.
///
/// # Errors
/// As [`model`].
pub fn any_model(app: &App, name: &str, version: &str) -> Result<Arc<Predictor>, ApiError> {
    if name.is_empty() { app.serving() } else { model(app, name, version) }
}

/// What a request chooses, from its address, its headers and its parameters; those of `/predict`, and the protocol's
/// `timeout` in microseconds.
///
/// # Errors
/// 400 for an unknown or malformed parameter, 422 for one out of range.
pub fn wishes(
    uri: &Uri,
    headers: &HeaderMap,
    parameters: Vec<(String, String)>,
    predictor: &Predictor,
) -> Result<Wishes, ApiError> {
    let mut wishes = Wishes::of_head(uri, headers, &predictor.served())?;
    let (timeouts, others): (Vec<_>, Vec<_>) = parameters.into_iter().partition(|(name, _)| name == "timeout");
    wishes.add(&others, &predictor.served())?;
    for (_, micros) in timeouts {
        let micros =
            micros.parse().map_err(|_| invalid(format!("timeout must be microseconds, found {micros:.32}")))?;
        // 0 asks for the server's default.
        let timeout = (micros > 0).then(|| Duration::from_micros(micros));
        wishes.timeout = wishes.timeout.into_iter().chain(timeout).min();
    }
    Ok(wishes)
}

/// Runs a request.
///
/// Cancellation: dropped, its images are dropped before their run, or their results after it.
///
/// # Errors
/// 400 for tensors that do not fit the model, otherwise as `/predict`; one image that fails fails the request.
pub async fn infer(app: &App, predictor: &Arc<Predictor>, asked: &Asked) -> Result<Answered, ApiError> {
    match asked.inputs.as_slice() {
        [input] if input.name == PICTURES => raw::infer(app, predictor, input, asked).await,
        _ => {
            let files = files(app, predictor, asked).inspect_err(|error| Image::arrived(app).failed(error))?;
            detect(app, predictor, files, asked).await
        }
    }
}

/// The files of a request whose tensors fit the model.
fn files(app: &App, predictor: &Predictor, asked: &Asked) -> Result<Vec<Bytes>, ApiError> {
    let [input] = asked.inputs.as_slice() else {
        return Err(invalid(format!("one input a request, found {}", asked.inputs.len())));
    };
    if input.name != FILES {
        return Err(invalid(format!("unknown input {:.64}: known are {FILES} and {PICTURES}", input.name)));
    }
    if input.datatype != Datatype::Bytes {
        return Err(invalid(format!("{FILES} is BYTES, found {}", input.datatype.as_str())));
    }
    known_outputs(&asked.outputs, detections::names(predictor.model().info.task()))?;
    if !input.elements().is_some_and(|files| (1..=limits::BATCH_PARTS_MAX).contains(&files)) {
        let shape = &input.shape;
        return Err(invalid(format!("{FILES}: 1 to {} files, found shape {shape:?}", limits::BATCH_PARTS_MAX)));
    }
    let files = input.byte_strings()?;
    let bytes_max = app.bodies.limits().body_bytes_max;
    match files.iter().position(|file| file.len() > bytes_max) {
        Some(index) => Err(at(index, body::picture_too_large(bytes_max))),
        None => Ok(files),
    }
}

/// Checks that all wanted outputs are among the `known` ones of the request's input, and that each is named once.
///
/// # Errors
/// 400 naming one that is not.
pub fn known_outputs(wanted: &[String], known: &[&str]) -> Result<(), ApiError> {
    let mut rest = wanted.iter();
    while let Some(name) = rest.next() {
        if rest.as_slice().contains(name) {
            return Err(invalid(format!("output {name:.64} is asked for twice")));
        }
    }
    let unknown = wanted.iter().find(|name| !known.contains(&name.as_str()));
    unknown
        .map_or(Ok(()), |unknown| Err(invalid(format!("unknown output {unknown:.64}: known are {}", known.join(", ")))))
}

/// Finds the objects in encoded files.
async fn detect(app: &App, predictor: &Arc<Predictor>, files: Vec<Bytes>, asked: &Asked) -> Result<Answered, ApiError> {
    let (count, model) = (files.len(), &predictor.model().info);
    let wanted: Vec<String> = match asked.outputs.as_slice() {
        [] => detections::names(model.task()).iter().map(ToString::to_string).collect(),
        named => named.to_vec(),
    };
    let mut wishes = asked.wishes.clone();
    // Outlines have no rectangular form, and masks that nobody wants need not be made.
    wishes.parameters.masks = match wishes.parameters.masks {
        Masks::Polygon | Masks::Rle if wanted.iter().any(|name| name == detections::MASKS) => Masks::Rle,
        _ => Masks::None,
    };
    let bytes = files.iter().map(Bytes::len).sum();
    let memory = asked.memory.clone();
    let hash = move || {
        let _held = memory;
        files.into_iter().map(hashed).collect::<Vec<_>>()
    };
    let files = off_thread(bytes, hash).await?;
    let run = |file: Hashed| {
        let (image, upload) = offered(app, file, asked);
        batch::run(predictor, image, Ok(upload), (&wishes, asked.received))
    };
    let runs: Vec<_> = files.into_iter().map(run).collect();
    let mut runs = pin!(stream::iter(runs).buffered(batch::in_flight(predictor)).enumerate());
    let (mut found, mut making) = (Vec::new(), Making::default());
    // The first that fails ends the others: nobody would see their results.
    while let Some((index, result)) = runs.next().await {
        let prediction: Prediction = result.map_err(|error| if count > 1 { at(index, error) } else { error })?;
        making.add(&app.bodies, prediction.answer.found_bytes())?;
        found.push(prediction);
    }
    let speed = found.iter().map(|Prediction { speed, .. }| *speed).max_by_key(Speed::queue_and_inference);
    let keypoints = model.keypoints().unwrap_or_default();
    let batch = Batch { found, normalize: wishes.parameters.normalize, keypoints };
    making.add(&app.bodies, batch.written_bytes(&wanted))?;
    let outputs = making.work(move || wanted.iter().map(|name| batch.output(name)).collect()).await?;
    Ok(Answered { outputs, speed: speed.unwrap_or_default(), memory: making.held() })
}

/// A file and its hash, and how long that took.
type Hashed = (Bytes, [u8; 32], Duration);

fn hashed(file: Bytes) -> Hashed {
    let start = Instant::now();
    let content = *blake3::hash(&file).as_bytes();
    (file, content, start.elapsed())
}

fn offered<'a>(app: &'a App, (file, content, hash): Hashed, asked: &Asked) -> (Image<'a>, Upload) {
    let mut image = Image::arrived(app);
    let upload = Upload {
        bytes: file,
        content,
        parameters: Vec::new(),
        received: asked.received,
        read: asked.read,
        hash,
        memory: asked.memory.clone(),
    };
    image.offered(&upload, asked.wishes.retry);
    (image, upload)
}

/// The error of one image of several.
pub fn at(index: usize, mut error: ApiError) -> ApiError {
    error.message = format!("image {index}: {}", error.message);
    error
}
