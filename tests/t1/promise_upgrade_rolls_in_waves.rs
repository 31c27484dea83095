//! Another version of the operator, or another default image, replaces pods a few services at a time.
//!
//! No controller of Deployments runs in this tier: the test tells in its stead that a rollout is complete.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use yolo_testkit::cluster::{LocalCluster, wait_for};

use crate::operator::{self, Operator, PATIENCE, Write, apply, condition, manifest, until, writes};

const NAMES: [&str; 4] = ["fork", "knife", "ladle", "spoon"];
const NEXT: &str = "localhost/yolo-server:next";

#[test]
fn upgrade_replaces_the_pods_of_one_service_in_ten_at_a_time() {
    let Some(cluster) = operator::cluster() else { return };
    let namespace = cluster.namespace("waves").unwrap();
    cluster
        .block_on(async |client| {
            let deployments: Api<Deployment> = Api::namespaced(client.clone(), &namespace);
            let upgraded = serve_and_upgrade(cluster, &client, &namespace, &json!({})).await;
            let mut rolled = one_more(&deployments, &[]).await;
            let waiting = NAMES.iter().find(|name| !rolled.contains(&(**name).to_owned())).unwrap();
            until(&client, &namespace, waiting, "RolloutWaiting", |object| {
                condition(object, "Reconciling") == ("True".into(), "RolloutWaiting".into())
            })
            .await;
            // Not a wait for something to happen: the others look again twice in this time, and may not roll.
            tokio::time::sleep(Duration::from_secs(12)).await;
            assert_eq!(on_next(&deployments).await, rolled);

            // What does not wait: the number of pods, and a service that a person changes.
            let three = json!({"scaling": {"replicas": {"min": 3}}});
            apply(&client, &namespace, &manifest(waiting, three)).await;
            rolled = one_more(&deployments, &rolled).await;
            assert!(rolled.contains(&(*waiting).to_owned()), "{rolled:?}");
            for name in &rolled {
                complete(&deployments, name).await;
            }
            rolled = one_more(&deployments, &rolled).await;
            tokio::time::sleep(Duration::from_secs(12)).await; // As above.
            assert_eq!(on_next(&deployments).await, rolled, "one at a time");
            for name in &rolled {
                complete(&deployments, name).await;
            }
            one_more(&deployments, &rolled).await;
            upgraded.stop().await;
        })
        .unwrap();
}

#[test]
fn broken_wave_stops_the_successor_of_the_leader_that_began_it_too() {
    let Some(cluster) = operator::cluster() else { return };
    let namespace = cluster.namespace("broken-wave").unwrap();
    cluster
        .block_on(async |client| {
            let deployments: Api<Deployment> = Api::namespaced(client.clone(), &namespace);
            let upgraded = serve_and_upgrade(cluster, &client, &namespace, &json!({})).await;
            let rolled = one_more(&deployments, &[]).await;
            let [broken] = rolled.as_slice() else { panic!("{rolled:?}") };
            hang(&deployments, broken).await;
            for name in NAMES.iter().filter(|name| *name != broken) {
                until(&client, &namespace, name, "RolloutWaiting", |object| {
                    condition(object, "Reconciling") == ("True".into(), "RolloutWaiting".into())
                })
                .await;
            }
            upgraded.stop().await;

            let second = format!("{namespace}-b");
            let successor = Operator::start_with(cluster, &namespace, &second, NEXT).await;
            operator::holder(&client, &namespace, &second).await;
            // Not a wait for something to happen: the others look again twice in this time, and may not roll.
            tokio::time::sleep(Duration::from_secs(12)).await;
            assert_eq!(on_next(&deployments).await, rolled);
            let told = |write: &Write| write.resource.ends_with("/status") || write.resource == "events";
            let written = writes(cluster, &second);
            assert!(written.iter().all(told), "it finds all objects as they have to be: {written:#?}");

            // A time zone that does not exist, which the schema cannot know.
            let zone = "Mars/Olympus";
            let peak = json!({"name": "a", "cron": "0 8 * * *", "timeZone": zone, "duration": "1h", "replicasMin": 2});
            apply(&client, &namespace, &manifest(broken, json!({"scaling": {"schedules": [peak]}}))).await;
            until(&client, &namespace, broken, "InvalidSpec", |object| {
                condition(object, "Stalled") == ("True".into(), "InvalidSpec".into())
            })
            .await;
            one_more(&deployments, &rolled).await;
            successor.stop().await;
        })
        .unwrap();
}

