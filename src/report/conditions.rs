//! What was seen and decided as the eight conditions, each from the closed table of `yolo_api::v1alpha1::conditions`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use yolo_api::v1alpha1::conditions::{Reason, set};
use yolo_planner::decision::{Action, HoldReason};
use yolo_planner::explain::{Condition as Judged, ConditionReason, Tristate};

use crate::call::Category;
use crate::error::Error;
use crate::fleet::{PodPhase, PodView, Termination};
use crate::observe::Ownership;
use crate::reconcile::Done;

/// The conditions after a whole reconcile.
pub fn conditions(done: &Done, before: &[Condition], now: &Time) -> Vec<Condition> {
    let mut after = before.to_vec();
    let judged = &done.decision.explanation.conditions;
    let mut put = |reason: Reason, detail: Option<&str>| {
        set(&mut after, reason, detail, Some(done.spec.generation), now);
    };
    let (ready, detail) = ready(done);
    put(ready, detail.as_deref());
    put(reconciling(done), None);
    put(Reason::NotStalled, None);
    put(targets_met(&judged.targets_met), sentence(&judged.targets_met));
    put(targets_feasible(&judged.targets_feasible), sentence(&judged.targets_feasible));
    put(metrics_available(done), metrics_detail(done).as_deref());
    let (active, detail) = scaling_active(done);
    put(active, detail.as_deref());
    let (limited, detail) = scaling_limited(done);
    put(limited, detail);
    after
}

/// The conditions after a failure: what the planner judged last stays.
pub fn failed(error: &Error, before: &[Condition], generation: Option<i64>, now: &Time) -> Vec<Condition> {
    let mut after = before.to_vec();
    let detail = error.chain();
    let mut put = |reason: Reason| set(&mut after, reason, Some(&detail), generation, now);
    match error {
        Error::Malformed(_) => put(Reason::Malformed),
        Error::Validate(_) => {
            put(Reason::ReadyInvalidSpec);
            put(Reason::InvalidSpec);
        }
        Error::Apply(error) => put(match error.category() {
            Category::Conflict => Reason::FieldConflict,
            Category::Denied => Reason::Denied,
            _ => Reason::ApplyFailed,
        }),
        Error::Report(_) | Error::TooSlow(_) | Error::NotLeader(_) => put(Reason::ApplyFailed),
    }
    after
}

/// Serving the desired generation with at least `replicas.min` pods. A pod that refuses its model is not hidden by pods of
/// the previous generation that still serve.
fn ready(done: &Done) -> (Reason, Option<String>) {
    let living = || done.seen.pods.iter().filter(|pod| pod.phase != PodPhase::Draining);
    if let Some((pod, why)) = living().find_map(|pod| Some((pod, pod.termination.as_ref()?))) {
        return (refusal(why), Some(format!("{} (pod {})", why.message, pod.name)));
    }
    let ready = living().filter(|pod| pod.phase == PodPhase::Ready).count();
    let wanted = done.spec.policy.replicas.min.get();
    if u32::try_from(ready).is_ok_and(|ready| ready >= wanted) {
        return (Reason::Serving, None);
    }
    let failing = |pod: &&PodView| pod.phase != PodPhase::Ready && pod.restarts > 0;
    match living().find(failing) {
        Some(pod) => (Reason::PodsFailing, Some(format!("Pod {} ends and restarts; see its log.", pod.name))),
        None => (Reason::PodsNotReady, Some(format!("{ready} of at least {wanted} pods are ready."))),
    }
}

/// What the server's own code for its refusal means.
fn refusal(why: &Termination) -> Reason {
    match why.code.as_str() {
        "model_missing" => Reason::ModelMissing,
        "model_truncated" => Reason::ModelTruncated,
        "model_digest_mismatch" => Reason::ModelDigestMismatch,
        "model_unsupported" => Reason::ModelUnsupported,
        "engine_unavailable" => Reason::EngineUnavailable,
        _ => Reason::PodsFailing,
    }
}

fn reconciling(done: &Done) -> Reason {
    let ready = done.seen.pods.iter().filter(|pod| pod.phase == PodPhase::Ready).count();
    let complete = u32::try_from(ready).is_ok_and(|ready| ready == done.decision.desired.replicas.get());
    if complete && !done.seen.observation.rolling { Reason::UpToDate } else { Reason::Progressing }
}

fn targets_met(judged: &Judged) -> Reason {
    match (judged.status, judged.reason) {
        (Tristate::True, _) => Reason::AllMet,
        (Tristate::False, _) => Reason::TargetMissed,
        (Tristate::Unknown, ConditionReason::Measuring) => Reason::TargetsMeasuring,
        (Tristate::Unknown, ConditionReason::Stale) => Reason::TargetsStale,
        (Tristate::Unknown, _) => Reason::TargetsNoData,
    }
}

