//! Writes are rare: under constant load nothing is written but the status refresh (design.md section 4).

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;
use yolo_loadgen::client::{Client, Limits, Target};
use yolo_loadgen::pictures::{Mode, Pictures};
use yolo_loadgen::schedule::{Phase, arrivals};

use crate::operator::{self, Served, TestPod, apply, beside, condition, count, loopback, manifest, until};

/// Over which writes are counted.
const COUNTED: Duration = Duration::from_mins(1);
/// About a seventh of what the pod can carry.
const RATE_PER_SECOND: f64 = 20.0;

#[test]
fn constant_load_writes_nothing_but_the_status_refresh() {
    operator::served("rest", async |Served { cluster, client, namespace, user }| {
        // One batch size: on a busy machine the server finds the time for its own timing of larger ones late, and one that
        // pays is then rightly raised, once it has paid for a hold.
        // A busy machine's latency must not turn a condition, which is rightly told at once.
        let spec = json!({
            "targets": {"apiLatency": {"threshold": "5s"}},
            "scaling": {"replicas": {"max": 2}, "batch": {"min": 4, "max": 4}},
        });
        apply(&client, namespace, &manifest("fork", spec)).await;
        let pod = TestPod::start(&client, namespace, "fork", loopback(3, 0)).await;
        let _load = beside(load(pod.api()));
        until(&client, namespace, "fork", "a settled service", |object| {
            let status = object.status.as_ref().unwrap();
            let rate = status.load.as_ref().map_or(0.0, |load| load.images_per_second);
            condition(object, "TargetsMet").0 == "True" && (18.0..=22.0).contains(&rate)
        })
        .await;
        // The window (10 s) and the settling of the learned curve: decisions about a new service are not at rest.
        quiet_for_a_window(cluster, &user).await;
        let before = operator::writes(cluster, &user).len();
        // Not a wait for something to happen: the promise is that nothing does, for this long.
        tokio::time::sleep(COUNTED).await;
        let all = operator::writes(cluster, &user);
        let during = &all[before..];
        let counts = count(during);
        let object = until(&client, namespace, "fork", "the object", |_| true).await;
        let status = object.status.unwrap();
        let reasons: Vec<_> = status.decisions.iter().map(|decision| (&decision.time.0, &decision.reason)).collect();
        let events = Api::<Event>::namespaced(client.clone(), namespace).list(&ListParams::default()).await.unwrap();
        let notes: Vec<_> = events.iter().map(|event| (&event.reason, &event.note)).collect();
        let seen = format!("{during:#?} {reasons:#?} {notes:#?} {:#?}", status.conditions);
        println!("writes in {COUNTED:?} of constant load: {counts:?}");
        assert!(counts.keys().all(|resource| *resource == "yoloinferenceservices/status"), "{seen}");
        assert!(counts.values().sum::<usize>() <= 3, "the refresh comes at most every 30 s: {seen}");
    });
}

/// Waits until nothing but the status was written for 30 s.
async fn quiet_for_a_window(cluster: &yolo_testkit::cluster::LocalCluster, user: &str) {
    let other = || operator::writes(cluster, user).iter().filter(|write| !write.resource.ends_with("/status")).count();
    let (mut seen, mut since) = (other(), tokio::time::Instant::now());
    let quiet = async || {
        let now = other();
        if now != seen {
            (seen, since) = (now, tokio::time::Instant::now());
        }
        (since.elapsed() >= Duration::from_secs(30)).then_some(())
    };
    yolo_testkit::cluster::wait_for("rest", Duration::from_mins(2), quiet).await.unwrap();
}

/// Distinct pictures, open loop, for longer than the test.
async fn load(api: std::net::SocketAddr) {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/yolo-vision/fixtures/decode/baseline-420.jpg");
    std::fs::copy(fixture, folder.path().join("picture.jpg")).unwrap();
    let pictures = Pictures::read(folder.path(), 1).unwrap();
    let target = Target { address: api, host: "fork".to_owned(), path: "/predict".to_owned() };
    let client = Client::new(target, Limits::default(), &[], tokio::time::Instant::now()).unwrap();
    let phase = Phase { rate_per_second: RATE_PER_SECOND, length: Duration::from_mins(10) };
    client.run(arrivals(&[phase], 7), (&pictures, Mode::Distinct), std::future::pending()).await;
}
