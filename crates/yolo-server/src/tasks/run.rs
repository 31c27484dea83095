//! Runs tasks on capacity that nobody waits for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue, Uri, header};
use serde_json::value::{RawValue, to_raw_value};
use tokio::task::JoinSet;

use super::{Claim, End, Failure, Status, Tasks, Work};
use crate::app::App;
use crate::batcher::Lane;
use crate::http::answer::PredictionBody;
use crate::http::body::Upload;
use crate::http::error::{ApiError, Code};
use crate::http::parameters::Wishes;
use crate::lifecycle::Stage;
use crate::limits;
use crate::predictor::{Predictor, images_outcome};
use crate::random;

/// Batches that may wait for each worker: one to take next, and the one that is being prepared.
const BATCHES_AHEAD: usize = 2;
/// Pause before a task that met a failing engine asks again, spread by half of it; and before such an engine is looked at
/// again.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs tasks until the server aborts; durable ones are left to other pods as soon as it drains.
pub async fn run(app: Arc<App>, tasks: Arc<Tasks>) {
    tokio::select! {
        () = take_on(&app, &tasks) => {}
        () = tasks.keep() => {}
    }
}

async fn take_on(app: &Arc<App>, tasks: &Arc<Tasks>) {
    let mut running = JoinSet::new();
    let last_stage = if tasks.durable() { Stage::Serving } else { Stage::Closing };
    while app.lifecycle.stage() <= last_stage {
        if tasks.durable() && app.ready().is_err() {
            // Other pods take what this one could not run.
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        while running.len() >= room(app) {
            running.join_next().await;
        }
        // Not given up half-way for anything else that happens: the claim would be lost until it is taken over.
        let claim = tasks.claim().await;
        while running.try_join_next().is_some() {}
        if let Some(claim) = claim {
            running.spawn(perform(Arc::clone(app), Arc::clone(tasks), claim));
        }
    }
    running.join_all().await;
}

/// Tasks that may be under way at a time: enough to fill the workers' next batches, no more, since each holds a place
/// in the decoders' queue.
fn room(app: &App) -> usize {
    let load = app.predictor().map(|predictor| predictor.batcher().load());
    load.map_or(1, |load| BATCHES_AHEAD * load.workers * load.batch_effective).max(1)
}

async fn perform(app: Arc<App>, tasks: Arc<Tasks>, claim: Claim) {
    let answer = tokio::select! {
        answer = answer(&app, &claim, tasks.durable()) => answer,
        () = claim.withdrawn.cancelled() => {
            app.metrics.images.count("async", "cancelled");
            return;
        }
        // What is left goes to another pod, or down with this one.
        () = app.lifecycle.reached(Stage::Aborting) => return,
    };
    let (outcome, end) = match answer {
        // Not the task's doing: it goes where it would go if the server aborted.
        Err(ApiError { code: Code::Draining | Code::Starting | Code::EngineFailed, .. }) => return,
        Ok((outcome, result)) => (outcome, End::Succeeded(result)),
        Err(error) => {
            let failure = Failure { code: error.code.as_str().to_owned(), message: error.message };
            (error.code.image_outcome(), End::Failed(failure))
        }
    };
    let status = tasks.finish(&claim, end).await;
    app.metrics.images.count("async", if status == Status::Cancelled { "cancelled" } else { outcome });
}

/// The image's outcome and what `/predict` would have answered.
async fn answer(app: &App, claim: &Claim, durable: bool) -> Result<(&'static str, Box<RawValue>), ApiError> {
    let predictor = app.predictor().ok_or_else(|| ApiError::new(Code::Starting, "the model is not loaded"))?;
    let wishes = wishes(&claim.work, &predictor)?;
    let knobs = app.knobs();
    let received = Instant::now().checked_sub(claim.age).unwrap_or_else(Instant::now);
    let prediction = loop {
        match predictor.predict(upload(&claim.work, received), &wishes, &knobs).await {
            // The engine is tried again by itself; a task that no other pod can run waits for that.
            Err(ApiError { code: Code::EngineFailed, .. }) if !durable => {
                tokio::time::sleep(PAUSE.mul_f64(random::within(0.5, 1.5))).await;
            }
            other => break other?,
        }
    };
    app.metrics.images.detections.inc_by(prediction.answer.detections.len() as u64);
    let document = PredictionBody::new(&predictor, &prediction, &wishes, &claim.work.request_id);
    let result = to_raw_value(&document).map_err(|error| ApiError::new(Code::Internal, error.to_string()))?;
    if result.get().len() > limits::TASK_RESULT_BYTES_MAX {
        let message = "the result is too large to be kept: ask for fewer detections (max_det) or masks=none";
        return Err(ApiError::new(Code::PayloadTooLarge, message));
    }
    Ok((images_outcome(prediction.cache), result))
}

/// The request's choices, read again: its texts are what a store keeps.
fn wishes(work: &Work, predictor: &Predictor) -> Result<Wishes, ApiError> {
    let uri = Uri::builder().path_and_query(format!("/predict?{}", work.query)).build();
    let uri = uri.map_err(|error| ApiError::new(Code::InvalidRequest, error.to_string()))?;
    let mut headers = HeaderMap::new();
    if work.bypass_cache {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    }
    let mut wishes = Wishes::of_head(&uri, &headers, &predictor.served())?;
    wishes.add(&work.form, &predictor.served())?;
    wishes.place.lane = Lane::Spare;
    Ok(wishes)
}

fn upload(work: &Work, received: Instant) -> Upload {
    Upload {
        bytes: work.picture.clone(),
        content: work.content,
        parameters: Vec::new(),
        received,
        read: Duration::ZERO,
        hash: Duration::ZERO,
        memory: None,
    }
}
