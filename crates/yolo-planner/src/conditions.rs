//! The conditions besides the targets: are there metrics, may we steer, can it be done, what is in the way.

use crate::choose::Choice;
use crate::explain::{Condition, ConditionReason, Conflict, ConstraintKind, Relaxation, Tristate};
use crate::intake::{COVERAGE_MIN, Seen};
use crate::observation::Observation;
use crate::policy::{Knob, Mode, Policy};
use crate::reason::pods;
use crate::state::State;
use crate::units::BatchSize;

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
///
/// `policy`: with the knobs that the planner does not move fixed; `alone`: one image alone is too slow.
pub(crate) fn targets_feasible(
    policy: &Policy,
    (choice, alone): (Option<&Choice>, bool),
    relaxations: &[Relaxation],
    conflict: Option<&Conflict>,
) -> Condition {
    let mut condition = feasible(policy, (choice, alone), relaxations);
    if let Some(conflict) = conflict {
        condition.message = format!("{} {}", condition.message, conflict.sentence);
    }
    condition
}

/// The most pods that may be, and who says so: "replicas.max pods", "the 2 fixed pods".
fn most_pods(policy: &Policy) -> String {
    let Knob { mode, min, max } = policy.replicas;
    let most = pods(max.max(min).get());
    match mode {
        Mode::Auto if min < max => "replicas.max pods".to_owned(),
        Mode::Auto => format!("the fixed {most}"),
        Mode::Recommend | Mode::Off => format!("the {most} that replicas.mode {mode:?} leaves"),
    }
}

/// The smallest batch that may be, and who says so: "batches of 8, the smallest allowed,".
fn least_batch(policy: &Policy) -> String {
    let Knob { mode, min, .. } = policy.batch;
    let why = match mode {
        Mode::Auto => "the smallest allowed".to_owned(),
        Mode::Recommend | Mode::Off => format!("which batch.mode {mode:?} leaves"),
    };
    format!("batches of {}, {why},", min.get())
}

fn feasible(policy: &Policy, (choice, alone): (Option<&Choice>, bool), relaxations: &[Relaxation]) -> Condition {
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
            let what = if alone || policy.batch.min == BatchSize::ONE {
                "one image alone takes".to_owned()
            } else {
                format!("{} take", least_batch(policy))
            };
            (ConditionReason::InferenceTooSlow, format!("{what} longer than the inference threshold"))
        }
        Some(ConstraintKind::ApiLatency) => {
            (ConditionReason::ApiOverhead, "overhead and one image alone exceed the API threshold".to_owned())
        }
        Some(ConstraintKind::Memory) => {
            (ConditionReason::MemoryShort, "the model does not fit into 90 % of the memory".to_owned())
        }
        Some(ConstraintKind::Throughput) => {
            (ConditionReason::ReplicasMax, format!("{} cannot reach the throughput target", most_pods(policy)))
        }
        Some(_) => (ConditionReason::ReplicasMax, format!("{} cannot carry the planned load", most_pods(policy))),
    };
    let helps: Vec<&str> = relaxations.iter().map(|relaxation| relaxation.sentence.as_str()).collect();
    let remedy =
        if helps.is_empty() { String::new() } else { format!(" Any of these alone would do: {}.", helps.join("; ")) };
    condition(Tristate::False, reason, format!("The targets cannot hold: {what}.{remedy}"))
}

/// What keeps the knobs from where they should be.
///
/// `policy`: with the knobs that the planner does not move fixed; `degraded`: the model is not used, because measured
/// latency contradicts it.
pub(crate) fn scaling_limited(policy: &Policy, seen: &Seen, choice: Option<&Choice>, degraded: bool) -> Condition {
    let Knob { mode, min, max } = policy.replicas;
    let (min, max) = (min.get(), max.max(min).get());
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
            let needed = pods(choice.needed.unwrap_or(max));
            let message = if min < max {
                format!("{needed} are needed, replicas.max is {max}.")
            } else {
                format!("{needed} are needed, more than {}.", most_pods(policy))
            };
            condition(Tristate::True, ConditionReason::AtMaximum, message)
        }
        Some(choice) if mode == Mode::Auto && choice.needed.is_some_and(|needed| needed < min) => {
            let needed = pods(choice.needed.unwrap_or(1));
            let message = if min < max {
                format!("{needed} would do, replicas.min is {min}.")
            } else {
                format!("{needed} would do, {min} are fixed.")
            };
            condition(Tristate::True, ConditionReason::AtMinimum, message)
        }
        _ => condition(Tristate::False, ConditionReason::NotLimited, "Nothing is in the way.".to_owned()),
    }
}
