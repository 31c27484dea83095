//! The inference pods as the operator sees them: one typed watch, trimmed to what is used.
//!
//! Reads: the pod reflector. Writes: nothing. Does not: keep anything that the API server does not have.
//! Shared by the sampler (whom to scrape), `observe` (what the planner sees) and `apply` (whom to nudge).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;
use kube::runtime::reflector::Store;
use serde::Deserialize;

/// Label on every pod and child object: the name of its `YoloInferenceService`.
pub const SERVICE_LABEL: &str = "yolo-operator.io/service";
/// Label on every pod: what of the template decides its speed (model, engine, resources), hashed.
pub const CLASS_LABEL: &str = "yolo-operator.io/class";
/// Annotation on a pod: the knobs generation it was last nudged to, `17` or `17.2` for the second re-nudge.
pub const KNOBS_GENERATION_ANNOTATION: &str = "yolo-operator.io/knobs-generation";
/// Annotation on a pod: which of equally ready pods leave first when there are to be fewer; the lowest does.
pub const DELETION_COST_ANNOTATION: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Selects our pods in every namespace.
pub const POD_SELECTOR: &str = "app.kubernetes.io/managed-by=yolo-operator,app.kubernetes.io/name=yolo-server";

/// The container that serves.
pub const SERVER_CONTAINER: &str = "server";
/// The init container that fetches the model, where one is fetched.
pub const FETCH_CONTAINER: &str = "fetch";

/// Names one `YoloInferenceService`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId {
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodPhase {
    /// Created, not ready yet.
    Pending,
    /// The scheduler found no node for it.
    Unschedulable,
    /// Passes its readiness probe.
    Ready,
    /// Asked to end; it serves what it has.
    Draining,
}

/// Why a server, or the fetch of its model, ended by itself, as it wrote it to its termination log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Termination {
    /// Closed set of the server: `model_missing`, `model_truncated`, `model_digest_mismatch`, `model_unsupported`,
    /// `model_fetch_failed`, `engine_unavailable`.
    pub code: String,
    /// A sentence that names the file or the library.
    pub message: String,
}

/// Why a pod does not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waiting {
    /// The scheduler has no node for it; its sentence, which names a claim that is not bound.
    Node(String),
    /// The kubelet cannot get this image. Its own words take turns (`ErrImagePull`, `ImagePullBackOff`) and are left out.
    Image(String),
    /// The kubelet cannot make the container: a Secret, a command, a limit. Its word and sentence.
    Container(String),
    /// The container is being made, volumes are being mounted.
    Creating,
    /// The model is being fetched.
    Model,
}

/// One inference pod.
#[derive(Debug, Clone, PartialEq)]
pub struct PodView {
    /// `metadata.uid`.
    pub uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The service it belongs to.
    pub service: ServiceId,
    /// Absent until the pod has a network.
    pub ip: Option<IpAddr>,
    /// Life-cycle phase.
    pub phase: PodPhase,
    /// When the pod was created.
    pub created: Timestamp,
    /// Since when it is ready; absent while it is not.
    pub ready_since: Option<Timestamp>,
    /// Pods of equal class are equally fast.
    pub class: u32,
    /// The node, once scheduled.
    pub node: Option<String>,
    /// The value of [`KNOBS_GENERATION_ANNOTATION`].
    pub knobs_annotation: Option<String>,
    /// The value of [`DELETION_COST_ANNOTATION`].
    pub deletion_cost: Option<String>,
    /// When the kernel last killed the server for memory.
    pub oom_killed: Option<Timestamp>,
    /// Why the server, or the fetch of its model, last refused to start; absent once the pod is ready.
    pub termination: Option<Termination>,
    /// Restarts of the fetch until it has succeeded, then of the server.
    pub restarts: u32,
    /// Why it does not start; absent once its container has been made.
    pub waiting: Option<Waiting>,
}

/// The pods of all services, from the reflector's memory.
#[derive(Clone)]
pub struct Fleet {
    store: Store<Pod>,
}

impl Fleet {
    /// Reads from `store`, which the pod watch fills.
    pub fn new(store: Store<Pod>) -> Self {
        Self { store }
    }

    /// Every pod, grouped by service, in order of name.
    pub fn by_service(&self) -> BTreeMap<ServiceId, Vec<PodView>> {
        let mut services: BTreeMap<ServiceId, Vec<PodView>> = BTreeMap::new();
        for pod in self.store.state().iter().filter_map(|pod| PodView::of(pod)) {
            services.entry(pod.service.clone()).or_default().push(pod);
        }
        for pods in services.values_mut() {
            pods.sort_by(|a, b| a.name.cmp(&b.name));
        }
        services
    }

