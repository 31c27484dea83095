//! `kubectl get yis` shows the columns that people look for, and `kubectl scale` fixes the number of pods.

use kube::{
    Api, Resource,
    api::{ListParams, Patch, PatchParams, PostParams},
    core::Request,
};
use serde_json::{Value, json};
use yolo_api::v1alpha1::YoloInferenceService;
use yolo_testkit::cluster::{LocalCluster, Tier};

use crate::promise_crd_refuses::install_crd;

fn smallest() -> YoloInferenceService {
    serde_yaml_ng::from_str(include_str!("../../examples/smallest.yaml")).unwrap()
}

#[test]
fn columns_show_the_status() {
    let Some(cluster) = LocalCluster::shared(Tier::T1) else { return };
    let namespace = cluster.namespace("columns").unwrap();
    let table: Value = cluster
        .block_on(async |client| {
            install_crd(&client).await;
            let services = Api::<YoloInferenceService>::namespaced(client.clone(), &namespace);
            services.create(&PostParams::default(), &smallest()).await.unwrap();
            let status = json!({"status": {
                "replicas": 3, "targetsSummary": "5/5", "load": {"imagesPerSecond": 12.5, "p95": "87ms"},
                "knobs": {"current": {"replicas": 3, "batch": 8, "cacheBytes": 67_108_864, "cache": "64Mi"}},
                "bottleneck": {"kind": "None", "confidence": 1.0}, "model": {"name": "page-layout-640.onnx"},
                "conditions": [{
                    "type": "Ready", "status": "True", "reason": "Serving", "message": "Serves.",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
            }});
            services.patch_status("smallest", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
            let path = YoloInferenceService::url_path(&(), Some(&*namespace));
            let mut request = Request::new(path).list(&ListParams::default()).unwrap();
            let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
            request.headers_mut().insert("accept", table.parse().unwrap());
            client.request(request).await.unwrap()
        })
        .unwrap();
    let column = |at: usize| table["columnDefinitions"][at]["name"].as_str().unwrap().to_owned();
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    let shown: Vec<(String, &Value)> = cells.iter().enumerate().map(|(at, cell)| (column(at), cell)).collect();
    for (name, value) in [
        ("Ready", json!("True")),
        ("Targets", json!("5/5")),
        ("P95", json!("87ms")),
        ("RPS", json!(12.5)),
        ("Replicas", json!(3)),
        ("Batch", json!(8)),
        ("Cache", json!("64Mi")),
        ("Bottleneck", json!("None")),
        ("Model", json!("page-layout-640.onnx")),
        ("Reason", json!("Serving")),
    ] {
        assert!(shown.contains(&(name.to_owned(), &value)), "{name} = {value} is not in {shown:?}");
    }
}

#[test]
fn scale_fixes_the_number_of_pods() {
    let Some(cluster) = LocalCluster::shared(Tier::T1) else { return };
    let namespace = cluster.namespace("scale").unwrap();
    let service = cluster
        .block_on(async |client| {
            install_crd(&client).await;
            let services = Api::<YoloInferenceService>::namespaced(client, &namespace);
            services.create(&PostParams::default(), &smallest()).await.unwrap();
            let scale = json!({"spec": {"replicas": 3}});
            services.patch_scale("smallest", &PatchParams::default(), &Patch::Merge(&scale)).await.unwrap();
            services.get("smallest").await.unwrap()
        })
        .unwrap();
    assert_eq!(service.spec.scaling.replicas.fixed, Some(3));
}
