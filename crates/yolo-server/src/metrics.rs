//! Every series of the server: name, unit, help and label values (`yolo_` is prefixed to each name).
//!
//! Label values come from closed lists and all series exist from 0, so that a rate over the first event is right.
//! Figures that are derived from state (queue, cache, process) are set by the caller just before [`Metrics::encode`].

mod exposition;
mod gpu;
mod groups;
mod process;
mod tasks;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

pub use gpu::GpuMetrics;
pub use groups::{BatchMetrics, CacheMetrics, HttpMetrics, ImageMetrics, KnobMetrics, LifeMetrics, QueueMetrics};
pub use tasks::{StoreMetrics, TaskMetrics};

/// A counter of seconds or other fractions.
pub type FloatCounter = Counter<f64, AtomicU64>;
/// A gauge of seconds, ratios or bytes.
pub type FloatGauge = Gauge<f64, AtomicU64>;

/// Edges of latency histograms, seconds: ratio at most 1.3 around the usual thresholds of 0.1 and 0.2 s, where
/// quantiles are interpolated.
const LATENCY_EDGES_S: [f64; 36] = [
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.0175, 0.02, 0.025, 0.03, 0.035, 0.04, 0.05, 0.06, 0.07, 0.08,
    0.09, 0.1, 0.115, 0.13, 0.15, 0.175, 0.2, 0.23, 0.26, 0.3, 0.35, 0.4, 0.5, 0.6, 0.75, 1.0, 1.5, 2.5, 5.0,
];
/// Last latency edge; kept apart so that the table above stays one screen wide.
const LATENCY_LAST_EDGE_S: f64 = 10.0;
/// Edges of stage histograms, seconds.
const STAGE_EDGES_S: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Series of one metric that differ in one label.
type OneLabel<V, M> = Family<[(&'static str, V); 1], M, fn() -> M>;

/// A metric with one label from a closed list.
#[derive(Debug, Clone)]
pub struct Labelled<M> {
    label: &'static str,
    family: OneLabel<&'static str, M>,
}

impl<M: Clone> Labelled<M> {
    /// The metric of a label value.
    pub fn of(&self, value: &'static str) -> M {
        self.family.get_or_create_owned(&[(self.label, value)])
    }
}

/// A metric for each batch size that occurred.
#[derive(Debug, Clone)]
pub struct BySize<M>(OneLabel<usize, M>);

impl<M: Clone> BySize<M> {
    /// The metric of a batch size.
    pub fn of(&self, size: usize) -> M {
        self.0.get_or_create_owned(&[("size", size)])
    }

    /// The metric of a batch size, if one of it has occurred.
    pub fn existing(&self, size: usize) -> Option<M> {
        self.0.get(&[("size", size)]).map(|metric| M::clone(&metric))
    }
}

/// All series of one server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Requests and connections.
    pub http: HttpMetrics,
    /// Images, arrivals and stages.
    pub images: ImageMetrics,
    /// Batches, the service curve and workers.
    pub batch: BatchMetrics,
    /// GPUs.
    pub gpu: GpuMetrics,
    /// Values in force.
    pub knobs: KnobMetrics,
    /// Admission.
    pub queue: QueueMetrics,
    /// Result cache and its ghosts.
    pub cache: CacheMetrics,
    /// Asynchronous tasks.
    pub tasks: TaskMetrics,
    /// The store that all pods share.
    pub store: StoreMetrics,
    /// Readiness, model and build.
    pub life: LifeMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers every series in a registry of its own, so that several servers fit into one process.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::ProcessCollector::default()));
        let mut register = Registrar(registry.sub_registry_with_prefix("yolo"));
        let http = HttpMetrics::new(&mut register);
        let images = ImageMetrics::new(&mut register);
        let batch = BatchMetrics::new(&mut register);
        let gpu = GpuMetrics::new(&mut register);
        let knobs = KnobMetrics::new(&mut register);
        let queue = QueueMetrics::new(&mut register);
        let cache = CacheMetrics::new(&mut register);
        let tasks = TaskMetrics::new(&mut register);
        let store = StoreMetrics::new(&mut register);
        let life = LifeMetrics::new(&mut register);
        Self { registry, http, images, batch, gpu, knobs, queue, cache, tasks, store, life }
    }

    /// The exposition: OpenMetrics 1.0 if `open_metrics`, else the classic Prometheus text.
    pub fn encode(&self, open_metrics: bool) -> Result<String, std::fmt::Error> {
        let mut document = String::new();
        text::encode(&mut document, &self.registry)?;
        Ok(if open_metrics { document } else { exposition::classic(&document) })
    }
}

/// Creates a metric and registers it under its name.
struct Registrar<'a>(&'a mut Registry);

impl Registrar<'_> {
    fn metric<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    fn counter(&mut self, name: &str, help: &str) -> Counter {
        self.metric(name, help, Counter::default())
    }

    fn seconds_counter(&mut self, name: &str, help: &str) -> FloatCounter {
        self.metric(name, help, FloatCounter::default())
    }

    fn gauge(&mut self, name: &str, help: &str) -> FloatGauge {
        self.metric(name, help, FloatGauge::default())
    }

    fn counters(
        &mut self,
        (name, help): (&str, &str),
        label: &'static str,
        values: &[&'static str],
    ) -> Labelled<Counter> {
        self.labelled((name, help), label, values, Counter::default)
    }

    /// A family with one label whose series all exist from the start.
    fn labelled<M>(
        &mut self,
        (name, help): (&str, &str),
        label: &'static str,
        values: &[&'static str],
        make: fn() -> M,
    ) -> Labelled<M>
    where
        M: Clone,
        OneLabel<&'static str, M>: Metric + Clone,
    {
        let family = self.metric(name, help, Family::new_with_constructor(make));
        let labelled = Labelled { label, family };
        for value in values {
            labelled.of(value);
        }
        labelled
    }

    fn by_size<M>(&mut self, name: &str, help: &str, make: fn() -> M) -> BySize<M>
    where
        M: Clone,
        OneLabel<usize, M>: Metric + Clone,
    {
        BySize(self.metric(name, help, Family::new_with_constructor(make)))
    }
}

fn latency_histogram() -> Histogram {
    Histogram::new(LATENCY_EDGES_S.into_iter().chain([LATENCY_LAST_EDGE_S]))
}

fn stage_histogram() -> Histogram {
    Histogram::new(STAGE_EDGES_S)
}

/// Adds a duration to a counter of seconds.
pub fn add_seconds(counter: &FloatCounter, duration: Duration) {
    counter.inc_by(duration.as_secs_f64());
}

/// Observes a duration in a histogram of seconds.
pub fn observe_seconds(histogram: &Histogram, duration: Duration) {
    histogram.observe(duration.as_secs_f64());
}
