//! How fast the budget of bad minutes is used up: the alert rule of the Google SRE workbook, chapter 5, with its two
//! windows (control.md §7, SLO burn).

use serde::{Deserialize, Serialize};

use crate::observation::Sample;
use crate::policy::{LatencyTarget, Policy};
use crate::units::{Timestamp, real};

pub(crate) const MINUTE_S: f64 = 60.0;
/// Minutes of the two windows.
const SHORT: u32 = 5;
const LONG: u32 = 60;
/// Burn rates beyond which both windows must be: at the first an hour would use 2 % of a month's budget, at the second
/// six hours 5 %.
const SHORT_BURN: f64 = 14.4;
const LONG_BURN: f64 = 6.0;
/// Least budget: a budget of nothing would make any bad minute endless.
const BUDGET_MIN: f64 = 1e-3;

/// The last hour's minutes, bad or not.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Burn {
    /// Number of the minute under way.
    minute: Option<f64>,
    /// Images of it that were late, refused or failed, and all that were judged.
    late: f64,
    judged: f64,
    /// A bit a minute, the newest the lowest.
    bad: u64,
}

impl Burn {
    /// Adds one pod's sample.
    pub(crate) fn add(&mut self, policy: &Policy, sample: &Sample) {
        let limit_s = policy.targets.api.map_or(f64::INFINITY, LatencyTarget::limit_s);
        let refused = real(sample.shed) + real(sample.errors);
        self.late += sample.api.above(limit_s) + refused;
        self.judged += real(sample.api.count()) + refused;
    }

    /// Moves on to `now`; returns whether the minute that ended was bad, if one did and anything came in it.
    pub(crate) fn advance(&mut self, policy: &Policy, now: Timestamp) -> Option<bool> {
        let minute = (now.get() / MINUTE_S).floor();
        let passed = minute - self.minute.replace(minute).unwrap_or(minute);
        if passed < 1.0 {
            return None;
        }
        let bad = self.late > (1.0 - policy.quantile()) * self.judged;
        let told = (self.judged > 0.0).then_some(bad);
        (self.late, self.judged) = (0.0, 0.0);
        // Minutes without a look are not bad: nothing is known of them.
        let shift = crate::units::ceil_u32(passed);
        self.bad = (self.bad << 1 | u64::from(bad)).checked_shl(shift.saturating_sub(1)).unwrap_or(0);
        told
    }

    /// Share of bad minutes over the budget.
    fn rate(&self, minutes: u32, budget: f64) -> f64 {
        let window = self.bad & ((1 << minutes) - 1);
        f64::from(window.count_ones()) / f64::from(minutes) / budget.max(BUDGET_MIN)
    }

    /// Whether the budget is used up so fast that pods must be added.
    pub(crate) fn burning(&self, policy: &Policy) -> bool {
        let budget = policy.targets.budget.get();
        self.rate(SHORT, budget) >= SHORT_BURN && self.rate(LONG, budget) >= LONG_BURN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::Histogram;
    use crate::units::Seconds;

    /// Answers of which `late` of 100 take more than the default 200 ms.
    fn sample(late: u64) -> Sample {
        let edges = vec![Seconds::millis(200), Seconds::millis(400)];
        Sample { api: Histogram::from_cumulative(edges, &[100 - late, 100, 100]).unwrap(), ..Sample::default() }
    }

    fn play(minutes: &[u64]) -> Burn {
        let (policy, mut burn) = (Policy::default(), Burn::default());
        burn.advance(&policy, Timestamp::whole(0));
        for (number, late) in (1_u32..).zip(minutes) {
            burn.add(&policy, &sample(*late));
            burn.advance(&policy, Timestamp::whole(60 * number));
        }
        burn
    }

    #[test]
    fn four_bad_minutes_in_an_hour_and_one_just_now_burn() {
        let policy = Policy::default();
        assert!(play(&[6, 0, 6, 6, 6]).burning(&policy), "4 of 60 are 6.7 budgets, 4 of 5 are 80");
        assert!(!play(&[0, 0, 6, 6, 6]).burning(&policy), "3 of 60 are 5 budgets");
        assert!(!play(&[6, 6, 6, 6, 0, 0, 0, 0, 0]).burning(&policy), "over");
        assert!(!play(&[5, 5, 5, 5, 5]).burning(&policy), "5 % late is what the target allows");
    }

    #[test]
    fn refused_images_are_late_ones_and_unseen_minutes_are_not() {
        let (policy, mut burn) = (Policy::default(), Burn::default());
        burn.advance(&policy, Timestamp::whole(0));
        burn.add(&policy, &Sample { shed: 10, ..sample(0) });
        assert_eq!(burn.advance(&policy, Timestamp::whole(59)), None);
        assert_eq!(burn.advance(&policy, Timestamp::whole(60)), Some(true));
        assert_eq!(burn.advance(&policy, Timestamp::whole(600)), None, "nothing came");
        assert_eq!(burn.bad, 1 << 9, "nine minutes ago");
        burn.advance(&policy, Timestamp::whole(60_000_000));
        assert_eq!(burn.bad, 0);
    }
}
