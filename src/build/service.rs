//! The Service in front of the pods: the inference API only, never metrics.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{metadata, selector_labels};
use crate::validate::Validated;

/// Builds the Service, named as its `YoloInferenceService`.
pub fn service(spec: &Validated) -> Service {
    let mut metadata = metadata(spec, &spec.id.name);
    if !spec.front.annotations.is_empty() {
        metadata.annotations = Some(spec.front.annotations.clone());
    }
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(spec.front.kind.clone()),
            selector: Some(selector_labels(spec)),
            ports: Some(vec![ServicePort {
                name: Some("http".to_owned()),
                port: spec.front.port,
                protocol: Some("TCP".to_owned()),
                target_port: Some(IntOrString::String("http".to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}
