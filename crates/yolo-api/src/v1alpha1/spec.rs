//! `spec`: what a person writes down.

#![expect(clippy::duplicated_attributes, reason = "printer columns of one type repeat `type_`")]

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    defaults,
    model::{Accelerator, Model},
    pod::Server,
    scalars::DurationText,
    scaling::Scaling,
    schema,
    status::YoloInferenceServiceStatus,
    targets::Targets,
};

/// What to serve, what is to hold, and how far the operator may go for it.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "yolo-operator.io",
    version = "v1alpha1",
    kind = "YoloInferenceService",
    plural = "yoloinferenceservices",
    shortname = "yis",
    category = "yolo",
    namespaced,
    derive = "PartialEq",
    doc = "A YOLO model served by pods whose number, batch size and result cache the operator moves until the targets hold.",
    status = "YoloInferenceServiceStatus",
    scale(
        spec_replicas_path = ".spec.scaling.replicas.fixed",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Targets", type_ = "string", json_path = ".status.targetsSummary"),
    printcolumn(name = "P95", type_ = "string", json_path = ".status.load.p95"),
    printcolumn(name = "RPS", type_ = "number", json_path = ".status.load.imagesPerSecond"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "Batch", type_ = "integer", json_path = ".status.knobs.current.batch"),
    printcolumn(name = "Cache", type_ = "string", json_path = ".status.knobs.current.cache"),
    printcolumn(name = "Bottleneck", type_ = "string", json_path = ".status.bottleneck.kind"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Model", type_ = "string", json_path = ".status.model.name", priority = 1),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!self.tasks.enabled || has(self.sharedStore) || (has(self.scaling.replicas.fixed) ? self.scaling.replicas.fixed : self.scaling.replicas.max) == 1",
    "message": "tasks with more than one replica need sharedStore: a client may ask another pod for its result; set sharedStore, or replicas.max: 1",
    "fieldPath": ".tasks.enabled",
}]))]
pub struct YoloInferenceServiceSpec {
    /// The model.
    pub model: Model,
    /// What the model runs on; default: `cpu: {profile: Throughput}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// The inference pods.
    #[serde(default)]
    pub server: Server,
    /// What is to hold; default: the six default targets (inference p95 100ms, API p95 200ms, 10 images a second,
    /// 2Gi a pod, GPU 70 % busy, 99 % answered).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<Targets>,
    /// The three knobs.
    #[serde(default)]
    pub scaling: Scaling,
    /// The asynchronous API.
    #[serde(default)]
    pub tasks: Tasks,
    /// A store that all pods share for results and tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_store: Option<SharedStore>,
    /// What happens to requests that would wait too long.
    #[serde(default)]
    pub overload: Overload,
    /// The Service in front of the pods.
    #[serde(default)]
    pub service: Service,
    /// Who may reach the pods.
    #[serde(default)]
    pub network: Network,
    /// How a new version of the pods replaces the old one.
    #[serde(default)]
    pub rollout: Rollout,
    /// While true the operator turns no knob and leaves the number of pods to whoever sets it. A changed spec still rolls out.
    #[serde(default)]
    pub paused: bool,
}

impl ServiceType {
    /// As a Service of Kubernetes has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIP => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

impl YoloInferenceServiceSpec {
    /// The accelerator, with its default. See [`defaults`] for why the schema does not fill it in.
    pub fn accelerator(&self) -> Cow<'_, Accelerator> {
        self.accelerator.as_ref().map_or_else(|| Cow::Owned(Accelerator::default()), Cow::Borrowed)
    }

    /// The targets, with their defaults: absent, all six; present, only the rows listed.
    pub fn targets(&self) -> Cow<'_, Targets> {
        self.targets.as_ref().map_or_else(|| Cow::Owned(Targets::default()), Cow::Borrowed)
    }
}

/// The asynchronous API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tasks {
    /// Whether it is offered.
    #[serde(default)]
    pub enabled: bool,
    /// How long a result is kept after its task has ended (1m to 24h).
    #[serde(default = "defaults::tasks_ttl")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "duration(self) >= duration('1m') && duration(self) <= duration('24h')",
        "message": "tasks.ttl must be between 1m and 24h, for example \"1h\"",
    }]))]
    pub ttl: DurationText,
    /// Time in which a queued task is to be done (1s to 24h).
    #[serde(default = "defaults::tasks_complete_within")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "duration(self) >= duration('1s') && duration(self) <= duration('24h')",
        "message": "tasks.completeWithin must be between 1s and 24h, for example \"15m\"",
    }]))]
    pub complete_within: DurationText,
}

