//! Every row of control.md §8 and of the table of §2: what is done to the fleet, and what must follow.

use crate::plain::Plain;
use crate::support::{CPU, Fleet, GPU, Kind, at, batch, histogram, seconds};
use yolo_planner::explain::{Condition, ConditionReason, Tristate};
use yolo_planner::observation::{BatchCount, CurvePoint, Entry, Knobs, NoData, Observation, Phase, Sample, Signal};
use yolo_planner::policy::{Accelerator, Knob, Mode, OverloadPolicy, Policy, Routing, Targets};
use yolo_planner::units::{BatchSize, Ratio, Replicas, Seconds, SecondsSquared};
use yolo_planner::{Action, Decision, HoldReason, State, Trigger, plan};

pub fn policy(accelerator: Accelerator) -> Policy {
    let thirty = Seconds::whole(30);
    Policy {
        targets: Targets { window: thirty, ..Targets::default() },
        stabilization: Some(thirty),
        replicas: Knob::auto(Replicas::new(1), Replicas::new(12)),
        accelerator,
        ..Policy::default()
    }
}

/// A toy fleet whose looks a test may spoil before the planner sees them.
pub struct Scene {
    pub policy: Policy,
    pub fleet: Fleet,
    pub state: State,
}

impl Scene {
    pub fn new(kind: Kind, policy: Policy) -> Self {
        Self { fleet: Fleet::new(kind, &policy), policy, state: State::default() }
    }

    /// Ticks of 5 s at `rate` images/s, each look spoiled by `spoil`.
    pub fn run(&mut self, rate: f64, ticks: u32, spoil: impl Fn(&mut Observation)) -> Vec<Decision> {
        (0..ticks)
            .map(|_| {
                self.fleet.run(rate, 5.0);
                let mut seen = self.fleet.observe();
                spoil(&mut seen);
                let decision = plan(&self.policy, &seen, &self.state, at(self.fleet.now));
                self.state = decision.state.clone();
                self.fleet.apply(decision.desired);
                decision
            })
            .collect()
    }

    pub fn replicas(&self) -> u32 {
        self.fleet.replicas().get()
    }
}

pub fn nothing(_: &mut Observation) {}

/// Applies `change` to each live sample.
pub fn samples(seen: &mut Observation, change: impl Fn(&mut Sample)) {
    for pod in &mut seen.pods {
        if let Signal::Live { value, .. } = &mut pod.sample {
            change(value);
        }
    }
}

pub fn is(condition: &Condition, status: Tristate, reason: ConditionReason) {
    assert_eq!((condition.status, condition.reason), (status, reason), "{}", condition.message);
}

pub fn held(decision: &Decision, reason: HoldReason) {
    assert_eq!(decision.action, Action::Hold { reason }, "{}", decision.explanation.reason);
}

#[test]
fn no_data_ever_holds_the_minimum() {
    let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
    scene.fleet.reachable = false;
    let last = scene.run(100.0, 40, nothing).pop().unwrap();
    held(&last, HoldReason::NoData);
    assert_eq!(scene.replicas(), 1);
    is(&last.explanation.conditions.metrics_available, Tristate::False, ConditionReason::NoData);
    is(&last.explanation.conditions.targets_met, Tristate::Unknown, ConditionReason::NoData);
}

#[test]
fn blindness_holds_and_after_two_minutes_assumes_the_past_peak() {
    let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
    scene.run(150.0, 24, nothing);
    let peak = scene.replicas();
    assert!(peak >= 4);
    scene.run(20.0, 50, nothing);
    assert_eq!(scene.replicas(), 1);
    scene.fleet.reachable = false;
    let blind = scene.run(20.0, 22, nothing);
    assert_eq!(scene.replicas(), 1, "within two minutes as it was");
    held(blind.last().unwrap(), HoldReason::Stale);
    is(&blind.last().unwrap().explanation.conditions.metrics_available, Tristate::False, ConditionReason::Stale);
    let longer = scene.run(20.0, 6, nothing);
    assert!(scene.replicas() >= 4, "150/s at 38.6/s a pod: {}", scene.replicas());
    assert!(longer.iter().any(|decision| decision.action == Action::Change { trigger: Trigger::Blind }));
}

#[test]
fn a_counter_reset_drops_that_pods_sample_alone() {
    let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
    scene.run(120.0, 24, nothing);
    let before = scene.replicas();
    assert!(before >= 3);
    let reset = |seen: &mut Observation| seen.pods[0].sample = Signal::NoData(NoData::CounterReset);
    let last = scene.run(120.0, 1, reset).pop().unwrap();
    is(&last.explanation.conditions.metrics_available, Tristate::True, ConditionReason::Partial);
    let level = last.explanation.forecast.level.get();
    assert!((110.0..130.0).contains(&level), "the silent pod is taken to get its share: {level}");
}

