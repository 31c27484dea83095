//! The admin port: metrics, probes, the log's level and the model's reload, on a thread and a router of their own, so that load cannot starve them.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::app::App;
use crate::cgroup;
use crate::lifecycle::Stage;
use crate::logging::{self, LogError};
use crate::reload::{self, Reloaded};

const OPEN_METRICS: &str = "application/openmetrics-text";
/// No list of log directives is longer.
const LOG_BODY_BYTES_MAX: usize = 4 << 10;

/// The routes of port 8081.
pub fn admin_router(app: Arc<App>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/startupz", get(started))
        .route("/log", get(log).put(set_log))
        .route("/reload", post(reload))
        .layer(DefaultBodyLimit::max(LOG_BODY_BYTES_MAX))
        .with_state(app)
}

async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let open = accepted.contains(OPEN_METRICS);
    app.refresh_metrics();
    let media_type = if open {
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    } else {
        "text/plain; version=0.0.4; charset=utf-8"
    };
    match app.metrics.encode(open) {
        Ok(document) => ([(header::CONTENT_TYPE, media_type)], document).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn live(State(app): State<Arc<App>>) -> Response {
    told(app.live())
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    told(app.ready())
}

async fn started(State(app): State<Arc<App>>) -> Response {
    if app.lifecycle.stage() > Stage::Starting { "ok".into_response() } else { failed("the model is being loaded") }
}

async fn log() -> Response {
    logging::directives().map_or_else(|error| refused(&error), IntoResponse::into_response)
}

/// `PUT /log` with directives such as `debug` or `info,yolo_server=debug`.
async fn set_log(directives: String) -> Response {
    logging::set_directives(directives.trim()).map_or_else(|error| refused(&error), |()| "ok".into_response())
}

/// `POST /reload`: 200 and `unchanged` or `reloaded` with the digest of the model that is served, or 409 and why not.
async fn reload(State(app): State<Arc<App>>) -> Response {
    // A task of its own: a client that leaves does not stop it.
    match tokio::spawn(async move { reload::reload(&app, cgroup::memory_stat).await }).await {
        Ok(Ok(Reloaded::Unchanged(sha256))) => format!("unchanged {sha256}").into_response(),
        Ok(Ok(Reloaded::Swapped(sha256))) => format!("reloaded {sha256}").into_response(),
        Ok(Err(error)) => (StatusCode::CONFLICT, reload::told(&error)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn refused(error: &LogError) -> Response {
    let status = match error {
        LogError::Directives => StatusCode::BAD_REQUEST,
        LogError::NotOurs => StatusCode::NOT_FOUND,
    };
    (status, error.to_string()).into_response()
}

fn told(answer: Result<(), &'static str>) -> Response {
    answer.map_or_else(failed, |()| "ok".into_response())
}

fn failed(reason: &'static str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
}
