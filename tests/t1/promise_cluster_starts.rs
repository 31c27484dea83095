//! The test cluster is a real API server of the version that we say.

use kube::{Api, api::PostParams};
use yolo_testkit::cluster::{LocalCluster, Tier, kubernetes_version};

#[test]
fn api_server_answers_with_the_pinned_version() {
    let Some(cluster) = LocalCluster::shared(Tier::T1) else { return };
    let version = cluster.block_on(async |client| client.apiserver_version().await).unwrap().unwrap();
    assert_eq!(version.git_version, format!("v{}", kubernetes_version()));
}

#[test]
fn every_test_gets_a_namespace_of_its_own_and_its_writes_are_in_the_audit_log() {
    let Some(cluster) = LocalCluster::shared(Tier::T1) else { return };
    let (one, two) = (cluster.namespace("twin").unwrap(), cluster.namespace("twin").unwrap());
    assert_ne!(*one, *two);
    cluster
        .block_on(async |client| {
            let config: k8s_openapi::api::core::v1::ConfigMap =
                serde_json::from_value(serde_json::json!({"metadata": {"name": "audited"}})).unwrap();
            Api::namespaced(client.clone(), &one).create(&PostParams::default(), &config).await.unwrap();
            assert!(Api::<k8s_openapi::api::core::v1::ConfigMap>::namespaced(client, &two).get("audited").await.is_err());
        })
        .unwrap();
    let events = std::fs::read_to_string(cluster.audit_log()).unwrap();
    let creation = |line: &&str| line.contains(r#""verb":"create""#) && line.contains(&format!("/{}/configmaps", *one));
    assert_eq!(events.lines().filter(creation).count(), 1);
}