#[test]
fn a_scale_down_counts_silent_pods_as_busy() {
    let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
    scene.run(120.0, 24, nothing);
    let before = scene.replicas();
    let silent = |seen: &mut Observation| seen.pods[0].sample = Signal::NoData(NoData::Unreachable);
    scene.run(80.0, 30, silent);
    let with_silent = scene.replicas();
    scene.run(80.0, 30, nothing);
    assert!(scene.replicas() < with_silent && with_silent <= before, "{before}, {with_silent}, {}", scene.replicas());
}

#[test]
fn half_of_the_pods_silent_adds_pods_for_load_that_the_others_show_and_takes_none() {
    let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
    scene.run(60.0, 24, nothing);
    assert_eq!(scene.replicas(), 2);
    let silent = |seen: &mut Observation| {
        for pod in seen.pods.iter_mut().step_by(2) {
            pod.sample = Signal::NoData(NoData::Unreachable);
        }
    };
    let more = scene.run(150.0, 24, silent);
    let busy = scene.replicas();
    assert!(busy >= 4, "150/s at 38.6/s a pod: {busy}");
    assert!(more.iter().any(|decision| decision.action == Action::Change { trigger: Trigger::Blind }));
    let quiet = scene.run(10.0, 60, silent);
    assert_eq!(scene.replicas(), busy);
    held(quiet.last().unwrap(), HoldReason::Stale);
}

/// Half of ten pods live and get everything; whatever comes is dead as well.
#[test]
fn pods_that_were_ordered_for_silent_ones_and_do_not_report_order_no_more() {
    let wide = Knob::auto(Replicas::new(1), Replicas::new(40));
    let mut fleet = Plain::new(Policy { replicas: wide, ..policy(Accelerator::Cpu) }, 0.016, 1);
    fleet.knobs.replicas = Replicas::new(10);
    fleet.run(|_| 450.0, 12);
    let mut born = vec![crate::plain::START_S - 60.0; fleet.knobs.replicas.get() as usize];
    let live = born.len() as u64 / 2;
    for _ in 0..60 {
        let pods = fleet.knobs.replicas.get();
        born.resize(pods as usize, fleet.now_s);
        let mut seen = fleet.look(300.0 * f64::from(pods) / live as f64);
        for (pod, born) in seen.pods.iter_mut().zip(&born) {
            (pod.created, pod.ready) = (at(*born), Some(at(*born)));
            if pod.id >= live {
                pod.sample = Signal::NoData(NoData::Unreachable);
            }
        }
        fleet.decide(&seen);
    }
    let after = fleet.knobs.replicas.get();
    assert!((11..=14).contains(&after), "twice 300/s for pods that carry about 50/s: {after}, {live} live");
}

#[test]
fn a_new_service_keeps_its_pods_for_a_minute_and_an_inherited_fleet_for_five() {
    let lasts = |inherited: bool| {
        let policy = Policy { stabilization: Some(Seconds::ZERO), ..policy(Accelerator::Cpu) };
        let mut fleet = Plain::new(policy, 0.016, 1);
        fleet.knobs.replicas = Replicas::new(4);
        for tick in 1..100 {
            let mut seen = fleet.look(10.0);
            for pod in &mut seen.pods {
                pod.ready = Some(at(crate::plain::START_S - if inherited { 1000.0 } else { 1.0 }));
            }
            let decision = fleet.decide(&seen);
            if fleet.knobs.replicas < Replicas::new(4) {
                return tick;
            }
            assert!(matches!(decision.action, Action::Hold { reason: HoldReason::ColdStart }), "{:?}", decision.action);
        }
        100
    };
    assert_eq!(lasts(false), 12);
    assert_eq!(lasts(true), 60);
}

/// Answers that take `latency_s`, and as many images in the pod as Little's law asks.
fn slow_answers(latency_s: f64, consistent: bool) -> impl Fn(&mut Observation) {
    move |seen| {
        samples(seen, |sample| {
            sample.api = histogram(&vec![latency_s; sample.done as usize]);
            let inside = sample.arrivals as f64 / sample.span.get() * latency_s;
            sample.inflight = if consistent { inside.round() as u64 } else { 50 };
        });
    }
}

#[test]
fn latency_beyond_the_model_lowers_kappa_unless_littles_law_is_broken() {
    let kappa = |consistent: bool| {
        let two = Knob::auto(Replicas::new(2), Replicas::new(2));
        let mut scene = Scene::new(CPU, Policy { replicas: two, ..policy(Accelerator::Cpu) });
        scene.run(80.0, 24, nothing);
        let decisions = scene.run(80.0, 24, slow_answers(0.16, consistent));
        let at = |tick: usize| decisions[tick].explanation.capacity.kappa.get();
        at(23) / at(0)
    };
    assert!(kappa(true) < 0.97, "{}", kappa(true));
    assert!((kappa(false) - 1.0).abs() < 1e-9, "{}", kappa(false));
}

