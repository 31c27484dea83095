//! Measured latency corrects the model, never the number of pods directly (control.md §7): a controller on latency is
//! stable only while it answers the load less than twice as fast, and near saturation it never does (§1, finding 5).

use serde::{Deserialize, Serialize};

use crate::policy::{LatencyTarget, Policy};
use crate::units::real;

/// Step towards a lower capacity, and towards a higher one: a pod too few is dearer than a pod too many.
const GAIN_DOWN: f64 = 0.3;
const GAIN_UP: f64 = 0.05;
/// Range of the correction: beyond it the model is wrong, not inaccurate.
const RANGE: (f64, f64) = (0.7, 1.05);
/// Utilisation at which latency tells capacity: below, it is the batch's own time; above, there is no steady state. The
/// lower end counts as the corrected model sees it: pods that a κ of 0.7 ordered are less than half busy by the other one,
/// and nothing would ever tell that they are too many.
const UTILIZATION: (f64, f64) = (0.5, 1.05);
/// Step back to no correction of a window that tells nothing: what was learned under load fades in hours without.
const GAIN_IDLE: f64 = 0.005;
/// Answers that one step takes. A quantile of fewer wanders, and as a step down is the larger one, what wanders leads
/// down: windows of fewer count together, each by its answers, before anything moves.
const ANSWERS_MIN: u64 = 500;
/// Least elasticity of latency in the rate that is believed: a flat curve tells nothing about the rate.
const ELASTICITY_MIN: f64 = 0.2;
/// Step of the rate at which the elasticity is taken.
const PROBE: f64 = 1.05;
/// Most that one window may say, as a factor of the rate.
const CLAIM_MAX: f64 = 1.5;
/// p95 beyond the prediction by this share, and by this share of the threshold, contradicts the model.
const RESIDUAL_MAX: f64 = 0.30;
const RESIDUAL_OF_THRESHOLD: f64 = 0.10;
/// For so long, and the model is not used; so long without, and it is again.
const DEGRADED_AFTER_S: f64 = 300.0;
/// After so long without a window that could be judged, an old contradiction says nothing: traffic became thin. Nor
/// does what was gathered.
const JUDGEMENT_LASTS_S: f64 = 3600.0;
/// Images in the pods may differ by this share from arrivals times latency (Little's law) before one of the three is
/// not what it seems.
const LITTLE_MAX: f64 = 0.3;
/// Pods' arrivals may differ by this share from those at the entry.
const ENTRY_MAX: f64 = 0.15;

/// What latency said about the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Feedback {
    /// Correction of the capacity; 1 is none.
    kappa: f64,
    /// When the next whole window has passed, seconds since the epoch.
    next_s: f64,
    /// When the first one has: one of many answers is not waited for. 0: nothing was seen yet.
    first_s: f64,
    /// For how long the model has been contradicted, and confirmed, seconds.
    contradicted_s: f64,
    confirmed_s: f64,
    /// When the last window was judged, seconds since the epoch.
    judged_s: f64,
    degraded: bool,
    gathered: Gathered,
}

/// What windows have said since the last step.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Gathered {
    answers: f64,
    /// Mean over the answers of the logarithm of the κ at which the model would have said what was measured.
    log_kappa: f64,
    /// When something was last gathered, seconds since the epoch.
    at_s: f64,
}

impl Default for Feedback {
    fn default() -> Self {
        Self {
            kappa: 1.0,
            next_s: 0.0,
            first_s: 0.0,
            contradicted_s: 0.0,
            confirmed_s: 0.0,
            judged_s: 0.0,
            degraded: false,
            gathered: Gathered::default(),
        }
    }
}

/// One window's latency and what the model says of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) now_s: f64,
    /// At the API target's quantile, seconds.
    pub(crate) latency_s: f64,
    /// What the model expects, overhead included, seconds.
    pub(crate) expected_s: f64,
    /// The part of both that the rate does not change, seconds.
    pub(crate) overhead_s: f64,
    /// What the model expects of waiting and running at [`PROBE`] times the rate.
    pub(crate) probe_s: f64,
    pub(crate) utilization: f64,
    pub(crate) answers: u64,
}

/// The factor of the rate at which a model should be probed.
pub(crate) const fn probe() -> f64 {
    PROBE
}

impl Feedback {
    /// A correction that an earlier leader learned.
    pub(crate) fn seeded(kappa: f64) -> Self {
        Self { kappa: kappa.clamp(RANGE.0, RANGE.1), ..Self::default() }
    }

    /// Correction of the capacity, κ.
    pub(crate) const fn kappa(&self) -> f64 {
        self.kappa
    }

