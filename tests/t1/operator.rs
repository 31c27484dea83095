//! The operator and its pods for the promises `promise_operator_*`.
//!
//! The operator runs in this process, under a user of its own, so that the audit log tells its writes from the test's.
//! A pod is a Pod object that this module makes as the `ReplicaSet` controller would, and behind its address a real
//! `yolo-server` with the emulated engine, whose knobs file follows the `ConfigMap` as the kubelet would have it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::level_filters::LevelFilter;
use yolo_api::v1alpha1::YoloInferenceService;
use yolo_operator::RunError;
use yolo_operator::args::Config;
use yolo_operator::rollouts::Most;
use yolo_server::Server;
use yolo_testkit::cluster::{LocalCluster, Tier, wait_for};

use crate::promise_crd_refuses::install_crd;

/// The longest that a promise may take to come true in these tests, where none names a shorter time.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The cluster of this test binary with our CRD in it; nothing where a cluster cannot run (then `SKIPPED` is printed).
pub fn cluster() -> Option<&'static LocalCluster> {
    let cluster = LocalCluster::shared(Tier::T1)?;
    cluster.block_on(async |client| install_crd(&client).await).unwrap();
    Some(cluster)
}

/// A namespace of one test's own that an operator serves.
pub struct Served<'a> {
    pub cluster: &'static LocalCluster,
    pub client: Client,
    pub namespace: &'a str,
    /// As whom the operator writes.
    pub user: String,
}

/// Keeps `promise` with an operator that serves a new namespace, and ends the operator in order; nothing where a cluster
/// cannot run.
pub fn served(name: &str, promise: impl AsyncFnOnce(Served<'_>) + Send) {
    let Some(cluster) = cluster() else { return };
    let namespace = cluster.namespace(name).unwrap();
    let namespace: &str = &namespace;
    cluster
        .block_on(async |client| {
            let user = format!("{namespace}-a");
            let operator = Operator::start(cluster, namespace, &user).await;
            promise(Served { cluster, client, namespace, user }).await;
            operator.stop().await;
        })
        .unwrap();
}

/// The operator in this process.
pub struct Operator {
    shutdown: CancellationToken,
    task: AbortOnDropHandle<Result<(), RunError>>,
}

/// A client that acts as `user`, with all rights.
pub async fn client_as(cluster: &LocalCluster, user: &str) -> Client {
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.auth_info.impersonate = Some(user.to_owned());
    config.auth_info.impersonate_groups = Some(vec!["system:masters".to_owned()]);
    yolo_operator::client(config).unwrap()
}

impl Operator {
    /// Starts an operator for one namespace. `identity` is its user and its name in the lease.
    pub async fn start(cluster: &LocalCluster, namespace: &str, identity: &str) -> Self {
        Self::start_as(cluster, namespace, identity, |_| {}).await
    }

    /// The same with another default image of the servers.
    pub async fn start_with(cluster: &LocalCluster, namespace: &str, identity: &str, server_image: &str) -> Self {
        let change = |config: &mut Config| server_image.clone_into(&mut config.server_image);
        Self::start_as(cluster, namespace, identity, change).await
    }

    /// The same with settings that `change` changes.
    pub async fn start_as(
        cluster: &LocalCluster,
        namespace: &str,
        identity: &str,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        // `YOLO_LOG=yolo_operator=debug` shows the operator's log; a second subscriber of this process is refused, and not
        // needed.
        let silent = tracing_subscriber::EnvFilter::builder().with_default_directive(LevelFilter::OFF.into());
        let filter = silent.with_env_var("YOLO_LOG").from_env_lossy();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
        let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let mut config = Config {
            namespace: namespace.to_owned(),
            lease_name: "yolo-operator".to_owned(),
            identity: identity.to_owned(),
            watch_namespace: Some(namespace.to_owned()),
            server_image: "localhost/yolo-server:test".to_owned(),
            server_cuda_image: None,
            service_types: Vec::new(),
            max_concurrent_rollouts: Most::Percent(10),
            prometheus_url: None,
            prometheus_ca_file: None,
            prometheus_token_file: None,
            metrics_address: any,
            health_address: any,
            log: String::new(),
        };
        change(&mut config);
        let shutdown = CancellationToken::new();
        let client = client_as(cluster, identity).await;
        let task = tokio::spawn(yolo_operator::run(config, client, shutdown.clone()));
        Self { shutdown, task: AbortOnDropHandle::new(task) }
    }

    /// Ends it in order.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Ends it at once, wherever it is: nothing is finished and nothing is vacated.
    pub async fn kill(self) {
        self.task.abort();
        let _aborted = self.task.await;
    }
}

/// A manifest of an emulated service: 5 ms + 2 ms an image, a window of 10 s. `spec` is merged over it.
pub fn manifest(name: &str, spec: Value) -> YoloInferenceService {
    let mut document = json!({
        "apiVersion": "yolo-operator.io/v1alpha1",
        "kind": "YoloInferenceService",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": {"imagePath": "/models/emulated.onnx"}},
            "accelerator": {"emulated": {"alphaMicros": 5000, "betaMicros": 2000, "device": "Cpu"}},
            "targets": {
                "apiLatency": {"threshold": "200ms"},
                "availability": {"minPercent": "99"},
                "window": "10s",
            },
            "scaling": {"cache": {"max": "1Mi"}},
            // The servers run in this process and report the memory of its cgroup: of all tests, and maybe of the machine.
            "server": {"resources": {"memory": "256Gi"}},
        },
    });
    merge(&mut document["spec"], spec);
    serde_json::from_value(document).unwrap()
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// Applies a service as a person would.
pub async fn apply(client: &Client, namespace: &str, service: &YoloInferenceService) {
    let api: Api<YoloInferenceService> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply("person").force();
    let document = json!({"apiVersion": "yolo-operator.io/v1alpha1", "kind": "YoloInferenceService",
        "metadata": {"name": service.name_any()}, "spec": service.spec});
    api.patch(&service.name_any(), &params, &Patch::Apply(&document)).await.unwrap();
}

/// Waits until the object named `name` is as `is` says, and returns it.
pub async fn until(
    client: &Client,
    namespace: &str,
    name: &str,
    what: &str,
    is: impl Fn(&YoloInferenceService) -> bool,
) -> YoloInferenceService {
    let api: Api<YoloInferenceService> = Api::namespaced(client.clone(), namespace);
    let look = async || api.get(name).await.ok().filter(&is);
    match wait_for(what, PATIENCE, look).await {
        Ok(object) => object,
        Err(error) => panic!("{error}; the status is {:#?}", api.get(name).await.map(|object| object.status)),
    }
}

/// Status and reason of a condition, `-` before it is there.
pub fn condition(object: &YoloInferenceService, kind: &str) -> (String, String) {
    let conditions = object.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let found = conditions.iter().find(|condition| condition.type_ == kind);
    found.map_or_else(|| ("-".to_owned(), "-".to_owned()), |found| (found.status.clone(), found.reason.clone()))
}

/// Waits until `identity` holds the lease.
pub async fn holder(client: &Client, namespace: &str, identity: &str) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let held = async || {
        let all = leases.list(&ListParams::default()).await.ok()?;
        let holder = all.items.into_iter().next()?.spec?.holder_identity?;
        (holder == identity).then_some(())
    };
    wait_for("the lease", PATIENCE, held).await.unwrap();
}

