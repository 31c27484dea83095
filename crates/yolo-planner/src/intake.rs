//! Takes the samples into the state, each once, and says how much of the fleet was seen.

use crate::forecast;
use crate::observation::{Observation, Phase, Pod, Sample, Signal};
use crate::policy::{Accelerator, Policy};
use crate::state::State;
use crate::units::{Bytes, Timestamp, ceil_u32, real};

/// Shortest and longest useful sample, seconds: below, rates are noise; above, they are history.
const SPAN_S: (f64, f64) = (0.1, 600.0);
/// Beyond these a figure is a broken source, not a pod: images (or calls) in a sample, seconds in a sample, bytes.
const COUNT_MAX: u64 = 1_000_000_000;
const SECONDS_MAX: f64 = 1e7;
const BYTES_MAX: u64 = 1 << 50;
/// Share of the ready pods that must be seen for a decision (control.md §2).
pub(crate) const COVERAGE_MIN: f64 = 0.6;
/// Span, in scrape intervals, up to which no look was missed.
const REGULAR_SCRAPES: f64 = 1.5;
/// Sample age, in scrape intervals, from which a pod counts as silent (control.md §2).
const STALE_SCRAPES: f64 = 3.0;

/// Start-up times after which a pod on its way is no capacity to count on (control.md §8).
const STUCK_STARTS: f64 = 3.0;

/// How much of the fleet was seen.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    /// Pods that serve.
    pub(crate) ready: u32,
    /// Of those, pods with a fresh sample, or so new that there cannot be one.
    pub(crate) live: u32,
    /// Of those, pods with a fresh sample.
    pub(crate) sampled: u32,
    /// Pods with a fresh sample, draining ones too.
    sources: u32,
    /// Pods that serve unseen and are taken to get what the others get.
    silent: u32,
    /// Images refused or expired for overload in the newest samples.
    pub(crate) shed: f64,
    /// Images of tasks that wait. With a shared store each pod tells the whole service's, without one there is one pod.
    pub(crate) tasks: f64,
    /// Pods that have been on their way to their first readiness for longer than [`STUCK_STARTS`] start-up times.
    pub(crate) stuck: u32,
    /// Images that wait for an engine now.
    pub(crate) queued: f64,
    /// Parallel engine sessions of a pod.
    pub(crate) workers: f64,
    /// CPU quota of a pod, cores; 0: none.
    pub(crate) quota_cores: f64,
    /// Largest working set of a pod now.
    pub(crate) rss: Bytes,
    /// Ready pods that have served long enough for their cache to be warm.
    pub(crate) warm: u32,
    /// Whether a series tick ended with this call.
    pub(crate) ticked: bool,
    /// Whether a window of the diagnosis ended with this call.
    pub(crate) minute_ended: bool,
    /// No node has room for a pod.
    pub(crate) unschedulable: bool,
}

impl Seen {
    /// Share of the ready pods that were seen, 0..=1.
    pub(crate) fn coverage(&self) -> f64 {
        f64::from(self.live) / f64::from(self.ready).max(1.0)
    }
}

/// What a pod is made of, as last seen.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Shape {
    workers: f64,
    quota_cores: f64,
}

/// Arrivals since the last tick.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Tally {
    /// Pods' rates summed over the looks since the last tick.
    rate_sum: f64,
    /// How often the fleet was looked at; a look that finds half of the pods' samples new counts half.
    looks: f64,
}