#[test]
fn latency_teaches_nothing_while_other_images_enter_than_the_pods_see() {
    let moved = |entering: f64| {
        let two = Knob::auto(Replicas::new(2), Replicas::new(2));
        let mut scene = Scene::new(CPU, Policy { replicas: two, ..policy(Accelerator::Cpu) });
        scene.run(80.0, 24, nothing);
        let slow = slow_answers(0.16, true);
        let decisions = scene.run(80.0, 24, |seen| {
            slow(seen);
            let entry = Entry { arrivals: (5.0 * entering) as u64, span: Seconds::whole(5), ..Entry::default() };
            seen.entry = Signal::Live { value: entry, age: Seconds::ZERO };
        });
        let kappa = |tick: usize| decisions[tick].explanation.capacity.kappa.get();
        kappa(23) < 0.97 * kappa(0)
    };
    assert!(moved(80.0));
    assert!(!moved(110.0), "a quarter of what enters is seen by no pod");
    assert!(!moved(60.0), "pods see images that did not enter: retries, or another way in");
}

#[test]
fn a_deadline_does_not_follow_what_is_feasible_from_tick_to_tick() {
    let mut shedding = policy(Accelerator::Cpu);
    shedding.overload.policy = OverloadPolicy::Shed;
    shedding.replicas = Knob::auto(Replicas::new(2), Replicas::new(2));
    let mut fleet = Plain::new(shedding, 0.016, 3);
    let (mut crossed, mut moved) = (0, 0);
    for rate in 90..115 {
        let decisions = fleet.run(|_| f64::from(rate), 24);
        let feasible = |one: &Decision| one.explanation.conditions.targets_feasible.status;
        crossed += decisions.windows(2).filter(|two| feasible(&two[0]) != feasible(&two[1])).count();
        let deadline = |one: &Decision| one.desired.deadline_millis;
        moved += decisions.windows(2).filter(|two| deadline(&two[0]).abs_diff(deadline(&two[1])) > 300).count();
    }
    assert!(crossed > 6 && moved < 3, "the edge was crossed {crossed} times, the deadline moved {moved} times");
    assert_eq!(fleet.knobs.deadline_millis, 1000, "the queue's time-out, once it is out of reach for good");
}

#[test]
fn latency_that_contradicts_the_model_for_five_minutes_ends_its_use() {
    let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
    scene.run(60.0, 24, nothing);
    let before = scene.replicas();
    let slow = scene.run(60.0, 120, slow_answers(0.19, true));
    let conditions = |decision: &Decision| decision.explanation.conditions.scaling_limited.clone();
    let degraded = slow.iter().position(|decision| conditions(decision).reason == ConditionReason::ModelDegraded);
    assert!(degraded.is_some_and(|tick| tick >= 58), "not before 300 s: {degraded:?}");
    is(&conditions(slow.last().unwrap()), Tristate::True, ConditionReason::ModelDegraded);
    assert!(scene.replicas() > before, "a reserve of 30 %: {} after {before}", scene.replicas());
    let again = scene.run(60.0, 100, nothing);
    is(&conditions(again.last().unwrap()), Tristate::False, ConditionReason::NotLimited);
}

/// §8, fallback: c by a lone pod's best rate, the batch held.
#[test]
fn a_model_that_is_not_used_orders_by_a_lone_pods_rate_and_holds_the_batch() {
    let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
    scene.run(60.0, 24, nothing);
    let last = scene.run(60.0, 120, slow_answers(0.19, true)).pop().unwrap().explanation;
    is(&last.conditions.scaling_limited, Tristate::True, ConditionReason::ModelDegraded);
    let fallback = (last.forecast.plan.get() / (0.7 * last.capacity.mu_star.get())).ceil();
    assert_eq!(scene.replicas(), fallback as u32, "the CPU quota lets a lone pod carry as much as one of many");

    let mut scene = Scene::new(GPU, Policy { batch: Knob::auto(batch(1), batch(4)), ..policy(Accelerator::Gpu) });
    scene.run(60.0, 24, nothing);
    let (size, pods) = (scene.fleet.knobs.max_batch_size, scene.replicas());
    scene.run(60.0, 80, slow_answers(0.19, true));
    scene.policy.batch.max = batch(16);
    let held = scene.run(300.0, 24, slow_answers(0.19, true));
    let last = held.last().unwrap();
    is(&last.explanation.conditions.scaling_limited, Tristate::True, ConditionReason::ModelDegraded);
    assert_eq!(last.desired.max_batch_size, size, "no model says that another is better");
    assert!(scene.replicas() > pods);
    let free = scene.run(300.0, 200, nothing);
    assert!(free.last().unwrap().desired.max_batch_size > size, "{:?}", free.last().unwrap().desired);
}

#[test]
fn pods_are_ordered_by_the_arrivals_even_if_littles_law_is_broken() {
    let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
    let broken = |seen: &mut Observation| samples(seen, |sample| sample.inflight = 500);
    scene.run(30.0, 24, broken);
    assert_eq!(scene.replicas(), 1);
    scene.run(150.0, 12, broken);
    assert!(scene.replicas() >= 4, "150/s at 38.6/s a pod: {}", scene.replicas());
}

