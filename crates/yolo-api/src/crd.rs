//! The CustomResourceDefinition, made from the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::v1alpha1::YoloInferenceService;

/// The CustomResourceDefinition.
pub fn definition() -> CustomResourceDefinition {
    YoloInferenceService::crd()
}
