//! Laws over long stretches of time: no scale-down without sight, settled where nothing changes, nothing but the
//! arguments (control.md §12, laws 1, 5, 6, 9 and 12).

use crate::plain::{Plain, Random};
use crate::support::at;
use proptest::prelude::*;
use yolo_planner::observation::{NoData, Observation, Signal};
use yolo_planner::policy::{Amount, Knob, Pace, Paces, Policy, Routing, Select};
use yolo_planner::units::{Replicas, Seconds};
use yolo_planner::{Action, Decision, HoldReason, State, plan};

fn policy() -> Policy {
    Policy {
        replicas: Knob::auto(Replicas::new(1), Replicas::new(40)),
        routing: Routing::LeastOutstanding,
        ..Policy::default()
    }
}

/// Law 9: its own result applied, the same load: settled, and the same words for it.
#[test]
fn its_own_result_is_settled() {
    for rate in [3.0, 40.0, 111.0, 333.0] {
        let mut fleet = Plain::new(policy(), 0.016, 9);
        fleet.run(|_| rate, 400);
        let last = fleet.run(|_| rate, 1).pop().unwrap();
        let settled = matches!(last.action, Action::Hold { reason: HoldReason::Settled | HoldReason::Stabilizing });
        assert!(settled, "{rate}/s: {:?}: {}", last.action, last.explanation.reason);
    }
}

/// Law 6: zeros that are seen reach the minimum, whatever the fleet was.
#[test]
fn seen_zeros_reach_the_minimum() {
    let mut fleet = Plain::new(policy(), 0.016, 10);
    fleet.run(|_| 400.0, 100);
    assert!(fleet.knobs.replicas.get() > 6);
    let last = fleet.run(|_| 0.0, 200).pop().unwrap();
    assert_eq!(last.desired.replicas, Replicas::new(1), "{}", last.explanation.reason);
}

/// Changes of the replicas' direction within 300 s of the change before (control.md §10, reversals).
fn reversals(decisions: &[Decision]) -> usize {
    let pods: Vec<u32> = decisions.iter().map(|decision| decision.desired.replicas.get()).collect();
    let moves: Vec<(usize, bool)> =
        (1..pods.len()).filter(|at| pods[*at] != pods[at - 1]).map(|at| (at, pods[at] > pods[at - 1])).collect();
    moves.windows(2).filter(|two| two[0].1 != two[1].1 && two[1].0 - two[0].0 < 60).count()
}

/// Law 8: an hour to settle, two hours to watch.
#[test]
fn poisson_arrivals_of_a_constant_rate_never_reverse() {
    for (seed, rate) in [(1, 50.0), (2, 130.0), (3, 290.0), (4, 410.0)] {
        let mut fleet = Plain::new(policy(), 0.016, seed);
        fleet.run(|_| rate, 720);
        let watched = fleet.run(|_| rate, 1440);
        assert_eq!(reversals(&watched), 0, "{rate}/s");
    }
}

/// Law 8: a swing of 5 % every ten minutes turns the pods once an hour at most, from its first hour on. (Of 48 rates
/// between 50/s and 790/s six turn them three to six times: peaks that need a pod for minutes, half an hour apart.)
#[test]
fn a_swing_of_five_percent_reverses_once_an_hour_at_most() {
    let swing = |tick: u32| 1.0 + 0.05 * (f64::from(tick) * std::f64::consts::TAU / 120.0).sin();
    for (seed, rate) in (1..).zip([60.0, 100.0, 150.0, 200.0, 250.0, 310.0, 420.0, 800.0]) {
        let mut fleet = Plain::new(policy(), 0.016, seed);
        fleet.run(|_| rate, 720);
        let watched = fleet.run(|tick| rate * swing(tick), 1440);
        assert!(reversals(&watched) <= 2, "{rate}/s: {} reversals", reversals(&watched));
        let last = watched.last().unwrap();
        let still = watched.iter().rev().take(720).all(|one| one.desired.replicas == last.desired.replicas);
        assert!(still, "{rate}/s: what came back is kept: {}", last.explanation.reason);
    }
}

