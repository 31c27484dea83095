//! What others made or keep changing is not fought over: the operator says what is in the way, and waits.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use yolo_testkit::cluster::wait_for;

use crate::operator::{self, Operator, PATIENCE, apply, condition, count, manifest, until, writes};

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
