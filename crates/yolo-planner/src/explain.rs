//! Why a decision is as it is: data that status, Events and people's tools show without computing anything.

use serde::{Deserialize, Serialize};

use crate::observation::Knobs;
use crate::units::{Rate, Ratio, Seconds, Timestamp};

/// Everything behind one decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The decision in a sentence, with numbers and units.
    pub reason: String,
    /// What the pods do now.
    pub load: Load,
    /// What is expected to arrive.
    pub forecast: Forecast,
    /// What the pods can carry.
    pub capacity: Capacity,
    /// What the choice had to satisfy.
    pub constraints: Vec<Constraint>,
    /// The best settings found, the chosen one first.
    pub best3: Vec<Candidate>,
    /// What would make the targets feasible; empty while they are.
    pub relaxations: Vec<Relaxation>,
    /// Targets that cannot hold together, whatever the load and the number of pods.
    pub conflict: Option<Conflict>,
    /// The target rows, in the order of the custom resource.
    pub targets: Vec<TargetRow>,
    /// Rows that are met, over all that apply: "5/5".
    pub targets_summary: String,
    /// The likeliest bottlenecks, at most two, the first one to show.
    pub bottlenecks: Vec<Bottleneck>,
    /// What would help.
    pub advice: Vec<Advice>,
    /// The conditions that the planner can judge.
    pub conditions: Conditions,
}

/// What the pods do now, over the targets' window.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Load {
    /// Arrivals.
    pub images_per_second: Rate,
    /// Refused or expired.
    pub shed_per_second: Rate,
    /// Share answered from the cache; `None` while it is off.
    pub hit_ratio: Option<Ratio>,
    /// Response time, at the percentile of its target (p95 without one).
    pub p95: Option<Seconds>,
}

/// What is expected to arrive.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Forecast {
    /// Arrivals now.
    pub level: Rate,
    /// Which forecast was used.
    pub expert: Expert,
    /// Factor that covers the forecast's past errors.
    pub q: Ratio,
    /// Share of the forecasts that may be exceeded.
    pub a: Ratio,
    /// Images that wait beyond one batch a pod.
    pub backlog: f64,
    /// The rate that pods are ordered for.
    pub plan: Rate,
    /// How far ahead: until a pod ordered now serves.
    pub horizon: Seconds,
}

/// Which forecast was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Expert {
    /// The level stays.
    #[default]
    Level,
    /// A straight line.
    Trend,
    /// What came at this time before.
    Seasonal,
}

/// What the pods can carry, at the desired batch size.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Capacity {
    /// A pod's rate when it never idles.
    pub mu_sat: Rate,
    /// A pod's rate within the latency target.
    pub mu_star: Rate,
    /// Share of `mu_sat` that the desired pods may use together.
    pub f_c: Ratio,
    /// Correction from measured latency.
    pub kappa: Ratio,
    /// What the ready pods carry within the targets.
    pub ready: Rate,
    /// What the desired pods will carry.
    pub desired: Rate,
}

/// One thing that the choice had to satisfy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Constraint {
    /// Which.
    pub kind: ConstraintKind,
    /// The value under the desired knobs, in the kind's unit.
    pub value: f64,
    /// Its limit, in the same unit.
    pub limit: f64,
    /// Whether it decided the choice.
    pub binding: bool,
}

/// Which constraint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConstraintKind {
    /// Rate that the pods carry ≥ planned arrivals that miss the cache, images/s.
    Capacity,
    /// Upper bound of a batch's time ≤ inference threshold, seconds.
    InferenceLatency,
    /// Overhead and one batch ≤ API threshold, seconds.
    ApiLatency,
    /// Working set ≤ 90 % of the memory target or limit, bytes.
    Memory,
    /// Rate at `replicas.max` ≥ throughput target, images/s.
    Throughput,
    /// Pods ≥ `replicas.min`.
    ReplicasMin,
    /// Pods ≤ `replicas.max`.
    ReplicasMax,
    /// A pod's rate ≤ 85 % of what its CPU quota allows, images/s.
    CpuQuota,
    /// Time of one image in the engine that a quicker model or device would have to have, seconds.
    OneImage,
}

