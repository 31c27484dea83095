//! ONNX Runtime's own log, as lines of ours.

use std::sync::{Mutex, PoisonError};

use ort::logging::LogLevel;

/// The newest error: some calls return "failed to load the library" and tell only the log which one, and why.
static NEWEST_ERROR: Mutex<Option<String>> = Mutex::new(None);

/// Writes a line of ONNX Runtime's.
pub(super) fn forward(level: LogLevel, _category: &str, _id: &str, location: &str, message: &str) {
    match level {
        LogLevel::Verbose | LogLevel::Info => tracing::debug!(location, message, "ONNX Runtime."),
        LogLevel::Warning => tracing::warn!(location, message, "ONNX Runtime warns."),
        LogLevel::Error | LogLevel::Fatal => {
            *NEWEST_ERROR.lock().unwrap_or_else(PoisonError::into_inner) = Some(message.to_owned());
            tracing::error!(location, message, "ONNX Runtime failed.");
        }
    }
}

/// `error` with what the log said of it.
pub(super) fn explained(error: &str) -> String {
    match NEWEST_ERROR.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(logged) if !error.contains(&logged) => format!("{error} ({logged})"),
        _ => error.to_owned(),
    }
}
