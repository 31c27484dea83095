//! Who may talk to the pods, and to whom they may talk.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::deployment::{ADMIN_PORT, API_PORT, GRPC_PORT};
use super::{metadata, selector};
use crate::validate::Validated;

/// Builds the policy: in, the API from the whole cluster and metrics from the operator and Prometheus; out, names only.
pub fn network_policy(spec: &Validated, operator_namespace: &str) -> NetworkPolicy {
    let api = NetworkPolicyIngressRule {
        from: Some(vec![any_namespace()]),
        ports: Some(vec![port("TCP", API_PORT), port("TCP", GRPC_PORT)]),
    };
    let metrics = NetworkPolicyIngressRule {
        from: Some(vec![
            pods("yolo-operator", labelled("kubernetes.io/metadata.name", operator_namespace)),
            pods("prometheus", LabelSelector::default()),
        ]),
        ports: Some(vec![port("TCP", ADMIN_PORT)]),
    };
    let names = NetworkPolicyEgressRule { to: None, ports: Some(vec![port("UDP", 53), port("TCP", 53)]) };
    NetworkPolicy {
        metadata: metadata(spec, &spec.id.name),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(spec)),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(vec![api, metrics]),
            egress: Some(vec![names]),
        }),
    }
}

fn any_namespace() -> NetworkPolicyPeer {
    NetworkPolicyPeer { namespace_selector: Some(LabelSelector::default()), ..NetworkPolicyPeer::default() }
}

fn pods(app: &str, namespaces: LabelSelector) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        namespace_selector: Some(namespaces),
        pod_selector: Some(labelled("app.kubernetes.io/name", app)),
        ip_block: None,
    }
}

fn labelled(label: &str, value: &str) -> LabelSelector {
    LabelSelector {
        match_labels: Some(BTreeMap::from([(label.to_owned(), value.to_owned())])),
        match_expressions: None,
    }
}

fn port(protocol: &str, port: i32) -> NetworkPolicyPort {
    NetworkPolicyPort { protocol: Some(protocol.to_owned()), port: Some(IntOrString::Int(port)), end_port: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::fixtures::smallest;

    #[test]
    fn everybody_reaches_the_api_over_http_and_grpc_and_nothing_else() {
        let policy = network_policy(&smallest(), "yolo-system").spec.unwrap();
        let open_to_all = policy.ingress.unwrap().into_iter().filter(|rule| rule.from == Some(vec![any_namespace()]));
        let ports: Vec<_> = open_to_all.flat_map(|rule| rule.ports.unwrap()).map(|port| port.port.unwrap()).collect();
        assert_eq!(ports, [8080, 8001].map(IntOrString::Int));
    }
}
