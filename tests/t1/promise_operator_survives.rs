//! Killed, paused, blind, or fed with garbage: the operator converges, and the pods serve on.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use yolo_api::v1alpha1::YoloInferenceService;
use yolo_testkit::cluster::{LocalCluster, Tier, wait_for};

use crate::operator::{
    self, Operator, PATIENCE, TestPod, apply, condition, count, holder, loopback, manifest, until, writes,
};

/// From the death of the leader to its successor's first write: the lease, a look and a try.
const TAKEOVER: Duration = Duration::from_secs(15);
/// Objects that a new service gets, and its first status.
const WRITES_OF_A_NEW_SERVICE: usize = 6;

#[test]
fn operator_killed_after_any_write_converges_and_leaves_pods_alone() {
    let Some(cluster) = operator::cluster() else { return };
    let namespace = cluster.namespace("killed").unwrap();
    cluster
        .block_on(async |client| {
            let user = format!("{namespace}-a");
            apply(&client, &namespace, &manifest("fork", json!({}))).await;
            for write in 1..WRITES_OF_A_NEW_SERVICE {
                let operator = Operator::start(cluster, &namespace, &user).await;
                let written = async || (writes(cluster, &user).len() >= write).then_some(());
                wait_for("one more write", PATIENCE, written).await.unwrap();
                operator.kill().await;
            }
            let operator = Operator::start(cluster, &namespace, &user).await;
            let pod = TestPod::start(&client, &namespace, "fork", loopback(4, 0)).await;
            let met = |object: &_| condition(object, "TargetsMet").0 == "True";
            until(&client, &namespace, "fork", "TargetsMet", met).await;
            operator.kill().await;

            let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
            let before = pods.get(&pod.name).await.unwrap();
            let written = writes(cluster, &user).len();
            let again = Operator::start(cluster, &namespace, &user).await;
            let measured = async || {
                let after = writes(cluster, &user).into_iter().skip(written).collect::<Vec<_>>();
                let fresh = after.iter().any(|write| write.resource == "yoloinferenceservices/status");
                fresh.then_some(after)
            };
            let after = wait_for("the restarted operator's status", PATIENCE, measured).await.unwrap();
            let counts = count(&after);
            assert!(counts.keys().all(|resource| resource.ends_with("/status") || *resource == "events"), "{after:#?}");
            let now = pods.get(&pod.name).await.unwrap();
            assert_eq!((now.uid(), now.resource_version()), (before.uid(), before.resource_version()));
            assert!(writes(cluster, &user).iter().all(|write| !write.verb.starts_with("delete")));
            again.stop().await;
        })
        .unwrap();
}

#[test]
fn paused_leader_that_resumes_cannot_write_and_its_successor_does() {
    let Some(cluster) = operator::cluster() else { return };
    let namespace = cluster.namespace("paused").unwrap();
    cluster
        .block_on(async |client| {
            let (first, second) = (format!("{namespace}-a"), format!("{namespace}-b"));
            let leader = Process::lead(cluster, &client, &namespace, &first).await;
            let standby = Operator::start(cluster, &namespace, &second).await;
            holder(&client, &namespace, &first).await;
            assert_eq!(writes(cluster, &second), [], "the standby does nothing");

            leader.signal("STOP");
            let paused = Instant::now();
            holder(&client, &namespace, &second).await;
            println!("takeover from a leader that stood still: {:.1} s", paused.elapsed().as_secs_f64());
            apply(&client, &namespace, &manifest("knife", json!({}))).await;
            operator::deployment(&client, &namespace, "knife").await;
            let before = writes(cluster, &first).len();
            leader.signal("CONT");
            // The successor goes on while the deposed leader looks around: three objects more, all of them its own.
            for name in ["spoon", "ladle", "whisk"] {
                apply(&client, &namespace, &manifest(name, json!({}))).await;
                until(&client, &namespace, name, "a status", |object| object.status.is_some()).await;
            }
            assert_eq!(writes(cluster, &first).len(), before, "{:#?}", writes(cluster, &first));

            // A vacated lease is taken at the next look, and the deposed process is a candidate again.
            standby.stop().await;
            let vacated = Instant::now();
            holder(&client, &namespace, &first).await;
            println!("takeover of a vacated lease: {:.1} s", vacated.elapsed().as_secs_f64());
            assert!(vacated.elapsed() < Duration::from_secs(6), "{:?}", vacated.elapsed());
        })
        .unwrap();
}

