//! The `HorizontalPodAutoscaler` and what is built on it: KEDA, Ray Serve's rule, latency ratios.

use std::collections::VecDeque;

use crate::scaler::{Look, Order, Scaler};

/// Interval of the HPA's control loop.
const PERIOD_S: u32 = 15;
/// A ratio nearer to 1 than this changes nothing.
const TOLERANCE: f64 = 0.1;
/// Over which CPU and GPU use are averaged.
const DUTY_WINDOW_S: usize = 30;

/// What an HPA compares with its target: pods wanted before stabilisation.
pub trait Metric {
    /// Pods wanted.
    fn pods(&mut self, look: &Look<'_>) -> u32;
}

/// The control loop around a [`Metric`]: up at most to twice the pods or four more, down only to the most that was
/// wanted within the stabilisation.
#[derive(Debug, Clone)]
pub struct Shell<M> {
    metric: M,
    stabilization_s: f64,
    wanted: VecDeque<(f64, u32)>,
}

impl<M> Shell<M> {
    /// A loop around `metric`.
    pub const fn new(metric: M, stabilization_s: f64) -> Self {
        Self { metric, stabilization_s, wanted: VecDeque::new() }
    }

    /// Pods after stabilisation and the limit on growth, of `pods` now.
    fn limited(&mut self, now_s: f64, pods: u32, raw: u32) -> u32 {
        self.wanted.retain(|(at_s, _)| now_s - at_s < self.stabilization_s);
        self.wanted.push_back((now_s, raw));
        if raw < pods {
            let most = self.wanted.iter().map(|(_, wanted)| *wanted).max().unwrap_or(raw);
            return raw.max(most.min(pods));
        }
        raw.min((pods + 4).max(2 * pods))
    }
}

impl<M: Metric> Scaler for Shell<M> {
    fn period_s(&self) -> u32 {
        PERIOD_S
    }

    fn decide(&mut self, look: &Look<'_>) -> Order {
        let raw = self.metric.pods(look).max(1);
        let pods = self.limited(look.now_s, look.pods, raw);
        Order::pods(look, pods)
    }
}

/// Use of the device, or of the CPU where that runs the engine, as a share of its time.
#[derive(Debug, Clone)]
pub struct Duty {
    /// Target of the mean over the pods.
    pub target: f64,
}

impl Duty {
    /// The HPA's arithmetic for a resource: pods that are not ready yet count as idle when more are wanted.
    fn wanted(&self, duty: f64, ready: u32, pods: u32) -> u32 {
        let (ready, all) = (f64::from(ready), f64::from(pods));
        let ratio = duty / self.target;
        if (ratio - 1.0).abs() <= TOLERANCE {
            return pods;
        }
        if ratio < 1.0 {
            return (ratio * ready).ceil() as u32;
        }
        let damped = duty * ready / (self.target * all);
        if damped <= 1.0 + TOLERANCE { pods } else { (damped * all).ceil() as u32 }
    }
}

impl Metric for Duty {
    fn pods(&mut self, look: &Look<'_>) -> u32 {
        let busy = look.mean(DUTY_WINDOW_S, |second| f64::from(second.busy_s));
        let ready = look.mean(DUTY_WINDOW_S, |second| f64::from(second.ready));
        self.wanted((busy / ready.max(1.0)).min(1.0), look.ready, look.pods)
    }
}

/// Something counted over all pods, with a target a pod: KEDA's rate, Ray Serve's ongoing requests.
#[derive(Debug, Clone)]
pub struct PerPod {
    /// Target a pod.
    pub target: f64,
    /// Averaged over this time.
    pub window_s: usize,
    /// Images in the pods instead of arrivals.
    pub ongoing: bool,
}

impl PerPod {
    fn wanted(&self, value: f64, pods: u32) -> u32 {
        if (value / (self.target * f64::from(pods)) - 1.0).abs() <= TOLERANCE {
            pods
        } else {
            (value / self.target).ceil() as u32
        }
    }
}

impl Metric for PerPod {
    fn pods(&mut self, look: &Look<'_>) -> u32 {
        let value = look.mean(self.window_s, |second| {
            if self.ongoing { f64::from(second.inflight) } else { f64::from(second.arrivals) }
        });
        self.wanted(value, look.pods)
    }
}

/// Pods in proportion to p95 over its target.
#[derive(Debug, Clone)]
pub struct LatencyRatio {
    /// Target of p95.
    pub target_s: f64,
}

impl Metric for LatencyRatio {
    fn pods(&mut self, look: &Look<'_>) -> u32 {
        let Some(p95_s) = look.ledger.quantile_s(0.95) else { return 1 };
        proportional(look.pods, p95_s / self.target_s)
    }
}

/// llm-d's rule: pods in proportion to the mean over 45 s of P90 over its target, each at most 2 (control.md §10).
#[derive(Debug, Clone)]
pub struct MeanRatio {
    target_s: f64,
    ratios: VecDeque<f64>,
}

/// Looks that the mean is over, at the HPA's period.
const MEAN_LOOKS: usize = 3;
const RATIO_MAX: f64 = 2.0;

impl MeanRatio {
    /// Aims at a P90 of `target_s`.
    pub const fn new(target_s: f64) -> Self {
        Self { target_s, ratios: VecDeque::new() }
    }

