//! How fast pods may come and go where a person limits it, as autoscaling/v2 counts: each limit from the pods that there
//! were when its period began, so that many small steps come to no more than one large one.
//! Source: `calculateScaleUpLimitWithScalingRules` and its twin in Kubernetes' horizontal pod autoscaler.

use serde::{Deserialize, Serialize};

use crate::policy::{Amount, Pace, Paces, Policy, Select};
use crate::units::Seconds;

/// Counts remembered. The longest period of the custom resource, half an hour, has more ticks: where changes come so fast,
/// those closest together become one span of time, of which only the fewest and the most pods are known. Changes are then
/// allowed later, never sooner.
const COUNTS_MAX: usize = 32;

/// The numbers of pods that there were, as far back as the longest period of the policy.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Since when (seconds since the epoch) there were at least and at most so many pods; the newest, the present one, last.
    since: Vec<(f64, u32, u32)>,
}

impl Counts {
    /// Notes that there are `replicas` pods, if they are others than before since `since_s`.
    pub(crate) fn notice(&mut self, policy: &Policy, replicas: u32, (since_s, now_s): (f64, f64)) {
        let paces = policy.paces_up.iter().chain(&policy.paces_down).flat_map(|paces| &paces.limits);
        let Some(longest_s) = paces.map(|pace| pace.period.get()).reduce(f64::max) else {
            self.since.clear();
            return;
        };
        match self.since.last() {
            Some((_, last, _)) if *last == replicas => {}
            Some((at_s, ..)) => self.since.push((since_s.max(*at_s), replicas, replicas)),
            None => self.since.push((now_s, replicas, replicas)),
        }
        let begun = self.since.iter().filter(|(at_s, ..)| now_s - at_s >= longest_s).count();
        self.since.drain(..begun.saturating_sub(1));
        if self.since.len() > COUNTS_MAX {
            self.merge();
        }
    }

    /// Makes one of two neighbours that lasted shortest together, but of the present count.
    fn merge(&mut self) {
        let lasted_s =
            |three: &[(f64, u32, u32)]| three.last().zip(three.first()).map_or(0.0, |(next, own)| next.0 - own.0);
        let lasted = self.since.windows(3).map(lasted_s).enumerate();
        let Some((first, _)) = lasted.min_by(|one, other| one.1.total_cmp(&other.1)) else { return };
        let (_, least, most) = self.since.remove(first + 1);
        if let Some(first) = self.since.get_mut(first) {
            (first.1, first.2) = (first.1.min(least), first.2.max(most));
        }
    }

    /// The fewest and the most pods that there may have been `period` ago; the first that were seen, where nobody looked so
    /// early.
    fn before(&self, period: Seconds, current: u32, now_s: f64) -> (u32, u32) {
        let begun = self.since.iter().rev().find(|(at_s, ..)| now_s - at_s >= period.get());
        begun.or_else(|| self.since.first()).map_or((current, current), |(_, least, most)| (*least, *most))
    }

    /// The most pods that there may be now; never fewer than the `current` ones.
    pub(crate) fn most(&self, paces: &Paces, current: u32, now_s: f64) -> u32 {
        let allowed = paces.limits.iter().map(|pace| more(pace, self.before(pace.period, current, now_s).0));
        let most = match paces.select {
            Select::Fastest => allowed.max(),
            Select::Slowest => allowed.min(),
            Select::Disabled => Some(current),
        };
        most.unwrap_or(u32::MAX).max(current)
    }

    /// The fewest pods that there may be now; never more than the `current` ones.
    pub(crate) fn fewest(&self, paces: &Paces, current: u32, now_s: f64) -> u32 {
        let allowed = paces.limits.iter().map(|pace| fewer(pace, self.before(pace.period, current, now_s).1));
        let fewest = match paces.select {
            Select::Fastest => allowed.min(),
            Select::Slowest => allowed.max(),
            Select::Disabled => Some(current),
        };
        fewest.unwrap_or(0).min(current)
    }
}

/// What `pace` lets `before` pods become; a share of them is at least one.
fn more(pace: &Pace, before: u32) -> u32 {
    match pace.most {
        Amount::Pods(pods) => before.saturating_add(pods),
        Amount::Percent(percent) => {
            let hundredths = u64::from(before).saturating_mul(100 + u64::from(percent));
            u32::try_from(hundredths.div_ceil(100)).unwrap_or(u32::MAX).max(before.saturating_add(1))
        }
    }
}

/// What `pace` lets be left of `before` pods; a share of them is at least one.
fn fewer(pace: &Pace, before: u32) -> u32 {
    match pace.most {
        Amount::Pods(pods) => before.saturating_sub(pods),
        Amount::Percent(percent) => {
            u32::try_from(u64::from(before) * u64::from(100 - percent.min(100)) / 100).unwrap_or(before)
        }
    }
}

