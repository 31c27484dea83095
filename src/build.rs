//! The objects that a service should have, from what was asked (`Validated`) and what was decided (`Decision`).
//!
//! Reads: its arguments. Writes: nothing. Does not: look at live objects; `apply` compares.
//! One Kubernetes kind a file.

mod deployment;
mod fetch;
mod gpu;
mod knobs;
mod network_policy;
mod pdb;
mod service;
mod store;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource;
use yolo_api::v1alpha1::YoloInferenceService;
use yolo_api::v1alpha1::spec::ServiceType;
use yolo_planner::Decision;

pub use deployment::{MODEL_DIRECTORY, TEMPLATE_ANNOTATION, progress_deadline_s, template_hash};
pub use knobs::{KnobsDocument, config_map, config_map_name, read};

use crate::fleet::SERVICE_LABEL;
use crate::rollouts::Most;
use crate::validate::Validated;

/// Everything that a service should have. `apply` takes it apart without `..`: a new object that nobody applies does not
/// compile.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// The knobs, not numbered yet: the generation depends on the live objects.
    pub knobs: KnobsDocument,
    /// The pods. `spec.replicas` is absent where the count is not ours.
    pub deployment: Deployment,
    /// The address of the pods.
    pub service: Service,
    /// Voluntary disruptions.
    pub budget: PodDisruptionBudget,
    /// Who may talk to the pods.
    pub network_policy: NetworkPolicy,
}

/// What only the operator's installation decides.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// Image of the server where the object names none.
    pub server_image: String,
    /// The same for NVIDIA GPUs, if the installation has one.
    pub server_cuda_image: Option<String>,
    /// Types of a Service, beside `ClusterIP`, that a service may have: what opens a port of every node, or costs
    /// money.
    pub service_types: Vec<ServiceType>,
    /// The operator's namespace, from which it reads the pods' metrics.
    pub operator_namespace: String,
    /// How many services replace their pods at a time when it changes their template.
    pub rollouts_most: Most,
}

/// Builds the objects of one service. Pure and total: `validate` has refused everything that could not be built.
pub fn build(spec: &Validated, decision: &Decision, owns_replicas: bool, defaults: &Defaults) -> Desired {
    let replicas = owns_replicas.then_some(decision.desired.replicas);
    Desired {
        knobs: KnobsDocument::new(&spec.policy, &decision.desired),
        deployment: deployment::deployment(spec, replicas),
        service: service::service(spec),
        budget: pdb::budget(spec),
        network_policy: network_policy::network_policy(spec, &defaults.operator_namespace),
    }
}

/// Labels of every child object.
fn labels(spec: &Validated) -> BTreeMap<String, String> {
    let mut labels = selector_labels(spec);
    labels.insert("app.kubernetes.io/managed-by".to_owned(), "yolo-operator".to_owned());
    labels.insert(SERVICE_LABEL.to_owned(), spec.id.name.clone());
    labels
}

/// Labels that select the pods. A Deployment's selector can never change, so nothing else may come here.
fn selector_labels(spec: &Validated) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "yolo-server".to_owned()),
        ("app.kubernetes.io/instance".to_owned(), spec.id.name.clone()),
    ])
}

/// The same as a label selector is written.
pub fn selector_text(spec: &Validated) -> String {
    let pairs: Vec<String> = selector_labels(spec).iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}

fn selector(spec: &Validated) -> LabelSelector {
    LabelSelector { match_labels: Some(selector_labels(spec)), match_expressions: None }
}

/// Metadata of a child object named `name`: owned, so that the garbage collector removes it with its service.
fn metadata(spec: &Validated, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(spec.id.namespace.clone()),
        labels: Some(labels(spec)),
        owner_references: Some(vec![owner(spec)]),
        ..ObjectMeta::default()
    }
}

fn owner(spec: &Validated) -> OwnerReference {
    OwnerReference {
        api_version: YoloInferenceService::api_version(&()).into_owned(),
        kind: YoloInferenceService::kind(&()).into_owned(),
        name: spec.id.name.clone(),
        uid: spec.uid.clone(),
        controller: Some(true),
        // Blocking needs the permission to update finalizers where owner references are checked, as OpenShift does.
        block_owner_deletion: None,
    }
}
