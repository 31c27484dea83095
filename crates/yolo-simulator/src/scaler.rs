//! What every autoscaler sees and orders.

use yolo_planner::{Knobs, Observation};

use crate::fleet::{Ledger, Second};

/// One look at the fleet, at the end of a second.
#[derive(Debug)]
pub struct Look<'a> {
    /// Seconds since the start of the run.
    pub now_s: f64,
    /// The fleet, second by second, and the response times of the last minute.
    pub ledger: &'a Ledger,
    /// Pods that serve or start.
    pub pods: u32,
    /// Pods that serve.
    pub ready: u32,
    /// The knobs as ordered.
    pub knobs: Knobs,
    /// What the operator would have seen; only for a scaler that asked for it.
    pub observation: Option<Observation>,
}

impl Look<'_> {
    /// Mean of `value` over the last `seconds`; 0 before the first.
    pub fn mean(&self, seconds: usize, value: impl Fn(&Second) -> f64) -> f64 {
        let all = &self.ledger.seconds;
        let taken = all.get(all.len().saturating_sub(seconds)..).unwrap_or(&[]);
        taken.iter().map(value).sum::<f64>() / (taken.len() as f64).max(1.0)
    }
}

/// What a scaler orders.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Order {
    /// The knobs to apply.
    pub knobs: Knobs,
    /// The rate that pods are ordered for, where the scaler has one, images/s.
    pub plan_rate: f64,
    /// What the scaler takes for the bottleneck, as its own name for it.
    pub blames: Option<yolo_planner::explain::BottleneckKind>,
}

impl Order {
    /// Only a number of pods.
    pub fn pods(look: &Look<'_>, pods: u32) -> Self {
        let replicas = yolo_planner::units::Replicas::new(pods);
        Self { knobs: Knobs { replicas, ..look.knobs }, plan_rate: 0.0, blames: None }
    }
}

/// An autoscaler.
pub trait Scaler {
    /// Whole seconds between two calls.
    fn period_s(&self) -> u32;
    /// Whether looks carry an [`Observation`].
    fn observes(&self) -> bool {
        false
    }
    /// The next order.
    fn decide(&mut self, look: &Look<'_>) -> Order;
}
