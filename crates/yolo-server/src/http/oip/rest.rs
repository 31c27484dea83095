//! The protocol over REST: `/v2` and everything below it, on the API's port.

pub mod codec;
mod elements;

use std::iter;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

use super::infer::{self, Answered, Asked};
use super::repository::{self, ModelIndex};
use super::{config, metadata, statistics};
use crate::app::App;
use crate::http::body::{self, Whole};
use crate::http::error::{ApiError, Code};
use crate::http::image::{self, Image};
use crate::http::making::off_thread;
use crate::http::path::Named;
use crate::http::{Received, answer};
use crate::lifecycle::Stage;
use crate::predictor::{Predictor, Speed};
use codec::{Decoded, Head};

/// The routes.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v2", get(async || Json(metadata::server())))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/v2/repository/index", post(index))
        .route("/v2/models/stats", get(statistics_of_all))
        .nest("/v2/models/{model}", model_routes())
        .nest("/v2/models/{model}/versions/{version}", model_routes())
}

fn model_routes() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(model_metadata))
        .route("/ready", get(model_ready))
        .route("/config", get(model_config))
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
    fn find(&self, app: &App) -> Result<Arc<Predictor>, ApiError> {
        infer::model(app, &self.model, &self.version)
    }
}

async fn live(State(app): State<Arc<App>>) -> Result<StatusCode, ApiError> {
    app.live().map(|()| StatusCode::OK).map_err(|reason| ApiError::new(Code::EngineFailed, reason))
}

async fn ready(State(app): State<Arc<App>>) -> Result<StatusCode, ApiError> {
    app.ready().map(|()| StatusCode::OK).map_err(|reason| {
        let code = match app.lifecycle.stage() {
            Stage::Starting => Code::Starting,
            Stage::Serving => Code::EngineFailed,
            Stage::Draining | Stage::Closing | Stage::Aborting => Code::Draining,
        };
        ApiError::new(code, reason)
    })
}

async fn model_ready(State(app): State<Arc<App>>, Named(target): Named<Target>) -> Result<StatusCode, ApiError> {
    target.find(&app)?;
    ready(State(app)).await
}

async fn model_metadata(State(app): State<Arc<App>>, Named(target): Named<Target>) -> Result<Response, ApiError> {
    Ok(Json(metadata::model(target.find(&app)?.model())).into_response())
}

async fn model_statistics(State(app): State<Arc<App>>, Named(target): Named<Target>) -> Result<Response, ApiError> {
    Ok(Json(statistics::of(target.find(&app)?.model(), &app.metrics.batch)).into_response())
}

async fn model_config(State(app): State<Arc<App>>, Named(target): Named<Target>) -> Result<Response, ApiError> {
    Ok(Json(config::of(&*target.find(&app)?)).into_response())
}

async fn statistics_of_all(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    Ok(Json(statistics::of(app.serving()?.model(), &app.metrics.batch)).into_response())
}

async fn index(State(app): State<Arc<App>>) -> Json<Vec<ModelIndex>> {
    Json(repository::index(&app))
}

async fn infer(State(app): State<Arc<App>>, Named(target): Named<Target>, request: Request) -> Response {
    let mut received = None;
    let result = steps(&app, &target, request, &mut received).await;
    Received::attach(received, result.into_response())
}

/// A request that was read and names the served model.
struct Question {
    predictor: Arc<Predictor>,
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
    *received = Some(Received { at, speed: Speed::default() });
    let Answered { outputs, speed, memory } = infer::infer(app, &predictor, &asked).await?;
    *received = Some(Received { at, speed });
    let start = Instant::now();
    let outputs: Vec<_> = outputs.into_iter().zip(named.into_iter().chain(iter::repeat(others))).collect();
    let bytes = outputs.iter().map(|(tensor, _)| tensor.data.len()).sum();
    let served = Arc::clone(&predictor);
    let encode = move || {
        let _held = (memory, asked.memory);
        let model = served.model();
        codec::encode(&Head { model_name: &model.name, model_version: model.version(), id: &id }, &outputs)
    };
    let mut response = off_thread(bytes, encode).await??;
    answer::mark_emulated(&mut response, &predictor);
    image::encoded(app, start);
    Ok(response)
}

async fn read(app: &App, target: &Target, request: Request) -> Result<Question, ApiError> {
    let predictor = target.find(app)?;
    let (uri, headers) = (request.uri().clone(), request.headers().clone());
    let whole = body::receive_whole(request, &app.bodies, &app.metrics.http).await?;
    let Whole { bytes, received, read, mut memory } = whole;
    let (bodies, length) = (app.bodies.clone(), bytes.len());
    let decode = move || {
        bodies.hold(&mut memory, bytes.len() + codec::decoding_bytes(&headers, &bytes))?;
        Ok::<_, ApiError>((codec::decode(&headers, &bytes)?, headers, memory.map(Arc::new)))
    };
    let (decoded, headers, memory) = off_thread(length, decode).await??;
    let Decoded { id, parameters, inputs, outputs, binary_outputs } = decoded;
    let wishes = infer::wishes(&uri, &headers, parameters, &predictor)?;
    let (outputs, named) = outputs.into_iter().unzip();
    let asked = Asked { inputs, outputs, wishes, received, read, memory };
    Ok(Question { predictor, asked, id, binary: (named, binary_outputs) })
}
