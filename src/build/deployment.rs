//! The Deployment of inference pods: Pod Security `restricted`, read-only root, no API token.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction,
    LocalObjectReference, PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    ResourceFieldSelector, ResourceRequirements, SeccompProfile, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;
use yolo_api::v1alpha1::spec::RolloutStrategy;
use yolo_planner::units::Replicas;

use super::knobs::{KNOBS_DIRECTORY, config_map_name};
use super::{fetch, gpu, labels, metadata, selector, store};
use crate::fleet::{CLASS_LABEL, SERVER_CONTAINER};
use crate::validate::{Engine, Gpus, ModelFile, Validated, Workload};

/// Port of the inference API.
pub const API_PORT: i32 = 8080;
/// Port of the same API over gRPC.
pub const GRPC_PORT: i32 = 8001;
/// Port of metrics and probes.
pub const ADMIN_PORT: i32 = 8081;
/// Where a model from a claim is mounted, or a fetched one lies.
pub const MODEL_DIRECTORY: &str = "/var/lib/yolo/model";
/// The user of the server's image.
const USER: i64 = 65532;
/// Between the end of the server's own drain and the kubelet's SIGKILL.
const GRACE_MARGIN_S: i64 = 5;
/// A start may take 10 min (a large model from a slow volume) before the kubelet restarts it.
const STARTUP_PERIODS: i32 = 600;
/// For a node, a volume and the image of a pod, before its start.
const PLACEMENT_S: i64 = 300;
/// For the fetch of a model, before its start: the largest, 2 GiB, at 30 Mbit/s.
const FETCH_S: i64 = 600;

/// Annotation on the Deployment: the hash of its pod template as we last applied it, which the API server's defaults and other
/// clients' additions do not change.
pub const TEMPLATE_ANNOTATION: &str = "yolo-operator.io/template-hash";

/// Builds the Deployment. Without `replicas` the field is not ours.
pub fn deployment(spec: &Validated, replicas: Option<Replicas>) -> Deployment {
    let template = template(spec);
    let hash = fnv1a(&json!(template).to_string());
    Deployment {
        metadata: ObjectMeta {
            annotations: Some(BTreeMap::from([(TEMPLATE_ANNOTATION.to_owned(), hash)])),
            ..metadata(spec, &spec.id.name)
        },
        spec: Some(DeploymentSpec {
            progress_deadline_seconds: i32::try_from(progress_deadline_s(&spec.workload)).ok(),
            replicas: replicas.and_then(|replicas| i32::try_from(replicas.get()).ok()),
            selector: selector(spec),
            strategy: Some(strategy(spec.rollout)),
            revision_history_limit: Some(3),
            template,
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

fn strategy(rollout: RolloutStrategy) -> DeploymentStrategy {
    let (more, fewer) = match rollout {
        // Capacity never falls below what was planned.
        RolloutStrategy::Availability => (1, 0),
        // Where every GPU is taken, a pod on top would wait for ever for one.
        RolloutStrategy::ResourceAware => (0, 1),
    };
    DeploymentStrategy {
        type_: Some("RollingUpdate".to_owned()),
        rolling_update: Some(RollingUpdateDeployment {
            max_surge: Some(IntOrString::Int(more)),
            max_unavailable: Some(IntOrString::Int(fewer)),
        }),
    }
}

fn template(spec: &Validated) -> PodTemplateSpec {
    let server = &spec.workload.pod;
    let containers = vec![container(&spec.workload)];
    let init_containers = match &spec.workload.model.file {
        ModelFile::Fetched { uri, credentials } => {
            vec![fetch::container(&spec.workload, uri, credentials.as_deref())]
        }
        ModelFile::Image | ModelFile::Claim(_) => Vec::new(),
    };
    let mut labels = labels(spec);
    labels.insert(CLASS_LABEL.to_owned(), class(containers.iter().chain(&init_containers)));
    // A person's labels never replace ours: the selector and the fleet rest on them.
    for (key, value) in &server.pod_labels {
        labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: filled(server.pod_annotations.clone()),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers,
            init_containers: some_list(init_containers),
            volumes: Some(volumes(spec)),
            // Under its old name as well: of that one alone the API server would restore the new one, and an account that
            // the spec names no longer would stay.
            service_account_name: server.service_account_name.clone(),
            service_account: server.service_account_name.clone(),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(grace_s(&spec.workload)),
            security_context: Some(security(&spec.workload)),
            image_pull_secrets: some_list(
                server.image_pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() }).collect(),
            ),
            node_selector: filled(server.node_selector.clone()),
            tolerations: some_list(server.tolerations.clone()),
            affinity: server.affinity.clone(),
            topology_spread_constraints: some_list(server.topology_spread_constraints.clone()),
            priority_class_name: server.priority_class_name.clone(),
            runtime_class_name: server.runtime_class_name.clone(),
            ..PodSpec::default()
        }),
    }
}

