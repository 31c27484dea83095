//! The one error that the API answers: `{"error":{"code","message","request_id","retryable"}}`.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use crate::random;

/// Closed set of what can go wrong; documented for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Code {
    /// Malformed HTTP, multipart, JSON or base64; an unknown parameter; an empty body.
    InvalidRequest,
    /// No such path.
    NotFound,
    /// The task's result was kept for its time, and is gone.
    TaskExpired,
    /// The idempotency key was used for another content.
    IdempotencyConflict,
    /// The path exists, for other methods.
    MethodNotAllowed,
    /// A newer frame of the same stream took the picture's place in the queue.
    Superseded,
    /// The body came too slowly.
    RequestTimeout,
    /// More bytes than accepted.
    PayloadTooLarge,
    /// Path and query together are too long.
    UriTooLong,
    /// The headers together are too long.
    HeadersTooLarge,
    /// Neither JPEG, PNG nor WebP, told by the magic bytes.
    UnsupportedImage,
    /// Damaged or truncated.
    BadImage,
    /// More pixels than accepted, told by the header.
    ImageTooLarge,
    /// A side is 0.
    ImageEmpty,
    /// A parameter out of its range.
    InvalidParameter,
    /// An input size that this server has not warmed.
    ImgszUnavailable,
    /// Load: the queue, or the memory for bodies, is at its bound.
    QueueFull,
    /// Load: the image would start after its deadline.
    PredictedLate,
    /// State: not loaded and warm yet.
    Starting,
    /// State: shutting down.
    Draining,
    /// State: the engine failed several times in a row.
    EngineFailed,
    /// State: the store that all pods share does not answer.
    StoreUnavailable,
    /// The deadline passed while the image was queued or running.
    DeadlineExceeded,
    /// The engine failed on this image.
    InferenceFailed,
    /// A bug of ours.
    Internal,
}

impl Code {
    /// Every code, by its status.
    pub const ALL: [Self; 25] = [
        Self::InvalidRequest,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::IdempotencyConflict,
        Self::Superseded,
        Self::TaskExpired,
        Self::PayloadTooLarge,
        Self::UriTooLong,
        Self::UnsupportedImage,
        Self::BadImage,
        Self::ImageTooLarge,
        Self::ImageEmpty,
        Self::InvalidParameter,
        Self::ImgszUnavailable,
        Self::QueueFull,
        Self::PredictedLate,
        Self::HeadersTooLarge,
        Self::InferenceFailed,
        Self::Internal,
        Self::Starting,
        Self::Draining,
        Self::EngineFailed,
        Self::StoreUnavailable,
        Self::DeadlineExceeded,
    ];

    /// The code as clients see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::TaskExpired => "task_expired",
            Self::IdempotencyConflict => "idempotency_conflict",
            Self::Superseded => "superseded",
            Self::RequestTimeout => "request_timeout",
            Self::PayloadTooLarge => "payload_too_large",
            Self::UriTooLong => "uri_too_long",
            Self::HeadersTooLarge => "headers_too_large",
            Self::UnsupportedImage => "unsupported_image",
            Self::BadImage => "bad_image",
            Self::ImageTooLarge => "image_too_large",
            Self::ImageEmpty => "image_empty",
            Self::InvalidParameter => "invalid_parameter",
            Self::ImgszUnavailable => "imgsz_unavailable",
            Self::QueueFull => "queue_full",
            Self::PredictedLate => "predicted_late",
            Self::Starting => "starting",
            Self::Draining => "draining",
            Self::EngineFailed => "engine_failed",
            Self::StoreUnavailable => "store_unavailable",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::InferenceFailed => "inference_failed",
            Self::Internal => "internal",
        }
    }

    /// Its HTTP status. Load is 429, never 503: proxies eject a pod for the latter and retry blindly.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::InvalidRequest => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::TaskExpired => StatusCode::GONE,
            Self::IdempotencyConflict | Self::Superseded => StatusCode::CONFLICT,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UnsupportedImage => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BadImage
            | Self::ImageTooLarge
            | Self::ImageEmpty
            | Self::InvalidParameter
            | Self::ImgszUnavailable => StatusCode::UNPROCESSABLE_ENTITY,
            Self::QueueFull | Self::PredictedLate => StatusCode::TOO_MANY_REQUESTS,
            Self::Starting | Self::Draining | Self::EngineFailed | Self::StoreUnavailable => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::InferenceFailed | Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Whether the same request may succeed later, or on another pod.
    pub const fn retryable(self) -> bool {
        matches!(
            self,
            Self::QueueFull
                | Self::PredictedLate
                | Self::Starting
                | Self::Draining
                | Self::EngineFailed
                | Self::StoreUnavailable
                | Self::DeadlineExceeded
                | Self::RequestTimeout
        )
    }

    /// Label value of `yolo_images_total`.
    pub const fn image_outcome(self) -> &'static str {
        match self {
            Self::QueueFull | Self::PredictedLate | Self::Starting | Self::Draining => "rejected",
            Self::DeadlineExceeded => "expired",
            Self::Superseded => "cancelled",
            Self::EngineFailed | Self::InferenceFailed | Self::Internal => "failed",
            _ => "bad_image",
        }
    }

    /// Label value of `yolo_http_request_duration_seconds`.
    pub const fn request_outcome(self) -> &'static str {
        match self {
            Self::QueueFull | Self::PredictedLate | Self::DeadlineExceeded => "shed",
            Self::Starting
            | Self::Draining
            | Self::EngineFailed
            | Self::StoreUnavailable
            | Self::InferenceFailed
            | Self::Internal => "server_error",
            _ => "client_error",
        }
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// An error on its way to the client.
///
/// As a response it is only a status and an extension: the outermost layer knows the request's id and writes the body.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct ApiError {
    /// What went wrong.
    pub code: Code,
    /// A sentence that says what to change.
    pub message: String,
    /// When to try again; sent with ±50 % jitter, so that refused clients do not return together.
    pub retry_after: Option<Duration>,
}