#[test]
fn killed_leader_is_succeeded_within_fifteen_seconds() {
    let Some(cluster) = operator::cluster() else { return };
    let namespace = cluster.namespace("takeover").unwrap();
    cluster
        .block_on(async |client| {
            let (first, second) = (format!("{namespace}-a"), format!("{namespace}-b"));
            let leader = Process::lead(cluster, &client, &namespace, &first).await;
            let _standby = Process::start(cluster, &namespace, &second);
            // Its stores are full once it looks at the lease, which it does from then on every second.
            let candidate = async || operator::looks_at_the_lease(cluster, &second).then_some(());
            wait_for("a candidate", PATIENCE, candidate).await.unwrap();
            leader.signal("KILL");
            let killed = Instant::now();
            apply(&client, &namespace, &manifest("knife", json!({}))).await;
            let written = async || (!writes(cluster, &second).is_empty()).then(|| killed.elapsed());
            let took = wait_for("the successor's first write", PATIENCE, written).await.unwrap();
            println!("takeover from a leader that was killed: {:.1} s", took.as_secs_f64());
            assert!(took <= TAKEOVER, "{took:?}");
        })
        .unwrap();
}

#[test]
fn verdict_of_a_service_outlives_the_operator_that_made_it() {
    let Some(cluster) = operator::cluster() else { return };
    let namespace = cluster.namespace("successor").unwrap();
    cluster
        .block_on(async |client| {
            let first = Operator::start(cluster, &namespace, &format!("{namespace}-a")).await;
            apply(&client, &namespace, &manifest("fork", json!({}))).await;
            let _pod = TestPod::start(&client, &namespace, "fork", loopback(6, 0)).await;
            until(&client, &namespace, "fork", "a verdict", |object| condition(object, "TargetsMet").0 == "True").await;
            first.stop().await;
            let second = format!("{namespace}-b");
            let successor = Operator::start(cluster, &namespace, &second).await;
            holder(&client, &namespace, &second).await;
            let services: Api<YoloInferenceService> = Api::namespaced(client.clone(), &namespace);
            let led = Instant::now();
            // Not a wait for something to happen: the promise is that nothing does, for two windows of the targets.
            while led.elapsed() < Duration::from_secs(20) {
                let told = condition(&services.get("fork").await.unwrap(), "TargetsMet");
                assert_eq!(told, ("True".into(), "AllMet".into()), "after {:?}", led.elapsed());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            successor.stop().await;
        })
        .unwrap();
}

#[test]
fn silent_pods_are_never_scaled_down_and_zero_traffic_is() {
    let Some(cluster) = operator::cluster() else { return };
    let namespace = cluster.namespace("silent").unwrap();
    cluster
        .block_on(async |client| {
            let operator = Operator::start(cluster, &namespace, &format!("{namespace}-a")).await;
            let range = |min: i32| {
                let down = json!({"scaleDown": {"stabilizationWindowSeconds": 10}});
                manifest("fork", json!({"scaling": {"replicas": {"min": min}, "behavior": down}}))
            };
            apply(&client, &namespace, &range(2)).await;
            let mut pods = Vec::new();
            for number in 0..2 {
                pods.push(TestPod::start(&client, &namespace, "fork", loopback(5, number)).await);
            }
            let met = |object: &_| condition(object, "TargetsMet").0 == "True";
            until(&client, &namespace, "fork", "TargetsMet", met).await;
            for pod in &mut pods {
                pod.silence().await;
            }
            let silent = Instant::now();
            until(&client, &namespace, "fork", "MetricsAvailable=False", |object| {
                condition(object, "MetricsAvailable") == ("False".into(), "Stale".into())
            })
            .await;
            println!("MetricsAvailable=False after {:.0} s", silent.elapsed().as_secs_f64());
            apply(&client, &namespace, &range(1)).await;
            until(&client, &namespace, "fork", "the new generation", |object| {
                object.status.as_ref().unwrap().observed_generation == object.metadata.generation
            })
            .await;
            // Not a wait for something to happen: four times the stabilisation, in which nothing may go.
            tokio::time::sleep(Duration::from_secs(40)).await;
            assert_eq!(operator::replicas(&client, &namespace, "fork").await, 2, "scaled down while blind");

            for pod in &mut pods {
                pod.speak().await;
            }
            let one = async || (operator::replicas(&client, &namespace, "fork").await == 1).then_some(());
            wait_for("live zeros to take a pod", Duration::from_mins(3), one).await.unwrap();
            operator.stop().await;
        })
        .unwrap();
}

#[test]
fn object_that_cannot_be_parsed_is_told_so_and_hurts_nobody() {
    if operator::cluster().is_none() {
        return; // Told already why.
    }
    // A cluster of its own: the schema that lets garbage in would let it in for the other tests too.
    let cluster = LocalCluster::start_guarded(&format!("loose-{}", std::process::id()), Tier::T1).unwrap();
    cluster
        .block_on(async |client| {
            let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
            definitions.create(&PostParams::default(), &loose()).await.unwrap();
            let namespace = "default";
            let raw = raw_api(&client, namespace);
            wait_for("the CRD", PATIENCE, async || raw.list(&ListParams::default()).await.ok()).await.unwrap();
            let garbage = json!({"apiVersion": "yolo-operator.io/v1alpha1", "kind": "YoloInferenceService",
                "metadata": {"name": "garbage"}, "spec": {"model": 7}});
            write_raw(&client, namespace, &garbage).await;
            let operator = Operator::start(&cluster, namespace, "loose-a").await;
            apply(&client, namespace, &manifest("fork", json!({}))).await;
            operator::deployment(&client, namespace, "fork").await;
            let told = async || {
                let status = raw.get("garbage").await.ok()?.data.pointer("/status/conditions").cloned()?;
                let stalled = status.as_array()?.iter().find(|condition| condition["type"] == "Stalled").cloned()?;
                (stalled["reason"] == "Malformed").then_some(stalled)
            };
            let stalled = wait_for("the condition", PATIENCE, told).await.unwrap();
            assert!(stalled["message"].as_str().unwrap().to_lowercase().contains("invalid type"), "{stalled}");

            apply(&client, namespace, &manifest("garbage", json!({}))).await;
            operator::deployment(&client, namespace, "garbage").await;
            until(&client, namespace, "garbage", "recovery", |object| condition(object, "Stalled").0 == "False").await;
            operator.stop().await;
        })
        .unwrap();
    cluster.stop().unwrap();
}

/// The CRD without its schema: what an older or broken version of it may have let in.
fn loose() -> CustomResourceDefinition {
    let manifest = include_str!("../../crds/yoloinferenceservices.yaml");
    let mut crd: Value = serde_yaml_ng::from_str(manifest).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    serde_json::from_value(crd).unwrap()
}

fn raw_api(client: &Client, namespace: &str) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<yolo_api::v1alpha1::YoloInferenceService>(&());
    Api::namespaced_with(client.clone(), namespace, &resource)
}

