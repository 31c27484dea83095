//! The program's log: JSON lines on stderr, whose level can be changed while it runs (`PUT /log` on the admin port).

use std::sync::OnceLock;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

/// What is logged if `RUST_LOG` says nothing.
const DEFAULT_DIRECTIVES: &str = "info";

/// The one subscriber's filter: a process has one log, however many servers live in it.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// The filter could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not of the form `info` or `info,yolo_server=debug`.
    #[error("expected a level (off, error, warn, info, debug, trace) or directives such as info,yolo_server=debug")]
    Directives,
    /// The program that runs this server has a log of its own.
    #[error("the log does not belong to this server")]
    NotOurs,
}

/// Starts the log with the directives of `RUST_LOG`, else at `info`. Called once, by the program.
pub fn init() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_DIRECTIVES));
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr);
    tracing_subscriber::registry().with(filter).with(lines).init();
    // The line above panics if it is not the first; so this is the first too.
    let _ = FILTER.set(handle);
}

/// The directives in force.
///
/// # Errors
/// [`LogError::NotOurs`] if [`init`] was not called.
pub fn directives() -> Result<String, LogError> {
    FILTER.get().and_then(|filter| filter.with_current(ToString::to_string).ok()).ok_or(LogError::NotOurs)
}

/// Changes what is logged from now on.
///
/// # Errors
/// [`LogError::Directives`] if they cannot be read, [`LogError::NotOurs`] as above.
pub fn set_directives(directives: &str) -> Result<(), LogError> {
    // A lone word that is no level would be taken for a target, and everything else would fall silent.
    let meant = |one: &str| !one.is_empty() && (one.contains('=') || one.parse::<LevelFilter>().is_ok());
    if !directives.split(',').all(meant) {
        return Err(LogError::Directives);
    }
    let filter = EnvFilter::builder().parse(directives).map_err(|_| LogError::Directives)?;
    let handle = FILTER.get().ok_or(LogError::NotOurs)?;
    handle.reload(filter).map_err(|_| LogError::NotOurs)?;
    tracing::info!(directives, "Log level changed.");
    Ok(())
}
