//! `spec.targets`: what a person wants to hold.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    defaults,
    scalars::{Decimal, DurationText, Quantity},
};

/// The source of API latency that needs no configuration: the pods' own histograms.
pub const SOURCE_SERVER: &str = "Server";

/// What is to hold. Present: only the rows that are listed. Absent: all six rows with their defaults.
// Atomic: a shorter list of rows applied server-side replaces the longer one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend(
    "x-kubernetes-map-type" = "atomic",
    "x-kubernetes-validations" = [{
        "rule": "has(self.inferenceLatency) || has(self.apiLatency) || has(self.throughput) || has(self.memoryPerWorker) || has(self.gpuUtilization) || has(self.availability)",
        "message": "list at least one target, or leave targets out to get the six defaults",
    }],
))]
pub struct Targets {
    /// Time that the engine takes for the batch of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference_latency: Option<InferenceLatency>,
    /// Time from the last byte of a request to the last byte of its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_latency: Option<ApiLatency>,
    /// Images a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throughput: Option<Throughput>,
    /// Upper bound of a pod's working set, in bytes (say `2Gi`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "quantity(string(self)).isGreaterThan(quantity('1Mi'))",
        "message": "memoryPerWorker must be more than 1Mi; write bytes with a unit, for example \"2Gi\"",
    }]))]
    pub memory_per_worker: Option<Quantity>,
    /// How busy the GPUs are to be. Does not apply on CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_utilization: Option<GpuUtilization>,
    /// Share of the images that are answered (client errors do not count).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub availability: Option<Availability>,
    /// Time over which observed values are taken (10s to 1h). A verdict turns after one whole window.
    #[serde(default = "defaults::window")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "duration(self) >= duration('10s') && duration(self) <= duration('1h')",
        "message": "window must be between 10s and 1h, for example \"1m\"",
    }]))]
    pub window: DurationText,
    /// Percentage of windows that may miss a target before head-room is added.
    #[serde(default = "defaults::violation_budget_percent")]
    #[schemars(range(min = 0, max = 50))]
    pub violation_budget_percent: i32,
}

/// Which part of the requests a latency threshold has to hold for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Percentile {
    /// Half of the requests.
    #[serde(rename = "p50")]
    P50,
    /// 90 of 100 requests.
    #[serde(rename = "p90")]
    P90,
    /// 95 of 100 requests.
    #[default]
    #[serde(rename = "p95")]
    P95,
    /// 99 of 100 requests.
    #[serde(rename = "p99")]
    P99,
}

impl Percentile {
    /// The quantile in 0..1.
    pub fn quantile(self) -> f64 {
        match self {
            Self::P50 => 0.5,
            Self::P90 => 0.9,
            Self::P95 => 0.95,
            Self::P99 => 0.99,
        }
    }
}

/// Target of the engine time of an image's batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InferenceLatency {
    /// Longest time, more than 0s and at most 60s.
    #[serde(default = "defaults::inference_threshold")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "duration(self) > duration('0s') && duration(self) <= duration('60s')",
        "message": "inferenceLatency.threshold must be more than 0s and at most 60s, for example \"100ms\"",
    }]))]
    pub threshold: DurationText,
    /// The percentile that has to be within the threshold.
    #[serde(default)]
    pub percentile: Percentile,
}

/// Target of the time that an answer takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiLatency {
    /// Longest time, more than 0s and at most 60s.
    #[serde(default = "defaults::api_threshold")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "duration(self) > duration('0s') && duration(self) <= duration('60s')",
        "message": "apiLatency.threshold must be more than 0s and at most 60s, for example \"200ms\"",
    }]))]
    pub threshold: DurationText,
    /// The percentile that has to be within the threshold.
    #[serde(default)]
    pub percentile: Percentile,
    /// `Server`: what the pods themselves measure. There is no other source in this version.
    #[serde(default = "defaults::api_source")]
    #[schemars(length(min = 1, max = 63), extend("x-kubernetes-validations" = [{
        "rule": "self == 'Server'",
        "message": "apiLatency.source must be Server: there is no other source in this version",
    }]))]
    pub source: String,
}

/// Target of the image rate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Throughput {
    /// Images a second.
    #[serde(default = "defaults::images_per_second")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub images_per_second: i32,
    /// When the capacity has to exist.
    #[serde(default)]
    pub provision: Provision,
}

/// When capacity has to exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Provision {
    /// Reachable within replicas.max, held only when offered.
    #[default]
    OnDemand,
    /// Held all the time.
    Always,
}

/// Target of the GPUs' busy share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuUtilization {
    /// Least mean busy share, percent.
    #[serde(default = "defaults::gpu_percent")]
    #[schemars(range(min = 1, max = 100))]
    pub min_percent: i32,
}

/// Target of the answered share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Availability {
    /// Least answered share, percent, as text.
    #[serde(default = "defaults::availability_percent")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "double(self) > 0.0 && double(self) <= 100.0",
        "message": "availability.minPercent must be more than 0 and at most 100, for example \"99.5\"",
    }]))]
    pub min_percent: Decimal,
}
