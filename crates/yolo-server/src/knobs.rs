//! Live knobs: one JSON document in a mounted directory, validated whole, applied in place.
//!
//! The content counts, whatever its generation. An unknown field is ignored and counted, a missing field keeps its
//! value, a bad field refuses the whole document: the last good one stays.

mod watch;

use std::time::Duration;

use serde_json::{Map, Value};

use crate::limits;

pub use watch::{read, watch};

/// The file inside the knobs directory.
pub const KNOBS_FILE: &str = "knobs.json";

/// The values that the operator may change while the server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Knobs {
    /// Counts the operator's changes; exported so that it can see what is applied.
    pub generation: u64,
    /// Largest batch that a worker may pull, 1..=32.
    pub batch_max: usize,
    /// How long a worker may wait for a batch to fill.
    pub queue_delay_max: Duration,
    /// Capacity of the result cache; 0 is off.
    pub cache_bytes: u64,
    /// Age at which a cached result is no longer served.
    pub cache_ttl: Duration,
    /// Longest wait until an image's batch starts.
    pub deadline: Duration,
    /// Largest batch that is timed at idle (the operator may ask for it later).
    pub timed_batch_max: usize,
    /// Idle timing stops at a batch that takes longer than this.
    pub inference_threshold: Duration,
}

impl Default for Knobs {
    /// What a server without an operator runs with: small batches, a small cache.
    fn default() -> Self {
        Self {
            generation: 0,
            batch_max: 8,
            queue_delay_max: Duration::ZERO,
            cache_bytes: 64 << 20,
            cache_ttl: Duration::from_hours(1),
            deadline: Duration::from_secs(1),
            timed_batch_max: 16,
            inference_threshold: Duration::from_millis(100),
        }
    }
}

/// Why a document was refused.
#[derive(Debug, thiserror::Error)]
pub enum KnobsError {
    /// Longer than [`limits::KNOBS_BYTES_MAX`].
    #[error("knobs document is longer than {} bytes", limits::KNOBS_BYTES_MAX)]
    TooLong,
    /// Not JSON, or torn.
    #[error("knobs document is not JSON")]
    Json(#[source] serde_json::Error),
    /// JSON, but not an object.
    #[error("knobs document is not a JSON object")]
    NotAnObject,
    /// A known field of a wrong type or outside its range.
    #[error("knob {field} must be a whole number in {min}..={max}, found {found}")]
    Field {
        /// The field's name in the document.
        field: &'static str,
        /// Smallest accepted value.
        min: u64,
        /// Largest accepted value.
        max: u64,
        /// What the document holds, cut to 64 characters.
        found: String,
    },
}

/// A document that passed: the new values and how many of its fields nobody knows.
#[derive(Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The values to apply.
    pub knobs: Knobs,
    /// Fields that this version ignores.
    pub unknown_fields: usize,
}

const DAY_S: u64 = 24 * 60 * 60;
const NAMES: [&str; 8] = [
    "generation",
    "maxBatchSize",
    "maxQueueDelayMicros",
    "cacheBytes",
    "cacheTtlSeconds",
    "deadlineMillis",
    "batchMax",
    "inferenceThresholdMillis",
];

