//! What pods carry within the targets: one pod by its queue and its CPU, many by how they share the load.

use crate::chain::{Latencies, Server};
use crate::curve::Times;
use crate::intake::Seen;
use crate::observation::Knobs;
use crate::policy::{Accelerator, LatencyTarget, OverloadPolicy, Policy, Routing};
use crate::state::State;
use crate::table::{FUEL, Key, denoised};

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
/// Share of a pod's saturation rate that is relied on until the chain has said more (control.md §8, fallback).
const SHARE_UNKNOWN: f64 = 0.7;
/// Share of the saturation rate by which a limit is searched for a higher rate than is asked: twice the table's precision.
const LIMIT_MARGIN: f64 = 1e-3;
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
    /// The threads that decode pictures.
    Decoders,
}

/// What one of several pods carries with one batch size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PodRate {
    /// When it never idles, images/s.
    pub(crate) saturation: f64,
    /// As one of the pods, within all limits, images/s.
    pub(crate) carried: f64,
    /// Share of the saturation rate that latency allows as one of the pods.
    pub(crate) share: f64,
    /// What limits it.
    pub(crate) binding: Binding,
    /// The chain has said how much a lone pod carries; else [`SHARE_UNKNOWN`] of the saturation rate is assumed.
    pub(crate) computed: bool,
}

/// A lone session: its saturation rate, and its rate within the API target, images/s.
#[derive(Debug, Clone, Copy)]
struct Lone {
    saturation: f64,
    alone: f64,
    computed: bool,
    /// No answer of the chain: neither the greatest rate nor one below it.
    assumed: bool,
}

impl Lone {
    /// One that latency does not limit.
    const fn unlimited(saturation: f64) -> Self {
        Self { saturation, alone: saturation, computed: true, assumed: false }
    }
}

/// What the chain says of a lone session: the greatest rate, or, until that is computed, one that surely is not above it.
#[derive(Debug, Clone, Copy)]
struct Answer {
    rate: f64,
    computed: bool,
}

/// The service as the planner knows it now.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) times: Times,
    /// t⁺(b) without jitter, seconds: what capacity rests on.
    careful_s: Vec<f64>,
    workers: f64,
    dispersion: f64,
    /// What the API target leaves for waiting and running, seconds; `None` without that target.
    pub(crate) budget_s: Option<f64>,
    /// Share of the answers that may be slow.
    slow: f64,
    /// Share of the images that the cache surely does not answer.
    missed: f64,
    /// Images/s that a pod's CPU side allows, and which part of it.
    cpu_rate: Option<(f64, Binding)>,
    routing: Routing,
    utilization_max: f64,
    /// The same where images wait.
    queueing_max: f64,
    /// Correction from measured latency (control.md §7).
    kappa: f64,
    /// What the chain says a lone session carries within the budget, by batch size; `None`: nothing yet.
    rates: Vec<Option<Answer>>,
}

/// Share of its saturation rate up to which a pod is planned whose images wait.
const fn queueing_max(policy: &Policy) -> f64 {
    match policy.accelerator {
        Accelerator::Cpu => UTILIZATION_MAX_CPU,
        Accelerator::Gpu => UTILIZATION_MAX_GPU,
    }
}

/// Share of its saturation rate up to which a pod is planned.
///
/// Shedding ends a queue at the target: where the curve is too optimistic by what the ceiling u guards against, pods at a
/// utilisation ρ refuse 1 - u/ρ of the images, and the target lets ε go. So ρ ≤ u/(1 - ε), but never more than pods serve
/// by the curve as it is.
fn utilization_max(policy: &Policy) -> f64 {
    let queueing = queueing_max(policy);
    if sheds(policy) { (queueing / policy.quantile()).min(1.0) } else { queueing }
}

/// Whether what would miss the API target is refused instead of answered late.
pub(crate) fn sheds(policy: &Policy) -> bool {
    policy.overload.policy == OverloadPolicy::Shed && policy.targets.api.is_some()
}

