//! A change of the knobs reaches every pod within a second, and no pod restarts and no request fails for it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use serde::Deserialize;
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;
use yolo_api::v1alpha1::YoloInferenceService;
use yolo_loadgen::record::quantile;
use yolo_loadgen::scrape::Page;
use yolo_testkit::cluster::wait_for;
use yolo_testkit::demo::knobs::{self, KnobChange};
use yolo_testkit::figures::{self, Figure};

use crate::product::product;
use crate::service::{PATIENCE, Service, emulated};

/// Changes that are measured.
const CHANGES: usize = 20;
const RATE_PER_SECOND: f64 = 20.0;
/// Goal of design.md: a change is in force everywhere after at most this.
const APPLIED_S_MAX: f64 = 1.0;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    generation: i32,
    max_batch_size: f64,
    cache_bytes: f64,
    deadline_millis: u64,
}

#[test]
fn knob_changes_reach_every_pod_within_a_second_without_a_restart_or_a_failed_request() {
    let Some(product) = product() else { return };
    let namespace = product.cluster.namespace("knobs").unwrap();
    let work = async |client: Client| {
        let service = Service::apply(product, &client, (&namespace, "tuned"), emulated(2)).await;
        let before = service.until_pods(2).await;
        let (clients, _) = service.client(&product.thumbnails()).await;
        let load = clients.start(RATE_PER_SECOND);
        let changes = Arc::new(Mutex::new(Vec::new()));
        let (pods, seen, place) = (service.metrics.clone(), changes.clone(), namespace.to_string());
        let watching = client.clone();
        let measuring = async move {
            knobs::measure(watching, (&place, "tuned"), pods, |change| seen.lock().unwrap().push(change)).await;
        };
        let measuring = AbortOnDropHandle::new(tokio::spawn(measuring));

        // One more than is measured: nothing tells when the watch of the measurement has begun.
        let mut generation = 0;
        for number in 0..=CHANGES {
            until_relisted(&client).await;
            generation = change(&service, number).await;
        }
        let enough = async || (changes.lock().unwrap().len() >= CHANGES).then_some(());
        wait_for("all changes to be measured", PATIENCE, enough).await.unwrap();
        drop(measuring);

        let endings = load.end().await;
        assert!(endings.keys().eq(["200"]), "failed requests: {endings:?}");
        assert_eq!(service.until_pods(2).await, before);
        let told = |object: &YoloInferenceService| {
            let knobs = object.status.as_ref().and_then(|status| status.knobs.as_ref());
            knobs.is_some_and(|knobs| knobs.applied_pods == 2 && knobs.generation >= generation.into())
        };
        service.until("the change on both pods in the status", told).await;
        judge(&changes.lock().unwrap());
    };
    product.cluster.block_on(work).unwrap();
}

/// Waits for two more of the kubelet's looks at all containers, one a second. It takes up a pod that it has just synced
/// only after the next whole look; the operator's own changes are at least a sampling round (5 s) apart.
async fn until_relisted(client: &Client) {
    let looks = async || {
        let request = hyper::Request::get("/api/v1/nodes/node-1/proxy/metrics").body(Vec::new()).unwrap();
        Page::new(client.request_text(request).await.ok()?).value("kubelet_pleg_relist_duration_seconds_count", &[])
    };
    let first = wait_for("the kubelet's metrics", PATIENCE, looks).await.unwrap();
    let twice = async || looks().await.filter(|now| *now >= first + 2.0);
    wait_for("two looks of the kubelet", PATIENCE, twice).await.unwrap();
}

/// Moves deadline, batch and cache in the object, waits until both pods run with what the operator makes of it, and
/// returns the document's generation.
async fn change(service: &Service, number: usize) -> i32 {
    let deadline_millis = 1_100 + u64::try_from(number).unwrap();
    let (batch, cache) = (1 + number % 8, format!("{}Mi", 1 + number));
    let scaling = json!({"batch": {"min": batch}, "cache": {"min": cache}});
    service.change(json!({"overload": {"queueTimeout": format!("{deadline_millis}ms")}, "scaling": scaling})).await;
    let applied = async || {
        let document = document(service).await?;
        let mut applied = document.deadline_millis == deadline_millis;
        let pods = service.metrics.ready().await.ok()?;
        for pod in &pods {
            let page = pod.page().await?;
            let is = |series, value| page.value(series, &[]) == Some(value);
            applied &= is("yolo_knobs_generation", document.generation.into())
                && is("yolo_batch_limit", document.max_batch_size)
                && is("yolo_cache_capacity_bytes", document.cache_bytes);
        }
        (applied && pods.len() == 2).then_some(document.generation)
    };
    wait_for(&format!("change {number} on both pods"), PATIENCE, applied).await.unwrap()
}

async fn document(service: &Service) -> Option<Document> {
    let map = service.api::<ConfigMap>().get("tuned-knobs").await.ok()?;
    serde_json::from_str(map.data?.get("knobs.json")?).ok()
}

fn judge(changes: &[KnobChange]) {
    let mut delays: Vec<Duration> = changes.iter().map(|change| change.applied_after).collect();
    delays.sort();
    let seconds: Vec<f64> = delays.iter().map(Duration::as_secs_f64).collect();
    let figure = |id, q| Figure::at_most(id, quantile(&seconds, q).unwrap(), "s", APPLIED_S_MAX).over(&seconds);
    let figures = [figure("knob_change_applied_p50", 0.5), figure("knob_change_applied_p95", 0.95)];
    println!("{}", figures::table(&figures));
    assert!(changes.iter().all(|change| change.pods == 2), "{changes:#?}");
    assert!(figures.iter().all(|figure| figure.met), "{changes:#?}");
}
