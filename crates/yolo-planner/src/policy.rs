//! What a person asked for: targets, knobs with their ranges, and the facts about the fleet that do not move.

use serde::{Deserialize, Serialize};

use crate::units::{BatchSize, Bytes, Rate, Ratio, Replicas, Seconds};

/// Share of a tick by which the measured interval between two samples may exceed whole ticks.
const SCRAPE_JITTER: f64 = 0.1;

/// Everything about one service that its owner declared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// The targets that must hold.
    pub targets: Targets,
    /// Pods; `replicas.fixed` is min = max.
    pub replicas: Knob<Replicas>,
    /// Largest batch of the engine.
    pub batch: Knob<BatchSize>,
    /// Result cache of a pod.
    pub cache: Knob<Bytes>,
    /// How long a cached answer may be used.
    pub cache_ttl: Seconds,
    /// How long a lower need must last before pods go; `None`: learned, max(30 s, the start-up time).
    pub stabilization: Option<Seconds>,
    /// How long a higher need must last before pods come; `None`: not at all.
    pub stabilization_up: Option<Seconds>,
    /// Largest share of the pods that may go in 30 s (at least one pod), unless `paces_down` limits it.
    pub max_down: Ratio,
    /// How fast pods may come; `None`: at once.
    pub paces_up: Option<Paces>,
    /// How fast pods may go; `None`: by `max_down`.
    pub paces_down: Option<Paces>,
    /// Shortest time between two decisions.
    pub tick: Seconds,
    /// Measured interval between two samples of a pod.
    pub scrape: Seconds,
    /// Memory limit of a pod; zero: none.
    pub memory_limit: Bytes,
    /// What happens to a request that waits too long.
    pub overload: Overload,
    /// Fewest pods that a schedule asks for within the horizon.
    pub schedule_floor: Replicas,
    /// How soon a queued asynchronous task must be done.
    pub complete_within: Seconds,
    /// What runs the model.
    pub accelerator: Accelerator,
    /// What balances requests over the pods.
    pub routing: Routing,
    /// Which forecasts may lead the level.
    pub experts: Experts,
    /// How far beyond the forecast pods are ordered.
    pub margin: Margin,
    /// Largest share of the arrivals that the cache may be trusted to answer.
    pub cache_credit: Ratio,
    /// Hands off.
    pub paused: bool,
    /// How long a rollout may take before it is stuck (the progress deadline of the Deployment): what is measured is
    /// then judged all the same.
    pub rollout_max: Seconds,
    /// Which model, device and resources the pods have, as a hash: what was learned and judged of another one says nothing
    /// of this one.
    pub revision: u64,
    /// What things cost.
    pub cost: Cost,
}

impl Default for Policy {
    /// The defaults of the custom resource (design.md §3).
    fn default() -> Self {
        Self {
            targets: Targets::default(),
            replicas: Knob::auto(Replicas::new(1), Replicas::new(10)),
            batch: Knob::auto(BatchSize::ONE, BatchSize::try_from(16).unwrap_or_default()),
            cache: Knob::auto(Bytes::default(), Bytes::mebi(256)),
            cache_ttl: Seconds::whole(3600),
            stabilization: None,
            stabilization_up: None,
            max_down: Ratio::percent(20),
            paces_up: None,
            paces_down: None,
            tick: Seconds::whole(5),
            scrape: Seconds::whole(5),
            memory_limit: Bytes::mebi(2048),
            overload: Overload::default(),
            schedule_floor: Replicas::default(),
            complete_within: Seconds::whole(900),
            accelerator: Accelerator::default(),
            routing: Routing::default(),
            experts: Experts::default(),
            margin: Margin::default(),
            cache_credit: Ratio::percent(50),
            paused: false,
            rollout_max: Seconds::whole(930),
            revision: 0,
            cost: Cost::default(),
        }
    }
}

