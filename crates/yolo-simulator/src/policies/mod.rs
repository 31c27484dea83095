//! The autoscalers that are compared (control.md §10, "Baselines").

mod hpa;
mod kpa;
mod oracle;
mod planner;

pub use hpa::{Duty, LatencyRatio, MeanRatio, Metric, PerPod, Shell};
pub use kpa::Kpa;
pub use oracle::{Clairvoyant, arrivals_by_second};
pub use planner::{Planner, policy};

use crate::scaler::{Look, Order, Scaler};
use crate::service::Service;
use crate::trace::Trace;

/// Enough pods for the peak, always.
#[derive(Debug, Clone)]
pub struct StaticPeak(pub u32);

/// Share of a pod's best rate that a static fleet is sized for.
const STATIC_SHARE: f64 = 0.95;

impl StaticPeak {
    /// For the peak of `trace`.
    pub fn of(trace: &Trace, service: &Service) -> Self {
        Self((trace.peak() / (STATIC_SHARE * service.saturation_tuned())).ceil().max(1.0) as u32)
    }
}

impl Scaler for StaticPeak {
    fn period_s(&self) -> u32 {
        60
    }

    fn decide(&mut self, look: &Look<'_>) -> Order {
        Order::pods(look, self.0)
    }
}
