//! Another model in place of the served one, without a request that fails for it.
//!
//! ```text
//!   file read again -> other bytes -> room for both -> loaded, warmed -> swapped -> requests on the old one end, then it
//!                      else: unchanged     else: refused; the old one serves on
//! ```
//! Whoever asked for the served model before the swap keeps to it until it is answered ([`App::predictor`]). Counters go
//! on; the curve that was timed at idle starts anew.

use std::sync::Arc;

use tokio::sync::{Mutex, Notify, OwnedMutexGuard};

use crate::app::App;
use crate::args::{Config, EngineKind};
use crate::cgroup::MemoryStat;
use crate::engine::{LoadError, emulated, ort};
use crate::knobs::Knobs;
use crate::lifecycle::Stage;
use crate::load;
use crate::memory::{Footprint, NoRoom};
use crate::predictor::Predictor;
use crate::server::StartError;

/// How models are loaded, and what they may take.
#[derive(Debug)]
pub struct Reloader {
    config: Config,
    footprint: Footprint,
    /// Held until the old model has ended: never more than two are in memory.
    turn: Arc<Mutex<()>>,
}

impl Reloader {
    /// Of a server whose first model took `footprint`.
    pub(crate) fn new(config: Config, footprint: Footprint) -> Self {
        Self { config, footprint, turn: Arc::default() }
    }

    /// What the first model took, and what clients can fill beside it.
    pub(crate) const fn footprint(&self) -> &Footprint {
        &self.footprint
    }
}

/// What a reload came to: SHA-256 of the model that is served now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reloaded {
    /// The file holds the served model.
    Unchanged(String),
    /// Another model is served.
    Swapped(String),
}

/// Why the old model is served on.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// There is none yet, or no more.
    #[error("no model is served: the server starts or shuts down")]
    NotServing,
    /// The memory limit.
    #[error("no room for another model")]
    Memory(#[from] NoRoom),
    /// The file, its sessions or their warm-up.
    #[error("the model cannot be served")]
    Load(#[from] StartError),
}

impl From<LoadError> for ReloadError {
    fn from(error: LoadError) -> Self {
        Self::Load(error.into())
    }
}

/// Reloads whenever `asked` is told, and logs what came of it.
pub async fn whenever(app: Arc<App>, asked: &Notify, memory: fn() -> MemoryStat) {
    loop {
        asked.notified().await;
        // What came of it is in the log.
        let _ = reload(&app, memory).await;
    }
}

/// Reads the model's file again; serves what it holds if that is another model. Returns when that is served; the old one's
/// last requests may still run.
///
/// `memory` tells what is in use and the limit. Reloads take turns.
///
/// Cancellation: nothing is swapped; what is being loaded is given back when it is loaded.
///
/// # Errors
/// [`ReloadError`]; the old model is served on.
pub async fn reload(app: &Arc<App>, memory: fn() -> MemoryStat) -> Result<Reloaded, ReloadError> {
    let reloaded = steps(app, memory).await;
    let outcome = match &reloaded {
        Ok(Reloaded::Unchanged(sha256)) => {
            tracing::info!(sha256, "Model reload: the file holds the served model.");
            "unchanged"
        }
        Ok(Reloaded::Swapped(sha256)) => {
            tracing::info!(sha256, "Model reload: another model is served.");
            "swapped"
        }
        Err(error) => {
            tracing::error!(error = told(error), "Model reload refused: the old model is served on.");
            "refused"
        }
    };
    app.metrics.life.model_reloads.of(outcome).inc();
    reloaded
}

/// The error with its causes.
pub fn told(error: &ReloadError) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

async fn steps(app: &Arc<App>, memory: fn() -> MemoryStat) -> Result<Reloaded, ReloadError> {
    let turn = Arc::clone(&app.reloader().ok_or(ReloadError::NotServing)?.turn).lock_owned().await;
    let (loading, old) = (Arc::clone(app), served(app)?);
    let loaded = tokio::task::spawn_blocking(move || load_beside(&loading, &old, memory).map(|new| (new, turn))).await;
    let (new, turn) = loaded.map_err(|_| StartError::Crashed)??;
    // The server may have begun to shut down: whatever it waits for is on the old model.
    let sha256 = served(app)?.model().sha256.clone();
    let Some(new) = new else { return Ok(Reloaded::Unchanged(sha256)) };
    Ok(Reloaded::Swapped(swap(app, new, turn)))
}

fn served(app: &App) -> Result<Arc<Predictor>, ReloadError> {
    app.predictor().filter(|_| app.lifecycle.stage() == Stage::Serving).ok_or(ReloadError::NotServing)
}

/// The file's model, warm; `None` if it is the `old` one.
fn load_beside(app: &App, old: &Predictor, memory: fn() -> MemoryStat) -> Result<Option<Predictor>, ReloadError> {
    let Reloader { config, footprint, .. } = app.reloader().ok_or(ReloadError::NotServing)?;
    let sha256 = match config.engine {
        EngineKind::Ort => ort::digest(&config.model)?,
        EngineKind::Emulated => emulated::digest(&config.model),
    };
    if sha256 == old.model().sha256 {
        return Ok(None);
    }
    footprint.room_for(load::file_bytes(config), memory())?;
    // Nothing is timed at idle before the model is served: it would disturb the one that is, and be disturbed.
    let (model, batcher) = load::open(app, config, Knobs { timed_batch_max: 1, ..app.knobs() })?;
    batcher.set_queue_bytes_max(footprint.bounds.queue_bytes_max);
    Ok(Some(old.with_model(model, batcher)))
}

/// Serves `new` from now on; `turn` ends with the old model's last request. Returns the new one's digest.
fn swap(app: &Arc<App>, new: Predictor, turn: OwnedMutexGuard<()>) -> String {
    let sha256 = new.model().sha256.clone();
    if let Some(old) = app.predictor() {
        let workers = old.batcher().retire();
        app.metrics.batch.clear_curve();
        let app = Arc::clone(app);
        tokio::task::spawn_blocking(move || {
            workers.join();
            // The cache may use the old one's memory.
            app.apply_knobs();
            drop(turn);
        });
    }
    app.serve(new);
    sha256
}