    /// The pods of one service, in order of name.
    pub fn of(&self, service: &ServiceId) -> Vec<PodView> {
        // Before anything is copied: every reconcile passes over the pods of all services.
        let own = |pod: &Pod| {
            pod.metadata.namespace.as_ref() == Some(&service.namespace)
                && pod.labels().get(SERVICE_LABEL) == Some(&service.name)
        };
        let all = self.store.state();
        let mut pods: Vec<PodView> = all.iter().filter(|pod| own(pod)).filter_map(|pod| PodView::of(pod)).collect();
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        pods
    }
}

impl PodView {
    /// What the operator needs of `pod`; nothing for a pod that is over, or not ours.
    pub fn of(pod: &Pod) -> Option<Self> {
        let status = pod.status.as_ref();
        if matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")) {
            return None;
        }
        let namespace = pod.namespace()?;
        let ready_since = ready_since(status);
        let containers = status.and_then(|status| status.container_statuses.as_ref());
        // By name: the kubelet sorts them, and an injected sidecar may come first.
        let server = containers.and_then(|all| all.iter().find(|container| container.name == SERVER_CONTAINER));
        let container = fetch(status).or(server);
        Some(Self {
            uid: pod.uid()?,
            name: pod.name_any(),
            service: ServiceId { namespace: namespace.clone(), name: pod.labels().get(SERVICE_LABEL)?.clone() },
            namespace,
            ip: status.and_then(|s| s.pod_ip.as_deref()).and_then(|ip| ip.parse().ok()),
            phase: phase(pod, ready_since),
            created: pod.metadata.creation_timestamp.as_ref()?.0,
            ready_since,
            class: pod.labels().get(CLASS_LABEL).and_then(|hex| u32::from_str_radix(hex, 16).ok()).unwrap_or(0),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            knobs_annotation: pod.annotations().get(KNOBS_GENERATION_ANNOTATION).cloned(),
            deletion_cost: pod.annotations().get(DELETION_COST_ANNOTATION).cloned(),
            oom_killed: server.and_then(oom_killed),
            termination: if ready_since.is_some() { None } else { container.and_then(termination) },
            restarts: container.and_then(|c| u32::try_from(c.restart_count).ok()).unwrap_or(0),
            waiting: waiting(status, container),
        })
    }
}

/// Keeps only what [`PodView`] reads, so that 10 000 pods fit into little memory.
pub fn trim(pod: &mut Pod) {
    let annotations = pod.metadata.annotations.take().map(|mut all| {
        all.retain(|key, _| [KNOBS_GENERATION_ANNOTATION, DELETION_COST_ANNOTATION].contains(&key.as_str()));
        all
    });
    pod.metadata = ObjectMeta {
        annotations,
        name: pod.metadata.name.take(),
        namespace: pod.metadata.namespace.take(),
        uid: pod.metadata.uid.take(),
        resource_version: pod.metadata.resource_version.take(),
        creation_timestamp: pod.metadata.creation_timestamp.take(),
        deletion_timestamp: pod.metadata.deletion_timestamp.take(),
        labels: pod.metadata.labels.take(),
        owner_references: pod
            .metadata
            .owner_references
            .take()
            .map(|owners| owners.into_iter().map(trim_owner).collect()),
        ..ObjectMeta::default()
    };
    pod.spec = pod.spec.take().map(|spec| PodSpec { node_name: spec.node_name, ..PodSpec::default() });
    pod.status = pod.status.take().map(|status| PodStatus {
        phase: status.phase,
        pod_ip: status.pod_ip,
        conditions: status.conditions,
        container_statuses: status.container_statuses,
        init_container_statuses: status.init_container_statuses,
        ..PodStatus::default()
    });
}

fn trim_owner(owner: OwnerReference) -> OwnerReference {
    OwnerReference { block_owner_deletion: None, ..owner }
}

fn condition<'a>(status: Option<&'a PodStatus>, kind: &str) -> Option<&'a PodCondition> {
    status?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