#[test]
fn without_a_curve_nothing_moves() {
    let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
    let blank = |seen: &mut Observation| {
        samples(seen, |sample| (sample.batches, sample.curve) = (Vec::new(), Vec::<CurvePoint>::new()));
    };
    let last = scene.run(100.0, 30, blank).pop().unwrap();
    held(&last, HoldReason::CurveUnknown);
    assert_eq!(scene.replicas(), 1);
}

#[test]
fn pods_on_their_way_are_counted_and_named_after_three_starts() {
    let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
    scene.run(20.0, 24, nothing);
    // The new pods never become ready: no node has room, and nobody says so.
    scene.fleet.kind.startup_s = 1e9;
    let stuck = scene.run(100.0, 24, nothing);
    let ordered = stuck[2].desired.replicas;
    assert!(ordered.get() >= 3, "{ordered:?}");
    let limited = |decision: &Decision| decision.explanation.conditions.scaling_limited.reason;
    assert_ne!(limited(&stuck[4]), ConditionReason::Unschedulable, "25 s are three starts of 8 s and no more");
    assert_eq!(limited(stuck.last().unwrap()), ConditionReason::Unschedulable);
    let orders: Vec<u32> = stuck.iter().map(|decision| decision.desired.replicas.get()).collect();
    assert!(orders[7..].iter().all(|order| *order <= orders[6]), "their queue orders no others: {orders:?}");
}

#[test]
fn a_pod_that_was_ready_before_is_not_stuck_on_its_way() {
    let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
    scene.run(60.0, 60, nothing);
    assert_eq!(scene.replicas(), 2);
    let unready = |seen: &mut Observation| {
        let pod = &mut seen.pods[1];
        (pod.phase, pod.ready, pod.sample) = (Phase::Pending, None, Signal::NoData(NoData::Unreachable));
    };
    for decision in scene.run(60.0, 24, unready) {
        let limited = &decision.explanation.conditions.scaling_limited;
        assert_ne!(limited.reason, ConditionReason::Unschedulable, "its probe fails: {}", limited.message);
    }
}

#[test]
fn six_turns_within_an_hour_double_the_hold() {
    let ten = Policy { stabilization: Some(Seconds::whole(10)), ..policy(Accelerator::Cpu) };
    let mut fleet = Plain::new(Policy { max_down: Ratio::whole(1), ..ten }, 0.016, 1);
    fleet.run(|_| 20.0, 24);
    let mut damped = 0;
    let mut turns = Vec::new();
    for _ in 0..12 {
        let swing = fleet.run(|tick| if tick < 4 { 200.0 } else { 20.0 }, 14);
        damped += swing.iter().filter(|d| d.action == Action::Hold { reason: HoldReason::FlapDamped }).count();
        turns.push(swing.last().unwrap().desired.replicas);
    }
    assert!(damped > 0, "{turns:?}");
    let calm = fleet.run(|_| 20.0, 40);
    assert_eq!(calm.last().unwrap().desired.replicas, Replicas::new(1), "damped, not stuck");
}

#[test]
fn a_raised_batch_that_is_too_slow_goes_back_and_stays_there() {
    let mut scene = Scene::new(GPU, policy(Accelerator::Gpu));
    let slow = |seen: &mut Observation| {
        let raised = seen.current.max_batch_size.get() > 4;
        samples(seen, |sample| {
            let time_s = if raised { 0.150 } else { 0.040 };
            sample.inference = histogram(&vec![time_s; sample.done as usize]);
        });
    };
    let decisions = scene.run(180.0, 120, slow);
    let raised = decisions.iter().position(|decision| decision.desired.max_batch_size.get() > 4);
    let batch_now = scene.fleet.knobs.max_batch_size.get();
    assert!(raised.is_some() && batch_now <= 4, "{raised:?}, then {batch_now}");
    let back = decisions.iter().rposition(|decision| decision.desired.max_batch_size.get() > 4).unwrap();
    assert!(back - raised.unwrap() < 20, "within a window: {raised:?} to {back}");
}

#[test]
fn pods_that_do_not_take_the_knobs_get_no_others() {
    let mut scene = Scene::new(GPU, policy(Accelerator::Gpu));
    let deaf = |seen: &mut Observation| seen.applied_pods = 0;
    let decisions = scene.run(180.0, 60, deaf);
    let late = decisions.iter().skip(7).map(|decision| decision.desired.max_batch_size).collect::<Vec<_>>();
    assert!(late.iter().all(|size| *size == late[0]), "after 30 s the batch stays: {late:?}");
    scene.run(180.0, 40, nothing);
    assert_eq!(scene.fleet.knobs.max_batch_size.get(), 16, "pods that listen get it");
}

