//! The series by topic. Names and meanings: the metrics contract between server and operator.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::{BySize, FloatCounter, FloatGauge, Labelled, Registrar, latency_histogram, stage_histogram};

/// Endpoint label values.
const ENDPOINTS: [&str; 6] = ["predict", "batch", "async", "task", "v2", "other"];
/// Whether a client waits for the image.
const SOURCES: [&str; 2] = ["sync", "async"];
/// Status codes that the server answers; anything else is counted as `other`.
const STATUS_CODES: [&str; 20] = [
    "200", "202", "400", "404", "405", "408", "409", "410", "413", "414", "415", "422", "429", "431", "499", "500",
    "501", "503", "504", "other",
];

/// Requests and connections.
#[derive(Debug, Clone)]
pub struct HttpMetrics {
    requests: Family<[(&'static str, &'static str); 2], Counter>,
    /// Last request byte to last response byte, by outcome.
    pub duration: Labelled<Histogram>,
    /// Bytes of request bodies.
    pub body_bytes: Counter,
    /// Requests being served.
    pub in_flight: Gauge,
    /// Total less queue and inference.
    pub overhead: Histogram,
}

impl HttpMetrics {
    pub(super) fn new(register: &mut Registrar<'_>) -> Self {
        let requests: Family<[(&'static str, &'static str); 2], Counter> =
            register.metric("http_requests", "Answered requests by endpoint and status", Family::default());
        for endpoint in ENDPOINTS {
            for code in STATUS_CODES {
                requests.get_or_create_owned(&[("endpoint", endpoint), ("code", code)]);
            }
        }
        Self {
            requests,
            duration: register.labelled(
                ("http_request_duration_seconds", "Last request byte received to last response byte, predictions only"),
                "outcome",
                &["ok", "shed", "client_error", "server_error"],
                latency_histogram,
            ),
            body_bytes: register
                .counter("http_request_body_bytes", "Bytes of request bodies, as they came over the wire"),
            in_flight: register.metric("http_requests_in_flight", "Requests being served", Gauge::default()),
            overhead: register.metric(
                "request_overhead_seconds",
                "Duration of a prediction less its queue and inference time",
                stage_histogram(),
            ),
        }
    }

    /// Counts an answered request.
    pub fn count(&self, endpoint: &'static str, status: u16) {
        let status = status.to_string();
        let code = STATUS_CODES.into_iter().find(|code| *code == status).unwrap_or("other");
        self.requests.get_or_create_owned(&[("endpoint", endpoint), ("code", code)]).inc();
    }
}

/// Images, arrivals and stages.
#[derive(Debug, Clone)]
pub struct ImageMetrics {
    /// Images being served.
    pub in_flight: Gauge,
    /// Images offered, shed ones too.
    pub arrivals: Counter,
    /// Images that a client offered again.
    pub retries: Counter,
    /// Closed one-second bins: number, sum and sum of squares of their images.
    pub arrival_bins: [Counter; 3],
    /// Images by outcome.
    images: Family<[(&'static str, &'static str); 2], Counter>,
    /// Time of an image in each stage.
    pub stage: Labelled<Histogram>,
    /// Threads of a stage.
    pub stage_workers: Labelled<Gauge>,
    /// Images that wait for a stage.
    pub stage_queued: Labelled<Gauge>,
    /// Engine time of an image's batch, once an image.
    pub inference_duration: Histogram,
    /// Detections returned.
    pub detections: Counter,
    /// Images whose batch began after they had to be started.
    pub started_late: Counter,
    /// Images past their deadline, by where they were.
    pub deadline_exceeded: Labelled<Counter>,
    /// Images whose client left, by where they were.
    pub cancelled: Labelled<Counter>,
    /// Images refused, by reason.
    pub rejected: Labelled<Counter>,
}

impl ImageMetrics {
    pub(super) fn new(register: &mut Registrar<'_>) -> Self {
        let places = &["queue", "running"];
        let pools = &["decode", "inference"];
        let images: Family<[(&'static str, &'static str); 2], Counter> =
            register.metric("images", "Images by outcome and source", Family::default());
        for outcome in ["ok", "cached", "coalesced", "rejected", "expired", "cancelled", "failed", "bad_image"] {
            for source in SOURCES {
                images.get_or_create_owned(&[("outcome", outcome), ("source", source)]);
            }
        }
        let stages = &["read", "hash", "decode", "preprocess", "queue", "inference", "postprocess", "encode"];
        Self {
            in_flight: register.metric("images_in_flight", "Images being served", Gauge::default()),
            arrivals: register.counter("arrivals", "Images offered, shed ones too, retries not"),
            retries: register.counter("retries", "Images that a client offered again"),
            arrival_bins: [
                register.counter("arrival_bins", "Closed bins of one second"),
                register.counter("arrival_bin_images", "Sum of the images of the closed bins"),
                register.counter("arrival_bin_images_squared", "Sum of the squared images of the closed bins"),
            ],
            images,
            stage: register.labelled(
                ("stage_duration_seconds", "Time of an image in a stage"),
                "stage",
                stages,
                stage_histogram,
            ),
            stage_workers: register.labelled(("stage_workers", "Threads of a stage"), "stage", pools, Gauge::default),
            stage_queued: register.labelled(
                ("stage_queued", "Images that wait for a stage"),
                "stage",
                pools,
                Gauge::default,
            ),
            inference_duration: register.metric(
                "inference_duration_seconds",
                "Engine time of an image's batch, observed once an image",
                latency_histogram(),
            ),
            detections: register.counter("detections", "Detections returned"),
            started_late: register.counter("images_started_late", "Images whose batch began after their deadline"),
            deadline_exceeded: register.counters(("deadline_exceeded", "Images past their deadline"), "where", places),
            cancelled: register.counters(("cancelled", "Images whose client left"), "where", places),
            rejected: register.counters(
                ("rejected", "Images refused"),
                "reason",
                &["queue_full", "predicted_late", "draining", "starting", "payload", "connections"],
            ),
        }
    }

