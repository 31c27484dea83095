//! The cheapest setting that carries the planned load within the targets: batch first (free), then cache (memory),
//! then replicas (money).

use crate::capacity::{Binding, Model, PODS_MAX, PodRate};
use crate::explain::{Candidate, Constraint, ConstraintKind};
use crate::observation::Knobs;
use crate::policy::{LatencyTarget, Mode, Policy, Provision};
use crate::state::State;
use crate::units::{BatchSize, Bytes, Rate, Ratio, Replicas, ceil_u32, real};

/// Batch sizes that are tried, beside the range's ends and the present one (control.md §4).
const BATCHES: [u32; 8] = [1, 2, 4, 8, 12, 16, 24, 32];
/// A smaller batch that carries this share of the best is as good and answers sooner.
const BATCH_AS_GOOD: f64 = 0.98;
/// The present batch stays while it carries this share of the best: between this and [`BATCH_AS_GOOD`] noise decides.
const BATCH_GOOD_ENOUGH: f64 = 0.95;
/// Gain in hit ratio below which a larger cache is not worth a change (control.md §9, `CacheTooSmall`).
pub(crate) const HITS_GAIN_MIN: f64 = 0.02;
/// Loss in hit ratio up to which a smaller cache is as good; below the gain, so that noise cannot swing it.
const HITS_LOSS_MAX: f64 = 0.01;
/// Share of the memory target that batch and cache may fill (control.md §6).
pub(crate) const MEMORY_SHARE: f64 = 0.9;

/// Rates that the choice must carry, images/s.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Arrivals that pods are ordered for, the backlog included.
    pub(crate) plan: f64,
    /// Share of them that the cache surely answers.
    pub(crate) hit_ratio: f64,
}

/// A setting and why it is one.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) batch: BatchSize,
    pub(crate) cache: Bytes,
    /// Least replicas that carry the load, within the range.
    pub(crate) replicas: u32,
    /// The same without the range's upper end; `None` if no number of pods does.
    pub(crate) needed: Option<u32>,
    /// What one of `replicas` pods carries.
    pub(crate) pod: PodRate,
    /// Hit ratio of `cache`, as the ghosts see it.
    pub(crate) cache_hits: f64,
    pub(crate) constraints: Vec<Constraint>,
    /// The constraint that cannot be met, if any.
    pub(crate) infeasible: Option<ConstraintKind>,
}

/// `policy` with each knob that the planner does not move fixed where it is.
pub(crate) fn pinned(policy: &Policy, current: &Knobs) -> Policy {
    let mut pinned = policy.clone();
    if policy.replicas.mode != Mode::Auto {
        (pinned.replicas.min, pinned.replicas.max) = (current.replicas, current.replicas);
    }
    if policy.batch.mode != Mode::Auto {
        (pinned.batch.min, pinned.batch.max) = (current.max_batch_size, current.max_batch_size);
    }
    if policy.cache.mode != Mode::Auto {
        (pinned.cache.min, pinned.cache.max) = (current.cache_bytes, current.cache_bytes);
    }
    pinned
}

/// The cheapest setting within `policy`; `None` while the service curve is not known.
pub(crate) fn choose(policy: &Policy, model: &Model, state: &State, current: &Knobs, load: Load) -> Option<Choice> {
    let rate = required_rate(policy, load);
    let (batch, batch_infeasible) = choose_batch(policy, model, state, (current, rate))?;
    // A size not seen yet is taken to carry what the largest known one does.
    let size = batch.get().min(model.times.largest());
    let slow = batch_infeasible == Some(ConstraintKind::InferenceLatency);
    let needed = if slow { None } else { model.pods_for(size, rate) };
    let fallback = || {
        // Pods do not help against a lone image that is too slow: as many as carry the load, never the maximum for
        // nothing (control.md §6).
        let each = model.pod_regardless_of_latency(size).map_or(0.0, |pod| pod.carried);
        (1..=PODS_MAX).contains(&ceil_u32(rate / each)).then(|| ceil_u32(rate / each))
    };
    let wanted = needed.or_else(fallback).unwrap_or(1).max(policy.schedule_floor.get());
    let replicas = policy.replicas.clamp(Replicas::new(wanted)).get();
    let pod = model
        .pod(size, replicas)
        .filter(|pod| pod.carried > 0.0 && !slow)
        .or_else(|| model.pod_regardless_of_latency(size))?;
    let (cache, cache_hits) = choose_cache(policy, state, current, size, load.plan / pod.carried.max(1e-9));
    let constraints = constraints(policy, model, state, Setting { batch: size, cache, replicas, rate, pod });
    let infeasible = batch_infeasible.or_else(|| unmet(policy, model, size, needed));
    Some(Choice { batch, cache, replicas, needed, pod, cache_hits, constraints, infeasible })
}

