//! Who takes part, and with which tuning.

use crate::fleet::run;
use crate::policies::{Duty, Kpa, LatencyRatio, MeanRatio, PerPod, Planner, Shell, StaticPeak, policy};
use crate::scaler::Scaler;
use crate::trace::{Gaps, Trace};
use crate::variation::Variation;
use crate::world::World;

/// HPA's default stabilisation.
const STABILIZATION_S: f64 = 300.0;
/// Share of a pod's best rate that a careful person tunes KEDA to.
const KEDA_SHARE_GPU: f64 = 0.85;
const KEDA_SHARE_CPU: f64 = 0.75;
/// Pods and seconds of the run that finds the in-flight images at that share.
const TUNING_PODS: u32 = 8;
const TUNING_S: usize = 240;

/// An autoscaler with its tuning. Where it is a percentage, 100 is as well tuned as the rule can be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Contestant {
    /// The planner.
    Planner,
    /// Knows the future.
    Clairvoyant,
    /// Sized for so many percent of the peak.
    StaticPeak(u32),
    /// HPA on GPU duty, or on CPU where that runs the engine: target in percent.
    Duty(u32),
    /// KEDA on the arrival rate: target a pod in thousandths of its best rate, window and stabilisation in seconds.
    Keda(u32, u32, u32),
    /// Knative's autoscaler on requests in flight: percent of the in-flight images at KEDA's usual target.
    Kpa(u32),
    /// Ray Serve's rule on ongoing requests, likewise.
    Ray(u32),
    /// HPA on p95 over so many percent of its target.
    LatencyRatio(u32),
    /// llm-d's rule on P90 over so many percent of the target.
    MeanRatio(u32),
}

impl Contestant {
    /// As the report calls it.
    pub fn name(self) -> String {
        match self {
            Self::Planner => "yolo-planner".to_owned(),
            Self::Clairvoyant => "clairvoyant".to_owned(),
            Self::StaticPeak(percent) => tuned("static-peak", percent),
            Self::Duty(percent) => format!("hpa-duty {percent}"),
            Self::Keda(share, window_s, hold_s) => {
                format!("keda-rps {:.3} μ_sat ({window_s} s, {hold_s} s)", f64::from(share) / 1000.0)
            }
            Self::Kpa(percent) => tuned("knative-kpa", percent),
            Self::Ray(percent) => tuned("ray-ongoing", percent),
            Self::LatencyRatio(percent) => tuned("hpa-p95", percent),
            Self::MeanRatio(percent) => tuned("llm-d-p90", percent),
        }
    }

    /// The autoscaler for `world`. The clairvoyant is made elsewhere: it alone sees the arrivals.
    pub fn scaler(self, world: &World, trace: &Trace, variation: &Variation) -> Box<dyn Scaler> {
        let each = world.service.saturation_tuned();
        match self {
            Self::Planner => variation.planner(Planner::new(variation.policy(policy(world)))),
            Self::Clairvoyant => Box::new(StaticPeak::of(trace, &world.service)),
            Self::StaticPeak(percent) => {
                let StaticPeak(pods) = StaticPeak::of(trace, &world.service);
                Box::new(StaticPeak((f64::from(pods) * share(percent)).ceil() as u32))
            }
            Self::Duty(percent) => Box::new(Shell::new(Duty { target: share(percent) }, STABILIZATION_S)),
            Self::Keda(share, window_s, hold_s) => {
                let target = f64::from(share) / 1000.0 * each;
                Box::new(Shell::new(PerPod { target, window_s: window_s as usize, ongoing: false }, f64::from(hold_s)))
            }
            Self::Kpa(percent) => Box::new(Kpa::new(share(percent) * inflight_a_pod(world))),
            Self::Ray(percent) => {
                let metric = PerPod { target: share(percent) * inflight_a_pod(world), window_s: 30, ongoing: true };
                Box::new(Shell::new(metric, STABILIZATION_S))
            }
            Self::LatencyRatio(percent) => {
                Box::new(Shell::new(LatencyRatio { target_s: share(percent) * world.slo_s }, STABILIZATION_S))
            }
            Self::MeanRatio(percent) => {
                Box::new(Shell::new(MeanRatio::new(share(percent) * world.slo_s), STABILIZATION_S))
            }
        }
    }
}

fn share(percent: u32) -> f64 {
    f64::from(percent) / 100.0
}

/// `name` with its tuning, if that is not the best.
fn tuned(name: &str, percent: u32) -> String {
    if percent == 100 { name.to_owned() } else { format!("{name}, tuned to {percent} %") }
}

/// Images in a pod at the rate that KEDA would be tuned to: what a person would measure in a load test.
fn inflight_a_pod(world: &World) -> f64 {
    let gpu = world.service.accelerator == yolo_planner::policy::Accelerator::Gpu;
    let used = if gpu { KEDA_SHARE_GPU } else { KEDA_SHARE_CPU };
    let rate = used * f64::from(TUNING_PODS) * world.service.saturation_tuned();
    let trace = Trace { rates: vec![rate; TUNING_S], gaps: Gaps::Poisson };
    let mut test = World::new(world.service.clone(), TUNING_PODS);
    test.routing = world.routing;
    let outcome = run(&test, &trace, 1, &mut StaticPeak(TUNING_PODS));
    let settled = outcome.ledger.seconds.get(TUNING_S / 4..).unwrap_or(&[]);
    let inflight: f64 = settled.iter().map(|second| f64::from(second.inflight)).sum();
    inflight / settled.len() as f64 / f64::from(TUNING_PODS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Service;

    #[test]
    fn the_load_test_finds_what_littles_law_says() {
        // 330/s a pod at 85 %; p95 there is some 60 ms and the mean about 37 ms: 12 images.
        let inflight = inflight_a_pod(&World::new(Service::GPU, 1));
        assert!((8.0..16.0).contains(&inflight), "{inflight}");
    }
}
