//! `spec.server`: what the pods are made of. Never a raw pod template: each field here is one that
//! a restricted pod in the same namespace could have anyway.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, Toleration, TopologySpreadConstraint};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    defaults,
    scalars::{DurationText, Quantity},
    schema,
};

/// The inference pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    /// Image of yolo-server; default: the one that the operator was installed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), regex(pattern = r"^[^\s]+$"))]
    pub image: Option<String>,
    /// CPU and memory of a pod.
    #[serde(default)]
    pub resources: Resources,
    /// Names of Secrets of this namespace with registry credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 253)))]
    pub image_pull_secrets: Vec<String>,
    /// More labels on the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::text_map", extend("x-kubernetes-validations" = [{
        "rule": "self.all(key, !key.startsWith('yolo-operator.io/') && !key.startsWith('app.kubernetes.io/'))",
        "message": "podLabels must not use the prefixes yolo-operator.io/ and app.kubernetes.io/: the operator sets those; choose a prefix of your own",
    }]))]
    pub pod_labels: BTreeMap<String, String>,
    /// More annotations on the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::text_map", extend("x-kubernetes-validations" = [{
        "rule": "self.all(key, !key.startsWith('yolo-operator.io/') && !key.startsWith('controller.kubernetes.io/'))",
        "message": "podAnnotations must not use the prefixes yolo-operator.io/ and controller.kubernetes.io/: the operator sets those; choose a prefix of your own",
    }]))]
    pub pod_annotations: BTreeMap<String, String>,
    /// More environment variables (values only: a Secret cannot be read through this).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["name"],
        "x-kubernetes-validations" = [{
            "rule": "self.all(variable, !variable.name.startsWith('YOLO_'))",
            "message": "env must not set variables that start with YOLO_: the operator sets those from the spec; use the spec's own field",
        }],
    ))]
    pub env: Vec<EnvVar>,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::text_map")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate (core/v1 Toleration).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::embedded::<Vec<Toleration>>")]
    pub tolerations: Vec<Toleration>,
    /// Where pods may and should run (core/v1 Affinity).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::embedded::<Option<Affinity>>")]
    pub affinity: Option<Affinity>,
    /// How pods spread over nodes and zones (core/v1 `TopologySpreadConstraint`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::embedded::<Vec<TopologySpreadConstraint>>")]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Name of a `PriorityClass`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Name of a `RuntimeClass`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub runtime_class_name: Option<String>,
    /// Service account of the pods, of this namespace and with the label `yolo-operator.io/allowed: "true"`; default: the
    /// namespace's default one. It brings what is bound to its name (pull secrets, policies, a cloud's identities that
    /// a webhook injects); its token for the Kubernetes API is not mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// How a pod leaves.
    #[serde(default)]
    pub drain: Drain,
}

/// CPU and memory of a pod: requests and limits are the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Cores, at least 100m (say `500m` or `2`).
    #[serde(default = "defaults::cpu")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "quantity(string(self)).compareTo(quantity('100m')) >= 0 && quantity(string(self)).compareTo(quantity('256')) <= 0",
        "message": "resources.cpu must be between 100m and 256 cores, for example \"500m\" or \"2\"",
    }]))]
    pub cpu: Quantity,
    /// Bytes, at least 64Mi (say `2Gi`).
    #[serde(default = "defaults::memory")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "quantity(string(self)).compareTo(quantity('64Mi')) >= 0 && quantity(string(self)).compareTo(quantity('4Ti')) <= 0",
        "message": "resources.memory must be between 64Mi and 4Ti; write bytes with a unit, for example \"2Gi\"",
    }]))]
    pub memory: Quantity,
}

/// An environment variable with a plain value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EnvVar {
    /// Its name.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub name: String,
    /// Its value.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub value: String,
}

/// How a pod leaves after SIGTERM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "duration(self.propagation) < duration(self.budget)",
        "message": "drain.propagation must be shorter than drain.budget: the budget is for everything, the propagation is its first part",
        "fieldPath": ".propagation",
    },
    {
        "rule": "duration(self.budget) >= duration('1s') && duration(self.budget) <= duration('10m')",
        "message": "drain.budget must be between 1s and 10m, for example \"25s\"",
        "fieldPath": ".budget",
    },
]))]
pub struct Drain {
    /// Time for which a leaving pod still serves, until every client knows that it leaves.
    #[serde(default = "defaults::drain_propagation")]
    pub propagation: DurationText,
    /// Time for all of leaving; the grace period is a little longer.
    #[serde(default = "defaults::drain_budget")]
    pub budget: DurationText,
}
