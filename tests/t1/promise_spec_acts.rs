//! What a person writes into the spec is on the objects that the API server has, as it was written, and is written
//! once.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use yolo_api::v1alpha1::YoloInferenceService;
use yolo_api::v1alpha1::spec::ServiceType;
use yolo_testkit::cluster::wait_for;

use crate::operator::{self, Operator, Served, apply, condition, manifest, until, writes};

const SLICE: &str = "nvidia.com/mig-1g.10gb";

/// A service on a slice of a GPU, for clients of one namespace.
fn on_a_slice() -> Value {
    json!({
        "accelerator": {"emulated": null, "nvidia": {"resourceName": SLICE, "provider": "TensorRt",
            "engineCache": {"persistentVolumeClaim": {"claimName": "engines"}}}},
        "service": {"type": "NodePort"},
        "network": {"allowedClients": [{"namespaceSelector": {"matchLabels": {"team": "shop"}}}]},
        "rollout": {"strategy": "ResourceAware"},
        "server": {"serviceAccountName": "inference"},
    })
}

#[test]
fn gpu_clients_type_and_strategy_are_on_the_objects_and_written_once() {
    let Some(cluster) = operator::cluster() else { return };
    let namespace = cluster.namespace("acts").unwrap();
    cluster
        .block_on(async |client| {
            let user = format!("{namespace}-a");
            let operator = Operator::start_as(cluster, &namespace, &user, |config| {
                config.server_cuda_image = Some("localhost/yolo-server-cuda:test".to_owned());
                config.service_types = vec![ServiceType::NodePort];
            })
            .await;
            let marked = json!({"yolo-operator.io/allowed": "true"});
            account(&client, &namespace, "inference", marked).await;
            let seen = async |spec: Value| {
                apply(&client, &namespace, &manifest("fork", spec)).await;
                until(&client, &namespace, "fork", "the generation", |object| {
                    let seen = object.status.as_ref().and_then(|status| status.observed_generation);
                    seen == object.metadata.generation && condition(object, "Stalled").0 == "False"
                })
                .await
            };
            let advice = seen(on_a_slice()).await.status.unwrap().advice;
            assert!(advice.iter().all(|advice| advice.id != "FieldsNotYetActive"), "{advice:?}");
            let deployment = Api::<Deployment>::namespaced(client.clone(), &namespace).get("fork").await.unwrap();
            let spec = deployment.spec.unwrap();
            let rolling = spec.strategy.unwrap().rolling_update.unwrap();
            let (more, fewer) = (rolling.max_surge.unwrap(), rolling.max_unavailable.unwrap());
            assert_eq!((more, fewer), (IntOrString::Int(0), IntOrString::Int(1)));
            let mut pod = spec.template.spec.unwrap();
            assert_eq!(pod.service_account_name.as_deref(), Some("inference"));
            assert_eq!(pod.automount_service_account_token, Some(false));
            let container = pod.containers.remove(0);
            assert_eq!(container.image.as_deref(), Some("localhost/yolo-server-cuda:test"));
            assert_eq!(container.resources.unwrap().limits.unwrap()[SLICE].0, "1");
            let service = Api::<Service>::namespaced(client.clone(), &namespace).get("fork").await.unwrap();
            assert_eq!(service.spec.unwrap().type_.as_deref(), Some("NodePort"));
            let policy = Api::<NetworkPolicy>::namespaced(client.clone(), &namespace).get("fork").await.unwrap();
            let clients = policy.spec.unwrap().ingress.unwrap().remove(0).from.unwrap();
            let labels = clients[0].namespace_selector.clone().unwrap().match_labels.unwrap();
            assert_eq!((clients.len(), labels["team"].as_str()), (1, "shop"));

            // Another look at the same: what the API server made of the fields is not taken for a change.
            let mut same = on_a_slice();
            same["targets"] = json!({"window": "20s"});
            seen(same).await;
            for resource in ["deployments", "services", "networkpolicies"] {
                let written = writes(cluster, &user).into_iter().filter(|write| write.resource == resource).count();
                assert_eq!(written, 1, "{resource}: {:#?}", writes(cluster, &user));
            }
            // Back to what nobody outside reaches.
            seen(json!({})).await;
            let service = Api::<Service>::namespaced(client.clone(), &namespace).get("fork").await.unwrap();
            assert_eq!(service.spec.unwrap().type_.as_deref(), Some("ClusterIP"));
            operator.stop().await;
        })
        .unwrap();
}

