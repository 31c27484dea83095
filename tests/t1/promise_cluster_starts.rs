//! The test cluster is a real API server of the version that we say, and ends with the test binary.

use std::{
    env,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use kube::{Api, api::PostParams};
use yolo_testkit::cluster::{Instance, LocalCluster, Tier, kubernetes_version};

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
            assert!(
                Api::<k8s_openapi::api::core::v1::ConfigMap>::namespaced(client, &two).get("audited").await.is_err()
            );
        })
        .unwrap();
    let events = std::fs::read_to_string(cluster.audit_log()).unwrap();
    let collection = format!("/{one}/configmaps");
    let creation = |line: &&str| line.contains(r#""verb":"create""#) && line.contains(&collection);
    assert_eq!(events.lines().filter(creation).count(), 1);
}

/// Names a cluster to the second process of `cluster_of_a_killed_test_binary_is_stopped`.
const OWNED_VARIABLE: &str = "YOLO_TEST_OWNED_CLUSTER";

#[test]
fn cluster_of_a_killed_test_binary_is_stopped() {
    let Some(_) = LocalCluster::shared(Tier::T1) else { return };
    let name = format!("killed-{}", std::process::id());
    let mut owner = Command::new(env::current_exe().unwrap())
        .args(["promise_cluster_starts::owner_of_a_cluster", "--exact", "--nocapture", "--test-threads=1"])
        .env(OWNED_VARIABLE, &name)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.ends_with("cluster started")));
    let instance = Instance::new(&name).unwrap();
    let members = instance.members();
    assert_eq!(members.len(), 2, "{members:?}");

    owner.kill().unwrap(); // SIGKILL: no code of the owner runs any more
    owner.wait().unwrap();

    let deadline = Instant::now() + Duration::from_secs(20);
    while instance.exists() {
        assert!(Instant::now() < deadline, "the guard did not stop the cluster");
        thread::sleep(Duration::from_millis(20)); // no file system event says that a directory is gone
    }
    assert!(!members.iter().any(|(_, process)| process.alive()), "{members:?}");
}

/// The body of the second process; nothing in the first.
#[test]
fn owner_of_a_cluster() {
    let Ok(name) = env::var(OWNED_VARIABLE) else { return };
    let _cluster = LocalCluster::start_guarded(&name, Tier::T1).unwrap();
    println!("cluster started");
    loop {
        thread::park();
    }
}
