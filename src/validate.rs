//! The object as checked data: what the planner and `build` need, parsed once.
//!
//! Reads: the object and the installation's defaults. Writes: nothing. Does not: trust the schema: an object may have been
//! stored before a rule existed.

mod policy;
mod source;

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use kube::ResourceExt;
use yolo_api::v1alpha1::YoloInferenceService;
use yolo_api::v1alpha1::model::{Accelerator, CpuProfile, EmulatedDevice, Nvidia, Precision, Provider};
use yolo_api::v1alpha1::pod::Server;
use yolo_api::v1alpha1::spec::{RolloutStrategy, SecretKey, Service, ServiceType, SharedStore as SpecStore, Tasks};
use yolo_api::v1alpha1::validate::{FieldError, client};
use yolo_planner::Policy;
use yolo_planner::units::{Bytes, Seconds};

use crate::build::{Defaults, progress_deadline_s};
use crate::fleet::ServiceId;
use crate::schedules::{InvalidSchedule, Peak};

pub use source::{Model, ModelFile};

/// A service that can be planned and built.
#[derive(Debug, Clone)]
pub struct Validated {
    /// Which.
    pub id: ServiceId,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// What the planner must hold to.
    pub policy: Policy,
    /// Known peaks.
    pub peaks: Vec<Peak>,
    /// What the pods run.
    pub workload: Workload,
    /// What stands in front of them.
    pub front: Front,
    /// Who may use the API; absent: the whole cluster. Empty: nobody.
    pub clients: Option<Vec<NetworkPolicyPeer>>,
    /// Which comes first at a rollout: the new pod, or the room for it.
    pub rollout: RolloutStrategy,
    /// What of the spec cannot be read and is left out, a sentence each; all else acts.
    pub left_out: Vec<String>,
    /// Fields that were accepted but do not act in this version.
    pub inactive: Vec<&'static str>,
}

/// What the pods run.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// The server's image.
    pub image: String,
    /// The model.
    pub model: Model,
    /// What runs it.
    pub engine: Engine,
    /// CPU request and limit, thousandths of a core.
    pub cpu_millis: u64,
    /// Memory request and limit.
    pub memory: Bytes,
    /// How long a leaving pod still takes new connections.
    pub drain_propagation_s: i64,
    /// How long a leaving pod may take in all.
    pub drain_budget_s: i64,
    /// How long a result of a task is kept, where tasks are on.
    pub tasks_ttl_s: Option<i64>,
    /// What the pods share.
    pub store: Option<SharedStore>,
    /// Scheduling, labels, environment: handed through.
    pub pod: Server,
}

impl Workload {
    /// FNV-1a of what decides how fast a pod is and what it needs. Only compared with others of this process, so that the
    /// text of `Debug` will do.
    fn revision(&self) -> u64 {
        let Self { image, model, engine, cpu_millis, memory, pod, .. } = self;
        let text =
            format!("{:?}", (image, model, engine, cpu_millis, memory, &pod.env, &pod.node_selector, &pod.affinity));
        text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }
}

/// A store that the pods share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedStore {
    /// Secret that holds its address, with the password.
    pub secret: String,
    /// Key in it.
    pub key: String,
    /// Tells this service's entries from those of others: namespace and name.
    pub scope: String,
}

/// What runs the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engine {
    /// ONNX Runtime on CPU cores.
    Cpu {
        /// The server's word for how sessions share the cores.
        profile: &'static str,
    },
    /// ONNX Runtime on NVIDIA GPUs.
    Nvidia(Gpus),
    /// A declared service curve.
    Emulated {
        /// Time of a batch.
        alpha_micros: u64,
        /// Time that each image adds.
        beta_micros: u64,
        /// The server's word for what it pretends to be.
        device: &'static str,
    },
}

/// NVIDIA GPUs of a pod, or a slice of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpus {
    /// How many.
    pub count: u32,
    /// The extended resource that stands for them.
    pub resource: String,
    /// The server's word for the execution provider.
    pub provider: &'static str,
    /// The server's word for the arithmetic.
    pub precision: &'static str,
    /// Claim on which built engines are kept; absent: the pod's own disk.
    pub cache_claim: Option<String>,
}

/// The Service in front of the pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Front {
    /// Its type, one that the installation allows.
    pub kind: &'static str,
    /// Its port.
    pub port: i32,
    /// Annotations, handed through.
    pub annotations: BTreeMap<String, String>,
}