impl Policy {
    /// Length of a series tick: never shorter than the interval between two samples.
    ///
    /// A whole number of `tick`s, because the measured interval jitters and a series needs ticks of one length.
    pub(crate) fn tick_s(&self) -> f64 {
        let tick_s = self.tick.get().clamp(1.0, 300.0);
        let whole = (self.scrape_s() / tick_s - SCRAPE_JITTER).ceil().max(1.0);
        (whole * tick_s).min(300.0)
    }

    /// Interval between two samples of a pod.
    pub(crate) const fn scrape_s(&self) -> f64 {
        self.scrape.get().clamp(1.0, 300.0)
    }

    /// The targets' window; at least two ticks, or a verdict would rest on one sample.
    pub(crate) fn window_s(&self) -> f64 {
        self.targets.window.get().clamp(2.0 * self.tick_s(), 86_400.0)
    }

    /// The quantile that latency is judged at: the API target's, else the inference target's, else 0.95.
    pub(crate) fn quantile(&self) -> f64 {
        self.targets.api.or(self.targets.inference).map_or(0.95, LatencyTarget::at)
    }

    /// What a person declared, without what is measured, follows from the time of day, or bounds a rollout.
    pub(crate) fn declared(&self) -> Self {
        let (zero, floor) = (Seconds::ZERO, Replicas::default());
        Self { scrape: zero, rollout_max: zero, schedule_floor: floor, ..self.clone() }
    }
}

/// The targets; an absent one is not judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Targets {
    /// Engine time of an image's batch.
    pub inference: Option<LatencyTarget>,
    /// Last request byte received to last response byte.
    pub api: Option<LatencyTarget>,
    /// Images a second.
    pub throughput: Option<ThroughputTarget>,
    /// Working set of a pod.
    pub memory: Option<Bytes>,
    /// Least mean share of time in which the GPU is busy.
    pub gpu: Option<Ratio>,
    /// Least share of the images that are answered.
    pub availability: Option<Ratio>,
    /// Over which the observed values are taken.
    pub window: Seconds,
    /// Share of the windows that may miss.
    pub budget: Ratio,
}

impl Default for Targets {
    /// The default targets of design.md §1.
    fn default() -> Self {
        let p95 = Ratio::percent(95);
        Self {
            inference: Some(LatencyTarget { threshold: Seconds::millis(100), quantile: p95 }),
            api: Some(LatencyTarget { threshold: Seconds::millis(200), quantile: p95 }),
            throughput: Some(ThroughputTarget { rate: Rate::whole(10), provision: Provision::OnDemand }),
            memory: Some(Bytes::mebi(2048)),
            gpu: Some(Ratio::percent(70)),
            availability: Some(Ratio::percent(99)),
            window: Seconds::whole(60),
            budget: Ratio::percent(1),
        }
    }
}

/// A latency quantile that must stay within a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LatencyTarget {
    /// Largest allowed value.
    pub threshold: Seconds,
    /// Which quantile, 0.95 for p95.
    pub quantile: Ratio,
}

impl LatencyTarget {
    /// The quantile as a probability that closed forms can take.
    pub(crate) fn at(self) -> f64 {
        self.quantile.get().clamp(0.5, 0.999)
    }

    /// The threshold in seconds, at most a day.
    pub(crate) const fn limit_s(self) -> f64 {
        self.threshold.get().clamp(0.0, 86_400.0)
    }
}

/// A rate that must be possible.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ThroughputTarget {
    /// Images a second.
    pub rate: Rate,
    /// Whether pods for it are held without arrivals.
    pub provision: Provision,
}

/// When the pods for the throughput target exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Provision {
    /// Reachable within `replicas.max`, held only when offered.
    #[default]
    OnDemand,
    /// Held always.
    Always,
}

/// One knob: who moves it and how far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knob<T> {
    /// Who moves it.
    pub mode: Mode,
    /// Least value.
    pub min: T,
    /// Greatest value.
    pub max: T,
}

impl<T: Copy + Ord> Knob<T> {
    /// A knob that the planner moves within `min..=max`.
    pub const fn auto(min: T, max: T) -> Self {
        Self { mode: Mode::Auto, min, max }
    }

