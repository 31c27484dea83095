//! The planner in a loop with a toy fleet: it converges, for stated reasons, and stays.

use crate::support::{CPU, Fleet, GPU, Kind};
use yolo_planner::explain::Tristate;
use yolo_planner::observation::{Knobs, Observation};
use yolo_planner::policy::{Accelerator, Knob, Policy, Targets};
use yolo_planner::units::{BatchSize, Bytes, Ratio, Replicas, Seconds};
use yolo_planner::{Action, Decision, HoldReason, State, plan};

fn policy(accelerator: Accelerator) -> Policy {
    let thirty = Seconds::whole(30);
    Policy {
        targets: Targets { window: thirty, ..Targets::default() },
        stabilization: Some(thirty),
        replicas: Knob::auto(Replicas::new(1), Replicas::new(6)),
        accelerator,
        ..Policy::default()
    }
}

struct Loop {
    policy: Policy,
    fleet: Fleet,
    state: State,
    seen: Option<Observation>,
    changes: Vec<(Knobs, Knobs, String)>,
}

impl Loop {
    fn new(kind: Kind, policy: Policy) -> Self {
        let fleet = Fleet::new(kind, &policy);
        Self { policy, fleet, state: State::default(), seen: None, changes: Vec::new() }
    }

    /// Runs ticks of 5 s; returns the last decision.
    fn run(&mut self, rate: f64, ticks: u32) -> Decision {
        let mut last = None;
        for _ in 0..ticks {
            self.fleet.run(rate, 5.0);
            let seen = self.fleet.observe();
            let decision = plan(&self.policy, &seen, &self.state, crate::support::at(self.fleet.now));
            self.seen = Some(seen);
            if let (Action::Change { .. }, Some(record)) = (decision.action, &decision.record) {
                self.changes.push((record.from, record.to, record.reason.clone()));
            }
            self.state = decision.state.clone();
            self.fleet.apply(decision.desired);
            last = Some(decision);
        }
        last.unwrap()
    }

    fn reasons(&self) -> String {
        self.changes.iter().map(|(_, _, reason)| reason.as_str()).collect::<Vec<_>>().join("\n")
    }
}

#[test]
fn threefold_load_adds_pods_and_calm_takes_them_away() {
    let mut service = Loop::new(CPU, policy(Accelerator::Cpu));
    let calm = service.run(20.0, 24);
    assert_eq!(service.fleet.replicas(), Replicas::new(1), "{}", service.reasons());
    assert_eq!(calm.explanation.conditions.targets_met.status, Tristate::True, "{:#?}", calm.explanation.targets);
    let busy = service.run(60.0, 24);
    assert_eq!(service.fleet.replicas(), Replicas::new(2), "{}", service.reasons());
    assert_eq!(busy.explanation.conditions.targets_met.status, Tristate::True, "{:#?}", busy.explanation.targets);
    assert!(service.reasons().contains("need 2 pods: one pod carries 38."), "{}", service.reasons());
    assert!(service.reasons().contains("CPU quota binds"), "{}", service.reasons());
    let calm = service.run(20.0, 24);
    assert_eq!(service.fleet.replicas(), Replicas::new(1), "{}", service.reasons());
    assert_eq!(calm.explanation.conditions.targets_met.status, Tristate::True);
    assert_eq!(calm.explanation.targets_summary, "5/5");
}

#[test]
fn batch_goes_to_one_where_batching_does_not_pay() {
    let mut service = Loop::new(CPU, policy(Accelerator::Cpu));
    service.run(30.0, 24);
    assert_eq!(service.fleet.knobs.max_batch_size, BatchSize::ONE);
    assert!(service.reasons().contains("does not pay here"), "{}", service.reasons());
}

#[test]
fn cache_grows_when_pictures_repeat_and_frees_pods() {
    let mut service = Loop::new(CPU, policy(Accelerator::Cpu));
    service.run(60.0, 24);
    assert_eq!(service.fleet.knobs.cache_bytes, Bytes::default());
    service.fleet.repeats = 0.95;
    let repeated = service.run(60.0, 36);
    assert_eq!(
        service.fleet.knobs.cache_bytes,
        Bytes::mebi(1),
        "the smallest that answers them: {}",
        service.reasons()
    );
    assert_eq!(service.fleet.replicas(), Replicas::new(1), "{}", service.reasons());
    assert_eq!(repeated.explanation.conditions.targets_met.status, Tristate::True);
    assert!(service.reasons().contains("cache 0→1 MiB"), "{}", service.reasons());
    service.fleet.repeats = 0.0;
    service.run(60.0, 60);
    assert_eq!(service.fleet.knobs.cache_bytes, Bytes::default(), "{}", service.reasons());
    assert_eq!(service.fleet.replicas(), Replicas::new(2));
}

#[test]
fn batch_rises_before_replicas_where_batching_pays() {
    let mut service = Loop::new(GPU, policy(Accelerator::Gpu));
    service.run(60.0, 24);
    service.run(180.0, 24);
    assert_eq!(service.fleet.knobs.max_batch_size.get(), 16, "{}", service.reasons());
    assert_eq!(service.fleet.replicas(), Replicas::new(1), "one pod carries it: {}", service.reasons());
    let busy = service.run(400.0, 24);
    assert_eq!(service.fleet.replicas(), Replicas::new(2), "now batches no longer do: {}", service.reasons());
    assert_eq!(busy.explanation.conditions.targets_met.status, Tristate::True, "{:#?}", busy.explanation.targets);
}

