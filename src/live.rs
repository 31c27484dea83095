//! The live objects: what the API server has, kept in memory by one watch a kind.
//!
//! Reads: watches. Writes: nothing. Does not: promise to show our own last write at once (`apply` remembers that).
//! The watches run on the standby too, so that a new leader starts with warm stores.

use std::fmt::Debug;

use futures::channel::mpsc;
use futures::{StreamExt, TryStreamExt, future};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::accounts;
use crate::autoscalers::{self, Autoscalers};
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
    /// Autoscalers that may scale the Deployments.
    pub autoscalers: Autoscalers,
    /// Service accounts that pods may have.
    pub accounts: Store<ServiceAccount>,
    pods: Store<Pod>,
    scalers: Store<HorizontalPodAutoscaler>,
}

/// Wakes the controller for one service.
pub type Trigger = mpsc::Sender<ServiceId>;

impl Live {
    /// Starts the watches as `tasks`; each change sends its service through `trigger`.
    pub fn watch(client: &Client, namespace: Option<&str>, trigger: &Trigger, tasks: &mut JoinSet<()>) -> Self {
        let mut watches = Watches { client, namespace, trigger, tasks };
        let pods = watches.start(fleet::POD_SELECTOR, fleet::trim, labelled);
        let deployments: Store<Deployment> = watches.child();
        let autoscalers = watches.start("", autoscalers::trim, {
            // An autoscaler writes its status every few seconds: those of other people's Deployments wake nobody.
            let ours = deployments.clone();
            move |scaler| autoscalers::target(scaler).filter(|service| get(&ours, service, &service.name).is_some())
        });
        // Wakes nobody: a service that is looked at every few seconds sees it, one that waits for the label retries soon.
        let accounts = watches.start(accounts::ALLOWED_SELECTOR, accounts::trim, |_| None);
        Self {
            accounts,
            config_maps: watches.child(),
            services: watches.child(),
            budgets: watches.child(),
            network_policies: watches.child(),
            fleet: Fleet::new(pods.clone()),
            autoscalers: Autoscalers::new(autoscalers.clone()),
            deployments,
            pods,
            scalers: autoscalers,
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
            self.scalers.wait_until_ready(),
            self.accounts.wait_until_ready(),
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

/// What it takes to start a watch.
struct Watches<'a> {
    client: &'a Client,
    /// All namespaces if absent.
    namespace: Option<&'a str>,
    trigger: &'a Trigger,
    tasks: &'a mut JoinSet<()>,
}

impl Watches<'_> {
    /// Watches a kind that this operator builds.
    fn child<K>(&mut self) -> Store<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        self.start(CHILD_SELECTOR, |_: &mut K| {}, labelled)
    }

    /// Watches the objects of a kind that `selector` selects, each cut down by `trim` before it is kept.
    fn start<K>(
        &mut self,
        selector: &str,
        trim: impl FnMut(&mut K) + Send + 'static,
        service_of: impl Fn(&K) -> Option<ServiceId> + Send + Sync + 'static,
    ) -> Store<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let (store, writer) = reflector::store();
        let api = match self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let config = watcher::Config::default().labels(selector).timeout(limits::WATCH_S);
        let stream = watcher(api, config).default_backoff().modify(trim).reflect(writer).touched_objects();
        let mut trigger = self.trigger.clone();
        self.tasks.spawn(async move {
            let touched = stream
                .inspect_err(|error| tracing::warn!(kind = %K::kind(&()), %error, "A watch failed; it starts again."));
            touched
                .for_each(|object| {
                    if let Some(service) = object.ok().as_ref().and_then(&service_of) {
                        // A full channel drops the wake-up, not the change: the store has it, and the requeue comes.
                        let _full = trigger.try_send(service);
                    }
                    future::ready(())
                })
                .await;
        });
        store
    }
}

/// The service that the label of one of our objects names.
fn labelled<K: Resource>(object: &K) -> Option<ServiceId> {
    let name = object.labels().get(SERVICE_LABEL)?.clone();
    Some(ServiceId { namespace: object.namespace()?, name })
}
