//! The conditions besides the targets: are there metrics, may we steer, can it be done, what is in the way.

use crate::choose::Choice;
use crate::explain::{Condition, ConditionReason, Conflict, ConstraintKind, Relaxation, Tristate};
use crate::intake::{COVERAGE_MIN, Seen};
use crate::observation::Observation;
use crate::policy::{Mode, Policy};
use crate::state::State;

fn condition(status: Tristate, reason: ConditionReason, message: String) -> Condition {
    Condition { status, reason, message }
}

/// Whether the samples allow a decision.
pub(crate) fn metrics_available(seen: &Seen, state: &State) -> Condition {
    let share = format!("{} of {} ready pods have a fresh sample", seen.live, seen.ready);
    if state.last_live.is_none() {
        let message = format!("No usable sample has been seen yet; ready pods: {}.", seen.ready);
        return condition(Tristate::False, ConditionReason::NoData, message);
    }
    if seen.live > 0 && seen.sampled == 0 {
        let message = format!("All {} ready pods are too new for a sample, which takes two looks.", seen.ready);
        return condition(Tristate::False, ConditionReason::Stale, message);
    }
    if seen.ready == 0 || seen.sampled == 0 || seen.coverage() < COVERAGE_MIN {
        return condition(Tristate::False, ConditionReason::Stale, format!("{share}; no decision below 60 %."));
    }
    let reason = if seen.live < seen.ready { ConditionReason::Partial } else { ConditionReason::Fresh };
    condition(Tristate::True, reason, format!("{share}."))
}

/// Whether the planner moves anything.
pub(crate) fn scaling_active(policy: &Policy, observation: &Observation) -> Condition {
    let modes = [policy.replicas.mode, policy.batch.mode, policy.cache.mode];
    let (reason, message) = if policy.paused {
        (ConditionReason::Paused, "Paused: the knobs stay as they are.")
    } else if observation.other_manager {
        (ConditionReason::OtherManager, "Another autoscaler manages the replicas: the knobs stay as they are.")
    } else if modes.contains(&Mode::Auto) {
        return condition(Tristate::True, ConditionReason::Active, "The planner moves the knobs.".to_owned());
    } else if modes.contains(&Mode::Recommend) {
        (ConditionReason::ModeRecommend, "The planner only recommends.")
    } else {
        (ConditionReason::ModeOff, "All knobs are off.")
    };
    condition(Tristate::False, reason, message.to_owned())
}

/// Whether the targets can hold at the planned load; a conflict between two of them is told with the answer.
pub(crate) fn targets_feasible(
    choice: Option<&Choice>,
    relaxations: &[Relaxation],
    conflict: Option<&Conflict>,
) -> Condition {
    let mut condition = feasible(choice, relaxations);
    if let Some(conflict) = conflict {
        condition.message = format!("{} {}", condition.message, conflict.sentence);
    }
    condition
}

fn feasible(choice: Option<&Choice>, relaxations: &[Relaxation]) -> Condition {
    let Some(choice) = choice else {
        let message = "How long a batch takes is not known yet.".to_owned();
        return condition(Tristate::Unknown, ConditionReason::CurveUnknown, message);
    };
    let (reason, what) = match choice.infeasible {
        None => {
            let message = "The targets can hold at the planned load.".to_owned();
            return condition(Tristate::True, ConditionReason::Feasible, message);
        }
        Some(ConstraintKind::InferenceLatency) => {
            (ConditionReason::InferenceTooSlow, "one image alone takes longer than the inference threshold")
        }
        Some(ConstraintKind::ApiLatency) => {
            (ConditionReason::ApiOverhead, "overhead and one image alone exceed the API threshold")
        }
        Some(ConstraintKind::Memory) => {
            (ConditionReason::MemoryShort, "the model does not fit into 90 % of the memory")
        }
        Some(ConstraintKind::Throughput) => {
            (ConditionReason::ReplicasMax, "replicas.max pods do not reach the throughput target")
        }
        Some(_) => (ConditionReason::ReplicasMax, "replicas.max pods do not carry the planned load"),
    };
    let helps: Vec<&str> = relaxations.iter().map(|relaxation| relaxation.sentence.as_str()).collect();
    let remedy =
        if helps.is_empty() { String::new() } else { format!(" Any of these alone would do: {}.", helps.join("; ")) };
    condition(Tristate::False, reason, format!("The targets cannot hold: {what}.{remedy}"))
}

/// What keeps the knobs from where they should be.
///
/// `degraded`: the model is not used, because measured latency contradicts it.
pub(crate) fn scaling_limited(policy: &Policy, seen: &Seen, choice: Option<&Choice>, degraded: bool) -> Condition {
    let max = policy.replicas.max.get();
    if seen.unschedulable || seen.stuck > 0 {
        let message = if seen.unschedulable {
            "A pod waits because no node has room for it.".to_owned()
        } else {
            format!("Pods that take longer than three usual starts: {}.", seen.stuck)
        };
        return condition(Tristate::True, ConditionReason::Unschedulable, message);
    }
    if degraded {
        let message =
            "Measured latency contradicts the model: pods are ordered with a reserve of 30 % instead.".to_owned();
        return condition(Tristate::True, ConditionReason::ModelDegraded, message);
    }
    match choice {
        Some(choice) if choice.needed.is_some_and(|needed| needed > max) => {
            let message = format!("{} pods are needed, replicas.max is {max}.", choice.needed.unwrap_or(max));
            condition(Tristate::True, ConditionReason::AtMaximum, message)
        }
        Some(choice) if choice.needed.is_some_and(|needed| needed < policy.replicas.min.get()) => {
            let (needed, min) = (choice.needed.unwrap_or(1), policy.replicas.min.get());
            condition(
                Tristate::True,
                ConditionReason::AtMinimum,
                format!("{needed} pods would do, replicas.min is {min}."),
            )
        }
        _ => condition(Tristate::False, ConditionReason::NotLimited, "Nothing is in the way.".to_owned()),
    }
}
