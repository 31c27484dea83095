//! What the pods must be enough for besides the planned arrivals: tasks, a model that is not to be trusted, a budget
//! that burns, knobs that not all pods have taken (control.md §6 to §8).

use crate::capacity::Model;
use crate::choose::Choice;
use crate::decision::Trigger;
use crate::explain::ConstraintKind;
use crate::policy::Policy;
use crate::state::State;
use crate::units::{Replicas, ceil_u32};

/// Share of a pod's best rate within the target that a fleet may run at whose model is not trusted (control.md §8).
const FALLBACK_SHARE: f64 = 0.7;
/// Share of `complete_within` in which a task that waits should be done: the rest is for the pods' start and for tasks
/// that take longer than the mean.
const TASK_SHARE: f64 = 0.5;
/// Least time to work off waiting tasks, seconds: pods for less would come too late.
const TASK_MIN_S: f64 = 60.0;

/// The rates that the pods are for, images/s.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    /// Planned arrivals at the engines.
    pub(crate) planned: f64,
    /// Arrivals at the engines now.
    pub(crate) level: f64,
    /// Pods that share them.
    pub(crate) ready: u32,
    /// Tasks' images that wait.
    pub(crate) tasks: f64,
}

/// `choice` with as many pods as everything else needs, and what made it more.
///
/// `policy`: with the knobs that the planner does not move fixed.
pub(crate) fn raise(
    policy: &Policy,
    state: &State,
    model: &Model,
    (choice, rates, now_s): (Choice, Rates, f64),
) -> (Choice, Option<Trigger>) {
    // More pods do not help against a lone image that is too slow.
    let helps = choice.needed.is_some();
    let batch = choice.batch.get().min(model.times.largest());
    let mut needs = vec![(tasks(policy, model, batch, rates), Trigger::Backlog)];
    needs.push((
        state.guard.other_batch(now_s).and_then(|other| slower(model, other.get(), rates.planned)),
        Trigger::Model,
    ));
    needs.push((state.guard.floor(now_s).map(Replicas::get), Trigger::BackOff));
    if helps && fallback(state, now_s) {
        needs.push((without_model(model, batch, rates.planned), Trigger::Model));
    }
    let (pods, trigger) = most(choice.replicas, needs);
    // One more than all else says: the burn itself says that all else is too little, unless the pods' shares say why.
    let shares = (batch, rates.level, rates.ready);
    let burning = helps && state.burn.burning(policy) && !imbalance_explains(state, model, shares);
    let (pods, trigger) = if burning { (pods.saturating_add(1), Some(Trigger::SloBurn)) } else { (pods, trigger) };
    let raised = policy.replicas.clamp(Replicas::new(pods)).get();
    if raised <= choice.replicas {
        return (choice, None);
    }
    (with_replicas(model, choice, (batch, raised, pods)), trigger)
}

/// Whether the model is not to be used (control.md §8, `ModelDegraded`).
pub(crate) fn fallback(state: &State, now_s: f64) -> bool {
    state.feedback.degraded(now_s) || state.guard.distrusts(now_s)
}

/// Whether images are late because pods get unequal shares: a busy one gets more than a pod carries that shares its
/// queue with no other (control.md §9, `Imbalance`). `level`: arrivals at the engines of the `ready` pods.
pub(crate) fn imbalance_explains(state: &State, model: &Model, (batch, level, ready): (u32, f64, u32)) -> bool {
    let each = level / f64::from(ready.max(1));
    let carried = model.pod(batch, 1).map_or(0.0, |pod| pod.carried);
    ready > 1 && state.diagnosis.watch.unequal().is_some_and(|busy| each * busy > carried)
}

/// The greatest need above `least`, the first of equals.
fn most(least: u32, needs: Vec<(Option<u32>, Trigger)>) -> (u32, Option<Trigger>) {
    needs.into_iter().fold((least, None), |(pods, trigger), (need, why)| match need {
        Some(need) if need > pods => (need, Some(why)),
        _ => (pods, trigger),
    })
}

/// Pods that carry the arrivals of now and the tasks that wait, in time: tasks run on what the plan leaves over.
fn tasks(policy: &Policy, model: &Model, batch: u32, rates: Rates) -> Option<u32> {
    if rates.tasks < 1.0 {
        return None;
    }
    let within_s = (TASK_SHARE * policy.complete_within.get()).max(TASK_MIN_S);
    model.pods_for(batch, rates.level + rates.tasks / within_s)
}

/// Pods that carry the plan with batches up to `batch`, as far as the curve reaches.
fn slower(model: &Model, batch: u32, planned: f64) -> Option<u32> {
    model.pods_for(batch.min(model.times.largest()), planned)
}

/// Pods by a lone pod's best rate within the target, with a reserve for all that the model would have said.
fn without_model(model: &Model, batch: u32, planned: f64) -> Option<u32> {
    let best = model.pod(batch, 1).map(|pod| pod.carried).filter(|rate| *rate > 0.0)?;
    Some(ceil_u32(planned / (FALLBACK_SHARE * best)))
}

fn with_replicas(model: &Model, mut choice: Choice, (batch, replicas, needed): (u32, u32, u32)) -> Choice {
    choice.replicas = replicas;
    choice.needed = choice.needed.map(|before| before.max(needed));
    if let Some(pod) = model.pod(batch, replicas).filter(|pod| pod.carried > 0.0) {
        choice.pod = pod;
    }
    let pods = f64::from(replicas);
    for constraint in &mut choice.constraints {
        match constraint.kind {
            ConstraintKind::Capacity => constraint.value = choice.pod.carried * pods,
            ConstraintKind::ReplicasMin => {
                (constraint.value, constraint.binding) = (pods, pods <= constraint.limit);
            }
            ConstraintKind::ReplicasMax => constraint.value = pods,
            _ => {}
        }
    }
    choice
}