/// What the pods must carry: arrivals that miss the cache, and the throughput target where it is always held.
pub(crate) fn required_rate(policy: &Policy, load: Load) -> f64 {
    let offered = load.plan * (1.0 - load.hit_ratio);
    let always = policy.targets.throughput.filter(|target| target.provision == Provision::Always);
    offered.max(always.map_or(0.0, |target| target.rate.get()))
}

/// The constraint that even the best setting breaks.
fn unmet(policy: &Policy, model: &Model, batch: u32, needed: Option<u32>) -> Option<ConstraintKind> {
    let max = policy.replicas.max.max(policy.replicas.min).get();
    let Some(needed) = needed else { return Some(ConstraintKind::ApiLatency) };
    if needed > max {
        return Some(ConstraintKind::ReplicasMax);
    }
    let reachable = model.pod(batch, max)?.carried * f64::from(max);
    let target = policy.targets.throughput.map_or(0.0, |target| target.rate.get());
    (reachable < target).then_some(ConstraintKind::Throughput)
}

/// Batch sizes that the range allows of those that are tried, rising.
fn allowed_sizes(policy: &Policy, now: BatchSize) -> Vec<u32> {
    let knob = policy.batch;
    let now = knob.clamp(now).get();
    let mut sizes: Vec<u32> = BATCHES.into_iter().chain([knob.min.get(), knob.max.get(), now]).collect();
    sizes.retain(|size| knob.clamp(BatchSize::try_from(*size).unwrap_or_default()).get() == *size);
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// Upper bound of a batch's time at the inference target's percentile, seconds.
pub(crate) fn upper_s(policy: &Policy, model: &Model, size: u32) -> Option<f64> {
    model.times.upper(size, policy.targets.inference.map_or(0.95, LatencyTarget::at))
}

/// Batch sizes that are tried of which the time is known, rising.
pub(crate) fn known_sizes(policy: &Policy, model: &Model, now: BatchSize) -> Vec<u32> {
    let mut sizes = allowed_sizes(policy, now);
    sizes.retain(|size| *size <= model.times.largest());
    sizes
}

/// Batch sizes that a decision may ask the chain for, the present one first.
pub(crate) fn sizes(policy: &Policy, model: &Model, current: &Knobs) -> Vec<u32> {
    let largest = model.times.largest();
    let now = current.max_batch_size.get().min(largest);
    let mut sizes = vec![now];
    sizes.extend(
        allowed_sizes(policy, current.max_batch_size)
            .into_iter()
            .map(|size| size.min(largest))
            .filter(|size| *size != now),
    );
    sizes.dedup();
    sizes
}

/// The batch that carries most within the targets; the smallest of those that are as good. Where that one cannot carry
/// `rate`, another that can: what as many pods as there are now carry best is not what the most pods do, whose queues
/// are shared by more.
fn choose_batch(
    policy: &Policy,
    model: &Model,
    state: &State,
    (current, rate): (&Knobs, f64),
) -> Option<(BatchSize, Option<ConstraintKind>)> {
    let knob = policy.batch;
    let now = knob.clamp(current.max_batch_size).get();
    let sizes = allowed_sizes(policy, current.max_batch_size);
    let known = |size: &u32| *size <= model.times.largest();
    let least = BatchSize::try_from(*sizes.first()?).ok()?;
    let limit_s = policy.targets.inference.map_or(f64::INFINITY, LatencyTarget::limit_s);
    let quick = |size: u32| upper_s(policy, model, size).is_some_and(|upper| upper <= limit_s);
    let small = |size: u32| fits(policy, state, size, policy.cache.min);
    if !sizes.iter().any(known) {
        // Nothing measured at any allowed size: what is known of smaller ones says nothing about this range.
        return None;
    }
    let pods: Vec<(u32, PodRate)> = sizes
        .iter()
        .copied()
        .filter(|size| known(size) && quick(*size) && small(*size))
        .filter_map(|size| Some((size, model.pod(size, current.replicas.get())?)))
        .collect();
    if pods.iter().any(|(size, _)| *size == now) && pods.iter().any(|(_, pod)| !pod.computed) {
        // What the others carry is not computed yet.
        return BatchSize::try_from(now).ok().map(|size| (size, None));
    }
    let computed: Vec<u32> = pods.iter().filter(|(_, pod)| pod.computed).map(|(size, _)| *size).collect();
    let allowed: Vec<(u32, f64)> = pods.into_iter().map(|(size, pod)| (size, pod.carried)).collect();
    let Some(best) = allowed.iter().map(|(_, carried)| *carried).max_by(f64::total_cmp) else {
        let kind = if small(least.get()) { ConstraintKind::InferenceLatency } else { ConstraintKind::Memory };
        return Some((least, Some(kind)));
    };
    let as_good = |share: f64| allowed.iter().find(|(_, carried)| *carried >= share * best).map(|(size, _)| *size);
    let smallest = as_good(BATCH_AS_GOOD)?;
    let stays = allowed.iter().any(|(size, carried)| *size == now && *carried >= BATCH_GOOD_ENOUGH * best);
    // Where the gain had not ended at the largest known size, a larger one may well be better still.
    let largest = sizes.iter().copied().rfind(known);
    let may_gain = now > model.times.largest() && largest == Some(smallest);
    let chosen = if may_gain || (stays && now < smallest) { now } else { smallest };
    let chosen = able(policy, model, (chosen, &computed), rate);
    BatchSize::try_from(chosen).ok().map(|size| (size, None))
}

/// `chosen`, or where that cannot carry `rate` within the range of pods the one of `others` that needs the fewest pods
/// to.
fn able(policy: &Policy, model: &Model, (chosen, others): (u32, &[u32]), rate: f64) -> u32 {
    let pods_for = |size: u32| {
        let size = size.min(model.times.largest());
        let needed = model.pods_for(size, rate);
        needed.filter(|_| unmet(policy, model, size, needed).is_none())
    };
    if pods_for(chosen).is_some() {
        return chosen;
    }
    others.iter().filter_map(|size| Some((pods_for(*size)?, *size))).min().map_or(chosen, |(_, size)| size)
}

/// Whether batch and cache fit into memory; true while memory is not known.
pub(crate) fn fits(policy: &Policy, state: &State, batch: u32, cache: Bytes) -> bool {
    match (memory_max(policy), state.memory.bytes(batch, cache)) {
        (Some(limit), Some(bytes)) => bytes <= limit,
        _ => true,
    }
}

/// Bytes that a pod may use: 90 % of the smaller of target and limit.
pub(crate) fn memory_max(policy: &Policy) -> Option<f64> {
    let limit = Some(policy.memory_limit).filter(|limit| limit.get() > 0);
    limit.into_iter().chain(policy.targets.memory).min().map(|least| MEMORY_SHARE * real(least.get()))
}

/// The cache worth its memory, and its hit ratio. `load_pods`: pods' worth of work that arrives.
///
/// A hit saves its share of that work; a cached GiB has its price. Of the sizes within two points of the best, the
/// smallest: memory that answers nothing more is waste.
fn choose_cache(policy: &Policy, state: &State, current: &Knobs, batch: u32, load_pods: f64) -> (Bytes, f64) {
    let knob = policy.cache;
    let now = knob.clamp(current.cache_bytes);
    let curve = state.hits.curve();
    let lookup_share = state.stages.lookup_share();
    // What a look-up costs more than hits save is no gain.
    let ratio = |bytes: Bytes| (hits_of(&curve, bytes) - lookup_share).max(0.0);
    if curve.is_empty() {
        return (now, 0.0);
    }
    let price = policy.cost.cache_gib.get() / real(Bytes::mebi(1024).get()) * f64::from(current.replicas.get());
    let worth = |bytes: Bytes| ratio(bytes) * load_pods * policy.cost.pod.get() - price * real(bytes.get());
    let mut sizes: Vec<Bytes> = curve.iter().map(|(bytes, _)| *bytes).chain([knob.min, now]).collect();
    sizes.retain(|bytes| knob.clamp(*bytes) == *bytes && (*bytes == knob.min || fits(policy, state, batch, *bytes)));
    sizes.sort_unstable();
    let Some(best) = sizes.iter().copied().max_by(|a, b| worth(*a).total_cmp(&worth(*b))) else {
        return (now, ratio(now));
    };
    let smallest = sizes.iter().copied().find(|bytes| ratio(*bytes) >= ratio(best) - HITS_LOSS_MAX).unwrap_or(best);
    let moves = if smallest > now {
        ratio(smallest) - ratio(now) > HITS_GAIN_MIN
    } else {
        // What the cache does not answer it need not hold; what no longer fits must go.
        ratio(now) - ratio(smallest) < HITS_LOSS_MAX || !fits(policy, state, batch, now) || worth(now) < worth(smallest)
    };
    let chosen = if moves { smallest } else { now };
    (chosen, hits_of(&curve, chosen))
}

/// Hit ratio of a cache of `bytes`, as the ghosts see it.
fn hits_of(curve: &[(Bytes, f64)], bytes: Bytes) -> f64 {
    curve.iter().filter(|(size, _)| *size <= bytes).map(|(_, ratio)| *ratio).next_back().unwrap_or(0.0)
}

/// Most settings that an explanation compares.
const CANDIDATES_SHOWN: usize = 3;

/// `desired` and the cheapest other settings of batch and cache, by what they cost in pods (control.md §6): the pods that
/// they need, the cache's memory, and the start-ups on the way there, spread over the time that pods are held.
///
/// `switching`: start-up time over that time.
pub(crate) fn best3(
    policy: &Policy,
    model: &Model,
    state: &State,
    (now, desired): (&Knobs, &Knobs),
    (plan, switching): (f64, f64),
) -> Vec<Candidate> {
    let curve = state.hits.curve();
    let gib = real(Bytes::mebi(1024).get());
    let cost = |knobs: &Knobs| {
        let pods = f64::from(knobs.replicas.get());
        let moved = f64::from(knobs.replicas.get().abs_diff(now.replicas.get()));
        let memory = policy.cost.cache_gib.get() * pods * real(knobs.cache_bytes.get()) / gib;
        policy.cost.pod.get() * (pods + policy.cost.switch.get() * moved * switching) + memory
    };
    let mut others = Vec::new();
    let limit_s = policy.targets.inference.map_or(f64::INFINITY, LatencyTarget::limit_s);
    let caches: Vec<Bytes> = curve.iter().map(|(bytes, _)| *bytes).chain([policy.cache.min]).collect();
    for size in known_sizes(policy, model, desired.max_batch_size) {
        let quick = upper_s(policy, model, size).is_some_and(|upper| upper <= limit_s);
        let Some(batch) = BatchSize::try_from(size).ok().filter(|_| quick) else { continue };
        for cache in caches.iter().copied().filter(|bytes| policy.cache.clamp(*bytes) == *bytes) {
            let trusted = hits_of(&curve, cache).min(policy.cache_credit.get());
            let load = Load { plan, hit_ratio: trusted };
            let pods = model.pods_for(size, required_rate(policy, load)).unwrap_or(PODS_MAX);
            let enough = policy.replicas.clamp(Replicas::new(pods)).get() >= pods;
            if enough && fits(policy, state, size, cache) {
                let replicas = policy.replicas.clamp(Replicas::new(pods));
                others.push(Knobs { replicas, max_batch_size: batch, cache_bytes: cache, ..*desired });
            }
        }
    }
    others.retain(|knobs| knobs != desired);
    others.sort_by(|a, b| {
        let size = |knobs: &Knobs| (knobs.max_batch_size, knobs.cache_bytes);
        cost(a).total_cmp(&cost(b)).then_with(|| size(a).cmp(&size(b)))
    });
    others.dedup();
    let all = std::iter::once(*desired).chain(others).take(CANDIDATES_SHOWN);
    all.map(|knobs| Candidate { cost: cost(&knobs), knobs }).collect()
}

/// A setting under test.
#[derive(Clone, Copy)]
struct Setting {
    batch: u32,
    cache: Bytes,
    replicas: u32,
    rate: f64,
    pod: PodRate,
}

/// What the setting had to satisfy, with values and limits.
fn constraints(policy: &Policy, model: &Model, state: &State, setting: Setting) -> Vec<Constraint> {
    let Setting { batch, cache, replicas, rate, pod } = setting;
    let carried = pod.carried * f64::from(replicas);
    let (min, max) = (policy.replicas.min.get(), policy.replicas.max.get());
    let constraint = |kind, value: f64, limit: f64, binding| Constraint { kind, value, limit, binding };
    let mut all = vec![constraint(ConstraintKind::Capacity, carried, rate, replicas > min && replicas < max)];
    if let Some((target, upper)) = policy.targets.inference.and_then(|t| Some((t, model.times.upper(batch, t.at())?))) {
        let limit_s = target.limit_s();
        all.push(constraint(ConstraintKind::InferenceLatency, upper, limit_s, upper > limit_s));
    }
    if let Some((target, time)) = policy.targets.api.zip(model.times.mean(1)) {
        let used_s = target.limit_s() - model.budget_s.unwrap_or(0.0) + time;
        let latency_binds = pod.binding == Binding::Latency;
        all.push(constraint(ConstraintKind::ApiLatency, used_s, target.limit_s(), latency_binds));
    }
    if let Some((limit, bytes)) = memory_max(policy).zip(state.memory.bytes(batch, cache)) {
        all.push(constraint(ConstraintKind::Memory, bytes, limit, bytes > limit));
    }
    if pod.binding == Binding::CpuQuota {
        all.push(constraint(ConstraintKind::CpuQuota, rate / f64::from(replicas.max(1)), pod.carried, true));
    }
    let pods = f64::from(replicas);
    all.push(constraint(ConstraintKind::ReplicasMin, pods, f64::from(min), replicas == min));
    all.push(constraint(ConstraintKind::ReplicasMax, pods, f64::from(max), replicas == max && carried < rate));
    all
}

/// A rate as a quantity; what cannot be one is none.
pub(crate) fn rate(value: f64) -> Rate {
    Rate::try_from(value).unwrap_or_default()
}

/// A ratio as a quantity; what cannot be one is none.
pub(crate) fn ratio(value: f64) -> Ratio {
    Ratio::try_from(value).unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::capacity;
    use crate::explain::{Conflict, Relaxation};
    use crate::intake::Seen;
    use crate::policy::{Accelerator, OverloadPolicy, Routing, Targets};
    use crate::relax;
    use crate::state::{Learned, LearnedCurve, MemoryModel, SizeMean};
    use crate::units::Seconds;

    /// A service at rest: what the optimiser looks at.
    #[derive(Debug, Clone)]
    pub(crate) struct Scene {
        pub(crate) policy: Policy,
        pub(crate) learned: Learned,
        pub(crate) current: Knobs,
        pub(crate) load: Load,
    }

    /// A service whose batches take `time_s` and at which `rate` images/s arrive; defaults besides.
    pub(crate) fn scene(accelerator: Accelerator, time_s: impl Fn(f64) -> f64, rate: f64) -> Scene {
        let size = |size: u32| SizeMean {
            size: BatchSize::try_from(size).unwrap(),
            mean: Seconds::try_from(time_s(f64::from(size))).unwrap(),
            ..SizeMean::default()
        };
        let sizes = [1, 2, 3, 4, 6, 8, 10, 12, 14, 16].into_iter().map(size).collect();
        let curve = LearnedCurve { sizes, ..LearnedCurve::default() };
        let latency = |millis| Some(LatencyTarget { threshold: Seconds::millis(millis), quantile: ratio(0.95) });
        let targets = Targets { inference: latency(150), api: latency(400), ..Targets::default() };
        let policy = Policy { targets, accelerator, routing: Routing::LeastOutstanding, ..Policy::default() };
        let current = Knobs::initial(&policy);
        let learned = Learned { curve: Some(curve), ..Learned::default() };
        Scene { policy, learned, current, load: Load { plan: rate, hit_ratio: 0.0 } }
    }

    impl Scene {
        pub(crate) fn learn_memory(&mut self, base_mebi: u32, image_mebi: u32) {
            let (base, per_image) = (Bytes::mebi(base_mebi), Bytes::mebi(image_mebi));
            self.learned.memory = Some(MemoryModel { base, per_image });
        }

        /// The model with all that the chain has to say.
        pub(crate) fn model(&self) -> (State, Model) {
            let (mut state, mut seen) = (State::seeded(&self.learned), Seen::default());
            seen.workers = 1.0;
            for _ in 0..200 {
                capacity::refresh(&self.policy, &mut state, (&seen, self.load.hit_ratio), &self.current);
            }
            let model = Model::new(&self.policy, &state, &seen, self.load.hit_ratio);
            (state, model)
        }

        pub(crate) fn choice(&self) -> Choice {
            let (state, model) = self.model();
            choose(&self.policy, &model, &state, &self.current, self.load).unwrap()
        }

        pub(crate) fn relaxations(&self) -> Vec<Relaxation> {
            let (state, model) = self.model();
            let choice = choose(&self.policy, &model, &state, &self.current, self.load).unwrap();
            relax::relaxations(&self.policy, &model, &state, &choice, required_rate(&self.policy, self.load))
        }

        pub(crate) fn conflict(&self) -> Option<Conflict> {
            let (_, model) = self.model();
            relax::conflict(&self.policy, &model, &self.choice())
        }
    }

    fn with_sizes(curve: &[(u32, u32)], now: u32) -> Choice {
        let size = |&(size, millis): &(u32, u32)| SizeMean {
            size: BatchSize::try_from(size).unwrap(),
            mean: Seconds::millis(millis),
            ..SizeMean::default()
        };
        let mut scene = scene(Accelerator::Cpu, |size| size, 15.0);
        let curve = LearnedCurve { sizes: curve.iter().map(size).collect(), ..LearnedCurve::default() };
        scene.learned.curve = Some(curve);
        scene.current.max_batch_size = BatchSize::try_from(now).unwrap();
        scene.choice()
    }

    #[test]
    fn a_batch_that_was_never_run_is_left_for_one_that_is_quick_enough() {
        // The server never formed the 4 that it may: two images take too long already.
        let choice = with_sizes(&[(1, 110), (2, 250)], 4);
        assert_eq!(choice.batch.get(), 1);
        assert!(choice.replicas > 1, "{choice:?}");
    }

    #[test]
    fn a_batch_that_was_never_run_is_not_given_up_while_the_known_ones_still_gain() {
        let choice = with_sizes(&[(1, 40), (2, 44)], 4);
        // Beyond the largest size that was timed nothing is known: it is kept, or the next one tried, never given up.
        assert!(choice.batch.get() >= 4, "{choice:?}");
        assert!(choice.pod.carried > 0.0);
    }

    #[test]
    fn batch_goes_up_where_it_pays_before_pods_do_and_no_farther() {
        let gpu = scene(Accelerator::Gpu, |size| 0.006 + 0.0022 * size, 300.0);
        assert_eq!((gpu.choice().batch.get(), gpu.choice().replicas), (16, 1));
        let cpu = scene(Accelerator::Cpu, |size| 0.005 + 0.028 * size, 15.0);
        assert!(cpu.choice().batch.get() <= 4, "at b = 2 a CPU gains all there is: {:?}", cpu.choice());
    }

    #[test]
    fn a_target_out_of_reach_is_planned_for_a_queue_whether_or_not_the_service_sheds() {
        let pods = |overload| {
            let mut scene = scene(Accelerator::Gpu, |size| 0.05 * size, 970.0);
            (scene.policy.overload.policy, scene.policy.replicas.max) = (overload, Replicas::new(1000));
            scene.policy.targets.api.as_mut().unwrap().threshold = Seconds::millis(20);
            assert_eq!(scene.choice().infeasible, Some(ConstraintKind::ApiLatency));
            scene.choice().replicas
        };
        assert_eq!(pods(OverloadPolicy::Shed), pods(OverloadPolicy::Queue));
    }

    /// Law 4: with fixed batch and memory, more load, burstier arrivals, slower batches or tighter targets never need
    /// fewer pods.
    #[test]
    fn pods_are_monotone() {
        let pods = |rate: f64, factor: f64, dispersion: f64, api_ms: u32| {
            let mut scene = scene(Accelerator::Gpu, |size| factor * (0.010 + 0.006 * size), rate);
            let size = BatchSize::try_from(8).unwrap();
            (scene.policy.batch.min, scene.policy.batch.max) = (size, size);
            scene.policy.replicas.max = Replicas::new(1000);
            scene.policy.targets.api.as_mut().unwrap().threshold = Seconds::millis(api_ms);
            scene.learned.dispersion = Some(ratio(dispersion));
            scene.choice().replicas
        };
        for (rate, factor) in [(50.0, 1.0), (400.0, 1.0), (3000.0, 0.5)] {
            let base = pods(rate, factor, 1.0, 200);
            assert!(pods(1.2 * rate, factor, 1.0, 200) >= base);
            assert!(pods(rate, 1.3 * factor, 1.0, 200) >= base);
            assert!(pods(rate, factor, 4.0, 200) >= base);
            assert!(pods(rate, factor, 1.0, 120) >= base);
        }
        assert!(pods(100.0, 1.0, 8.0, 90) > pods(100.0, 1.0, 1.0, 400), "bursts against a tight target cost pods");
    }

    #[test]
    fn the_explanation_compares_the_choice_with_the_cheapest_others() {
        let scene = scene(Accelerator::Gpu, |size| 0.006 + 0.0022 * size, 600.0);
        let (state, model) = scene.model();
        let choice = scene.choice();
        let desired = Knobs { replicas: Replicas::new(choice.replicas), max_batch_size: choice.batch, ..scene.current };
        let found = best3(&scene.policy, &model, &state, (&scene.current, &desired), (600.0, 0.5));
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].knobs, desired);
        let switched = f64::from(choice.replicas) + 0.5 * f64::from(choice.replicas - 1);
        assert!((found[0].cost - switched).abs() < 1e-9, "pods and their start-ups: {found:?}");
        assert!(found[1..].iter().all(|other| other.cost >= found[0].cost - 1e-9), "{found:?}");
    }

    /// Law 10: twice the time everywhere at half the rate is the same choice.
    #[test]
    fn time_scales_out() {
        let of = |factor: f64| {
            let mut scene = scene(Accelerator::Gpu, |size| factor * (0.006 + 0.0022 * size), 700.0 / factor);
            for target in [&mut scene.policy.targets.api, &mut scene.policy.targets.inference] {
                let target = target.as_mut().unwrap();
                target.threshold = Seconds::try_from(factor * target.threshold.get()).unwrap();
            }
            let choice = scene.choice();
            (choice.batch, choice.replicas)
        };
        assert_eq!(of(1.0), of(2.0));
        assert_eq!(of(1.0), of(8.0));
    }
}
