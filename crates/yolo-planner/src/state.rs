//! What the planner remembers between calls, and the part of it that outlives a leader.

use serde::{Deserialize, Serialize};

use crate::units::{BatchSize, Bytes, Ratio, Seconds, Timestamp};

/// What was learned about a service; the operator keeps it in `status.learned` for the next leader.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Learned {
    /// When.
    pub time: Timestamp,
    /// Time of a batch.
    pub curve: Option<LearnedCurve>,
    /// Response time less queue and engine, at the API target's percentile.
    pub overhead: Option<Seconds>,
    /// CPU time an image, all stages.
    pub cpu_per_image: Option<Seconds>,
    /// From creation to ready, p90, where a node had room.
    pub startup_warm: Option<Seconds>,
    /// The same where a node had to come first.
    pub startup_cold: Option<Seconds>,
    /// Variance over mean of arrivals in a second, 1..=8.
    pub dispersion: Option<Ratio>,
    /// Hit ratio by cache size, rising.
    pub hit_curve: Vec<HitPoint>,
    /// Working set as a function of batch and cache.
    pub memory: Option<MemoryModel>,
    /// Correction of the capacity from measured latency; 1 is none.
    pub kappa: Option<Ratio>,
}

/// The service curve t(b) = alpha + beta·b, and the sizes as measured.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LearnedCurve {
    /// Time of a call without images.
    pub alpha: Seconds,
    /// Time an image adds.
    pub beta: Seconds,
    /// Standard deviation of a call's time about the line.
    pub uncertainty: Seconds,
    /// Measured sizes.
    pub sizes: Vec<SizeMean>,
}

/// One measured batch size.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SizeMean {
    /// Images a call.
    pub size: BatchSize,
    /// Mean time of a call.
    pub mean: Seconds,
    /// Standard deviation of a call's time.
    pub deviation: Seconds,
    /// Calls that the mean rests on, older ones counted less.
    pub weight: f64,
}

/// Hit ratio of one cache size.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HitPoint {
    /// Cache of a pod.
    pub bytes: Bytes,
    /// Share of the references that it answers.
    pub ratio: Ratio,
}

/// Working set = `base + per_image·b + 1.15·cache`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MemoryModel {
    /// Without images and cache.
    pub base: Bytes,
    /// What an image of a batch adds.
    pub per_image: Bytes,
}

/// Everything that one call hands to the next. Opaque; serialisable for tests and simulators.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct State {
    pub(crate) last: Option<Timestamp>,
}

impl State {
    /// The state of a new leader that knows what the last one learned.
    pub fn seeded(_learned: &Learned) -> Self {
        Self::default()
    }

    /// What was learned so far.
    pub fn learned(&self) -> Learned {
        Learned::default()
    }
}