/// A store that all pods share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SharedStore {
    /// Redis or Valkey.
    pub redis: Redis,
}

/// Redis or Valkey.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Redis {
    /// Where its URL, with the password, is kept; mounted into the pods, never read by the operator.
    pub url_secret_ref: SecretKey,
}

/// A key of a Secret of this namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// What happens to requests that would wait too long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Overload {
    /// Whether late answers are worth having.
    #[serde(default)]
    pub policy: OverloadPolicy,
    /// Longest wait before a batch starts under `Queue`, more than 0s and at most 60s.
    #[serde(default = "defaults::queue_timeout")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "duration(self) > duration('0s') && duration(self) <= duration('60s')",
        "message": "overload.queueTimeout must be more than 0s and at most 60s, for example \"1s\"",
    }]))]
    pub queue_timeout: DurationText,
}

/// Whether late answers are worth having.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OverloadPolicy {
    /// They are: a request waits up to `queueTimeout`.
    #[default]
    Queue,
    /// They are not: what would miss the API target is refused at once (429).
    Shed,
}

/// The Service in front of the pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Service {
    /// Its type. `NodePort` and `LoadBalancer` only where the operator's installation allows them; clients outside the
    /// cluster have to be named in `network.allowedClients` as well.
    #[serde(default)]
    pub r#type: ServiceType,
    /// Its port.
    #[serde(default = "defaults::service_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Its annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::text_map")]
    pub annotations: BTreeMap<String, String>,
    /// What balances in front of the pods; it decides how much of a pod's capacity can be used.
    #[serde(default)]
    pub routing: Routing,
}

/// Type of the Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    /// Reachable inside the cluster.
    #[default]
    ClusterIP,
    /// Reachable on a port of every node.
    NodePort,
    /// Reachable through a load balancer of the cloud.
    LoadBalancer,
}

/// What balances in front of the pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Routing {
    /// Any pod, as kube-proxy does.
    #[default]
    Random,
    /// In turn.
    RoundRobin,
    /// The pod with the fewest open requests.
    LeastOutstanding,
}

/// Who may reach the pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Peers (networking.k8s.io/v1 `NetworkPolicyPeer`) that may use the API; empty: the whole cluster, and nobody
    /// outside it. The operator and Prometheus read the metrics in any case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        schema_with = "schema::peers",
        extend("x-kubernetes-validations" = [
            {
                "rule": "self.all(peer, has(peer.ipBlock) != (has(peer.namespaceSelector) || has(peer.podSelector)))",
                "message": "each of allowedClients needs either an ipBlock or selectors (namespaceSelector, podSelector), for example {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}}",
            },
            {
                "rule": "self.all(peer, !has(peer.ipBlock) || (isCIDR(peer.ipBlock.cidr) && cidr(peer.ipBlock.cidr) == cidr(peer.ipBlock.cidr).masked()))",
                "message": "ipBlock.cidr must be an address range with no bit set beyond its length, for example \"10.0.0.0/8\"",
            },
            {
                "rule": "self.all(peer, !has(peer.ipBlock) || !has(peer.ipBlock.except) || !isCIDR(peer.ipBlock.cidr) || peer.ipBlock.except.all(part, isCIDR(part) && cidr(part) == cidr(part).masked() && cidr(part).prefixLength() > cidr(peer.ipBlock.cidr).prefixLength() && cidr(peer.ipBlock.cidr).containsCIDR(part)))",
                "message": "ipBlock.except must list smaller address ranges within ipBlock.cidr, for example \"10.1.0.0/16\" of \"10.0.0.0/8\"",
            },
        ])
    )]
    pub allowed_clients: Vec<NetworkPolicyPeer>,
}

/// How a new version of the pods replaces the old one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rollout {
    /// Which comes first: the new pod, or the room for it.
    #[serde(default)]
    pub strategy: RolloutStrategy,
}

/// How a new version of the pods replaces the old one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RolloutStrategy {
    /// A new pod first: never fewer pods than planned, and room for one more is needed.
    #[default]
    Availability,
    /// An old pod goes first, where no spare GPU exists: one pod fewer than planned serves meanwhile, none if there is
    /// one alone.
    ResourceAware,
}
