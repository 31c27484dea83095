//! Laws that hold for any policy, any observation and any state (control.md §12).

use crate::plain::Plain;
use crate::support::{at, batch, histogram, seconds};
use proptest::prelude::*;
use yolo_planner::observation::{
    BatchCount, CacheCounts, Knobs, NoData, Observation, Phase, Pod, Sample, Signal, Stage, Stages,
};
use yolo_planner::policy::{
    Accelerator, Amount, Knob, Mode, Pace, Paces, Policy, Provision, Routing, Select, ThroughputTarget,
};
use yolo_planner::units::{Bytes, Cores, Rate, Ratio, Replicas, Seconds, SecondsSquared};
use yolo_planner::{Action, Decision, State, plan};

const START_S: f64 = 1_700_000_000.0;
/// Largest state (control.md §2).
const STATE_BYTES_MAX: usize = 16 * 1024;

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![3 => Just(Mode::Auto), 1 => Just(Mode::Recommend), 1 => Just(Mode::Off)]
}

/// A number of seconds that a person might write, or should not have.
fn odd_seconds() -> impl Strategy<Value = Seconds> {
    prop_oneof![0.0..1.0_f64, Just(0.0), Just(1e-9), Just(3600.0), Just(1e300)].prop_map(seconds)
}

/// Limits of one direction, as many as the custom resource takes.
fn paces() -> impl Strategy<Value = Paces> {
    let most = prop_oneof![(0..1001_u32).prop_map(Amount::Pods), (0..1001_u32).prop_map(Amount::Percent)];
    let period = prop_oneof![odd_seconds(), (1.0..1800.0_f64).prop_map(seconds)];
    let pace = (most, period).prop_map(|(most, period)| Pace { most, period });
    let select = prop_oneof![Just(Select::Fastest), Just(Select::Slowest), Just(Select::Disabled)];
    (proptest::collection::vec(pace, 0..=4), select).prop_map(|(limits, select)| Paces { limits, select })
}

fn policy() -> impl Strategy<Value = Policy> {
    let replicas = (mode(), 0..20_u32, 0..200_u32);
    let sizes = (mode(), 1..=32_u32, 1..=32_u32);
    let cache = (mode(), 0..64_u32, 0..512_u32);
    let targets = (odd_seconds(), odd_seconds(), 0.0..2.0_f64, odd_seconds(), any::<bool>());
    let odd = (odd_seconds(), odd_seconds(), odd_seconds(), 0..300_u32, 0.0..2.0_f64, any::<bool>());
    let paces = (proptest::option::of(paces()), proptest::option::of(paces()));
    let rest = (any::<bool>(), 0..3_u8, 0.0..2.0_f64, paces, proptest::option::of(odd_seconds()));
    (replicas, sizes, cache, targets, rest, odd).prop_map(|(replicas, sizes, cache, targets, rest, odd)| {
        let mut policy = Policy {
            replicas: Knob { mode: replicas.0, min: Replicas::new(replicas.1), max: Replicas::new(replicas.2) },
            batch: Knob { mode: sizes.0, min: batch(sizes.1), max: batch(sizes.2) },
            cache: Knob { mode: cache.0, min: Bytes::mebi(cache.1), max: Bytes::mebi(cache.2) },
            ..Policy::default()
        };
        policy.targets.api.as_mut().unwrap().threshold = targets.0;
        policy.targets.inference.as_mut().unwrap().threshold = targets.1;
        policy.targets.api.as_mut().unwrap().quantile = Ratio::try_from(targets.2).unwrap();
        policy.targets.window = targets.3;
        let provision = if targets.4 { Provision::Always } else { Provision::OnDemand };
        policy.targets.throughput = Some(ThroughputTarget { rate: Rate::whole(10), provision });
        policy.accelerator = if rest.0 { Accelerator::Gpu } else { Accelerator::Cpu };
        policy.routing = [Routing::Random, Routing::RoundRobin, Routing::LeastOutstanding][rest.1 as usize];
        policy.max_down = Ratio::try_from(rest.2).unwrap();
        (policy.paces_up, policy.paces_down) = rest.3;
        policy.stabilization = rest.4;
        (policy.tick, policy.scrape, policy.complete_within) = (odd.0, odd.1, odd.2);
        policy.schedule_floor = Replicas::new(odd.3);
        policy.targets.budget = Ratio::try_from(odd.4).unwrap();
        policy.experts.trend = odd.5;
        policy
    })
}

