//! The `CustomResourceDefinition`, made from the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, ValidationRule};
use kube::CustomResourceExt;

use crate::v1alpha1::YoloInferenceService;

/// Longest name of a service: `<name>-<ten characters>`, its `ReplicaSet`, has to stay within 63.
pub const NAME_CHARS_MAX: usize = 50;

/// The `CustomResourceDefinition`.
pub fn definition() -> CustomResourceDefinition {
    let mut crd = YoloInferenceService::crd();
    for version in &mut crd.spec.versions {
        if let Some(root) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            // Only a rule at the root sees `metadata`, which the derive does not reach.
            root.x_kubernetes_validations = Some(vec![name_rule()]);
        }
    }
    crd
}

fn name_rule() -> ValidationRule {
    ValidationRule {
        rule: format!(
            "size(self.metadata.name) <= {NAME_CHARS_MAX} && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')"
        ),
        message: Some(format!(
            "metadata.name must start with a letter, have only a-z, 0-9 and -, and at most {NAME_CHARS_MAX} characters: \
             the Service and the pods are named after it"
        )),
        ..ValidationRule::default()
    }
}
