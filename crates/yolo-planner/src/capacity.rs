//! What pods carry within the targets: one pod by its queue and its CPU, many by how they share the load.

use crate::curve::Times;
use crate::intake::Seen;
use crate::policy::{Accelerator, LatencyTarget, Policy, Routing};
use crate::queue::Server;
use crate::state::State;

/// Share of its saturation rate that a pod may run at whatever the targets allow: a curve that is a few percent too
/// optimistic must not become an endless queue. CPU time varies more than a GPU's (control.md §4).
const UTILIZATION_MAX_GPU: f64 = 0.96;
const UTILIZATION_MAX_CPU: f64 = 0.88;
/// Share of the CPU quota that the images may use: beyond it the kernel throttles within its 100 ms periods, and the
/// waits it adds are longer than usual targets (control.md §4).
const QUOTA_SHARE: f64 = 0.85;
/// How the reserve that one server needs shrinks as n share a queue, `f_n = 1 - (1 - f₁)·n^-0.85`: fitted to the
/// simulated .85/.91/.95/.975 of 2/4/8/16 pods (control.md §1, finding 3).
const POOLING: f64 = -0.85;
/// Pods beyond which no search goes: larger than any cluster.
pub(crate) const PODS_MAX: u32 = 100_000;

/// Which limit a pod's rate has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binding {
    /// Waiting and running within the API target.
    Latency,
    /// The utilisation ceiling; latency has room.
    Utilization,
    /// The CPU quota.
    CpuQuota,
}

/// What one of several pods carries with one batch size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PodRate {
    /// When it never idles, images/s.
    pub(crate) saturation: f64,
    /// Alone and within the API target, images/s.
    pub(crate) alone: f64,
    /// As one of the pods, within all limits, images/s.
    pub(crate) carried: f64,
    /// Share of the saturation rate that latency allows as one of the pods.
    pub(crate) share: f64,
    /// What limits it.
    pub(crate) binding: Binding,
}

/// The service as the planner knows it now.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) times: Times,
    workers: f64,
    dispersion: f64,
    /// What the API target leaves for waiting and running, seconds; `None` without that target.
    pub(crate) budget_s: Option<f64>,
    /// Quantile of the images that reach the engine.
    quantile: f64,
    /// Images/s of a pod's CPU quota.
    cpu_rate: Option<f64>,
    routing: Routing,
    utilization_max: f64,
}

impl Model {
    /// The model from what was learned; `hit_ratio` is the share of the images that the cache surely answers.
    pub(crate) fn new(policy: &Policy, state: &State, seen: &Seen, hit_ratio: f64) -> Self {
        let overhead_s = state.overhead_s.unwrap_or(0.0);
        let cpu_s = state.cpu.per_image_s().filter(|cost| *cost > 1e-6);
        let quota = (policy.accelerator == Accelerator::Cpu && seen.quota_cores > 0.0).then_some(seen.quota_cores);
        // Hits answer at once, so the slow share of all answers is a larger share of those from the engine.
        let slow = ((1.0 - policy.quantile()) / (1.0 - hit_ratio).max(1e-3)).min(0.5);
        Self {
            times: state.curve.times(),
            workers: seen.workers,
            dispersion: state.arrivals.dispersion(),
            budget_s: policy.targets.api.map(LatencyTarget::limit_s).map(|limit| limit - overhead_s),
            quantile: 1.0 - slow,
            cpu_rate: quota.zip(cpu_s).map(|(cores, cost)| QUOTA_SHARE * cores / cost),
            routing: policy.routing,
            utilization_max: match policy.accelerator {
                Accelerator::Cpu => UTILIZATION_MAX_CPU,
                Accelerator::Gpu => UTILIZATION_MAX_GPU,
            },
        }
    }

    fn server(&self, batch: u32) -> Option<Server<'_>> {
        let times = self.times.mean.get(..usize::try_from(batch).ok()?).filter(|times| !times.is_empty())?;
        Some(Server { times, batch, dispersion: self.dispersion })
    }

    /// A pod's saturation rate and its rate alone within the API target, a session each, images/s.
    fn lone(&self, batch: u32) -> Option<(f64, f64)> {
        let server = self.server(batch)?;
        let saturation = server.saturation();
        let alone = self.budget_s.map_or(saturation, |budget_s| server.rate_within(budget_s, self.quantile));
        Some((saturation, alone))
    }

    /// What one of `pods` carries with batches up to `batch`; `None` if the curve does not reach that far.
    pub(crate) fn pod(&self, batch: u32, pods: u32) -> Option<PodRate> {
        self.lone(batch).map(|lone| self.among(lone, pods))
    }

    /// A lone pod's rates as one of `pods`.
    fn among(&self, (saturation, alone): (f64, f64), pods: u32) -> PodRate {
        let sharers = match self.routing {
            Routing::Random => self.workers,
            Routing::RoundRobin | Routing::LeastOutstanding => self.workers * f64::from(pods.max(1)),
        };
        // A lone image that misses the target is not helped by sharing.
        let share = if alone > 0.0 { 1.0 - (1.0 - alone / saturation) * libm::pow(sharers, POOLING) } else { 0.0 };
        let (share, binding) = if share > self.utilization_max {
            (self.utilization_max, Binding::Utilization)
        } else {
            (share, Binding::Latency)
        };
        let by_queue = self.workers * saturation * share;
        let (saturation, alone) = (self.workers * saturation, self.workers * alone);
        let rate = PodRate { saturation, alone, carried: by_queue, share, binding };
        match self.cpu_rate.filter(|rate| *rate < by_queue) {
            Some(carried) => PodRate { carried, binding: Binding::CpuQuota, ..rate },
            None => rate,
        }
    }

    /// What one pod carries when latency is no limit, images/s: for loads that cannot meet their target anyway.
    pub(crate) fn pod_regardless_of_latency(&self, batch: u32) -> Option<PodRate> {
        Self { budget_s: None, ..self.clone() }.pod(batch, 1)
    }

    /// Least number of pods that carry `rate` images/s, at most [`PODS_MAX`]; `None` if no number does.
    pub(crate) fn pods_for(&self, batch: u32, rate: f64) -> Option<u32> {
        let lone = self.lone(batch)?;
        let enough = |pods: u32| self.among(lone, pods).carried * f64::from(pods) >= rate - 1e-9;
        let (mut low, mut high) = (0, PODS_MAX);
        if !enough(high) {
            return None;
        }
        while high - low > 1 {
            let middle = u32::midpoint(low, high);
            if enough(middle) { high = middle } else { low = middle }
        }
        Some(high)
    }

    /// The `q`-quantile of waiting and running, seconds, when each of `pods` gets its share of `rate` images/s.
    pub(crate) fn latency_s(&self, batch: u32, pods: u32, rate: f64, q: f64) -> Option<f64> {
        let pod = self.pod(batch, pods)?;
        let each = rate / f64::from(pods.max(1)) / self.workers;
        // Sharing acts like a lower load on a lone pod (control.md §4: the chain's p95 at (λ/c)·f₁/f_c).
        let relief = if pod.share > 0.0 { (pod.alone / pod.saturation / pod.share).min(1.0) } else { 1.0 };
        self.server(batch)?.latency(each * relief, q)
    }
}