/// A count as a server exports it, or as a broken one does.
fn odd_count() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..500_u64, 1 => Just(u64::MAX), 1 => Just(1 << 40)]
}

prop_compose! {
    fn sample()(
        arrivals in odd_count(), done in odd_count(), shed in 0..5_u64, queued in odd_count(),
        calls in proptest::collection::vec((1..=32_u32, odd_count(), 0.0..0.2_f64), 0..4),
        latencies in proptest::collection::vec(0.0..6.0_f64, 0..8),
        span in prop_oneof![8 => Just(5.0), 1 => Just(0.0), 1 => Just(1e-300), 1 => Just(1e300)],
        cpu in prop_oneof![0.0..5.0_f64, Just(1e300)], hits in odd_count(), misses in odd_count(),
        rss in odd_count(), workers in prop_oneof![Just(1_u32), Just(u32::MAX)],
        decode in (odd_count(), prop_oneof![8 => 0.0..5.0_f64, 1 => Just(1e308)], prop_oneof![Just(1_u32), Just(u32::MAX)]),
        loads in (odd_count(), prop_oneof![8 => 0.0..5.0_f64, 1 => Just(1e308)]),
    ) -> Sample {
        Sample {
            stages: Stages {
                decode: Stage { seconds: seconds(decode.1), count: decode.0, workers: decode.2, queued: decode.2 },
                ..Stages::default()
            },
            model_loads: loads.0, load_seconds: seconds(loads.1),
            span: seconds(span), arrivals, done, shed, queued, workers,
            batches: calls.into_iter().map(|(size, count, each)| BatchCount {
                size: batch(size), count,
                seconds: seconds(count as f64 * each),
                seconds_squared: SecondsSquared::try_from(count as f64 * each * each).unwrap(),
            }).collect(),
            api: histogram(&latencies), inference: histogram(&latencies), overhead: histogram(&latencies),
            cpu_seconds: seconds(cpu), cpu_quota: Cores::whole(1), rss: Bytes::new(rss),
            cache: CacheCounts { hits, misses, evictions: 0 },
            ..Sample::default()
        }
    }
}

/// A pod whose sample ends `late_s` before the look.
fn pod() -> impl Strategy<Value = (Pod, f64)> {
    let phase = prop_oneof![
        1 => Just(Phase::Pending), 1 => Just(Phase::Unschedulable), 6 => Just(Phase::Ready), 1 => Just(Phase::Draining)
    ];
    let late = prop_oneof![6 => Just(0.0), 1 => Just(100.0), 1 => Just(-86_400.0)];
    (0..8_u64, phase, sample(), 0..6_u8, late).prop_map(|(id, phase, sample, signal, late_s)| {
        let sample = match signal {
            0 => Signal::NoData(NoData::CounterReset),
            1 => Signal::Stale { last: sample, age: Seconds::whole(60) },
            _ => Signal::Live { value: sample, age: Seconds::ZERO },
        };
        let created = at(START_S - 100.0);
        (Pod { id, class: 0, phase, created, ready: Some(at(START_S - 90.0)), oom_killed: None, sample }, late_s)
    })
}

#[derive(Debug, Clone)]
struct Look {
    pods: Vec<(Pod, f64)>,
    replicas: u32,
    after_s: f64,
    rolling: bool,
}

fn look() -> impl Strategy<Value = Look> {
    let after = prop_oneof![8 => Just(5.0), 1 => Just(1.0), 1 => Just(0.0), 1 => Just(-30.0), 1 => Just(86_400.0)];
    (proptest::collection::vec(pod(), 0..6), 0..30_u32, after, any::<bool>())
        .prop_map(|(pods, replicas, after_s, rolling)| Look { pods, replicas, after_s, rolling })
}

fn observation(look: &Look, now_s: f64, policy: &Policy) -> Observation {
    let current = Knobs { replicas: Replicas::new(look.replicas), ..Knobs::initial(policy) };
    let mut observation = Observation::new(current);
    observation.rolling = look.rolling;
    for (pod, late_s) in &look.pods {
        let mut pod = pod.clone();
        if let Signal::Live { value, .. } = &mut pod.sample {
            value.until = at((now_s - late_s).max(0.0));
        }
        observation.pods.push(pod);
    }
    observation
}

