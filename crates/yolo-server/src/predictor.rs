//! One picture from its bytes to its detections: cache, admission, preparation, batch. Knows no HTTP framework.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::runtime::Handle;
use yolo_vision::{Masks, Parameters, Task};

use crate::admission::Refusal;
use crate::batcher::{Batcher, Found, ImageTensor, Inferred, Job, JobError, Lane, Reply, Wanted};
use crate::cache::{self, Answer, Flight, Leader, Lookup, ResultCache};
use crate::engine::{EngineInput, LoadedModel};
use crate::http::body::Upload;
use crate::http::error::{ApiError, Code};
use crate::http::parameters::{Served, Wishes};
use crate::knobs::Knobs;
use crate::limits;
use crate::metrics::Metrics;
use crate::prepare::{Preparer, Promise, Turn};

/// Time in each stage, zero where a stage was skipped, and the batch.
#[derive(Debug, Clone, Copy, Default)]
pub struct Speed {
    /// When the image was queued; `None` if it was not run.
    pub enqueued: Option<Instant>,
    /// Images in its batch; 0 if it was not run.
    pub batch_size: usize,
    /// Receiving the body.
    pub read: Duration,
    /// Decoding.
    pub decode: Duration,
    /// Resizing and padding.
    pub preprocess: Duration,
    /// Waiting for a worker.
    pub queue: Duration,
    /// Engine time of the batch.
    pub inference: Duration,
    /// Threshold, suppression, projection.
    pub postprocess: Duration,
}

impl Speed {
    /// Time in queue and engine.
    pub fn queue_and_inference(&self) -> Duration {
        self.queue + self.inference
    }
}

/// A result and how it came about.
#[derive(Debug)]
pub struct Prediction {
    /// The detections.
    pub answer: Arc<Answer>,
    /// `hit`, `shared_hit`, `coalesced`, `miss` or `bypass`.
    pub cache: &'static str,
    /// Times.
    pub speed: Speed,
    /// Leave to draw its picture, where that is wished and it was run; what was known already, waits for its turn without.
    pub promise: Option<Promise>,
}

impl Prediction {
    /// An answer that another run found.
    const fn known(answer: Arc<Answer>, cache: &'static str, speed: Speed) -> Self {
        Self { answer, cache, speed, promise: None }
    }
}

/// Outcome of an image (label of `yolo_images_total`) that was answered with this [`Prediction::cache`].
pub fn images_outcome(cache: &str) -> &'static str {
    match cache {
        "hit" | "shared_hit" => "cached",
        "coalesced" => "coalesced",
        _ => "ok",
    }
}

/// Bounds in time of one image, and what came of them.
#[derive(Debug)]
struct Times {
    /// For the start of its batch, from when the image was there.
    deadline: Duration,
    /// For its answer.
    answer_by: Option<Instant>,
    /// Set when its batch begins.
    begun: Arc<AtomicBool>,
    /// Set when who asked is gone, and has been counted for it.
    left: Arc<AtomicBool>,
}

impl Times {
    fn new(received: Instant, wishes: &Wishes, knobs: &Knobs) -> Self {
        let answer_by = wishes.timeout.map(|timeout| received + timeout);
        Self { deadline: knobs.deadline, answer_by, begun: Arc::default(), left: Arc::default() }
    }

    /// What is left of the time until its batch, or its drawing, must have begun.
    fn start_within(&self) -> Duration {
        let left = |answer_by: Instant| answer_by.saturating_duration_since(Instant::now());
        self.answer_by.map_or(self.deadline, |answer_by| left(answer_by).min(self.deadline))
    }

    /// Counts an image that ran out of time in the queue.
    fn expired(&self, metrics: &Metrics) {
        if !self.left.load(Ordering::Relaxed) {
            metrics.images.deadline_exceeded.of("queue").inc();
        }
    }
}

/// The work on one image. Dropped once its batch has begun, it goes on by itself, if others may wait for it: the run cannot
/// be taken back, and whoever waits for an equal image, or asks for it next, gets what it finds.
struct Work {
    /// `None` once it has ended.
    future: Option<BoxFuture<'static, Result<Prediction, ApiError>>>,
    awaited: bool,
    times: Arc<Times>,
    metrics: Arc<Metrics>,
}

