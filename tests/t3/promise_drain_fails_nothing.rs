//! Pods that go, by a smaller scale, by a delete, and while the operator is dead, fail no request.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use serde_json::{Value, json};
use yolo_testkit::cluster::{LocalCluster, wait_for};

use crate::product::product;
use crate::service::{PATIENCE, PodIdentity, Service, emulated};

/// A third of what one such pod carries in batches of 16, so that nothing needs to be shed, and five requests are under way
/// at any moment, of which a pod that just ended would break its own. Each of the clients'
/// [`CONNECTIONS`](crate::service::CONNECTIONS) is used every 1.3 s, so that all learn of a drain (5 s) before it ends.
const RATE_PER_SECOND: f64 = 50.0;
/// The name that Linux shows for the operator's process.
const OPERATOR: &str = "yolo-operator";

#[test]
fn pod_deletion_scale_down_and_a_killed_operator_fail_no_request() {
    let Some(product) = product() else { return };
    let namespace = product.cluster.namespace("drain").unwrap();
    let work = async |client: kube::Client| {
        let service = Service::apply(product, &client, (&namespace, "draining"), slow()).await;
        let before = service.until_pods(2).await;
        let (clients, _) = service.client(&product.thumbnails()).await;
        let load = clients.start(RATE_PER_SECOND);
        until_loaded(&service).await;

        // A pod goes while no operator lives.
        let killed = kill_operator(product.cluster);
        assert_eq!(killed, 2, "operator processes");
        let [going, staying] = before.as_slice() else { panic!("{before:?}") };
        service.api::<Pod>().delete(&going.name, &DeleteParams::default()).await.unwrap();
        let after = until_replaced(&service, going).await;
        assert!(after.contains(staying), "{staying:?} was touched: {after:?}");
        until_loaded(&service).await;

        // The operator came back by itself: it is the one that scales down.
        let asked = Instant::now();
        service.change(json!({"scaling": {"replicas": {"fixed": 1}}})).await;
        let left = service.until_pods(1).await;
        println!("scaled down and drained after {:.1} s", asked.elapsed().as_secs_f64());
        assert!(left.iter().all(|pod| after.contains(pod)), "{left:?} is new or was restarted: {after:?}");

        let endings = load.end().await;
        let failed: BTreeSet<_> = endings.keys().filter(|ending| !matches!(ending.as_str(), "200" | "429")).collect();
        assert!(failed.is_empty(), "failed requests: {endings:?}");
        assert!(endings.get("200").is_some_and(|answered| *answered > 500), "too few to tell: {endings:?}");
    };
    product.cluster.block_on(work).unwrap();
}

/// Two emulated pods at 80 ms + 1 ms an image.
fn slow() -> Value {
    let mut spec = emulated(2);
    spec["accelerator"] = json!({"emulated": {"alphaMicros": 80_000, "betaMicros": 1_000, "device": "Gpu"}});
    spec["targets"] = json!({"inferenceLatency": {"threshold": "500ms"}, "apiLatency": {"threshold": "2s"}});
    spec["scaling"]["batch"] = json!({"min": 16});
    spec
}

/// Waits until each ready pod takes part in the load.
async fn until_loaded(service: &Service) {
    const IMAGES: f64 = 20.0;
    let loaded = async || {
        let look = service.metrics.look(Duration::ZERO).await.ok()?;
        (look.replicas() == 2 && look.pods.iter().all(|pod| pod.arrivals_total >= IMAGES)).then_some(())
    };
    wait_for("load on both pods", PATIENCE, loaded).await.unwrap();
}

/// Waits until `gone` is gone and two others are there.
async fn until_replaced(service: &Service, gone: &PodIdentity) -> Vec<PodIdentity> {
    let left =
        async || service.pods().await.iter().all(|pod| pod.metadata.uid.as_ref() != Some(&gone.uid)).then_some(());
    wait_for("the deleted pod to go", PATIENCE, left).await.unwrap();
    service.until_pods(2).await
}

/// SIGKILL to every process of the operator in `cluster`; how many there were.
fn kill_operator(cluster: &LocalCluster) -> usize {
    let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let members = cluster.instance().members().into_iter().map(|(_, process)| process);
    let operators: Vec<_> = members.filter(|process| name(process.pid()).trim_end() == OPERATOR).collect();
    for process in &operators {
        process.kill();
    }
    operators.len()
}