fn ready_since(status: Option<&PodStatus>) -> Option<Timestamp> {
    let ready = condition(status, "Ready").filter(|condition| condition.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// The fetch of the model while the server waits for it.
fn fetch(status: Option<&PodStatus>) -> Option<&ContainerStatus> {
    let fetch = status?.init_container_statuses.as_ref()?.iter().find(|container| container.name == FETCH_CONTAINER)?;
    let ended = fetch.state.as_ref().and_then(|state| state.terminated.as_ref());
    (ended.is_none_or(|ended| ended.exit_code != 0)).then_some(fetch)
}

fn waiting(status: Option<&PodStatus>, container: Option<&ContainerStatus>) -> Option<Waiting> {
    if let Some(scheduled) = condition(status, "PodScheduled").filter(|condition| condition.status == "False") {
        return Some(Waiting::Node(scheduled.message.clone().unwrap_or_default()));
    }
    let container = container?;
    let state = container.state.as_ref()?;
    if container.name == FETCH_CONTAINER && state.running.is_some() {
        return Some(Waiting::Model);
    }
    let waiting = state.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    let why = waiting.message.as_deref().map_or_else(|| reason.to_owned(), |message| format!("{reason}: {message}"));
    match reason {
        "ContainerCreating" | "PodInitializing" => Some(Waiting::Creating),
        // The container ended and starts again: `termination` and `restarts` tell more.
        "CrashLoopBackOff" => None,
        "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName" | "ImageInspectError" => {
            Some(Waiting::Image(container.image.clone()))
        }
        _ => Some(Waiting::Container(why)),
    }
}

fn phase(pod: &Pod, ready_since: Option<Timestamp>) -> PodPhase {
    if pod.metadata.deletion_timestamp.is_some() {
        return PodPhase::Draining;
    }
    if ready_since.is_some() {
        return PodPhase::Ready;
    }
    match condition(pod.status.as_ref(), "PodScheduled") {
        Some(scheduled) if scheduled.status == "False" => PodPhase::Unschedulable,
        _ => PodPhase::Pending,
    }
}

/// The current or the last end of the container, whichever the kubelet still shows.
fn oom_killed(container: &ContainerStatus) -> Option<Timestamp> {
    [container.state.as_ref(), container.last_state.as_ref()]
        .into_iter()
        .flatten()
        .filter_map(|state| state.terminated.as_ref())
        .find(|ended| ended.reason.as_deref() == Some("OOMKilled"))
        .and_then(|ended| ended.finished_at.as_ref())
        .map(|time| time.0)
}

fn termination(container: &ContainerStatus) -> Option<Termination> {
    [container.state.as_ref(), container.last_state.as_ref()]
        .into_iter()
        .flatten()
        .filter_map(|state| state.terminated.as_ref()?.message.as_deref())
        .find_map(|message| serde_json::from_str(message).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(yaml: &str) -> Pod {
        serde_yaml_ng::from_str(yaml).unwrap()
    }

    const READY: &str = r#"
metadata:
  name: fork-1
  namespace: kitchen
  uid: u1
  creationTimestamp: "2026-01-01T00:00:00Z"
  labels: {yolo-operator.io/service: fork, yolo-operator.io/class: 0000beef}
  annotations: {yolo-operator.io/knobs-generation: "17.1", controller.kubernetes.io/pod-deletion-cost: "-2", other: x}
status:
  phase: Running
  podIP: 10.0.0.7
  conditions: [{type: Ready, status: "True", lastTransitionTime: "2026-01-01T00:00:09Z"}]
"#;

    #[test]
    fn ready_pod_keeps_all_that_is_read_when_trimmed() {
        let mut trimmed = pod(READY);
        trim(&mut trimmed);
        let view = PodView::of(&trimmed).unwrap();
        assert_eq!(view, PodView::of(&pod(READY)).unwrap());
        assert_eq!((view.phase, view.class), (PodPhase::Ready, 0xbeef));
        assert_eq!((view.knobs_annotation.as_deref(), view.deletion_cost.as_deref()), (Some("17.1"), Some("-2")));
        assert_eq!(view.ready_since.unwrap().duration_since(view.created).as_secs(), 9);
        assert_eq!(trimmed.annotations().len(), 2);
    }

    #[test]
    fn unschedulable_pod_is_told_from_a_starting_one() {
        let mut waiting = pod(READY);
        waiting.status = Some(PodStatus::default());
        assert_eq!(PodView::of(&waiting).unwrap().phase, PodPhase::Pending);
        waiting.status = serde_yaml_ng::from_str("conditions: [{type: PodScheduled, status: 'False'}]").unwrap();
        assert_eq!(PodView::of(&waiting).unwrap().phase, PodPhase::Unschedulable);
    }

    #[test]
    fn pod_that_does_not_start_says_what_it_waits_for() {
        let waiting = |status: &str| {
            let mut waiting = pod(READY);
            waiting.status = serde_yaml_ng::from_str(status).unwrap();
            trim(&mut waiting);
            PodView::of(&waiting).unwrap().waiting
        };
        let container = |reason: &str, message: &str| {
            waiting(&format!(
                "containerStatuses: [{{name: server, image: 'local/s:1', imageID: '', ready: false, restartCount: 0, \
                 state: {{waiting: {{reason: {reason}, message: '{message}'}}}}}}]"
            ))
        };
        assert_eq!(container("ImagePullBackOff", "Back-off"), Some(Waiting::Image("local/s:1".to_owned())));
        let refused = container("CreateContainerConfigError", "secret \"s\" not found");
        assert_eq!(refused, Some(Waiting::Container("CreateContainerConfigError: secret \"s\" not found".to_owned())));
        assert_eq!(container("ContainerCreating", ""), Some(Waiting::Creating));
        assert_eq!(container("CrashLoopBackOff", "back-off 10s"), None, "its end is told instead");
        let unbound = waiting("conditions: [{type: PodScheduled, status: 'False', message: 'claim \"models\"'}]");
        assert_eq!(unbound, Some(Waiting::Node("claim \"models\"".to_owned())));
    }

    #[test]
    fn server_that_refused_its_model_says_why() {
        let mut failed = pod(READY);
        failed.status = serde_yaml_ng::from_str(
            r#"containerStatuses: [{name: server, image: i, imageID: i, ready: false, restartCount: 2, lastState: {terminated: {exitCode: 1, message: '{"code":"model_missing","message":"/models/a.onnx is not there"}'}}}]"#,
        )
        .unwrap();
        let view = PodView::of(&failed).unwrap();
        assert_eq!(view.termination.unwrap().code, "model_missing");
        assert_eq!(view.restarts, 2);
    }

    #[test]
    fn sidecar_does_not_speak_for_the_server() {
        let mut killed = pod(READY);
        killed.status = serde_yaml_ng::from_str(
            "containerStatuses: [{name: istio-proxy, image: i, imageID: i, ready: true, restartCount: 0}, \
             {name: server, image: i, imageID: i, ready: false, restartCount: 3, lastState: {terminated: \
             {exitCode: 137, reason: OOMKilled, finishedAt: '2026-01-01T00:10:00Z'}}}]",
        )
        .unwrap();
        let view = PodView::of(&killed).unwrap();
        assert_eq!((view.restarts, view.oom_killed.is_some()), (3, true));
    }

    #[test]
    fn fetch_tells_for_the_pod_until_it_has_succeeded() {
        let view = |fetch: &str, server: &str| {
            let status =
                |name: &str, rest: &str| format!("{{name: {name}, image: i, imageID: i, ready: false, {rest}}}");
            let mut starting = pod(READY);
            starting.status = serde_yaml_ng::from_str(&format!(
                "{{initContainerStatuses: [{}], containerStatuses: [{}]}}",
                status("fetch", fetch),
                status("server", server),
            ))
            .unwrap();
            trim(&mut starting);
            PodView::of(&starting).unwrap()
        };
        let initializing = "restartCount: 0, state: {waiting: {reason: PodInitializing}}";
        let message = r#"{"code":"model_fetch_failed","message":"Connection refused"}"#;
        let failed = format!("lastState: {{terminated: {{exitCode: 1, message: '{message}'}}}}");
        let backing_off =
            view(&format!("restartCount: 2, state: {{waiting: {{reason: CrashLoopBackOff}}}}, {failed}"), initializing);
        assert_eq!(backing_off.termination.unwrap().code, "model_fetch_failed");
        assert_eq!((backing_off.restarts, backing_off.waiting), (2, None));

        let again = view(&format!("restartCount: 3, state: {{running: {{}}}}, {failed}"), initializing);
        assert_eq!(again.waiting, Some(Waiting::Model));
        assert!(again.termination.is_some(), "still told while it tries again");

        let fetched = format!("restartCount: 3, state: {{terminated: {{exitCode: 0}}}}, {failed}");
        let starting = view(&fetched, "restartCount: 0, state: {running: {}}");
        assert_eq!((starting.termination, starting.restarts, starting.waiting), (None, 0, None));

        let secret = "restartCount: 0, state: {waiting: {reason: CreateContainerConfigError, message: 'secret \"s\" not found'}}";
        let Some(Waiting::Container(why)) = view(secret, initializing).waiting else { panic!("a Secret is missing") };
        assert!(why.contains("secret \"s\""), "{why}");
    }
}
