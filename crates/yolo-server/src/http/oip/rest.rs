//! The protocol over REST: `/v2` and everything below it, on the API's port.

mod codec;
mod elements;

use std::iter;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

use super::infer::{self, Answered, Asked};
use super::{metadata, statistics};
use crate::app::App;
use crate::http::body::{self, Whole};
use crate::http::error::{ApiError, Code};
use crate::http::image::{self, Image};
use crate::http::{Received, predict};
use crate::predictor::Predictor;
use codec::{Decoded, Head};

/// The routes.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v2", get(async || Json(metadata::server())))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .nest("/v2/models/{model}", model_routes())
        .nest("/v2/models/{model}/versions/{version}", model_routes())
}

fn model_routes() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(model_metadata))
        .route("/ready", get(model_ready))
        .route("/stats", get(model_statistics))
        .route("/infer", post(infer))
}

/// Which model a path names.
#[derive(Deserialize)]
struct Target {
    model: String,
    /// Empty: the only one.
    #[serde(default)]
    version: String,
}

impl Target {
    fn find<'a>(&self, app: &'a App) -> Result<&'a Predictor, ApiError> {
        infer::model(app, &self.model, &self.version)
    }
}

async fn live(State(app): State<Arc<App>>) -> StatusCode {
    if app.live().is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn ready(State(app): State<Arc<App>>) -> StatusCode {
    if app.ready().is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn model_ready(State(app): State<Arc<App>>, Path(target): Path<Target>) -> Result<StatusCode, ApiError> {
    target.find(&app)?;
    Ok(ready(State(app)).await)
}

async fn model_metadata(State(app): State<Arc<App>>, Path(target): Path<Target>) -> Result<Response, ApiError> {
    Ok(Json(metadata::model(target.find(&app)?.model())).into_response())
}

async fn model_statistics(State(app): State<Arc<App>>, Path(target): Path<Target>) -> Result<Response, ApiError> {
    Ok(Json(statistics::of(target.find(&app)?.model(), &app.metrics.batch)).into_response())
}

async fn infer(State(app): State<Arc<App>>, Path(target): Path<Target>, request: Request) -> Response {
    let mut received = None;
    let result = steps(&app, &target, request, &mut received).await;
    Received::attach(received, result.into_response())
}

/// A request that was read and names the served model.
struct Question<'a> {
    predictor: &'a Predictor,
    asked: Asked,
    id: String,
    /// Whether an output is wanted in binary: of those that are named, then of all others.
    binary: (Vec<bool>, bool),
}

async fn steps(
    app: &App,
    target: &Target,
    request: Request,
    received: &mut Option<Received>,
) -> Result<Response, ApiError> {
    // Refused here, a request counts as one image: nobody knows how many it held.
    let question = read(app, target, request).await.inspect_err(|error| Image::arrived(app).failed(error))?;
    let Question { predictor, asked, id, binary: (named, others) } = question;
    let at = asked.received;
    *received = Some(Received { at, queue_and_inference: Duration::ZERO });
    let Answered { outputs, queue_and_inference } = infer::infer(app, predictor, &asked).await?;
    *received = Some(Received { at, queue_and_inference });
    drop((asked.inputs, asked.memory)); // the answer is not their business
    let start = Instant::now();
    let model = predictor.model();
    let head = Head { model_name: &model.name, model_version: model.version(), id: &id };
    let outputs: Vec<_> = outputs.into_iter().zip(named.into_iter().chain(iter::repeat(others))).collect();
    let mut response = codec::encode(&head, &outputs);
    predict::mark_emulated(&mut response, predictor);
    image::encoded(app, start);
    Ok(response)
}

async fn read<'a>(app: &'a App, target: &Target, request: Request) -> Result<Question<'a>, ApiError> {
    let predictor = target.find(app)?;
    let (uri, headers) = (request.uri().clone(), request.headers().clone());
    let Whole { bytes, received, read, memory } = body::receive_whole(request, &app.bodies, &app.metrics.http).await?;
    let (decoded, headers) = blocking(move || (codec::decode(&headers, &bytes), headers)).await?;
    let Decoded { id, parameters, inputs, outputs, binary_outputs } = decoded?;
    let wishes = infer::wishes(&uri, &headers, parameters, predictor)?;
    let (outputs, named) = outputs.into_iter().unzip();
    let asked = Asked { inputs, outputs, wishes, received, read, memory };
    Ok(Question { predictor, asked, id, binary: (named, binary_outputs) })
}

/// Numbers in JSON take a third of a second to read at worst: too long for a thread that serves connections.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    let work = tokio::task::spawn_blocking(work).await;
    work.map_err(|_| ApiError::new(Code::Internal, "reading the tensors crashed"))
}
