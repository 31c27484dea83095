//! Everything that requests share.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use tokio::runtime::Handle;

use crate::arrivals::Arrivals;
use crate::cache::ResultCache;
use crate::cgroup;
use crate::gpu::Gpus;
use crate::http::body::BodyMemory;
use crate::http::error::{ApiError, Code};
use crate::knobs::{self, Knobs};
use crate::lifecycle::{Lifecycle, Stage};
use crate::limits::{self, BodyLimits};
use crate::metrics::Metrics;
use crate::predictor::Predictor;
use crate::refusals::Refusals;
use crate::reload::Reloader;
use crate::tasks::Tasks;
use crate::traces::Traces;

/// The state of one server; the handlers' only argument besides the request.
#[derive(Debug)]
pub struct App {
    /// Every series.
    pub metrics: Arc<Metrics>,
    /// Stage of the server's life.
    pub lifecycle: Lifecycle,
    /// Offered images.
    pub arrivals: Arrivals,
    /// Images refused lately.
    pub refusals: Refusals,
    /// Bound on the bodies in memory.
    pub bodies: BodyMemory,
    /// The runtime that serves the API; none in a test without one.
    runtime: Option<Handle>,
    cache: Arc<ResultCache>,
    cache_turn: Mutex<()>,
    knobs: RwLock<Knobs>,
    predictor: RwLock<Option<Arc<Predictor>>>,
    reloader: OnceLock<Reloader>,
    tasks: OnceLock<Arc<Tasks>>,
    gpus: OnceLock<Gpus>,
    traces: OnceLock<Arc<Traces>>,
}

impl Default for App {
    fn default() -> Self {
        Self::new()
    }
}

impl App {
    /// A server that has no model yet, and runs on the built-in knobs and limits.
    pub fn new() -> Self {
        Self::with_limits(BodyLimits::DEFAULT)
    }

    /// [`Self::new`] with other limits of request bodies.
    pub fn with_limits(bodies: BodyLimits) -> Self {
        let metrics = Arc::new(Metrics::new());
        let knobs = Knobs::default();
        let cache = Arc::new(ResultCache::new(0, knobs.cache_ttl, metrics.cache.clone()));
        let app = Self {
            lifecycle: Lifecycle::new(metrics.life.clone()),
            arrivals: Arrivals::new(Instant::now(), &metrics.images),
            refusals: Refusals::default(),
            bodies: BodyMemory::new(bodies),
            runtime: Handle::try_current().ok(),
            cache,
            cache_turn: Mutex::default(),
            knobs: RwLock::new(knobs),
            predictor: RwLock::new(None),
            reloader: OnceLock::new(),
            tasks: OnceLock::new(),
            gpus: OnceLock::new(),
            traces: OnceLock::new(),
            metrics,
        };
        app.apply(knobs);
        app
    }

    /// The result cache.
    pub fn cache(&self) -> Arc<ResultCache> {
        Arc::clone(&self.cache)
    }

    /// The knobs in force.
    pub fn knobs(&self) -> Knobs {
        *self.knobs.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The served model, once it is loaded and warm. Who asks once keeps to it, even if another one is served meanwhile.
    pub fn predictor(&self) -> Option<Arc<Predictor>> {
        self.predictor.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The served model, for a request.
    ///
    /// # Errors
    /// 503 `starting` while it is being loaded and warmed.
    pub fn serving(&self) -> Result<Arc<Predictor>, ApiError> {
        let predictor = self.predictor().filter(|_| self.lifecycle.stage() > Stage::Starting);
        predictor.ok_or_else(|| ApiError::new(Code::Starting, "the model is still being loaded"))
    }

    /// Whether everything works; fails only if a batch hangs, because a restart would not help against anything else.
    ///
    /// # Errors
    /// What hangs.
    pub fn live(&self) -> Result<(), &'static str> {
        match self.predictor() {
            Some(predictor) if predictor.batcher().stuck() => Err("a batch has run for too long"),
            _ => Ok(()),
        }
    }

    /// Whether images are served: loaded, warm, not draining, engine sound. Load does not count: it would take pods away
    /// when they are needed.
    ///
    /// # Errors
    /// Why not.
    pub fn ready(&self) -> Result<(), &'static str> {
        match (self.lifecycle.stage(), self.predictor()) {
            (Stage::Serving, Some(predictor)) if predictor.batcher().sound() => Ok(()),
            (Stage::Serving, _) => Err("the inference engine fails"),
            (Stage::Starting, _) => Err("the model is being loaded"),
            (Stage::Draining | Stage::Closing | Stage::Aborting, _) => Err("shutting down"),
        }
    }

    /// Begins to serve a model; the one before is returned, and serves whoever holds it.
    pub fn serve(&self, predictor: Predictor) -> Option<Arc<Predictor>> {
        self.metrics.life.set_model(&predictor.model().labels());
        let served = Some(Arc::new(predictor));
        let before = std::mem::replace(&mut *self.predictor.write().unwrap_or_else(PoisonError::into_inner), served);
        // Knobs that came while the model was loading.
        self.apply_knobs();
        before
    }

    /// What loads another model in place of the served one, once there is one.
    pub fn reloader(&self) -> Option<&Reloader> {
        self.reloader.get()
    }

    /// Begins to offer other models; only the first one given counts.
    pub fn offer_reloads(&self, reloader: Reloader) {
        self.reloader.get_or_init(|| reloader);
    }

