//! The chart grants the operator what it uses and nothing else. (The same rules are a Role or a `ClusterRole`; here the
//! Role, which also shows that one namespace can be served without any right outside it.)

use std::collections::BTreeSet;

use clap::Parser;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use yolo_api::v1alpha1::YoloInferenceService;
use yolo_api::v1alpha1::spec::ServiceType;
use yolo_operator::args::Config;
use yolo_operator::rollouts::Most;
use yolo_testkit::cluster::LocalCluster;

use crate::operator::{self, TestPod, condition, deployment, loopback, manifest, until};

/// API group, resource with its subresource, verb.
type Right = (String, String, String);

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/yolo-operator");

fn install_chart(cluster: &LocalCluster, namespace: &str) {
    let mut helm = cluster.command("helm");
    helm.args(["install", "yolo-operator", CHART, "--namespace", namespace]);
    let installed = helm.args(["--set", &format!("watchNamespace={namespace}")]).output().unwrap();
    assert!(installed.status.success(), "helm: {}", String::from_utf8_lossy(&installed.stderr));
}

/// A client with the rights of the chart's service account and no others.
async fn client_of_the_chart(cluster: &LocalCluster, namespace: &str) -> Client {
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.auth_info.impersonate = Some(user(namespace));
    yolo_operator::client(config).unwrap()
}

fn user(namespace: &str) -> String {
    format!("system:serviceaccount:{namespace}:yolo-operator")
}

fn config(namespace: &str) -> Config {
    let any = (std::net::Ipv4Addr::LOCALHOST, 0).into();
    Config {
        namespace: namespace.to_owned(),
        lease_name: "yolo-operator".to_owned(),
        identity: "chart".to_owned(),
        watch_namespace: Some(namespace.to_owned()),
        server_image: "localhost/yolo-server:test".to_owned(),
        server_cuda_image: None,
        service_types: Vec::new(),
        max_concurrent_rollouts: Most::Percent(10),
        prometheus_url: None,
        prometheus_ca_file: None,
        prometheus_token_file: None,
        metrics_address: any,
        health_address: any,
        log: String::new(),
    }
}

fn granted(rules: &[PolicyRule]) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for rule in rules {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                rights.extend(rule.verbs.iter().map(|verb| (group.clone(), resource.clone(), verb.clone())));
            }
        }
    }
    rights
}

/// What the chart's user did, and what it was denied, from the audit log.
fn used(cluster: &LocalCluster, namespace: &str) -> (BTreeSet<Right>, Vec<String>) {
    let log = std::fs::read_to_string(cluster.audit_log()).unwrap();
    let (mut rights, mut denied) = (BTreeSet::new(), Vec::new());
    for line in log.lines() {
        let Ok(event) = serde_json::from_str::<Value>(line) else { continue }; // the last line may be half written
        if event["impersonatedUser"]["username"] != json!(user(namespace)) {
            continue;
        }
        let (object, text) = (&event["objectRef"], |value: &Value| value.as_str().unwrap_or_default().to_owned());
        let subresource = object["subresource"].as_str().map(|name| format!("/{name}")).unwrap_or_default();
        let resource = format!("{}{subresource}", text(&object["resource"]));
        let group = text(&object["apiGroup"]);
        if event["responseStatus"]["code"] == 403 {
            denied.push(line.to_owned());
        }
        // Server-side apply of an object that is not there yet asks for create as well.
        if event["verb"] == "patch" && event["responseStatus"]["code"] == 201 {
            rights.insert((group.clone(), resource.clone(), "create".to_owned()));
        }
        rights.insert((group, resource, text(&event["verb"])));
    }
    (rights, denied)
}

