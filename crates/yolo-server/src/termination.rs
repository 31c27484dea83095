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
    let reason = match error {
        StartError::Model(model) => Reason { code: model.code(), message: model.to_string() },
        StartError::Engine(engine) => Reason { code: "engine_unavailable", message: engine.to_string() },
        StartError::Memory(memory) => Reason { code: "engine_unavailable", message: memory.to_string() },
        StartError::Listen { .. } | StartError::Admin(_) | StartError::Store(_) | StartError::Crashed => return,
    };
    let written = serde_json::to_string(&reason).map_err(std::io::Error::other).and_then(|text| fs::write(path, text));
    if let Err(error) = written {
        tracing::debug!(path = %path.display(), %error, "Termination log cannot be written.");
    }
}