    /// Pods for one more P90, `pods` now.
    fn wanted(&mut self, p90_s: f64, pods: u32) -> u32 {
        if self.ratios.len() >= MEAN_LOOKS {
            self.ratios.pop_front();
        }
        self.ratios.push_back((p90_s / self.target_s).min(RATIO_MAX));
        proportional(pods, self.ratios.iter().sum::<f64>() / self.ratios.len() as f64)
    }
}

impl Metric for MeanRatio {
    fn pods(&mut self, look: &Look<'_>) -> u32 {
        let Some(p90_s) = look.ledger.quantile_s(0.9) else { return 1 };
        self.wanted(p90_s, look.pods)
    }
}

/// `pods` times `ratio`, or as they are where that is within the tolerance of 1.
fn proportional(pods: u32, ratio: f64) -> u32 {
    if (ratio - 1.0).abs() <= TOLERANCE { pods } else { (f64::from(pods) * ratio).ceil() as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_limited_and_shrinking_waits_for_the_most_that_was_wanted() {
        let mut shell = Shell::new((), 300.0);
        assert_eq!(shell.limited(0.0, 2, 50), 6);
        assert_eq!(shell.limited(15.0, 10, 50), 20);
        assert_eq!(shell.limited(30.0, 20, 5), 20, "50 was wanted within the stabilisation");
        assert_eq!(shell.limited(314.0, 20, 5), 20);
        assert_eq!(shell.limited(315.0, 20, 5), 5);
        assert_eq!(shell.limited(320.0, 5, 4), 5);
    }

    #[test]
    fn duty_within_the_tolerance_changes_nothing_and_starting_pods_damp() {
        let duty = Duty { target: 0.7 };
        assert_eq!(duty.wanted(0.76, 10, 10), 10);
        assert_eq!(duty.wanted(0.78, 10, 10), 12);
        assert_eq!(duty.wanted(0.35, 10, 12), 5);
        assert_eq!(duty.wanted(1.0, 5, 7), 7, "two pods on their way suffice");
        assert_eq!(duty.wanted(1.0, 5, 6), 8);
    }

    #[test]
    fn a_count_is_divided_by_its_target() {
        let keda = PerPod { target: 100.0, window_s: 60, ongoing: false };
        assert_eq!(keda.wanted(1050.0, 10), 10);
        assert_eq!(keda.wanted(1110.0, 10), 12);
        assert_eq!(keda.wanted(0.0, 10), 0);
    }

    #[test]
    fn the_mean_of_three_looks_counts_none_more_than_double() {
        let mut rule = MeanRatio::new(0.2);
        assert_eq!(rule.wanted(0.21, 10), 10, "within the tolerance");
        assert_eq!(rule.wanted(1.5, 10), 16, "(1.05 + 2) / 2");
        assert_eq!(rule.wanted(0.1, 10), 12, "(1.05 + 2 + 0.5) / 3");
        assert_eq!(rule.wanted(0.1, 10), 10, "(2 + 0.5 + 0.5) / 3");
        assert_eq!(rule.wanted(0.1, 10), 5);
    }
}
