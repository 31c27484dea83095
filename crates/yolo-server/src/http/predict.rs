//! `POST /predict`: one picture in, its detections out. HTTP to types and back; the work is in [`crate::predictor`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use yolo_vision::DetectionJson;

use super::body::{self, Upload};
use super::error::{ApiError, Code};
use super::parameters::Wishes;
use super::{Received, RequestId};
use crate::app::App;
use crate::lifecycle::Stage;
use crate::metrics::{ImageMetrics, observe_seconds};
use crate::predictor::{Prediction, Predictor, Speed, images_outcome};

/// The handler.
pub async fn predict(State(app): State<Arc<App>>, request: Request) -> Response {
    let mut received = None;
    let mut response = match answer(&app, request, &mut received).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    };
    if let Some(received) = received {
        response.extensions_mut().insert::<Received>(received);
    }
    response
}

async fn answer(app: &App, request: Request, received: &mut Option<Received>) -> Result<Response, ApiError> {
    let mut image = Image::arrived(app);
    let result = steps(app, request, &mut image, received).await;
    image.outcome = match &result {
        Ok((outcome, _)) => outcome,
        Err(error) => {
            image.count_refusal(error.code);
            error.code.image_outcome()
        }
    };
    result.map(|(_, response)| response)
}

async fn steps(
    app: &App,
    request: Request,
    image: &mut Image<'_>,
    received: &mut Option<Received>,
) -> Result<(&'static str, Response), ApiError> {
    let predictor = app.predictor().filter(|_| app.lifecycle.stage() > Stage::Starting);
    let predictor = predictor.ok_or_else(|| ApiError::new(Code::Starting, "the model is still being loaded"))?;
    let id = request.extensions().get::<RequestId>().cloned();
    let side_px = predictor.model().info.size().width_px;
    let mut wishes = Wishes::of_head(request.uri(), request.headers(), predictor.defaults(), side_px)?;
    let upload = body::receive(request, &app.bodies, &app.metrics.http).await?;
    wishes.add(&upload.parameters, side_px)?;
    let at = upload.received;
    *received = Some(Received { at, queue_and_inference: Duration::ZERO });
    image.offered(app, &upload, wishes.retry);
    let knobs = app.knobs();
    let prediction = tokio::select! {
        prediction = predictor.predict(upload, &wishes, &knobs) => prediction?,
        () = app.lifecycle.reached(Stage::Aborting) => {
            return Err(ApiError::new(Code::Draining, "the server shut down before the image was done"));
        }
    };
    let queue_and_inference = prediction.speed.queue + prediction.speed.inference;
    *received = Some(Received { at, queue_and_inference });
    app.metrics.images.detections.inc_by(prediction.answer.detections.len() as u64);
    let outcome = images_outcome(prediction.cache);
    let start = Instant::now();
    let response = respond(predictor, &prediction, &wishes, id.as_ref());
    observe_seconds(&app.metrics.images.stage.of("encode"), start.elapsed());
    Ok((outcome, response))
}

/// An image in flight; counted with its outcome when dropped. Dropped early, its client has left.
struct Image<'a> {
    metrics: &'a ImageMetrics,
    outcome: &'static str,
}

impl<'a> Image<'a> {
    fn arrived(app: &'a App) -> Self {
        let metrics = &app.metrics.images;
        metrics.in_flight.inc();
        Self { metrics, outcome: "cancelled" }
    }

    /// The whole picture is here: it is demand, whether or not it will be served.
    fn offered(&self, app: &App, upload: &Upload, retry: bool) {
        if retry {
            self.metrics.retries.inc();
        } else {
            app.arrivals.count(upload.received);
        }
        observe_seconds(&self.metrics.stage.of("read"), upload.read);
        observe_seconds(&self.metrics.stage.of("hash"), upload.hash);
    }

    fn count_refusal(&self, code: Code) {
        match code {
            Code::QueueFull | Code::PredictedLate | Code::Draining | Code::Starting => {
                self.metrics.rejected.of(code.as_str()).inc();
            }
            Code::PayloadTooLarge => {
                self.metrics.rejected.of("payload").inc();
            }
            _ => {}
        }
    }
}

impl Drop for Image<'_> {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        self.metrics.count("sync", self.outcome);
    }
}

fn respond(predictor: &Predictor, prediction: &Prediction, wishes: &Wishes, id: Option<&RequestId>) -> Response {
    let body = document(predictor, prediction, wishes, id.map_or("", |id| &*id.0));
    let emulated = body.emulated;
    let mut response = Json(body).into_response();
    if emulated {
        response.headers_mut().insert("x-yolo-emulated", HeaderValue::from_static("1"));
    }
    response
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
        model: ModelBody { name: &model.name, version: model.version(), task: model.info.task().as_str() },
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
