//! What an ablation changes: the world, the policy, or what the planner is told. Never the planner itself.

use yolo_planner::observation::{Observation, Signal};
use yolo_planner::policy::{Margin, OverloadPolicy, Policy};
use yolo_planner::units::Seconds;

use crate::fleet::Routing;
use crate::policies::Planner;
use crate::scaler::{Look, Order, Scaler};
use crate::world::World;

/// One ablation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Variation {
    /// As usual.
    None,
    /// Metrics say that a batch takes this many percent of what it takes.
    Curve(u32),
    /// Pods take twice as long to start.
    SlowStart,
    /// Pods are read every 15 s.
    SlowScrape,
    /// No pod can be read for five minutes.
    Outage,
    /// A fifth of the pods cannot be read.
    Silent,
    /// Another balancer.
    Routed(Routing),
    /// Nothing is shed before a second of waiting.
    Queueing,
    /// Scale-down waits this many seconds instead of what was learned.
    Hold(u32),
    /// Another margin over the forecast.
    Margin(Margin),
    /// The straight line forecasts too.
    Trend,
    /// No season forecasts.
    Unseasonal,
}

/// When the outage begins: in the first hour's rise of no trace, in the bursts of all.
const OUTAGE_AT_S: f64 = 5400.0;
const OUTAGE_S: f64 = 300.0;

impl Variation {
    /// As the report calls it; empty for none.
    pub fn name(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::Curve(percent) => format!("told a curve of {percent} %"),
            Self::SlowStart => "start-up ×2".to_owned(),
            Self::SlowScrape => "metrics every 15 s".to_owned(),
            Self::Outage => "no metrics for 5 min".to_owned(),
            Self::Silent => "20 % of the pods silent".to_owned(),
            Self::Routed(routing) => format!("routing {routing:?}"),
            Self::Queueing => "no shedding".to_owned(),
            Self::Hold(seconds) => format!("hold {seconds} s"),
            Self::Margin(Margin::None) => "no conformal bound".to_owned(),
            Self::Margin(_) => "conformal bound of a fixed level".to_owned(),
            Self::Trend => "trend on (off by default)".to_owned(),
            Self::Unseasonal => "no seasonal expert".to_owned(),
        }
    }

    /// The start-up that it makes of `startup_s`.
    pub fn startup_s(&self, startup_s: f64) -> f64 {
        if *self == Self::SlowStart { 2.0 * startup_s } else { startup_s }
    }

    /// Changes the world.
    pub fn apply(&self, world: &mut World) {
        world.startup_s = self.startup_s(world.startup_s);
        match self {
            Self::SlowScrape => world.metrics.scrape_s = 15,
            Self::Outage => world.metrics.blind_s = Some((OUTAGE_AT_S, OUTAGE_AT_S + OUTAGE_S)),
            Self::Silent => world.metrics.silent_share = 0.2,
            Self::Routed(routing) => world.routing = *routing,
            Self::Queueing => world.initial.deadline_millis = 1000,
            _ => {}
        }
    }

    /// Changes the policy.
    pub fn policy(&self, mut policy: Policy) -> Policy {
        match self {
            Self::Queueing => policy.overload.policy = OverloadPolicy::Queue,
            Self::Hold(seconds) => policy.stabilization = Some(Seconds::whole(*seconds)),
            Self::Margin(margin) => policy.margin = *margin,
            Self::Trend => policy.experts.trend = true,
            Self::Unseasonal => policy.experts.seasonal = false,
            _ => {}
        }
        policy
    }

    /// Changes what the planner is told.
    pub fn planner(&self, planner: Planner) -> Box<dyn Scaler> {
        match self {
            Self::Curve(percent) => Box::new(Misled { planner, factor: f64::from(*percent) / 100.0 }),
            _ => Box::new(planner),
        }
    }
}

/// A planner whose metrics lie about the time of a batch.
struct Misled {
    planner: Planner,
    factor: f64,
}

impl Misled {
    fn mislead(&self, observation: &mut Observation) {
        let scaled = |value: Seconds| Seconds::try_from(value.get() * self.factor).unwrap_or_default();
        for pod in &mut observation.pods {
            let (Signal::Live { value: sample, .. } | Signal::Stale { last: sample, .. }) = &mut pod.sample else {
                continue;
            };
            for batch in &mut sample.batches {
                batch.seconds = scaled(batch.seconds);
                let squared = batch.seconds_squared.get() * self.factor * self.factor;
                batch.seconds_squared = squared.try_into().unwrap_or_default();
            }
            for point in &mut sample.curve {
                (point.mean, point.p95) = (scaled(point.mean), scaled(point.p95));
            }
        }
    }
}

impl Scaler for Misled {
    fn period_s(&self) -> u32 {
        self.planner.period_s()
    }

    fn observes(&self) -> bool {
        true
    }

    fn decide(&mut self, look: &Look<'_>) -> Order {
        let mut observation = look.observation.clone();
        if let Some(observation) = &mut observation {
            self.mislead(observation);
        }
        self.planner.decide(&Look { observation, ..*look })
    }
}
