//! What follows when the model proves wrong: a change for the worse goes back, two of them end the trust, and a device
//! that became slower is learned anew (control.md §3, §7 and §8).

use crate::guards::{Scene, nothing, policy, samples};
use crate::support::{CPU, GPU, histogram};
use yolo_planner::decision::{Record, RecordVerdict};
use yolo_planner::explain::ConditionReason;
use yolo_planner::observation::Observation;
use yolo_planner::policy::{Accelerator, Knob};
use yolo_planner::units::{Ratio, Replicas};
use yolo_planner::{Action, Decision, Trigger};

/// All answers take `latency_s`, too few of them for the feedback.
fn answers(seen: &mut Observation, latency_s: f64) {
    samples(seen, |sample| sample.api = histogram(&[latency_s; 4]));
}

fn judged(decisions: &[Decision]) -> Vec<&Record> {
    decisions.iter().flat_map(|decision| &decision.judged).collect()
}

/// A batch of more than 4 makes every answer miss the target, whatever its own time.
fn batches_spoil(seen: &mut Observation) {
    let latency_s = if seen.current.max_batch_size.get() > 4 { 0.3 } else { 0.06 };
    answers(seen, latency_s);
}

#[test]
fn a_batch_for_the_worse_goes_back_for_an_hour_and_then_for_two() {
    let mut one = policy(Accelerator::Gpu);
    one.replicas = Knob::auto(Replicas::new(1), Replicas::new(1));
    let mut scene = Scene::new(GPU, one);
    let decisions = scene.run(60.0, 2600, batches_spoil);
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for size in decisions.iter().map(|decision| decision.desired.max_batch_size.get()) {
        match runs.last_mut() {
            Some((last, ticks)) if *last == size => *ticks += 1,
            _ => runs.push((size, 1)),
        }
    }
    let [(4, _), (16, first), (4, one_hour), (16, _), (4, two_hours), ..] = runs[..] else { panic!("{runs:?}") };
    assert!(first < 12, "judged once a start and a window have passed, 38 s: {runs:?}");
    // Once the pin has ended, the larger batch must look better for 30 s, doubled by one turn and then by three.
    assert!((731..737).contains(&one_hour) && (1487..1493).contains(&two_hours), "{runs:?}");
    let verdicts: Vec<_> = judged(&decisions).iter().take(3).map(|record| record.verdict.unwrap()).collect();
    assert_eq!(verdicts, [RecordVerdict::Worse, RecordVerdict::Confirmed, RecordVerdict::Worse]);
}

#[test]
fn another_model_owes_nothing_to_what_was_judged_of_the_last_one() {
    let mut one = policy(Accelerator::Gpu);
    one.replicas = Knob::auto(Replicas::new(1), Replicas::new(1));
    let mut scene = Scene::new(GPU, one);
    let decisions = scene.run(60.0, 60, batches_spoil);
    assert_eq!(judged(&decisions)[0].verdict, Some(RecordVerdict::Worse));
    assert_eq!(scene.fleet.knobs.max_batch_size.get(), 4, "gone back for an hour");
    scene.policy.revision = 2;
    scene.run(60.0, 40, nothing);
    assert_eq!(scene.fleet.knobs.max_batch_size.get(), 16, "tried with the new model within minutes");
}

#[test]
fn two_changes_for_the_worse_end_the_trust_in_the_model_for_an_hour() {
    let mut unburnt = policy(Accelerator::Gpu);
    unburnt.targets.budget = Ratio::whole(1);
    let mut scene = Scene::new(GPU, unburnt);
    let degraded = |one: &Decision| one.explanation.conditions.scaling_limited.reason == ConditionReason::ModelDegraded;
    let mut late = Vec::new();
    while !late.last().is_some_and(degraded) {
        late.extend(scene.run(190.0, 1, |seen| answers(seen, 0.3)));
        assert!(late.len() < 200, "{:?}", judged(&late));
    }
    let verdicts: Vec<_> = judged(&late).iter().filter_map(|record| record.verdict).collect();
    let worse = verdicts.iter().filter(|verdict| **verdict == RecordVerdict::Worse).count();
    assert_eq!((worse, verdicts.last()), (2, Some(&RecordVerdict::Worse)), "{verdicts:?}");
    let after = scene.run(190.0, 760, nothing);
    assert!(after[..719].iter().all(degraded) && !after[721..].iter().any(degraded), "for an hour");
    let pods = |tick: usize| after[tick].desired.replicas.get();
    assert!(pods(700) > pods(759), "a reserve of 30 %: {} and then {}", pods(700), pods(759));
}

#[test]
fn a_scale_down_for_the_worse_is_undone() {
    let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
    scene.run(100.0, 24, nothing);
    let before = scene.replicas();
    let few =
        move |seen: &mut Observation| answers(seen, if seen.current.replicas.get() < before { 0.3 } else { 0.05 });
    let decisions = scene.run(60.0, 60, few);
    let pods: Vec<u32> = decisions.iter().map(|decision| decision.desired.replicas.get()).collect();
    let fewer = pods.iter().position(|pods| *pods < before).unwrap();
    let undone = decisions.iter().position(|one| one.action == Action::Change { trigger: Trigger::BackOff }).unwrap();
    assert!((7..12).contains(&(undone - fewer)), "after a start and a window, 38 s: {pods:?}");
    assert!(pods[undone..].iter().take(12).all(|pods| *pods == before), "for twice the hold, 60 s: {pods:?}");
    let verdicts: Vec<_> =
        judged(&decisions).iter().filter(|one| one.to.replicas.get() < before).map(|one| one.verdict).collect();
    assert_eq!(verdicts, [Some(RecordVerdict::Worse)]);
}

#[test]
fn a_device_that_became_slower_is_learned_anew_and_gets_its_pods() {
    let mut scene = Scene::new(CPU, policy(Accelerator::Cpu));
    scene.run(60.0, 60, nothing);
    let saturation = |decision: &Decision| decision.explanation.capacity.mu_sat.get();
    let before = scene.run(60.0, 1, nothing).pop().unwrap();
    assert!((saturation(&before) * 0.016 - 1.0).abs() < 0.01);
    scene.fleet.kind.beta_s *= 1.6;
    let after = scene.run(60.0, 60, nothing);
    let learned = saturation(&after[5]) * 0.0256;
    assert!((learned - 1.0).abs() < 0.02, "six samples do, whatever ran before: {learned}");
    assert!((saturation(&after[59]) * 0.0256 - 1.0).abs() < 0.01, "{}", saturation(&after[59]));
    let pods: Vec<u32> = after.iter().map(|decision| decision.desired.replicas.get()).collect();
    assert!(pods[59] > before.desired.replicas.get() && pods.is_sorted(), "and never fewer on the way: {pods:?}");
}
