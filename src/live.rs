//! The live objects: what the API server has, kept in memory by one watch a kind.
//!
//! Reads: watches. Writes: nothing. Does not: promise to show our own last write at once (`apply` remembers that).
//! The watches run on the standby too, so that a new leader starts with warm stores.

use std::fmt::Debug;
use std::hash::Hash;

use futures::channel::mpsc;
use futures::{StreamExt, TryStreamExt, future};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::fleet::{self, Fleet, SERVICE_LABEL, ServiceId};
use crate::limits;

/// Selects the objects that this operator built.
pub const CHILD_SELECTOR: &str = "app.kubernetes.io/managed-by=yolo-operator";

/// Stores of everything that a reconcile compares with.
#[derive(Clone)]
pub struct Live {
    /// Deployments of the services.
    pub deployments: Store<Deployment>,
    /// Knob documents.
    pub config_maps: Store<ConfigMap>,
    /// Services.
    pub services: Store<Service>,
    /// Disruption budgets.
    pub budgets: Store<PodDisruptionBudget>,
    /// Network policies.
    pub network_policies: Store<NetworkPolicy>,
    /// Inference pods.
    pub fleet: Fleet,
    pods: Store<Pod>,
}

/// Wakes the controller for one service.
pub type Trigger = mpsc::Sender<ServiceId>;

impl Live {
    /// Starts the watches as `tasks`; each change sends its service through `trigger`.
    pub fn watch(client: &Client, namespace: Option<&str>, trigger: &Trigger, tasks: &mut JoinSet<()>) -> Self {
        let pods = spawn(api(client, namespace), fleet::POD_SELECTOR, fleet::trim, trigger.clone(), tasks);
        Self {
            deployments: child(client, namespace, trigger, tasks),
            config_maps: child(client, namespace, trigger, tasks),
            services: child(client, namespace, trigger, tasks),
            budgets: child(client, namespace, trigger, tasks),
            network_policies: child(client, namespace, trigger, tasks),
            fleet: Fleet::new(pods.clone()),
            pods,
        }
    }

    /// Waits until every store has been filled once: a reconcile before that would take "not read" for "not there".
    pub async fn ready(&self) {
        // A dropped writer means that the process is shutting down; the caller's shutdown then ends this too.
        let _all = tokio::join!(
            self.deployments.wait_until_ready(),
            self.config_maps.wait_until_ready(),
            self.services.wait_until_ready(),
            self.budgets.wait_until_ready(),
            self.network_policies.wait_until_ready(),
            self.pods.wait_until_ready(),
        );
    }
}

/// The object of `kind` that a service owns under `name`, if it is there.
pub fn get<K>(store: &Store<K>, service: &ServiceId, name: &str) -> Option<std::sync::Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone,
{
    store.get(&ObjectRef::new(name).within(&service.namespace))
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn child<K>(client: &Client, namespace: Option<&str>, trigger: &Trigger, tasks: &mut JoinSet<()>) -> Store<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    spawn(api(client, namespace), CHILD_SELECTOR, |_: &mut K| {}, trigger.clone(), tasks)
}

fn spawn<K>(
    api: Api<K>,
    selector: &str,
    trim: impl FnMut(&mut K) + Send + 'static,
    mut trigger: Trigger,
    tasks: &mut JoinSet<()>,
) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Hash + Eq + Clone + Default,
{
    let (store, writer) = reflector::store();
    let config = watcher::Config::default().labels(selector).timeout(limits::WATCH_S);
    let stream = watcher(api, config).default_backoff().modify(trim).reflect(writer).touched_objects();
    tasks.spawn(async move {
        let touched = stream
            .inspect_err(|error| tracing::warn!(kind = %K::kind(&()), %error, "A watch failed; it starts again."));
        touched
            .for_each(|object| {
                if let Some(service) = object.ok().as_ref().and_then(service_of) {
                    // A full channel drops the wake-up, not the change: the store has it, and the requeue comes.
                    let _full = trigger.try_send(service);
                }
                future::ready(())
            })
            .await;
    });
    store
}

fn service_of<K: Resource>(object: &K) -> Option<ServiceId> {
    let name = object.labels().get(SERVICE_LABEL)?.clone();
    Some(ServiceId { namespace: object.namespace()?, name })
}
