//! What a planning call costs where everything is dear: 200 pods, every target, batches of 32 sizes whose times move,
//! ghosts of all cache sizes, and tables that are cold at every tenth call.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use yolo_planner::histogram::Histogram;
use yolo_planner::observation::{BatchCount, GhostSize, Ghosts, PerSecond, Phase, Pod, Sample, Signal};
use yolo_planner::policy::{Accelerator, Knob, Policy, Provision, ThroughputTarget};
use yolo_planner::units::{BatchSize, Bytes, Count, Rate, Ratio, Replicas, Seconds, SecondsSquared, Timestamp};
use yolo_planner::{Knobs, Observation, State, plan};

/// Pods, and calls under each of the API targets: one out of reach, one near and one far.
const PODS: u32 = 200;
const CALLS: u32 = 150;
const API_MILLIS: [u32; 3] = [30, 60, 200];
/// Calls between two of which the state is what a new leader starts from.
const COLD_EVERY: u32 = 10;
/// Images that a pod gets between two looks, and how far that swings.
const IMAGES: f64 = 1250.0;
const SWING: f64 = 0.3;
const TICK_S: f64 = 5.0;
/// Any time will do.
const START_S: f64 = 1_800_057_600.0;

/// CPU time of the hundredth part of the calls that takes longest, seconds.
pub fn cost_s_p99() -> f64 {
    let mut took: Vec<Duration> = API_MILLIS.into_iter().flat_map(calls).collect();
    took.sort_unstable();
    took.get(took.len() * 99 / 100).map_or(0.0, Duration::as_secs_f64)
}

fn calls(api_millis: u32) -> Vec<Duration> {
    let policy = policy(api_millis);
    let (mut knobs, mut state, mut took) = (Knobs::initial(&policy), State::default(), Vec::new());
    for call in 1..=CALLS {
        let now = timestamp(START_S + TICK_S * f64::from(call));
        let seen = look(knobs, now, libm::sin(f64::from(call)));
        if call % COLD_EVERY == 0 {
            state = State::seeded(&state.learned());
        }
        let start = spent();
        let decision = plan(&policy, &seen, &state, now);
        took.push(spent().saturating_sub(start));
        (state, knobs) = (decision.state, decision.desired);
    }
    took
}

fn policy(api_millis: u32) -> Policy {
    let mut policy = Policy {
        replicas: Knob::auto(Replicas::new(PODS), Replicas::new(PODS + PODS / 10)),
        batch: Knob::auto(BatchSize::ONE, BatchSize::MAX),
        accelerator: Accelerator::Gpu,
        ..Policy::default()
    };
    policy.targets.gpu = Some(Ratio::percent(70));
    policy.targets.throughput = Some(ThroughputTarget { rate: Rate::whole(40_000), provision: Provision::OnDemand });
    if let Some(api) = &mut policy.targets.api {
        api.threshold = Seconds::millis(api_millis);
    }
    policy
}

/// The fleet at `swing` of its load, -1..=1.
fn look(knobs: Knobs, now: Timestamp, swing: f64) -> Observation {
    let mut seen = Observation::new(knobs);
    let sample = sample(now, swing);
    let since = timestamp(START_S - 30.0);
    seen.pods = (0..u64::from(knobs.replicas.get()))
        .map(|id| Pod {
            id,
            class: 0,
            phase: Phase::Ready,
            created: since,
            ready: Some(since),
            oom_killed: None,
            sample: Signal::Live { value: sample.clone(), age: Seconds::ZERO },
        })
        .collect();
    seen.applied_pods = knobs.replicas.get();
    seen
}

fn sample(now: Timestamp, swing: f64) -> Sample {
    let images = (IMAGES * (1.0 + SWING * swing)) as u64;
    let calls = |size: BatchSize| {
        let each_s = (1.0 + 0.1 * swing) * (0.006 + 0.0022 * f64::from(size.get()));
        let squared = SecondsSquared::try_from(9.0 * each_s * each_s).unwrap_or_default();
        BatchCount { size, count: 9, seconds: seconds(9.0 * each_s), seconds_squared: squared }
    };
    let sizes = (1..=BatchSize::MAX.get()).filter_map(|size| BatchSize::try_from(size).ok());
    let ghosts = (0..8_u32).map(|step| GhostSize { bytes: Bytes::mebi(4 << step), hits: 30 * u64::from(step) });
    Sample {
        until: now,
        span: seconds(TICK_S),
        arrivals: images,
        done: images,
        batches: sizes.map(calls).collect(),
        per_second: PerSecond { n: 5, sum: images, sum_sq: images * images / 5 },
        api: latencies(12),
        inference: latencies(12),
        overhead: latencies(4),
        ghosts: Ghosts { refs: 300, expected: Count::whole(300), sizes: ghosts.collect() },
        cpu_seconds: Seconds::whole(1),
        rss: Bytes::mebi(150),
        workers: 1,
        ..Sample::default()
    }
}

/// Forty answers that took `millis`.
fn latencies(millis: u32) -> Histogram {
    let edges: Vec<u32> = (1..=24).map(|edge| 2 * edge).collect();
    let mut cumulative: Vec<u64> = edges.iter().map(|edge| if *edge >= millis { 40 } else { 0 }).collect();
    cumulative.push(40);
    Histogram::from_cumulative(edges.into_iter().map(Seconds::millis).collect(), &cumulative).unwrap_or_default()
}

/// CPU time of this thread: other work on the machine is no cost of a call.
fn spent() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

fn seconds(value: f64) -> Seconds {
    Seconds::try_from(value).unwrap_or_default()
}

fn timestamp(value: f64) -> Timestamp {
    Timestamp::try_from(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The figure is 5 ms in a release build; a test build beside other tests takes longer.
    #[test]
    fn the_dearest_calls_take_milliseconds_and_every_target_is_judged() {
        let spent_s = cost_s_p99();
        assert!((1e-5..0.1).contains(&spent_s), "{spent_s} s");
        let policy = policy(60);
        let decision = plan(
            &policy,
            &look(Knobs::initial(&policy), timestamp(START_S), 0.0),
            &State::default(),
            timestamp(START_S),
        );
        assert_eq!(decision.explanation.targets.len(), 6);
        assert!(decision.desired.replicas.get() >= PODS, "{:?}", decision.desired);
    }
}