    /// `value` moved into the range; total: a reversed range acts as its minimum.
    pub fn clamp(&self, value: T) -> T {
        value.min(self.max).max(self.min)
    }
}

/// Who moves a knob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Mode {
    /// The planner.
    #[default]
    Auto,
    /// The planner says what it would do.
    Recommend,
    /// Nobody here.
    Off,
}

/// Limits on the speed of one direction, as in autoscaling/v2. The knob's range is not among them: what is outside moves
/// into it at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Paces {
    /// Each counts from the pods that there were when its period began; four at most.
    pub limits: Vec<Pace>,
    /// Which of them holds.
    pub select: Select,
}

/// Largest change of the number of pods in a period.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// The change.
    pub most: Amount,
    /// The period.
    pub period: Seconds,
}

/// A change of the number of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Amount {
    /// Pods.
    Pods(u32),
    /// Hundredths of the pods at the period's start; at least one pod.
    Percent(u32),
}

/// Which of several limits holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Select {
    /// The one that allows the largest change.
    #[default]
    Fastest,
    /// The one that allows the smallest change.
    Slowest,
    /// None allows any: the number does not move in this direction.
    Disabled,
}

/// Forecasts beside the level (control.md §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Experts {
    /// A damped straight line. Dearer than what it saves on recorded traffic, hence off.
    pub trend: bool,
    /// What came one period before, once that has proved better than the level.
    pub seasonal: bool,
}

impl Default for Experts {
    fn default() -> Self {
        Self { trend: false, seasonal: true }
    }
}

/// How far beyond the forecast pods are ordered (control.md §5, Conformal).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Margin {
    /// As far as covers past errors, but for a share that follows the misses.
    #[default]
    Adaptive,
    /// As far as covers 95 % of past errors.
    Fixed,
    /// Not at all.
    None,
}

/// What happens when more arrives than can be served.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Overload {
    /// Which requests are refused.
    pub policy: OverloadPolicy,
    /// Longest wait before a batch starts under [`OverloadPolicy::Queue`].
    pub queue_timeout: Seconds,
}

impl Default for Overload {
    fn default() -> Self {
        Self { policy: OverloadPolicy::Queue, queue_timeout: Seconds::whole(1) }
    }
}

/// Which requests are refused under overload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OverloadPolicy {
    /// Those that waited for the queue time-out.
    #[default]
    Queue,
    /// Those that would miss the latency target.
    Shed,
}

/// What runs the model; the emulated engine counts as the device that it imitates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Accelerator {
    /// Sessions on CPU cores.
    #[default]
    Cpu,
    /// One device a pod.
    Gpu,
}

/// What balances requests over the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Routing {
    /// A cluster IP: each connection to a random pod.
    #[default]
    Random,
    /// In turn.
    RoundRobin,
    /// To the pod with the fewest requests in flight.
    LeastOutstanding,
}

/// Prices; only their ratios matter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// One pod for a while.
    pub pod: Ratio,
    /// One GiB of cache for the same while.
    pub cache_gib: Ratio,
    /// Weight of starting or stopping a pod, in start-up times of a pod.
    pub switch: Ratio,
}

impl Default for Cost {
    /// A pod is the unit; a GiB costs a twentieth of a pod of 1 core and 2 GiB's usual list price.
    fn default() -> Self {
        Self { pod: Ratio::whole(1), cache_gib: Ratio::percent(5), switch: Ratio::whole(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_keep_their_length_while_the_scrape_interval_jitters() {
        let tick_s = |scrape: f64| Policy { scrape: Seconds::try_from(scrape).unwrap(), ..Policy::default() }.tick_s();
        for (scrape, tick) in
            [(4.9, 5.0), (5.0, 5.0), (5.3, 5.0), (15.02, 15.0), (14.9, 15.0), (7.0, 10.0), (1e300, 300.0)]
        {
            assert!((tick_s(scrape) - tick).abs() < 1e-9, "{scrape} gives {}", tick_s(scrape));
        }
    }
}
