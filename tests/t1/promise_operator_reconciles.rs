//! From `kubectl apply` to a verdict: objects, knobs, samples and status of one service, and what a person does to them.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use yolo_api::v1alpha1::YoloInferenceService;
use yolo_testkit::cluster::wait_for;

use crate::operator::{self, PATIENCE, Served, TestPod, apply, condition, loopback, manifest, until};

#[test]
fn service_gets_its_objects_and_its_verdict_without_traffic() {
    operator::served("verdict", async |Served { client, namespace, .. }| {
        apply(&client, namespace, &manifest("fork", json!({}))).await;
        let _pod = TestPod::start(&client, namespace, "fork", loopback(0, 0)).await;
        let object =
            until(&client, namespace, "fork", "TargetsMet", |object| condition(object, "TargetsMet").0 == "True").await;
        let status = object.status.clone().unwrap();
        assert_eq!(condition(&object, "Ready"), ("True".into(), "Serving".into()));
        assert_eq!(condition(&object, "MetricsAvailable").0, "True");
        assert_eq!(condition(&object, "Reconciling"), ("False".into(), "UpToDate".into()));
        assert_eq!((status.replicas, status.ready_replicas), (Some(1), Some(1)));
        assert_eq!(status.url.unwrap(), format!("http://fork.{namespace}.svc"));
        assert_eq!(status.observed_generation, object.metadata.generation);
        owned_by_the_service(&client, namespace, object.metadata.uid.as_deref().unwrap()).await;
    });
}

async fn owned_by_the_service(client: &Client, namespace: &str, uid: &str) {
    macro_rules! owned {
        ($($kind:ty: $name:literal),*) => {$(
            let object = Api::<$kind>::namespaced(client.clone(), namespace).get($name).await.unwrap();
            assert_eq!(object.metadata.owner_references.unwrap()[0].uid, uid, "{}", $name);
        )*};
    }
    owned!(Deployment: "fork", Service: "fork", ConfigMap: "fork-knobs", PodDisruptionBudget: "fork", NetworkPolicy: "fork");
}

#[test]
fn changed_knob_reaches_the_running_pod() {
    operator::served("knob", async |Served { client, namespace, .. }| {
        apply(&client, namespace, &manifest("fork", json!({}))).await;
        let pod = TestPod::start(&client, namespace, "fork", loopback(1, 0)).await;
        let applied = |object: &yolo_api::v1alpha1::YoloInferenceService| {
            let knobs = object.status.as_ref()?.knobs.clone()?;
            Some((knobs.generation, knobs.applied_pods))
        };
        let first =
            until(&client, namespace, "fork", "the first knobs", |o| applied(o).is_some_and(|a| a.1 == 1)).await;
        let before = applied(&first).unwrap().0;
        // The longest wait of a request is a knob that only the spec moves.
        apply(&client, namespace, &manifest("fork", json!({"overload": {"queueTimeout": "700ms"}}))).await;
        let second = until(&client, namespace, "fork", "the new knobs on the pod", |object| {
            applied(object).is_some_and(|(generation, pods)| generation > before && pods == 1)
        })
        .await;
        let pods: Api<Pod> = Api::namespaced(client, namespace);
        let annotation = &pods.get(&pod.name).await.unwrap().metadata.annotations.unwrap();
        let nudged = annotation["yolo-operator.io/knobs-generation"].split('.').next().unwrap().to_owned();
        assert_eq!(nudged, applied(&second).unwrap().0.to_string());
    });
}

