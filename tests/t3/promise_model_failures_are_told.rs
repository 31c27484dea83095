//! A model file that is missing, truncated or another one than asked for is told by name, hurts no neighbour, and is
//! forgotten once it is put right: in the object, or in the volume.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::product::{Product, product};
use crate::service::{Condition, Service, identities};

const MODEL: &str = "/models/page-layout-320.onnx";
const CLAIM: &str = "models";
/// The neighbour's share of a core carries about twice this.
const NEIGHBOUR_RATE_PER_SECOND: f64 = 2.0;

/// One way to be wrong.
struct Case {
    name: &'static str,
    /// `spec.model`.
    model: Value,
    reason: &'static str,
    file: &'static str,
    repair: Repair,
}

enum Repair {
    /// This `spec.model` instead.
    Spec(Value),
    /// The good model under the case's file name.
    File,
}

fn cases() -> [Case; 4] {
    let claim = |path: &str| json!({"source": {"persistentVolumeClaim": {"claimName": CLAIM, "path": path}}});
    let mut other = claim("good.onnx");
    other["sha256"] = json!("0123456789abcdef".repeat(4));
    [
        Case {
            name: "missing-in-image",
            model: json!({"source": {"imagePath": "/models/absent.onnx"}}),
            reason: "ModelMissing",
            file: "absent.onnx",
            repair: Repair::Spec(json!({"source": {"imagePath": MODEL}})),
        },
        Case {
            name: "missing-in-claim",
            model: claim("layout/late.onnx"),
            reason: "ModelMissing",
            file: "late.onnx",
            repair: Repair::File,
        },
        Case {
            name: "truncated",
            model: claim("truncated.onnx"),
            reason: "ModelTruncated",
            file: "truncated.onnx",
            repair: Repair::File,
        },
        Case {
            name: "other-digest",
            model: other,
            reason: "ModelDigestMismatch",
            file: "good.onnx",
            repair: Repair::Spec(json!({"sha256": null})),
        },
    ]
}

#[test]
fn wrong_model_files_are_named_hurt_no_neighbour_and_recover_when_put_right() {
    let Some(product) = product() else { return };
    let namespace = product.cluster.namespace("models").unwrap();
    let folder = volume(product);
    let work = async |client: Client| {
        claim(&client, &namespace, folder.path()).await;
        let model = json!({"source": {"imagePath": MODEL}});
        let neighbour = Service::apply(product, &client, (&namespace, "neighbour"), spec("300m", &model)).await;
        let ready = neighbour.until_ready().await;
        let pods = identities(&neighbour.pods().await);
        let (clients, expected) = neighbour.client(&product.pages()).await;
        let load = clients.start(NEIGHBOUR_RATE_PER_SECOND);

        let cases = cases();
        let broken = join_all(cases.iter().map(async |case| {
            let service = Service::apply(product, &client, (&namespace, case.name), spec("150m", &case.model)).await;
            told(&service, case).await;
            service
        }));
        let broken = broken.await;
        let repaired = join_all(broken.iter().zip(&cases).map(async |(service, case)| {
            match &case.repair {
                Repair::Spec(model) => service.change(json!({"model": model})).await,
                Repair::File => put(&product.model(), &folder.path().join(case.path())),
            }
            service.until_ready().await;
            service.client(&product.pages()).await.1
        }));
        let repaired = repaired.await;

        let endings = load.end().await;
        assert!(endings.keys().eq(["200"]), "the neighbour failed: {endings:?}");
        let now = neighbour.until_ready().await;
        assert_eq!(since(&now), since(&ready), "the neighbour was not Ready for a while");
        assert_eq!(identities(&neighbour.pods().await), pods);
        assert!(!detections(&expected).is_empty(), "{expected}");
        for (case, answer) in cases.iter().zip(&repaired) {
            assert_eq!(detections(answer), detections(&expected), "{}", case.name);
        }
    };
    product.cluster.block_on(work).unwrap();
}

impl Case {
    /// Its file, relative to the volume.
    fn path(&self) -> &str {
        self.model["source"]["persistentVolumeClaim"]["path"].as_str().unwrap()
    }
}

/// Waits until the object says what is wrong with which file, and checks that no pod claims to be ready.
async fn told(service: &Service, case: &Case) {
    let named = |object: &_| {
        let ready = Condition::of(object, "Ready");
        ready.status == "False" && ready.reason == case.reason && ready.message.contains(case.file)
    };
    let object = service.until(&format!("Ready=False/{} with {}", case.reason, case.file), named).await;
    println!("{}: {}", case.name, Condition::of(&object, "Ready").message);
    assert!(service.metrics.ready().await.unwrap().is_empty(), "{} has a ready pod", case.name);
}

fn spec(cpu: &str, model: &Value) -> Value {
    json!({
        "model": model,
        "server": {"resources": {"cpu": cpu, "memory": "384Mi"}},
        "scaling": {"replicas": {"fixed": 1}, "cache": {"max": "0"}},
        // Four starts at once take the machine's CPU for some seconds: slow is no failure here.
        "overload": {"queueTimeout": "5s"},
    })
}

/// A folder of model files that every user may read, as those of a volume are.
fn volume(product: &Product) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for readable in [folder.path().to_owned(), folder.path().join("layout")] {
        fs::create_dir_all(&readable).unwrap();
        fs::set_permissions(&readable, fs::Permissions::from_mode(0o755)).unwrap();
    }
    put(&product.model(), &folder.path().join("good.onnx"));
    let model = fs::read(product.model()).unwrap();
    fs::write(folder.path().join("truncated.onnx"), &model[..model.len() / 2]).unwrap();
    folder
}

/// By renaming, so that no server ever loads half a file.
fn put(model: &Path, file: &Path) {
    let next = file.with_extension("next");
    fs::copy(model, &next).unwrap();
    fs::set_permissions(&next, fs::Permissions::from_mode(0o644)).unwrap();
    fs::rename(&next, file).unwrap();
}

/// The claim [`CLAIM`] of the volume `folder`, which is on the node.
async fn claim(client: &Client, namespace: &str, folder: &Path) {
    let access = json!({"accessModes": ["ReadOnlyMany"], "storageClassName": ""});
    let mut volume = json!({"metadata": {"name": namespace}, "spec": access});
    volume["spec"]["capacity"] = json!({"storage": "1Gi"});
    volume["spec"]["hostPath"] = json!({"path": folder});
    volume["spec"]["claimRef"] = json!({"namespace": namespace, "name": CLAIM});
    let mut claim = json!({"metadata": {"name": CLAIM}, "spec": access});
    claim["spec"]["volumeName"] = json!(namespace);
    claim["spec"]["resources"] = json!({"requests": {"storage": "1Gi"}});
    let (volume, claim) = (serde_json::from_value(volume).unwrap(), serde_json::from_value(claim).unwrap());
    let params = PostParams::default();
    Api::<PersistentVolume>::all(client.clone()).create(&params, &volume).await.unwrap();
    Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace).create(&params, &claim).await.unwrap();
}

/// Since when `Ready` is what it is.
fn since(object: &yolo_api::v1alpha1::YoloInferenceService) -> String {
    let conditions = &object.status.as_ref().unwrap().conditions;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
    ready.last_transition_time.0.to_string()
}

fn detections(answer: &Value) -> &[Value] {
    answer["detections"].as_array().unwrap()
}