/// Why a spec cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// A field holds what it must not.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A schedule is none.
    #[error(transparent)]
    Schedule(#[from] InvalidSchedule),
    /// Accepted by the schema, and not by this installation of the operator.
    #[error("{field}: {why}")]
    Installation {
        /// Path of the field.
        field: &'static str,
        /// What is missing, and what to do.
        why: String,
    },
    /// The objects of the service carry its name, in labels too.
    #[error(
        "metadata.name: {name:?} has to be a lower-case name of at most {NAME_CHARS_MAX} letters, digits and dashes that starts with a letter"
    )]
    Name {
        /// The name.
        name: String,
    },
}

/// A Service's name has at most 63 characters; the knobs' ConfigMap adds six, and pods their suffixes.
const NAME_CHARS_MAX: usize = 50;

/// Checks `service` and parses every text in it.
///
/// # Errors
/// [`Invalid`] names the first field that is wrong and says what it should be.
pub fn validate(service: &YoloInferenceService, defaults: &Defaults) -> Result<Validated, Invalid> {
    let spec = &service.spec;
    let server = &spec.server;
    let engine = engine(&spec.accelerator());
    let (clients, left_out) = clients(&spec.network.allowed_clients);
    let workload = Workload {
        image: image(server.image.as_ref(), &engine, defaults)?,
        model: source::model(&spec.model)?,
        engine,
        cpu_millis: server.resources.cpu.millicores("spec.server.resources.cpu")?,
        memory: Bytes::new(server.resources.memory.bytes("spec.server.resources.memory")?),
        drain_propagation_s: whole_s(server.drain.propagation.parse("spec.server.drain.propagation")?),
        drain_budget_s: whole_s(server.drain.budget.parse("spec.server.drain.budget")?),
        tasks_ttl_s: tasks_ttl_s(&spec.tasks)?,
        store: spec.shared_store.as_ref().map(|store| shared_store(store, service)),
        pod: server.clone(),
    };
    Ok(Validated {
        id: ServiceId { namespace: service.namespace().unwrap_or_default(), name: name(service.name_any())? },
        uid: service.uid().unwrap_or_default(),
        generation: service.metadata.generation.unwrap_or(0),
        policy: Policy {
            revision: workload.revision(),
            rollout_max: Seconds::whole(progress_deadline_s(&workload).try_into().unwrap_or(u32::MAX)),
            ..policy::policy(spec)?
        },
        peaks: spec.scaling.schedules.iter().map(Peak::parse).collect::<Result<_, _>>()?,
        workload,
        front: front(&spec.service, &defaults.service_types)?,
        rollout: spec.rollout.strategy,
        clients,
        left_out,
        inactive: yolo_api::inactive_fields(spec),
    })
}

/// Those of `peers` that a `NetworkPolicy` may have, and what is wrong with the others. A peer too few keeps a client out; an
/// exception too few, or an empty list taken for none, would let strangers in.
fn clients(peers: &[NetworkPolicyPeer]) -> (Option<Vec<NetworkPolicyPeer>>, Vec<String>) {
    let (mut usable, mut wrong) = (Vec::new(), Vec::new());
    for peer in peers {
        match client(peer) {
            Ok(()) => usable.push(peer.clone()),
            Err(error) => wrong.push(error.to_string()),
        }
    }
    ((!peers.is_empty()).then_some(usable), wrong)
}

fn name(name: String) -> Result<String, Invalid> {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    let lettered = name.starts_with(|first: char| first.is_ascii_lowercase());
    if plain && lettered && name.len() <= NAME_CHARS_MAX { Ok(name) } else { Err(Invalid::Name { name }) }
}

/// The image that the service names, else the installation's for what runs the model.
fn image(own: Option<&String>, engine: &Engine, defaults: &Defaults) -> Result<String, Invalid> {
    let installed = match engine {
        Engine::Cpu { .. } | Engine::Emulated { .. } => Some(&defaults.server_image),
        // The usual image has ONNX Runtime for the CPU only: its pods would refuse to start.
        Engine::Nvidia(_) => defaults.server_cuda_image.as_ref(),
    };
    own.or(installed).cloned().ok_or_else(|| Invalid::Installation {
        field: "spec.server.image",
        why:
            "NVIDIA GPUs need an image with CUDA, and none is installed; name one, or have it set (serverCudaImage of \
              the chart)"
                .to_owned(),
    })
}