#[test]
fn known_peak_orders_its_pods_without_a_metric_that_confirms_it() {
    operator::served("peak", async |Served { client, namespace, .. }| {
        let spec = |cron, time_zone| {
            let rush = json!({"name": "rush", "cron": cron, "timeZone": time_zone, "duration": "5m", "replicasMin": 3});
            manifest("fork", json!({"scaling": {"schedules": [rush]}}))
        };
        // It starts each minute and lasts five: always, whenever this test runs.
        apply(&client, namespace, &spec("* * * * *", "Europe/Berlin")).await;
        let ordered = async || (operator::replicas(&client, namespace, "fork").await == 3).then_some(());
        wait_for("the peak's pods", PATIENCE, ordered).await.unwrap();
        apply(&client, namespace, &spec("0 8 * * *", "Mars/Olympus")).await;
        let object = until(&client, namespace, "fork", "a sentence about the time zone", |object| {
            let conditions = object.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
            conditions.iter().any(|condition| condition.message.contains("Mars/Olympus"))
        })
        .await;
        assert_eq!(operator::replicas(&client, namespace, "fork").await, 3, "{:#?}", object.status);
    });
}

#[test]
fn foreign_replicas_are_reverted_once_and_then_left_alone() {
    operator::served("foreign", async |Served { client, namespace, .. }| {
        apply(&client, namespace, &manifest("fork", json!({}))).await;
        until(&client, namespace, "fork", "a status", |object| condition(object, "ScalingActive").0 == "True").await;
        scale(&client, namespace, 7).await;
        let back = async || (operator::replicas(&client, namespace, "fork").await == 1).then_some(());
        wait_for("the count to be put back", PATIENCE, back).await.unwrap();
        let events: Api<Event> = Api::namespaced(client.clone(), namespace);
        let told = async || {
            let all = events.list(&ListParams::default()).await.ok()?;
            all.items.into_iter().find(|event| event.reason.as_deref() == Some("ReplicasReverted"))
        };
        let event = wait_for("the Event", PATIENCE, told).await.unwrap();
        assert!(event.note.unwrap().contains("somebody"));

        scale(&client, namespace, 5).await;
        let object = until(&client, namespace, "fork", "hands off", |object| {
            condition(object, "ScalingActive") == ("False".into(), "ConflictingAutoscaler".into())
        })
        .await;
        assert_eq!(operator::replicas(&client, namespace, "fork").await, 5, "{:#?}", object.status);
    });
}

#[test]
fn autoscaler_on_the_deployment_has_the_pods_for_as_long_as_it_is_there() {
    operator::served("autoscaler", async |Served { client, namespace, .. }| {
        apply(&client, namespace, &manifest("fork", json!({}))).await;
        until(&client, namespace, "fork", "a status", |object| condition(object, "ScalingActive").0 == "True").await;
        let scalers: Api<HorizontalPodAutoscaler> = Api::namespaced(client.clone(), namespace);
        let scaler = json!({"metadata": {"name": "by-cpu"}, "spec": {"maxReplicas": 9,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "fork"}}});
        scalers.create(&PostParams::default(), &serde_json::from_value(scaler).unwrap()).await.unwrap();
        let object = until(&client, namespace, "fork", "hands off", |object| {
            condition(object, "ScalingActive") == ("False".into(), "ConflictingAutoscaler".into())
        })
        .await;
        let conditions = object.status.unwrap().conditions;
        let active = conditions.iter().find(|condition| condition.type_ == "ScalingActive").unwrap();
        assert!(active.message.contains("by-cpu"), "{}", active.message);
        // What it writes stays, twice and more.
        for count in [4, 6, 5] {
            scale(&client, namespace, count).await;
            until(&client, namespace, "fork", "the status to follow", |object| {
                object.status.as_ref().unwrap().knobs.as_ref().unwrap().current.as_ref().unwrap().replicas == count
            })
            .await;
            assert_eq!(operator::replicas(&client, namespace, "fork").await, count);
        }
        scalers.delete("by-cpu", &DeleteParams::default()).await.unwrap();
        until(&client, namespace, "fork", "hands on", |object| condition(object, "ScalingActive").0 == "True").await;
        assert_eq!(operator::replicas(&client, namespace, "fork").await, 5, "taken over as it was left");
    });
}