/// Waits for the Deployment of a service and returns it.
pub async fn deployment(client: &Client, namespace: &str, name: &str) -> Deployment {
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    wait_for("the Deployment", PATIENCE, async || api.get_opt(name).await.ok().flatten()).await.unwrap()
}

/// The number of pods that the Deployment asks for.
pub async fn replicas(client: &Client, namespace: &str, name: &str) -> i32 {
    deployment(client, namespace, name).await.spec.unwrap().replicas.unwrap()
}

/// A pod: its object, its server, its kubelet.
pub struct TestPod {
    pub name: String,
    pub ip: IpAddr,
    server: Option<Server>,
    knobs: TempDir,
    _kubelet: AbortOnDropHandle<()>,
}

/// An address of this process alone for `test` (0..32) and the pod's `number`.
pub fn loopback(test: u8, number: u8) -> IpAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 32 + test, low, (high & 15) * 16 + number + 1))
}

impl TestPod {
    /// Makes a ready pod of the Deployment of `service`, with a real server behind `ip`.
    pub async fn start(client: &Client, namespace: &str, service: &str, ip: IpAddr) -> Self {
        let pod = object(client, namespace, service, &format!("{service}-{}", ip.to_string().replace('.', "-"))).await;
        let knobs = tempfile::tempdir().unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let map = format!("{service}-knobs");
        write_knobs(knobs.path(), &maps.get(&map).await.unwrap());
        let kubelet = AbortOnDropHandle::new(tokio::spawn(follow(maps, map, knobs.path().to_owned())));
        let server = Server::start(server_config(ip, knobs.path())).await.unwrap();
        let now = jiff::Timestamp::now();
        let ready = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now.to_string()}]});
        set_status(client, namespace, &pod.name_any(), ready).await;
        Self { name: pod.name_any(), ip, server: Some(server), knobs, _kubelet: kubelet }
    }

    /// Ends the server and leaves the object: the pod has become silent.
    pub async fn silence(&mut self) {
        self.server.take().unwrap().stop().await;
    }

    /// Starts the server again: a container that was restarted.
    pub async fn speak(&mut self) {
        let start = async || Server::start(server_config(self.ip, self.knobs.path())).await.ok();
        self.server = Some(wait_for("the ports to be free again", PATIENCE, start).await.unwrap());
    }

    /// The address of the API.
    pub fn api(&self) -> SocketAddr {
        self.server.as_ref().unwrap().api_address()
    }
}