/// A setting and its price.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The setting.
    pub knobs: Knobs,
    /// Its price in pods.
    pub cost: f64,
}

/// The least change of one limit that alone makes the targets feasible.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Relaxation {
    /// The limit.
    pub kind: ConstraintKind,
    /// Its new value, in the kind's unit.
    pub value: f64,
    /// As a person reads it: "replicas.max ≥ 14".
    pub sentence: String,
}

/// Two targets that exclude each other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conflict {
    /// Which.
    pub targets: [TargetName; 2],
    /// For each the value, in its unit, at which it could hold with the other one as it is.
    pub possible: [f64; 2],
    /// As a person reads it.
    pub sentence: String,
}

/// One target and how it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetRow {
    /// Which.
    pub name: TargetName,
    /// The threshold, in the target's unit: seconds, images/s, bytes or a ratio.
    pub threshold: f64,
    /// The observed or predicted value, in the same unit.
    pub observed: Option<f64>,
    /// Distance to the threshold over the threshold; positive is good.
    pub margin: Option<f64>,
    /// How it stands.
    pub verdict: Verdict,
    /// More about the verdict.
    pub reason: RowReason,
    /// Since when the verdict is what it is.
    pub since: Timestamp,
}

/// Which target; named as in the custom resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TargetName {
    /// Engine time of an image's batch.
    InferenceLatency,
    /// Response time.
    ApiLatency,
    /// Images a second.
    Throughput,
    /// Working set of a pod.
    MemoryPerWorker,
    /// Share of time in which the GPU is busy.
    GpuUtilization,
    /// Share of the images that are answered.
    Availability,
}

/// How a target stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// More about a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowReason {
    /// Measured over the window.
    Measured,
    /// Not a whole window yet.
    Measuring,
    /// No traffic, so the model's figure.
    NoTraffic,
    /// Busy less than asked, but with the fewest pods that the other targets allow.
    AtFloor,
    /// What is offered is served, and `replicas.max` would reach the target.
    Reachable,
    /// Even `replicas.max` would not reach it.
    BeyondMaximum,
    /// Not all that is offered is served.
    NotServed,
    /// No GPU here.
    NoGpu,
    /// No usable sample.
    NoData,
}

/// What limits the service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bottleneck {
    /// Which.
    pub kind: BottleneckKind,
    /// 0..=1.
    pub confidence: Ratio,
    /// The figures that say so.
    pub evidence: Vec<Evidence>,
}

/// One figure and the limit that it passed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// What, with its unit.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// The limit.
    pub limit: f64,
}

/// What can limit a service (control.md §9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BottleneckKind {
    /// Nothing can be measured.
    NoMetrics,
    /// The model is loaded more often than pods start.
    ModelReload,
    /// Ready pods carry less than arrives.
    CapacityShort,
    /// Decoding and preparing pictures, or the CPU quota.
    CpuPreprocess,
    /// The GPU waits for pictures.
    GpuStarved,
    /// Too few workers for the cores.
    ConcurrencyLimited,
    /// Batches smaller than pays.
    SmallBatches,
    /// Batches larger than pays.
    BatchTooLarge,
    /// One image alone takes too long.
    InferenceTooSlow,
    /// The device became slower.
    DeviceSlowed,
    /// Uploads take long.
    NetworkUpload,
    /// Time outside the engine.
    ApiOverhead,
    /// Pods get unequal shares.
    Imbalance,
    /// One pod is slower than the others.
    Straggler,
    /// Memory is short.
    MemoryPressure,
    /// A larger cache would pay.
    CacheTooSmall,
    /// The cache does not pay.
    CacheUseless,
    /// Arrivals come in bursts.
    Bursty,
    /// Fewer pods would do, but `replicas.min` holds them.
    OverProvisioned,
    /// Nothing: the targets are met.
    None,
}

/// What would help.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Advice {
    /// Which.
    pub id: AdviceId,
    /// How urgent.
    pub severity: Severity,
    /// What is the matter.
    pub message: String,
    /// What to do.
    pub action: String,
    /// What it would bring, with numbers.
    pub predicted: String,
    /// The pods that it is about, where it is about some of them.
    pub pods: Vec<u64>,
}

