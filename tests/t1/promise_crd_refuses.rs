//! An invalid manifest is refused at admission with a sentence that says what to change; a valid one is accepted.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, Error,
    api::{DynamicObject, ListParams, Patch, PatchParams},
    discovery::ApiResource,
};
use serde_json::{Value, json};
use yolo_api::v1alpha1::YoloInferenceService;
use yolo_testkit::cluster::{LocalCluster, Tier, wait_for};

const MANAGER: &str = "person";

/// Applies the committed CRD and waits until the API server serves it. Idempotent: every test calls it.
pub async fn install_crd(client: &Client) {
    let committed = include_str!("../../crds/yoloinferenceservices.yaml");
    let crd: Value = serde_yaml_ng::from_str(committed).unwrap();
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    let name = "yoloinferenceservices.yolo-operator.io";
    definitions.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&crd)).await.unwrap();
    let served = async || {
        let conditions = definitions.get(name).await.ok()?.status?.conditions?;
        conditions.iter().any(|condition| condition.type_ == "Established" && condition.status == "True").then_some(())
    };
    wait_for("the CRD to be served", Duration::from_secs(20), served).await.unwrap();
    let listed = async || Api::<YoloInferenceService>::all(client.clone()).list(&ListParams::default()).await.ok();
    wait_for("the new resource in discovery", Duration::from_secs(20), listed).await.unwrap();
}

fn services(client: &Client, namespace: &str) -> Api<DynamicObject> {
    // Dynamic, because the typed client cannot send what the types cannot express.
    Api::namespaced_with(client.clone(), namespace, &ApiResource::erase::<YoloInferenceService>(&()))
}

fn manifest(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "yolo-operator.io/v1alpha1", "kind": "YoloInferenceService",
        "metadata": {"name": name}, "spec": spec,
    })
}

/// What the API server makes of `object`, without storing it.
async fn judge(services: &Api<DynamicObject>, object: &Value) -> Result<DynamicObject, String> {
    let params = PatchParams::apply(MANAGER).dry_run().validation_strict();
    let name = object["metadata"]["name"].as_str().unwrap();
    services.patch(name, &params, &Patch::Apply(object)).await.map_err(|error| match error {
        Error::Api(status) => status.message.clone(),
        other => panic!("the API server did not answer: {other}"),
    })
}

#[test]
fn every_rule_accepts_and_refuses_with_its_message_and_field() {
    let Some(cluster) = LocalCluster::shared(Tier::T1) else { return };
    let namespace = cluster.namespace("rules").unwrap();
    let cases: Vec<Value> = serde_yaml_ng::from_str(include_str!("../../crates/yolo-api/fixtures/rules.yaml")).unwrap();
    assert!(!cases.is_empty());
    cluster
        .block_on(async |client| {
            install_crd(&client).await;
            let services = services(&client, &namespace);
            for case in cases {
                let (says, field) = (case["says"].as_str().unwrap(), case["field"].as_str().unwrap());
                let name = |which: &str| case["name"][which].as_str().unwrap_or("a").to_owned();
                let accepted = judge(&services, &manifest(&name("accept"), &case["accept"])).await;
                assert!(accepted.is_ok(), "accepted case of {says}: {accepted:?}");
                let refused = judge(&services, &manifest(&name("reject"), &case["reject"])).await;
                let message = refused.expect_err(says);
                assert!(message.contains(says) && message.contains(field), "{says} at {field} is not in: {message}");
            }
        })
        .unwrap();
}

#[test]
fn smallest_manifest_is_accepted_and_gets_the_defaults() {
    let Some(cluster) = LocalCluster::shared(Tier::T1) else { return };
    let namespace = cluster.namespace("smallest").unwrap();
    let text = include_str!("../../examples/smallest.yaml");
    assert!(text.lines().count() <= 10);
    let written: Value = serde_yaml_ng::from_str(text).unwrap();
    let stored = cluster
        .block_on(async |client| {
            install_crd(&client).await;
            judge(&services(&client, &namespace), &written).await.unwrap()
        })
        .unwrap();
    let spec = &stored.data["spec"];
    assert_eq!(spec["scaling"]["replicas"], json!({"min": 1, "max": 10}));
    assert_eq!(spec["scaling"]["cache"], json!({"min": "0", "max": "256Mi", "ttl": "1h"}));
    assert_eq!(spec["server"]["resources"], json!({"cpu": "1", "memory": "2Gi"}));
    assert_eq!(spec["model"]["confidence"], "0.25");
    // These two default where they are read: stored defaults would merge with what a person adds later.
    assert_eq!((&spec["targets"], &spec["accelerator"]), (&Value::Null, &Value::Null));
    // What the API server stored reads as what was written: both sides have the same defaults.
    let read = |value: Value| serde_json::from_value::<YoloInferenceService>(value).unwrap().spec;
    assert_eq!(read(serde_json::to_value(&stored).unwrap()), read(written));
}

