//! What was seen: pods with their samples, the knobs as they are, and who else is at the wheel.
//!
//! A sample holds increases of counters over its `span` and gauges at its end. Everything has a default of "nothing
//! happened", so that a source fills what it has.

use serde::{Deserialize, Serialize};

use crate::histogram::Histogram;
use crate::policy::Policy;
use crate::units::{
    BatchSize, Bytes, Cores, Count, Ratio, Replicas, Seconds, SecondsSquared, Timestamp, whole_millis, whole_seconds,
};

/// One look at a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// All pods of the service, in any order.
    pub pods: Vec<Pod>,
    /// A named latency source in front of the pods; [`Signal::NoData`] where none is configured.
    pub entry: Signal<Entry>,
    /// The knobs of the live objects.
    pub current: Knobs,
    /// Ready pods that report the current knobs' generation.
    pub applied_pods: u32,
    /// Somebody else scales the service.
    pub other_manager: bool,
    /// A rollout is under way.
    pub rolling: bool,
}

impl Observation {
    /// Nothing seen yet but the knobs.
    pub const fn new(current: Knobs) -> Self {
        Self {
            pods: Vec::new(),
            entry: Signal::NoData(NoData::NeverSeen),
            current,
            applied_pods: 0,
            other_manager: false,
            rolling: false,
        }
    }
}

/// The three knobs and what goes with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knobs {
    /// Pods.
    pub replicas: Replicas,
    /// Largest batch.
    pub max_batch_size: BatchSize,
    /// How long a batch waits to fill.
    pub max_queue_delay_micros: u64,
    /// Result cache of a pod.
    pub cache_bytes: Bytes,
    /// Age at which a cached answer dies.
    pub cache_ttl_seconds: u64,
    /// Longest wait before a batch starts.
    pub deadline_millis: u64,
}

impl Knobs {
    /// What a new service starts with: the fewest pods, batches of 4 or the nearest allowed size, the least cache.
    ///
    /// 4: large enough that a device with a batch gain shows it in its first samples, small enough to keep t(b) within
    /// usual thresholds until the curve is known.
    pub fn initial(policy: &Policy) -> Self {
        let batch = BatchSize::try_from(4).unwrap_or_default();
        Self {
            replicas: policy.replicas.min,
            max_batch_size: policy.batch.clamp(batch),
            max_queue_delay_micros: 0,
            cache_bytes: policy.cache.min,
            cache_ttl_seconds: whole_seconds(policy.cache_ttl),
            deadline_millis: whole_millis(policy.overload.queue_timeout.get()),
        }
    }
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pod {
    /// Stable while the pod lives.
    pub id: u64,
    /// Pods of one class run the same model, image and hardware.
    pub class: u32,
    /// Where in its life it is.
    pub phase: Phase,
    /// When the object was created.
    pub created: Timestamp,
    /// When it first became ready.
    pub ready: Option<Timestamp>,
    /// When its container was last killed for memory.
    pub oom_killed: Option<Timestamp>,
    /// Its newest sample.
    pub sample: Signal<Sample>,
}

/// Where in its life a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// On its way.
    Pending,
    /// No node has room for it.
    Unschedulable,
    /// Serving.
    Ready,
    /// Ending.
    Draining,
}

/// A value that may be missing or old: three states with three different answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Signal<T> {
    /// Nothing usable.
    NoData(NoData),
    /// The last usable value is too old to act on.
    Stale {
        /// That value.
        last: T,
        /// Its age.
        age: Seconds,
    },
    /// Fresh.
    Live {
        /// The value.
        value: T,
        /// Its age.
        age: Seconds,
    },
}

impl<T> Signal<T> {
    /// The value if it is fresh.
    pub const fn live(&self) -> Option<&T> {
        match self {
            Self::Live { value, .. } => Some(value),
            Self::NoData(_) | Self::Stale { .. } => None,
        }
    }
}

/// Why there is no data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoData {
    /// Not yet seen, or seen only once (a counter needs two looks).
    NeverSeen,
    /// The source did not answer.
    Unreachable,
    /// The source answered with something that is no number.
    NotANumber,
    /// A counter fell: the process restarted between two looks.
    CounterReset,
}

/// A latency source in front of the pods, such as an ingress.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Entry {
    /// Images that entered.
    pub arrivals: u64,
    /// Over this time.
    pub span: Seconds,
    /// Response times there.
    pub api: Histogram,
}

