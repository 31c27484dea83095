//! One reconcile of one `YoloInferenceService`, top to bottom:
//! `token -> validate -> observe -> plan -> build -> apply`, then always `report`.

use std::sync::Arc;

use kube::Resource;
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use yolo_api::v1alpha1::YoloInferenceService;
use yolo_planner::Decision;

use crate::apply::Applied;
use crate::build::Desired;
use crate::context::Context;
use crate::error::Error;
use crate::leader::LeaderToken;
use crate::observe::Seen;
use crate::validate::Validated;
use crate::{apply, build, cadence, limits, observe, report, validate};

/// What one reconcile saw, decided and did.
pub struct Done {
    /// What was asked.
    pub spec: Validated,
    /// What was there.
    pub seen: Seen,
    /// What was decided.
    pub decision: Decision,
    /// Evidence that it is in place.
    pub applied: Applied,
}

/// Reconciles one object. Idempotent: it starts from what is there, and may stop anywhere.
///
/// # Errors
/// The [`Error`] of the step that failed; the status tells of it too, except for the loss of leadership.
pub async fn reconcile(
    object: Arc<DeserializeGuard<YoloInferenceService>>,
    ctx: Arc<Context>,
) -> Result<Action, Error> {
    let leader = ctx.leader.token().map_err(Error::NotLeader)?; // evidence, not a bool
    if object.meta().deletion_timestamp.is_some() {
        // The garbage collector takes the children first; applied again, they would keep the object for ever.
        return Ok(cadence::requeue(limits::REQUEUE));
    }
    let outcome = Box::pin(steps(&object, &ctx, &leader)).await;
    report::report(&ctx, &leader, &object, &outcome).await.map_err(Error::Report)?; // API: status, Events; of the failure too
    outcome.map(|done| cadence::requeue(done.applied.looks_again())) // always, jittered
}

async fn steps(
    object: &DeserializeGuard<YoloInferenceService>,
    ctx: &Context,
    leader: &LeaderToken,
) -> Result<Done, Error> {
    let service = object.0.as_ref().map_err(|invalid| Error::Malformed(Box::new(invalid.clone())))?;
    let spec = validate::validate(service, &ctx.defaults).map_err(Error::Validate)?; // pure
    let state = ctx.states.of(&spec.id, &spec.uid).unwrap_or_else(|| observe::seed(service)); // memory
    let seen = observe::observe(ctx, &spec, (service.status.as_ref(), &state)); // memory, total
    ctx.metrics.sampler.decided_on(&seen.observation.pods);
    let decision = yolo_planner::plan(&seen.policy, &seen.observation, &state, seen.now); // pure, total: Hold{reason}
    let desired: Desired = build::build(&spec, &decision, seen.sets_replicas(), &ctx.defaults); // pure
    ctx.states.keep(&spec.id, &spec.uid, decision.state.clone());
    // With the state, which will not tell them again: whatever fails from here on, a later status shows them.
    let untold = ctx.untold.of(&spec.id, &spec.uid).unwrap_or_default().with(&decision);
    ctx.untold.keep(&spec.id, &spec.uid, untold);
    let applied = Box::pin(apply::apply(ctx, leader, &spec, &seen, desired)).await.map_err(Error::Apply)?; // API: SSA
    Ok(Done { spec, seen, decision, applied })
}
