//! One pod: its queue, its running batches, and what its metrics would have counted.

use std::collections::VecDeque;

use yolo_planner::Knobs;
use yolo_planner::units::BatchSize;

use crate::cache::{CacheCounters, PodCache};

/// Largest batch, and with it the last index of [`Counters::batches`].
pub const BATCH_MAX: usize = BatchSize::MAX.get() as usize;

/// Upper edges of the server's latency histograms, seconds (docs/metrics.md); +Inf is one more.
pub const LATENCY_EDGES_S: [f64; 37] = [
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.0175, 0.02, 0.025, 0.03, 0.035, 0.04, 0.05, 0.06, 0.07, 0.08,
    0.09, 0.1, 0.115, 0.13, 0.15, 0.175, 0.2, 0.23, 0.26, 0.3, 0.35, 0.4, 0.5, 0.6, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0,
];

/// The bucket of a latency.
pub fn bucket(seconds: f64) -> usize {
    LATENCY_EDGES_S.partition_point(|edge| *edge < seconds)
}

/// Counts by bucket, not cumulative.
pub type Buckets = [u64; LATENCY_EDGES_S.len() + 1];

/// Calls of one batch size.
#[derive(Debug, Clone, Copy, Default)]
pub struct Calls {
    /// How many.
    pub count: u64,
    /// Their time.
    pub seconds: f64,
    /// Sum of their squared times.
    pub squared: f64,
}

/// What a pod counted since it was last read.
#[derive(Debug, Clone)]
pub struct Counters {
    /// Images routed to it.
    pub arrivals: u64,
    /// Images of the present second.
    pub bin: u64,
    /// Closed bins of a second: number, sum, sum of squares.
    pub bins: (u64, u64, u64),
    /// Images answered.
    pub done: u64,
    /// Images that waited too long.
    pub shed: u64,
    /// Engine calls by batch size; index 0 is not used.
    pub batches: [Calls; BATCH_MAX + 1],
    /// Engine time of each image's batch.
    pub inference: Buckets,
    /// Response times.
    pub api: Buckets,
    /// Response times less queue and engine.
    pub overhead: Buckets,
    /// Sum of those.
    pub overhead_s: f64,
    /// Sum over images of their batch's time.
    pub inference_s: f64,
    /// Images that passed the stage before the queue, and the time they were worked on there.
    pub prepared: (u64, f64),
    /// Times that the model was loaded.
    pub loads: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            arrivals: 0,
            bin: 0,
            bins: (0, 0, 0),
            done: 0,
            shed: 0,
            batches: [Calls::default(); BATCH_MAX + 1],
            inference: [0; LATENCY_EDGES_S.len() + 1],
            api: [0; LATENCY_EDGES_S.len() + 1],
            overhead: [0; LATENCY_EDGES_S.len() + 1],
            overhead_s: 0.0,
            inference_s: 0.0,
            prepared: (0, 0.0),
            loads: 0,
        }
    }
}

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Ordered, not serving yet.
    Starting,
    /// Serving.
    Ready,
    /// Finishing what it has.
    Draining,
    /// Gone.
    Ended,
}

/// A batch that runs.
#[derive(Debug, Clone, Default)]
pub struct Worker {
    /// Moments of arrival of its images; empty while idle.
    pub items: Vec<f64>,
    /// How long it takes.
    pub takes_s: f64,
}

/// One pod.
#[derive(Debug)]
pub struct Pod {
    /// When it was ordered.
    pub created_s: f64,
    /// When it serves (or will).
    pub ready_s: f64,
    /// Where in its life it is.
    pub life: Life,
    /// Its place among those that get requests.
    pub seat: usize,
    /// Moments of arrival of the images that wait, oldest first.
    pub queue: VecDeque<f64>,
    /// One a session.
    pub workers: Vec<Worker>,
    /// When it looks at its queue next without another reason.
    pub wake_s: f64,
    /// Factor on a batch's time.
    pub slowdown: f64,
    /// When each worker of the stage before the queue is free.
    pub prepare_free_s: Vec<f64>,
    /// Images in that stage.
    pub preparing: u32,
    /// Since the last reading.
    pub counters: Counters,
    /// The result cache, where pictures repeat.
    pub cache: Option<PodCache>,
    /// Its counters at the last reading.
    pub cache_read: CacheCounters,
    /// When it was last read, if ever.
    pub read_s: Option<f64>,
    /// Its metrics cannot be read.
    pub silent: bool,
    /// The knobs that it runs.
    pub knobs: Knobs,
}

impl Pod {
    /// Images in it: in the stage before the queue, waiting and running.
    pub fn inflight(&self) -> u32 {
        let running: usize = self.workers.iter().map(|worker| worker.items.len()).sum();
        self.preparing + (self.queue.len() + running) as u32
    }

    /// Whether it counts as a replica.
    pub const fn is_replica(&self) -> bool {
        matches!(self.life, Life::Starting | Life::Ready)
    }

    /// Closes the present second's bin.
    pub const fn close_bin(&mut self) {
        let counters = &mut self.counters;
        counters.bins.0 += 1;
        counters.bins.1 += counters.bin;
        counters.bins.2 += counters.bin * counters.bin;
        counters.bin = 0;
    }
}