/// How long a leaving pod may take, in whose place another may have to start.
fn grace_s(workload: &Workload) -> i64 {
    workload.drain_budget_s.saturating_add(GRACE_MARGIN_S)
}

/// How long a rollout may go without another ready pod. Less would call one stuck, and stop its wave, whose pods are
/// still allowed to leave, to fetch their model and to start.
pub fn progress_deadline_s(workload: &Workload) -> i64 {
    let fetch_s = if matches!(workload.model.file, ModelFile::Fetched { .. }) { FETCH_S } else { 0 };
    grace_s(workload).saturating_add(PLACEMENT_S + fetch_s + i64::from(STARTUP_PERIODS))
}

fn security(workload: &Workload) -> PodSecurityContext {
    // A claim belongs to root until the kubelet gives it to the group; everything else of a pod is made for it, or read
    // only.
    let claim = gpus(workload).and_then(|gpus| gpus.cache_claim.as_ref());
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        fs_group: claim.map(|_| USER),
        // Not at each start again: a cache may hold many files.
        fs_group_change_policy: claim.map(|_| "OnRootMismatch".to_owned()),
        ..PodSecurityContext::default()
    }
}

fn gpus(workload: &Workload) -> Option<&Gpus> {
    match &workload.engine {
        Engine::Nvidia(gpus) => Some(gpus),
        Engine::Cpu { .. } | Engine::Emulated { .. } => None,
    }
}

fn container(workload: &Workload) -> Container {
    Container {
        name: SERVER_CONTAINER.to_owned(),
        image: Some(workload.image.clone()),
        args: Some(arguments(workload)),
        env: Some(environment(workload)),
        ports: Some(vec![port("http", API_PORT), port("grpc", GRPC_PORT), port("admin", ADMIN_PORT)]),
        startup_probe: Some(probe("/startupz", 1, STARTUP_PERIODS)),
        readiness_probe: Some(probe("/readyz", 1, 2)),
        liveness_probe: Some(probe("/livez", 10, 3)),
        resources: Some(match gpus(workload) {
            Some(gpus) => gpu::resources(gpus, resources(workload)),
            None => resources(workload),
        }),
        security_context: Some(restricted()),
        volume_mounts: Some(mounts(workload)),
        ..Container::default()
    }
}

/// What Pod Security `restricted` asks of every container, and a root file system that nobody writes.
pub(super) fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        ..SecurityContext::default()
    }
}

/// The server's flags; their names are the contract with `yolo-server`.
fn arguments(workload: &Workload) -> Vec<String> {
    let model = &workload.model;
    let mut flags = vec![
        flag("model", &model.path),
        flag("knobs-dir", KNOBS_DIRECTORY),
        flag("conf", &model.confidence),
        flag("iou", &model.iou),
        flag("max-det", model.detections_max),
        flag("drain-propagation-seconds", workload.drain_propagation_s),
        flag("drain-budget-seconds", workload.drain_budget_s),
    ];
    flags.extend(model.sha256.as_ref().map(|digest| flag("model-sha256", digest)));
    flags.extend(model.image_side_px.map(|side| flag("imgsz", side)));
    flags.extend(store::flags(workload));
    match &workload.engine {
        Engine::Cpu { profile } => {
            flags.extend([flag("engine", "ort"), flag("provider", "cpu"), flag("profile", profile)]);
        }
        Engine::Nvidia(gpus) => flags.extend(gpu::flags(gpus)),
        Engine::Emulated { alpha_micros, beta_micros, device } => flags.extend([
            flag("engine", "emulated"),
            flag("emulated-alpha-micros", alpha_micros),
            flag("emulated-beta-micros", beta_micros),
            flag("emulated-device", device),
        ]),
    }
    flags
}

pub(super) fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

fn environment(workload: &Workload) -> Vec<EnvVar> {
    let request = EnvVar {
        name: "YOLO_CPU_REQUEST".to_owned(),
        value_from: Some(EnvVarSource {
            resource_field_ref: Some(ResourceFieldSelector {
                resource: "requests.cpu".to_owned(),
                divisor: Some(Quantity("1m".to_owned())),
                container_name: Some(SERVER_CONTAINER.to_owned()),
            }),
            ..EnvVarSource::default()
        }),
        value: None,
    };
    std::iter::once(request).chain(own_environment(workload)).collect()
}

/// The variables that a person asked for.
pub(super) fn own_environment(workload: &Workload) -> impl Iterator<Item = EnvVar> {
    workload.pod.env.iter().map(|variable| EnvVar {
        name: variable.name.clone(),
        // The API server drops an empty value; sending it would look like drift for ever.
        value: Some(variable.value.clone()).filter(|value| !value.is_empty()),
        value_from: None,
    })
}

