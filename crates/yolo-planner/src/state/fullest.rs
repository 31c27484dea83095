//! The size of the state when everything that it can hold is held.

use serde::Serialize;

use super::State;
use crate::histogram::Histogram;
use crate::observation::{
    BatchCount, CacheCounts, CurvePoint, GhostSize, Ghosts, Knobs, Observation, PerSecond, Phase, Pod, Sample, Signal,
};
use crate::outcome::Open;
use crate::policy::Policy;
use crate::table::Key;
use crate::units::{BatchSize, Bytes, Cores, Count, Replicas, Seconds, SecondsSquared, Timestamp, real};

/// Largest state (control.md §2).
const BYTES_MAX: usize = 16 * 1024;

/// The contract's latency histograms have 37 edges.
fn histogram(tick: u32) -> Histogram {
    let edges = (1..=37).map(|edge| Seconds::try_from(0.000_5 * 1.35_f64.powi(edge)).unwrap()).collect();
    let counts: Vec<u64> = (1..=38).map(|count| u64::from(count * (1000 + tick))).collect();
    Histogram::from_cumulative(edges, &counts).unwrap()
}

fn sample(tick: u32, until: f64) -> Sample {
    let batch = |size: u32| BatchSize::try_from(size).unwrap();
    let figure = |value: f64| Seconds::try_from(value * (1.0 + f64::from(tick) / 777.7)).unwrap();
    Sample {
        until: Timestamp::try_from(until).unwrap(),
        span: Seconds::try_from(5.012_345).unwrap(),
        arrivals: 12_345 + u64::from(tick * 37 % 1000),
        done: 12_345,
        per_second: PerSecond { n: 5, sum: 12_345, sum_sq: 123_456_789 },
        batches: (1..=32)
            .map(|size| BatchCount {
                size: batch(size),
                count: 1234 + u64::from(tick),
                seconds: figure(12.345_678),
                seconds_squared: SecondsSquared::try_from(0.123_456_7).unwrap(),
            })
            .collect(),
        curve: (1..=32).map(|size| CurvePoint { size: batch(size), mean: figure(0.01), p95: figure(0.012) }).collect(),
        ghosts: Ghosts {
            refs: 12_345,
            expected: Count::try_from(12_345.678).unwrap(),
            sizes: (1..=8_u32)
                .map(|size| GhostSize { bytes: Bytes::mebi(1 << size), hits: 1000 * u64::from(size) })
                .collect(),
        },
        cache: CacheCounts { hits: 1234, misses: 10_000, evictions: 7 },
        api: histogram(tick),
        inference: histogram(tick),
        overhead: histogram(tick),
        read: histogram(tick),
        rss: Bytes::mebi(1234 + tick),
        cpu_seconds: figure(4.321),
        cpu_quota: Cores::whole(4),
        cpu_periods: 50,
        workers: 4,
        inflight: 123,
        queued: 45,
        ..Sample::default()
    }
}

/// Everything that the state can hold, held: 150 pods with all batch sizes, a fifth of them slow,
/// starts, changes, needs, cells, a week of arrivals.
#[test]
fn a_state_at_its_fullest_fits() {
    let policy =
        Policy { replicas: crate::policy::Knob::auto(Replicas::new(1), Replicas::new(500)), ..Policy::default() };
    let (mut state, mut knobs, mut open) = (State::default(), Knobs::initial(&policy), None);
    for tick in 0..260_u32 {
        let now_s = 1_764_000_000.123_456 + 5.0 * f64::from(tick);
        let now = Timestamp::try_from(now_s).unwrap();
        let mut seen = Observation::new(knobs);
        for id in 0..150_u64 {
            let until = now_s - 0.001 * f64::from(tick) - 0.002 * real(id);
            let age_s = if id == u64::from(tick) { 31.234_567 } else { 1e6 };
            seen.pods.push(Pod {
                id,
                class: 0,
                phase: Phase::Ready,
                created: Timestamp::try_from(now_s - age_s).unwrap(),
                ready: Timestamp::try_from(now_s - age_s / 10.0).ok(),
                oom_killed: (tick > 200).then_some(now),
                sample: Signal::Live { value: sample(tick + 600 * u32::from(id % 5 == 0), until), age: Seconds::ZERO },
            });
        }
        let decision = crate::plan(&policy, &seen, &state, now);
        open =
            decision.record.map(|record| Open { record, level: 1234.5, overloaded: true, revision: u64::MAX }).or(open);
        (state, knobs) = (decision.state, decision.desired);
    }
    state.forecasts.fill();
    state.control.fill(1_764_000_000.123_456);
    let (times, mut fuel) = (state.curve.times().mean, u32::MAX);
    for millis in 20..200 {
        state.table.refresh(&[Key::new(1, 1.0, f64::from(millis) / 1e3, (0.05, 1.0))], &times, &mut fuel);
    }
    state.table.refresh(&[Key::new(32, 8.0, 1.0, (0.05, 1.0))], &times, &mut 0);
    state.open = open;
    assert!(state.open.is_some(), "a change waits for its verdict");
    let bytes = postcard::to_allocvec(&state).unwrap();
    let sizes = [
        ("forecasts", size(&state.forecasts)),
        ("window", size(&state.window)),
        ("curve", size(&state.curve)),
        ("table", size(&state.table)),
        ("diagnosis", size(&state.diagnosis)),
        ("control", size(&state.control)),
        ("verdicts", size(&state.verdicts)),
        ("open", size(&state.open)),
    ];
    println!("state at its fullest: {} bytes; parts alone: {sizes:?}", bytes.len());
    assert!(bytes.len() <= BYTES_MAX, "{} bytes: {sizes:?}", bytes.len());
    assert!(postcard::from_bytes::<State>(&bytes).unwrap() == state, "it reads back as it was written");
}

fn size(part: &impl Serialize) -> usize {
    postcard::to_allocvec(part).unwrap().len()
}
