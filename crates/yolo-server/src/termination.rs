//! Tells Kubernetes why the container ended: the kubelet copies the file into the pod's status.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::server::StartError;

#[derive(Serialize)]
struct Reason<'a> {
    code: &'a str,
    message: String,
}

/// Writes `{"code","message"}` for an error that a person must act on; other errors leave the log alone.
pub fn write(path: &Path, error: &StartError) {
    match error {
        StartError::Model(model) => tell(path, model.code(), model.to_string()),
        StartError::Engine(engine) => tell(path, "engine_unavailable", engine.to_string()),
        StartError::InputSizes { .. } => tell(path, "model_unsupported", error.to_string()),
        StartError::Memory(memory) => tell(path, "engine_unavailable", memory.to_string()),
        StartError::Listen { .. }
        | StartError::Admin(_)
        | StartError::Store(_)
        | StartError::Traces(_)
        | StartError::Crashed => {}
    }
}

/// Writes `{"code","message"}`.
pub fn tell(path: &Path, code: &str, message: String) {
    let text = serde_json::to_string(&Reason { code, message }).map_err(std::io::Error::other);
    if let Err(error) = text.and_then(|text| fs::write(path, text)) {
        tracing::debug!(path = %path.display(), %error, "Termination log cannot be written.");
    }
}