impl Future for Work {
    type Output = Result<Prediction, ApiError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(mut future) = self.future.take() else { return Poll::Pending };
        let polled = future.as_mut().poll(context);
        // Not put back after a panic: it must not be polled again.
        self.future = polled.is_pending().then_some(future);
        polled
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(future) = self.future.take()
            && self.awaited
            && self.times.begun.load(Ordering::Relaxed)
            && let Ok(runtime) = Handle::try_current()
        {
            self.times.left.store(true, Ordering::Relaxed);
            if self.times.answer_by.is_none_or(|answer_by| Instant::now() < answer_by) {
                self.metrics.images.cancelled.of("running").inc();
            }
            runtime.spawn(future);
        }
    }
}

/// Serves one model.
#[derive(Debug)]
pub struct Predictor {
    model: LoadedModel,
    defaults: Parameters,
    batcher: Batcher,
    preparer: Arc<Preparer>,
    cache: Arc<ResultCache>,
    metrics: Arc<Metrics>,
}

impl Predictor {
    /// Puts the parts of a model's service together.
    pub fn new(
        model: LoadedModel,
        defaults: Parameters,
        (batcher, preparer): (Batcher, Arc<Preparer>),
        cache: Arc<ResultCache>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { model, defaults, batcher, preparer, cache, metrics }
    }

    /// Serves another model in the same way: with the same decode pool, whose bounds hold for both together, and the same
    /// cache, whose keys hold the model's digest.
    #[must_use]
    pub fn with_model(&self, model: LoadedModel, batcher: Batcher) -> Self {
        let (cache, metrics) = (Arc::clone(&self.cache), Arc::clone(&self.metrics));
        Self::new(model, self.defaults.clone(), (batcher, Arc::clone(&self.preparer)), cache, metrics)
    }

    /// The served model.
    pub const fn model(&self) -> &LoadedModel {
        &self.model
    }

    /// Parameters of a request that chooses nothing.
    pub const fn defaults(&self) -> &Parameters {
        &self.defaults
    }