#[test]
fn typo_is_refused_under_strict_validation() {
    let Some(cluster) = LocalCluster::shared(Tier::T1) else { return };
    let namespace = cluster.namespace("typo").unwrap();
    let message = cluster
        .block_on(async |client| {
            install_crd(&client).await;
            let spec =
                json!({"model": {"source": {"imagePath": "/models/a.onnx"}}, "scaling": {"replica": {"max": 3}}});
            judge(&services(&client, &namespace), &manifest("a", &spec)).await.unwrap_err()
        })
        .unwrap();
    assert!(message.contains("scaling.replica"), "{message}");
}

#[test]
fn values_out_of_range_are_refused_with_their_field() {
    let Some(cluster) = LocalCluster::shared(Tier::T1) else { return };
    let namespace = cluster.namespace("range").unwrap();
    let cases = [
        ("spec.scaling.batch.max", json!({"scaling": {"batch": {"max": 33}}})),
        ("spec.scaling.replicas.min", json!({"scaling": {"replicas": {"min": 0}}})),
        ("spec.scaling.cache.max", json!({"scaling": {"cache": {"max": "1 GB"}}})),
        ("spec.targets.window", json!({"targets": {"throughput": {}, "window": "1 minute"}})),
        ("spec.model.maxDetections", json!({"model": {"source": {"imagePath": "/a.onnx"}, "maxDetections": 3001}})),
        ("spec.model.confidence", json!({"model": {"source": {"imagePath": "/a.onnx"}, "confidence": "-0.1"}})),
        ("spec.scaling.mode", json!({"scaling": {"mode": "auto"}})),
        ("spec.model.source", json!({"model": {}})),
    ];
    cluster
        .block_on(async |client| {
            install_crd(&client).await;
            let services = services(&client, &namespace);
            for (field, mut spec) in cases {
                if spec["model"].is_null() {
                    spec["model"] = json!({"source": {"imagePath": "/models/a.onnx"}});
                }
                let message = judge(&services, &manifest("a", &spec)).await.expect_err(field);
                assert!(message.contains(field), "{field} is not in: {message}");
            }
        })
        .unwrap();
}

#[test]
fn every_example_is_accepted() {
    let Some(cluster) = LocalCluster::shared(Tier::T1) else { return };
    let namespace = cluster.namespace("examples").unwrap();
    cluster
        .block_on(async |client| {
            install_crd(&client).await;
            let services = services(&client, &namespace);
            for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap() {
                let path = file.unwrap().path();
                let example: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
                let accepted = judge(&services, &example).await;
                assert!(accepted.is_ok(), "{}: {accepted:?}", path.display());
            }
        })
        .unwrap();
}

#[test]
fn accelerator_and_targets_are_replaced_as_a_whole() {
    let Some(cluster) = LocalCluster::shared(Tier::T1) else { return };
    let namespace = cluster.namespace("replace").unwrap();
    let with = |more: Value| {
        let mut spec = json!({"model": {"source": {"imagePath": "/models/a.onnx"}}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        manifest("a", &spec)
    };
    let specs = [
        with(json!({})),
        with(json!({"accelerator": {"emulated": {"alphaMicros": 1, "betaMicros": 1}}})),
        with(json!({"accelerator": {"cpu": {}}, "targets": {"throughput": {}, "availability": {}}})),
        with(json!({"targets": {"apiLatency": {"threshold": "1s"}}})),
    ];
    cluster
        .block_on(async |client| {
            install_crd(&client).await;
            let services = services(&client, &namespace);
            for spec in &specs {
                services.patch("a", &PatchParams::apply(MANAGER), &Patch::Apply(spec)).await.unwrap();
            }
            let last = services.get("a").await.unwrap();
            let rows: Vec<_> = last.data["spec"]["targets"].as_object().unwrap().keys().cloned().collect();
            assert_eq!(rows, ["apiLatency", "violationBudgetPercent", "window"]);
            assert!(last.data["spec"]["accelerator"].is_null());
        })
        .unwrap();
}