    /// Whether latency has contradicted the model for so long that it is not to be used.
    pub(crate) fn degraded(&self, now_s: f64) -> bool {
        self.degraded && now_s - self.judged_s < JUDGEMENT_LASTS_S
    }

    /// Whether a window that ends now is a new one.
    pub(crate) fn due(&self, now_s: f64) -> bool {
        now_s >= self.next_s
    }

    /// Learns from one window; a window is one measurement, however often it is looked at.
    pub(crate) fn learn(&mut self, policy: &Policy, measured: Measured) {
        if !self.due(measured.now_s) {
            return;
        }
        let many = measured.answers >= ANSWERS_MIN;
        let whole_s = measured.now_s + policy.window_s();
        self.first_s = if self.first_s > 0.0 { self.first_s } else { whole_s };
        if !many && measured.now_s < self.first_s {
            return;
        }
        self.next_s = whole_s;
        if many {
            self.judge(policy, measured);
        }
        // Fewer have none beyond the quantile, on average: the slowest of them is any.
        let telling = many || real(measured.answers) * (1.0 - policy.quantile()) >= 1.0;
        if measured.utilization >= UTILIZATION.1 {
            return;
        }
        if telling && measured.utilization >= UTILIZATION.0 * self.kappa {
            self.gather(measured);
        } else {
            self.kappa += GAIN_IDLE * (1.0 - self.kappa);
        }
    }

    /// Counts how long the model is contradicted.
    fn judge(&mut self, policy: &Policy, measured: Measured) {
        let limit_s = policy.targets.api.map_or(0.0, LatencyTarget::limit_s);
        let beyond_s = measured.latency_s - measured.expected_s;
        let contradicted = beyond_s > RESIDUAL_MAX * measured.expected_s && beyond_s > RESIDUAL_OF_THRESHOLD * limit_s;
        let window_s = policy.window_s();
        if measured.now_s - self.judged_s > 2.0 * window_s {
            // Not one stretch of time with what lies before.
            (self.contradicted_s, self.confirmed_s) = (0.0, 0.0);
        }
        self.judged_s = measured.now_s;
        if contradicted {
            (self.contradicted_s, self.confirmed_s) = (self.contradicted_s + window_s, 0.0);
        } else {
            (self.contradicted_s, self.confirmed_s) = (0.0, self.confirmed_s + window_s);
        }
        self.degraded =
            if self.degraded { self.confirmed_s < DEGRADED_AFTER_S } else { self.contradicted_s >= DEGRADED_AFTER_S };
        self.contradicted_s = self.contradicted_s.min(2.0 * DEGRADED_AFTER_S);
        self.confirmed_s = self.confirmed_s.min(2.0 * DEGRADED_AFTER_S);
    }

    /// Adds what a window says; moves κ once that is enough.
    fn gather(&mut self, measured: Measured) {
        if measured.now_s - self.gathered.at_s > JUDGEMENT_LASTS_S {
            self.gathered = Gathered::default();
        }
        let (answers, log_kappa) = (real(measured.answers), libm::log(self.kappa) - claim(measured));
        let all = &mut self.gathered;
        all.answers += answers;
        all.log_kappa += answers / all.answers * (log_kappa - all.log_kappa);
        all.at_s = measured.now_s;
        if all.answers >= real(ANSWERS_MIN) {
            let target = libm::exp(all.log_kappa);
            let gain = if target < self.kappa { GAIN_DOWN } else { GAIN_UP };
            self.kappa = (self.kappa + gain * (target - self.kappa)).clamp(RANGE.0, RANGE.1);
            self.gathered = Gathered::default();
        }
    }
}

/// The logarithm of λₑ/λ, λₑ being the rate that the model gives the measured latency: by so much less the pods carry
/// than it says. Near λ the logarithms' slope tells it from two points.
fn claim(measured: Measured) -> f64 {
    let engine_s = |total_s: f64| (total_s - measured.overhead_s).max(1e-4);
    let (came_s, expected_s) = (engine_s(measured.latency_s), engine_s(measured.expected_s));
    let slope = libm::log(measured.probe_s.max(1e-4) / expected_s) / libm::log(PROBE);
    let claim = libm::log(came_s / expected_s) / slope.max(ELASTICITY_MIN);
    claim.clamp(-libm::log(CLAIM_MAX), libm::log(CLAIM_MAX))
}

/// Whether images in the pods, arrivals and latency fit together (Little, 1961): `inflight` = `rate`·`latency_s`.
pub(crate) fn consistent(inflight: f64, rate: f64, latency_s: f64) -> bool {
    // A count of a few images is not within 30 % of its own mean.
    let noise = inflight.sqrt();
    (inflight - rate * latency_s).abs() <= LITTLE_MAX * inflight + noise
}