/// Makes or changes a service account.
async fn account(client: &Client, namespace: &str, name: &str, labels: Value) {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "labels": labels}});
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    accounts.patch(name, &PatchParams::apply("person").force(), &Patch::Apply(&account)).await.unwrap();
}

#[test]
fn service_account_is_the_pods_once_it_has_the_label_and_until_the_spec_names_it_no_longer() {
    operator::served("account", async |Served { cluster, client, namespace, user }| {
        account(&client, namespace, "cook", json!({"yolo-operator.io/allowed": "false"})).await;
        for (name, named) in [("fork", "cook"), ("knife", "nobody")] {
            let spec = json!({"server": {"serviceAccountName": named}});
            apply(&client, namespace, &manifest(name, spec)).await;
            let object = until(&client, namespace, name, "ServiceAccountNotAllowed", |object| {
                condition(object, "Stalled") == ("True".into(), "ServiceAccountNotAllowed".into())
            })
            .await;
            let conditions = object.status.unwrap().conditions;
            let stalled = conditions.iter().find(|condition| condition.type_ == "Stalled").unwrap();
            let says = [named, "yolo-operator.io/allowed=true"];
            assert!(says.iter().all(|text| stalled.message.contains(text)), "{}", stalled.message);
        }
        let made: Vec<_> = writes(cluster, &user).into_iter().filter(|write| !write.resource.contains('/')).collect();
        assert!(made.iter().all(|write| write.resource == "events"), "nothing is made: {made:#?}");

        account(&client, namespace, "cook", json!({"yolo-operator.io/allowed": "true"})).await;
        let freed = |object: &YoloInferenceService| condition(object, "Stalled").0 == "False";
        until(&client, namespace, "fork", "the account to be allowed", freed).await;
        let names = async |wanted: Option<&str>| {
            let deployments = Api::<Deployment>::namespaced(client.clone(), namespace);
            let look = async || {
                let pod = deployments.get_opt("fork").await.ok()??.spec?.template.spec?;
                (pod.service_account_name.as_deref() == wanted).then_some(())
            };
            wait_for("the account of the pods", operator::PATIENCE, look).await.unwrap();
        };
        names(Some("cook")).await;
        apply(&client, namespace, &manifest("fork", json!({}))).await;
        names(None).await;
    });
}

#[test]
fn what_the_installation_does_not_allow_is_told_and_nothing_is_made() {
    operator::served("not-allowed", async |Served { cluster, client, namespace, user }| {
        let gpu = json!({"accelerator": {"emulated": null, "nvidia": {}}});
        for (name, spec, says) in [
            ("fork", json!({"service": {"type": "LoadBalancer"}}), "spec.service.type"),
            ("knife", gpu, "spec.server.image"),
        ] {
            apply(&client, namespace, &manifest(name, spec)).await;
            let object = until(&client, namespace, name, "InvalidSpec", |object| {
                condition(object, "Stalled") == ("True".into(), "InvalidSpec".into())
            })
            .await;
            let conditions = object.status.unwrap().conditions;
            let stalled = conditions.iter().find(|condition| condition.type_ == "Stalled").unwrap();
            assert!(stalled.message.contains(says), "{}", stalled.message);
        }
        let made: Vec<_> = writes(cluster, &user).into_iter().filter(|write| !write.resource.contains('/')).collect();
        assert!(made.iter().all(|write| write.resource == "events"), "{made:#?}");
    });
}