fn engine(accelerator: &Accelerator) -> Engine {
    if let Some(emulated) = &accelerator.emulated {
        return Engine::Emulated {
            alpha_micros: u64::try_from(emulated.alpha_micros).unwrap_or(0),
            beta_micros: u64::try_from(emulated.beta_micros).unwrap_or(0),
            device: match emulated.device {
                EmulatedDevice::Gpu => "gpu",
                EmulatedDevice::Cpu => "cpu",
            },
        };
    }
    if let Some(nvidia) = &accelerator.nvidia {
        return Engine::Nvidia(gpus(nvidia));
    }
    Engine::Cpu {
        profile: match accelerator.cpu.as_ref().map(|cpu| cpu.profile).unwrap_or_default() {
            CpuProfile::Throughput => "throughput",
            CpuProfile::Latency => "latency",
        },
    }
}

fn gpus(nvidia: &Nvidia) -> Gpus {
    Gpus {
        count: u32::try_from(nvidia.count).unwrap_or(0).max(1),
        resource: nvidia.resource_name.clone(),
        provider: match nvidia.provider {
            // Not the server's own `auto`, which takes the CPU where it sees no GPU: one was asked for.
            Provider::Auto | Provider::Cuda => "cuda",
            Provider::TensorRt => "tensorrt",
        },
        precision: match nvidia.precision {
            Precision::Auto => "auto",
            Precision::Fp32 => "fp32",
            Precision::Fp16 => "fp16",
        },
        cache_claim: nvidia
            .engine_cache
            .as_ref()
            .and_then(|cache| cache.persistent_volume_claim.as_ref())
            .map(|claim| claim.claim_name.clone()),
    }
}

fn front(spec: &Service, allowed: &[ServiceType]) -> Result<Front, Invalid> {
    let kind = spec.r#type.as_str();
    if spec.r#type != ServiceType::ClusterIP && !allowed.contains(&spec.r#type) {
        let why = format!("{kind} is not allowed here; use ClusterIP, or have it allowed (serviceTypes of the chart)");
        return Err(Invalid::Installation { field: "spec.service.type", why });
    }
    Ok(Front { kind, port: spec.port, annotations: spec.annotations.clone() })
}

fn tasks_ttl_s(tasks: &Tasks) -> Result<Option<i64>, FieldError> {
    let ttl = tasks.ttl.parse("spec.tasks.ttl")?;
    Ok(tasks.enabled.then(|| whole_s(ttl)))
}

fn shared_store(store: &SpecStore, service: &YoloInferenceService) -> SharedStore {
    let SecretKey { name, key } = &store.redis.url_secret_ref;
    let scope = format!("{}/{}", service.namespace().unwrap_or_default(), service.name_any());
    SharedStore { secret: name.clone(), key: key.clone(), scope }
}

/// Rounded up, so that a budget never shrinks to nothing.
fn whole_s(duration: std::time::Duration) -> i64 {
    let whole = duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0));
    i64::try_from(whole).unwrap_or(i64::MAX)
}

/// Checked objects from a few lines of YAML, for the tests of every step.
#[cfg(test)]
pub(crate) mod fixtures {
    use super::{Invalid, Validated, YoloInferenceService, validate};
    use crate::build::Defaults;
    use crate::rollouts::Most;

    /// An installation that allows no more than it must.
    pub(crate) fn installation() -> Defaults {
        Defaults {
            server_image: "server:1".to_owned(),
            server_cuda_image: None,
            service_types: Vec::new(),
            operator_namespace: "yolo".to_owned(),
            rollouts_most: Most::Percent(10),
        }
    }

    /// Validates the service `fork` in `kitchen` with this `spec`.
    pub(crate) fn checked(spec: &str) -> Result<Validated, Invalid> {
        checked_by(spec, &installation())
    }

    /// The same in another installation.
    pub(crate) fn checked_by(spec: &str, defaults: &Defaults) -> Result<Validated, Invalid> {
        validate(&object(spec), defaults)
    }