    /// What a request may choose from.
    pub fn served(&self) -> Served<'_> {
        Served { model: &self.model.name, defaults: &self.defaults, sizes: &self.model.sizes }
    }

    /// The pool that pictures are decoded on.
    pub fn preparer(&self) -> &Preparer {
        &self.preparer
    }

    /// Queue and workers.
    pub const fn batcher(&self) -> &Batcher {
        &self.batcher
    }

    /// Predicted wait of an image that arrived now.
    pub fn predicted_wait(&self) -> Duration {
        let load = self.batcher.load();
        load.wait().max(self.preparer.wait())
    }

    /// Finds the objects in a picture.
    ///
    /// Cancellation: a dropped call costs nothing that has not begun; if others wait for the same picture, one of them
    /// takes over. Once its batch has begun, it is still run for them and for the cache.
    ///
    /// # Errors
    /// 415, 422 for the picture; 429 for load; 504 past the deadline or the request's own time-out; 500, 503 for the
    /// engine.
    pub async fn predict(
        self: &Arc<Self>,
        upload: Upload,
        wishes: &Wishes,
        knobs: &Knobs,
    ) -> Result<Prediction, ApiError> {
        self.check_masks(&wishes.parameters)?;
        let times = Arc::new(Times::new(upload.received, wishes, knobs));
        let awaited = wishes.place.lane == Lane::Interactive && !wishes.bypass_cache;
        let (predictor, wishes, of_work) = (Arc::clone(self), wishes.clone(), Arc::clone(&times));
        let future = Box::pin(async move { predictor.look_up(upload, &wishes, &of_work).await });
        let metrics = Arc::clone(&self.metrics);
        let work = Work { future: Some(future), awaited, times: Arc::clone(&times), metrics };
        self.within(times.answer_by, &times.begun, work).await
    }

    /// Runs a picture that its client prepared and gives the model's own outputs. They are not remembered.
    ///
    /// Cancellation: as [`Self::predict`].
    ///
    /// # Errors
    /// As [`Self::predict`], but for the picture's own faults.
    pub async fn tensors(
        &self,
        input: EngineInput,
        received: Instant,
        wishes: &Wishes,
        knobs: &Knobs,
    ) -> Result<(Vec<ImageTensor>, Speed), ApiError> {
        let times = Times::new(received, wishes, knobs);
        let work = async {
            self.check_engine()?;
            let slot = self.batcher.admit(&wishes.place, Duration::ZERO, times.answer_by).map_err(refused)?;
            let job = Job {
                input,
                wanted: Wanted::Tensors,
                place: wishes.place.clone(),
                start_by: Some(received + times.deadline),
                answer_by: times.answer_by,
                begun: Arc::clone(&times.begun),
            };
            let inferred = self.done(slot.enqueue(job), &times).await?;
            let speed = speed(Speed::default(), &inferred);
            let Found::Tensors(tensors) = inferred.found else { return Err(another_question()) };
            Ok((tensors, speed))
        };
        self.within(times.answer_by, &times.begun, work).await
    }

    /// Does `work`, or gives it up when its answer is worthless. `begun`: whether its batch has begun by then.
    ///
    /// # Errors
    /// Those of `work`; 504 after `answer_by`.
    pub async fn within<T>(
        &self,
        answer_by: Option<Instant>,
        begun: &AtomicBool,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let Some(at) = answer_by else { return work.await };
        // Too late already, the work must not even begin.
        if Instant::now() < at
            && let Ok(done) = tokio::time::timeout_at(at.into(), work).await
        {
            return done;
        }
        let place = if begun.load(Ordering::Relaxed) { "running" } else { "queue" };
        self.metrics.images.deadline_exceeded.of(place).inc();
        Err(ApiError::new(Code::DeadlineExceeded, "the time-out passed before the answer was ready"))
    }

    fn check_masks(&self, parameters: &Parameters) -> Result<(), ApiError> {
        let masks = self.model.info.task() == Task::Segment && parameters.masks != Masks::None;
        if masks && parameters.detections_max > limits::MASKS_MAX {
            let most = limits::MASKS_MAX;
            let message = format!("max_det must be at most {most} with masks: ask for fewer, or for masks=none");
            return Err(ApiError::new(Code::InvalidParameter, message));
        }
        Ok(())
    }

    fn check_engine(&self) -> Result<(), ApiError> {
        if self.batcher.sound() {
            return Ok(());
        }
        Err(failed(&JobError::Unsound))
    }

    async fn done(&self, reply: Reply, times: &Times) -> Result<Inferred, ApiError> {
        match reply.await {
            Ok(Err(JobError::Expired)) => {
                times.expired(&self.metrics);
                Err(failed(&JobError::Expired))
            }
            Ok(inferred) => inferred.map_err(|error| failed(&error)),
            // A worker that ends never drops a reply unanswered unless it died.
            Err(_) => Err(ApiError::new(Code::Internal, "the inference worker died")),
        }
    }

    async fn look_up(&self, upload: Upload, wishes: &Wishes, times: &Times) -> Result<Prediction, ApiError> {
        let key = cache::key((&self.model.sha256, wishes.size), &wishes.parameters, &upload.content);
        let speed = Speed { read: upload.read, ..Speed::default() };
        if wishes.bypass_cache {
            return self.run(upload, wishes, times, self.cache.bypass(key)).await;
        }
        let flight = match wishes.place.lane {
            Lane::Interactive => Flight::Lead,
            Lane::Spare => Flight::Follow,
        };
        match self.cache.lookup(key, flight, &self.model.info).await {
            Lookup::Hit(answer) => Ok(Prediction::known(answer, "hit", speed)),
            Lookup::SharedHit(answer) => Ok(Prediction::known(answer, "shared_hit", speed)),
            Lookup::Coalesced(answer) => Ok(Prediction::known(answer, "coalesced", speed)),
            Lookup::Miss(leader) => self.run(upload, wishes, times, leader).await,
        }
    }

    async fn run(
        &self,
        upload: Upload,
        wishes: &Wishes,
        times: &Times,
        leader: Leader<'_>,
    ) -> Result<Prediction, ApiError> {
        self.check_engine()?;
        // Before decoding: a refusal must cost next to nothing.
        let promise = wishes.drawn.then(|| self.preparer.promise(times.start_within()));
        let promise = promise.transpose().map_err(refused)?;
        let (place, decode_wait) = (wishes.place.clone(), self.preparer.wait());
        let (slot, start_by) = match place.lane {
            Lane::Interactive => (
                self.batcher.admit(&place, decode_wait, times.answer_by).map_err(refused)?,
                Some(upload.received + times.deadline),
            ),
            Lane::Spare => (self.batcher.admit_patiently(&place, decode_wait).await, None),
        };
        let read = upload.read;
        let turn = Turn { place: &place, start_by, answer_by: times.answer_by, unrun: true };
        let prepared = self.preparer.prepare(upload, (&self.model, wishes.size), &turn).await?;
        let size = prepared.letterbox.source();
        let job = Job {
            input: prepared.input,
            wanted: Wanted::Detections { letterbox: prepared.letterbox, parameters: wishes.parameters.clone() },
            place,
            start_by,
            answer_by: times.answer_by,
            begun: Arc::clone(&times.begun),
        };
        let inferred = self.done(slot.enqueue(job), times).await?;
        let before = Speed { read, decode: prepared.decode, preprocess: prepared.preprocess, ..Speed::default() };
        let speed = speed(before, &inferred);
        let Found::Detections(detections) = inferred.found else { return Err(another_question()) };
        let answer = Arc::new(Answer { size, detections });
        let cache = leader.label();
        leader.complete(Arc::clone(&answer));
        Ok(Prediction { answer, cache, speed, promise })
    }
}