/// Takes what is new in `observation` into `state`; ends a tick when one is due.
pub(crate) fn take(policy: &Policy, observation: &Observation, state: &mut State, now: Timestamp) -> Seen {
    let window_s = policy.window_s();
    state.window.advance(now.get(), window_s);
    state.startup.add(&observation.pods, now);
    let mut fresh: Vec<(&Pod, &Sample)> = Vec::new();
    for pod in &observation.pods {
        if let Some(sample) = usable(policy, pod, now).filter(|sample| state.is_new(pod.id, sample.until)) {
            fresh.push((pod, sample));
        }
    }
    // Sums of floating-point numbers depend on their order; a decision must not depend on the pods' order.
    fresh.sort_by_key(|(pod, _)| pod.id);
    // Of all that serve, seen at this look or not: one missed scrape must not bring an old class back.
    let ready = observation.pods.iter().filter(|pod| pod.phase == Phase::Ready);
    if let Some(pod) = ready.clone().max_by(|a, b| a.created.get().total_cmp(&b.created.get()).then(a.id.cmp(&b.id))) {
        state.curve.succeed(pod.class);
        state.memory.succeed(pod.class);
        if ready.clone().all(|other| other.class == pod.class) {
            state.curve.bury();
        }
    }
    let look_s = look_s(policy, &fresh);
    for (pod, sample) in &fresh {
        // A pod that came in the middle of the interval counts for its share of it; one that missed a look does not
        // count twice.
        state.tally.rate_sum += real(sample.arrivals) / sample.span.get().max(look_s);
        learn(policy, (pod.class, sample), state);
        state.mark(pod.id, sample.until);
    }
    let minute_ended = state.diagnosis.watch.look(&fresh, observation, now);
    let mut seen = Seen { minute_ended, ..survey(policy, observation, state, now) };
    state.arrivals.add_bins(fresh.iter().map(|(_, sample)| sample.per_second), f64::from(seen.sources));
    // Pods too young for a sample end no blindness.
    let blind = f64::from(seen.sampled) < COVERAGE_MIN * f64::from(seen.ready);
    state.blind_since = blind.then(|| state.blind_since.unwrap_or(now));
    if seen.sampled > 0 {
        state.shape = Shape { workers: seen.workers, quota_cores: seen.quota_cores };
    } else {
        // Pods that are out of sight are what they were.
        (seen.workers, seen.quota_cores) = (state.shape.workers.max(1.0), state.shape.quota_cores);
    }
    state.tally.looks += real(fresh.len() as u64) / f64::from(seen.sources).max(1.0);
    seen.ticked = end_tick(policy, state, &seen, now);
    seen
}

/// The pod's sample, if it is fresh, plausible and of a pod that serves.
fn usable<'a>(policy: &Policy, pod: &'a Pod, now: Timestamp) -> Option<&'a Sample> {
    let Signal::Live { value, age } = &pod.sample else { return None };
    let serving = matches!(pod.phase, Phase::Ready | Phase::Draining);
    let age_s = age.get().max(now.since(value.until));
    let fresh = age_s <= STALE_SCRAPES * policy.scrape_s() && now.since(value.until) >= -policy.scrape_s();
    (serving && fresh && plausible(value)).then_some(value)
}

/// Whether a sample's figures can be a pod's.
fn plausible(sample: &Sample) -> bool {
    let counts = [
        sample.arrivals,
        sample.done,
        sample.shed,
        sample.errors,
        sample.queued,
        sample.inflight,
        sample.task_queue,
        sample.cpu_periods,
        sample.cpu_throttled,
        sample.cache.hits,
        sample.cache.misses,
        sample.ghosts.refs,
        sample.per_second.sum,
        sample.inference.count(),
        sample.api.count(),
        sample.overhead.count(),
        sample.read.count(),
        sample.model_loads,
        sample.cache.evictions,
    ];
    let stages = sample.stages.all().iter().all(|stage| stage.seconds.get() <= SECONDS_MAX && stage.count <= COUNT_MAX);
    let calls = sample.batches.iter().all(|batch| {
        batch.count <= COUNT_MAX
            && batch.seconds.get() <= SECONDS_MAX
            && batch.seconds_squared.get() <= SECONDS_MAX * SECONDS_MAX
    });
    let curve = sample.curve.iter().all(|point| point.mean.get() <= SECONDS_MAX);
    let ghosts = sample.ghosts.sizes.iter().all(|size| size.hits <= COUNT_MAX && size.bytes.get() <= BYTES_MAX);
    (SPAN_S.0..=SPAN_S.1).contains(&sample.span.get())
        && counts.iter().all(|count| *count <= COUNT_MAX)
        && sample.ghosts.expected.get() <= real(COUNT_MAX)
        && sample.cpu_seconds.get() <= SECONDS_MAX
        && sample.load_seconds.get() <= SECONDS_MAX
        && stages
        && sample.cpu_quota.get() <= 1e6
        && sample.rss.get() <= BYTES_MAX
        && sample.cache_bytes.get() <= BYTES_MAX
        && calls
        && curve
        && ghosts
}

/// The time that a look covers: the longest span, those of pods that missed a look left out; the median where all
/// are longer than the scrape interval.
fn look_s(policy: &Policy, fresh: &[(&Pod, &Sample)]) -> f64 {
    let mut spans: Vec<f64> = fresh.iter().map(|(_, sample)| sample.span.get()).collect();
    spans.sort_by(f64::total_cmp);
    let regular = spans.iter().copied().rfind(|span| *span <= REGULAR_SCRAPES * policy.scrape_s());
    regular.or_else(|| spans.get(spans.len() / 2).copied()).unwrap_or(SPAN_S.0)
}