#[test]
fn leaving_auto_keeps_the_pods() {
    operator::served("leaving", async |Served { client, namespace, .. }| {
        let three = json!({"scaling": {"replicas": {"min": 3}}});
        apply(&client, namespace, &manifest("fork", three)).await;
        let at_three = async || (operator::replicas(&client, namespace, "fork").await == 3).then_some(());
        wait_for("three pods", PATIENCE, at_three).await.unwrap();
        let off = json!({"scaling": {"replicas": {"min": 1, "mode": "Off"}}});
        apply(&client, namespace, &manifest("fork", off)).await;
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
        let handed_over = async || {
            let fields = deployments.get("fork").await.ok()?.metadata.managed_fields?;
            let owners: Vec<_> = fields
                .into_iter()
                .filter(|entry| entry.fields_v1.as_ref().unwrap().0.pointer("/f:spec/f:replicas").is_some())
                .filter_map(|entry| entry.manager)
                .collect();
            (owners == ["yolo-operator-released"]).then_some(())
        };
        wait_for("the count to be handed over", PATIENCE, handed_over).await.unwrap();
        assert_eq!(operator::replicas(&client, namespace, "fork").await, 3);
        scale(&client, namespace, 2).await;
        until(&client, namespace, "fork", "the status to follow", |object| {
            object.status.as_ref().unwrap().knobs.as_ref().unwrap().current.as_ref().unwrap().replicas == 2
        })
        .await;
        assert_eq!(operator::replicas(&client, namespace, "fork").await, 2, "in Off the count is a person's");
    });
}

#[test]
fn pods_that_are_to_leave_are_marked_before_the_count_falls() {
    operator::served("leave", async |Served { client, namespace, .. }| {
        let fixed = |count: i32| manifest("fork", json!({"scaling": {"replicas": {"fixed": count}}}));
        apply(&client, namespace, &fixed(3)).await;
        for (name, second) in [("fork-old", 1), ("fork-young", 3), ("fork-middle", 2)] {
            operator::object(&client, namespace, "fork", name).await;
            let since = format!("2026-01-01T00:00:0{second}Z");
            let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": since});
            operator::set_status(&client, namespace, name, json!({"phase": "Running", "conditions": [ready]})).await;
        }
        until(&client, namespace, "fork", "three pods", |object| condition(object, "Ready").0 == "True").await;
        apply(&client, namespace, &fixed(1)).await;
        let one = async || (operator::replicas(&client, namespace, "fork").await == 1).then_some(());
        wait_for("the order", PATIENCE, one).await.unwrap();
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let cost = async |name| {
            let annotations = pods.get(name).await.unwrap().metadata.annotations.unwrap_or_default();
            annotations.get("controller.kubernetes.io/pod-deletion-cost").cloned()
        };
        assert_eq!(cost("fork-old").await, None);
        assert_eq!(cost("fork-middle").await.as_deref(), Some("-1"));
        assert_eq!(cost("fork-young").await.as_deref(), Some("-2"), "leaves first");
    });
}

#[test]
fn model_that_is_missing_is_named_and_correcting_the_object_recovers() {
    operator::served("model", async |Served { client, namespace, .. }| {
        apply(&client, namespace, &manifest("fork", json!({}))).await;
        operator::object(&client, namespace, "fork", "fork-bad").await;
        let message = r#"{"code":"model_missing","message":"/models/emulated.onnx does not exist"}"#;
        let waiting = json!({"phase": "Running", "containerStatuses": [{
            "name": "server", "image": "i", "imageID": "i", "ready": false, "restartCount": 1,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "message": message}},
        }]});
        operator::set_status(&client, namespace, "fork-bad", waiting).await;
        let object = until(&client, namespace, "fork", "the reason", |object| {
            condition(object, "Ready") == ("False".into(), "ModelMissing".into())
        })
        .await;
        let conditions = object.status.unwrap().conditions;
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
        assert!(ready.message.contains("/models/emulated.onnx"), "{}", ready.message);

        let corrected = json!({"model": {"source": {"imagePath": "/models/other.onnx"}}});
        apply(&client, namespace, &manifest("fork", corrected)).await;
        operator::delete(&client, namespace, "fork-bad").await;
        let _pod = TestPod::start(&client, namespace, "fork", loopback(2, 0)).await;
        until(&client, namespace, "fork", "Ready", |object| condition(object, "Ready").0 == "True").await;
    });
}

