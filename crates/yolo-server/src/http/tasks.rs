//! `POST /predict/async`, `GET` and `DELETE /tasks/{id}`: pictures that nobody waits for.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::RequestId;
use super::body;
use super::error::{ApiError, Code};
use super::parameters::Wishes;
use super::path::Named;
use crate::app::App;
use crate::lifecycle::Stage;
use crate::limits;
use crate::predictor::Predictor;
use crate::tasks::{Submitted, TaskError, Tasks, View, Work};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Bounds of `Retry-After` when as many tasks wait as are kept.
const RETRY_AFTER_S: (f64, f64) = (1.0, 60.0);

/// Takes a picture on, to be run later: 202, and where its result will be.
///
/// # Errors
/// As `/predict` for the request itself; 409 for a reused key, 429 if too much waits, 503 while nothing can be kept.
/// What is wrong with the picture is the task's result.
pub async fn submit(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let tasks = tasks(&app)?;
    let predictor = app.predictor().ok_or_else(|| ApiError::new(Code::Starting, "the model is still being loaded"))?;
    if app.lifecycle.stage() > Stage::Serving && !tasks.durable() {
        return Err(ApiError::new(Code::Draining, "the server is shutting down and would lose the task"));
    }
    let request_id = RequestId::of(&request).to_string();
    let idempotency_key = idempotency_key(request.headers())?;
    let query = request.uri().query().unwrap_or_default().to_owned();
    let mut wishes = Wishes::of_head(request.uri(), request.headers(), &predictor.served())?;
    let upload = body::receive(request, &app.bodies, &app.metrics.http).await?;
    wishes.add(&upload.parameters, &predictor.served())?;
    let (content, retry) = (upload.content, wishes.retry);
    let work = Work {
        request_id,
        // A buffer that grew while the body came holds up to twice its length.
        picture: Bytes::copy_from_slice(&upload.bytes),
        content,
        query,
        form: upload.parameters,
        bypass_cache: wishes.bypass_cache,
    };
    let submitted = tasks.submit(work, idempotency_key).await;
    count(&app, &submitted, &content, retry);
    let view = submitted.map_err(|error| refused(&error, &app, &predictor))?.view;
    let mut response = (StatusCode::ACCEPTED, Json(&view)).into_response();
    if let Ok(location) = HeaderValue::from_str(&format!("/tasks/{}", view.task_id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Shows a task, and its result once there is one.
///
/// # Errors
/// 400 for a path that is no text, 404 for a name that was never given, 410 for a task that is gone, 503 while the store is away.
pub async fn view(State(app): State<Arc<App>>, Named(id): Named<String>) -> Result<Json<View>, ApiError> {
    tasks(&app)?.view(&id).await.map(Json).map_err(ApiError::from)
}

/// Withdraws a task; one that has ended stays as it is.
///
/// # Errors
/// As [`view`].
pub async fn cancel(State(app): State<Arc<App>>, Named(id): Named<String>) -> Result<Json<View>, ApiError> {
    tasks(&app)?.cancel(&id).await.map(Json).map_err(ApiError::from)
}

fn tasks(app: &App) -> Result<&Tasks, ApiError> {
    // While the model is being loaded it is not known yet whether there will be tasks.
    if app.lifecycle.stage() == Stage::Starting {
        return Err(ApiError::new(Code::Starting, "the model is still being loaded"));
    }
    app.tasks().ok_or_else(|| ApiError::new(Code::NotFound, "tasks are off here: start the server with --tasks"))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = value.to_str().ok().filter(|key| (1..=limits::IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()));
    key.map(|key| Some(key.to_owned())).ok_or_else(|| {
        let max = limits::IDEMPOTENCY_KEY_BYTES_MAX;
        ApiError::new(Code::InvalidRequest, format!("Idempotency-Key must be 1 to {max} printable ASCII characters"))
    })
}

/// Counts a submission as demand if it asks for more work: one that is taken on, or has no room. What the same key, or
/// a store that is away, brings again is no more of it.
fn count(app: &App, submitted: &Result<Submitted, TaskError>, content: &[u8; 32], retry: bool) {
    let (new, full) = match submitted {
        Ok(submitted) => (submitted.new, false),
        Err(TaskError::Full) => (true, true),
        Err(_) => return,
    };
    // As of a prediction: offered again after a refusal it is the same demand.
    let again = !new || retry || app.refusals.recent(content);
    let counter = if again { &app.metrics.images.retries } else { &app.metrics.tasks.arrivals };
    counter.inc();
    if full {
        app.refusals.remember(*content);
    }
}

/// A refused submission: for load with the time in which the workers do as much as is kept.
fn refused(error: &TaskError, app: &App, predictor: &Predictor) -> ApiError {
    if !matches!(error, TaskError::Full) {
        return ApiError::from(error);
    }
    // Not among the rejected images: like the arrivals, they are those that somebody waits for.
    app.metrics.images.count("async", Code::QueueFull.image_outcome());
    let waiting = app.metrics.tasks.unfinished();
    let (low, high) = RETRY_AFTER_S;
    let seconds = (waiting / predictor.batcher().load().throughput().max(f64::EPSILON)).clamp(low, high);
    ApiError::from(error).retry_after(Duration::from_secs_f64(seconds))
}

impl From<&TaskError> for ApiError {
    fn from(error: &TaskError) -> Self {
        let code = match error {
            TaskError::Full => Code::QueueFull,
            TaskError::Conflict => Code::IdempotencyConflict,
            TaskError::Unknown => Code::NotFound,
            TaskError::Gone => Code::TaskExpired,
            TaskError::Away(_) => Code::StoreUnavailable,
            TaskError::Nameless => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}

impl From<TaskError> for ApiError {
    fn from(error: TaskError) -> Self {
        Self::from(&error)
    }
}