/// Makes a Pod object of the Deployment's template, not started yet.
pub async fn object(client: &Client, namespace: &str, service: &str, name: &str) -> Pod {
    let deployment = deployment(client, namespace, service).await;
    let template = deployment.spec.unwrap().template;
    let metadata = template.metadata.unwrap();
    let pod = json!({"metadata": {"name": name, "labels": metadata.labels, "annotations": metadata.annotations},
        "spec": template.spec});
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    api.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap()
}

/// Sets a pod's status, as its kubelet would.
pub async fn set_status(client: &Client, namespace: &str, name: &str, status: Value) {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let patch = json!({"status": status});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
}

/// Deletes a pod at once.
pub async fn delete(client: &Client, namespace: &str, name: &str) {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    api.delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
}

fn server_config(ip: IpAddr, knobs: &Path) -> yolo_server::Config {
    yolo_server::Config {
        engine: yolo_server::args::EngineKind::Emulated,
        emulated_device: yolo_server::args::EmulatedDevice::Cpu,
        emulated_alpha_micros: 5_000,
        emulated_beta_micros: 2_000,
        knobs_dir: Some(knobs.to_owned()),
        api_address: SocketAddr::new(ip, 8080),
        grpc_address: SocketAddr::new(ip, 8001),
        admin_address: SocketAddr::new(ip, 8081),
        ..yolo_server::Config::new("emulated.onnx")
    }
}

async fn follow(maps: Api<ConfigMap>, name: String, folder: std::path::PathBuf) {
    let mut changes = Box::pin(watcher::watch_object(maps, &name));
    while let Some(change) = changes.next().await {
        if let Ok(Some(map)) = change {
            write_knobs(&folder, &map);
        }
    }
}

/// By renaming, so that the server sees the old file or the new one, as with the kubelet's `..data`.
fn write_knobs(folder: &Path, map: &ConfigMap) {
    let document = map.data.as_ref().and_then(|data| data.get("knobs.json")).unwrap();
    std::fs::write(folder.join("next"), document).unwrap();
    std::fs::rename(folder.join("next"), folder.join("knobs.json")).unwrap();
}

/// A write to the API, from the audit log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Write {
    pub verb: String,
    pub resource: String,
    pub name: String,
    pub code: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuditEvent {
    stage: String,
    verb: String,
    impersonated_user: Option<AuditUser>,
    object_ref: Option<AuditObject>,
    response_status: Option<AuditStatus>,
}

#[derive(Deserialize)]
struct AuditUser {
    username: String,
}

#[derive(Deserialize)]
struct AuditObject {
    resource: String,
    #[serde(default)]
    subresource: String,
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct AuditStatus {
    #[serde(default)]
    code: u16,
}

/// Every request of `user` that was answered so far, in order.
fn answered(cluster: &LocalCluster, user: &str) -> Vec<AuditEvent> {
    let log = std::fs::read_to_string(cluster.audit_log()).unwrap();
    // The last line may be half-written.
    let events = log.lines().filter_map(|line| serde_json::from_str::<AuditEvent>(line).ok());
    let own = |event: &AuditEvent| event.impersonated_user.as_ref().is_some_and(|by| by.username == user);
    events.filter(|event| event.stage == "ResponseComplete" && own(event)).collect()
}

/// Whether `user` campaigns: it has read the lease.
pub fn looks_at_the_lease(cluster: &LocalCluster, user: &str) -> bool {
    let lease = |event: &AuditEvent| event.object_ref.as_ref().is_some_and(|object| object.resource == "leases");
    answered(cluster, user).iter().any(|event| event.verb == "get" && lease(event))
}

/// Everything that `user` has written so far, its lease excepted, in order.
pub fn writes(cluster: &LocalCluster, user: &str) -> Vec<Write> {
    let writing = |verb: &str| matches!(verb, "create" | "update" | "patch" | "delete" | "deletecollection");
    let own = answered(cluster, user).into_iter().filter(|event| writing(&event.verb));
    own.filter_map(|event| {
        let object = event.object_ref.filter(|object| object.resource != "leases")?;
        let dot = if object.subresource.is_empty() { "" } else { "/" };
        Some(Write {
            verb: event.verb,
            resource: format!("{}{dot}{}", object.resource, object.subresource),
            name: object.name,
            code: event.response_status.map_or(0, |status| status.code),
        })
    })
    .collect()
}

/// How often each resource was written.
pub fn count(writes: &[Write]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for write in writes {
        *counts.entry(write.resource.as_str()).or_default() += 1;
    }
    counts
}

/// Runs `work` beside the test until it is dropped.
pub fn beside(work: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    let task: JoinHandle<()> = tokio::spawn(work);
    AbortOnDropHandle::new(task)
}
