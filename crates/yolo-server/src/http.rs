//! The API: routes, and the layer that every request passes.

pub mod body;
pub mod error;
pub mod health;
mod image;
pub(crate) mod oip;
pub mod parameters;
pub mod predict;
pub mod tasks;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::app::App;
use crate::limits;
use crate::metrics::Metrics;
use crate::random;
use error::{ApiError, Code};

const REQUEST_ID: &str = "x-request-id";
/// What nginx logs when the client closed the connection first.
const CLIENT_CLOSED_REQUEST: u16 = 499;
/// Label of the Open Inference Protocol, whose errors have a form of their own.
const OIP: &str = "v2";

/// The API of port 8080.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/predict", post(predict::predict))
        .route("/predict/async", post(tasks::submit))
        .route("/tasks/{id}", get(tasks::view).delete(tasks::cancel))
        .route("/version", get(health::version))
        .merge(oip::rest::routes())
        .fallback(async || ApiError::new(Code::NotFound, "no such path: POST /predict"))
        .method_not_allowed_fallback(async || ApiError::new(Code::MethodNotAllowed, "the path takes another method"))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), observe))
        .with_state(app)
}

/// A request's id, given by the client or made up.
#[derive(Debug, Clone)]
struct RequestId(Arc<str>);

/// When a prediction's last request byte was there, and what its image spent in queue and engine.
#[derive(Debug, Clone, Copy)]
struct Received {
    at: Instant,
    queue_and_inference: Duration,
}

impl Received {
    /// Hands `received` to [`observe`] along with the answer.
    fn attach(received: Option<Self>, mut response: Response) -> Response {
        if let Some(received) = received {
            response.extensions_mut().insert(received);
        }
        response
    }
}

/// Names the request, counts it, writes errors and measures the answer.
async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let mut record = Record::begin(Arc::clone(&app.metrics), endpoint(request.uri().path()));
    request.extensions_mut().insert(RequestId(Arc::clone(&id)));
    let mut response = next.run(request).await;
    record.received = response.extensions_mut().remove::<Received>();
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        record.outcome = error.code.request_outcome();
        let allow = response.headers_mut().remove(header::ALLOW);
        response = if record.endpoint == OIP { error.render_text() } else { error.render(&id) };
        response.headers_mut().extend(allow.map(|allow| (header::ALLOW, allow)));
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    record.status = response.status().as_u16();
    response.map(|body| Body::new(Recorded { body, _record: record }))
}

/// The endpoint's label in the metrics.
fn endpoint(path: &str) -> &'static str {
    match path {
        "/predict" => "predict",
        "/predict/async" => "async",
        path if path.starts_with("/tasks/") => "task",
        path if path == "/v2" || path.starts_with("/v2/") => OIP,
        _ => "other",
    }
}

/// The client's id if it is short and printable, else a new one.
fn request_id(headers: &HeaderMap) -> Arc<str> {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let usable = given.filter(|id| !id.is_empty() && id.len() <= limits::REQUEST_ID_BYTES_MAX);
    usable.map_or_else(|| random::request_id().into(), Into::into)
}

/// Counts one request when dropped: with its answer's last byte, or because its client left.
struct Record {
    metrics: Arc<Metrics>,
    endpoint: &'static str,
    status: u16,
    outcome: &'static str,
    received: Option<Received>,
}

impl Record {
    fn begin(metrics: Arc<Metrics>, endpoint: &'static str) -> Self {
        metrics.http.in_flight.inc();
        Self { metrics, endpoint, status: CLIENT_CLOSED_REQUEST, outcome: "ok", received: None }
    }

    /// What it is answered, where no response tells.
    fn answered(&mut self, error: Option<&ApiError>) {
        self.outcome = error.map_or("ok", |error| error.code.request_outcome());
        self.status = error.map_or(StatusCode::OK, |error| error.code.status()).as_u16();
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let http = &self.metrics.http;
        http.in_flight.dec();
        http.count(self.endpoint, self.status);
        if let Some(Received { at, queue_and_inference }) = self.received {
            let total = at.elapsed();
            http.duration.of(self.outcome).observe(total.as_secs_f64());
            http.overhead.observe(total.saturating_sub(queue_and_inference).as_secs_f64());
        }
    }
}

/// An answer's body that ends its request's record when hyper has taken the last byte.
struct Recorded {
    body: Body,
    _record: Record,
}

impl HttpBody for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
