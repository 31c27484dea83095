//! Does what a request asks, whichever transport brought it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, Uri};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::OwnedSemaphorePermit;
use yolo_vision::Detection;

use super::tensor::{self, Datatype, Tensor, invalid};
use crate::app::App;
use crate::http::batch;
use crate::http::body::Upload;
use crate::http::error::{ApiError, Code};
use crate::http::image::Image;
use crate::http::parameters::Wishes;
use crate::limits;
use crate::predictor::{Prediction, Predictor};

/// The input of encoded files: JPEG, PNG or WebP.
pub const FILES: &str = "image";
/// What encoded files are answered with.
const OUTPUTS: [&str; 4] = ["num_detections", "boxes", "scores", "classes"];

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
    /// What its slowest image spent in queue and engine.
    pub queue_and_inference: Duration,
}

/// The served model if it is the named one.
///
/// # Errors
/// 503 while it is being loaded, 404 for another name or version.
pub fn model<'a>(app: &'a App, name: &str, version: &str) -> Result<&'a Predictor, ApiError> {
    let predictor = app.serving()?;
    let model = predictor.model();
    if name == model.name && (version.is_empty() || version == model.version()) {
        return Ok(predictor);
    }
    let asked = if version.is_empty() { format!("{name:.64}") } else { format!("{name:.64} version {version:.64}") };
    let message = format!("unknown model {asked}: {} version {} is served here", model.name, model.version());
    Err(ApiError::new(Code::NotFound, message))
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
pub async fn infer(app: &App, predictor: &Predictor, asked: &Asked) -> Result<Answered, ApiError> {
    let files = files(asked).inspect_err(|error| Image::arrived(app).failed(error))?;
    let answered = detect(app, predictor, files, asked).await?;
    if asked.outputs.is_empty() {
        return Ok(answered);
    }
    let Answered { outputs, queue_and_inference } = answered;
    let wanted = |name: &String| outputs.iter().find(|output| output.name == *name).cloned();
    Ok(Answered { outputs: asked.outputs.iter().filter_map(wanted).collect(), queue_and_inference })
}

/// The files of a request whose tensors fit the model.
fn files(asked: &Asked) -> Result<Vec<Bytes>, ApiError> {
    let [input] = asked.inputs.as_slice() else {
        return Err(invalid(format!("one input a request, found {}", asked.inputs.len())));
    };
    if input.name != FILES {
        return Err(invalid(format!("unknown input {:.64}: known is {FILES}", input.name)));
    }
    if input.datatype != Datatype::Bytes {
        return Err(invalid(format!("{FILES} is BYTES, found {}", input.datatype.as_str())));
    }
    if let Some(unknown) = asked.outputs.iter().find(|name| !OUTPUTS.contains(&name.as_str())) {
        return Err(invalid(format!("unknown output {unknown:.64}: known are {}", OUTPUTS.join(", "))));
    }
    if !input.elements().is_some_and(|files| (1..=limits::BATCH_PARTS_MAX).contains(&files)) {
        let shape = &input.shape;
        return Err(invalid(format!("{FILES}: 1 to {} files, found shape {shape:?}", limits::BATCH_PARTS_MAX)));
    }
    input.byte_strings()
}

/// Finds the objects in encoded files.
async fn detect(app: &App, predictor: &Predictor, files: Vec<Bytes>, asked: &Asked) -> Result<Answered, ApiError> {
    let count = files.len();
    let run = |file: Bytes| {
        let (image, upload) = offered(app, file, asked);
        batch::run(predictor, image, Ok(upload), (&asked.wishes, asked.received))
    };
    let runs: Vec<_> = files.into_iter().map(run).collect();
    let found: Vec<_> = stream::iter(runs)
        .buffered(batch::in_flight(predictor))
        .enumerate()
        .map(|(index, found)| found.map_err(|error| if count > 1 { at(index, error) } else { error }))
        // The first that fails ends the others: nobody would see their results.
        .try_collect()
        .await?;
    let waited = found.iter().map(|Prediction { speed, .. }| speed.queue + speed.inference).max();
    let normalize = asked.wishes.parameters.normalize;
    Ok(Answered { outputs: tensors(&found, normalize), queue_and_inference: waited.unwrap_or_default() })
}

fn offered<'a>(app: &'a App, file: Bytes, asked: &Asked) -> (Image<'a>, Upload) {
    let mut image = Image::arrived(app);
    let start = Instant::now();
    let content = *blake3::hash(&file).as_bytes();
    let upload = Upload {
        bytes: file,
        content,
        parameters: Vec::new(),
        received: asked.received,
        read: asked.read,
        hash: start.elapsed(),
        memory: asked.memory.clone(),
    };
    image.offered(&upload, asked.wishes.retry);
    (image, upload)
}

fn at(index: usize, mut error: ApiError) -> ApiError {
    error.message = format!("image {index}: {}", error.message);
    error
}

/// Detections of N images as tensors, padded with zeros to the most of one image, D.
///
/// `num_detections` INT32 `[N, 1]`, `boxes` FP32 `[N, D, 4]` (x1, y1, x2, y2 in pixels, or in fractions of the image if
/// `normalize`), `scores` FP32 `[N, D]`, `classes` INT32 `[N, D]`.
fn tensors(found: &[Prediction], normalize: bool) -> Vec<Tensor> {
    let images = found.len();
    let most = found.iter().map(|prediction| prediction.answer.detections.len()).max().unwrap_or_default();
    let rows = || found.iter().flat_map(|prediction| padded(&prediction.answer.detections, most));
    let counts = tensor::integers(found.iter().map(|prediction| small(prediction.answer.detections.len())));
    let boxes = found.iter().flat_map(|Prediction { answer, .. }| {
        let size = answer.size;
        let [width, height] = if normalize { [size.width_px, size.height_px] } else { [1, 1] };
        padded(&answer.detections, most)
            .flat_map(move |detection| edges(detection, f64::from(width), f64::from(height)))
    });
    let boxes = tensor::floats(boxes);
    let scores = tensor::floats(rows().map(|detection| detection.map_or(0.0, |detection| detection.confidence)));
    let class = |detection: &Detection| i32::try_from(detection.class).unwrap_or(i32::MAX);
    let classes = tensor::integers(rows().map(|detection| detection.map_or(0, class)));
    let [counts_name, boxes_name, scores_name, classes_name] = OUTPUTS;
    vec![
        Tensor::output(counts_name, Datatype::Int32, &[images, 1], counts),
        Tensor::output(boxes_name, Datatype::Fp32, &[images, most, 4], boxes),
        Tensor::output(scores_name, Datatype::Fp32, &[images, most], scores),
        Tensor::output(classes_name, Datatype::Int32, &[images, most], classes),
    ]
}

fn padded(detections: &[Detection], len: usize) -> impl Iterator<Item = Option<&Detection>> {
    detections.iter().map(Some).chain(std::iter::repeat(None)).take(len)
}

#[expect(clippy::cast_possible_truncation, reason = "coordinates are f32")]
fn edges(detection: Option<&Detection>, width: f64, height: f64) -> [f32; 4] {
    let Some(Detection { bounds, .. }) = detection else { return [0.0; 4] };
    let part = |edge: f32, whole: f64| (f64::from(edge) / whole) as f32;
    [part(bounds.x1, width), part(bounds.y1, height), part(bounds.x2, width), part(bounds.y2, height)]
}

/// A count of at most a few thousand.
fn small(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