#[test]
fn chart_grants_what_is_used_and_nothing_else() {
    let Some(cluster) = operator::cluster() else { return };
    let namespace = cluster.namespace("chart").unwrap();
    install_chart(cluster, &namespace);
    let rights = cluster
        .block_on(async |client| {
            let (operator, shutdown) = (client_of_the_chart(cluster, &namespace).await, CancellationToken::new());
            let running = yolo_operator::run(config(&namespace), operator, shutdown.clone());
            let running = AbortOnDropHandle::new(tokio::spawn(running));
            operator::apply(&client, &namespace, &manifest("granted", json!({}))).await;
            deployment(&client, &namespace, "granted").await;
            let _pod = TestPod::start(&client, &namespace, "granted", loopback(30, 0)).await;
            until(&client, &namespace, "granted", "the service to be ready", |service| {
                condition(service, "Ready").0 == "True"
            })
            .await;
            // New knobs: the ConfigMap is written again and the pod nudged.
            let services = Api::<YoloInferenceService>::namespaced(client.clone(), &namespace);
            let ttl = json!({"spec": {"scaling": {"cache": {"ttl": "2h"}}}});
            services.patch("granted", &PatchParams::default(), &Patch::Merge(&ttl)).await.unwrap();
            until(&client, &namespace, "granted", "the new knobs to be applied", |service| {
                let knobs = service.status.as_ref().and_then(|status| status.knobs.as_ref());
                knobs.is_some_and(|knobs| knobs.generation >= 2 && knobs.applied_pods == 1)
            })
            .await;
            // In order, so that the lease is vacated as well.
            shutdown.cancel();
            running.await.unwrap().unwrap();
            let roles = Api::<Role>::namespaced(client, &namespace).list(&ListParams::default()).await.unwrap();
            granted(&roles.items.into_iter().filter_map(|role| role.rules).flatten().collect::<Vec<_>>())
        })
        .unwrap();
    let (used, denied) = used(cluster, &namespace);
    assert_eq!(denied, Vec::<String>::new());
    let idle: Vec<_> = rights.difference(&used).collect();
    assert!(idle.is_empty(), "granted and not used: {idle:?}");
    assert!(used.is_subset(&rights), "used and not granted by a Role: {:?}", used.difference(&rights));
    let forbidden = |(_, resource, verb): &&Right| resource.contains("secrets") || resource == "*" || verb == "*";
    assert_eq!(rights.iter().find(forbidden), None);
}

/// The object of `release` that `helm template` makes under `name` with these values.
fn rendered<K: DeserializeOwned + k8s_openapi::Resource>(
    cluster: &LocalCluster,
    (release, name): (&str, &str),
    values: &[&str],
) -> K {
    let mut helm = cluster.command("helm");
    helm.args(["template", release, CHART, "--namespace", "shared", "--validate"]);
    let made = helm.args(values.iter().map(|value| format!("--set={value}"))).output().unwrap();
    assert!(made.status.success(), "helm: {}", String::from_utf8_lossy(&made.stderr));
    let text = String::from_utf8(made.stdout).unwrap();
    let mut objects = serde_yaml_ng::Deserializer::from_str(&text).map(|object| Value::deserialize(object).unwrap());
    let wanted = |object: &Value| object["kind"] == K::KIND && object["metadata"]["name"] == name;
    serde_json::from_value(objects.find(wanted).unwrap()).unwrap()
}

/// What the operator makes of the flags that the chart gives it.
fn settings(cluster: &LocalCluster, names: (&str, &str), values: &[&str]) -> Config {
    let deployment: Deployment = rendered(cluster, names, values);
    let args = deployment.spec.unwrap().template.spec.unwrap().containers.remove(0).args.unwrap();
    Config::try_parse_from(std::iter::once("yolo-operator".to_owned()).chain(args)).unwrap()
}

#[test]
fn values_of_the_chart_are_the_operators_settings() {
    let Some(cluster) = operator::cluster() else { return };
    let settings = |values: &[&str]| settings(cluster, ("yolo-operator", "yolo-operator"), values);
    let usual = settings(&[]);
    assert_eq!((usual.server_cuda_image, usual.service_types), (None, Vec::new()));
    let cuda = ["serverCudaImage.repository=registry.example.com/cuda", "serverCudaImage.tag=v7"];
    let types = ["serviceTypes={NodePort,LoadBalancer}"];
    let set = settings(&[cuda.as_slice(), &types].concat());
    assert_eq!(set.server_cuda_image.as_deref(), Some("registry.example.com/cuda:v7"));
    assert_eq!(set.service_types, [ServiceType::NodePort, ServiceType::LoadBalancer]);
    let untagged = settings(&cuda[..1]).server_cuda_image.unwrap();
    assert_eq!(untagged.split(':').next_back(), usual.server_image.split(':').next_back(), "the chart's version");
}

#[test]
fn releases_that_share_a_namespace_have_a_lease_each() {
    let Some(cluster) = operator::cluster() else { return };
    let lease = |release: &str, name: &str| {
        let config = settings(cluster, (release, name), &[]);
        let role: Role = rendered(cluster, (release, &format!("{name}-election")), &[]);
        let granted: Vec<_> = role.rules.unwrap().into_iter().filter_map(|rule| rule.resource_names).collect();
        assert_eq!(granted, [[config.lease_name.clone()]], "the right to it");
        config.lease_name
    };
    assert_eq!(lease("yolo-operator", "yolo-operator"), "yolo-operator");
    assert_eq!(lease("kitchen", "kitchen-yolo-operator"), "kitchen-yolo-operator");
}
