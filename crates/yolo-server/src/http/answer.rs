//! What predictions look like on the wire: the types, from which `/openapi.json` is made too.

use std::time::Duration;

use axum::http::HeaderValue;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use yolo_vision::DetectionJson;

use super::error::ErrorBody;
use super::parameters::Wishes;
use crate::predictor::{Prediction, Predictor, Speed};

/// The objects found in one picture.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Prediction")]
pub struct PredictionBody<'a> {
    request_id: &'a str,
    model: ModelBody<'a>,
    image: ImageBody,
    /// Best first.
    detections: Vec<DetectionJson>,
    speed: SpeedBody,
    /// Images that ran together with this one, itself included; 0 if the answer was remembered.
    batch_size: usize,
    /// `miss`, `hit`, `coalesced` with an equal picture in flight, or `bypass`.
    cache: &'a str,
    /// Whether the detections are made up, for rehearsals.
    emulated: bool,
}

impl<'a> PredictionBody<'a> {
    /// A prediction as the client wished it.
    pub fn new(predictor: &'a Predictor, prediction: &Prediction, wishes: &Wishes, request_id: &'a str) -> Self {
        let Prediction { answer, cache, speed, promise: _ } = prediction;
        let normalised_by = wishes.parameters.normalize.then_some(answer.size);
        let model = predictor.model();
        Self {
            request_id,
            model: ModelBody { name: &model.name, version: model.version(), task: model.info.task().as_str() },
            image: ImageBody { width: answer.size.width_px, height: answer.size.height_px },
            detections: answer.detections.iter().map(|detection| detection.to_json(normalised_by)).collect(),
            speed: SpeedBody::from(speed),
            batch_size: speed.batch_size,
            cache,
            emulated: model.emulated(),
        }
    }
}

/// Marks an answer whose detections are made up.
pub fn mark_emulated(response: &mut Response, predictor: &Predictor) {
    if predictor.model().emulated() {
        response.headers_mut().insert("x-yolo-emulated", HeaderValue::from_static("1"));
    }
}

/// The pictures of a batch, in the order in which they were sent.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Batch")]
pub struct BatchBody<'a> {
    /// The request's id.
    pub request_id: &'a str,
    /// One for each picture.
    pub results: Vec<BatchItem<'a>>,
}

/// One picture of a batch.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum BatchItem<'a> {
    /// What was found in it.
    Found(Box<PredictionBody<'a>>),
    /// Why it has no result.
    Failed(ErrorBody<'a>),
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Model")]
struct ModelBody<'a> {
    /// The file's stem.
    name: &'a str,
    /// First digits of the file's SHA-256.
    version: &'a str,
    task: &'a str,
}

/// The picture's size in pixels, after its EXIF orientation.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Image")]
struct ImageBody {
    width: u32,
    height: u32,
}

/// Milliseconds in each stage, to the microsecond; 0 where a stage was skipped.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Speed")]
struct SpeedBody {
    read: f64,
    decode: f64,
    preprocess: f64,
    queue: f64,
    inference: f64,
    postprocess: f64,
}

impl From<&Speed> for SpeedBody {
    fn from(speed: &Speed) -> Self {
        let ms = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        Self {
            read: ms(speed.read),
            decode: ms(speed.decode),
            preprocess: ms(speed.preprocess),
            queue: ms(speed.queue),
            inference: ms(speed.inference),
            postprocess: ms(speed.postprocess),
        }
    }
}
