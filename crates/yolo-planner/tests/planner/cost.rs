//! What a planning call costs: `cargo test -p yolo-planner --release --test planner cost -- --nocapture` prints it.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// CPU time of this thread: other work on the machine is no cost of a call.
fn spent() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

use crate::plain::Plain;
use crate::support::{Fleet, Kind, at, batch, seconds};
use yolo_planner::observation::{BatchCount, GhostSize, Ghosts, Observation, Signal};
use yolo_planner::policy::{Accelerator, Knob, Policy, Provision, ThroughputTarget};
use yolo_planner::units::{Bytes, Count, Rate, Ratio, Replicas, Seconds, SecondsSquared};
use yolo_planner::{State, plan};

/// Calls of `ticks` ticks of a fleet whose load swings, so that cells grow old and searches begin anew.
fn calls(policy: &Policy, kind: Kind, rate: f64, ticks: u32) -> Vec<Duration> {
    let (mut fleet, mut state, mut took) = (Fleet::new(kind, policy), State::default(), Vec::new());
    for tick in 0..ticks {
        fleet.run(rate * (1.0 + 0.3 * f64::from(tick).sin()), 5.0);
        let seen = fleet.observe();
        let start = spent();
        let decision = plan(policy, &seen, &state, at(fleet.now));
        took.push(spent().saturating_sub(start));
        state = decision.state.clone();
        fleet.apply(decision.desired);
    }
    took.sort();
    took
}

/// The figure is 5 ms at p99 in a release build; the bound here is for a test build whose caches others use, too.
#[test]
fn a_planning_call_is_short_whatever_has_to_be_computed() {
    let kind = Kind { alpha_s: 0.006, beta_s: 0.0022, quota: 0, cpu_s: 0.0, startup_s: 8.0, overhead_s: 0.004 };
    let mut policy = Policy {
        replicas: Knob::auto(Replicas::new(1), Replicas::new(20)),
        batch: Knob::auto(batch(1), batch(32)),
        accelerator: Accelerator::Gpu,
        ..Policy::default()
    };
    let mut all = calls(&policy, kind, 500.0, 100);
    // Out of reach: relaxations are computed in every call.
    policy.replicas.max = Replicas::new(1);
    policy.targets.api.as_mut().unwrap().threshold = Seconds::millis(30);
    all.extend(calls(&policy, kind, 600.0, 100));
    all.sort();
    let (p50, p99, max) = (all[all.len() / 2], all[all.len() * 99 / 100], all[all.len() - 1]);
    println!("planning calls: p50 {p50:?}, p99 {p99:?}, longest {max:?}");
    assert!(p99 < Duration::from_millis(25), "p99 {p99:?}");
}

/// Batches of all sizes that grow `slower`, and ghosts of all cache sizes.
fn fill(seen: &mut Observation, slower: f64) {
    for pod in &mut seen.pods {
        let Signal::Live { value, .. } = &mut pod.sample else { continue };
        let calls = |size: u32| {
            let each_s = slower * (0.006 + 0.0022 * f64::from(size));
            let squared = SecondsSquared::try_from(9.0 * each_s * each_s).unwrap();
            BatchCount { size: batch(size), count: 9, seconds: seconds(9.0 * each_s), seconds_squared: squared }
        };
        value.batches = (1..=32).map(calls).collect();
        let sizes = (0..8_u32).map(|step| GhostSize { bytes: Bytes::mebi(4 << step), hits: 30 * u64::from(step) });
        value.ghosts = Ghosts { refs: 300, expected: Count::whole(300), sizes: sizes.collect() };
        value.cpu_seconds = Seconds::whole(1);
    }
}

/// 200 pods, every target, batches of 32 sizes whose times move, and tables that are cold at every tenth call.
#[test]
fn a_planning_call_of_two_hundred_pods_is_short() {
    let mut policy = Policy {
        replicas: Knob::auto(Replicas::new(200), Replicas::new(220)),
        batch: Knob::auto(batch(1), batch(32)),
        accelerator: Accelerator::Gpu,
        ..Policy::default()
    };
    policy.targets.gpu = Some(Ratio::percent(70));
    policy.targets.throughput = Some(ThroughputTarget { rate: Rate::whole(40_000), provision: Provision::OnDemand });
    let mut all = Vec::new();
    for api_millis in [30, 60, 200] {
        policy.targets.api.as_mut().unwrap().threshold = Seconds::millis(api_millis);
        let mut fleet = Plain::new(policy.clone(), 0.008, 5);
        for tick in 0..150_u32 {
            let swing = f64::from(tick).sin();
            let mut seen = fleet.look(50_000.0 * (1.0 + 0.3 * swing));
            fill(&mut seen, 1.0 + 0.1 * swing);
            if tick % 10 == 9 {
                fleet.state = State::seeded(&fleet.state.learned());
            }
            let start = spent();
            let decision = plan(&policy, &seen, &fleet.state, at(fleet.now_s));
            all.push(spent().saturating_sub(start));
            (fleet.state, fleet.knobs) = (decision.state, decision.desired);
        }
    }
    all.sort();
    let (p50, p99, max) = (all[all.len() / 2], all[all.len() * 99 / 100], all[all.len() - 1]);
    println!("planning calls of 200 pods: p50 {p50:?}, p99 {p99:?}, longest {max:?}");
    assert!(p99 < Duration::from_millis(25), "p99 {p99:?}");
}
