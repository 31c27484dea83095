//! `status`: what is, and why. Written by the operator only.
//!
//! Texts and lists are bounded by the schema; [`clip`] keeps a text within [`TEXT_CHARS_MAX`], so that a long error
//! message of somebody else cannot make the API server refuse the whole status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// Most characters of a text in the status.
pub const TEXT_CHARS_MAX: usize = 1024;
/// Most decisions that the status keeps.
pub const DECISIONS_MAX: usize = 10;

/// Shortens `text` to [`TEXT_CHARS_MAX`] characters.
pub fn clip(text: &str) -> String {
    if text.chars().count() <= TEXT_CHARS_MAX {
        return text.to_owned();
    }
    text.chars().take(TEXT_CHARS_MAX - 1).chain(['…']).collect()
}

/// What is, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct YoloInferenceServiceStatus {
    /// The generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Pods that serve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// Label selector of the pods, as the scale subresource shows it to other autoscalers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub selector: Option<String>,
    /// Address of the API inside the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub url: Option<String>,
    /// What computes the answers. `Emulated`: nothing does, this is a rehearsal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    /// The model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelStatus>,
    /// What the pods do now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadStatus>,
    /// The three knobs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub knobs: Option<KnobsStatus>,
    /// The targets and how each stands.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub targets: Vec<TargetStatus>,
    /// Rows that are met, over all that apply.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub targets_summary: Option<String>,
    /// What limits the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bottleneck: Option<Bottleneck>,
    /// What would help.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub advice: Vec<Advice>,
    /// The last changes, newest last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub decisions: Vec<DecisionStatus>,
    /// What was learned; a hint for the next leader.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learned: Option<Learned>,
    /// The version of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
    /// Ready, Reconciling, Stalled, `TargetsMet`, `TargetsFeasible`, `MetricsAvailable`, `ScalingActive`, `ScalingLimited`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        schema_with = "schema::conditions",
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
}

/// What computes the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Engine {
    /// ONNX Runtime.
    Ort,
    /// Nothing: a declared curve stands for the engine.
    Emulated,
}

/// The model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ModelStatus {
    /// Its file.
    #[schemars(length(max = 2048))]
    pub name: String,
    /// SHA-256 that the spec asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub desired_digest: Option<String>,
    /// SHA-256 that the ready pods report.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub active_digest: Option<String>,
}

/// What the pods do now, over the targets' window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadStatus {
    /// Images that arrive a second.
    pub images_per_second: f64,
    /// Images refused or expired a second.
    pub shed_per_second: f64,
    /// Share answered from the cache, 0 to 1; absent while it is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hit_ratio: Option<f64>,
    /// Response time at the percentile of its target.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub p95: Option<String>,
}

/// The three knobs, ordered and applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct KnobsStatus {
    /// What is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<KnobValues>,
    /// What was ordered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired: Option<KnobValues>,
    /// What would be ordered if every knob were in mode Auto; absent where that is what was ordered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recommended: Option<KnobValues>,
    /// Number of the order.
    pub generation: i64,
    /// Ready pods that have applied it.
    pub applied_pods: i32,
}

/// A setting of the three knobs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct KnobValues {
    /// Pods.
    pub replicas: i32,
    /// Largest batch, images.
    pub batch: i32,
    /// Result cache of a pod, bytes.
    pub cache_bytes: i64,
    /// The same as a person reads it.
    #[schemars(length(max = 16))]
    pub cache: String,
}

impl KnobValues {
    /// A setting: pods, images, bytes.
    pub fn new(replicas: i32, batch: i32, cache_bytes: i64) -> Self {
        Self { replicas, batch, cache_bytes, cache: bytes_text(cache_bytes) }
    }
}

/// Bytes in the largest unit that leaves a whole number.
fn bytes_text(bytes: i64) -> String {
    let mut value = bytes;
    let mut unit = "";
    for larger in ["Ki", "Mi", "Gi"] {
        if value == 0 || value % 1024 != 0 {
            break;
        }
        value /= 1024;
        unit = larger;
    }
    format!("{value}{unit}")
}

/// A target and how it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetStatus {
    /// Which.
    pub name: TargetName,
    /// Its threshold, with its unit.
    #[schemars(length(max = 32))]
    pub threshold: String,
    /// The observed or predicted value, with its unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub observed: Option<String>,
    /// Distance to the threshold, percent of it; positive is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub margin: Option<String>,
    /// How it stands.
    pub verdict: Verdict,
    /// More about the verdict.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// Since when the verdict is what it is.
    #[schemars(schema_with = "schema::embedded::<Time>")]
    pub since: Time,
}

/// Which target, as in `spec.targets`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are the fields of spec.targets, documented there")]
pub enum TargetName {
    InferenceLatency,
    ApiLatency,
    Throughput,
    MemoryPerWorker,
    GpuUtilization,
    Availability,
}

/// How a target stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    /// Measured and met.
    Met,
    /// Measured or predicted, and missed.
    Missed,
    /// No traffic; the model says that it would be met.
    Predicted,
    /// No data.
    Unknown,
    /// Does not apply here.
    NotApplicable,
}

