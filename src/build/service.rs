//! The Service in front of the pods: the inference API over HTTP and gRPC, never metrics.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::deployment::GRPC_PORT;
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
            type_: Some(spec.front.kind.to_owned()),
            selector: Some(selector_labels(spec)),
            ports: Some(ports(spec.front.port)),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// HTTP on the port that the user chose. gRPC on its usual one, unless HTTP was put there: a port has one use.
fn ports(http: i32) -> Vec<ServicePort> {
    let grpc = (http != GRPC_PORT).then(|| port("grpc", GRPC_PORT));
    std::iter::once(port("http", http)).chain(grpc).collect()
}

/// A port of the Service in front of the pods' port of the same name.
fn port(name: &str, number: i32) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: number,
        protocol: Some("TCP".to_owned()),
        target_port: Some(IntOrString::String(name.to_owned())),
        ..ServicePort::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::fixtures::{checked, smallest};

    fn numbers(spec: &Validated) -> Vec<(String, i32)> {
        let ports = service(spec).spec.unwrap().ports.unwrap();
        ports.into_iter().map(|port| (port.name.unwrap(), port.port)).collect()
    }

    #[test]
    fn service_offers_http_and_grpc() {
        assert_eq!(numbers(&smallest()), [("http".to_owned(), 80), ("grpc".to_owned(), 8001)]);
    }

    #[test]
    fn http_on_the_port_of_grpc_leaves_grpc_out() {
        let taken = checked("{model: {source: {imagePath: /models/a.onnx}}, service: {port: 8001}}").unwrap();
        assert_eq!(numbers(&taken), [("http".to_owned(), 8001)]);
    }
}
