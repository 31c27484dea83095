//! The operator's one clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use yolo_planner::units::Timestamp;

/// Unix time that only moves forward: the wall clock once, at the start, and a monotonic clock from there.
/// A step of the wall clock (NTP, a resumed machine) therefore never looks like an hour without metrics.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Duration,
    started: Instant,
}

impl Clock {
    /// Reads the wall clock, for the only time.
    pub fn start() -> Self {
        let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { start, started: Instant::now() }
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        Timestamp::from(self.start + self.started.elapsed())
    }
}