async fn write_raw(client: &Client, namespace: &str, document: &Value) {
    let params = PatchParams::apply("person").force();
    let name = document["metadata"]["name"].as_str().unwrap();
    raw_api(client, namespace).patch(name, &params, &Patch::Apply(document)).await.unwrap();
}

/// The operator's program as a process of its own, so that it can be stopped in its tracks.
struct Process(Child);

impl Process {
    fn start(cluster: &LocalCluster, namespace: &str, identity: &str) -> Self {
        let folder = tempfile::tempdir().unwrap().keep();
        let mut kubeconfig: Value = serde_yaml_ng::from_reader(File::open(cluster.kubeconfig()).unwrap()).unwrap();
        let user = &mut kubeconfig["users"][0]["user"];
        user["as"] = json!(identity);
        user["as-groups"] = json!(["system:masters"]);
        let path = folder.join("kubeconfig");
        std::fs::write(&path, serde_json::to_vec(&kubeconfig).unwrap()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_yolo-operator"))
            .args(["--namespace", namespace, "--watch-namespace", namespace, "--identity", identity])
            .args(["--metrics-address", "127.0.0.1:0", "--health-address", "127.0.0.1:0"])
            .env("KUBECONFIG", &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// The same, and waits until it has served a service named `fork`.
    async fn lead(cluster: &LocalCluster, client: &Client, namespace: &str, identity: &str) -> Self {
        let leader = Self::start(cluster, namespace, identity);
        apply(client, namespace, &manifest("fork", json!({}))).await;
        until(client, namespace, "fork", "a status", |object| object.status.is_some()).await;
        leader
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.0.id().to_string()).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
