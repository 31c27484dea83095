//! One picture from its bytes to its detections: cache, admission, preparation, batch. Knows no HTTP framework.

use std::sync::Arc;
use std::time::{Duration, Instant};

use yolo_vision::Parameters;

use crate::admission::Refusal;
use crate::batcher::{Batcher, Job, JobError, Lane};
use crate::cache::{self, Answer, Flight, Leader, Lookup, ResultCache};
use crate::engine::LoadedModel;
use crate::http::body::Upload;
use crate::http::error::{ApiError, Code};
use crate::http::parameters::{Served, Wishes};
use crate::knobs::Knobs;
use crate::metrics::Metrics;
use crate::prepare::Preparer;

/// Time in each stage; zero where a stage was skipped.
#[derive(Debug, Clone, Copy, Default)]
pub struct Speed {
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

/// A result and how it came about.
#[derive(Debug)]
pub struct Prediction {
    /// The detections.
    pub answer: Arc<Answer>,
    /// Images in its batch; 0 if none was run.
    pub batch_size: usize,
    /// `hit`, `shared_hit`, `coalesced`, `miss` or `bypass`.
    pub cache: &'static str,
    /// Times.
    pub speed: Speed,
}

/// Outcome of an image (label of `yolo_images_total`) that was answered with this [`Prediction::cache`].
pub fn images_outcome(cache: &str) -> &'static str {
    match cache {
        "hit" | "shared_hit" => "cached",
        "coalesced" => "coalesced",
        _ => "ok",
    }
}

/// Serves one model.
#[derive(Debug)]
pub struct Predictor {
    model: LoadedModel,
    defaults: Parameters,
    batcher: Batcher,
    preparer: Preparer,
    cache: Arc<ResultCache>,
    metrics: Arc<Metrics>,
}

impl Predictor {
    /// Puts the parts of a model's service together.
    pub fn new(
        model: LoadedModel,
        defaults: Parameters,
        (batcher, preparer): (Batcher, Preparer),
        cache: Arc<ResultCache>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { model, defaults, batcher, preparer, cache, metrics }
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
        let side_px = self.model.info.size().width_px;
        Served { model: &self.model.name, defaults: &self.defaults, side_px }
    }

    /// The pool that pictures are decoded on.
    pub const fn preparer(&self) -> &Preparer {
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
    /// takes over.
    ///
    /// # Errors
    /// 415, 422 for the picture; 429 for load; 504 past the deadline or the request's own time-out; 500, 503 for the
    /// engine.
    pub async fn predict(&self, upload: Upload, wishes: &Wishes, knobs: &Knobs) -> Result<Prediction, ApiError> {
        let answer_by = wishes.timeout.map(|timeout| upload.received + timeout);
        let work = self.look_up(upload, wishes, (knobs.deadline, answer_by));
        match answer_by {
            None => work.await,
            Some(at) => tokio::time::timeout_at(at.into(), work).await.unwrap_or_else(|_| {
                self.metrics.images.deadline_exceeded.of("running").inc();
                Err(ApiError::new(Code::DeadlineExceeded, "timeout_ms passed before the answer was ready"))
            }),
        }
    }

    async fn look_up(
        &self,
        upload: Upload,
        wishes: &Wishes,
        times: (Duration, Option<Instant>),
    ) -> Result<Prediction, ApiError> {
        let key = cache::key(&self.model.sha256, &wishes.parameters, &upload.content);
        let speed = Speed { read: upload.read, ..Speed::default() };
        if wishes.bypass_cache {
            return self.run(upload, wishes, times, self.cache.bypass(key)).await;
        }
        let flight = match wishes.place.lane {
            Lane::Interactive => Flight::Lead,
            Lane::Spare => Flight::Follow,
        };
        match self.cache.lookup(key, flight).await {
            Lookup::Hit(answer) => Ok(Prediction { answer, batch_size: 0, cache: "hit", speed }),
            Lookup::SharedHit(answer) => Ok(Prediction { answer, batch_size: 0, cache: "shared_hit", speed }),
            Lookup::Coalesced(answer) => Ok(Prediction { answer, batch_size: 0, cache: "coalesced", speed }),
            Lookup::Miss(leader) => self.run(upload, wishes, times, leader).await,
        }
    }

    async fn run(
        &self,
        upload: Upload,
        wishes: &Wishes,
        (deadline, answer_by): (Duration, Option<Instant>),
        leader: Leader<'_>,
    ) -> Result<Prediction, ApiError> {
        if !self.batcher.sound() {
            let message = "the inference engine failed several times in a row";
            return Err(ApiError::new(Code::EngineFailed, message));
        }
        // Before decoding: a refusal must cost next to nothing.
        let (place, decode_wait) = (wishes.place.clone(), self.preparer.wait());
        let (slot, start_by) = match place.lane {
            Lane::Interactive => {
                (self.batcher.admit(&place, decode_wait).map_err(refused)?, Some(upload.received + deadline))
            }
            Lane::Spare => (self.batcher.admit_patiently(&place, decode_wait).await, None),
        };
        let read = upload.read;
        let prepared = self.preparer.prepare(upload, &place).await?;
        let size = prepared.letterbox.source();
        let job = Job {
            input: prepared.input,
            letterbox: prepared.letterbox,
            parameters: wishes.parameters.clone(),
            place,
            start_by,
            answer_by,
        };
        let inferred = match slot.enqueue(job).await {
            Ok(inferred) => inferred.map_err(|error| self.failed(&error))?,
            // A worker that ends never drops a reply unanswered unless it died.
            Err(_) => return Err(ApiError::new(Code::Internal, "the inference worker died")),
        };
        let answer = Arc::new(Answer { size, detections: inferred.detections });
        let cache = leader.label();
        leader.complete(Arc::clone(&answer));
        let speed = Speed {
            read,
            decode: prepared.decode,
            preprocess: prepared.preprocess,
            queue: inferred.queue,
            inference: inferred.inference,
            postprocess: inferred.postprocess,
        };
        Ok(Prediction { answer, batch_size: inferred.batch_size, cache, speed })
    }

    fn failed(&self, error: &JobError) -> ApiError {
        let code = match error {
            JobError::Expired => {
                self.metrics.images.deadline_exceeded.of("queue").inc();
                Code::DeadlineExceeded
            }
            JobError::Superseded => Code::Superseded,
            JobError::Failed(_) => Code::InferenceFailed,
            JobError::Stopped => Code::Draining,
        };
        ApiError::new(code, error.to_string())
    }
}

fn refused(refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::QueueFull { retry_after } => {
            ApiError::new(Code::QueueFull, "the queue is full: try again later").retry_after(retry_after)
        }
        Refusal::PredictedLate { wait, retry_after } => {
            let message =
                format!("the image would wait {} ms, longer than its deadline: try again later", wait.as_millis());
            ApiError::new(Code::PredictedLate, message).retry_after(retry_after)
        }
    }
}
