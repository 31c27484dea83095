//! One `YoloInferenceService` on the real node: applied as a person would, watched, and under load.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Pod, Service as KubeService};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use yolo_api::v1alpha1::YoloInferenceService;
use yolo_loadgen::client::{Client as LoadClient, Limits};
use yolo_loadgen::pictures::{Mode, Pictures};
use yolo_loadgen::record::Recording;
use yolo_loadgen::schedule::{self, Phase};
use yolo_testkit::cluster::wait_for;
use yolo_testkit::demo::pods::Pods;

use crate::product::Product;

/// The longest that anything may take here: the kubelet lets a container rest for up to 20 s between its first restarts.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Kept-alive connections of the clients of one service.
pub const CONNECTIONS: usize = 64;
/// Longer than any test: load ends when the test says so.
const LOAD_MAX: Duration = Duration::from_mins(10);

/// A service under test.
pub struct Service {
    /// Its pods by their own metrics.
    pub metrics: Pods,
    name: String,
    namespace: String,
    client: Client,
    product: &'static Product,
}

/// A container that was not restarted is the same as before.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodIdentity {
    /// Name of the pod.
    pub name: String,
    /// Uid of the pod.
    pub uid: String,
    /// Restarts of its container.
    pub restarts: i32,
}

impl Service {
    /// Applies a service of this `spec` and waits for nothing.
    pub async fn apply(
        product: &'static Product,
        client: &Client,
        (namespace, name): (&str, &str),
        spec: Value,
    ) -> Self {
        let metrics = Pods::new(client.clone(), product.site.clone(), (namespace, name));
        let (client, namespace, name) = (client.clone(), namespace.to_owned(), name.to_owned());
        let service = Self { metrics, name, namespace, client, product };
        let document = json!({"apiVersion": "yolo-operator.io/v1alpha1", "kind": "YoloInferenceService",
            "metadata": {"name": service.name}, "spec": spec});
        let params = PatchParams::apply("person");
        service.objects().patch(&service.name, &params, &Patch::Apply(&document)).await.unwrap();
        service
    }