/// §8, `applied_pods`: pods are enough with either setting.
#[test]
fn pods_that_did_not_take_a_larger_batch_are_counted_with_the_smaller_one() {
    let pods = |deaf: bool| {
        let mut scene = Scene::new(GPU, Policy { batch: Knob::auto(batch(1), batch(4)), ..policy(Accelerator::Gpu) });
        scene.run(60.0, 24, nothing);
        let small = scene.fleet.knobs.max_batch_size;
        scene.policy.batch.max = batch(16);
        let decisions = scene.run(300.0, 24, |seen| seen.applied_pods = if deaf { 0 } else { seen.applied_pods });
        assert!(decisions.last().unwrap().desired.max_batch_size > small, "{small:?}");
        scene.replicas()
    };
    let (deaf, all_ears) = (pods(true), pods(false));
    assert!(deaf > all_ears, "batches of the old size carry less: {deaf} and {all_ears}");
}

#[test]
fn what_the_cache_answers_is_no_backlog() {
    let mut scene = Scene::new(GPU, policy(Accelerator::Gpu));
    scene.run(200.0, 24, nothing);
    // Ten times as many arrive, and nine of ten find their answer there: the engines have what they had.
    let repeated = |seen: &mut Observation| {
        samples(seen, |sample| {
            (sample.cache.hits, sample.cache.misses) = (9 * sample.arrivals, sample.arrivals);
            sample.arrivals *= 10;
            sample.per_second.sum *= 10;
            sample.per_second.sum_sq *= 100;
        });
    };
    scene.policy.replicas = Knob::auto(Replicas::new(scene.replicas()), Replicas::new(scene.replicas()));
    let waiting: Vec<f64> =
        scene.run(200.0, 24, repeated).iter().map(|decision| decision.explanation.forecast.backlog).collect();
    let level = scene.run(200.0, 1, repeated)[0].explanation.forecast.level.get();
    assert!(level > 388.0 * f64::from(scene.replicas()), "more than the engines carry: {level}");
    assert!(waiting.iter().skip(2).all(|images| *images < 1.0), "{waiting:?}");
}

#[test]
fn a_rollout_takes_no_pod() {
    let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
    scene.run(100.0, 24, nothing);
    let before = scene.replicas();
    let last = scene.run(10.0, 40, |seen| seen.rolling = true).pop().unwrap();
    held(&last, HoldReason::Stabilizing);
    assert_eq!(scene.replicas(), before);
    scene.run(10.0, 40, nothing);
    assert_eq!(scene.replicas(), 1);
}

/// Pods needed at 300/s by the end of half an hour of a rollout, of which the first `young` pods are of a class whose
/// batches take `slower` times as long; and the fewest on the way.
fn rolled(slower: f64, young: u64, ticks: u32) -> (u32, u32, Plain) {
    let mut fleet = Plain::new(
        Policy { replicas: Knob::auto(Replicas::new(1), Replicas::new(40)), ..policy(Accelerator::Cpu) },
        0.016,
        1,
    );
    fleet.run(|_| 300.0, 60);
    let mut least = u32::MAX;
    for _ in 0..ticks {
        let mut seen = fleet.look(300.0);
        seen.rolling = true;
        for pod in seen.pods.iter_mut().filter(|pod| pod.id < young) {
            (pod.class, pod.created) = (1, at(crate::plain::START_S));
            let Signal::Live { value, .. } = &mut pod.sample else { continue };
            for calls in &mut value.batches {
                calls.seconds = seconds(slower * calls.seconds.get());
                calls.seconds_squared =
                    SecondsSquared::try_from(slower * slower * calls.seconds_squared.get()).unwrap();
            }
        }
        fleet.decide(&seen);
        least = least.min(fleet.knobs.replicas.get());
    }
    (fleet.knobs.replicas.get(), least, fleet)
}

/// §8, rolling update: each class by its own curve.
#[test]
fn a_rollout_to_a_slower_model_gets_its_pods_and_one_to_a_quicker_counts_the_old_ones_as_they_are() {
    let (before, ..) = rolled(1.0, 0, 1);
    let (slower, ..) = rolled(2.0, 3, 60);
    assert!(slower >= 2 * before - 1, "all will take twice as long: {slower} after {before}");
    let (quicker, least, fleet) = rolled(0.5, 3, 60);
    assert_eq!((quicker, least), (before, before), "old pods are no quicker, and none goes in a rollout");
    // More arrives while most pods are old ones.
    let mut fleet = fleet;
    for _ in 0..12 {
        let mut seen = fleet.look(450.0);
        seen.rolling = true;
        for pod in seen.pods.iter_mut().filter(|pod| pod.id < 3) {
            (pod.class, pod.created) = (1, at(crate::plain::START_S));
            pod.sample = Signal::NoData(NoData::Unreachable);
        }
        fleet.decide(&seen);
    }
    assert!(fleet.knobs.replicas.get() >= before * 4 / 3, "{} after {before}", fleet.knobs.replicas.get());
}

#[test]
fn another_model_takes_no_pod_before_its_own_batches_have_been_timed() {
    let mut fleet = Plain::new(policy(Accelerator::Cpu), 0.016, 1);
    fleet.run(|_| 150.0, 24);
    let before = fleet.knobs.replicas;
    assert!(before.get() > 3);
    for tick in 0..90 {
        let mut seen = fleet.look(20.0);
        for pod in &mut seen.pods {
            pod.class = 1;
        }
        if tick < 60 {
            samples(&mut seen, |sample| sample.batches = Vec::new());
        }
        let decision = fleet.decide(&seen);
        if tick < 60 {
            assert_eq!(decision.desired.replicas, before, "{}", decision.explanation.reason);
        }
    }
    assert!(fleet.knobs.replicas < before);
}

