//! What others made or keep changing is not fought over: the operator says what is in the way, and waits.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use yolo_api::v1alpha1::YoloInferenceService;
use yolo_testkit::cluster::wait_for;

use crate::operator::{self, Operator, PATIENCE, Served, apply, beside, condition, count, manifest, until, writes};

#[test]
fn object_of_a_stranger_keeps_its_name_and_the_service_says_so() {
    let Some(cluster) = operator::cluster() else { return };
    let namespace = cluster.namespace("taken").unwrap();
    cluster
        .block_on(async |client| {
            let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
            let theirs = json!({"metadata": {"name": "fork-knobs"}, "data": {"other": "x"}});
            let theirs = maps.create(&PostParams::default(), &serde_json::from_value(theirs).unwrap()).await.unwrap();
            let user = format!("{namespace}-a");
            let operator = Operator::start(cluster, &namespace, &user).await;
            apply(&client, &namespace, &manifest("fork", json!({}))).await;
            let object = until(&client, &namespace, "fork", "NameTaken", |object| {
                condition(object, "Stalled") == ("True".into(), "NameTaken".into())
            })
            .await;
            let conditions = object.status.unwrap().conditions;
            let stalled = conditions.iter().find(|condition| condition.type_ == "Stalled").unwrap();
            assert!(
                stalled.message.contains("fork-knobs") && stalled.message.contains("rename"),
                "{}",
                stalled.message
            );
            assert_eq!(maps.get("fork-knobs").await.unwrap(), theirs);
            let written = writes(cluster, &user);
            let told = |resource: &&str| resource.ends_with("/status") || *resource == "events";
            assert!(count(&written).keys().all(told), "{written:#?}");

            maps.delete("fork-knobs", &DeleteParams::default()).await.unwrap();
            operator::deployment(&client, &namespace, "fork").await;
            let free = |object: &_| condition(object, "Stalled").0 == "False";
            until(&client, &namespace, "fork", "recovery", free).await;
            let ours = async || maps.get_opt("fork-knobs").await.ok().flatten();
            let ours = wait_for("the knobs", PATIENCE, ours).await.unwrap();
            assert!(ours.metadata.owner_references.is_some());
            operator.stop().await;
        })
        .unwrap();
}

#[test]
fn field_that_somebody_keeps_changing_is_not_fought_over() {
    operator::served("fight", async |Served { cluster, client, namespace, user }| {
        apply(&client, namespace, &manifest("fork", json!({}))).await;
        until(&client, namespace, "fork", "a status", |object| condition(object, "Stalled").0 == "False").await;
        let fight = beside(fight(client.clone(), namespace.to_string()));
        let object = until(&client, namespace, "fork", "FieldConflict", |object| {
            condition(object, "Stalled") == ("True".into(), "FieldConflict".into())
        })
        .await;
        let conditions = object.status.unwrap().conditions;
        let stalled = conditions.iter().find(|condition| condition.type_ == "Stalled").unwrap();
        assert!(stalled.message.contains("fighter keeps changing Deployment"), "{}", stalled.message);
        // Not a wait for something to happen: two writes a minute are allowed, where the other makes ten a second.
        let written = || count(&writes(cluster, &user)).get("deployments").copied().unwrap_or(0);
        let before = written();
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(written() - before <= 1, "{:#?}", writes(cluster, &user));
        drop(fight);

        let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
        let back = async || {
            let history = deployments.get("fork").await.ok()?.spec?.revision_history_limit?;
            (history == 3).then_some(())
        };
        let long = Duration::from_mins(3);
        wait_for("the field to be put back", long, back).await.unwrap();
        let services: Api<YoloInferenceService> = Api::namespaced(client.clone(), namespace);
        let over = async || (condition(&services.get("fork").await.ok()?, "Stalled").0 == "False").then_some(());
        wait_for("the end of the conflict", long, over).await.unwrap();
    });
}

#[test]
fn knobs_that_somebody_keeps_changing_are_not_fought_over() {
    operator::served("knobs-fight", async |Served { cluster, client, namespace, user }| {
        let pinned = json!({"scaling": {"batch": {"min": 4, "max": 4}}});
        apply(&client, namespace, &manifest("fork", pinned)).await;
        until(&client, namespace, "fork", "a status", |object| condition(object, "Stalled").0 == "False").await;
        let fight = beside(fight_knobs(client.clone(), namespace.to_string()));
        let object = until(&client, namespace, "fork", "FieldConflict", |object| {
            condition(object, "Stalled") == ("True".into(), "FieldConflict".into())
        })
        .await;
        let conditions = object.status.unwrap().conditions;
        let stalled = conditions.iter().find(|condition| condition.type_ == "Stalled").unwrap();
        assert!(stalled.message.contains("fighter keeps changing ConfigMap"), "{}", stalled.message);
        // Not a wait for something to happen: two writes a minute are allowed, where the other makes ten a second.
        let written = || count(&writes(cluster, &user)).get("configmaps").copied().unwrap_or(0);
        let before = written();
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(written() - before <= 1, "{:#?}", writes(cluster, &user));
        drop(fight);

        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let back = async || (knobs(&maps.get("fork-knobs").await.ok()?)["maxBatchSize"] == 4).then_some(());
        wait_for("the knobs to be put back", Duration::from_mins(3), back).await.unwrap();
    });
}

/// The knobs document of a `ConfigMap`.
fn knobs(map: &ConfigMap) -> Value {
    serde_json::from_str(&map.data.as_ref().unwrap()["knobs.json"]).unwrap()
}

/// Puts another batch size into the knobs, under whatever number they have, whenever it is not there.
async fn fight_knobs(client: Client, namespace: String) {
    let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
    loop {
        let mut document = knobs(&maps.get("fork-knobs").await.unwrap());
        if document["maxBatchSize"] != 9 {
            document["maxBatchSize"] = json!(9);
            let theirs = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "fork-knobs"},
                "data": {"knobs.json": document.to_string()}});
            maps.patch("fork-knobs", &PatchParams::apply("fighter").force(), &Patch::Apply(&theirs)).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Sets a field that the operator owns, ten times a second.
async fn fight(client: Client, namespace: String) {
    let deployments: Api<Deployment> = Api::namespaced(client, &namespace);
    let theirs = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "fork"},
        "spec": {"revisionHistoryLimit": 9}});
    loop {
        deployments.patch("fork", &PatchParams::apply("fighter").force(), &Patch::Apply(&theirs)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