    /// Changes the fields that `spec` names.
    pub async fn change(&self, spec: Value) {
        let patch = json!({"spec": spec});
        self.objects().patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    /// Waits until the object is as `is` says, and returns it.
    pub async fn until(&self, what: &str, is: impl Fn(&YoloInferenceService) -> bool) -> YoloInferenceService {
        let look = async || self.objects().get(&self.name).await.ok().filter(&is);
        match wait_for(what, PATIENCE, look).await {
            Ok(object) => object,
            Err(error) => {
                let status = self.objects().get(&self.name).await.map(|object| object.status);
                panic!("{}: {error}; the status is {status:#?}", self.name)
            }
        }
    }

    /// Waits for `Ready=True` of the generation that is stored now.
    pub async fn until_ready(&self) -> YoloInferenceService {
        self.until("Ready=True of the newest generation", |object| {
            let ready = Condition::of(object, "Ready");
            ready.status == "True" && ready.generation == object.metadata.generation
        })
        .await
    }

    /// Waits until exactly `count` pods are there, dying ones included, and all are ready.
    pub async fn until_pods(&self, count: usize) -> Vec<PodIdentity> {
        let look = async || {
            let all = self.pods().await;
            (all.len() == count && self.metrics.ready().await.ok()?.len() == count).then(|| identities(&all))
        };
        wait_for(&format!("{count} pods of {}", self.name), PATIENCE, look).await.unwrap()
    }

    /// Its pods now.
    pub async fn pods(&self) -> Vec<Pod> {
        let ours = ListParams::default().labels(&format!("yolo-operator.io/service={}", self.name));
        self.api::<Pod>().list(&ours).await.unwrap().items
    }

    /// An API for objects of its namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// A client of its address, once that answers a picture of `folder` with 200; and the first answer.
    pub async fn client(&self, folder: &Path) -> (Clients, Value) {
        let service = async || self.api::<KubeService>().get(&self.name).await.ok()?.spec?.cluster_ip?.parse().ok();
        let ip: IpAddr = wait_for("the Service's address", PATIENCE, service).await.unwrap();
        let target = self.product.site.service(&self.namespace, &self.name, (ip, 80), "/predict");
        let limits = Limits { connections: CONNECTIONS, ..Limits::default() };
        let load = LoadClient::new(target, limits, &[ip], Instant::now()).unwrap();
        let run = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let pictures = Arc::new(Pictures::read(folder, run).unwrap());
        // kube-proxy learns of a ready pod a moment later.
        let page = pictures.body(Mode::Repeated, 0);
        let answer = async || load.once(page.clone()).await.ok().filter(|(status, _)| *status == 200);
        let (_, answer) = wait_for("the first answer", PATIENCE, answer).await.unwrap();
        (Clients { load, pictures }, serde_json::from_slice(&answer).unwrap())
    }

    fn objects(&self) -> Api<YoloInferenceService> {
        self.api()
    }
}

/// The clients of one service: a pool of kept-alive connections.
pub struct Clients {
    load: LoadClient,
    pictures: Arc<Pictures>,
}

/// Open-loop load that runs until it is ended.
pub struct Load {
    end: oneshot::Sender<()>,
    epoch: Instant,
    task: AbortOnDropHandle<Recording>,
}

impl Clients {
    /// Starts load of distinct pictures at this mean rate.
    pub fn start(self, rate_per_second: f64) -> Load {
        let (end, ended) = oneshot::channel::<()>();
        let arrivals = schedule::arrivals(&[Phase { rate_per_second, length: LOAD_MAX }], 0);
        let Self { load, pictures } = self;
        let epoch = load.epoch();
        let running = async move { load.run(arrivals, (&pictures, Mode::Distinct), async { drop(ended.await) }).await };
        Load { end, epoch, task: AbortOnDropHandle::new(tokio::spawn(running)) }
    }
}

impl Load {
    /// Ends it, waits for the last answers and says how many requests ended how: `200`, `429`, `broken`, ….
    pub async fn end(self) -> BTreeMap<String, u64> {
        drop(self.end);
        let summary = self.task.await.unwrap().summary(Duration::ZERO, self.epoch.elapsed());
        println!("load: {}", serde_json::to_string(&summary).unwrap());
        summary.endings
    }
}

/// Names, uids and restarts of `pods`, in the order of their names.
pub fn identities(pods: &[Pod]) -> Vec<PodIdentity> {
    let mut identities: Vec<_> = pods.iter().map(identity).collect();
    identities.sort();
    identities
}

fn identity(pod: &Pod) -> PodIdentity {
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let restarts = containers.iter().map(|container| container.restart_count).sum();
    PodIdentity { name: pod.name_any(), uid: pod.uid().unwrap(), restarts }
}

/// A condition; empty before it is there.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Condition {
    pub status: String,
    pub reason: String,
    pub message: String,
    pub generation: Option<i64>,
}

impl Condition {
    /// The condition `kind` of `object`.
    pub fn of(object: &YoloInferenceService, kind: &str) -> Self {
        let conditions = object.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let found = conditions.iter().find(|condition| condition.type_ == kind);
        found.map_or_else(Self::default, |found| Self {
            status: found.status.clone(),
            reason: found.reason.clone(),
            message: found.message.clone(),
            generation: found.observed_generation,
        })
    }
}

/// A service with the emulated engine (5 ms + 2 ms an image) and a fixed number of pods. It says so in every answer.
pub fn emulated(replicas: u32) -> Value {
    json!({
        "model": {"source": {"imagePath": "/models/emulated.onnx"}, "imageSize": 160},
        "accelerator": {"emulated": {"alphaMicros": 5000, "betaMicros": 2000, "device": "Gpu"}},
        "server": {"resources": {"cpu": "250m", "memory": "256Mi"}},
        "scaling": {"replicas": {"fixed": replicas}, "cache": {"max": "64Mi"}},
    })
}
