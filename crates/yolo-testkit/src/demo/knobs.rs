//! How long a change of the knobs takes to reach every pod.

use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};

use super::pods::{Pods, ReadyPod};

/// Pause between two looks at a pod that has not applied the change yet: the resolution of the figure.
const POLL: Duration = Duration::from_millis(25);
/// A pod that has not applied a change by then counts with this time.
const LIMIT: Duration = Duration::from_secs(10);

/// One change of the knobs document.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KnobChange {
    /// Its generation.
    pub generation: f64,
    /// Pods that were ready when it was written.
    pub pods: usize,
    /// From the moment that a watch showed the changed `ConfigMap` until the last of them had applied it.
    pub applied_after: Duration,
}

/// Watches the knobs `ConfigMap` of one service and hands each measured change to `record`. Ends only with the watch.
///
/// The change is dated by the watch, not by the operator's clock, so the API server's delivery (some milliseconds)
/// is not in the figure.
pub async fn measure(
    client: Client,
    (namespace, service): (&str, &str),
    pods: Pods,
    record: impl Fn(KnobChange) + Send,
) {
    let api: Api<ConfigMap> = Api::namespaced(client, namespace);
    let ours = watcher::Config::default().fields(&format!("metadata.name={service}-knobs"));
    let mut changes = watcher(api, ours).default_backoff().applied_objects().boxed();
    let mut known = None;
    loop {
        // An error of the watch is followed by its own retry with backoff.
        let Ok(Some(map)) = changes.try_next().await else { continue };
        let seen = Instant::now();
        let generation = generation(&map);
        if generation.is_none() || generation == known {
            continue;
        }
        if let (Some(_), Some(generation), Ok(ready)) = (known, generation, pods.ready().await) {
            let applied = join_all(ready.iter().map(|pod| applied(pod, generation, seen))).await;
            let slowest = applied.iter().flatten().max();
            if let Some(&applied_after) = slowest {
                record(KnobChange { generation, pods: applied.iter().flatten().count(), applied_after });
            }
        }
        known = generation;
    }
}

/// Waits until `pod` reports `generation`; `None` if the pod has gone meanwhile.
async fn applied(pod: &ReadyPod, generation: f64, since: Instant) -> Option<Duration> {
    while since.elapsed() < LIMIT {
        if pod.page().await?.value("yolo_knobs_generation", &[])? >= generation {
            return Some(since.elapsed());
        }
        tokio::time::sleep(POLL).await;
    }
    Some(LIMIT)
}

fn generation(map: &ConfigMap) -> Option<f64> {
    let document = map.data.as_ref()?.get("knobs.json")?;
    serde_json::from_str::<serde_json::Value>(document).ok()?.get("generation")?.as_f64()
}