#[test]
fn constant_load_never_reverses() {
    let mut service = Loop::new(CPU, policy(Accelerator::Cpu));
    service.run(50.0, 36);
    let settled = service.changes.len();
    let last = service.run(50.0, 720);
    assert_eq!(service.changes.len(), settled, "an hour without a change: {}", service.reasons());
    assert_eq!(last.action, Action::Hold { reason: HoldReason::Settled });
}

#[test]
fn an_outage_of_metrics_holds_replicas() {
    let mut service = Loop::new(CPU, policy(Accelerator::Cpu));
    service.run(60.0, 24);
    let before = service.fleet.replicas();
    service.fleet.reachable = false;
    let blind = service.run(0.0, 60);
    assert_eq!(service.fleet.replicas(), before, "no data is not zero traffic");
    assert_eq!(blind.action, Action::Hold { reason: HoldReason::Stale });
    assert_eq!(blind.explanation.conditions.metrics_available.status, Tristate::False);
    assert_eq!(blind.explanation.conditions.targets_met.status, Tristate::Unknown);
    service.fleet.reachable = true;
    service.run(0.0, 36);
    assert_eq!(service.fleet.replicas(), Replicas::new(1), "seen zeros are: {}", service.reasons());
}

#[test]
fn a_look_between_ticks_repeats_the_last_answer() {
    let mut service = Loop::new(CPU, policy(Accelerator::Cpu));
    service.run(60.0, 24);
    let before = service.fleet.knobs;
    let mut down = service.run(0.0, 1);
    while down.desired == before {
        down = service.run(0.0, 1);
    }
    // The object that the last answer changed is not in the operator's cache yet.
    let seen = service.seen.take().unwrap();
    assert_eq!(seen.current, before);
    let now = crate::support::at(service.fleet.now + 0.5);
    let again = plan(&service.policy, &seen, &service.state, now);
    assert_eq!(again.desired, down.desired);
    assert!(again.record.is_none(), "{:?}", again.action);
}

#[test]
fn a_pinned_policy_only_recommends() {
    let mut recommend = policy(Accelerator::Cpu);
    recommend.replicas.mode = yolo_planner::policy::Mode::Recommend;
    recommend.cache_credit = Ratio::percent(50);
    let mut service = Loop::new(CPU, recommend);
    let decision = service.run(60.0, 36);
    assert_eq!(decision.desired.replicas, Replicas::new(1));
    assert!(decision.recommended.replicas >= Replicas::new(2), "{:?}", decision.recommended);
}

#[test]
fn waits_of_starved_pods_are_no_overhead_and_take_no_pod_away() {
    let mut service = Loop::new(CPU, policy(Accelerator::Cpu));
    service.run(60.0, 24);
    let (pods, calm_s) = (service.fleet.replicas(), service.state.learned().overhead.unwrap());
    (service.fleet.kind.overhead_s, service.fleet.throttled) = (2.0, 0.5);
    for tick in 0..12 {
        let starved = service.run(60.0, 1).explanation.conditions.targets_feasible;
        assert_eq!(starved.status, Tristate::True, "tick {tick}: {}", starved.message);
        assert!(service.fleet.replicas() >= pods, "{}", service.reasons());
    }
    (service.fleet.kind.overhead_s, service.fleet.throttled) = (CPU.overhead_s, 0.0);
    service.run(60.0, 9);
    let after_s = service.state.learned().overhead.unwrap();
    assert!((after_s.get() - calm_s.get()).abs() < 1e-6, "forgotten with the window: {after_s:?}, was {calm_s:?}");
}

#[test]
fn overhead_beyond_the_target_is_believed_of_pods_with_cpu_to_spare() {
    let mut service = Loop::new(CPU, policy(Accelerator::Cpu));
    service.run(20.0, 12);
    service.fleet.kind.overhead_s = 2.0;
    let slow = service.run(20.0, 9).explanation.conditions.targets_feasible;
    assert_eq!(slow.status, Tristate::False);
    assert!(slow.message.contains("overhead"), "{}", slow.message);
}

#[test]
fn overhead_is_learned_although_more_arrives_than_engines_could_do_without_the_cache() {
    let mut policy = policy(Accelerator::Cpu);
    policy.replicas = Knob::auto(Replicas::new(1), Replicas::new(1));
    let mut service = Loop::new(CPU, policy);
    service.fleet.repeats = 0.95;
    service.run(90.0, 24);
    assert!(service.fleet.knobs.cache_bytes >= Bytes::mebi(1), "{}", service.reasons());
    service.fleet.kind.overhead_s = 0.06;
    service.run(90.0, 9);
    let learned_s = service.state.learned().overhead.unwrap().get();
    assert!((0.05..0.08).contains(&learned_s), "{learned_s}");
}

/// On cores that neighbours use, too, t(1) and t(2)/2 of a model that gains nothing by batching cross again and again.
#[test]
fn noise_of_near_equal_batches_moves_no_batch() {
    for alpha_s in [0.0, 0.001, 0.002] {
        let kind = Kind { alpha_s, beta_s: 0.040, cpu_s: 0.030, ..CPU };
        let mut service = Loop::new(kind, policy(Accelerator::Cpu));
        service.policy.targets.inference = None;
        service.policy.targets.api.as_mut().unwrap().threshold = Seconds::millis(500);
        service.fleet.noise = 0.15;
        service.run(10.0, 60);
        let settled = service.changes.len();
        service.run(10.0, 720);
        let changes = &service.changes[settled..];
        let moved = changes.iter().any(|(from, to, _)| from.max_batch_size != to.max_batch_size);
        assert!(!moved, "alpha {alpha_s}: {}", service.reasons());
    }
}
