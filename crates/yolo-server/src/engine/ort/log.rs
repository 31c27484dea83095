//! ONNX Runtime's own log, as lines of ours.

use std::sync::{Mutex, PoisonError};

use ort::logging::LogLevel;

/// The newest error: some calls return "failed to load the library" and tell only the log which one, and why.
static NEWEST_ERROR: Mutex<Option<String>> = Mutex::new(None);

/// How it warns of carrying a model that it optimised to another machine.
const OPTIMISED: &str = "Serializing optimized model";

/// Writes a line of ONNX Runtime's.
pub(super) fn forward(level: LogLevel, _category: &str, _id: &str, location: &str, message: &str) {
    match level {
        // What it wrote is read by the process that had it written.
        LogLevel::Warning if !message.starts_with(OPTIMISED) => {
            tracing::warn!(location, message, "ONNX Runtime warns.");
        }
        LogLevel::Error | LogLevel::Fatal => {
            *NEWEST_ERROR.lock().unwrap_or_else(PoisonError::into_inner) = Some(message.to_owned());
            tracing::error!(location, message, "ONNX Runtime failed.");
        }
        _ => tracing::debug!(location, message, "ONNX Runtime."),
    }
}

/// `error` with what the log said of it.
pub(super) fn explained(error: &str) -> String {
    match NEWEST_ERROR.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(logged) if !error.contains(&logged) => format!("{error} ({logged})"),
        _ => error.to_owned(),
    }
}