/// Whether the pods' arrivals are those that entered in front of them.
pub(crate) fn same_arrivals(pods: f64, entered: f64) -> bool {
    (pods - entered).abs() <= ENTRY_MAX * entered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(latency_ms: f64) -> Measured {
        Measured {
            now_s: 1000.0,
            latency_s: latency_ms / 1e3,
            expected_s: 0.100,
            overhead_s: 0.020,
            // 5 % more arrivals, 10 % more waiting and running: an elasticity of 2.
            probe_s: 0.088,
            utilization: 0.8,
            answers: 500,
        }
    }

    fn kappa(measured: Measured) -> f64 {
        let mut feedback = Feedback::default();
        feedback.learn(&Policy::default(), measured);
        feedback.kappa()
    }

    #[test]
    fn latency_as_expected_corrects_nothing() {
        assert!((kappa(measured(100.0)) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn slower_lowers_the_capacity_at_once_and_faster_raises_it_slowly() {
        // 96.8 for 80 ms: 10 % more arrivals at the elasticity of 1.95, so a target of 0.907.
        let slower = kappa(measured(116.8));
        assert!((slower - 0.972).abs() < 0.001, "{slower}");
        let faster = kappa(measured(86.1));
        assert!((faster - 1.005).abs() < 0.001, "a target of 1.1 at a gain of 0.05: {faster}");
    }

    #[test]
    fn too_few_answers_and_idle_or_overloaded_pods_say_nothing() {
        for silent in [
            Measured { answers: 499, ..measured(150.0) },
            Measured { utilization: 0.49, ..measured(150.0) },
            Measured { utilization: 1.06, ..measured(150.0) },
        ] {
            assert!((kappa(silent) - 1.0).abs() < 1e-9, "{silent:?}");
        }
    }

    /// κ after as many windows as `latencies_ms`, a minute each, of `answers` answers.
    fn thin(kappa: f64, answers: u64, utilization: f64, latencies_ms: impl Iterator<Item = f64>) -> f64 {
        let (policy, mut feedback, mut now_s) = (Policy::default(), Feedback::seeded(kappa), 0.0);
        // What the first minute begins with is no window yet.
        feedback.learn(&policy, Measured { now_s, answers: answers.min(100), ..measured(150.0) });
        for latency_ms in latencies_ms {
            now_s += 60.0;
            feedback.learn(&policy, Measured { now_s, utilization, answers, ..measured(latency_ms) });
        }
        feedback.kappa()
    }

    #[test]
    fn windows_of_few_answers_say_together_what_one_of_many_says() {
        let say = |answers, windows| thin(1.0, answers, 0.8, std::iter::repeat_n(116.8, windows));
        assert!((say(100, 4) - 1.0).abs() < 1e-9, "400 answers are not enough");
        assert!((say(100, 5) - kappa(measured(116.8))).abs() < 1e-9);
        assert!((say(100, 9) - say(500, 1)).abs() < 1e-9 && (say(100, 10) - say(500, 2)).abs() < 1e-9);
    }

    #[test]
    fn what_wanders_about_the_truth_leads_nowhere() {
        // Waiting and running of 80 ms, a fifth more and a fifth less of it.
        let after = thin(1.0, 50, 0.8, (0..600).map(|window| if window % 2 == 0 { 116.0 } else { 86.666_667 }));
        assert!((after - 1.0).abs() < 0.01, "{after}");
    }

    #[test]
    fn a_correction_fades_where_too_little_is_asked_to_tell() {
        for (answers, utilization) in [(0, 0.0), (15, 0.2), (300, 0.2), (15, 0.8)] {
            let after = |hours: usize| thin(0.7, answers, utilization, std::iter::repeat_n(100.0, 60 * hours));
            assert!(after(1) < 0.8 && after(8) > 0.95, "{answers} answers: {} and {}", after(1), after(8));
        }
        let kept = thin(0.7, 50, 0.8, std::iter::repeat_n(100.0, 480));
        assert!((kept - 0.7).abs() < 1e-9, "as the corrected model says: {kept}");
    }

    #[test]
    fn evidence_of_different_days_does_not_add_up() {
        let (policy, mut feedback) = (Policy::default(), Feedback::default());
        for day in 1..=9 {
            let now_s = 86_400.0 * f64::from(day);
            feedback.learn(&policy, Measured { now_s, answers: 400, ..measured(150.0) });
        }
        assert!((feedback.kappa() - 1.0).abs() < 1e-9, "{}", feedback.kappa());
    }

    #[test]
    fn a_correction_that_emptied_its_pods_can_be_taken_back() {
        let after = |windows: u32, measured: Measured| {
            let (policy, mut feedback) = (Policy::default(), Feedback::seeded(0.7));
            for window in 1..=windows {
                feedback.learn(&policy, Measured { now_s: 60.0 * f64::from(window), ..measured });
            }
            feedback.kappa()
        };
        let half = after(60, Measured { utilization: 0.4, ..measured(86.1) });
        assert!(half > 0.8, "57 % busy as the model sees it, and quicker than it says: {half}");
        let slow = after(60, Measured { utilization: 0.4, ..measured(116.8) });
        assert!((slow - 0.7).abs() < 1e-9, "as slow as the correction says: {slow}");
        let idle = |hours: u32| after(60 * hours, Measured { utilization: 0.2, ..measured(100.0) });
        assert!(idle(1) < 0.8 && idle(8) > 0.95, "{} and {}", idle(1), idle(8));
    }

    #[test]
    fn the_correction_keeps_to_its_range_and_to_one_step_a_window() {
        let (policy, mut feedback) = (Policy::default(), Feedback::default());
        feedback.learn(&policy, measured(400.0));
        let once = feedback.kappa();
        feedback.learn(&policy, Measured { now_s: 1059.0, ..measured(400.0) });
        assert!((feedback.kappa() - once).abs() < 1e-12, "the same window");
        for window in 1..50 {
            feedback.learn(&policy, Measured { now_s: 1000.0 + 60.0 * f64::from(window), ..measured(400.0) });
        }
        assert!((feedback.kappa() - 0.7).abs() < 1e-9);
        for window in 50..500 {
            feedback.learn(&policy, Measured { now_s: 1000.0 + 60.0 * f64::from(window), ..measured(30.0) });
        }
        assert!((feedback.kappa() - 1.05).abs() < 1e-9);
    }

    #[test]
    fn five_minutes_of_contradiction_degrade_the_model_and_five_of_agreement_restore_it() {
        let (policy, mut feedback, mut now_s) = (Policy::default(), Feedback::default(), 0.0);
        let mut minutes = |latency_ms: f64, minutes: u32| {
            for _ in 0..minutes {
                now_s += 60.0;
                feedback.learn(&policy, Measured { now_s, ..measured(latency_ms) });
            }
            feedback.degraded(now_s)
        };
        assert!(!minutes(125.0, 10), "within 30 %");
        assert!(!minutes(135.0, 4));
        assert!(!minutes(100.0, 1) && !minutes(135.0, 4), "one good minute begins anew");
        assert!(minutes(135.0, 1));
        assert!(minutes(100.0, 4));
        assert!(!minutes(100.0, 1));
    }

    #[test]
    fn a_contradiction_ends_with_the_traffic_that_showed_it() {
        let (policy, mut feedback) = (Policy::default(), Feedback::default());
        for minute in 1..=5 {
            feedback.learn(&policy, Measured { now_s: 60.0 * f64::from(minute), ..measured(135.0) });
        }
        assert!(feedback.degraded(300.0) && feedback.degraded(3_800.0));
        assert!(!feedback.degraded(3_900.0), "an hour without a window that could be judged");
    }

    #[test]
    fn contradictions_of_different_days_do_not_add_up() {
        let (policy, mut feedback) = (Policy::default(), Feedback::default());
        for day in 1..=9 {
            feedback.learn(&policy, Measured { now_s: 86_400.0 * f64::from(day), ..measured(135.0) });
        }
        assert!(!feedback.degraded(86_400.0 * 9.0));
    }

    #[test]
    fn a_few_milliseconds_do_not_contradict_a_model() {
        let (policy, mut feedback) = (Policy::default(), Feedback::default());
        for minute in 1..100 {
            let now_s = 60.0 * f64::from(minute);
            feedback.learn(&policy, Measured { now_s, expected_s: 0.020, latency_s: 0.038, ..measured(0.0) });
        }
        assert!(!feedback.degraded(6_000.0), "90 % beyond, but 9 % of the threshold");
    }

    #[test]
    fn inflight_is_arrivals_times_latency() {
        assert!(consistent(100.0, 1000.0, 0.1));
        assert!(!consistent(100.0, 1000.0, 0.05), "half of the images are somewhere else");
        assert!(consistent(2.0, 10.0, 0.1), "one image more is no contradiction");
        assert!(same_arrivals(114.0, 100.0) && !same_arrivals(116.0, 100.0) && !same_arrivals(84.0, 100.0));
    }
}