fn targets_feasible(judged: &Judged) -> Reason {
    match (judged.status, judged.reason) {
        (Tristate::True, _) => Reason::Feasible,
        (Tristate::False, ConditionReason::InferenceTooSlow) => Reason::InferenceTooSlow,
        (Tristate::False, ConditionReason::ApiOverhead) => Reason::ApiOverheadTooHigh,
        (Tristate::False, ConditionReason::MemoryShort) => Reason::MemoryShort,
        (Tristate::False, _) => Reason::ReplicasMaxTooLow,
        (Tristate::Unknown, ConditionReason::CurveUnknown) => Reason::FeasibleCurveUnknown,
        (Tristate::Unknown, _) => Reason::FeasibleNoData,
    }
}

fn metrics_available(done: &Done) -> Reason {
    let judged = &done.decision.explanation.conditions.metrics_available;
    let measurable = done.seen.pods.iter().any(|pod| pod.phase == PodPhase::Ready);
    match judged.reason {
        ConditionReason::Stale => Reason::MetricsStale,
        _ if !measurable => Reason::MetricsUnknown,
        ConditionReason::Partial => Reason::MetricsPartial,
        ConditionReason::Fresh => Reason::MetricsFresh,
        _ => Reason::MetricsNoData,
    }
}

/// The planner's sentence, and why a pod could not be read: "connection refused" is what a person can act on.
fn metrics_detail(done: &Done) -> Option<String> {
    let sentence = sentence(&done.decision.explanation.conditions.metrics_available)?;
    match done.seen.snapshot.as_ref().and_then(|snapshot| snapshot.trouble()) {
        Some(trouble) => Some(format!("{sentence} {trouble}.")),
        None => Some(sentence.to_owned()),
    }
}

fn scaling_active(done: &Done) -> (Reason, Option<String>) {
    let judged = &done.decision.explanation.conditions.scaling_active;
    let by = match &done.seen.ownership {
        Ownership::Foreign { by, .. } => Some(by.manager.clone()),
        Ownership::Autoscaled { autoscaler, .. } => Some(format!("HorizontalPodAutoscaler {autoscaler}")),
        Ownership::Ours { .. } | Ownership::Released { .. } => None,
    };
    if let Some(by) = by {
        let detail = format!("{by} sets the number of pods; remove it, or set scaling.replicas.mode to Off.");
        return (Reason::ConflictingAutoscaler, Some(detail));
    }
    let reason = match judged.reason {
        ConditionReason::Paused => Reason::Paused,
        ConditionReason::ModeOff => Reason::ModeOff,
        ConditionReason::ModeRecommend => Reason::ModeRecommend,
        ConditionReason::OtherManager => Reason::ConflictingAutoscaler,
        _ => Reason::ScalingIsActive,
    };
    (reason, sentence(judged).map(ToOwned::to_owned))
}

fn scaling_limited(done: &Done) -> (Reason, Option<&str>) {
    let judged = &done.decision.explanation.conditions.scaling_limited;
    let reason = match judged.reason {
        ConditionReason::AtMaximum => Reason::AtMaximum,
        ConditionReason::AtMinimum => Reason::AtMinimum,
        ConditionReason::Unschedulable => Reason::Unschedulable,
        ConditionReason::ModelDegraded => Reason::ModelDegraded,
        _ => return held(done),
    };
    (reason, sentence(judged))
}

/// A pod that no node has room for, else what the planner waits for.
fn held(done: &Done) -> (Reason, Option<&str>) {
    if done.seen.pods.iter().any(|pod| pod.phase == PodPhase::Unschedulable) {
        return (Reason::Unschedulable, None);
    }
    let reason = match done.decision.action {
        Action::Hold { reason: HoldReason::ColdStart } => Reason::ColdStart,
        Action::Hold { reason: HoldReason::Pending } => Reason::Pending,
        Action::Hold { reason: HoldReason::Stabilizing } => Reason::Stabilizing,
        Action::Hold { reason: HoldReason::CurveUnknown } => Reason::LimitedCurveUnknown,
        Action::Hold { reason: HoldReason::FlapDamped } => Reason::FlapDamped,
        Action::Hold { reason: HoldReason::NonFinite } => Reason::NonFinite,
        Action::Hold { .. } | Action::Change { .. } => return (Reason::WithinRange, None),
    };
    (reason, Some(done.decision.explanation.reason.as_str()))
}

/// The planner's sentence; an empty one leaves the table's.
fn sentence(judged: &Judged) -> Option<&str> {
    Some(judged.message.as_str()).filter(|message| !message.is_empty())
}