/// Every number in a JSON value is finite (serde turns others into null, which no field of State allows).
fn state_of(decision: &Decision) -> State {
    let value = serde_json::to_value(&decision.state).unwrap();
    serde_json::from_value(value).expect("a state reads back what it wrote, so it holds no NaN")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Laws 1, 2, 3 and 7: total, bounded, the same for any order of pods, whatever the source sends.
    #[test]
    fn any_sequence_gives_bounded_decisions(policy in policy(), looks in proptest::collection::vec(look(), 1..24)) {
        let (mut state, mut now_s) = (State::default(), START_S);
        for look in &looks {
            now_s = (now_s + look.after_s).max(0.0);
            let seen = observation(look, now_s, &policy);
            let decision = plan(&policy, &seen, &state, at(now_s));
            let mut mirrored = seen.clone();
            mirrored.pods.reverse();
            if distinct(&seen) {
                prop_assert_eq!(&decision, &plan(&policy, &mirrored, &state, at(now_s)));
            }
            bounded(&policy, &seen.current, &decision)?;
            prop_assert_eq!(&state_of(&decision), &decision.state);
            prop_assert!(serde_json::to_string(&decision.state).unwrap().len() <= STATE_BYTES_MAX);
            // NaN and infinities have no JSON: an explanation with one would not read back.
            let text = serde_json::to_value(&decision.explanation).unwrap();
            prop_assert!(serde_json::from_value::<yolo_planner::Explanation>(text).is_ok());
            state = decision.state;
        }
    }

    /// Law 5: without usable samples replicas never fall, from any state.
    #[test]
    fn blindness_never_lowers_replicas(policy in policy(), looks in proptest::collection::vec(look(), 1..12), replicas in 0..30_u32) {
        let (mut state, mut now_s) = (State::default(), START_S);
        for look in &looks {
            now_s = (now_s + look.after_s.max(1.0)).max(0.0);
            state = plan(&policy, &observation(look, now_s, &policy), &state, at(now_s)).state;
        }
        let blind = Look { pods: Vec::new(), replicas, after_s: 5.0, rolling: false };
        for _ in 0..40 {
            now_s += 5.0;
            let decision = plan(&policy, &observation(&blind, now_s, &policy), &state, at(now_s));
            prop_assert!(decision.desired.replicas >= bound(&policy, replicas), "{:?}", decision.action);
            state = decision.state;
        }
    }

    /// Law 7: a sample that no pod can have, or of another day, is no sample: the decision is the one without it.
    #[test]
    fn an_impossible_sample_is_none(pods in 2..8_u32, spoilt in 0..8_usize, how in 0..8_u8, seed in 0..1000_u64) {
        let mut fleet = Plain::new(Policy { replicas: Knob::auto(Replicas::new(1), Replicas::new(40)), ..Policy::default() }, 0.016, seed);
        fleet.knobs.replicas = Replicas::new(pods);
        fleet.run(|_| 30.0 * f64::from(pods), 10);
        let (mut seen, now) = (fleet.look(30.0 * f64::from(pods)), at(fleet.now_s));
        let at_pod = spoilt % seen.pods.len();
        let Signal::Live { value, .. } = &mut seen.pods[at_pod].sample else { unreachable!("the fleet answers") };
        match how {
            0 => value.arrivals = u64::MAX,
            1 => value.span = Seconds::ZERO,
            2 => value.span = seconds(1e300),
            3 => value.cpu_seconds = seconds(1e300),
            4 => value.rss = Bytes::new(u64::MAX),
            5 => value.batches[0].seconds = seconds(1e300),
            6 => value.until = at(fleet.now_s + 86_400.0),
            _ => value.until = at(fleet.now_s - 86_400.0),
        }
        let with = plan(&fleet.policy, &seen, &fleet.state, now);
        seen.pods[at_pod].sample = Signal::NoData(NoData::NotANumber);
        prop_assert_eq!(with, plan(&fleet.policy, &seen, &fleet.state, now));
    }

    /// Law 4, in load: at the same batch and cache more arrivals never need fewer pods.
    #[test]
    fn more_load_never_needs_fewer_pods(rate in 1.0..400.0_f64, more in 1.0..2.0_f64, each_ms in 2.0..60.0_f64) {
        let mut policy = Policy { replicas: Knob::auto(Replicas::new(1), Replicas::new(500)), ..Policy::default() };
        policy.batch = Knob::auto(batch(1), batch(1));
        let pods = |rate: f64| steady(&policy, rate, each_ms / 1e3, 12).desired.replicas;
        prop_assert!(pods(rate * more) >= pods(rate));
    }

    /// Law 9: its own result applied, at the same load, is settled.
    #[test]
    fn its_own_result_is_settled(rate in 1.0..400.0_f64, each_ms in 2.0..60.0_f64) {
        let policy = Policy { replicas: Knob::auto(Replicas::new(1), Replicas::new(500)), ..Policy::default() };
        let decision = steady(&policy, rate, each_ms / 1e3, 40);
        prop_assert!(matches!(decision.action, Action::Hold { .. }), "{:?}: {}", decision.action, decision.explanation.reason);
    }
}