/// What can happen to a pod's sample.
fn spoil(random: &mut Random, seen: &mut Observation, now_s: f64) {
    // Each schedule has its own severity, so that coverage crosses 60 % often.
    let severity = random.next();
    for pod in &mut seen.pods {
        if random.next() > severity {
            continue;
        }
        let Signal::Live { value, .. } = pod.sample.clone() else { continue };
        pod.sample = match random.below(6) {
            0 => Signal::NoData(NoData::Unreachable),
            1 => Signal::NoData(NoData::NotANumber),
            2 => Signal::NoData(NoData::CounterReset),
            3 => Signal::Stale { age: Seconds::whole(16 + random.below(600) as u32), last: value },
            4 => {
                let mut value = value;
                value.until = at(now_s - 16.0 - random.next() * 3600.0);
                Signal::Live { value, age: Seconds::whole(16) }
            }
            _ => {
                let mut value = value;
                value.done = u64::MAX;
                Signal::Live { value, age: Seconds::ZERO }
            }
        };
    }
}

/// Whether control.md §2 calls this look stale: less than 60 % of the ready pods have a fresh, possible sample.
fn blind(seen: &Observation, now_s: f64) -> bool {
    let fresh = |pod: &&yolo_planner::observation::Pod| match &pod.sample {
        Signal::Live { value, age } => age.get() <= 15.0 && now_s - value.until.get() <= 15.0 && value.done < u64::MAX,
        _ => false,
    };
    let live = seen.pods.iter().filter(fresh).count();
    (live as f64) < 0.6 * seen.pods.len() as f64
}

/// Law 5 and a figure of the issue: 10 000 random schedules of missing and stale samples, begun where a scale-down is due
/// or under way. None takes a pod away on a look that sees too little.
#[test]
fn ten_thousand_fault_schedules_take_no_pod_unseen() {
    let mut starts: Vec<Plain> = Vec::new();
    let mut fleet = Plain::new(policy(), 0.016, 11);
    fleet.run(|_| 400.0, 100);
    for _ in 0..20 {
        fleet.run(|_| 30.0, 4);
        starts.push(fleet.clone());
    }
    let (mut random, mut unseen, mut seen_downs, mut looks) = (Random(12), 0_u32, 0_u32, 0_u32);
    for schedule in 0..10_000_u64 {
        let mut fleet = starts[random.below(starts.len() as u64) as usize].clone();
        fleet.random = Random(schedule);
        for _ in 0..6 {
            let mut seen = fleet.look(30.0);
            spoil(&mut random, &mut seen, fleet.now_s);
            let before = fleet.knobs.replicas;
            let blind = blind(&seen, fleet.now_s);
            let fewer = fleet.decide(&seen).desired.replicas < before;
            looks += u32::from(blind);
            unseen += u32::from(blind && fewer);
            seen_downs += u32::from(!blind && fewer);
        }
    }
    println!("{looks} blind looks: {unseen} scale-downs; {seen_downs} on the others");
    assert_eq!(unseen, 0);
    assert!(looks > 10_000 && seen_downs > 100, "the schedules must be worth something: {looks}, {seen_downs}");
}