/// Limits equal requests: the pod's speed must not depend on its neighbours, or no curve could be learned.
pub(super) fn resources(workload: &Workload) -> ResourceRequirements {
    let amounts = BTreeMap::from([
        ("cpu".to_owned(), cores(workload.cpu_millis)),
        ("memory".to_owned(), bytes(workload.memory.get())),
    ]);
    ResourceRequirements { requests: Some(amounts.clone()), limits: Some(amounts), claims: None }
}

/// In the form in which the API server stores it, so that what is read back equals what was sent.
fn cores(millis: u64) -> Quantity {
    Quantity(if millis.is_multiple_of(1000) { (millis / 1000).to_string() } else { format!("{millis}m") })
}

/// See [`cores`].
fn bytes(mut value: u64) -> Quantity {
    let mut unit = "";
    for larger in ["Ki", "Mi", "Gi", "Ti"] {
        if value == 0 || !value.is_multiple_of(1024) {
            break;
        }
        value /= 1024;
        unit = larger;
    }
    Quantity(format!("{value}{unit}"))
}

fn port(name: &str, number: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: number,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

fn probe(path: &str, period_s: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("admin".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_s),
        timeout_seconds: Some(2),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn volumes(spec: &Validated) -> Vec<Volume> {
    let knobs = Volume {
        name: "knobs".to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: config_map_name(&spec.id.name),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    };
    let model = match &spec.workload.model.file {
        ModelFile::Image => None,
        ModelFile::Claim(claim) => Some(Volume {
            name: "model".to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.clone(),
                read_only: Some(true),
            }),
            ..Volume::default()
        }),
        ModelFile::Fetched { .. } => Some(fetch::volume()),
    };
    let (store, gpus) = (spec.workload.store.as_ref(), gpus(&spec.workload));
    std::iter::once(knobs).chain(model).chain(store.map(store::volume)).chain(gpus.map(gpu::volume)).collect()
}

fn mounts(workload: &Workload) -> Vec<VolumeMount> {
    let mount = |name: &str, path: &str| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    // The whole directory: a `subPath` mount would never show a changed ConfigMap.
    let knobs = mount("knobs", KNOBS_DIRECTORY);
    let model = (workload.model.file != ModelFile::Image).then(|| mount("model", MODEL_DIRECTORY));
    let (store, gpus) = (workload.store.as_ref(), gpus(workload));
    std::iter::once(knobs).chain(model).chain(store.map(|_| store::mount())).chain(gpus.map(|_| gpu::mount())).collect()
}

/// The class of the pods of `deployment`: changes with everything that makes a rollout worth a look.
pub fn template_hash(deployment: &Deployment) -> String {
    let metadata = deployment.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref());
    metadata.and_then(|metadata| metadata.labels.as_ref()?.get(CLASS_LABEL)).cloned().unwrap_or_default()
}

/// Hash of what decides a pod's speed: image, flags, environment and resources. A fetched model is known by the flags of
/// its fetch.
fn class<'a>(containers: impl Iterator<Item = &'a Container>) -> String {
    // As JSON, which leaves out what is not set: a field that a newer version of the API's types knows changes nothing here.
    let parts = |c: &Container| json!([c.image, c.args, c.env, c.resources]).to_string();
    fnv1a(&containers.map(parts).collect::<String>())
}

/// FNV-1a: the same in every version of this program.
fn fnv1a(text: &str) -> String {
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}

fn filled(map: BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    (!map.is_empty()).then_some(map)
}

