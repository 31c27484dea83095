//! What every request passes: it is named, counted, measured and logged, and its errors are written.

use std::ops::Deref;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Request as HttpRequest, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::FutureExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::error::{ApiError, Code};
use super::trace::{TRACEPARENT, TraceContext};
use crate::app::App;
use crate::limits;
use crate::metrics::Metrics;
use crate::predictor::Speed;
use crate::random;
use crate::traces::{RequestSpan, Traces};

const REQUEST_ID: &str = "x-request-id";
/// What nginx logs when the client closed the connection first.
const CLIENT_CLOSED_REQUEST: u16 = 499;
/// Bytes of a path in the log.
const LOGGED_PATH_BYTES_MAX: usize = 128;
/// Label of the Open Inference Protocol, whose errors have a form of their own.
const OIP: &str = "v2";

/// A request's id, given by the client or made up.
#[derive(Debug, Clone)]
pub(super) struct RequestId(Arc<str>);

impl RequestId {
    /// The id of a request that came through [`observe`].
    pub(super) fn of(request: &Request) -> Self {
        request.extensions().get().cloned().unwrap_or_else(|| Self("".into()))
    }

    /// The client's id if it is short and printable, else a new one.
    fn choose(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        let usable = given.filter(|id| !id.is_empty() && id.len() <= limits::REQUEST_ID_BYTES_MAX);
        Self(usable.map_or_else(|| random::digits().into(), Into::into))
    }
}

impl Deref for RequestId {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// When a prediction's last request byte was there, and the times of its slowest image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Received {
    pub at: Instant,
    pub speed: Speed,
}

impl Received {
    /// Hands `received` to [`observe`] along with the answer.
    pub(super) fn attach(received: Option<Self>, mut response: Response) -> Response {
        if let Some(received) = received {
            response.extensions_mut().insert(received);
        }
        response
    }
}

/// The outermost layer.
pub(super) async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let mut record = Record::begin(&app, &request);
    let (id, trace) = (record.id.clone(), record.trace.clone());
    request.extensions_mut().insert(id.clone());
    request.extensions_mut().insert(trace.clone());
    let mut response = match head_within_limits(request.uri(), request.headers()) {
        Err(error) => error.into_response(),
        // A bug of ours in one request must not take the others on its connection with it.
        Ok(()) => AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
            ApiError::new(Code::Internal, "the request met a bug of the server: please report it").into_response()
        }),
    };
    record.received = response.extensions_mut().remove::<Received>();
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        record.error = Some(error.code);
        let allow = response.headers_mut().remove(header::ALLOW);
        response = if record.endpoint == OIP { error.render_text() } else { error.render(&id) };
        response.headers_mut().extend(allow.map(|allow| (header::ALLOW, allow)));
    }
    for (name, value) in [(REQUEST_ID, HeaderValue::from_str(&id).ok()), (TRACEPARENT, trace.header())] {
        response.headers_mut().extend(value.map(|value| (header::HeaderName::from_static(name), value)));
    }
    record.status = response.status().as_u16();
    response.map(|body| Body::new(Recorded { body, _record: record }))
}

/// Hyper has bounded the head already, but would answer without a body.
fn head_within_limits(uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let uri_bytes = uri.path_and_query().map_or(0, |path| path.as_str().len());
    if uri_bytes > limits::URI_BYTES_MAX {
        let message = format!("path and query are longer than {} bytes", limits::URI_BYTES_MAX);
        return Err(ApiError::new(Code::UriTooLong, message));
    }
    // Each line has ": " and its end besides.
    let header_bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if header_bytes > limits::HEADER_BYTES_MAX {
        let message = format!("the headers are longer than {} bytes", limits::HEADER_BYTES_MAX);
        return Err(ApiError::new(Code::HeadersTooLarge, message));
    }
    Ok(())
}

/// Label value of `yolo_http_requests_total`.
fn endpoint(path: &str) -> &'static str {
    match path {
        "/predict" => "predict",
        "/predict/batch" => "batch",
        "/predict/async" => "async",
        path if path.starts_with("/tasks/") => "task",
        path if path == "/v2" || path.starts_with("/v2/") => OIP,
        _ => "other",
    }
}

/// Counts, logs and traces one request when dropped: with its answer's last byte, or because its client left.
pub(super) struct Record {
    metrics: Arc<Metrics>,
    traces: Option<Arc<Traces>>,
    endpoint: &'static str,
    method: Method,
    path: String,
    id: RequestId,
    trace: TraceContext,
    begun: Instant,
    status: u16,
    error: Option<Code>,
    received: Option<Received>,
}

impl Record {
    pub(super) fn begin<B>(app: &App, request: &HttpRequest<B>) -> Self {
        app.metrics.http.in_flight.inc();
        let traces = app.traces();
        let trace = TraceContext::of(request.headers(), traces.is_some());
        let path = request.uri().path();
        Self {
            metrics: Arc::clone(&app.metrics),
            traces,
            endpoint: endpoint(path),
            method: request.method().clone(),
            path: path.chars().take(LOGGED_PATH_BYTES_MAX).collect(), // a valid URI is ASCII
            id: RequestId::choose(request.headers()),
            trace,
            begun: Instant::now(),
            status: CLIENT_CLOSED_REQUEST,
            error: None,
            received: None,
        }
    }

    /// All of the request is here, or its images are done.
    pub(super) fn received(&mut self, received: Received) {
        self.received = Some(received);
    }

    /// What it is answered, where no response tells.
    pub(super) fn answered(&mut self, error: Option<&ApiError>) {
        self.error = error.map(|error| error.code);
        self.status = self.error.map_or(StatusCode::OK, Code::status).as_u16();
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let http = &self.metrics.http;
        http.in_flight.dec();
        http.count(self.endpoint, self.status);
        if let Some(Received { at, speed }) = self.received {
            let total = at.elapsed();
            let outcome = self.error.map_or("ok", Code::request_outcome);
            http.duration.of(outcome).observe(total.as_secs_f64());
            http.overhead.observe(total.saturating_sub(speed.queue_and_inference()).as_secs_f64());
        }
        let worked = self.received.map(|received| milliseconds(received.speed.queue_and_inference()));
        tracing::info!(
            target: "yolo_server::request",
            request_id = &*self.id,
            trace_id = self.trace.trace_id,
            span_id = self.trace.span_id,
            method = self.method.as_str(),
            path = self.path,
            status = self.status,
            error = self.error.map(Code::as_str),
            duration_ms = milliseconds(self.begun.elapsed()),
            queue_and_inference_ms = worked,
            "Request answered."
        );
        if let Some(traces) = &self.traces {
            traces.record(&RequestSpan {
                context: &self.trace,
                method: self.method.as_str(),
                endpoint: self.endpoint,
                begun: self.begun,
                speed: self.received.map(|received| received.speed),
                status: self.status,
                error: self.error.map(Code::as_str),
            });
        }
    }
}

/// Milliseconds, to the microsecond.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
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

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use axum::{Router, middleware};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_bug_in_a_handler_is_answered_with_500() {
        async fn buggy() -> &'static str {
            panic!("a bug")
        }
        let app = Arc::new(App::new());
        let router = Router::new()
            .route("/predict", get(buggy))
            .layer(middleware::from_fn_with_state(Arc::clone(&app), observe))
            .with_state(app);
        let request = Request::get("/predict").header("x-request-id", "mine").body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status(), 500);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&body["error"]["code"], &body["error"]["request_id"]), (&"internal".into(), &"mine".into()));
    }
}
