//! The controller of one term of leadership: what wakes a reconcile, how many run, when a failed one comes again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::channel::mpsc;
use futures::{Stream, StreamExt};
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Config, Error as ControllerError};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Controller, watcher};
use kube::{Api, Resource, ResourceExt};
use tokio::time::timeout;
use yolo_api::v1alpha1::YoloInferenceService;

use crate::cadence;
use crate::context::Context;
use crate::error::Error;
use crate::fleet::ServiceId;
use crate::limits;
use crate::live;
use crate::reconcile::reconcile;

/// Objects that do not fit our types are kept apart, so that one of them cannot stop the watch of all others.
type Object = DeserializeGuard<YoloInferenceService>;

/// Reconciles until the returned future is dropped. `triggers` are changed child objects, pods and finished sampling rounds.
pub async fn run(ctx: Arc<Context>, objects: Api<Object>, triggers: impl Stream<Item = ServiceId> + Send + 'static) {
    let config = watcher::Config::default().timeout(limits::WATCH_S);
    let queue = ctx.clone();
    let woken = triggers.map(move |service| {
        queue.metrics.waiting(queue.queue.woken(&service));
        ObjectRef::<Object>::new(&service.name).within(&service.namespace)
    });
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

/// Failures in a row of one object, and how long it rests.
#[derive(Debug, Clone, Copy)]
pub struct Failures {
    count: u32,
    rests_until: Instant,
    /// `metadata.generation`: a corrected object is tried at once.
    generation: Option<i64>,
}

async fn bounded(object: Arc<Object>, ctx: Arc<Context>) -> Result<Action, Error> {
    let started = Instant::now();
    let (id, uid) = (id(&object), object.uid().unwrap_or_default());
    ctx.metrics.taken(ctx.queue.taken(&id));
    // Sampling rounds and our own writes wake every object; one that keeps failing must not be tried at each of them.
    let failures = ctx.failures.of(&id, &uid).filter(|failures| failures.generation == object.meta().generation);
    let rest = failures.map_or(Duration::ZERO, |failures| failures.rests_until.saturating_duration_since(started));
    if rest > Duration::ZERO {
        return Ok(Action::requeue(rest));
    }
    let outcome = timeout(limits::RECONCILE, Box::pin(reconcile(object, ctx.clone()))).await;
    let outcome = outcome.unwrap_or(Err(Error::TooSlow(limits::RECONCILE)));
    let label = outcome.as_ref().map_or_else(Error::category, |_| "ok");
    ctx.metrics.reconciled(started.elapsed().as_secs_f64(), label);
    if outcome.is_ok() {
        ctx.failures.forget(&id);
    }
    outcome
}

fn on_error(object: &Object, error: &Error, ctx: &Context) -> Action {
    let (id, uid) = (id(object), object.uid().unwrap_or_default());
    let count = ctx.failures.of(&id, &uid).map_or(0, |failures| failures.count).saturating_add(1);
    let pause = cadence::pause(error.retry(), count);
    let failures = Failures { count, rests_until: Instant::now() + pause, generation: object.meta().generation };
    ctx.failures.keep(&id, &uid, failures);
    if let Error::Malformed(_) | Error::Validate(_) = error {
        ctx.rollouts.refused(&id, live::get(&ctx.live.deployments, &id, &id.name).as_deref());
    }
    tracing::warn!(service = %id, failures = count, category = error.category(), error = error.chain(), "A reconcile failed.");
    Action::requeue(pause)
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