/// What limits the service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Bottleneck {
    /// Which (docs/conditions.md lists the kinds).
    #[schemars(length(max = 64))]
    pub kind: String,
    /// How sure, 0 to 1.
    pub confidence: f64,
    /// The figures that say so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub evidence: Vec<Evidence>,
}

/// A figure and the limit that it passed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Evidence {
    /// What, with its unit.
    #[schemars(length(max = 128))]
    pub name: String,
    /// The figure.
    pub value: f64,
    /// The limit.
    pub limit: f64,
}

/// What would help.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Advice {
    /// Which.
    #[schemars(length(max = 64))]
    pub id: String,
    /// How urgent.
    pub severity: Severity,
    /// What is the matter.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// What to do.
    #[schemars(length(max = 1024))]
    pub action: String,
    /// What it would bring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub predicted: Option<String>,
}

/// How urgent an advice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Severity {
    /// Good to know.
    Info,
    /// A target is near its limit, or money is wasted.
    Warning,
    /// A target is missed or cannot be met.
    Critical,
}

/// A change of the knobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DecisionStatus {
    /// Its number.
    pub id: i64,
    /// When.
    #[schemars(schema_with = "schema::embedded::<Time>")]
    pub time: Time,
    /// What made it necessary.
    #[schemars(length(max = 32))]
    pub trigger: String,
    /// The knobs before.
    pub from: KnobValues,
    /// The knobs after.
    pub to: KnobValues,
    /// Why, in a sentence.
    #[schemars(length(max = 1024))]
    pub reason: String,
    /// What the choice had to satisfy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 12))]
    pub constraints: Vec<Constraint>,
    /// What was expected of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Outcome>,
    /// What came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual: Option<Outcome>,
    /// How the two compare: Confirmed, Better, Worse, Superseded or Unmeasured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub verdict: Option<String>,
}

/// Something that a choice had to satisfy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Constraint {
    /// Which.
    #[schemars(length(max = 32))]
    pub kind: String,
    /// The value under the chosen knobs, with its unit.
    #[schemars(length(max = 32))]
    pub value: String,
    /// Its limit, with its unit.
    #[schemars(length(max = 32))]
    pub limit: String,
    /// Whether it decided the choice.
    pub binding: bool,
}

/// Figures of a setting, predicted or measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Outcome {
    /// Median response time, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_seconds: Option<f64>,
    /// 95th percentile of the response time, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p95_seconds: Option<f64>,
    /// Images a second that the pods can carry within the targets.
    pub capacity: f64,
    /// Working set of a pod, bytes.
    pub rss_bytes: i64,
    /// Image rate over the best possible rate; above 1 more arrives than can be computed.
    pub utilization: f64,
    /// Share answered from the cache, 0 to 1.
    pub hit_ratio: f64,
}

/// What was learned about the service: seconds, bytes, images a second, ratios 0 to 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Learned {
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::embedded::<Option<Time>>")]
    pub time: Option<Time>,
    /// Time of a batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub curve: Option<LearnedCurve>,
    /// Response time less queue and engine, at the API target's percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overhead_seconds: Option<f64>,
    /// CPU time of an image, all stages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_per_image_seconds: Option<f64>,
    /// From creation to ready where a node had room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup_warm_seconds: Option<f64>,
    /// The same where a node had to come first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup_cold_seconds: Option<f64>,
    /// Variance over mean of the arrivals in a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispersion: Option<f64>,
    /// Hit ratio by cache size, rising.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub hit_curve: Vec<HitPoint>,
    /// Working set as a function of batch and cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryModel>,
    /// Correction of the capacity from measured latency; 1 is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kappa: Option<f64>,
}

/// t(b) = alpha + beta · b, and the sizes as measured; seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LearnedCurve {
    /// Time of a batch without images.
    pub alpha_seconds: f64,
    /// Time that each image adds.
    pub beta_seconds: f64,
    /// Standard deviation about the line.
    pub uncertainty_seconds: f64,
    /// Measured sizes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub sizes: Vec<SizeMean>,
}

/// A measured batch size.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SizeMean {
    /// Images.
    pub size: i32,
    /// Mean time, seconds.
    pub mean_seconds: f64,
    /// Standard deviation, seconds.
    pub deviation_seconds: f64,
    /// Batches that the mean rests on, older ones counted less.
    pub weight: f64,
}

/// Hit ratio of a cache size.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct HitPoint {
    /// Cache of a pod.
    pub bytes: i64,
    /// Share that it answers.
    pub ratio: f64,
}

/// Working set = base + perImage · batch + 1.15 · cache, bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MemoryModel {
    /// Without images and cache.
    pub base_bytes: i64,
    /// What an image of a batch adds.
    pub per_image_bytes: i64,
}

/// The version of the pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RolloutStatus {
    /// Hash of the pod template.
    #[schemars(length(max = 64))]
    pub hash: String,
    /// Where the rollout stands: Complete, Progressing, or Waiting for those of other services.
    #[schemars(length(max = 32))]
    pub phase: String,
    /// Hash that was rolled back and is refused until the generation changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub rejected_hash: Option<String>,
}
