//! Encoded bytes to the model's input, on a bounded pool, before the queue: no bad image ever enters a batch.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use yolo_vision::{
    DecodeError, DecodeLimits, Letterbox, LetterboxError, Picture, Size, Task, centre_crop_into, decode,
    letterbox_parallel_into,
};

use crate::admission::Refusal;
use crate::batcher::{JobError, Place};
use crate::engine::{EngineInput, LoadedModel, Pixels};
use crate::http::body::Upload;
use crate::http::error::{ApiError, Code};
use crate::metrics::ImageMetrics;
use crate::permits::{FairPermits, Permit};
use crate::priority;

/// A picture ready to be queued.
#[derive(Debug)]
pub struct Prepared {
    /// The model's input.
    pub input: EngineInput,
    /// The picture's size, and the way back to it; a classification has no way to go.
    pub letterbox: Letterbox,
    /// Time of decoding.
    pub decode: Duration,
    /// Time of resizing and padding, unless the engine does it.
    pub preprocess: Duration,
}

/// When a picture may use the pool.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'a> {
    /// Whose turn it shares.
    pub place: &'a Place,
    /// Later it is worthless; `None` if it may wait as long as it takes.
    pub start_by: Option<Instant>,
    /// When its request gives it up.
    pub answer_by: Option<Instant>,
    /// Whether its image has not been run yet, so that it is decoded for that, and who leaves now has cancelled it; else it
    /// is drawn.
    pub unrun: bool,
}

/// Work of one kind.
#[derive(Debug, Default)]
struct Backlog {
    /// Pictures that wait for the pool.
    waiting: AtomicUsize,
    /// Moving mean of the time of one.
    mean_micros: AtomicU64,
}

/// Leave to draw a picture once it has been run.
#[derive(Debug)]
pub struct Promise(Arc<AtomicUsize>);

impl Drop for Promise {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Decodes at most `threads` pictures at a time.
#[derive(Debug)]
pub struct Preparer {
    permits: FairPermits,
    threads: usize,
    limits: DecodeLimits,
    decoding: Arc<Backlog>,
    drawing: Arc<Backlog>,
    /// Pictures that will wait to be drawn.
    promised: Arc<AtomicUsize>,
    metrics: ImageMetrics,
}

/// Counts a picture as waiting while it lives, and as cancelled if its client leaves meanwhile.
struct Waiting<'a> {
    preparer: &'a Preparer,
    turn: &'a Turn<'a>,
    left: bool,
}

impl<'a> Waiting<'a> {
    fn new(preparer: &'a Preparer, turn: &'a Turn<'a>) -> Self {
        preparer.backlog(turn).waiting.fetch_add(1, Ordering::Relaxed);
        preparer.metrics.stage_queued.of("decode").inc();
        Self { preparer, turn, left: true }
    }

    fn ended(mut self) {
        self.left = false;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.preparer.backlog(self.turn).waiting.fetch_sub(1, Ordering::Relaxed);
        self.preparer.metrics.stage_queued.of("decode").dec();
        let in_time = self.turn.answer_by.is_none_or(|answer_by| Instant::now() < answer_by);
        if self.left && self.turn.unrun && in_time {
            self.preparer.metrics.cancelled.of("queue").inc();
        }
    }
}

impl Preparer {
    /// A pool of `threads` that prepares pictures, each decoded within `limits`.
    pub fn new(threads: usize, limits: DecodeLimits, metrics: ImageMetrics) -> Self {
        metrics.stage_workers.of("decode").set(i64::try_from(threads).unwrap_or(i64::MAX));
        Self {
            permits: FairPermits::new(threads),
            threads,
            limits,
            decoding: Arc::default(),
            drawing: Arc::default(),
            promised: Arc::default(),
            metrics,
        }
    }

    /// What a picture may cost.
    pub const fn limits(&self) -> &DecodeLimits {
        &self.limits
    }

    /// Time that the pictures which wait for the pool will take.
    pub fn wait(&self) -> Duration {
        self.wait_beside(0)
    }

    /// Promises to draw a picture, before it costs anything, unless the drawings promised before it and the pictures that
    /// wait will take longer than `start_within`.
    ///
    /// # Errors
    /// [`Refusal::PredictedLate`]
    pub fn promise(&self, start_within: Duration) -> Result<Promise, Refusal> {
        let promise = Promise(Arc::clone(&self.promised));
        let wait = self.wait_beside(promise.0.fetch_add(1, Ordering::Relaxed));
        if wait > start_within { Err(Refusal::late(wait, start_within)) } else { Ok(promise) }
    }