/// What takes the knobs out of the planner's hands.
type Release = fn(&mut Policy, &mut Observation);

#[test]
fn hands_off_means_hands_off_but_still_an_opinion() {
    let rows: [(Release, HoldReason, ConditionReason); 4] = [
        (|policy, _| policy.paused = true, HoldReason::Paused, ConditionReason::Paused),
        (|_, seen| seen.other_manager = true, HoldReason::OtherManager, ConditionReason::OtherManager),
        (|policy, _| modes(policy, Mode::Off), HoldReason::ModeOff, ConditionReason::ModeOff),
        (|policy, _| modes(policy, Mode::Recommend), HoldReason::ModeRecommend, ConditionReason::ModeRecommend),
    ];
    for (row, reason, condition) in rows {
        let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
        let mut last = None;
        for _ in 0..30 {
            scene.fleet.run(100.0, 5.0);
            let (mut policy, mut seen) = (scene.policy.clone(), scene.fleet.observe());
            row(&mut policy, &mut seen);
            let decision = plan(&policy, &seen, &scene.state, at(scene.fleet.now));
            assert_eq!(decision.desired, seen.current, "{reason:?}");
            scene.state = decision.state.clone();
            last = Some(decision);
        }
        let last = last.unwrap();
        held(&last, reason);
        is(&last.explanation.conditions.scaling_active, Tristate::False, condition);
        assert!(last.recommended.replicas.get() >= 3, "{reason:?}: {:?}", last.recommended);
    }
}

#[test]
fn what_a_person_set_reaches_the_pods_in_every_mode() {
    for mode in [Mode::Off, Mode::Recommend] {
        let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
        modes(&mut scene.policy, mode);
        scene.run(100.0, 12, nothing);
        let before = scene.fleet.knobs;
        (scene.policy.overload.queue_timeout, scene.policy.cache_ttl) = (Seconds::whole(3), Seconds::whole(60));
        let told = scene.run(100.0, 2, nothing);
        let set = Knobs { deadline_millis: 3000, cache_ttl_seconds: 60, ..before };
        assert_eq!(scene.fleet.knobs, set, "and nothing else");
        assert_eq!(told[0].explanation.reason, "queue delay 0 µs, cache TTL 60 s, deadline 3000 ms");
        assert!(matches!(told[1].action, Action::Hold { reason: HoldReason::ModeOff | HoldReason::ModeRecommend }));
    }
    let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
    (scene.policy.cache.mode, scene.policy.cache_ttl) = (Mode::Off, Seconds::whole(60));
    scene.run(20.0, 12, nothing);
    assert_eq!(scene.fleet.knobs.cache_ttl_seconds, 60, "the cache's size is off, its answers' age is none of it");
}

fn modes(policy: &mut Policy, mode: Mode) {
    (policy.replicas.mode, policy.batch.mode, policy.cache.mode) = (mode, mode, mode);
}

#[test]
fn time_that_does_not_advance_changes_nothing() {
    let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
    scene.run(60.0, 24, nothing);
    scene.fleet.run(300.0, 5.0);
    let seen = scene.fleet.observe();
    for earlier_s in [0.0, 5.0, 5000.0] {
        let decision = plan(&scene.policy, &seen, &scene.state, at(scene.fleet.now - 5.0 - earlier_s));
        held(&decision, HoldReason::NonFinite);
        assert_eq!((&decision.state, decision.desired), (&scene.state, seen.current));
    }
}

#[test]
fn numbers_that_no_pod_can_have_are_no_sample() {
    let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
    scene.run(60.0, 24, nothing);
    let before = scene.replicas();
    let broken = |seen: &mut Observation| {
        samples(seen, |sample| {
            sample.batches = vec![BatchCount { count: u64::MAX, seconds: seconds(1e300), ..BatchCount::default() }];
        });
    };
    let last = scene.run(60.0, 10, broken).pop().unwrap();
    held(&last, HoldReason::Stale);
    assert_eq!(scene.replicas(), before);
}

#[test]
fn a_budget_that_burns_adds_a_pod_and_takes_none() {
    let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
    scene.run(30.0, 24, nothing);
    let before = scene.replicas();
    let late = |seen: &mut Observation| {
        // Too few for the feedback, all of them late.
        samples(seen, |sample| sample.api = histogram(&[0.3; 20]));
    };
    let burning = scene.run(30.0, 70, late);
    assert!(burning.iter().any(|decision| decision.action == Action::Change { trigger: Trigger::SloBurn }));
    assert_eq!(scene.replicas(), before + 1, "one, not one a minute");
    let a = |decision: &Decision| decision.explanation.forecast.a.get();
    assert!(a(burning.last().unwrap()) < 0.6 * a(&burning[0]), "and fewer errors go uncovered");
}