    fn object(spec: &str) -> YoloInferenceService {
        let head = "{name: fork, namespace: kitchen, uid: u1, generation: 3}";
        let text = format!(
            "apiVersion: yolo-operator.io/v1alpha1\nkind: YoloInferenceService\nmetadata: {head}\nspec: {spec}"
        );
        serde_yaml_ng::from_str(&text).unwrap()
    }

    /// A service with everything at its default.
    pub(crate) fn smallest() -> Validated {
        checked("{model: {source: {imagePath: /models/a.onnx}}}").unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::fixtures::{checked, checked_by, installation, smallest};
    use super::*;
    use yolo_planner::policy::{Accelerator, Amount, Mode, Pace, Paces, Select};
    use yolo_planner::units::{BatchSize, Replicas};

    #[test]
    fn smallest_service_has_the_defaults_of_the_design() {
        let spec = smallest();
        let Policy { targets, replicas, batch, accelerator, .. } = &spec.policy;
        assert_eq!(targets, &yolo_planner::policy::Targets::default());
        assert_eq!((replicas.min, replicas.max), (Replicas::new(1), Replicas::new(10)));
        assert_eq!((batch.min, batch.max), (BatchSize::ONE, BatchSize::try_from(16).unwrap()));
        assert_eq!(accelerator, &Accelerator::Cpu);
        assert_eq!((spec.workload.cpu_millis, spec.workload.memory), (1000, Bytes::mebi(2048)));
        assert_eq!((spec.workload.image.as_str(), spec.workload.model.path.as_str()), ("server:1", "/models/a.onnx"));
    }

    #[test]
    fn knob_of_its_own_mode_and_a_fixed_count_win() {
        let spec = checked(
            "{model: {source: {imagePath: /a}}, scaling: {mode: Off, replicas: {fixed: 4}, batch: {mode: Recommend}, \
             behavior: {scaleUp: {stabilizationWindowSeconds: 10}, scaleDown: {stabilizationWindowSeconds: 30}}}}",
        )
        .unwrap();
        let policy = spec.policy;
        assert_eq!(
            (policy.replicas.mode, policy.batch.mode, policy.cache.mode),
            (Mode::Auto, Mode::Recommend, Mode::Off),
            "a fixed count is held in every mode"
        );
        assert_eq!((policy.replicas.min, policy.replicas.max), (Replicas::new(4), Replicas::new(4)));
        let lasts = (policy.stabilization, policy.stabilization_up);
        assert_eq!(lasts, (Some(Seconds::whole(30)), Some(Seconds::whole(10))));
        assert_eq!((policy.paces_up, policy.paces_down), (None, None), "nothing limits the speed");
    }

    #[test]
    fn limits_on_the_speed_are_the_planners_as_they_are_written() {
        let paces = |rules: &str| {
            let behavior = format!("behavior: {{scaleDown: {{{rules}}}}}");
            let spec = checked(&format!("{{model: {{source: {{imagePath: /a}}}}, scaling: {{{behavior}}}}}")).unwrap();
            assert_eq!((spec.policy.paces_up, spec.inactive), (None, Vec::new()));
            spec.policy.paces_down
        };
        let policies =
            "policies: [{type: Percent, value: 10, periodSeconds: 60}, {type: Pods, value: 4, periodSeconds: 90}]";
        let limits = vec![
            Pace { most: Amount::Percent(10), period: Seconds::whole(60) },
            Pace { most: Amount::Pods(4), period: Seconds::whole(90) },
        ];
        assert_eq!(paces(policies), Some(Paces { limits: limits.clone(), select: Select::Fastest }));
        let slowest = paces(&format!("selectPolicy: Min, {policies}"));
        assert_eq!(slowest, Some(Paces { limits, select: Select::Slowest }));
        assert_eq!(paces("selectPolicy: Disabled"), Some(Paces { limits: Vec::new(), select: Select::Disabled }));
        assert_eq!((paces("selectPolicy: Min"), paces("stabilizationWindowSeconds: 9")), (None, None));
    }

    #[test]
    fn another_model_or_pod_is_another_revision_and_another_target_is_none() {
        let of = |spec: &str| checked(spec).unwrap().policy.revision;
        let small = of("{model: {source: {imagePath: /models/a.onnx}}}");
        let others = [
            "{model: {source: {imagePath: /models/b.onnx}}}",
            "{model: {source: {imagePath: /models/a.onnx}, imageSize: 320}}",
            "{model: {source: {imagePath: /models/a.onnx}}, accelerator: {cpu: {profile: Latency}}}",
            "{model: {source: {imagePath: /models/a.onnx}}, server: {resources: {cpu: '2'}}}",
            "{model: {source: {imagePath: /models/a.onnx}}, server: {image: 'server:2'}}",
        ];
        assert!(others.iter().all(|other| of(other) != small));
        let same = "{model: {source: {imagePath: /models/a.onnx}}, targets: {window: 30s}, scaling: {replicas: {max: 4}}, \
                    server: {podLabels: {team: vision}}}";
        assert_eq!(of(same), small);
    }

    #[test]
    fn value_that_cannot_be_read_names_its_field() {
        let window = checked("{model: {source: {imagePath: /a}}, targets: {window: soon}}").unwrap_err();
        assert!(window.to_string().starts_with("spec.targets.window"), "{window}");
    }

    #[test]
    fn clients_that_cannot_be_read_are_left_out_and_named_and_all_else_acts() {
        let clients = |peers: &str| {
            let spec =
                checked(&format!("{{model: {{source: {{imagePath: /a}}}}, network: {{allowedClients: [{peers}]}}}}"));
            let Validated { clients, left_out, .. } = spec.unwrap();
            (clients.map(|clients| clients.len()), left_out.join("; "))
        };
        assert_eq!(clients(""), (None, String::new()), "the whole cluster");
        let (left, why) = clients("{ipBlock: {cidr: 10.0.0.0/33}}, {podSelector: {}}");
        assert_eq!(left, Some(1));
        assert!(why.starts_with("spec.network.allowedClients.ipBlock.cidr: \"10.0.0.0/33\""), "{why}");
        let (left, why) = clients("{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}");
        assert_eq!(left, Some(0), "nobody, and not the whole cluster");
        assert!(why.contains("ipBlock.except") && why.contains("11.0.0.0/16"), "{why}");
        let (left, why) = clients("{podSelector: {matchExpressions: [{key: app, operator: is, values: [shop]}]}}");
        assert_eq!(left, Some(0));
        assert!(why.starts_with("spec.network.allowedClients.podSelector: \"is\""), "{why}");
    }

    #[test]
    fn gpus_need_an_image_with_cuda_and_are_never_replaced_by_the_cpu() {
        let spec = |server: &str| {
            format!("{{model: {{source: {{imagePath: /a}}}}, accelerator: {{nvidia: {{}}}}, server: {{{server}}}}}")
        };
        let refused = checked(&spec("")).unwrap_err().to_string();
        assert!(refused.starts_with("spec.server.image: NVIDIA") && refused.contains("serverCudaImage"), "{refused}");
        assert_eq!(checked(&spec("image: 'own:1'")).unwrap().workload.image, "own:1");
        let defaults = Defaults { server_cuda_image: Some("cuda:1".to_owned()), ..installation() };
        let gpu = checked_by(&spec(""), &defaults).unwrap();
        assert_eq!(gpu.workload.image, "cuda:1");
        let Engine::Nvidia(gpus) = &gpu.workload.engine else { panic!("{:?}", gpu.workload.engine) };
        assert_eq!((gpus.count, gpus.resource.as_str(), gpus.provider), (1, "nvidia.com/gpu", "cuda"));
        assert_eq!(gpu.policy.accelerator, Accelerator::Gpu);
        let cpu = checked_by("{model: {source: {imagePath: /a}}}", &defaults).unwrap();
        assert_eq!(cpu.workload.image, "server:1");
    }

    #[test]
    fn type_of_the_service_is_one_that_the_installation_allows() {
        let spec = |kind: &str| format!("{{model: {{source: {{imagePath: /a}}}}, service: {{type: {kind}}}}}");
        let refused = checked(&spec("NodePort")).unwrap_err().to_string();
        assert!(refused.starts_with("spec.service.type: NodePort") && refused.contains("serviceTypes"), "{refused}");
        let defaults = Defaults { service_types: vec![ServiceType::NodePort], ..installation() };
        assert_eq!(checked_by(&spec("NodePort"), &defaults).unwrap().front.kind, "NodePort");
        assert_eq!(checked_by(&spec("ClusterIP"), &defaults).unwrap().front.kind, "ClusterIP");
        assert!(checked_by(&spec("LoadBalancer"), &defaults).is_err());
    }
}
