//! The controller of one term of leadership: what wakes a reconcile, how many run, when a failed one comes again.

use std::sync::Arc;
use std::time::Instant;

use futures::channel::mpsc;
use futures::{Stream, StreamExt};
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Config, Error as ControllerError};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Controller, watcher};
use kube::{Api, ResourceExt};
use tokio::time::timeout;
use yolo_api::v1alpha1::YoloInferenceService;

use crate::cadence;
use crate::context::Context;
use crate::error::Error;
use crate::fleet::ServiceId;
use crate::limits;
use crate::reconcile::reconcile;

/// Objects that do not fit our types are kept apart, so that one of them cannot stop the watch of all others.
type Object = DeserializeGuard<YoloInferenceService>;

/// Reconciles until the returned future is dropped. `triggers` are changed child objects, pods and finished sampling rounds.
pub async fn run(ctx: Arc<Context>, objects: Api<Object>, triggers: impl Stream<Item = ServiceId> + Send + 'static) {
    let config = watcher::Config::default().timeout(limits::WATCH_S);
    let woken = triggers.map(|service| ObjectRef::<Object>::new(&service.name).within(&service.namespace));
    Controller::new(objects, config)
        .with_config(Config::default().concurrency(limits::RECONCILES_IN_FLIGHT))
        .reconcile_on(woken)
        .run(bounded, |object, error, ctx| on_error(&object, error, &ctx), ctx.clone())
        .for_each(|outcome| {
            if let Err(error) = outcome {
                ended(&ctx, error);
            }
            std::future::ready(())
        })
        .await;
}

/// Shares one receiver between the terms of leadership: what was sent while nobody listened is old, but harmless.
pub fn triggers(receiver: Arc<tokio::sync::Mutex<mpsc::Receiver<ServiceId>>>) -> impl Stream<Item = ServiceId> + Send {
    futures::stream::unfold(receiver, |receiver| async move {
        let service = receiver.lock().await.next().await?;
        Some((service, receiver))
    })
}

async fn bounded(object: Arc<Object>, ctx: Arc<Context>) -> Result<Action, Error> {
    let started = Instant::now();
    let (id, uid) = (id(&object), object.uid().unwrap_or_default());
    let outcome = timeout(limits::RECONCILE, Box::pin(reconcile(object, ctx.clone()))).await;
    let outcome = outcome.unwrap_or(Err(Error::TooSlow(limits::RECONCILE)));
    let label = outcome.as_ref().map_or_else(Error::category, |_| "ok");
    ctx.metrics.reconciled(started.elapsed().as_secs_f64(), label);
    if outcome.is_ok() {
        ctx.failures.keep(&id, &uid, 0);
    }
    outcome
}

fn on_error(object: &Object, error: &Error, ctx: &Context) -> Action {
    let (id, uid) = (id(object), object.uid().unwrap_or_default());
    let failures = ctx.failures.of(&id, &uid).unwrap_or(0).saturating_add(1);
    ctx.failures.keep(&id, &uid, failures);
    tracing::warn!(service = %id, failures, category = error.category(), error = error.chain(), "A reconcile failed.");
    cadence::retry(error.retry(), failures)
}

fn id(object: &Object) -> ServiceId {
    ServiceId { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
}

/// What ended outside a reconcile.
fn ended(ctx: &Context, error: ControllerError<Error, watcher::Error>) {
    match error {
        // A child or a pod outlived its service: the garbage collector is at work.
        ControllerError::ObjectNotFound(reference) => {
            let namespace = reference.namespace.unwrap_or_default();
            ctx.forget(&ServiceId { namespace, name: reference.name });
        }
        ControllerError::ReconcilerFailed(..) => {} // `on_error` has told.
        error @ (ControllerError::QueueError(_) | ControllerError::RunnerError(_)) => {
            tracing::warn!(%error, "The watch of the services failed; it starts again.");
        }
    }
}
