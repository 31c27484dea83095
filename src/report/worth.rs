//! Whether a status is worth a write (design.md section 4, "Writes are rare").

use std::time::Duration;

use yolo_api::v1alpha1::YoloInferenceServiceStatus;
use yolo_api::v1alpha1::conditions::ConditionType;
use yolo_api::v1alpha1::status::KnobValues;
use yolo_planner::Explanation;
use yolo_planner::units::Timestamp;

use crate::limits;

/// The figures that a status shows, and showed.
#[derive(Clone, Copy)]
pub struct Shown<'a> {
    /// When the last status was written, and its figures; absent if this process has written none.
    pub last: Option<(Timestamp, &'a [f64])>,
    /// The figures now.
    pub next: &'a [f64],
    /// Now.
    pub now: Timestamp,
}

/// Whether to write `after`: at once if anything but a figure changed, or something was learned; else, if a figure moved by
/// more than a tenth or another setting is recommended, at most every [`limits::STATUS_REFRESH`].
pub fn worth(
    before: &YoloInferenceServiceStatus,
    after: &YoloInferenceServiceStatus,
    learned: bool,
    shown: Shown<'_>,
) -> bool {
    if learned || essence(before) != essence(after) {
        return true;
    }
    let Some((written, figures)) = shown.last else { return before != after };
    let rested = shown.now.since(written) >= Duration::as_secs_f64(&limits::STATUS_REFRESH);
    rested && (moved(figures, shown.next) || recommended(before) != recommended(after))
}

/// The figures that people see move.
pub fn shown(explanation: &Explanation) -> Vec<f64> {
    let load = &explanation.load;
    let optional = |value: Option<f64>| value.unwrap_or(-1.0);
    let figures = [
        load.images_per_second.get(),
        load.shed_per_second.get(),
        optional(load.hit_ratio.map(f64::from)),
        optional(load.p95.map(f64::from)),
    ];
    figures.into_iter().chain(explanation.targets.iter().map(|row| optional(row.observed))).collect()
}

fn recommended(status: &YoloInferenceServiceStatus) -> Option<&KnobValues> {
    status.knobs.as_ref()?.recommended.as_ref()
}

fn moved(before: &[f64], after: &[f64]) -> bool {
    let far = |(a, b): (&f64, &f64)| (a - b).abs() > limits::STATUS_MOVED_RATIO * a.abs().max(b.abs());
    before.len() != after.len() || before.iter().zip(after).any(far)
}

/// The status without its figures and the sentences that carry them.
fn essence(status: &YoloInferenceServiceStatus) -> YoloInferenceServiceStatus {
    let mut essence = status.clone();
    essence.load = None;
    essence.learned = None;
    if let Some(knobs) = &mut essence.knobs {
        knobs.recommended = None;
    }
    for row in &mut essence.targets {
        row.observed = None;
        row.margin = None;
    }
    if let Some(bottleneck) = &mut essence.bottleneck {
        bottleneck.confidence = 0.0;
        bottleneck.evidence.clear();
    }
    for advice in &mut essence.advice {
        advice.message.clear();
        advice.action.clear();
        advice.predicted = None;
    }
    for condition in &mut essence.conditions {
        // These three name files, fields and the API server's words; the planner's sentences name figures.
        let names = [ConditionType::Ready, ConditionType::Reconciling, ConditionType::Stalled];
        if names.iter().all(|kind| kind.as_str() != condition.type_) {
            condition.message.clear();
        }
    }
    essence
}

#[cfg(test)]
mod tests {
    use super::*;
    use yolo_api::v1alpha1::status::LoadStatus;

    fn status(rate: f64, ready: i32) -> YoloInferenceServiceStatus {
        YoloInferenceServiceStatus {
            ready_replicas: Some(ready),
            load: Some(LoadStatus { images_per_second: rate, ..LoadStatus::default() }),
            ..YoloInferenceServiceStatus::default()
        }
    }

    fn asked(before: (f64, i32), after: (f64, i32), age_s: u32) -> bool {
        let (figures, next) = ([before.0], [after.0]);
        let last = Some((Timestamp::whole(100), figures.as_slice()));
        let shown = Shown { last, next: &next, now: Timestamp::whole(100 + age_s) };
        worth(&status(before.0, before.1), &status(after.0, after.1), false, shown)
    }

    #[test]
    fn figures_are_refreshed_rarely_and_all_else_at_once() {
        assert!(!asked((10.0, 1), (10.0, 1), 3600), "nothing changed");
        assert!(!asked((10.0, 1), (10.9, 1), 3600), "moved by less than a tenth");
        assert!(!asked((10.0, 1), (20.0, 1), 29), "too soon");
        assert!(asked((10.0, 1), (20.0, 1), 30));
        assert!(asked((10.0, 1), (10.0, 2), 0), "a pod became ready");
    }

    #[test]
    fn successor_that_finds_its_status_already_there_writes_nothing() {
        let next = [10.0];
        let shown = Shown { last: None, next: &next, now: Timestamp::whole(100) };
        assert!(!worth(&status(10.0, 1), &status(10.0, 1), false, shown));
        assert!(worth(&status(10.0, 1), &status(11.0, 1), false, shown));
    }
}
