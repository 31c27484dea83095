//! One reading of one pod: the raw series that the planner's `Sample` is made of, whatever source they came from.
//!
//! The table below is the operator's half of the metrics contract (`yolo-server` writes the other half).
//! A series that is not in it is dropped at once; one that is in it must be a finite number that is not negative.

use std::collections::{BTreeMap, HashMap};

use super::ReadError;
use super::difference::whole;

/// How a family of series is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Every server has it from its start; a reading without it is not one of ours, or is cut.
    Always,
    /// Some hardware, some engines or some batch sizes only.
    Sometimes,
}

/// One family: its name, the labels that tell its series apart (any other label is the scrape's own), its need.
type Family = (&'static str, &'static [&'static str], Need);

use Need::{Always, Sometimes};

/// Sorted by name, which [`family`] needs and a test holds.
const FAMILIES: &[Family] = &[
    ("process_start_time_seconds", &[], Sometimes),
    ("yolo_arrival_bin_images_squared_total", &[], Always),
    ("yolo_arrival_bin_images_total", &[], Always),
    ("yolo_arrival_bins_total", &[], Always),
    ("yolo_arrivals_total", &[], Always),
    ("yolo_batch_curve_seconds", &["size", "stat"], Sometimes),
    ("yolo_batch_delay_seconds", &[], Always),
    ("yolo_batch_limit", &[], Always),
    ("yolo_batch_limit_effective", &[], Always),
    ("yolo_batch_seconds_squared_total", &["size"], Sometimes),
    ("yolo_batch_seconds_total", &["size"], Sometimes),
    ("yolo_batches_total", &["size"], Sometimes),
    ("yolo_cache_bytes", &[], Always),
    ("yolo_cache_capacity_bytes", &[], Always),
    ("yolo_cache_evictions_total", &[], Always),
    ("yolo_cache_ghost_expected_total", &[], Sometimes),
    ("yolo_cache_ghost_hits_total", &["size"], Sometimes),
    ("yolo_cache_ghost_references_total", &[], Sometimes),
    ("yolo_cache_requests_total", &["result"], Always),
    ("yolo_cpu_periods_total", &[], Sometimes),
    ("yolo_cpu_quota_cores", &[], Sometimes),
    ("yolo_cpu_throttled_periods_total", &[], Sometimes),
    ("yolo_cpu_usage_seconds_total", &[], Sometimes),
    ("yolo_deadline_exceeded_total", &["where"], Always),
    ("yolo_gpu_sm_activity_ratio", &[], Sometimes),
    ("yolo_gpu_utilization_ratio", &[], Sometimes),
    ("yolo_http_request_body_bytes_total", &[], Always),
    ("yolo_http_request_duration_seconds_bucket", &["outcome", "le"], Always),
    ("yolo_images_in_flight", &[], Always),
    ("yolo_images_total", &["outcome", "source"], Always),
    ("yolo_inference_duration_seconds_bucket", &["le"], Always),
    ("yolo_knobs_generation", &[], Always),
    ("yolo_memory_limit_bytes", &[], Sometimes),
    ("yolo_memory_working_set_bytes", &[], Sometimes),
    ("yolo_model_info", &["sha256"], Sometimes),
    ("yolo_model_load_seconds_total", &[], Always),
    ("yolo_model_loads_total", &[], Always),
    ("yolo_queue_depth", &[], Always),
    ("yolo_rejected_total", &["reason"], Always),
    ("yolo_request_overhead_seconds_bucket", &["le"], Always),
    ("yolo_stage_duration_seconds_bucket", &["stage", "le"], Always),
    ("yolo_stage_duration_seconds_count", &["stage"], Always),
    ("yolo_stage_duration_seconds_sum", &["stage"], Always),
    ("yolo_stage_queued", &["stage"], Sometimes),
    ("yolo_stage_workers", &["stage"], Sometimes),
    ("yolo_task_arrivals_total", &[], Sometimes),
    ("yolo_tasks", &["state"], Sometimes),
    ("yolo_workers", &[], Always),
];

/// Families of which only the series with this label value are read; the others would triple the reading.
pub(super) const NARROWED: &[(&str, &str, &str)] = &[
    ("yolo_http_request_duration_seconds_bucket", "outcome", "ok"),
    ("yolo_stage_duration_seconds_bucket", "stage", "read"),
];

/// Most series kept of one pod: 4 histograms, 32 batch sizes and the rest make about 400.
const SERIES_MAX: usize = 1024;
/// A SHA-256 as text.
const SHA256_HEX_CHARS: usize = 64;
/// Longest label value that is kept; ours are words, numbers and a digest.
const LABEL_BYTES_MAX: usize = SHA256_HEX_CHARS;

/// The families of [`FAMILIES`] that are read whole, as Prometheus' `__name__` pattern.
pub(super) fn name_pattern() -> String {
    let names = FAMILIES.iter().map(|(name, ..)| *name);
    let whole: Vec<&str> = names.filter(|name| NARROWED.iter().all(|(narrowed, ..)| narrowed != name)).collect();
    whole.join("|")
}

/// The table's entry of a name, as the pair of its index and the labels that tell its series apart.
pub(super) fn family(name: &str) -> Option<(&'static str, &'static [&'static str])> {
    let index = FAMILIES.binary_search_by(|(known, ..)| (*known).cmp(name)).ok()?;
    FAMILIES.get(index).map(|(name, labels, _)| (*name, *labels))
}

/// The series of one pod at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RawSample {
    /// When it was taken, in seconds of the source's own clock: the start of the scrape.
    pub at_s: f64,
    /// Family -> values of its distinguishing labels, joined by a comma -> value.
    families: HashMap<&'static str, BTreeMap<String, f64>>,
    count: usize,
}

impl RawSample {
    /// An empty reading taken at `at_s`.
    pub fn at(at_s: f64) -> Self {
        Self { at_s, ..Self::default() }
    }

    /// Takes one series; `label` looks up a label's value by its name. A name that is not in the table is dropped.
    ///
    /// # Errors
    /// [`ReadError::NotANumber`] for NaN, an infinity or a negative value; [`ReadError::Malformed`] for a label that
    /// is missing, too long or holds a comma, a series that came twice, or more series than any server of ours has.
    pub(super) fn put<'l>(
        &mut self,
        name: &str,
        label: impl Fn(&str) -> Option<&'l str>,
        value: f64,
    ) -> Result<(), ReadError> {
        let Some((name, labels)) = family(name) else { return Ok(()) };
        if NARROWED
            .iter()
            .any(|(narrowed, by, only)| *narrowed == name && label(by).is_some_and(|value| value != *only))
        {
            return Ok(());
        }
        if !value.is_finite() || value < 0.0 {
            return Err(ReadError::NotANumber { name });
        }
        let mut key = String::new();
        for (index, wanted) in labels.iter().enumerate() {
            let text = label(wanted).filter(|text| text.len() <= LABEL_BYTES_MAX && !text.contains(','));
            let text = text.ok_or(ReadError::Malformed { what: "a label" })?;
            if index > 0 {
                key.push(',');
            }
            key.push_str(text);
        }
        self.count += 1;
        if self.count > SERIES_MAX {
            return Err(ReadError::Malformed { what: "the number of series" });
        }
        // Adding 0 turns -0 into 0, which else would print and compare oddly.
        match self.families.entry(name).or_default().insert(key, value + 0.0) {
            None => Ok(()),
            Some(_) => Err(ReadError::Malformed { what: "a series that came twice" }),
        }
    }

    /// Holds the reading to the contract: every family that a server always has is there.
    ///
    /// # Errors
    /// [`ReadError::Missing`] names the first that is not.
    pub(super) fn complete(self) -> Result<Self, ReadError> {
        let missing =
            FAMILIES.iter().find(|(name, _, need)| *need == Need::Always && !self.families.contains_key(name));
        missing.map_or(Ok(self), |(name, ..)| Err(ReadError::Missing { name }))
    }

    /// One value; absent if the server does not have the series. `labels` as in the table, joined by a comma.
    pub(super) fn value(&self, name: &str, labels: &str) -> Option<f64> {
        self.families.get(name)?.get(labels).copied()
    }

    /// Knobs generation that the server runs.
    pub(super) fn knobs_generation(&self) -> Option<u64> {
        self.value("yolo_knobs_generation", "").map(whole)
    }

    /// Digest of the model that the server runs; none while a Prometheus still shows the one before beside it.
    pub(super) fn model_sha256(&self) -> Option<&str> {
        let mut models = self.each("yolo_model_info").map(|(sha256, _)| sha256);
        let digest = |text: &str| text.len() == SHA256_HEX_CHARS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        models.next().filter(|sha256| models.next().is_none() && digest(sha256))
    }

    /// All series of a family, in order of their labels.
    pub(super) fn each(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        self.families.get(name).into_iter().flatten().map(|(labels, value)| (labels.as_str(), *value))
    }

    /// Every counter: name, labels, value. Counters are told by their suffix, as Prometheus' own conventions have it.
    pub(super) fn counters(&self) -> impl Iterator<Item = (&'static str, &str, f64)> {
        self.families
            .iter()
            .filter(|(name, _)| is_counter(name))
            .flat_map(|(name, series)| series.iter().map(|(labels, value)| (*name, labels.as_str(), *value)))
    }
}

fn is_counter(name: &str) -> bool {
    ["_total", "_bucket", "_count", "_sum"].iter().any(|suffix| name.ends_with(suffix))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A page with every family of the table, each series at `value`, of a process that started at 1000 s.
    pub(in crate::sampler) fn page(value: f64) -> String {
        let values = |label: &str| -> &[&str] {
            match label {
                "le" => &["0.1", "0.2", "+Inf"],
                "outcome" => &["ok", "cached", "coalesced", "failed", "shed"],
                "source" => &["sync", "async"],
                "stage" => &["read", "decode", "inference"],
                "stat" => &["mean", "p95"],
                "size" => &["1", "8"],
                "where" => &["queue", "running"],
                "reason" => &["queue_full", "predicted_late", "draining", "starting", "payload"],
                "result" => &["hit", "coalesced", "miss"],
                "state" => &["queued"],
                _ => &["0"],
            }
        };
        let mut lines = Vec::new();
        for (name, labels, _) in FAMILIES {
            let mut sets = vec![Vec::new()];
            for label in *labels {
                let with = |set: &Vec<String>| {
                    let set = set.clone();
                    values(label).iter().map(move |value| [set.clone(), vec![format!("{label}=\"{value}\"")]].concat())
                };
                sets = sets.iter().flat_map(with).collect();
            }
            for set in sets {
                let braces = if set.is_empty() { String::new() } else { format!("{{{}}}", set.join(",")) };
                let value = if *name == "process_start_time_seconds" { 1000.0 } else { value };
                lines.push(format!("{name}{braces} {value}\n"));
            }
        }
        lines.concat()
    }

    #[test]
    fn table_is_sorted_and_names_each_family_once() {
        assert!(FAMILIES.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(FAMILIES.iter().all(|(name, ..)| family(name).is_some()));
    }

    #[test]
    fn hostile_value_or_label_is_refused_and_a_stranger_dropped() {
        let mut raw = RawSample::at(0.0);
        let none = |_: &str| None;
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0] {
            assert!(matches!(raw.put("yolo_queue_depth", none, bad), Err(ReadError::NotANumber { .. })), "{bad}");
        }
        assert!(raw.put("go_goroutines", none, f64::NAN).is_ok());
        assert!(raw.put("yolo_batches_total", none, 1.0).is_err(), "no size");
        assert!(raw.put("yolo_batches_total", |_| Some("1,2"), 1.0).is_err());
        raw.put("yolo_queue_depth", none, -0.0).unwrap();
        assert!(raw.value("yolo_queue_depth", "").unwrap().is_sign_positive());
        assert!(raw.put("yolo_queue_depth", none, 1.0).is_err(), "the same series twice");
        assert!(matches!(raw.complete(), Err(ReadError::Missing { .. })));
    }
}
