//! The environment that no scaler decides: hardware, routing, start-up, metrics, faults.

use yolo_planner::Knobs;
use yolo_planner::units::{BatchSize, Bytes, Replicas};

use crate::fleet::Routing;
use crate::pictures::Popularity;
use crate::service::Service;

/// The environment of one run.
#[derive(Debug, Clone)]
pub struct World {
    /// The pods.
    pub service: Service,
    /// The balancer.
    pub routing: Routing,
    /// From order to ready.
    pub startup_s: f64,
    /// Response time that 95 % of a window's requests must not exceed.
    pub slo_s: f64,
    /// Most pods.
    pub replicas_max: u32,
    /// The knobs at the start.
    pub initial: Knobs,
    /// How long the first pods have served before the run begins.
    pub served_s: f64,
    /// Nothing before it is judged or paid: a multiple of a minute.
    pub warmup_s: f64,
    /// Pictures that repeat; without it there is no cache.
    pub pictures: Option<Popularity>,
    /// How pods are read.
    pub metrics: Metrics,
    /// What is broken.
    pub faults: Faults,
}

/// How pods are read.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    /// Interval between two readings of a pod, whole seconds.
    pub scrape_s: u32,
    /// Share of the pods that cannot be read.
    pub silent_share: f64,
    /// No pod can be read from..until.
    pub blind_s: Option<(f64, f64)>,
}

impl Default for Metrics {
    fn default() -> Self {
        // The operator's own interval between rounds (src/sampler.rs; a test of the root package holds the two equal).
        Self { scrape_s: SCRAPE_S, silent_share: 0.0, blind_s: None }
    }
}

/// The operator's interval between two readings of a pod.
pub const SCRAPE_S: u32 = 5;

/// What is broken from the start.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Faults {
    /// A batch takes so much longer from this moment on: moment and factor.
    pub slowed: Option<(f64, f64)>,
    /// A stage before the queue that has its own workers: their number and the time an image takes.
    pub prepare: Option<(u32, f64)>,
    /// Share of the scheduler periods in which the CPU quota throttled.
    pub throttled_share: f64,
    /// CPU quota of a pod, cores; 0: none.
    pub quota_cores: f64,
    /// Time to read a request's body.
    pub read_s: f64,
    /// Loads of the model, a second and pod, and the time of one.
    pub reloads: (f64, f64),
    /// Share of the requests whose kept connections all lead to one pod.
    pub sticky_share: f64,
    /// Memory limit of a pod, bytes; 0: the usual one.
    pub memory_limit: u64,
}

impl World {
    /// Pods of `service` under a balancer by least outstanding requests, as in control.md's simulations: a target of
    /// 200 ms, a start-up of 30 s, and `replicas` pods at the start.
    pub fn new(service: Service, replicas: u32) -> Self {
        let batch = BatchSize::try_from(service.batch).unwrap_or_default();
        let slo_s = 0.2;
        let spare_s = slo_s - service.overhead_s - 1.05 * service.batch_s(service.batch);
        let initial = Knobs {
            replicas: Replicas::new(replicas.max(1)),
            max_batch_size: batch,
            max_queue_delay_micros: 0,
            cache_bytes: Bytes::default(),
            cache_ttl_seconds: 3600,
            deadline_millis: (spare_s * 1e3) as u64,
        };
        Self {
            service,
            routing: Routing::LeastOutstanding,
            startup_s: 30.0,
            slo_s,
            replicas_max: 1000,
            initial,
            served_s: 600.0,
            warmup_s: 300.0,
            pictures: None,
            metrics: Metrics::default(),
            faults: Faults::default(),
        }
    }
}
