//! Loads and warms a model: the first one, which decides how memory is shared out, and each that takes its place.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use yolo_vision::Parameters;

use crate::app::App;
use crate::args::{Config, EmulatedDevice, EngineKind, Profile};
use crate::batcher::Batcher;
use crate::cgroup;
use crate::engine::ort::Device;
use crate::engine::{self, LoadedModel};
use crate::gpu::Gpus;
use crate::knobs::Knobs;
use crate::limits;
use crate::memory::{Bounds, Footprint};
use crate::predictor::Predictor;
use crate::prepare::Preparer;
use crate::priority;
use crate::server::StartError;

/// The first model of a server, and what it took.
pub fn first(app: &App, config: &Config) -> Result<(Predictor, Footprint), StartError> {
    let before = cgroup::memory_stat().working_set_bytes;
    let (model, batcher) = open(app, config, app.knobs())?;
    let memory = cgroup::memory_stat();
    let tasks_bytes = if config.tasks { limits::TASKS_BYTES_MAX as u64 } else { 0 };
    let in_use = memory.working_set_bytes + tasks_bytes;
    let bounds = Bounds::fit(memory.limit_bytes, in_use, cores(config), app.bodies.limits())?;
    app.bodies.shrink_to(bounds.bodies_bytes_max);
    batcher.set_queue_bytes_max(bounds.queue_bytes_max);
    let file_bytes = file_bytes(config).max(1);
    let model_bytes = memory.working_set_bytes.saturating_sub(before).max(file_bytes);
    let others_bytes = in_use.saturating_sub(model_bytes);
    let decoding = config.pictures.decoding(bounds.decoder_bytes_max);
    let preparer = Arc::new(Preparer::new(bounds.decode_threads, decoding, app.metrics.images.clone()));
    tracing::info!(model = model.name, sha256 = model.sha256, ?bounds, "Model loaded and warm.");
    let defaults = Parameters {
        confidence: config.conf,
        iou: config.iou,
        detections_max: config.max_det,
        ..Parameters::default()
    };
    let predictor = Predictor::new(model, defaults, (batcher, preparer), app.cache(), Arc::clone(&app.metrics));
    Ok((predictor, Footprint { others_bytes, model_bytes, file_bytes, bounds }))
}

/// Loads the model, opens and warms its sessions.
pub fn open(app: &App, config: &Config, knobs: Knobs) -> Result<(LoadedModel, Batcher), StartError> {
    priority::give_way(); // sessions start their threads from here
    let start = Instant::now();
    let gpus = Gpus::visible();
    let device = (config.engine == EngineKind::Ort).then(|| Device::of(config, &gpus));
    let sizing = Sizing::of(config, device.as_ref());
    let on_gpu = matches!(device, Some(Device::Gpu(_)));
    let model = match device {
        None => engine::emulated::load(config)?,
        Some(device) => engine::ort::load(&engine::ort::Options {
            model: config.model.clone(),
            sha256: config.model_sha256.clone(),
            sides_px: config.imgsz.clone(),
            sessions: sizing.sessions,
            threads: sizing.session_threads,
            device,
            precision: config.precision,
            batch_max: app.knobs().batch_max.max(app.knobs().timed_batch_max),
        })?,
    };
    if on_gpu {
        app.watch_gpus(gpus);
    }
    app.metrics.life.model_loads.inc();
    app.metrics.life.model_load_seconds.inc_by(start.elapsed().as_secs_f64());
    let warming = Instant::now();
    tracing::info!(model = model.name, ?sizing, "Model loaded; its sessions are opened.");
    let batcher = Batcher::start(&model, sizing.sessions, knobs, &app.metrics)?;
    app.metrics.life.warmup.set(warming.elapsed().as_secs_f64());
    Ok((model, batcher))
}

/// Length of the model's file; 0 if it has none.
pub fn file_bytes(config: &Config) -> u64 {
    fs::metadata(&config.model).map_or(0, |file| file.len())
}

/// Whole cores that this container may use: as many pictures are decoded at a time.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few hundred cores")]
fn cores(config: &Config) -> usize {
    (cgroup::usable_cores(config.cpu_request).floor() as usize).max(1)
}

/// Threads by the CPU that this container may use.
#[derive(Debug, Clone, Copy)]
struct Sizing {
    sessions: usize,
    session_threads: usize,
}

impl Sizing {
    fn of(config: &Config, device: Option<&Device>) -> Self {
        let cores = cores(config);
        let (sessions, session_threads) = match (config.engine, config.emulated_device, config.profile) {
            // One device: a second session would only queue behind the first.
            (EngineKind::Emulated, EmulatedDevice::Gpu, _) => (1, 1),
            (EngineKind::Ort, _, Profile::Latency) => (1, cores),
            _ => (cores, 1),
        };
        let sessions = device.and_then(Device::sessions).unwrap_or(sessions);
        Self { sessions: config.sessions.unwrap_or(sessions).max(1), session_threads }
    }
}
