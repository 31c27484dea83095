//! The knobs document of design.md section 5, and the `ConfigMap` that carries it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use serde::{Deserialize, Serialize};
use serde_json::json;
use yolo_planner::{Knobs, Policy};

use super::metadata;
use crate::validate::Validated;

/// Key of the document in its `ConfigMap`, and so the file's name in the pods.
pub const KNOBS_KEY: &str = "knobs.json";
/// Where the pods have it.
pub const KNOBS_DIRECTORY: &str = "/etc/yolo/knobs";
/// Bounds the idle timing of batches where there is no inference target: longer batches help nobody.
const TIMING_MILLIS_DEFAULT: u64 = 1000;

/// What the servers run with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KnobsDocument {
    /// Counts the changes; absent (0) until `apply` has numbered the document.
    #[serde(default)]
    pub generation: u64,
    /// Largest batch.
    pub max_batch_size: u32,
    /// How long a batch waits to fill.
    pub max_queue_delay_micros: u64,
    /// Result cache of a pod; 0 is off.
    pub cache_bytes: u64,
    /// Age at which a cached answer dies.
    pub cache_ttl_seconds: u64,
    /// Longest wait before a batch starts.
    pub deadline_millis: u64,
    /// Largest batch that the server times at idle.
    pub batch_max: u32,
    /// Time of a batch beyond which it times no larger one.
    pub inference_threshold_millis: u64,
}

impl KnobsDocument {
    /// The document for `knobs`, not numbered yet.
    pub fn new(policy: &Policy, knobs: &Knobs) -> Self {
        Self {
            generation: 0,
            max_batch_size: knobs.max_batch_size.get(),
            max_queue_delay_micros: knobs.max_queue_delay_micros,
            cache_bytes: knobs.cache_bytes.get(),
            cache_ttl_seconds: knobs.cache_ttl_seconds,
            deadline_millis: knobs.deadline_millis,
            batch_max: policy.batch.max.get(),
            inference_threshold_millis: policy.targets.inference.map_or(TIMING_MILLIS_DEFAULT, |target| {
                std::time::Duration::from_secs_f64(target.threshold.get()).as_millis().try_into().unwrap_or(u64::MAX)
            }),
        }
    }

    /// The same knobs under another number.
    #[must_use]
    pub fn numbered(self, generation: u64) -> Self {
        Self { generation, ..self }
    }
}

/// Name of the `ConfigMap` of a service.
pub fn config_map_name(service: &str) -> String {
    format!("{service}-knobs")
}

/// The document in a live `ConfigMap`; nothing if a person broke it, which the next apply repairs.
pub fn read(config_map: &ConfigMap) -> Option<KnobsDocument> {
    serde_json::from_str(config_map.data.as_ref()?.get(KNOBS_KEY)?).ok()
}

/// The `ConfigMap` that carries `document`.
pub fn config_map(spec: &Validated, document: &KnobsDocument) -> ConfigMap {
    ConfigMap {
        metadata: metadata(spec, &config_map_name(&spec.id.name)),
        data: Some(BTreeMap::from([(KNOBS_KEY.to_owned(), json!(document).to_string())])),
        ..ConfigMap::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::fixtures::smallest;

    #[test]
    fn document_comes_back_from_its_config_map_and_a_broken_one_does_not() {
        let spec = smallest();
        let document = KnobsDocument::new(&spec.policy, &Knobs::initial(&spec.policy)).numbered(17);
        let mut map = config_map(&spec, &document);
        assert_eq!(map.metadata.name.as_deref(), Some("fork-knobs"));
        assert_eq!(read(&map), Some(document));
        assert_eq!((document.batch_max, document.inference_threshold_millis), (16, 100));
        map.data = Some(BTreeMap::from([(KNOBS_KEY.to_owned(), "{".to_owned())]));
        assert_eq!(read(&map), None);
    }
}
