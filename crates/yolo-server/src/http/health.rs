//! The admin port: metrics and probes, on a thread and a router of their own, so that load cannot starve them.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::app::App;
use crate::lifecycle::Stage;

const OPEN_METRICS: &str = "application/openmetrics-text";

/// The routes of port 8081.
pub fn admin_router(app: Arc<App>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/startupz", get(started))
        .with_state(app)
}

/// `GET /version` of the API.
pub(super) async fn version() -> Response {
    Json(serde_json::json!({"name": "yolo-server", "version": env!("CARGO_PKG_VERSION")})).into_response()
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

fn told(answer: Result<(), &'static str>) -> Response {
    answer.map_or_else(failed, |()| "ok".into_response())
}

fn failed(reason: &'static str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
}