/// Every number of a state, one after the other, becomes what no arithmetic likes.
fn hostile(value: &mut serde_json::Value, at: &mut u64, new: f64) {
    match value {
        serde_json::Value::Number(number) if number.is_f64() => {
            if *at == 0 {
                *value = serde_json::json!(new);
            }
            *at = at.wrapping_sub(1);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(|item| hostile(item, at, new)),
        serde_json::Value::Object(fields) => fields.iter_mut().for_each(|(_, field)| hostile(field, at, new)),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Law 1: total from any state that can be read.
    #[test]
    fn a_hostile_state_panics_nothing(
        number in 0..600_u64,
        new in prop_oneof![Just(1e308), Just(-1e308), Just(0.0), Just(-1.0), Just(1e-308), Just(5e18)],
        seed in 0..1000_u64, tick in 1..60_u32,
    ) {
        let mut fleet = Plain::new(policy(), 0.016, seed);
        fleet.run(|tick| 40.0 + f64::from(tick), tick);
        let (mut value, mut at_number) = (serde_json::to_value(&fleet.state).unwrap(), number);
        hostile(&mut value, &mut at_number, new);
        if let Ok(state) = serde_json::from_value::<State>(value) {
            fleet.state = state;
            for decision in fleet.run(|_| 60.0, 3) {
                prop_assert!((1..=40).contains(&decision.desired.replicas.get()));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Less and less load never needs more pods, however it falls, and however many there are at first.
    #[test]
    fn falling_load_adds_no_pod(
        rate in 20.0..600.0_f64, left in 0.0..0.9_f64, ticks in 1..240_u32,
        each_ms in 4.0..60.0_f64, settled in 30..400_u32,
    ) {
        let mut fleet = Plain::new(policy(), each_ms / 1e3, 1);
        fleet.even = Some(0.0);
        fleet.run(|_| rate, settled);
        let before = fleet.knobs.replicas;
        let fallen = |tick: u32| (f64::from(tick) / f64::from(ticks)).min(1.0) * (1.0 - left);
        let pods: Vec<Replicas> =
            fleet.run(|tick| rate * (1.0 - fallen(tick)), ticks + 120).iter().map(|one| one.desired.replicas).collect();
        prop_assert!(pods[0] <= before && pods.is_sorted_by(|a, b| a >= b), "{before:?}: {pods:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    /// Laws 1, 2 and 3 over hundreds of ticks of changing load and faults: bounds and steps hold, and the same again gives
    /// the same.
    #[test]
    fn hundreds_of_ticks_keep_to_bounds_and_steps(
        seed in 0..1_000_000_u64, ticks in 100..500_u32, up in 10..200_u32, back in 1..30_usize,
    ) {
        let mut bounded = policy();
        let period = Seconds::whole(5 * u32::try_from(back).unwrap());
        let limits = vec![Pace { most: Amount::Percent(up), period }];
        bounded.paces_up = Some(Paces { limits, select: Select::Fastest });
        let mut fleet = Plain::new(bounded, 0.016, seed);
        let mut random = Random(seed);
        let mut rate = 50.0;
        let mut pods = vec![1_u32; back];
        for _ in 0..ticks {
            rate = if random.next() < 0.05 { 600.0 * random.next() } else { rate };
            let mut seen = fleet.look(rate);
            if random.next() < 0.3 {
                spoil(&mut random, &mut seen, fleet.now_s);
            }
            let state = fleet.state.clone();
            let decision = fleet.decide(&seen);
            prop_assert_eq!(&decision, &plan(&fleet.policy, &seen, &state, at(fleet.now_s)));
            let (now, before) = (decision.desired.replicas.get(), seen.current.replicas.get());
            prop_assert!((1..=40).contains(&now));
            prop_assert!(before.saturating_sub(now) <= (before / 5).max(1), "{before} to {now}");
            // Also while it is blind.
            let most = (pods[pods.len() - back] * (100 + up)).div_ceil(100);
            prop_assert!(now <= most.max(before), "{pods:?}, {now}");
            pods.push(now);
        }
    }
}

/// Law 12: what the planner decides can depend on nothing but its arguments.
#[test]
fn no_clock_no_chance_no_input() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let section = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let mut names: Vec<&str> = section.lines().filter_map(|line| line.split(['.', ' ', '=']).next()).collect();
    names.retain(|name| !name.is_empty());
    assert_eq!(names, ["libm", "serde", "thiserror"], "a dependency may hold a clock");
    let forbidden =
        ["std::time::{", "SystemTime", "Instant", "std::env", "std::fs", "std::net", "std::thread", "HashMap"];
    let mut folders = vec![root.join("src")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.ends_with("chain/oracles.rs") {
                continue; // Tests alone, which print how long a search takes.
            }
            let text = std::fs::read_to_string(&path).unwrap();
            files += 1;
            for word in forbidden {
                assert!(!text.contains(word), "{} names {word}", path.display());
            }
        }
    }
    assert!(files > 30);
}