    fn wait_beside(&self, promised: usize) -> Duration {
        let of = |backlog: &Backlog, more: usize| {
            let pictures = (backlog.waiting.load(Ordering::Relaxed) + more) as u64;
            (pictures, backlog.mean_micros.load(Ordering::Relaxed).saturating_mul(pictures))
        };
        let ((decoded, decoding), (drawn, drawing)) = (of(&self.decoding, 0), of(&self.drawing, promised));
        let pictures = decoded + drawn;
        let rounds = pictures / self.threads.max(1) as u64;
        let micros = decoding.saturating_add(drawing).saturating_mul(rounds).checked_div(pictures);
        Duration::from_micros(micros.unwrap_or_default())
    }

    fn backlog(&self, turn: &Turn<'_>) -> &Arc<Backlog> {
        if turn.unrun { &self.decoding } else { &self.drawing }
    }

    /// Runs `work` on the pool, when it is its turn.
    ///
    /// Cancellation: dropped while it waits for the pool, nothing has been done; later, the work is finished and its
    /// result thrown away.
    ///
    /// # Errors
    /// Those of `work`; 504 if its turn comes too late, 409 if a newer frame of its stream came; 500 if the work panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        turn: &Turn<'_>,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let waiting = Waiting::new(self, turn);
        let permit = self.acquire(turn).await;
        waiting.ended();
        let permit = permit?;
        let backlog = Arc::clone(self.backlog(turn));
        let work = tokio::task::spawn_blocking(move || {
            priority::give_way();
            let start = Instant::now();
            let done = work();
            if done.is_ok() {
                learn(&backlog.mean_micros, start.elapsed());
            }
            drop(permit); // with the work, not with the request: a request may leave while its picture is decoded
            done
        });
        // The task is never aborted, so the only error is a panic.
        work.await.map_err(|_| ApiError::new(Code::Internal, "working on the picture crashed"))?
    }

    async fn acquire(&self, turn: &Turn<'_>) -> Result<Permit, ApiError> {
        let permit = self.permits.acquire(turn.place);
        let permit = match turn.start_by {
            // A free thread is no excuse: what is late when it comes is not begun either.
            Some(start_by) if Instant::now() < start_by => tokio::time::timeout_at(start_by.into(), permit).await.ok(),
            Some(_) => None,
            None => Some(permit.await),
        };
        let Some(permit) = permit else {
            self.metrics.deadline_exceeded.of("queue").inc();
            return Err(ApiError::new(Code::DeadlineExceeded, JobError::Expired.to_string()));
        };
        permit.map_err(|_| {
            self.metrics.cancelled.of("queue").inc();
            ApiError::new(Code::Superseded, JobError::Superseded.to_string())
        })
    }

    /// Decodes a picture and fits it into the input of `model`, of size `target`, or leaves that to its engine.
    ///
    /// # Errors
    /// The picture's own faults as 415 or 422; otherwise as [`Self::run`].
    pub async fn prepare(
        &self,
        upload: Upload,
        (model, target): (&LoadedModel, Size),
        turn: &Turn<'_>,
    ) -> Result<Prepared, ApiError> {
        let (limits, model, pool) = (self.limits, model.clone(), self.permits.clone());
        let prepared = self.run(turn, move || prepare(upload, &limits, (&model, target), &pool)).await?;
        self.metrics.stage.of("decode").observe(prepared.decode.as_secs_f64());
        self.metrics.stage.of("preprocess").observe(prepared.preprocess.as_secs_f64());
        Ok(prepared)
    }
}

/// Moving mean with weight 1/8. Two threads may lose one update between them; it is an estimate.
fn learn(mean_micros: &AtomicU64, time: Duration) {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let old = mean_micros.load(Ordering::Relaxed);
    let new = if old == 0 { micros } else { old - old / 8 + micros / 8 };
    mean_micros.store(new, Ordering::Relaxed);
}

fn prepare(
    upload: Upload,
    limits: &DecodeLimits,
    (model, target): (&LoadedModel, Size),
    pool: &FairPermits,
) -> Result<Prepared, ApiError> {
    let start = Instant::now();
    let picture = decode(&upload.bytes, limits).map_err(|error| of_picture(&error))?;
    let content = upload.content;
    drop(upload); // the encoded bytes and their share of the memory for bodies
    let decoded = Instant::now();
    let internal = |error: LetterboxError| ApiError::new(Code::Internal, error.to_string());
    let letterbox = Letterbox::plan(picture.size(), target).map_err(internal)?;
    let pixels = if model.takes(picture.size(), target) {
        Pixels::Picture(picture, letterbox)
    } else {
        fitted(&picture, &letterbox, model.info.task(), pool).map_err(internal)?.into()
    };
    Ok(Prepared {
        input: EngineInput { pixels, size: target, content },
        letterbox,
        decode: decoded.saturating_duration_since(start),
        preprocess: decoded.elapsed(),
    })
}