/// What one pod did over `span`, and how it stood at `until`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// End of the sample; each end is used once.
    pub until: Timestamp,
    /// Its length.
    pub span: Seconds,
    /// Images that arrived, shed ones too, without marked retries.
    pub arrivals: u64,
    /// Images of asynchronous tasks that arrived.
    pub task_arrivals: u64,
    /// Arrivals by closed bins of one second.
    pub per_second: PerSecond,
    /// Images answered, from the engine or the cache.
    pub done: u64,
    /// Images refused or expired for overload.
    pub shed: u64,
    /// Images that failed, client errors not counted.
    pub errors: u64,
    /// Engine calls by batch size.
    pub batches: Vec<BatchCount>,
    /// Engine time of each image's batch.
    pub inference: Histogram,
    /// Request bodies.
    pub body_bytes: Bytes,
    /// Where the time went.
    pub stages: Stages,
    /// Response times of successful answers.
    pub api: Histogram,
    /// Response time less queue and inference.
    pub overhead: Histogram,
    /// Time to read the request.
    pub read: Histogram,
    /// Result cache.
    pub cache: CacheCounts,
    /// What other cache sizes would have hit.
    pub ghosts: Ghosts,
    /// Loads of the model.
    pub model_loads: u64,
    /// CPU time of the pod.
    pub cpu_seconds: Seconds,
    /// Time spent loading models.
    pub load_seconds: Seconds,
    /// Scheduler periods of the CPU quota.
    pub cpu_periods: u64,
    /// Those in which the pod was throttled.
    pub cpu_throttled: u64,
    /// Images in the pod now.
    pub inflight: u64,
    /// Images that wait for the engine now.
    pub queued: u64,
    /// Images of tasks that wait now.
    pub task_queue: u64,
    /// Working set.
    pub rss: Bytes,
    /// Memory limit; zero: unknown or none.
    pub memory_limit: Bytes,
    /// CPU quota; zero: unknown or none.
    pub cpu_quota: Cores,
    /// Bytes in the result cache.
    pub cache_bytes: Bytes,
    /// Knobs as the pod runs them.
    pub applied: Applied,
    /// Batch size that the server forms at most, as it learned what pays.
    pub b_eff: BatchSize,
    /// Parallel inference sessions.
    pub workers: u32,
    /// The curve as the server timed it at idle.
    pub curve: Vec<CurvePoint>,
    /// GPU figures, where there is one.
    pub gpu: Option<GpuLoad>,
}

/// Arrivals in closed bins of one second: number, sum and sum of squares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PerSecond {
    /// Bins.
    pub n: u64,
    /// Images in them.
    pub sum: u64,
    /// Sum of their squares.
    pub sum_sq: u64,
}

/// Engine calls of one batch size.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct BatchCount {
    /// Images a call.
    pub size: BatchSize,
    /// Calls.
    pub count: u64,
    /// Their time.
    pub seconds: Seconds,
    /// Sum of their squared times.
    pub seconds_squared: SecondsSquared,
}

/// The stages of a request.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Stages {
    /// Reading the body.
    pub read: Stage,
    /// Hashing it for the cache.
    pub hash: Stage,
    /// Decoding the picture.
    pub decode: Stage,
    /// Letterbox and tensor.
    pub preprocess: Stage,
    /// The engine.
    pub inference: Stage,
    /// Boxes from the output.
    pub postprocess: Stage,
    /// Writing the answer.
    pub encode: Stage,
}

impl Stages {
    /// All of them, in the order of a request.
    pub(crate) const fn all(&self) -> [Stage; 7] {
        [self.read, self.hash, self.decode, self.preprocess, self.inference, self.postprocess, self.encode]
    }
}

/// One stage.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Stage {
    /// Time spent.
    pub seconds: Seconds,
    /// Passes.
    pub count: u64,
    /// Parallel workers.
    pub workers: u32,
    /// Items that wait now.
    pub queued: u32,
}

/// Result cache counters, in images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CacheCounts {
    /// Answered from the cache, or together with an equal request under way.
    pub hits: u64,
    /// Looked up in vain.
    pub misses: u64,
    /// Pushed out.
    pub evictions: u64,
}

/// Value-less caches of other sizes, fed with a hash-sampled share of the references (SHARDS).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Ghosts {
    /// Sampled references.
    pub refs: u64,
    /// References that sampling should have taken: the sampling rate summed over all references.
    pub expected: Count,
    /// By cache size.
    pub sizes: Vec<GhostSize>,
}

/// Hits that one cache size would have had among the sampled references.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GhostSize {
    /// Full (unsampled) cache size.
    pub bytes: Bytes,
    /// Hits.
    pub hits: u64,
}

/// Knobs as a pod runs them.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Applied {
    /// Largest batch.
    pub batch: BatchSize,
    /// Wait for a batch to fill.
    pub delay: Seconds,
    /// Cache size.
    pub cache: Bytes,
    /// Generation of the knobs document.
    pub generation: u64,
}

/// One size of the curve that a server timed at idle.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Images a call.
    pub size: BatchSize,
    /// Mean time of a call.
    pub mean: Seconds,
    /// 95th percentile of it.
    pub p95: Seconds,
}

/// How busy a pod's GPU was.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct GpuLoad {
    /// Share of time in which some kernel ran.
    pub duty: Ratio,
    /// Share of the multiprocessors that were active.
    pub sm_active: Option<Ratio>,
}
