//! Runs tasks on capacity that nobody waits for.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue, Uri, header};
use futures::FutureExt;
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
    let left = unless_withdrawn(&app, &claim, answer(&app, &claim.work, claim.age, tasks.durable())).await;
    leave(&app, tasks, claim, left).await;
}

async fn leave(app: &App, tasks: Arc<Tasks>, claim: Claim, left: Left) {
    match left {
        Left::Ended(outcome, end) => {
            let status = tasks.finish(&claim, end).await;
            app.metrics.images.count("async", if status == Status::Cancelled { "cancelled" } else { outcome });
        }
        Left::Withdrawn => app.metrics.images.count("async", "cancelled"),
        // Beside this server, which may end before the store has answered.
        Left::Unfinished => drop(tokio::spawn(async move { tasks.hand_back(&claim).await }).await),
        // It may be the task's doing, so it is no orderly return: taken over, it counts as a server that ended.
        Left::Crashed if tasks.durable() => {}
        Left::Crashed => {
            let message = "the task met a bug of the server: please report it".to_owned();
            let failure = Failure { code: Code::Internal.as_str().to_owned(), message };
            tasks.finish(&claim, End::Failed(failure)).await;
            app.metrics.images.count("async", Code::Internal.image_outcome());
        }
    }
}

/// How this server is done with a task.
enum Left {
    /// With the image's outcome and the task's end.
    Ended(&'static str, End),
    /// Its client withdrew it, and it was ended there.
    Withdrawn,
    /// Not the task's doing: it goes to another pod, or down with this one.
    Unfinished,
    /// In a panic.
    Crashed,
}

async fn unless_withdrawn(
    app: &App,
    claim: &Claim,
    answer: impl Future<Output = Result<(&'static str, Box<RawValue>), ApiError>>,
) -> Left {
    let answer = tokio::select! {
        answer = AssertUnwindSafe(answer).catch_unwind() => answer,
        () = claim.withdrawn.cancelled() => return Left::Withdrawn,
        () = app.lifecycle.reached(Stage::Aborting) => return Left::Unfinished,
    };
    match answer {
        Err(_) => Left::Crashed,
        Ok(Err(ApiError { code: Code::Draining | Code::Starting | Code::EngineFailed, .. })) => Left::Unfinished,
        Ok(Ok((outcome, result))) => Left::Ended(outcome, End::Succeeded(result)),
        Ok(Err(error)) => {
            let failure = Failure { code: error.code.as_str().to_owned(), message: error.message };
            Left::Ended(error.code.image_outcome(), End::Failed(failure))
        }
    }
}

/// The image's outcome and what `/predict` would have answered.
async fn answer(
    app: &App,
    work: &Work,
    age: Duration,
    durable: bool,
) -> Result<(&'static str, Box<RawValue>), ApiError> {
    let received = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
    let (predictor, wishes, prediction) = loop {
        // Asked each time, and not held meanwhile: another model may have taken the place of the one that fails, which
        // ends with its last holder.
        let predictor = app.predictor().ok_or_else(|| ApiError::new(Code::Starting, "the model is not loaded"))?;
        let wishes = wishes(work, &predictor)?;
        match predictor.predict(upload(work, received), &wishes, &app.knobs()).await {
            // The engine is tried again by itself; a task that no other pod can run waits for that.
            Err(ApiError { code: Code::EngineFailed, .. }) if !durable => {}
            other => break (predictor, wishes, other?),
        }
        drop(predictor);
        tokio::time::sleep(PAUSE.mul_f64(random::within(0.5, 1.5))).await;
    };
    app.metrics.images.detections.inc_by(prediction.answer.detections.len() as u64);
    let document = PredictionBody::new(&predictor, &prediction, &wishes, &work.request_id);
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::View;
    use super::super::memory::MemoryTasks;
    use super::*;

    #[tokio::test]
    async fn a_task_in_memory_that_meets_a_bug_ends() {
        let app = App::new();
        let memory = MemoryTasks::new(Duration::from_hours(1), app.metrics.tasks.clone());
        let tasks = Arc::new(Tasks::Memory(Box::new(memory)));
        let work = Work {
            request_id: "r".to_owned(),
            picture: Bytes::new(),
            content: [0; 32],
            query: String::new(),
            form: Vec::new(),
            bypass_cache: false,
        };
        let id = tasks.submit(work, None).await.unwrap().view.task_id;
        let claim = tasks.claim().await.unwrap();
        let left = unless_withdrawn(&app, &claim, async { panic!("a bug") }).await;
        leave(&app, Arc::clone(&tasks), claim, left).await;
        let View { status, error, .. } = tasks.view(&id).await.unwrap();
        assert_eq!((status, error.unwrap().code.as_str()), (Status::Failed, "internal"));
        tasks.settled().await;
        let page = app.metrics.encode(false).unwrap();
        assert!(page.contains(r#"yolo_images_total{outcome="failed",source="async"} 1"#), "{page}");
    }
}
