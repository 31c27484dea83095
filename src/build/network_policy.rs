//! Who may talk to the pods, and to whom they may talk.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::deployment::{ADMIN_PORT, API_PORT, GRPC_PORT};
use super::{metadata, selector, store};
use crate::validate::{ModelFile, Validated};

/// Builds the policy: in, the API from the clients that the service allows, else from the whole cluster, and metrics
/// from the operator and Prometheus; out, names, the shared store where there is one, and the model's store where one
/// is fetched (a policy is of the pod, not of its init container).
pub fn network_policy(spec: &Validated, operator_namespace: &str) -> NetworkPolicy {
    let clients = spec.clients.clone().unwrap_or_else(|| vec![any_namespace()]);
    // A rule with an empty list would let in the whole world.
    let api = Some(clients).filter(|clients| !clients.is_empty()).map(|clients| NetworkPolicyIngressRule {
        from: Some(clients),
        ports: Some(vec![port("TCP", API_PORT), port("TCP", GRPC_PORT)]),
    });
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
            ingress: Some(api.into_iter().chain([metrics]).collect()),
            egress: Some(
                std::iter::once(names).chain(store::egress(&spec.workload)).chain(model_store(spec)).collect(),
            ),
        }),
    }
}

/// The ports of the store: those that the uri and the environment name, else that of HTTPS. Its address is not known.
fn model_store(spec: &Validated) -> Option<NetworkPolicyEgressRule> {
    let ModelFile::Fetched { uri, .. } = &spec.workload.model.file else { return None };
    let endpoints = spec.workload.pod.env.iter().filter(|variable| variable.name.contains("ENDPOINT"));
    let mut ports: Vec<_> = endpoints.map(|variable| port_of(&variable.value)).chain([port_of(uri)]).collect();
    ports.sort_unstable();
    ports.dedup();
    Some(NetworkPolicyEgressRule {
        to: None,
        ports: Some(ports.into_iter().map(|number| port("TCP", number)).collect()),
    })
}

/// The port in `scheme://host:port/…`, else that of the scheme.
fn port_of(address: &str) -> i32 {
    let (scheme, rest) = address.split_once("://").unwrap_or(("https", address));
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    let named = host.rsplit_once(':').and_then(|(_, number)| number.parse::<u16>().ok());
    named.map_or(if scheme == "http" { 80 } else { 443 }, i32::from)
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

pub(super) fn port(protocol: &str, port: i32) -> NetworkPolicyPort {
    NetworkPolicyPort { protocol: Some(protocol.to_owned()), port: Some(IntOrString::Int(port)), end_port: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::fixtures::{checked, smallest};

    #[test]
    fn everybody_reaches_the_api_over_http_and_grpc_and_nothing_else() {
        let policy = network_policy(&smallest(), "yolo-system").spec.unwrap();
        let open_to_all = policy.ingress.unwrap().into_iter().filter(|rule| rule.from == Some(vec![any_namespace()]));
        let ports: Vec<_> = open_to_all.flat_map(|rule| rule.ports.unwrap()).map(|port| port.port.unwrap()).collect();
        assert_eq!(ports, [8080, 8001].map(IntOrString::Int));
    }

    #[test]
    fn named_clients_alone_reach_the_api_and_metrics_are_read_all_the_same() {
        let shop = "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}}";
        let clients = format!("{shop}, {{ipBlock: {{cidr: 10.0.0.0/8}}}}");
        let spec = format!("{{model: {{source: {{imagePath: /a}}}}, network: {{allowedClients: [{clients}]}}}}");
        let rules = |spec: &Validated| network_policy(spec, "yolo-system").spec.unwrap().ingress.unwrap();
        let (named, open) = (rules(&checked(&spec).unwrap()), rules(&smallest()));
        let from = named[0].from.clone().unwrap();
        let shop: NetworkPolicyPeer = serde_yaml_ng::from_str(shop).unwrap();
        assert_eq!(from[0], shop);
        assert_eq!(from[1].ip_block.as_ref().unwrap().cidr, "10.0.0.0/8");
        assert_eq!((from.len(), &named[0].ports, &named[1..]), (2, &open[0].ports, &open[1..]));
        let nobody = spec.replace(&clients, "{ipBlock: {cidr: 10.0.0.0/33}}");
        assert_eq!(rules(&checked(&nobody).unwrap()), open[1..]);
    }

    fn ports_out(spec: &Validated) -> Vec<i32> {
        let policy = network_policy(spec, "yolo").spec.unwrap();
        let ports = policy.egress.unwrap().into_iter().flat_map(|rule| rule.ports.unwrap());
        let number = |port: NetworkPolicyPort| match port.port.unwrap() {
            IntOrString::Int(number) => number,
            IntOrString::String(name) => panic!("{name} is no number"),
        };
        ports.map(number).collect()
    }

    #[test]
    fn pods_reach_names_and_the_store_of_their_model_and_nothing_else() {
        assert_eq!(ports_out(&smallest()), [53, 53]);
        let digest = "0123456789abcdef".repeat(4);
        for (uri, env, ports) in [
            ("https://example.com/a.onnx", "", &[443][..]),
            ("oci://registry.example.com:5000/models/a:1", "", &[5000]),
            ("s3://models/a.onnx", "{name: AWS_ENDPOINT_URL, value: 'http://minio.store:9000'}", &[443, 9000]),
        ] {
            let server = format!("server: {{env: [{env}]}}");
            let spec =
                checked(&format!("{{model: {{source: {{uri: '{uri}'}}, sha256: {digest}}}, {server}}}")).unwrap();
            assert_eq!(ports_out(&spec)[2..], *ports, "{uri}");
        }
    }
}
