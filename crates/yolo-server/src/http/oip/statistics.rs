//! What a model has done so far, as Triton's statistics extension tells it: from the counters of `/metrics`.

use schemars::JsonSchema;
use serde::Serialize;

use crate::engine::LoadedModel;
use crate::limits;
use crate::metrics::BatchMetrics;

/// `GET /v2/models/{model}/stats`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Statistics<'a> {
    /// The only model's.
    pub model_stats: [ModelStatistics<'a>; 1],
}

/// A model's.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ModelStatistics<'a> {
    /// Its file's stem.
    pub name: &'a str,
    /// The served version.
    pub version: &'a str,
    /// Images run.
    pub inference_count: u64,
    /// Batches run.
    pub execution_count: u64,
    /// By image.
    pub inference_stats: InferenceStatistics,
    /// By batch size.
    pub batch_stats: Vec<BatchStatistics>,
}

/// Of images.
#[derive(Debug, Serialize, JsonSchema)]
pub struct InferenceStatistics {
    /// Each image's batch.
    pub compute_infer: Total,
}

/// Of batches of one size.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BatchStatistics {
    /// Images in each.
    pub batch_size: usize,
    /// All of them.
    pub compute_infer: Total,
}

/// How often something was done, and how long all of it took.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct Total {
    /// How often.
    pub count: u64,
    /// Nanoseconds.
    pub ns: u64,
}

/// A model's since its start.
pub fn of<'a>(model: &'a LoadedModel, metrics: &BatchMetrics) -> Statistics<'a> {
    let batch = |batch_size: usize| {
        let count = metrics.batches.existing(batch_size)?.get();
        let seconds = metrics.seconds.existing(batch_size)?.get();
        Some(BatchStatistics { batch_size, compute_infer: Total { count, ns: nanoseconds(seconds) } })
    };
    let batches: Vec<_> = (1..=limits::BATCH_MAX).filter_map(batch).collect();
    let images = |batch: &BatchStatistics| batch.batch_size as u64 * batch.compute_infer.count;
    let inference_count = batches.iter().map(images).sum();
    let ns = batches.iter().map(|batch| batch.batch_size as u64 * batch.compute_infer.ns).sum();
    let statistics = ModelStatistics {
        name: &model.name,
        version: model.version(),
        inference_count,
        execution_count: batches.iter().map(|batch| batch.compute_infer.count).sum(),
        inference_stats: InferenceStatistics { compute_infer: Total { count: inference_count, ns } },
        batch_stats: batches,
    };
    Statistics { model_stats: [statistics] }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few centuries fit")]
fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}
