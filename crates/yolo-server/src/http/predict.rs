//! `POST /predict`: one picture in, its detections out. HTTP to types and back; the work is in [`crate::predictor`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use yolo_vision::DetectionJson;

use super::body;
use super::error::ApiError;
use super::image::{self, Image};
use super::parameters::Wishes;
use super::{Received, RequestId};
use crate::app::App;
use crate::predictor::{Prediction, Predictor, Speed};

/// The handler.
pub async fn predict(State(app): State<Arc<App>>, request: Request) -> Response {
    let mut received = None;
    let mut image = Image::arrived(&app);
    let result = steps(&app, request, &mut image, &mut received).await;
    if let Err(error) = &result {
        image.failed(error);
    }
    Received::attach(received, result.into_response())
}

async fn steps(
    app: &App,
    request: Request,
    image: &mut Image<'_>,
    received: &mut Option<Received>,
) -> Result<Response, ApiError> {
    let predictor = app.serving()?;
    let id = request.extensions().get::<RequestId>().cloned();
    let side_px = predictor.model().info.size().width_px;
    let mut wishes = Wishes::of_head(request.uri(), request.headers(), predictor.defaults(), side_px)?;
    let upload = body::receive(request, &app.bodies, &app.metrics.http).await?;
    wishes.add(&upload.parameters, side_px)?;
    let at = upload.received;
    *received = Some(Received { at, queue_and_inference: Duration::ZERO });
    image.offered(&upload, wishes.retry);
    let prediction = image.predict(predictor, upload, &wishes).await?;
    let queue_and_inference = prediction.speed.queue + prediction.speed.inference;
    *received = Some(Received { at, queue_and_inference });
    let start = Instant::now();
    let response = respond(predictor, &prediction, &wishes, id.as_ref());
    image::encoded(app, start);
    Ok(response)
}

fn respond(predictor: &Predictor, prediction: &Prediction, wishes: &Wishes, id: Option<&RequestId>) -> Response {
    let mut response = Json(document(predictor, prediction, wishes, id.map_or("", |id| &*id.0))).into_response();
    mark_emulated(&mut response, predictor);
    response
}

/// Marks an answer whose detections are made up.
pub(super) fn mark_emulated(response: &mut Response, predictor: &Predictor) {
    if predictor.model().emulated() {
        response.headers_mut().insert("x-yolo-emulated", HeaderValue::from_static("1"));
    }
}

/// What is answered of a picture: the body of `/predict`, and the result of a task.
pub(crate) fn document<'a>(
    predictor: &'a Predictor,
    prediction: &'a Prediction,
    wishes: &Wishes,
    request_id: &'a str,
) -> Body<'a> {
    let Prediction { answer, batch_size, cache, speed } = prediction;
    let model = predictor.model();
    let normalised_by = wishes.parameters.normalize.then_some(answer.size);
    Body {
        request_id,
        model: ModelBody { name: &model.name, version: model.version(), task: "detect" },
        image: ImageBody { width: answer.size.width_px, height: answer.size.height_px },
        detections: answer.detections.iter().map(|detection| detection.to_json(normalised_by)).collect(),
        speed: SpeedBody::from(speed),
        batch_size: *batch_size,
        cache,
        emulated: model.emulated(),
    }
}

/// See [`document`].
#[derive(Serialize)]
pub(crate) struct Body<'a> {
    request_id: &'a str,
    model: ModelBody<'a>,
    image: ImageBody,
    detections: Vec<DetectionJson>,
    speed: SpeedBody,
    batch_size: usize,
    cache: &'a str,
    emulated: bool,
}

#[derive(Serialize)]
struct ModelBody<'a> {
    name: &'a str,
    version: &'a str,
    task: &'a str,
}

#[derive(Serialize)]
struct ImageBody {
    width: u32,
    height: u32,
}

/// Milliseconds, to the microsecond.
#[derive(Serialize)]
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