fn failed(error: &JobError) -> ApiError {
    let code = match error {
        JobError::Expired => Code::DeadlineExceeded,
        JobError::Superseded => Code::Superseded,
        JobError::Failed(_) => Code::InferenceFailed,
        JobError::TooLarge(_) => Code::PayloadTooLarge,
        JobError::Unsound => Code::EngineFailed,
        JobError::Stopped => Code::Draining,
    };
    ApiError::new(code, error.to_string())
}

/// The times of an image that was run, after those `before` the queue.
const fn speed(before: Speed, inferred: &Inferred) -> Speed {
    let Inferred { enqueued, batch_size, queue, inference, postprocess, .. } = *inferred;
    Speed { enqueued: Some(enqueued), batch_size, queue, inference, postprocess, ..before }
}

fn another_question() -> ApiError {
    ApiError::new(Code::Internal, "the inference worker answered another question")
}

/// A refusal as the API answers it.
pub(crate) fn refused(refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::QueueFull { retry_after } => {
            ApiError::new(Code::QueueFull, "the queue is full: try again later").retry_after(retry_after)
        }
        Refusal::PredictedLate { wait, retry_after } => {
            let message = format!(
                "the image would wait {} ms, longer than its deadline or time-out allows: try again later",
                wait.as_millis()
            );
            ApiError::new(Code::PredictedLate, message).retry_after(retry_after)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_gave_up_is_not_counted_again_when_the_work_that_goes_on_fails() {
        let (metrics, begun) = (Arc::new(Metrics::new()), Arc::new(AtomicBool::new(true)));
        let (now, left) = (Instant::now(), Arc::default());
        let times = Arc::new(Times { deadline: Duration::ZERO, answer_by: Some(now), begun, left });
        let queued = || metrics.images.deadline_exceeded.of("queue").get();
        times.expired(&metrics);
        assert_eq!(queued(), 1);
        let future = Some(Box::pin(std::future::pending()) as _);
        drop(Work { future, awaited: true, times: Arc::clone(&times), metrics: Arc::clone(&metrics) });
        times.expired(&metrics);
        assert_eq!(queued(), 1);
    }
}