    /// Counts an image of a request that somebody waits for (`sync`) or of a task (`async`).
    pub fn count(&self, source: &'static str, outcome: &'static str) {
        self.images.get_or_create_owned(&[("outcome", outcome), ("source", source)]).inc();
    }
}

/// Batches, the service curve and workers.
#[derive(Debug, Clone)]
pub struct BatchMetrics {
    /// Batches run.
    pub batches: BySize<Counter>,
    /// Their engine time.
    pub seconds: BySize<FloatCounter>,
    /// Sum of the squares of their engine time.
    pub seconds_squared: BySize<FloatCounter>,
    /// Images in them.
    pub images: Counter,
    curve: Family<CurveLabels, FloatGauge>,
    /// Sessions.
    pub workers: Gauge,
    /// Time that workers spent on batches.
    pub busy: FloatCounter,
    /// Images a second that the workers sustain at the effective batch.
    pub max_throughput: FloatGauge,
    /// Failed engine runs.
    pub engine_errors: Counter,
}

type CurveLabels = [(&'static str, std::borrow::Cow<'static, str>); 2];

impl BatchMetrics {
    pub(super) fn new(register: &mut Registrar<'_>) -> Self {
        Self {
            batches: register.by_size("batches", "Batches run by size", Counter::default),
            seconds: register.by_size("batch_seconds", "Engine time of batches by size", FloatCounter::default),
            seconds_squared: register.by_size(
                "batch_seconds_squared",
                "Sum of the squared engine times of batches by size",
                FloatCounter::default,
            ),
            images: register.counter("batched_images", "Images in batches"),
            curve: register.metric(
                "batch_curve_seconds",
                "Engine time of a batch, timed at idle, by size",
                Family::default(),
            ),
            workers: register.metric("workers", "Inference sessions", Gauge::default()),
            busy: register.seconds_counter("worker_busy_seconds", "Time that the workers spent on batches"),
            max_throughput: register.gauge(
                "max_throughput_images_per_second",
                "Images a second that the workers sustain at the effective batch size",
            ),
            engine_errors: register.counter("engine_errors", "Failed engine runs"),
        }
    }

    /// Forgets the curve: it was another model's.
    pub fn clear_curve(&self) {
        self.curve.clear();
    }

    /// Publishes a point of the curve that was timed at idle.
    pub fn set_curve(&self, size: usize, mean_s: f64, p95_s: f64) {
        for (stat, value) in [("mean", mean_s), ("p95", p95_s)] {
            let labels = [("size", size.to_string().into()), ("stat", stat.into())];
            self.curve.get_or_create_owned(&labels).set(value);
        }
    }
}

/// Values in force.
#[derive(Debug, Clone)]
pub struct KnobMetrics {
    /// Largest batch that may be pulled.
    pub batch_limit: FloatGauge,
    /// Batch size that pays.
    pub batch_limit_effective: FloatGauge,
    /// Longest wait for a batch to fill.
    pub batch_delay: FloatGauge,
    /// Longest wait until a batch starts.
    pub deadline: FloatGauge,
    /// Generation of the applied document.
    pub generation: Gauge,
    /// Documents refused.
    pub rejected: Counter,
    /// Unknown fields seen.
    pub unknown_fields: Counter,
}

impl KnobMetrics {
    pub(super) fn new(register: &mut Registrar<'_>) -> Self {
        Self {
            batch_limit: register.gauge("batch_limit", "Largest batch that may be pulled, as applied"),
            batch_limit_effective: register.gauge("batch_limit_effective", "Batch size that pays"),
            batch_delay: register.gauge("batch_delay_seconds", "Longest wait for a batch to fill"),
            deadline: register.gauge("deadline_seconds", "Longest wait until an image's batch starts"),
            generation: register.metric("knobs_generation", "Generation of the applied knobs", Gauge::default()),
            rejected: register.counter("knobs_rejected", "Knob documents refused"),
            unknown_fields: register.counter("knobs_unknown_fields", "Unknown fields in applied knob documents"),
        }
    }
}