#[cfg(test)]
impl Counts {
    /// As many counts as can be.
    pub(crate) fn full(now_s: f64) -> Self {
        let most = u32::try_from(COUNTS_MAX).unwrap();
        Self { since: (1..=most).map(|age| (now_s - f64::from(age) / 3.0, 5000 + age, 6000 + age)).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(most: Amount, period_s: u32) -> Pace {
        Pace { most, period: Seconds::whole(period_s) }
    }

    fn paces(limits: &[Pace]) -> Paces {
        Paces { limits: limits.to_vec(), select: Select::Fastest }
    }

    /// Counts that began at these times, as a policy with a period of `period_s` keeps them at the last.
    fn counts(period_s: u32, since: &[(f64, u32)]) -> (Counts, f64) {
        let limits = paces(&[pace(Amount::Pods(1), period_s)]);
        let (policy, mut counts) = (Policy { paces_up: Some(limits), ..Policy::default() }, Counts::default());
        for (at_s, replicas) in since {
            counts.notice(&policy, *replicas, (*at_s, *at_s));
        }
        (counts, since.last().unwrap().0)
    }

    #[test]
    fn a_period_counts_from_the_pods_at_its_start() {
        let (counts, now_s) = counts(60, &[(0.0, 10), (30.0, 11), (50.0, 13)]);
        let one = paces(&[pace(Amount::Pods(4), 60)]);
        assert_eq!(counts.most(&one, 13, now_s), 14, "four more than ten");
        assert_eq!(counts.most(&one, 13, 89.9), 14);
        assert_eq!(counts.most(&one, 13, 90.0), 15, "four more than the eleven of 30 s");
        assert_eq!(counts.most(&one, 13, 110.0), 17);
        assert_eq!(counts.fewest(&one, 13, now_s), 6, "what came may go again");
        assert_eq!(counts.most(&paces(&[pace(Amount::Pods(1), 60)]), 13, now_s), 13, "none is taken back");
    }

    #[test]
    fn shares_are_rounded_as_by_the_horizontal_pod_autoscaler_and_never_to_none() {
        let both = |before: u32, percent: u32| {
            let pace = pace(Amount::Percent(percent), 60);
            (more(&pace, before), fewer(&pace, before))
        };
        assert_eq!(both(10, 10), (11, 9));
        assert_eq!(both(15, 10), (17, 13));
        assert_eq!(both(1, 1), (2, 0));
        assert_eq!(both(7, 1000), (77, 0));
        assert_eq!(both(0, 10), (1, 0));
        assert_eq!(both(u32::MAX, u32::MAX), (u32::MAX, 0));
    }

    #[test]
    fn fastest_slowest_or_none_of_several_holds() {
        let (counts, now_s) = counts(60, &[(0.0, 20)]);
        let limits = [pace(Amount::Percent(10), 60), pace(Amount::Pods(5), 60)];
        let both = |limits: &[Pace], select| {
            let paces = Paces { limits: limits.to_vec(), select };
            (counts.most(&paces, 20, now_s), counts.fewest(&paces, 20, now_s))
        };
        assert_eq!(both(&limits, Select::Fastest), (25, 15));
        assert_eq!(both(&limits, Select::Slowest), (22, 18));
        assert_eq!(both(&limits, Select::Disabled), (20, 20));
        assert_eq!(both(&[], Select::Fastest), (u32::MAX, 0), "no limit");
        assert_eq!(both(&[], Select::Slowest), (u32::MAX, 0));
    }

    #[test]
    fn history_is_bounded_and_a_merged_one_never_allows_more() {
        let up: Vec<(f64, u32)> = (0..360_u32).map(|tick| (5.0 * f64::from(tick), 10 + tick)).collect();
        let up_and_down = up.iter().map(|(at_s, pods)| (*at_s, if *pods < 190 { *pods } else { 380 - pods })).collect();
        for changes in [up, up_and_down] {
            let (counts, now_s) = counts(1800, &changes);
            assert!(counts.since.len() <= COUNTS_MAX);
            for ticks_ago in 0..360_usize {
                let exact = changes[359 - ticks_ago].1;
                let (least, most) = counts.before(Seconds::whole(5 * u32::try_from(ticks_ago).unwrap()), 0, now_s);
                assert!((least..=most).contains(&exact), "{exact} pods {ticks_ago} ticks ago, not {least} to {most}");
                assert!(most - least <= 360 / 16, "{least} to {most} pods {ticks_ago} ticks ago");
            }
            let present = changes[359].1;
            assert_eq!(counts.since.last(), Some(&(now_s, present, present)));
        }
    }

    #[test]
    fn what_no_limit_needs_is_forgotten() {
        let (mut counts, _) = counts(60, &[(0.0, 10), (10.0, 11), (75.0, 12)]);
        assert_eq!(counts.since, [(10.0, 11, 11), (75.0, 12, 12)]);
        counts.notice(&Policy::default(), 12, (80.0, 80.0));
        assert_eq!(counts.since, []);
    }
}