#[test]
fn wave_in_place_goes_on_only_once_the_new_pod_has_been_ready() {
    let Some(cluster) = operator::cluster() else { return };
    let namespace = cluster.namespace("wave-in-place").unwrap();
    cluster
        .block_on(async |client| {
            let deployments: Api<Deployment> = Api::namespaced(client.clone(), &namespace);
            let in_place = json!({"rollout": {"strategy": "ResourceAware"}});
            let upgraded = serve_and_upgrade(cluster, &client, &namespace, &in_place).await;
            let rolled = one_more(&deployments, &[]).await;
            let [first] = rolled.as_slice() else { panic!("{rolled:?}") };
            replaced_in_place(&deployments, first, false).await;
            // Not a wait for something to happen: the others look again twice in this time, and may not roll.
            tokio::time::sleep(Duration::from_secs(12)).await;
            assert_eq!(on_next(&deployments).await, rolled);
            replaced_in_place(&deployments, first, true).await;
            one_more(&deployments, &rolled).await;
            upgraded.stop().await;
        })
        .unwrap();
}

/// Makes all services with this `spec` and waits until they serve; then ends their operator and starts the next version.
async fn serve_and_upgrade(cluster: &LocalCluster, client: &Client, namespace: &str, spec: &Value) -> Operator {
    let user = format!("{namespace}-a");
    let operator = Operator::start(cluster, namespace, &user).await;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    for name in NAMES {
        apply(client, namespace, &manifest(name, spec.clone())).await;
        until(client, namespace, name, "a status", |object| object.status.is_some()).await;
        complete(&deployments, name).await;
    }
    operator.stop().await;
    Operator::start_with(cluster, namespace, &user, NEXT).await
}

/// Says that all pods of the Deployment are of its present template.
async fn complete(deployments: &Api<Deployment>, name: &str) {
    let pods = json!({"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1});
    tell(deployments, name, pods).await;
}

/// Says that the pod of the present template of the Deployment does not become ready, and an old one serves on.
async fn hang(deployments: &Api<Deployment>, name: &str) {
    let progress = json!({"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"});
    let pods = json!({"replicas": 2, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1,
        "unavailableReplicas": 1, "conditions": [progress]});
    tell(deployments, name, pods).await;
}

/// Says that the old pod of the Deployment has gone, and whether the new one in its place is ready.
async fn replaced_in_place(deployments: &Api<Deployment>, name: &str, ready: bool) {
    let reason = if ready { "NewReplicaSetAvailable" } else { "ReplicaSetUpdated" };
    let (progress, ready) = (json!({"type": "Progressing", "status": "True", "reason": reason}), u8::from(ready));
    let pods = json!({"replicas": 1, "updatedReplicas": 1, "readyReplicas": ready, "availableReplicas": ready,
        "unavailableReplicas": 1 - ready, "conditions": [progress]});
    tell(deployments, name, pods).await;
}

/// Says how the Deployment as it is now stands.
async fn tell(deployments: &Api<Deployment>, name: &str, pods: Value) {
    let mut status = json!({"observedGeneration": deployments.get(name).await.unwrap().metadata.generation});
    status.as_object_mut().unwrap().extend(pods.as_object().unwrap().clone());
    let patch = Patch::Merge(json!({"status": status}));
    deployments.patch_status(name, &PatchParams::default(), &patch).await.unwrap();
}

/// The Deployments whose pods are to be of the next image, in order.
async fn on_next(deployments: &Api<Deployment>) -> Vec<String> {
    let all = deployments.list(&ListParams::default()).await.unwrap().items;
    let next = all.into_iter().filter(|deployment| {
        let template = &deployment.spec.as_ref().unwrap().template;
        template.spec.as_ref().unwrap().containers[0].image.as_deref() == Some(NEXT)
    });
    next.map(|deployment| deployment.name_any()).collect()
}

/// Waits until one Deployment more than `before` is to be of the next image.
async fn one_more(deployments: &Api<Deployment>, before: &[String]) -> Vec<String> {
    let more = async || {
        let now = on_next(deployments).await;
        (now.len() > before.len()).then_some(now)
    };
    let now = wait_for("the next rollout", PATIENCE, more).await.unwrap();
    assert_eq!(now.len(), before.len() + 1, "{before:?} -> {now:?}");
    now
}
