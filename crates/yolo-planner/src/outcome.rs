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
    /// More arrived than the ready pods carried: what waited is served within the window that is compared, and no
    /// prediction knows of it.
    pub(crate) overloaded: bool,
    /// [`crate::Policy::revision`] of the pods that it was made for.
    pub(crate) revision: u64,
}

/// Closes the open record if its time has come, if a new change supersedes it, or if the pods are of another `revision`.
///
/// `actual`: what is measured now. `after_s`: how long a change needs to show, start-up and window.
pub(crate) fn close(
    open: &mut Option<Open>,
    actual: Outcome,
    level: f64,
    (superseded, revision): (bool, u64),
    (now, after_s): (Timestamp, f64),
) -> Vec<Record> {
    let other = |open: &Open| open.revision != revision;
    let waited = |open: &Open| now.since(open.record.time) >= after_s;
    let Some(waiting) = open.take_if(|open| superseded || other(open) || waited(open)) else {
        return Vec::new();
    };
    let due = waited(&waiting) && !other(&waiting);
    let verdict = match (due, actual.p95.zip(waiting.record.predicted.p95)) {
        (false, _) => RecordVerdict::Superseded,
        (true, Some((actual, predicted))) if (level - waiting.level).abs() <= LEVEL_TOLERANCE * waiting.level => {
            let ratio = actual.get() / predicted.get().max(1e-6);
            let off = !(1.0 - P95_TOLERANCE..=1.0 + P95_TOLERANCE).contains(&ratio);
            if off && waiting.overloaded {
                RecordVerdict::Unmeasured
            } else if ratio > 1.0 + P95_TOLERANCE {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::Trigger;
    use crate::observation::Knobs;
    use crate::policy::Policy;
    use crate::units::Seconds;

    #[test]
    fn change_that_ends_an_overload_can_be_confirmed_but_not_refuted() {
        let p95 = |millis| Outcome { p95: Some(Seconds::millis(millis)), ..Outcome::default() };
        let verdict = |overloaded: bool, came_ms: u32| {
            let knobs = Knobs::initial(&Policy::default());
            let record = Record {
                id: 1000,
                time: Timestamp::whole(1000),
                trigger: Trigger::Load,
                from: knobs,
                to: knobs,
                reason: String::new(),
                constraints: Vec::new(),
                predicted: p95(100),
                actual: None,
                verdict: None,
            };
            let mut open = Some(Open { record, level: 50.0, overloaded, revision: 0 });
            close(&mut open, p95(came_ms), 50.0, (false, 0), (Timestamp::whole(1090), 90.0))[0].verdict.unwrap()
        };
        assert_eq!(
            [20, 110, 900].map(|ms| verdict(false, ms)),
            [RecordVerdict::Better, RecordVerdict::Confirmed, RecordVerdict::Worse]
        );
        assert_eq!(
            [20, 110, 900].map(|ms| verdict(true, ms)),
            [RecordVerdict::Unmeasured, RecordVerdict::Confirmed, RecordVerdict::Unmeasured]
        );
    }
}