/// Admission.
#[derive(Debug, Clone)]
pub struct QueueMetrics {
    /// Images admitted and not started.
    pub depth: Gauge,
    /// Bound of the depth.
    pub capacity: Gauge,
    /// Age of the oldest queued image.
    pub oldest_age: FloatGauge,
    /// Predicted wait of an image that arrived now.
    pub predicted_wait: FloatGauge,
}

impl QueueMetrics {
    pub(super) fn new(register: &mut Registrar<'_>) -> Self {
        Self {
            depth: register.metric("queue_depth", "Images admitted and not started", Gauge::default()),
            capacity: register.metric("queue_capacity", "Bound of the queue depth", Gauge::default()),
            oldest_age: register.gauge("queue_oldest_age_seconds", "Age of the oldest queued image"),
            predicted_wait: register.gauge("predicted_wait_seconds", "Predicted wait of an image that arrived now"),
        }
    }
}

/// Result cache and its ghosts.
#[derive(Debug, Clone)]
pub struct CacheMetrics {
    /// Lookups by result.
    pub requests: Labelled<Counter>,
    /// Bytes held.
    pub bytes: FloatGauge,
    /// Results held.
    pub entries: Gauge,
    /// Bound of the bytes, after the clamp to the memory limit.
    pub capacity: FloatGauge,
    /// Age at which a result is no longer served.
    pub ttl: FloatGauge,
    /// Results evicted for room.
    pub evictions: Counter,
    /// Results found too old.
    pub expired: Counter,
    /// Sampled lookups that a cache of this many bytes would have served.
    pub ghost_hits: BySize<Counter>,
    /// Sampled lookups.
    pub ghost_references: Counter,
    /// Lookups that were expected to be sampled.
    pub ghost_expected: FloatCounter,
}

impl CacheMetrics {
    pub(super) fn new(register: &mut Registrar<'_>) -> Self {
        Self {
            requests: register.counters(
                ("cache_requests", "Lookups in the result cache"),
                "result",
                &["hit", "shared_hit", "miss", "coalesced", "bypass"],
            ),
            bytes: register.gauge("cache_bytes", "Bytes held by the result cache"),
            entries: register.metric("cache_entries", "Results held by the result cache", Gauge::default()),
            capacity: register.gauge("cache_capacity_bytes", "Capacity of the result cache, as applied"),
            ttl: register.gauge("cache_ttl_seconds", "Age at which a cached result is no longer served"),
            evictions: register.counter("cache_evictions", "Results evicted for room"),
            expired: register.counter("cache_expired", "Results found too old"),
            ghost_hits: register.by_size(
                "cache_ghost_hits",
                "Sampled lookups that a cache of this size in bytes would have served",
                Counter::default,
            ),
            ghost_references: register.counter("cache_ghost_references", "Sampled lookups"),
            ghost_expected: register.seconds_counter("cache_ghost_expected", "Lookups expected to be sampled"),
        }
    }
}

/// Readiness, model and build.
#[derive(Debug, Clone)]
pub struct LifeMetrics {
    /// 1 when ready.
    pub ready: Gauge,
    /// 1 while draining.
    pub draining: Gauge,
    /// Asynchronous tasks alive.
    pub runtime_tasks: Gauge,
    /// Time of the warm-up.
    pub warmup: FloatGauge,
    /// Models loaded.
    pub model_loads: Counter,
    /// Time spent loading.
    pub model_load_seconds: FloatCounter,
    /// Reloads asked for, by what came of them.
    pub model_reloads: Labelled<Counter>,
    model_info: Family<Vec<(&'static str, String)>, Gauge>,
}

impl LifeMetrics {
    pub(super) fn new(register: &mut Registrar<'_>) -> Self {
        let build: Family<Vec<(&'static str, String)>, Gauge> =
            register.metric("build_info", "Version of the server", Family::default());
        let labels = [("version", env!("CARGO_PKG_VERSION")), ("revision", option_env!("YOLO_REVISION").unwrap_or(""))];
        build.get_or_create_owned(&labels.map(|(name, value)| (name, value.to_owned())).to_vec()).set(1);
        Self {
            ready: register.metric("ready", "Whether predictions are served", Gauge::default()),
            draining: register.metric("draining", "Whether the server is shutting down", Gauge::default()),
            runtime_tasks: register.metric("runtime_tasks", "Asynchronous tasks alive", Gauge::default()),
            warmup: register.gauge("warmup_seconds", "Time of the warm-up"),
            model_loads: register.counter("model_loads", "Models loaded"),
            model_load_seconds: register.seconds_counter("model_load_seconds", "Time spent loading models"),
            model_reloads: register.counters(
                ("model_reloads", "Reloads of the model that were asked for"),
                "outcome",
                &["swapped", "unchanged", "refused"],
            ),
            model_info: register.metric("model_info", "The model served", Family::default()),
        }
    }

    /// Publishes the served model, replacing the one before.
    pub fn set_model(&self, labels: &[(&'static str, String)]) {
        self.model_info.clear();
        self.model_info.get_or_create_owned(&labels.to_vec()).set(1);
    }
}