fn fitted(picture: &Picture, letterbox: &Letterbox, task: Task, pool: &FairPermits) -> Result<Vec<u8>, LetterboxError> {
    let mut pixels = vec![0; letterbox.output_len()];
    if task == Task::Classify {
        centre_crop_into(picture, letterbox.target(), &mut pixels)?;
    } else {
        // Threads of the pool that have no picture of their own may help with a large one; nobody waits for them.
        let helpers = pool.take_idle(letterbox.threads_max().get() - 1);
        let threads = NonZeroUsize::MIN.saturating_add(helpers.len());
        letterbox_parallel_into(picture, letterbox, &mut pixels, threads)?;
    }
    Ok(pixels)
}

/// A picture's fault as the API answers it.
pub(crate) fn of_picture(error: &DecodeError) -> ApiError {
    let code = match error {
        DecodeError::Unsupported => Code::UnsupportedImage,
        DecodeError::Truncated { .. } | DecodeError::Damaged { .. } => Code::BadImage,
        DecodeError::Empty { .. } => Code::ImageEmpty,
        DecodeError::TooLarge { .. } | DecodeError::TooMuchMemory { .. } => Code::ImageTooLarge,
    };
    ApiError::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use axum::body::Body;
    use axum::http::Request;
    use axum::response::Response;
    use futures::FutureExt;
    use futures::future::BoxFuture;
    use tower::ServiceExt;
    use yolo_vision::{ModelInfo, Parameters, PictureFormat, TensorShape, encode};

    use super::*;
    use crate::app::App;
    use crate::args::Config;
    use crate::batcher::Batcher;
    use crate::engine::{Pixels, emulated};
    use crate::http;
    use crate::lifecycle::Stage;
    use crate::predictor::Predictor;

    const SIZE: Size = Size::new(64, 64);

    /// A model that lets its engine letterbox.
    fn model(task: &str, output: &[i64]) -> LoadedModel {
        let metadata = [("task", task), ("names", "{0: 'a', 1: 'b'}"), ("end2end", "True")];
        let metadata: BTreeMap<_, _> = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let input = TensorShape::new("images", &[1, 3, 64, 64]);
        let info = ModelInfo::parse(&metadata, &[input], &[TensorShape::new("output0", output)]).unwrap();
        LoadedModel { info, letterboxes: true, ..emulated::load(&Config::new("pretended.onnx")).unwrap() }
    }

    fn png([width_px, height_px]: [u32; 2]) -> Vec<u8> {
        let size = Size::new(width_px, height_px);
        let levels = (0..3 * size.pixels()).map(|index| u8::try_from(index * 7 % 251).unwrap()).collect();
        let mut file = Vec::new();
        encode(&Picture::from_rgb(size, levels).unwrap(), PictureFormat::Png, &mut file).unwrap();
        file
    }

    fn input(model: &LoadedModel, sides: [u32; 2]) -> EngineInput {
        let upload = Upload {
            bytes: png(sides).into(),
            content: [0; 32],
            parameters: Vec::new(),
            received: Instant::now(),
            read: Duration::ZERO,
            hash: Duration::ZERO,
            memory: None,
        };
        prepare(upload, &DecodeLimits::default(), (model, SIZE), &FairPermits::new(1)).unwrap().input
    }

    #[test]
    fn an_engine_that_letterboxes_gets_pictures_that_pay_and_means_the_same_by_them() {
        let here = LoadedModel { letterboxes: false, ..model("detect", &[1, 8, 6]) };
        let there = LoadedModel { letterboxes: true, ..here.clone() };
        // Four times the input's pixels, and a few more.
        for (sides, left_to_it) in [([30, 50], true), ([128, 128], true), ([128, 129], false)] {
            let [here, there] = [&here, &there].map(|model| input(model, sides));
            assert!(matches!(here.pixels, Pixels::Levels(_)));
            assert_eq!(matches!(there.pixels, Pixels::Picture(..)), left_to_it, "{sides:?}");
            let numbers = [here, there].map(|input| {
                let mut numbers = vec![-1.0; input.pixels.len()];
                input.pixels.write(&mut numbers).unwrap();
                numbers
            });
            assert_eq!(numbers[0], numbers[1], "{sides:?}");
        }
        assert_eq!(there.image_bytes_max(), 4 * here.image_bytes_max(), "what waits is counted as it is");
        let crop = input(&model("classify", &[1, 2]), [30, 50]);
        assert!(matches!(crop.pixels, Pixels::Levels(_)), "a classification is cropped, not letterboxed");
    }

    #[test]
    fn drawings_are_promised_while_they_can_be_begun_in_time() {
        let (minute, metrics) = (Duration::from_mins(1), App::new().metrics.images.clone());
        let preparer = Preparer::new(1, DecodeLimits::default(), metrics);
        learn(&preparer.drawing.mean_micros, minute);
        let first = preparer.promise(minute / 2).unwrap();
        let refused = Refusal::PredictedLate { wait: minute, retry_after: minute / 2 };
        assert_eq!(preparer.promise(minute / 2).unwrap_err(), refused);
        assert_eq!(preparer.wait(), Duration::ZERO, "what is to be decoded comes before them");
        assert!(preparer.promise(minute).is_ok());
        drop(first);
        assert!(preparer.promise(Duration::ZERO).is_ok());
    }

    /// Asks for a grey square of so many pixels, in a form.
    type Ask = Box<dyn Fn(&str, u32) -> BoxFuture<'static, Response>>;

    /// A server with one thread for pictures that believes a drawing to take a minute; three times as long as it may wait.
    fn serving() -> (Arc<App>, Arc<Preparer>, Ask) {
        let (app, model) = (Arc::new(App::new()), emulated::load(&Config::new("pretended.onnx")).unwrap());
        app.offer_knobs(br#"{"deadlineMillis":20000}"#);
        let batcher = Batcher::start(&model, 1, app.knobs(), &app.metrics).unwrap();
        let preparer = Arc::new(Preparer::new(1, DecodeLimits::default(), app.metrics.images.clone()));
        learn(&preparer.drawing.mean_micros, Duration::from_mins(1));
        let parts = (batcher, Arc::clone(&preparer));
        app.serve(Predictor::new(model, Parameters::default(), parts, app.cache(), Arc::clone(&app.metrics)));
        app.lifecycle.advance(Stage::Serving);
        let router = http::router(Arc::clone(&app));
        let ask = move |accept: &str, side_px: u32| {
            let body = Body::from(png([side_px; 2]));
            let request = Request::post("/predict").header("accept", accept).body(body).unwrap();
            let answer = router.clone().oneshot(request);
            async move { answer.await.unwrap() }.boxed()
        };
        (app, preparer, Box::new(ask))
    }

    async fn waiting(backlog: &Backlog, pictures: usize) {
        while backlog.waiting.load(Ordering::Relaxed) < pictures {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_picture_that_could_not_be_drawn_in_time_is_refused_before_it_is_run_and_a_known_one_waits() {
        let (app, preparer, ask) = serving();
        assert_eq!(ask("*/*", 9).await.status(), 200);
        let busy = preparer.permits.acquire(&Place::of_new_request()).now_or_never().unwrap().unwrap();
        let known = [(); 3].map(|()| tokio::spawn(ask("image/png", 9)));
        waiting(&preparer.drawing, 3).await;
        let refused = ask("image/png", 10).await;
        assert_eq!(refused.status(), 429);
        assert!(refused.headers().contains_key("retry-after"));
        assert_eq!(ask("*/*", 9).await.status(), 200, "nothing is to be drawn");
        drop(busy);
        for answer in known {
            assert_eq!(answer.await.unwrap().status(), 200);
        }
        app.predictor().unwrap().batcher().stop();
    }

    #[tokio::test]
    async fn a_picture_that_will_be_drawn_is_reckoned_with_while_it_is_run() {
        let (app, preparer, ask) = serving();
        let busy = preparer.permits.acquire(&Place::of_new_request()).now_or_never().unwrap().unwrap();
        let first = tokio::spawn(ask("image/png", 9));
        waiting(&preparer.decoding, 1).await;
        assert_eq!(ask("image/png", 10).await.status(), 429, "it would be drawn a minute later");
        let plain = tokio::spawn(ask("*/*", 11));
        waiting(&preparer.decoding, 2).await;
        drop(busy);
        for answer in [first, plain] {
            assert_eq!(answer.await.unwrap().status(), 200);
        }
        assert_eq!(preparer.promised.load(Ordering::Relaxed), 0);
        app.predictor().unwrap().batcher().stop();
    }
}