/// Computes as many of the chain's answers that a choice needs as one call may.
pub(crate) fn refresh(policy: &Policy, state: &mut State, (seen, hit_ratio): (&Seen, f64), current: &Knobs) {
    let model = Model::new(policy, state, seen, hit_ratio);
    let sizes = crate::choose::sizes(policy, &model, current);
    let mut keys: Vec<Key> = sizes.iter().filter_map(|size| model.key(*size)).collect();
    // The burstiest arrivals beforehand: a burst makes its own cell, and pods are ordered before that is computed.
    let bursty = sizes.first().and_then(|size| Model { dispersion: f64::MAX, ..model.clone() }.key(*size));
    keys.extend(bursty.filter(|key| state.table.bound(key, &model.careful_s).is_none()));
    state.table.refresh(&keys, &model.careful_s, &mut FUEL.clone());
}

impl Model {
    /// The model from what was learned; `hit_ratio` is the share of the images that the cache surely answers.
    pub(crate) fn new(policy: &Policy, state: &State, seen: &Seen, hit_ratio: f64) -> Self {
        let overhead_s = state.overhead_s.unwrap_or(0.0);
        let cpu_s = state.cpu.per_image_s().filter(|cost| *cost > 1e-6);
        let quota = (policy.accelerator == Accelerator::Cpu && seen.quota_cores > 0.0).then_some(seen.quota_cores);
        // On a CPU decoders and engine share cores: a decoder's time there is mostly the engine's, which the quota counts.
        let decoders = state.stages.decode_rate().filter(|_| policy.accelerator == Accelerator::Gpu);
        let times = state.curve.slowest();
        let mut model = Self {
            careful_s: times.careful(policy.quantile()),
            times,
            workers: seen.workers.max(1.0),
            dispersion: state.arrivals.dispersion(),
            budget_s: policy.targets.api.map(LatencyTarget::limit_s).map(|limit| limit - overhead_s),
            slow: 1.0 - policy.quantile(),
            missed: 1.0 - hit_ratio,
            cpu_rate: quota
                .zip(cpu_s)
                .map(|(cores, cost)| (QUOTA_SHARE * cores / cost, Binding::CpuQuota))
                .or_else(|| decoders.map(|rate| (QUOTA_SHARE * rate, Binding::Decoders))),
            routing: policy.routing,
            utilization_max: utilization_max(policy),
            queueing_max: queueing_max(policy),
            kappa: state.kappa(),
            rates: Vec::new(),
        };
        let rate = |size| {
            let key = model.key(size)?;
            let computed = state.table.rate(&key, &model.careful_s).map(|rate| Answer { rate, computed: true });
            let bound = || state.table.bound(&key, &model.careful_s).map(|rate| Answer { rate, computed: false });
            computed.or_else(bound)
        };
        model.rates = (1..=model.times.largest()).map(rate).collect();
        model
    }

    /// What the chain is asked for this batch size; `None` without an API target.
    fn key(&self, batch: u32) -> Option<Key> {
        self.budget_s.map(|budget_s| Key::new(batch, self.dispersion, budget_s, (self.slow, self.missed)))
    }