#[test]
fn model_of_a_uri_is_fetched_before_the_server_and_a_refusal_is_told() {
    operator::served("uri", async |Served { cluster, client, namespace, user }| {
        let uri = "s3://models/emulated.onnx";
        let digest = "0123456789abcdef".repeat(4);
        let model = json!({"source": {"uri": uri, "imagePath": null}, "sha256": digest, "credentialsSecretName": "s"});
        apply(&client, namespace, &manifest("fork", json!({"model": model}))).await;
        let pod = operator::object(&client, namespace, "fork", "fork-bad").await.spec.unwrap();
        let fetch = pod.init_containers.unwrap().remove(0);
        assert!(fetch.args.unwrap().contains(&format!("--uri={uri}")));
        let message = json!({"code": "model_fetch_failed", "message": format!("{uri}: Connection refused")});
        let refused = json!({"phase": "Pending", "initContainerStatuses": [{
            "name": "fetch", "image": "i", "imageID": "i", "ready": false, "restartCount": 1,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "message": message.to_string()}},
        }]});
        operator::set_status(&client, namespace, "fork-bad", refused).await;
        let object = until(&client, namespace, "fork", "the reason", |object| {
            condition(object, "Ready") == ("False".into(), "ModelFetchFailed".into())
        })
        .await;
        let conditions = object.status.unwrap().conditions;
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
        assert!(ready.message.contains("Connection refused"), "{}", ready.message);

        operator::delete(&client, namespace, "fork-bad").await;
        let _pod = TestPod::start(&client, namespace, "fork", loopback(9, 0)).await;
        until(&client, namespace, "fork", "Ready", |object| condition(object, "Ready").0 == "True").await;
        // What the API server adds to an init container must not look like a change: once is enough.
        let writes = operator::writes(cluster, &user);
        let templates = writes.iter().filter(|write| write.resource == "deployments").count();
        assert_eq!(templates, 1, "{writes:#?}");
    });
}

#[test]
fn off_begins_at_the_minimum_a_fixed_count_wins_and_paused_lets_go() {
    operator::served("modes", async |Served { client, namespace, .. }| {
        let off = |replicas| manifest("fork", json!({"scaling": {"mode": "Off", "replicas": replicas}}));
        apply(&client, namespace, &off(json!({"min": 3}))).await;
        assert_eq!(operator::replicas(&client, namespace, "fork").await, 3, "not the API server's default");

        apply(&client, namespace, &off(json!({"min": 3, "fixed": 5}))).await;
        let at_five = async || (operator::replicas(&client, namespace, "fork").await == 5).then_some(());
        wait_for("the fixed count", PATIENCE, at_five).await.unwrap();
        let services: Api<YoloInferenceService> = Api::namespaced(client.clone(), namespace);
        let selected = async || services.get_scale("fork").await.ok()?.status?.selector;
        let selector = wait_for("a selector for other autoscalers", PATIENCE, selected).await.unwrap();
        assert!(selector.contains("app.kubernetes.io/instance=fork"), "{selector}");

        apply(&client, namespace, &manifest("fork", json!({"paused": true}))).await;
        until(&client, namespace, "fork", "paused", |object| condition(object, "ScalingActive").1 == "Paused").await;
        // The second of two writes in ten minutes would end in hands off, the first be reverted.
        scale(&client, namespace, 7).await;
        until(&client, namespace, "fork", "the status to follow", |object| {
            object.status.as_ref().unwrap().knobs.as_ref().unwrap().current.as_ref().unwrap().replicas == 7
        })
        .await;
        assert_eq!(operator::replicas(&client, namespace, "fork").await, 7);
    });
}

/// Sets the number of pods as `kubectl scale` or an autoscaler does.
async fn scale(client: &Client, namespace: &str, replicas: i32) {
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams { field_manager: Some("somebody".to_owned()), ..PatchParams::default() };
    api.patch_scale("fork", &params, &Patch::Merge(json!({"spec": {"replicas": replicas}}))).await.unwrap();
}
