//! What came of a change: the newest record waits until its prediction can be compared.

use serde::{Deserialize, Serialize};

use crate::decision::{Outcome, Record, RecordVerdict};
use crate::units::Timestamp;

/// Arrivals may move by this share before a prediction says nothing any more (control.md §7).
const LEVEL_TOLERANCE: f64 = 0.10;
/// p95 within this share of the prediction confirms it (control.md §7).
const P95_TOLERANCE: f64 = 0.30;

/// A change whose outcome is not known yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Open {
    pub(crate) record: Record,
    /// Arrivals when it was made, images/s.
    pub(crate) level: f64,
}

/// Closes the open record if its time has come, or if a new change supersedes it.
///
/// `actual`: what is measured now. `after_s`: how long a change needs to show, start-up and window.
pub(crate) fn close(
    open: &mut Option<Open>,
    actual: Outcome,
    level: f64,
    superseded: bool,
    (now, after_s): (Timestamp, f64),
) -> Vec<Record> {
    let Some(waiting) = open.take_if(|open| superseded || now.since(open.record.time) >= after_s) else {
        return Vec::new();
    };
    let due = now.since(waiting.record.time) >= after_s;
    let verdict = match (due, actual.p95.zip(waiting.record.predicted.p95)) {
        (false, _) => RecordVerdict::Superseded,
        (true, Some((actual, predicted))) if (level - waiting.level).abs() <= LEVEL_TOLERANCE * waiting.level => {
            let ratio = actual.get() / predicted.get().max(1e-6);
            if ratio > 1.0 + P95_TOLERANCE {
                RecordVerdict::Worse
            } else if ratio < 1.0 - P95_TOLERANCE {
                RecordVerdict::Better
            } else {
                RecordVerdict::Confirmed
            }
        }
        (true, _) => RecordVerdict::Unmeasured,
    };
    vec![Record { actual: due.then_some(actual), verdict: Some(verdict), ..waiting.record }]
}