    fn server(&self, batch: u32) -> Option<Server<'_>> {
        Server::new(&self.careful_s, batch, denoised(self.dispersion))
    }

    /// Share of the engine's answers that may be slow: hits answer at once, so it is a larger share of those.
    pub(crate) fn slow_share(&self) -> f64 {
        (self.slow / self.missed.max(1e-3)).min(0.5)
    }

    fn lone(&self, batch: u32) -> Option<Lone> {
        let server = self.server(batch)?;
        let saturation = server.saturation();
        let Some(budget_s) = self.budget_s else { return Some(Lone::unlimited(saturation)) };
        let known = usize::try_from(batch).ok().and_then(|batch| self.rates.get(batch - 1).copied().flatten());
        let lone = known.map_or_else(
            || {
                // Of a wait that may last no longer than a batch little is known but that it must end.
                let room = (budget_s - server.first_s()) / server.first_s();
                let alone = SHARE_UNKNOWN * saturation * room.clamp(0.0, 1.0);
                Lone { saturation, alone, computed: false, assumed: true }
            },
            |Answer { rate, computed }| Lone { saturation, alone: rate.min(saturation), computed, assumed: false },
        );
        Some(lone)
    }

    /// What one of `pods` carries with batches up to `batch`; `None` if the curve does not reach that far.
    pub(crate) fn pod(&self, batch: u32, pods: u32) -> Option<PodRate> {
        self.lone(batch).map(|lone| self.among(lone, pods))
    }

    /// What sharing a queue among the sessions of `pods` leaves of the reserve that a lone session needs.
    fn reserve(&self, pods: u32) -> f64 {
        let sharers = match self.routing {
            Routing::Random => self.workers,
            Routing::RoundRobin | Routing::LeastOutstanding => self.workers * f64::from(pods.max(1)),
        };
        libm::pow(sharers, POOLING)
    }

    /// Share of its saturation rate that latency allows one of `pods`, the ceiling left out (control.md §4, `f_n`).
    fn pooled(&self, lone: Lone, pods: u32) -> f64 {
        if lone.alone <= 0.0 {
            // A lone image that misses the target is not helped by sharing.
            0.0
        } else if !lone.assumed {
            1.0 - (1.0 - lone.alone / lone.saturation) * self.reserve(pods)
        } else {
            lone.alone / lone.saturation
        }
    }

    /// A lone session's rates as those of one of `pods`.
    fn among(&self, lone: Lone, pods: u32) -> PodRate {
        self.below(self.utilization_max, lone, pods)
    }

    fn below(&self, utilization_max: f64, lone: Lone, pods: u32) -> PodRate {
        let pooled = self.pooled(lone, pods);
        let (share, binding) =
            if pooled > utilization_max { (utilization_max, Binding::Utilization) } else { (pooled, Binding::Latency) };
        let saturation = self.workers * lone.saturation;
        // A model that was too careful is no reason to plan a queue without end.
        let by_queue = saturation * (self.kappa * share).min(utilization_max);
        let rate = PodRate { saturation, carried: by_queue, share, binding, computed: lone.computed };
        match self.cpu_rate.filter(|(rate, _)| *rate < by_queue) {
            Some((carried, binding)) => PodRate { carried, binding, ..rate },
            None => rate,
        }
    }

    /// Whether the decoders of `pods` keep up with `rate` images/s: their time is not the engine's.
    pub(crate) fn decodes(&self, pods: u32, rate: f64) -> bool {
        let decoders = self.cpu_rate.filter(|(_, binding)| *binding == Binding::Decoders);
        decoders.is_none_or(|(most, _)| rate <= most * f64::from(pods.max(1)))
    }

    /// What one pod carries when latency is no limit, images/s: for loads that cannot meet their target anyway. Their images
    /// wait even where the service sheds (design.md §3, Overload), so that nothing ends a queue at the target.
    pub(crate) fn pod_regardless_of_latency(&self, batch: u32) -> Option<PodRate> {
        self.unlimited(batch, self.queueing_max)
    }

    /// The most that one pod is planned for, whatever the latency, images/s.
    pub(crate) fn planned_at_most(&self, batch: u32) -> Option<f64> {
        self.unlimited(batch, self.utilization_max).map(|pod| pod.carried)
    }

    fn unlimited(&self, batch: u32, utilization_max: f64) -> Option<PodRate> {
        let saturation = self.server(batch)?.saturation();
        Some(self.below(utilization_max, Lone::unlimited(saturation), 1))
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

    /// The latencies of waiting and running when each of `pods` gets its share of `rate` images/s; `None` beyond
    /// saturation. `delay_s`: how long the first image of a batch waits for others.
    pub(crate) fn latencies(&self, batch: u32, pods: u32, rate: f64, delay_s: f64) -> Option<Latencies> {
        let lone = self.lone(batch)?;
        let server = Server { times: self.times.mean.get(..self.server(batch)?.times.len())?, ..self.server(batch)? };
        let each = rate / f64::from(pods.max(1)) / self.workers;
        // Sharing acts like a lower load on a lone pod (control.md §4: the chain's p95 at (λ/c)·f₁/f_c).
        let pooled = self.pooled(lone, pods);
        let relief = if pooled > 0.0 { (lone.alone / lone.saturation / pooled).min(1.0) } else { 1.0 };
        // An idle pod answers as one that is asked once in a thousand batches.
        let least = 1e-3 * lone.saturation;
        Server { delay_s, ..server }.latencies((each * relief / self.kappa).max(least))
    }

    /// What a lone pod carries within the API target, images/s; `None` without one, or while it is not computed.
    pub(crate) fn alone(&self, batch: u32) -> Option<f64> {
        let lone = self.lone(batch).filter(|lone| lone.computed && self.budget_s.is_some())?;
        Some(self.workers * lone.alone)
    }

    /// The latencies of a lone pod at `rate` images/s; `None` beyond saturation.
    pub(crate) fn lone_latencies(&self, batch: u32, rate: f64) -> Option<Latencies> {
        self.server(batch)?.latencies(rate / self.workers)
    }

    /// The least limit of waiting and running under which each of `pods` carries its share of `rate` images/s,
    /// seconds; `None` if no limit helps, or if `fuel` does not suffice, which then is 0.
    ///
    /// The pooling law solved for a lone pod's share: f₁ = 1 - (1 - `f_n`)·n^.85, and the chain's quantile at f₁·μ.
    pub(crate) fn limit_for(&self, batch: u32, pods: u32, rate: f64, fuel: &mut u32) -> Option<f64> {
        let key = self.key(batch)?;
        let server = Server::new(&self.careful_s, batch, key.dispersion())?;
        let saturation = server.saturation();
        let each = rate / f64::from(pods.max(1)) / self.workers / self.kappa;
        let share = each / saturation;
        let by_cpu = self.cpu_rate.is_none_or(|(most, _)| each * self.workers * self.kappa <= most);
        // A correction upwards raises no ceiling.
        if share * self.kappa.max(1.0) > self.utilization_max || !by_cpu {
            return None;
        }
        let Some(left) = fuel.checked_sub(server.cost()) else {
            *fuel = 0;
            return None;
        };
        *fuel = left;
        // A search of the table ends a little below the greatest rate: what is offered must pass it.
        let alone = (1.0 - (1.0 - share) / self.reserve(pods)).max(0.0) + LIMIT_MARGIN;
        let slow = key.goal().slow;
        let latencies = server.latencies(alone * saturation).filter(Latencies::true_to_life)?;
        Some(latencies.quantile(1.0 - slow))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Overload, Targets};
    use crate::units::{Ratio, Seconds};

    #[test]
    fn shedding_lends_the_ceiling_what_the_target_lets_go() {
        let ceiling = |accelerator, overload, percent: Option<u32>| {
            let target = |percent| LatencyTarget { threshold: Seconds::millis(200), quantile: Ratio::percent(percent) };
            let targets = Targets { api: percent.map(target), ..Targets::default() };
            let overload = Overload { policy: overload, ..Overload::default() };
            utilization_max(&Policy { targets, overload, accelerator, ..Policy::default() })
        };
        let (queue, shed) = (OverloadPolicy::Queue, OverloadPolicy::Shed);
        for (accelerator, overload, percent, expected) in [
            (Accelerator::Gpu, queue, Some(95), 0.96),
            (Accelerator::Gpu, shed, Some(99), 0.96 / 0.99),
            (Accelerator::Gpu, shed, Some(95), 1.0),
            (Accelerator::Cpu, shed, Some(95), 0.88 / 0.95),
            (Accelerator::Cpu, shed, None, 0.88),
        ] {
            let found = ceiling(accelerator, overload, percent);
            assert!((found - expected).abs() < 1e-9, "{accelerator:?} {overload:?} {percent:?}: {found}");
        }
    }
}
