//! Orders and lives of the service's pods, at the moment that a watch shows them: timestamps of objects are whole seconds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::task::JoinSet;
use tokio::time::Instant;
use yolo_testkit::demo::install::SERVICES_NAMESPACE;

/// One pod; moments since the epoch.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    /// First seen.
    pub created: Duration,
    /// First seen ready.
    pub ready: Option<Duration>,
    /// First seen leaving, or gone.
    pub left: Option<Duration>,
}

impl Life {
    /// Whether it served or started then.
    pub fn is_replica(&self, at: Duration) -> bool {
        self.created <= at && self.left.is_none_or(|left| left > at)
    }

    /// Whether it served then.
    pub fn is_ready(&self, at: Duration) -> bool {
        self.is_replica(at) && self.ready.is_some_and(|ready| ready <= at)
    }
}

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Changes of the ordered pods, the first one from 0: moment, before, after.
    pub orders: Vec<(f64, u32, u32)>,
    /// By uid.
    pub pods: BTreeMap<String, Life>,
}

/// The watches; dropping it ends them.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    _tasks: JoinSet<()>,
}

impl Watch {
    /// Starts to watch `service`; times count from `epoch`.
    pub fn start(client: &Client, service: &str, epoch: Instant) -> Self {
        let (seen, mut tasks) = (Arc::default(), JoinSet::new());
        tasks.spawn(orders(client.clone(), service.to_owned(), Arc::clone(&seen), epoch));
        tasks.spawn(pods(client.clone(), service.to_owned(), Arc::clone(&seen), epoch));
        Self { seen, _tasks: tasks }
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn orders(client: Client, service: String, seen: Arc<Mutex<Seen>>, epoch: Instant) {
    let api: Api<Deployment> = Api::namespaced(client, SERVICES_NAMESPACE);
    let ours = watcher::Config::default().fields(&format!("metadata.name={service}"));
    let mut changes = watcher(api, ours).default_backoff().applied_objects().boxed();
    loop {
        // An error of the watch is followed by its own retry with backoff.
        let Ok(Some(deployment)) = changes.try_next().await else { continue };
        let replicas = deployment.spec.and_then(|spec| spec.replicas).and_then(|count| u32::try_from(count).ok());
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.orders.last().map_or(0, |order| order.2);
        if let Some(after) = replicas.filter(|after| *after != before) {
            seen.orders.push((epoch.elapsed().as_secs_f64(), before, after));
        }
    }
}

async fn pods(client: Client, service: String, seen: Arc<Mutex<Seen>>, epoch: Instant) {
    let api: Api<Pod> = Api::namespaced(client, SERVICES_NAMESPACE);
    let ours = watcher::Config::default().labels(&format!("yolo-operator.io/service={service}"));
    let mut events = watcher(api, ours).default_backoff().boxed();
    loop {
        let Ok(Some(event)) = events.try_next().await else { continue };
        let (pod, deleted) = match event {
            Event::Apply(pod) | Event::InitApply(pod) => (pod, false),
            Event::Delete(pod) => (pod, true),
            Event::Init | Event::InitDone => continue,
        };
        let now = epoch.elapsed();
        let ready = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let ready = ready.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = Life { created: now, ready: None, left: None };
        let life = seen.pods.entry(pod.uid().unwrap_or_default()).or_insert(fresh);
        if ready {
            life.ready.get_or_insert(now);
        }
        if deleted || pod.metadata.deletion_timestamp.is_some() {
            life.left.get_or_insert(now);
        }
    }
}