/// §9, `Imbalance`: a miss that unequal shares explain orders no pod.
#[test]
fn a_budget_that_burns_for_want_of_balance_adds_no_pod() {
    let orders = |routing: Routing, (first_share, first_inflight): (f64, u64)| {
        let mut scene = Scene::new(CPU, Policy { routing, ..policy(Accelerator::Cpu) });
        scene.run(100.0, 24, nothing);
        let before = scene.replicas();
        let late = |seen: &mut Observation| {
            samples(seen, |sample| sample.api = histogram(&[0.3; 20]));
            let arrivals: u64 =
                seen.pods.iter().filter_map(|pod| pod.sample.live()).map(|sample| sample.arrivals).sum();
            let places = seen.pods.len() as f64 - 1.0 + first_share;
            for (pod, share) in seen.pods.iter_mut().zip(std::iter::once(first_share).chain(std::iter::repeat(1.0))) {
                let Signal::Live { value, .. } = &mut pod.sample else { continue };
                value.arrivals = (arrivals as f64 * share / places) as u64;
                value.inflight = 1;
            }
            if let Signal::Live { value, .. } = &mut seen.pods[0].sample {
                value.inflight = first_inflight;
            }
        };
        let burning = scene.run(100.0, 70, late);
        let burns = |decision: &&Decision| decision.action == Action::Change { trigger: Trigger::SloBurn };
        let told = burning.last().unwrap().explanation.reason.contains("unequal shares");
        (burning.iter().filter(burns).count(), scene.replicas() - before, told)
    };
    assert_eq!(orders(Routing::Random, (1.0, 1)), (1, 1, false));
    assert_eq!(orders(Routing::Random, (3.0, 1)), (0, 0, true));
    assert_eq!(orders(Routing::LeastOutstanding, (1.0, 20)), (1, 1, false), "a slow pod, not unequal shares");
}

#[test]
fn tasks_get_pods_only_as_far_as_their_deadline_needs() {
    let with = |queue: u64, within_s: u32| {
        let policy = Policy { complete_within: Seconds::whole(within_s), ..policy(Accelerator::Cpu) };
        let mut scene = Scene::new(CPU, policy);
        scene.run(20.0, 30, |seen| samples(seen, |sample| sample.task_queue = queue));
        scene.replicas()
    };
    assert_eq!(with(0, 900), 1);
    assert_eq!(with(1000, 900), 1, "2.2/s more fit beside 20/s");
    assert!(with(30_000, 900) >= 3, "67/s more do not");
    assert_eq!(with(30_000, 86_400), 1, "within a day they do");
}

#[test]
fn a_higher_need_must_last_where_it_is_asked_to() {
    let patient = Policy { stabilization_up: Some(Seconds::whole(60)), ..policy(Accelerator::Cpu) };
    let mut fleet = Plain::new(patient.clone(), 0.016, 1);
    fleet.run(|_| 20.0, 24);
    fleet.run(|_| 900.0, 2);
    let calm = fleet.run(|_| 20.0, 24);
    assert!(calm.iter().all(|decision| decision.desired.replicas.get() == 1), "a burst passes");
    let rising = fleet.run(|_| 900.0, 20);
    held(&rising[5], HoldReason::Stabilizing);
    let reason = &rising[5].explanation.reason;
    assert!(reason.contains("once that has been so for 60 s"), "{reason}");
    let first = rising.iter().position(|decision| decision.desired.replicas.get() > 1).unwrap();
    assert!((11..=13).contains(&first), "after a minute, not after {first} ticks");
    let mut falling = Plain::new(patient.clone(), 0.016, 1);
    falling.knobs.replicas = Replicas::new(5);
    falling.run(|_| 20.0, 6);
    let back = falling.run(|_| 900.0, 6);
    assert!(
        back.iter().all(|decision| decision.desired.replicas.get() >= 5),
        "what was wanted a minute ago ends no pod"
    );
    let mut due = Plain::new(Policy { schedule_floor: Replicas::new(5), ..patient }, 0.016, 1);
    due.run(|_| 20.0, 6);
    assert_eq!(due.knobs.replicas.get(), 5, "a schedule's pods come at once");
}

#[test]
fn pods_go_by_a_fifth_in_half_a_minute() {
    let mut fleet = Plain::new(policy(Accelerator::Cpu), 0.016, 1);
    fleet.run(|_| 900.0, 24);
    assert_eq!(fleet.knobs.replicas.get(), 12);
    let steps: Vec<u32> = fleet.run(|_| 10.0, 120).iter().map(|decision| decision.desired.replicas.get()).collect();
    assert!(steps.windows(2).all(|two| two[0] - two[1] <= (two[0] / 5).max(1)), "{steps:?}");
    assert!(steps.windows(6).all(|six| six[0] - six[5] <= (six[0] / 5).max(1)), "{steps:?}");
    assert_eq!(*steps.last().unwrap(), 1);
}