/// When to try again after a 503: a restart or a drain takes seconds.
const RETRY_AFTER_STATE: Duration = Duration::from_secs(2);

impl ApiError {
    /// An error with a message; a 503 gets its `Retry-After`.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let retry_after = (code.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(RETRY_AFTER_STATE);
        Self { code, message: message.into(), retry_after }
    }

    /// The same with a time to wait.
    #[must_use]
    pub fn retry_after(mut self, time: Duration) -> Self {
        self.retry_after = Some(time);
        self
    }

    /// The error as JSON, for a request of this id.
    pub fn body<'a>(&'a self, request_id: &'a str) -> ErrorBody<'a> {
        let Self { code, message, .. } = self;
        let error = ErrorDetail { code: *code, message, request_id, retryable: code.retryable() };
        ErrorBody { error }
    }

    /// The complete response, for a request of this id.
    pub fn render(&self, request_id: &str) -> Response {
        self.respond(self.body(request_id))
    }

    /// The complete response as the Open Inference Protocol has it: `{"error":"text"}`.
    pub fn render_text(&self) -> Response {
        self.respond(serde_json::json!({"error": self.to_string()}))
    }

    fn respond(&self, body: impl Serialize) -> Response {
        let mut response = (self.code.status(), Json(body)).into_response();
        if let Some(time) = self.retry_after {
            let seconds = (time.as_secs_f64() * random::within(0.5, 1.5)).ceil().max(1.0);
            if let Ok(value) = HeaderValue::from_str(&format!("{seconds:.0}")) {
                response.headers_mut().insert(header::RETRY_AFTER, value);
            }
        }
        response
    }
}

/// What every failed request, and every failed picture of a batch, is answered.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub struct ErrorBody<'a> {
    error: ErrorDetail<'a>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ErrorDetail<'a> {
    code: Code,
    /// A sentence that says what to change.
    message: &'a str,
    request_id: &'a str,
    /// Whether the same request may succeed later, or on another pod.
    retryable: bool,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_listed_and_named_as_its_variant() {
        let schema = schemars::schema_for!(Code).to_value();
        let variants = schema["oneOf"].as_array().unwrap();
        let mut named: Vec<_> = variants.iter().map(|variant| variant["const"].as_str().unwrap()).collect();
        let mut listed: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        named.sort_unstable();
        listed.sort_unstable();
        assert_eq!(named, listed);
    }

    #[test]
    fn refused_clients_do_not_return_together() {
        let error = ApiError::new(Code::QueueFull, "full").retry_after(Duration::from_secs(100));
        let seconds = || error.render("id").headers()[header::RETRY_AFTER].to_str().unwrap().parse::<u64>().unwrap();
        let (earliest, latest) = (0..200)
            .map(|_| seconds())
            .fold((u64::MAX, 0), |(earliest, latest), seconds| (earliest.min(seconds), latest.max(seconds)));
        assert!((50..75).contains(&earliest) && (126..=150).contains(&latest), "{earliest} to {latest}");
        let now = ApiError::new(Code::QueueFull, "full").retry_after(Duration::ZERO).render_text();
        assert_eq!(now.headers()[header::RETRY_AFTER], "1", "never at once");
    }
}