/// One sample into the estimators.
fn learn(policy: &Policy, (class, sample): (u32, &Sample), state: &mut State) {
    let mut engine_images = 0.0;
    let mut largest = 0;
    state.curve.time_at_idle(class, &sample.curve);
    state.curve.add(class, &sample.batches);
    for batch in &sample.batches {
        engine_images += real(batch.count) * f64::from(batch.size.get());
        largest = if batch.count > 0 { largest.max(batch.size.get()) } else { largest };
    }
    state.hits.add(&sample.ghosts, sample.cache);
    state.cpu.add(sample, engine_images);
    state.stages.add(&sample.stages);
    state.memory.add(class, sample, largest);
    state.window.add(sample);
    state.burn.add(policy, sample);
}

/// Counts pods and reads gauges; a gauge is read again at each look, unlike an increase.
fn survey(policy: &Policy, observation: &Observation, state: &State, now: Timestamp) -> Seen {
    let mut seen = Seen { workers: 1.0, ..Seen::default() };
    let start_s = state.startup.expected_s(now);
    for pod in &observation.pods {
        seen.unschedulable |= pod.phase == Phase::Unschedulable;
        let sample = usable(policy, pod, now);
        seen.sources += u32::from(sample.is_some());
        let waiting = matches!(pod.phase, Phase::Pending | Phase::Unschedulable) && state.startup.never_ready(pod);
        seen.stuck += u32::from(waiting && now.since(pod.created) > STUCK_STARTS * start_s);
        if pod.phase != Phase::Ready {
            continue;
        }
        seen.ready += 1;
        let age_s = pod.ready.map_or(f64::INFINITY, |ready| now.since(ready));
        seen.warm += u32::from(age_s >= start_s);
        if let Some(sample) = sample {
            seen.live += 1;
            seen.sampled += 1;
            seen.queued += real(sample.queued);
            seen.shed += real(sample.shed);
            seen.tasks = seen.tasks.max(real(sample.task_queue));
            seen.rss = seen.rss.max(sample.rss);
            seen.quota_cores = seen.quota_cores.max(sample.cpu_quota.get());
            if policy.accelerator == Accelerator::Cpu {
                seen.workers = seen.workers.max(f64::from(sample.workers.min(1024)));
            }
        } else if age_s < STALE_SCRAPES * policy.scrape_s() {
            // Two looks make a sample: a pod younger than that is not silent.
            seen.live += 1;
        } else if state.blind_since.is_none_or(|since| pod.created < since) {
            // One that was ordered blindly and does not report either may be dead like those that it came for: to count
            // it would order more, and those still more.
            seen.silent += 1;
        }
    }
    seen
}

/// Ends the tick if one is due and something was seen in it.
fn end_tick(policy: &Policy, state: &mut State, seen: &Seen, now: Timestamp) -> bool {
    let tick_s = policy.tick_s();
    let tick_at_s = (now.get() / tick_s).floor() * tick_s;
    if state.tick_at_s.is_some_and(|last_s| tick_at_s <= last_s) || state.tally.looks < COVERAGE_MIN {
        return false;
    }
    let passed = state.tick_at_s.map_or(1, |last_s| ceil_u32(((tick_at_s - last_s) / tick_s).floor()).max(1));
    // Silent pods are taken to get what the others get.
    let silent = f64::from(seen.silent) / f64::from(seen.sampled).max(1.0);
    let rate = state.tally.rate_sum / state.tally.looks * (1.0 + silent);
    state.arrivals.tick(rate, passed, tick_s);
    let horizon_s = forecast::horizon_s(policy, state.startup.expected_s(now));
    let let_go = if crate::capacity::sheds(policy) { 1.0 - policy.quantile() } else { 0.0 };
    let (experts, window_s) = (policy.experts, policy.window_s());
    let step = forecast::Step { rate, ticks: passed, tick_s, horizon_s, experts, window_s, let_go };
    state.forecasts.tick(&state.arrivals, step);
    state.curve.tick();
    state.hits.tick();
    state.cpu.tick();
    state.stages.tick();
    state.tally = Tally::default();
    state.tick_at_s = Some(tick_at_s);
    state.last_live = Some(now);
    true
}