/// Reads a document on top of the values in force.
///
/// # Errors
/// [`KnobsError`] if the document is torn, not an object, or any known field is of a wrong type or out of range.
pub fn parse(document: &[u8], current: &Knobs) -> Result<Parsed, KnobsError> {
    if document.len() as u64 > limits::KNOBS_BYTES_MAX {
        return Err(KnobsError::TooLong);
    }
    let Value::Object(fields) = serde_json::from_slice(document).map_err(KnobsError::Json)? else {
        return Err(KnobsError::NotAnObject);
    };
    let read = |field, range, kept: u64| number(&fields, field, range, kept);
    let batch = (1, limits::BATCH_MAX as u64);
    let knobs = Knobs {
        generation: read("generation", (0, u64::MAX), current.generation)?,
        batch_max: as_size(read("maxBatchSize", batch, current.batch_max as u64)?),
        queue_delay_max: Duration::from_micros(read(
            "maxQueueDelayMicros",
            (0, 1_000_000),
            micros(current.queue_delay_max),
        )?),
        cache_bytes: read("cacheBytes", (0, limits::CACHE_BYTES_MAX), current.cache_bytes)?,
        cache_ttl: Duration::from_secs(read("cacheTtlSeconds", (1, 30 * DAY_S), current.cache_ttl.as_secs())?),
        deadline: Duration::from_millis(read("deadlineMillis", (1, 600_000), micros(current.deadline) / 1_000)?),
        timed_batch_max: as_size(read("batchMax", batch, current.timed_batch_max as u64)?),
        inference_threshold: Duration::from_millis(read(
            "inferenceThresholdMillis",
            (1, 600_000),
            micros(current.inference_threshold) / 1_000,
        )?),
    };
    let unknown_fields = fields.keys().filter(|name| !NAMES.contains(&name.as_str())).count();
    Ok(Parsed { knobs, unknown_fields })
}

fn number(
    fields: &Map<String, Value>,
    field: &'static str,
    (min, max): (u64, u64),
    kept: u64,
) -> Result<u64, KnobsError> {
    let Some(value) = fields.get(field) else { return Ok(kept) };
    value.as_u64().filter(|number| (min..=max).contains(number)).ok_or_else(|| KnobsError::Field {
        field,
        min,
        max,
        found: value.to_string().chars().take(64).collect(),
    })
}

fn as_size(batch: u64) -> usize {
    usize::try_from(batch).unwrap_or(limits::BATCH_MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"{"generation":17,"maxBatchSize":4,"maxQueueDelayMicros":250,"cacheBytes":1048576,
        "cacheTtlSeconds":60,"deadlineMillis":500,"batchMax":32,"inferenceThresholdMillis":80}"#;

    #[test]
    fn a_whole_document_sets_every_knob() {
        let parsed = parse(WHOLE.as_bytes(), &Knobs::default()).unwrap();
        let expected = Knobs {
            generation: 17,
            batch_max: 4,
            queue_delay_max: Duration::from_micros(250),
            cache_bytes: 1 << 20,
            cache_ttl: Duration::from_mins(1),
            deadline: Duration::from_millis(500),
            timed_batch_max: 32,
            inference_threshold: Duration::from_millis(80),
        };
        assert_eq!(parsed, Parsed { knobs: expected, unknown_fields: 0 });
    }

    #[test]
    fn every_strict_prefix_is_refused() {
        for end in 0..WHOLE.len() {
            assert!(parse(&WHOLE.as_bytes()[..end], &Knobs::default()).is_err(), "{}", &WHOLE[..end]);
        }
    }

    #[test]
    fn a_missing_field_keeps_its_value_and_an_unknown_one_is_counted() {
        let current = Knobs { batch_max: 3, ..Knobs::default() };
        let parsed = parse(br#"{"generation":2,"colour":"red","later":{}}"#, &current).unwrap();
        assert_eq!(parsed, Parsed { knobs: Knobs { generation: 2, ..current }, unknown_fields: 2 });
    }

    #[test]
    fn one_bad_field_refuses_the_whole_document() {
        for bad in [
            r#"{"generation":1,"maxBatchSize":0}"#,
            r#"{"maxBatchSize":33}"#,
            r#"{"maxBatchSize":"8"}"#,
            r#"{"cacheBytes":-1}"#,
            r#"{"cacheBytes":1073741825}"#,
            r#"{"deadlineMillis":1.5}"#,
            r#"{"deadlineMillis":0}"#,
            r#"{"generation":null}"#,
            "[]",
            "17",
            "",
            "{\"generation\":1}}",
        ] {
            assert!(parse(bad.as_bytes(), &Knobs::default()).is_err(), "{bad}");
        }
        let long = format!("{{\"generation\":1{}}}", " ".repeat(5_000));
        assert!(matches!(parse(long.as_bytes(), &Knobs::default()), Err(KnobsError::TooLong)));
    }
}
