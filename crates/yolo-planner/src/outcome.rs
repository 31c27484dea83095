//! What came of a change: the newest record waits until its prediction can be compared.

use serde::{Deserialize, Serialize};

use crate::decision::{Outcome, Record, RecordVerdict};
use crate::units::Timestamp;

/// Arrivals, or what of them the engines get, may move by this share before a prediction says nothing any more (control.md §7).
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
        (true, Some((came, predicted))) if as_loaded(&waiting, &actual, level) => {
            let ratio = came.get() / predicted.get().max(1e-6);
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

/// Whether what arrives is what the prediction was made for, and so is what the cache leaves of it to the engines. How much a
/// cache answers that the change itself made another size is the change's own outcome.
fn as_loaded(open: &Open, actual: &Outcome, level: f64) -> bool {
    let near = |came: f64, expected: f64| (came - expected).abs() <= LEVEL_TOLERANCE * expected;
    let missed = |outcome: &Outcome| 1.0 - outcome.hit_ratio.get().min(1.0);
    let engines = near(level * missed(actual), open.level * missed(&open.record.predicted));
    near(level, open.level) && (engines || open.record.from.cache_bytes != open.record.to.cache_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::Trigger;
    use crate::observation::Knobs;
    use crate::policy::Policy;
    use crate::units::{Bytes, Ratio, Seconds};

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

    #[test]
    fn what_the_cache_leaves_to_the_engines_is_load_and_not_the_change() {
        let expected = |millis, percent| Outcome {
            p95: Some(Seconds::millis(millis)),
            hit_ratio: Ratio::percent(percent),
            ..Outcome::default()
        };
        let verdict = |cache_mebi, hits_percent| {
            let from = Knobs::initial(&Policy::default());
            let to = Knobs { cache_bytes: Bytes::mebi(cache_mebi), ..from };
            let record = Record {
                id: 1000,
                time: Timestamp::whole(1000),
                trigger: Trigger::Load,
                from,
                to,
                reason: String::new(),
                constraints: Vec::new(),
                predicted: expected(50, 50),
                actual: None,
                verdict: None,
            };
            let mut open = Some(Open { record, level: 50.0, overloaded: false, revision: 0 });
            let actual = expected(90, hits_percent);
            close(&mut open, actual, 50.0, (false, 0), (Timestamp::whole(1090), 90.0))[0].verdict.unwrap()
        };
        assert_eq!(verdict(0, 48), RecordVerdict::Worse, "4 % more for the engines");
        assert_eq!(verdict(0, 40), RecordVerdict::Unmeasured, "a fifth more for the engines");
        assert_eq!(verdict(64, 0), RecordVerdict::Worse, "another cache, and it answers nothing");
    }
}
