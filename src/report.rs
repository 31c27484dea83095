//! Tells people: status, conditions, Events, the log; of success and of failure alike.
//!
//! Reads: the outcome of the steps, and the status as last written. Writes: `status` by server-side apply, and Events. Does
//! not: write when nothing worth it changed (`worth`), or take the status for the truth about anything.

mod conditions;
mod events;
mod learned;
mod log;
mod status;
mod text;
mod untold;
mod worth;

use kube::api::{Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use yolo_api::v1alpha1::{YoloInferenceService, YoloInferenceServiceStatus};
use yolo_planner::units::Timestamp;

use crate::call::{Access, Target, WriteError};
use crate::context::Context;
use crate::error::Error;
use crate::fleet::ServiceId;
use crate::leader::LeaderToken;
use crate::reconcile::Done;

pub use untold::Untold;

/// The field manager of the status, which is none of the children's business.
const STATUS_MANAGER: &str = "yolo-operator-status";

/// What `report` remembers of a service between two reconciles.
#[derive(Debug, Clone)]
pub struct Kept {
    /// The status as last written.
    status: YoloInferenceServiceStatus,
    /// When that was.
    written: Timestamp,
    /// The figures that it showed.
    shown: Vec<f64>,
    /// When `status.learned` was last written.
    learned: Option<Timestamp>,
}

type Object = DeserializeGuard<YoloInferenceService>;

/// Brings the status up to date with `outcome`.
///
/// # Errors
/// [`WriteError`] of the status. A lost Event is only logged.
pub async fn report(
    ctx: &Context,
    leader: &LeaderToken,
    object: &Object,
    outcome: &Result<Done, Error>,
) -> Result<(), WriteError> {
    let now = ctx.clock.now();
    let id = ServiceId { namespace: object.namespace().unwrap_or_default(), name: object.name_any() };
    let uid = object.uid().unwrap_or_default();
    let kept = ctx.reported.of(&id, &uid);
    let before = before(kept.as_ref(), object);
    // A decision is told once it is in place, and only then: the Events below repeat none and lose none.
    let untold = ctx.untold.of(&id, &uid).filter(|_| outcome.is_ok()).unwrap_or_default();
    let mut after = match outcome {
        Ok(done) => status::status(done, &before, &untold, now),
        Err(error) => status::failed(error, &before, object.meta().generation, now),
    };
    let learned = outcome.as_ref().ok().and_then(|done| learned::due(&done.decision.state, kept.as_ref(), now));
    let learned_now = learned.is_some();
    after.learned = learned.or_else(|| before.learned.clone());
    let shown = match outcome {
        Ok(done) => worth::shown(&done.decision.explanation),
        Err(_) => kept.as_ref().map(|kept| kept.shown.clone()).unwrap_or_default(), // A failure shows what was shown.
    };

    let access = Access { client: &ctx.client, leader, metrics: &ctx.metrics };
    let last = kept.as_ref().map(|kept| (kept.written, kept.shown.as_slice()));
    if worth::worth(&before, &after, learned_now, worth::Shown { last, next: &shown, now }) {
        write(access, &id, &after).await?;
        let learned = if learned_now { Some(now) } else { kept.and_then(|kept| kept.learned) };
        ctx.reported.keep(&id, &uid, Kept { status: after.clone(), written: now, shown, learned });
    }
    if outcome.is_ok() {
        ctx.untold.forget(&id);
    }
    // After the status: an Event that tells of something the object does not show would mislead.
    for event in events::events(outcome, &untold, &before, &after) {
        events::publish(access, &ctx.reporter, object, &event).await;
    }
    for record in &untold.made {
        log::decided(&id, record);
        ctx.metrics.decided(text::trigger(record.trigger));
    }
    if let Some(took_s) = conditions::converged_s(&before.conditions, &after.conditions) {
        ctx.metrics.converged(took_s);
    }
    Ok(())
}

/// The status as last written: remembered, because the watch may not have shown it yet.
fn before(kept: Option<&Kept>, object: &Object) -> YoloInferenceServiceStatus {
    let stored = || object.0.as_ref().ok().and_then(|service| service.status.clone()).unwrap_or_default();
    kept.map_or_else(stored, |kept| kept.status.clone())
}

async fn write(access: Access<'_>, id: &ServiceId, status: &YoloInferenceServiceStatus) -> Result<(), WriteError> {
    // By name, with the guarded type: it works for an object that our types cannot parse.
    let api: Api<Object> = Api::namespaced(access.client.clone(), &id.namespace);
    let target = Target::new("YoloInferenceService", &id.namespace, &id.name);
    let document = json!({
        "apiVersion": YoloInferenceService::api_version(&()),
        "kind": YoloInferenceService::kind(&()),
        "metadata": {"name": id.name},
        "status": status,
    });
    // By force: nobody else has a reason to write a status, and a field that somebody did write must not stay for ever.
    let (params, patch) = (PatchParams::apply(STATUS_MANAGER).force(), Patch::Apply(&document));
    access.write(&target, api.patch_status(&id.name, &params, &patch)).await.map(|_object| ())
}