fn some_list<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::fixtures::{checked, smallest};
    use clap::Parser;
    use yolo_server::args::{Config, EngineKind};

    fn pod(spec: &Validated) -> PodSpec {
        deployment(spec, None).spec.unwrap().template.spec.unwrap()
    }

    /// What the server makes of the flags: a flag that one side spells differently fails here.
    fn server(spec: &Validated) -> Config {
        let flags = pod(spec).containers[0].args.clone().unwrap();
        Config::try_parse_from(std::iter::once("yolo-server".to_owned()).chain(flags)).unwrap()
    }

    #[test]
    fn server_understands_every_flag() {
        let claim = "{model: {source: {persistentVolumeClaim: {claimName: models, path: b.onnx}}, imageSize: 320, \
                      confidence: '0.4'}, accelerator: {cpu: {profile: Latency}}, server: {drain: {budget: 40s}}}";
        let config = server(&checked(claim).unwrap());
        assert_eq!(config.model.to_str(), Some("/var/lib/yolo/model/b.onnx"));
        assert_eq!((config.imgsz, config.drain_budget_seconds), (vec![320], 40));
        assert!((config.conf - 0.4).abs() < 1e-6);
        let emulated = "{model: {source: {imagePath: /e}}, accelerator: {emulated: {alphaMicros: 7, betaMicros: 3}}}";
        let config = server(&checked(emulated).unwrap());
        assert_eq!((config.engine, config.emulated_alpha_micros), (EngineKind::Emulated, 7));
    }

    #[test]
    fn pod_names_the_ports_on_which_the_server_listens() {
        let config = server(&smallest());
        let listens =
            [config.api_address, config.grpc_address, config.admin_address].map(|address| address.port().into());
        let ports = pod(&smallest()).containers[0].ports.clone().unwrap();
        let named: Vec<_> = ports.iter().map(|port| (port.name.as_deref().unwrap(), port.container_port)).collect();
        assert_eq!(named, [("http", listens[0]), ("grpc", listens[1]), ("admin", listens[2])]);
    }

    #[test]
    fn pod_is_restricted_and_has_no_token() {
        let pod = pod(&smallest());
        let security = pod.containers[0].security_context.clone().unwrap();
        assert_eq!(pod.automount_service_account_token, Some(false));
        assert_eq!(pod.security_context.unwrap().run_as_non_root, Some(true));
        assert_eq!(security.read_only_root_filesystem, Some(true));
        assert_eq!(security.capabilities.unwrap().drop.unwrap(), ["ALL"]);
        assert!(pod.termination_grace_period_seconds.unwrap() > 25, "longer than the server's own drain");
    }

    #[test]
    fn account_of_the_pods_is_the_one_asked_for_and_its_token_stays_away() {
        let none = pod(&smallest());
        assert_eq!((none.service_account_name, none.service_account), (None, None), "the namespace's default one");
        let named = "{model: {source: {imagePath: /a}}, server: {serviceAccountName: cook}}";
        let named = pod(&checked(named).unwrap());
        let both = (named.service_account_name.as_deref(), named.service_account.as_deref());
        assert_eq!(both, (Some("cook"), Some("cook")));
        assert_eq!(named.automount_service_account_token, Some(false));
    }

    #[test]
    fn knob_is_not_in_the_template_and_the_class_follows_speed() {
        let class = |spec: &Validated| template_hash(&deployment(spec, None));
        let small = smallest();
        let knobs = checked("{model: {source: {imagePath: /models/a.onnx}}, scaling: {batch: {max: 2}}}").unwrap();
        assert_eq!(deployment(&small, None), deployment(&knobs, None), "a knob never restarts a pod");
        let larger = checked("{model: {source: {imagePath: /models/a.onnx}}, server: {resources: {cpu: 2}}}").unwrap();
        assert_ne!(class(&small), class(&larger));
    }

    #[test]
    fn rollout_needs_room_for_a_pod_unless_it_is_told_to_make_it() {
        let strategy = |rollout: &str| {
            let spec = checked(&format!("{{model: {{source: {{imagePath: /a}}}}, rollout: {{{rollout}}}}}")).unwrap();
            let deployment = deployment(&spec, None);
            let rolling = deployment.spec.unwrap().strategy.unwrap().rolling_update.unwrap();
            (rolling.max_surge.unwrap(), rolling.max_unavailable.unwrap())
        };
        assert_eq!(strategy(""), (IntOrString::Int(1), IntOrString::Int(0)));
        assert_eq!(strategy("strategy: ResourceAware"), (IntOrString::Int(0), IntOrString::Int(1)));
    }

    #[test]
    fn rollout_is_not_called_stuck_while_a_pod_may_still_leave_and_another_start() {
        let deadline_s = |model: &str| {
            let spec = checked(&format!("{{model: {{{model}}}, server: {{drain: {{budget: 10m}}}}}}")).unwrap();
            let deployment = deployment(&spec, None).spec.unwrap();
            let startup = pod(&spec).containers[0].startup_probe.clone().unwrap();
            let start_s = startup.period_seconds.unwrap() * startup.failure_threshold.unwrap();
            let deadline_s = deployment.progress_deadline_seconds.unwrap();
            assert!(deadline_s >= 10 * 60 + start_s + 60);
            assert!((spec.policy.rollout_max.get() - f64::from(deadline_s)).abs() < 1e-9, "the planner waits as long");
            deadline_s
        };
        let fetched = format!("source: {{uri: 's3://m/a.onnx'}}, sha256: {}", "0123456789abcdef".repeat(4));
        assert!(deadline_s(&fetched) >= deadline_s("source: {imagePath: /a}") + 5 * 60);
    }

    #[test]
    fn amounts_are_written_as_the_api_server_stores_them() {
        assert_eq!(cores(2000).0, "2");
        assert_eq!(cores(1500).0, "1500m");
        assert_eq!(bytes(2_147_483_648).0, "2Gi");
        assert_eq!(bytes(2_000_000_000).0, "1953125Ki");
    }
}
