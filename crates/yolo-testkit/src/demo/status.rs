//! What the demo reads of a service's status: the verdict and the decisions.

use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use serde::Deserialize;

/// The part of the status that the demo judges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Status of the condition `TargetsMet`: True, False, Unknown, or empty where there is none yet.
    pub targets_met: String,
    /// Rows that are not met, as "name observed (threshold)".
    pub missed: Vec<String>,
    /// All decisions since the demo looks, oldest first; the object itself keeps only the last ten.
    pub changes: Vec<Change>,
}

/// One decision that changed knobs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Change {
    /// Unique in its service.
    pub id: i64,
    /// Knobs before.
    pub from: Knobs,
    /// Knobs after.
    pub to: Knobs,
    /// Why, in words.
    #[serde(default)]
    pub reason: String,
}

/// The three knobs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Knobs {
    /// Pods.
    pub replicas: u64,
    /// Images a batch at most.
    pub batch: u64,
    /// Cache of one pod.
    pub cache_bytes: u64,
}

/// The part of the spec that the demo needs: its target for the plot, and what the emulated device declares.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Spec {
    targets: Targets,
    accelerator: Accelerator,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Targets {
    api_latency: Latency,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Latency {
    threshold: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Accelerator {
    emulated: Option<Curve>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Curve {
    alpha_micros: f64,
    beta_micros: f64,
}

impl Spec {
    /// Threshold of the API latency target in milliseconds, if it is written as `…ms` or `…s`.
    pub fn api_threshold_ms(&self) -> Option<f64> {
        let text = self.targets.api_latency.threshold.as_str();
        let (number, scale) = match text.strip_suffix("ms") {
            Some(number) => (number, 1.0),
            None => (text.strip_suffix('s')?, 1_000.0),
        };
        Some(number.parse::<f64>().ok()? * scale)
    }

    /// Images a second of one emulated device at this batch limit, b / (alpha + beta b); `None` for a real engine.
    pub fn emulated_capacity(&self, batch: f64) -> Option<f64> {
        let Curve { alpha_micros, beta_micros } = self.accelerator.emulated?;
        Some(batch / (alpha_micros + beta_micros * batch) * 1e6)
    }
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    conditions: Vec<Condition>,
    #[serde(default)]
    targets: Vec<Row>,
    #[serde(default)]
    decisions: Vec<Change>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

#[derive(Deserialize)]
struct Row {
    name: String,
    verdict: String,
    #[serde(default)]
    observed: Option<String>,
    #[serde(default)]
    threshold: Option<String>,
}

impl Status {
    /// Whether the condition `TargetsMet` is True.
    pub fn is_met(&self) -> bool {
        self.targets_met == "True"
    }

    /// Takes over what `status` (the object's `.status`) says now and adds the decisions not yet seen.
    ///
    /// # Errors
    /// If it has another shape than the CRD says.
    pub fn update(&mut self, status: &serde_json::Value) -> Result<(), serde_json::Error> {
        let raw = Raw::deserialize(status)?;
        let condition = raw.conditions.into_iter().find(|condition| condition.kind == "TargetsMet");
        self.targets_met = condition.map(|condition| condition.status).unwrap_or_default();
        let missed = raw.targets.into_iter().filter(|row| row.verdict == "Missed" || row.verdict == "Unknown");
        self.missed = missed
            .map(|row| {
                let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
                format!("{} {} ({})", row.name, or_dash(row.observed), or_dash(row.threshold))
            })
            .collect();
        for change in raw.decisions {
            if self.changes.iter().all(|known| known.id != change.id) {
                self.changes.push(change);
            }
        }
        Ok(())
    }
}

/// The custom resources of `namespace`, without their types: the testkit does not depend on the API crate.
pub fn api(client: Client, namespace: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("yolo-operator.io", "v1alpha1", "YoloInferenceService");
    let resource = ApiResource::from_gvk_with_plural(&kind, "yoloinferenceservices");
    Api::namespaced_with(client, namespace, &resource)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::scenario::{EMULATED_GPU, PAGE_LAYOUT};

    #[test]
    fn the_target_and_the_declared_curve_are_read_from_the_manifests_of_the_demo() {
        let spec = |manifest: &str| {
            let text = std::fs::read_to_string(format!("{}/../../{manifest}", env!("CARGO_MANIFEST_DIR"))).unwrap();
            let object: serde_json::Value = serde_yaml_ng::from_str(&text).unwrap();
            Spec::deserialize(&object["spec"]).unwrap()
        };
        let (real, emulated) = (spec(PAGE_LAYOUT.manifest), spec(EMULATED_GPU.manifest));
        assert!(real.api_threshold_ms() > Some(0.0) && real.emulated_capacity(1.0).is_none());
        // 30 ms + 2 ms an image, as the example's comment says: 16 images in 62 ms.
        assert!((emulated.emulated_capacity(16.0).unwrap() - 16.0 / 0.062).abs() < 1e-6);
    }

    #[test]
    fn decisions_are_kept_after_the_object_has_dropped_them() {
        let decision = |id: i64| {
            serde_json::json!({"id": id, "reason": "r", "from": {"replicas": 1, "batch": 4, "cacheBytes": 0},
                "to": {"replicas": 2, "batch": 4, "cacheBytes": 0}})
        };
        let object = |decisions: Vec<serde_json::Value>, met: &str| {
            serde_json::json!({"decisions": decisions, "conditions": [{"type": "TargetsMet", "status": met}],
                "targets": [{"name": "apiLatency", "verdict": "Missed", "observed": "250ms", "threshold": "200ms"}]})
        };
        let mut status = Status::default();
        status.update(&object(vec![decision(1), decision(2)], "False")).unwrap();
        status.update(&object(vec![decision(2), decision(3)], "True")).unwrap();
        let ids: Vec<_> = status.changes.iter().map(|change| change.id).collect();
        assert_eq!(ids, [1, 2, 3]);
        assert!(status.is_met());
        assert_eq!(status.missed, ["apiLatency 250ms (200ms)"]);
    }
}