    /// The asynchronous tasks, if they are on.
    pub fn tasks(&self) -> Option<&Tasks> {
        self.tasks.get().map(Arc::as_ref)
    }

    /// Begins to take tasks; only the first ones given count.
    pub fn offer_tasks(&self, tasks: Tasks) -> Arc<Tasks> {
        Arc::clone(self.tasks.get_or_init(|| Arc::new(tasks)))
    }

    /// Begins to publish the figures of the GPUs that run the model; only the first ones given count.
    pub fn watch_gpus(&self, gpus: Gpus) {
        self.gpus.get_or_init(|| gpus);
    }

    /// Where requests are traced to, if anywhere.
    pub fn traces(&self) -> Option<Arc<Traces>> {
        self.traces.get().map(Arc::clone)
    }

    /// Begins to trace requests; only the first ones given count.
    pub fn trace_to(&self, traces: Traces) {
        self.traces.get_or_init(|| Arc::new(traces));
    }

    /// Takes a knobs document: applies it whole, or refuses it whole and counts it.
    pub fn offer_knobs(&self, document: &[u8]) {
        match knobs::parse(document, &self.knobs()) {
            Ok(parsed) => {
                self.metrics.knobs.unknown_fields.inc_by(parsed.unknown_fields as u64);
                tracing::info!(knobs = ?parsed.knobs, "Knobs applied.");
                self.apply(parsed.knobs);
            }
            Err(error) => {
                self.metrics.knobs.rejected.inc();
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "Knobs refused; the last good ones stay.");
            }
        }
    }

    /// Applies the knobs in force again: the model, or the memory beside it, is another.
    pub fn apply_knobs(&self) {
        self.apply(self.knobs());
    }

    fn apply(&self, knobs: Knobs) {
        *self.knobs.write().unwrap_or_else(PoisonError::into_inner) = knobs;
        self.fit_cache();
        if let Some(predictor) = self.predictor() {
            predictor.batcher().set_knobs(knobs);
        }
        let gauges = &self.metrics.knobs;
        let batch_max = self.predictor().map_or(limits::BATCH_MAX, |predictor| predictor.model().batch_max);
        gauges.batch_limit.set(count(knobs.batch_max.min(batch_max)));
        gauges.batch_delay.set(knobs.queue_delay_max.as_secs_f64());
        gauges.deadline.set(knobs.deadline.as_secs_f64());
        self.metrics.cache.ttl.set(knobs.cache_ttl.as_secs_f64());
        // Last: whoever reads this generation finds all the rest applied.
        gauges.generation.set(i64::try_from(knobs.generation).unwrap_or(i64::MAX));
    }

    /// Makes the cache as large as its knob asks and memory lets it be. Takes up to a second where much is evicted.
    pub fn fit_cache(&self) {
        // In turns, so that whoever saw the newer knobs has the last word.
        let _turn = self.cache_turn.lock().unwrap_or_else(PoisonError::into_inner);
        let Knobs { cache_bytes: asked, cache_ttl, .. } = self.knobs();
        let clamp =
            |reloader: &Reloader| reloader.footprint().cache_bytes(asked, cgroup::memory_stat(), self.cache.bytes());
        // Before the model is loaded nothing is remembered.
        let fits = self.reloader().map_or(asked, clamp);
        // A cache that memory leaves next to nothing of is better off: it would forget what it knows of evicted entries.
        let off = fits < asked && fits < limits::CACHE_FITTED_BYTES_MIN;
        self.cache.set(if off { 0 } else { fits }, cache_ttl);
    }

    /// Sets the gauges that are derived from state; called before a scrape is answered.
    pub fn refresh_metrics(&self) {
        self.arrivals.close(Instant::now());
        let tasks = self.runtime.as_ref().map_or(0, |runtime| runtime.metrics().num_alive_tasks());
        self.metrics.life.runtime_tasks.set(whole(tasks));
        if let Some(gpus) = self.gpus.get() {
            gpus.publish(&self.metrics.gpu);
        }
        let cache = &self.metrics.cache;
        cache.bytes.set(bytes(self.cache.bytes()));
        cache.capacity.set(bytes(self.cache.capacity_bytes()));
        cache.entries.set(whole(self.cache.entries()));
        let Some(predictor) = self.predictor() else { return };
        let batcher = predictor.batcher();
        self.metrics.life.ready.set(i64::from(self.lifecycle.stage() == Stage::Serving && batcher.sound()));
        let (load, queue) = (batcher.load(), &self.metrics.queue);
        queue.depth.set(whole(load.queued));
        queue.capacity.set(whole(load.capacity()));
        queue.oldest_age.set(batcher.oldest_age().as_secs_f64());
        queue.predicted_wait.set(predictor.predicted_wait().as_secs_f64());
        self.metrics.knobs.batch_limit_effective.set(count(load.batch_effective));
        self.metrics.batch.workers.set(whole(load.workers));
        self.metrics.batch.max_throughput.set(load.throughput());
        self.metrics.images.stage_workers.of("inference").set(whole(load.workers));
        self.metrics.images.stage_queued.of("inference").set(whole(batcher.queued()));
    }
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn count(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[expect(clippy::cast_precision_loss, reason = "at most 1 GiB")]
fn bytes(bytes: u64) -> f64 {
    bytes as f64
}