/// Which advice (control.md §9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdviceId {
    /// Make metrics reachable.
    FixMetrics,
    /// Load the model once.
    LoadModelOnce,
    /// More pods (the planner orders them).
    AddReplicas,
    /// A greater `replicas.max`.
    RaiseMaxReplicas,
    /// A lesser `replicas.min`.
    LowerMinReplicas,
    /// Larger batches.
    RaiseBatch,
    /// Smaller batches.
    LowerBatch,
    /// Do not wait for batches to fill.
    DropQueueDelay,
    /// More CPU a pod.
    RaiseCpu,
    /// More workers a pod.
    RaiseConcurrency,
    /// Asynchronous calls.
    UseAsync,
    /// fp16 or int8.
    LowerPrecision,
    /// Share the GPU.
    ShareGpu,
    /// A smaller model.
    SmallerModel,
    /// Smaller pictures into the model.
    SmallerInput,
    /// Faster hardware.
    FasterHardware,
    /// A looser target.
    RelaxTarget,
    /// Look at the device.
    CheckDevice,
    /// Resize before sending.
    ResizeAtClient,
    /// Better balancing.
    UseLeastOutstanding,
    /// Remove a slow pod.
    EjectPod,
    /// More memory a pod.
    RaiseMemory,
    /// Less cache.
    ShrinkCache,
    /// A cache.
    EnableCache,
    /// A larger cache.
    EnlargeCache,
    /// No cache.
    DisableCache,
    /// A shorter start.
    FasterStart,
    /// A greater `replicas.min`.
    RaiseMinReplicas,
}

/// How urgent an advice is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Severity {
    /// Good to know.
    Info,
    /// A target is near its limit, or money is wasted.
    Warning,
    /// A target is missed or cannot be met.
    Critical,
}

/// The conditions that the planner can judge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// The targets hold.
    pub targets_met: Condition,
    /// The targets can hold at the planned load.
    pub targets_feasible: Condition,
    /// Samples are usable.
    pub metrics_available: Condition,
    /// The planner moves the knobs.
    pub scaling_active: Condition,
    /// Something keeps the knobs from where they should be.
    pub scaling_limited: Condition,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// True, False or Unknown.
    pub status: Tristate,
    /// Machine-readable.
    pub reason: ConditionReason,
    /// A sentence.
    pub message: String,
}

/// True, False or Unknown, as Kubernetes conditions are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Tristate {
    /// Yes.
    True,
    /// No.
    False,
    /// Not known.
    #[default]
    Unknown,
}

/// Closed set of condition reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConditionReason {
    /// Every row that applies is met or predicted.
    AllMet,
    /// A row has been missed for a whole window.
    TargetMissed,
    /// Not a whole window since the policy changed.
    Measuring,
    /// Nothing usable was ever seen.
    NoData,
    /// What was seen is too old, or covers too few pods.
    Stale,
    /// Samples are fresh.
    Fresh,
    /// Fresh, but not from all pods.
    Partial,
    /// The targets can hold.
    Feasible,
    /// `replicas.max` is too small.
    ReplicasMax,
    /// One image takes longer than the inference threshold.
    InferenceTooSlow,
    /// Time outside the engine leaves too little of the API threshold.
    ApiOverhead,
    /// Model and batch do not fit into memory.
    MemoryShort,
    /// How long a batch takes is not known yet.
    CurveUnknown,
    /// The planner moves the knobs.
    Active,
    /// Paused.
    Paused,
    /// All knobs are off.
    ModeOff,
    /// The planner only recommends.
    ModeRecommend,
    /// Somebody else scales the service.
    OtherManager,
    /// Nothing limits.
    NotLimited,
    /// More is needed than the range allows.
    AtMaximum,
    /// Less is needed than the range allows.
    AtMinimum,
    /// Nodes have no room.
    Unschedulable,
    /// The model does not fit what is measured.
    ModelDegraded,
}