/// Whether no two pods share an id: two that do are no fleet, and their order may matter.
fn distinct(seen: &Observation) -> bool {
    let mut ids: Vec<u64> = seen.pods.iter().map(|pod| pod.id).collect();
    ids.sort_unstable();
    ids.windows(2).all(|pair| pair[0] != pair[1])
}

fn bound(policy: &Policy, replicas: u32) -> Replicas {
    let current = Replicas::new(replicas);
    if policy.replicas.mode == Mode::Auto { policy.replicas.clamp(current) } else { current }
}

fn bounded(policy: &Policy, current: &Knobs, decision: &Decision) -> Result<(), TestCaseError> {
    let desired = decision.desired;
    match policy.replicas.mode {
        Mode::Auto => prop_assert_eq!(policy.replicas.clamp(desired.replicas), desired.replicas),
        Mode::Off | Mode::Recommend => prop_assert_eq!(current.replicas, desired.replicas),
    }
    match policy.batch.mode {
        Mode::Auto => prop_assert_eq!(policy.batch.clamp(desired.max_batch_size), desired.max_batch_size),
        Mode::Off | Mode::Recommend => prop_assert_eq!(current.max_batch_size, desired.max_batch_size),
    }
    match policy.cache.mode {
        Mode::Auto => prop_assert_eq!(policy.cache.clamp(desired.cache_bytes), desired.cache_bytes),
        Mode::Off | Mode::Recommend => prop_assert_eq!(current.cache_bytes, desired.cache_bytes),
    }
    if matches!(decision.action, Action::Hold { .. }) {
        prop_assert!(decision.record.is_none());
    }
    Ok(())
}

/// The last decision after `ticks` ticks of regular arrivals whose images take `each_s`, own results applied.
fn steady(policy: &Policy, rate: f64, each_s: f64, ticks: u32) -> Decision {
    let (mut state, mut knobs) = (State::default(), Knobs::initial(policy));
    let mut last = None;
    for tick in 1..=ticks {
        let now_s = START_S + 5.0 * f64::from(tick);
        let mut seen = Observation::new(knobs);
        for id in 0..knobs.replicas.get() {
            let images = rate * 5.0 / f64::from(knobs.replicas.get());
            let calls = BatchCount {
                size: batch(1),
                count: images.round() as u64,
                seconds: seconds(images.round() * each_s),
                seconds_squared: SecondsSquared::try_from(images.round() * each_s * each_s).unwrap(),
            };
            let sample = Sample {
                until: at(now_s),
                span: Seconds::whole(5),
                arrivals: images.round() as u64,
                done: images.round() as u64,
                batches: vec![calls],
                workers: 1,
                ..Sample::default()
            };
            seen.pods.push(Pod {
                id: u64::from(id),
                class: 0,
                phase: Phase::Ready,
                created: at(START_S - 30.0),
                ready: Some(at(START_S - 20.0)),
                oom_killed: None,
                sample: Signal::Live { value: sample, age: Seconds::ZERO },
            });
        }
        let decision = plan(policy, &seen, &state, at(now_s));
        state = decision.state.clone();
        knobs = decision.desired;
        last = Some(decision);
    }
    last.unwrap()
}