#[test]
fn a_schedule_is_a_floor() {
    let floor = Policy { schedule_floor: Replicas::new(5), ..policy(Accelerator::Cpu) };
    let mut fleet = Plain::new(floor, 0.016, 1);
    let decisions = fleet.run(|_| 10.0, 30);
    assert_eq!(fleet.knobs.replicas.get(), 5);
    assert!(decisions.iter().any(|decision| decision.action == Action::Change { trigger: Trigger::Schedule }));
}

#[test]
fn a_pod_that_is_unschedulable_says_so_at_once() {
    let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
    scene.run(20.0, 24, nothing);
    let last = scene.run(20.0, 1, |seen| {
        let mut pod = seen.pods[0].clone();
        (pod.id, pod.phase, pod.sample) = (99, Phase::Unschedulable, Signal::NoData(NoData::NeverSeen));
        seen.pods.push(pod);
    });
    is(&last[0].explanation.conditions.scaling_limited, Tristate::True, ConditionReason::Unschedulable);
}

#[test]
fn a_sentence_names_the_pods_that_are_needed_not_those_that_are_allowed() {
    let said = |min: u32, max: u32, rate: f64| {
        let range = Knob::auto(Replicas::new(min), Replicas::new(max));
        let mut fleet = Plain::new(Policy { replicas: range, ..policy(Accelerator::Cpu) }, 0.016, 1);
        fleet.run(|_| rate, 30).pop().unwrap().explanation.reason
    };
    let many = said(1, 2, 400.0);
    assert!(many.contains(" pods (2 at most)") && !many.contains("need 2 pods"), "{many}");
    let few = said(3, 5, 10.0);
    assert!(few.contains("need 1 pod (3 at least)"), "{few}");
    let between = said(1, 5, 100.0);
    assert!(!between.contains("at most") && !between.contains("at least"), "{between}");
}

#[test]
fn what_pinned_pods_cannot_carry_names_who_pins_them() {
    let told = |mode: Mode, min: u32, max: u32| {
        let knob = Knob { mode, min: Replicas::new(min), max: Replicas::new(max) };
        let mut fleet = Plain::new(Policy { replicas: knob, ..policy(Accelerator::Cpu) }, 0.016, 1);
        fleet.knobs.replicas = Replicas::new(2);
        let last = fleet.run(|_| 400.0, 30).pop().unwrap().explanation;
        is(&last.conditions.targets_feasible, Tristate::False, ConditionReason::ReplicasMax);
        is(&last.conditions.scaling_limited, Tristate::True, ConditionReason::AtMaximum);
        (last.conditions.targets_feasible.message, last.conditions.scaling_limited.message)
    };
    let rows = [
        (Mode::Auto, 1, 2, "replicas.max pods cannot carry", "replicas.max ≥ ", "replicas.max is 2."),
        (Mode::Auto, 2, 2, "the fixed 2 pods cannot carry", "replicas ≥ ", "more than the fixed 2 pods."),
        (Mode::Off, 1, 40, "the 2 pods that replicas.mode Off leaves cannot carry", "replicas ≥ ", "mode Off leaves."),
        (Mode::Recommend, 1, 40, "mode Recommend leaves cannot carry", "replicas ≥ ", "mode Recommend leaves."),
    ];
    for (mode, min, max, what, remedy, limited) in rows {
        let (feasible, scaling) = told(mode, min, max);
        assert!(feasible.contains(what) && feasible.contains(remedy), "{feasible}");
        assert!(scaling.ends_with(limited), "{scaling}");
    }
}

#[test]
fn batches_that_are_too_slow_are_told_with_who_asks_for_them() {
    let told = |beta_s: f64, mode: Mode| {
        let knob = Knob { mode, min: batch(4), max: batch(8) };
        let mut scene = Scene::new(Kind { beta_s, ..CPU }, Policy { batch: knob, ..policy(Accelerator::Cpu) });
        let last = scene.run(5.0, 30, nothing).pop().unwrap().explanation;
        is(&last.conditions.targets_feasible, Tristate::False, ConditionReason::InferenceTooSlow);
        last.conditions.targets_feasible.message
    };
    for (beta_s, mode, says) in [
        (0.030, Mode::Auto, "batches of 4, the smallest allowed, take longer"),
        (0.030, Mode::Off, "batches of 4, which batch.mode Off leaves, take longer"),
        (0.150, Mode::Auto, "one image alone takes longer"),
        (0.150, Mode::Recommend, "one image alone takes longer"),
    ] {
        let message = told(beta_s, mode);
        assert!(message.contains(says), "{beta_s} {mode:?}: {message}");
    }
}

#[test]
fn batch_starts_where_it_is_allowed() {
    let mut bounded = policy(Accelerator::Gpu);
    bounded.batch = Knob::auto(batch(2), batch(2));
    let mut scene = Scene::new(GPU, bounded);
    scene.run(100.0, 20, nothing);
    assert_eq!(scene.fleet.knobs.max_batch_size, BatchSize::try_from(2).unwrap());
}
