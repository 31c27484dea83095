//! Where the server is in its life. It only moves forward.
//!
//! ```text
//!   Starting -> Serving -> Draining           -> Closing            -> Aborting
//!   503         200        not ready, served     no new connection     the rest gets 503
//! ```

use std::sync::Arc;

use tokio::sync::watch;

use crate::metrics::LifeMetrics;

/// A stage of the server's life, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The model is being loaded and warmed.
    Starting,
    /// Predictions are served.
    Serving,
    /// Not ready, but still served: clients learn it later. Responses close their connection.
    Draining,
    /// No new connections; idle ones are closed, requests in flight finish.
    Closing,
    /// The budget is over: whatever is unfinished is refused.
    Aborting,
}

/// The current stage, which anybody may wait for.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    stage: Arc<watch::Sender<Stage>>,
    metrics: LifeMetrics,
}

impl Lifecycle {
    /// Begins in [`Stage::Starting`].
    pub fn new(metrics: LifeMetrics) -> Self {
        Self { stage: Arc::new(watch::Sender::new(Stage::Starting)), metrics }
    }

    /// The stage now.
    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Moves forward to `stage`; never back.
    pub fn advance(&self, stage: Stage) {
        let moved = self.stage.send_if_modified(|current| {
            let forward = stage > *current;
            *current = stage.max(*current);
            forward
        });
        if moved {
            self.metrics.ready.set(i64::from(stage == Stage::Serving));
            self.metrics.draining.set(i64::from(stage > Stage::Serving));
            tracing::info!(?stage, "Server changed its stage.");
        }
    }

    /// Waits until `stage` or a later one.
    pub async fn reached(&self, stage: Stage) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.stage.subscribe().wait_for(|current| *current >= stage).await;
    }
}
