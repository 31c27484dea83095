//! Events (events.k8s.io): what a person who asks "what happened?" should read. Decisions and turns of conditions only.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Resource, ResourceExt};
use yolo_api::v1alpha1::YoloInferenceServiceStatus;
use yolo_api::v1alpha1::conditions::ConditionType;
use yolo_planner::Record;

use super::{Object, Untold};
use crate::call::{Access, Target};
use crate::error::Error;
use crate::observe::Ownership;
use crate::reconcile::Done;

/// Longest note that the API server takes.
const NOTE_BYTES_MAX: usize = 1000;
/// The conditions whose turns are told; the others turn with every rollout.
const TOLD: [ConditionType; 6] = [
    ConditionType::Ready,
    ConditionType::Stalled,
    ConditionType::TargetsMet,
    ConditionType::TargetsFeasible,
    ConditionType::MetricsAvailable,
    ConditionType::ScalingActive,
];

/// The Events of one reconcile.
pub fn events(
    outcome: &Result<Done, Error>,
    untold: &Untold,
    before: &YoloInferenceServiceStatus,
    after: &YoloInferenceServiceStatus,
) -> Vec<Event> {
    let decided = |record: &Record| event(EventType::Normal, "KnobsChanged", "Scale", &record.reason);
    let mut events: Vec<Event> = untold.made.iter().map(decided).collect();
    events.extend(outcome.as_ref().ok().and_then(reverted));
    events.extend(after.conditions.iter().filter_map(|condition| turn(&before.conditions, condition)));
    events
}

fn reverted(done: &Done) -> Option<Event> {
    let Ownership::Ours { foreign: Some(by), reverting: true, .. } = &done.seen.ownership else { return None };
    let wanted = done.decision.desired.replicas.get();
    let note = format!(
        "{} changed the number of pods; the operator sets it and puts it back to {wanted}. To set it yourself, set \
         scaling.replicas.fixed, or scaling.replicas.mode to Off.",
        by.manager
    );
    Some(event(EventType::Warning, "ReplicasReverted", "Scale", &note))
}

/// An Event if the condition is told and has turned: another status, or another reason for a bad one. The first status of
/// a new object is news only where it is bad.
fn turn(before: &[Condition], after: &Condition) -> Option<Event> {
    let told = TOLD.iter().find(|kind| kind.as_str() == after.type_)?;
    let bad = match told {
        ConditionType::Stalled => after.status == "True",
        _ => after.status == "False",
    };
    let starting = matches!(after.reason.as_str(), "PodsNotReady" | "NoData");
    let old = before.iter().find(|condition| condition.type_ == after.type_);
    let turned = match old {
        // Nothing was known before: what every new object goes through is no news either.
        Some(old) if old.status == "Unknown" && bad => !starting,
        Some(old) => old.status != after.status || (bad && old.reason != after.reason),
        None => bad && !starting,
    };
    // Unknown says that nothing is known: nothing happened.
    let kind = if bad { EventType::Warning } else { EventType::Normal };
    (turned && after.status != "Unknown").then(|| event(kind, &after.reason, told.as_str(), &after.message))
}

fn event(type_: EventType, reason: &str, action: &str, note: &str) -> Event {
    let mut note = note.to_owned();
    while note.len() > NOTE_BYTES_MAX {
        note.pop();
    }
    Event { type_, reason: reason.to_owned(), note: Some(note), action: action.to_owned(), secondary: None }
}

/// Publishes one Event. A failure is logged and forgotten: Events are for people, and nothing may wait for them.
pub async fn publish(access: Access<'_>, reporter: &Reporter, object: &Object, event: &Event) {
    // A recorder of its own: one that lives longer folds an Event into an earlier one of the same reason and keeps that
    // one's note, so that the second decision would be told in the words of the first.
    let recorder = Recorder::new(access.client.clone(), reporter.clone());
    let target = Target::new("Event", &object.namespace().unwrap_or_default(), &object.name_any());
    if let Err(error) = access.write(&target, recorder.publish(event, &object.object_ref(&()))).await {
        tracing::warn!(error = error.detail(), reason = event.reason, "An Event was lost.");
    }
}
