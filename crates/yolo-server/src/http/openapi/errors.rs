//! Which errors an operation can answer, in sets that operations share.

use serde_json::{Value, json};

use super::headers;
use crate::http::error::Code;

/// Whatever is asked.
const ANYWHERE: &[Code] = &[Code::UriTooLong, Code::HeadersTooLarge, Code::Internal];
/// What needs the model.
pub(super) const MODEL: &[Code] = &[Code::Starting];
/// What needs the model by its name.
pub(super) const NAMED_MODEL: &[Code] = &[Code::InvalidRequest, Code::NotFound, Code::Starting];
/// What needs a sound server.
pub(super) const SOUND: &[Code] = &[Code::Starting, Code::Draining, Code::EngineFailed];
/// A body and parameters.
pub(super) const UPLOAD: &[Code] = &[
    Code::InvalidRequest,
    Code::NotFound,
    Code::RequestTimeout,
    Code::PayloadTooLarge,
    Code::InvalidParameter,
    Code::ImgszUnavailable,
    Code::QueueFull,
    Code::Starting,
];
/// A picture that is run while its client waits.
pub(super) const PICTURE: &[Code] = &[
    Code::Superseded,
    Code::UnsupportedImage,
    Code::BadImage,
    Code::ImageTooLarge,
    Code::ImageEmpty,
    Code::PredictedLate,
    Code::InferenceFailed,
    Code::Draining,
    Code::EngineFailed,
    Code::DeadlineExceeded,
];
/// A task's submission, besides its upload.
pub(super) const SUBMISSION: &[Code] = &[Code::IdempotencyConflict, Code::Draining, Code::StoreUnavailable];
/// A task that exists, or did.
pub(super) const TASK: &[Code] =
    &[Code::InvalidRequest, Code::NotFound, Code::TaskExpired, Code::Starting, Code::StoreUnavailable];

/// The given answers, and one for each status of the errors in `sets`, as the schema of that name has them.
pub(super) fn responses(mut responses: Value, schema: &str, sets: &[&[Code]]) -> Value {
    let can = |code: &Code| ANYWHERE.contains(code) || sets.iter().any(|set| set.contains(code));
    for code in Code::ALL.iter().filter(|code| can(code)) {
        let response = &mut responses[code.status().as_str()];
        let codes = match response["description"].as_str() {
            Some(codes) => format!("{codes}, `{}`", code.as_str()),
            None => format!("`{}`", code.as_str()),
        };
        let mut headers = headers();
        if matches!(code.status().as_u16(), 429 | 503) {
            headers["Retry-After"] = json!({"description": "Seconds.", "schema": {"type": "integer"}});
        }
        let schema = json!({"$ref": format!("#/components/schemas/{schema}")});
        *response = json!({
            "description": codes,
            "headers": headers,
            "content": {"application/json": {"schema": schema}},
        });
    }
    responses
}
