//! One inference worker: a thread that owns a session.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use yolo_vision::{OutputError, OutputView, Size, postprocess};

use super::held::Held;
use super::probe::Probe;
use super::queue::{BatchTime, Item, Pull, Shared};
use super::{Found, ImageTensor, Inferred, JobError, Wanted};
use crate::engine::{BatchOutput, Engine, EngineError, EngineInput, Memory};
use crate::limits::BATCH_SIZES;
use crate::metrics::add_seconds;
use crate::priority;

/// Runs of one image of each input size before a session counts as warm, the picture of its try among them: the first
/// two take memory and an eighth longer than the third and all later ones (page-layout-640 on one core).
const WARM_RUNS: usize = 3;
/// A grey of no meaning, for runs without a picture.
const BLANK: u8 = 114;

pub(super) struct Worker {
    shared: Arc<Shared>,
    index: usize,
    /// `None` where it broke and no other one could be opened yet.
    engine: Option<Box<dyn Engine>>,
    held: Held,
}

/// The worker's session: a new one if it has none.
fn opened<'a>(engine: &'a mut Option<Box<dyn Engine>>, shared: &Shared) -> Result<&'a mut dyn Engine, EngineError> {
    let opened = match engine.take() {
        Some(engine) => engine,
        None => shared.model.sessions.open()?,
    };
    Ok(engine.insert(opened).as_mut())
}

/// What a batch came to.
struct Outcome {
    /// Of the batches that ran well.
    times: Vec<BatchTime>,
    failed: bool,
}

impl Worker {
    /// Warms a session. The worker counts as running meanwhile, so that nothing is timed beside it.
    ///
    /// To be called by the thread that will run it: launches that a GPU recorded belong to the thread that ran them.
    pub(super) fn warm(shared: Arc<Shared>, index: usize, engine: Box<dyn Engine>) -> Result<Self, EngineError> {
        let mut worker = Self { shared, index, engine: Some(engine), held: Held::default() };
        let mut inputs = worker.shared.model.sizes.to_vec();
        // The largest first: the memory that it takes then serves the others too.
        inputs.sort_by_key(|input| std::cmp::Reverse(input.pixels()));
        let mut learned = Vec::with_capacity(inputs.len());
        for input in inputs {
            worker.prepare_sizes(input);
            worker.probe(input)?;
            for _ in 2..WARM_RUNS {
                worker.time(input, 1, Memory::Keep)?;
            }
            learned.push(BatchTime { input, size: 1, time: worker.time(input, 1, Memory::Keep)?, detect: None });
        }
        // One time is enough to predict the first requests' waits. Others warm beside it, so none counts for more.
        worker.shared.finish(index, if index == 0 { &learned } else { &[] }, false);
        Ok(worker)
    }

    /// Answers a picture as requests' are.
    fn probe(&mut self, input: Size) -> Result<(), EngineError> {
        let model = &self.shared.model;
        let probe = Probe::new(model, input)?;
        let engine = opened(&mut self.engine, &self.shared)?;
        probe.answer(&*engine.run(&[&probe.input], Memory::Keep)?, &model.info)
    }

    /// Runs every size once if the first run of each costs seconds: no request shall pay for it.
    fn prepare_sizes(&mut self, input: Size) {
        let model = &self.shared.model;
        let (fixed, largest) = (model.batches_fixed, model.batch_max);
        for size in BATCH_SIZES.into_iter().filter(|size| fixed && (2..=largest).contains(size)) {
            if let Err(error) = self.time(input, size, Memory::Keep) {
                // It does not fit into the device's memory. Tried with requests' images, each of its batches would fail
                // first and be run one by one then.
                tracing::warn!(%input, size, %error, "A batch size cannot be prepared: it is not used.");
                self.shared.bound(input, size);
                return;
            }
        }
    }

    pub(super) fn run(mut self) {
        priority::give_way();
        loop {
            match self.shared.pull(self.index) {
                Pull::Batch(items) => {
                    let start = Instant::now();
                    self.shared.count_late(&items, start);
                    let outcome = self.run_items(items);
                    add_seconds(&self.shared.metrics.batch.busy, start.elapsed());
                    self.shared.finish(self.index, &outcome.times, outcome.failed);
                }
                Pull::Time { size, last } => self.time_at_idle(size, last),
                Pull::Repair => self.repair(),
                Pull::Stop => return,
            }
        }
    }

    /// Runs a batch of a size that is not known yet.
    fn time_at_idle(&mut self, size: usize, last: bool) {
        // Rare sizes give their memory back after the last run only: to get it anew would be part of the time.
        let memory = if last && size > 1 { Memory::Release } else { Memory::Keep };
        let input = self.shared.model.info.size();
        let timed = catch_unwind(AssertUnwindSafe(|| self.time(input, size, memory)));
        self.held.not_needed(self.pixels_of(input, size));
        match timed.unwrap_or_else(|_| self.renew()) {
            Ok(time) => self.shared.finish_timing(self.index, size, time),
            Err(error) => {
                tracing::warn!(size, %error, "Timing a batch at idle failed.");
                self.shared.timing_failed(self.index, size, self.engine.is_none());
            }
        }
    }

    fn repair(&mut self) {
        let repaired = catch_unwind(AssertUnwindSafe(|| {
            self.engine = None; // first: memory may not hold two
            self.probe(self.shared.model.info.size())
        }));
        let failed = !matches!(repaired, Ok(Ok(())));
        tracing::warn!(failed, "Tried a new session after failures in a row.");
        self.shared.finish(self.index, &[], failed);
    }

    /// Pixels of a batch: a model with a fixed one always runs it whole.
    fn pixels_of(&self, input: Size, size: usize) -> u64 {
        input.pixels() * self.shared.model.info.batch_fixed().unwrap_or(size).max(size) as u64
    }

    fn time(&mut self, input: Size, size: usize, memory: Memory) -> Result<Duration, EngineError> {
        let blank = blank(input);
        let start = Instant::now();
        self.held.ran(self.pixels_of(input, size), memory);
        opened(&mut self.engine, &self.shared)?.run(&vec![&blank; size], memory)?;
        Ok(start.elapsed())
    }

    /// Runs a batch; if it fails, each image by itself, once, unless its answer would come too late.
    fn run_items(&mut self, items: Vec<Item>) -> Outcome {
        let (input, size) = (items.first().map_or_else(|| self.shared.model.info.size(), Item::size), items.len());
        match self.attempt(&items) {
            Ok(Ran { answers, time, detect }) => {
                self.answer(items, answers);
                Outcome { times: vec![BatchTime { input, size, time, detect: Some(detect) }], failed: false }
            }
            Err(error) => {
                self.shared.metrics.batch.engine_errors.inc();
                tracing::warn!(size, %error, "A batch failed.");
                // Without a session there is nothing to run them on, one by one either.
                if size == 1 || self.engine.is_none() {
                    let failed = |_: &Item| Err(JobError::Failed(error.0.clone()));
                    let answers = items.iter().map(failed).collect();
                    self.answer(items, answers);
                    return Outcome { times: Vec::new(), failed: true };
                }
                let mut outcomes = Vec::with_capacity(size);
                for item in items {
                    // It was begun in time; that another image broke its batch is not its fault.
                    let now = Instant::now();
                    if item.unwanted(now) {
                        item.expire(now, &self.shared.metrics);
                    } else if self.engine.is_none() {
                        self.answer(vec![item], vec![Err(JobError::Failed(error.0.clone()))]);
                    } else {
                        outcomes.push(self.run_items(vec![item]));
                    }
                }
                // One bad image is not a bad engine: it fails only if no image ran.
                let failed = outcomes.iter().all(|outcome| outcome.failed);
                if !outcomes.is_empty() && !outcomes.iter().any(|outcome| outcome.failed) {
                    self.shared.failed(input, size);
                }
                Outcome { times: outcomes.into_iter().flat_map(|outcome| outcome.times).collect(), failed }
            }
        }
    }

    fn attempt(&mut self, items: &[Item]) -> Result<Ran, EngineError> {
        catch_unwind(AssertUnwindSafe(|| self.infer(items))).unwrap_or_else(|_| self.renew())
    }

    /// Opens a new session after a panic, which may have left the old one in any state.
    fn renew<T>(&mut self) -> Result<T, EngineError> {
        self.engine = None; // first: memory may not hold two
        opened(&mut self.engine, &self.shared)?;
        Err(EngineError("the engine panicked".to_owned()))
    }

    fn infer(&mut self, items: &[Item]) -> Result<Ran, EngineError> {
        let inputs: Vec<&EngineInput> = items.iter().map(|item| &item.job.input).collect();
        let pixels = items.first().map_or(0, |item| self.pixels_of(item.size(), items.len()));
        let memory = self.held.next(pixels);
        self.held.ran(pixels, memory);
        let engine = opened(&mut self.engine, &self.shared)?;
        let start = Instant::now();
        let output = engine.run(&inputs, memory)?;
        let time = start.elapsed();
        self.shared.count_batch(items, start, time);
        let answers = items.iter().enumerate().map(|(index, item)| {
            let mut inferred = self.shared.detect(&*output, index, item)?;
            inferred.queue = start.saturating_duration_since(item.enqueued);
            inferred.inference = time;
            inferred.batch_size = items.len();
            Ok(inferred)
        });
        let answers = answers.collect();
        Ok(Ran { answers, time, detect: start.elapsed().saturating_sub(time) })
    }

    fn answer(&self, items: Vec<Item>, answers: Vec<Result<Inferred, JobError>>) {
        let now = Instant::now();
        for (item, answer) in items.into_iter().zip(answers) {
            let in_time = item.in_time(now);
            if item.reply.send(answer).is_err() && in_time {
                self.shared.metrics.images.cancelled.of("running").inc();
            }
        }
    }
}

/// A picture of no meaning.
fn blank(size: Size) -> EngineInput {
    let len = usize::try_from(3 * size.pixels()).unwrap_or_default();
    EngineInput { pixels: vec![BLANK; len].into(), size, content: [0; 32] }
}

/// A batch that the engine ran.
struct Ran {
    answers: Vec<Result<Inferred, JobError>>,
    time: Duration,
    /// For finding the objects.
    detect: Duration,
}

impl Shared {
    /// Counts the images of a batch that begins at `start`, after they had to.
    fn count_late(&self, items: &[Item], start: Instant) {
        let late = items.iter().filter(|item| item.late(start) || !item.in_time(start)).count();
        self.metrics.images.started_late.inc_by(late as u64);
    }

    fn count_batch(&self, items: &[Item], start: Instant, time: Duration) {
        let (batch, images) = (&self.metrics.batch, &self.metrics.images);
        let (size, time_s) = (items.len(), time.as_secs_f64());
        batch.batches.of(size).inc();
        batch.seconds.of(size).inc_by(time_s);
        batch.seconds_squared.of(size).inc_by(time_s * time_s);
        batch.images.inc_by(size as u64);
        for item in items {
            images.inference_duration.observe(time_s);
            images.stage.of("inference").observe(time_s);
            images.stage.of("queue").observe(start.saturating_duration_since(item.enqueued).as_secs_f64());
        }
    }

    fn detect(&self, output: &dyn BatchOutput, index: usize, item: &Item) -> Result<Inferred, JobError> {
        let start = Instant::now();
        let views =
            output.image(index).ok_or_else(|| JobError::Failed("the model gave no output for it".to_owned()))?;
        let found = match &item.job.wanted {
            Wanted::Detections { letterbox, parameters } => {
                Found::Detections(postprocess(&views, &self.model.info, letterbox, parameters).map_err(|error| {
                    match error {
                        OutputError::TooLarge => JobError::TooLarge(error),
                        OutputError::Shapes { .. } => JobError::Failed(error.to_string()),
                    }
                })?)
            }
            Wanted::Tensors => {
                let copy =
                    |view: &OutputView<'_>| ImageTensor { shape: view.shape.to_vec(), values: view.values.to_vec() };
                Found::Tensors(views.iter().map(copy).collect())
            }
        };
        let postprocess = start.elapsed();
        self.metrics.images.stage.of("postprocess").observe(postprocess.as_secs_f64());
        Ok(Inferred {
            found,
            batch_size: 1,
            enqueued: item.enqueued,
            queue: Duration::ZERO,
            inference: Duration::ZERO,
            postprocess,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Config;
    use crate::batcher::{Batcher, Job, Place};
    use crate::engine::{LoadedModel, Sessions, emulated};
    use crate::knobs::Knobs;
    use crate::metrics::Metrics;

    /// Gives an output of another shape than the model declares.
    struct Another;

    impl Sessions for Another {
        fn open(&self) -> Result<Box<dyn Engine>, EngineError> {
            Ok(Box::new(Self))
        }
    }

    impl Engine for Another {
        fn run(&mut self, _: &[&EngineInput], _: Memory) -> Result<Box<dyn BatchOutput + '_>, EngineError> {
            Ok(Box::new(Self))
        }
    }

    impl BatchOutput for Another {
        fn image(&self, _: usize) -> Option<Vec<OutputView<'_>>> {
            Some(vec![OutputView { shape: &[2, 3], values: &[0.0; 6] }])
        }
    }

    #[test]
    fn a_model_that_answers_otherwise_than_it_declares_does_not_start() {
        let mut model = emulated::load(&Config::new("pretended.onnx")).unwrap();
        let start = |model: &LoadedModel| {
            Batcher::start(model, 2, Knobs::default(), &Arc::new(Metrics::new())).map(|batcher| batcher.stop())
        };
        start(&model).unwrap();
        model.sessions = Arc::new(Another);
        let error = start(&model).unwrap_err();
        assert!(error.0.starts_with("a picture for a try got no answer"), "{error}");
    }

    #[test]
    fn a_batch_that_begins_too_late_is_counted() {
        let model = emulated::load(&Config::new("pretended.onnx")).unwrap();
        let size = model.info.size();
        let shared = Shared::new(model, 1, Knobs::default(), Arc::new(Metrics::new()));
        let now = Instant::now();
        let soon = now + Duration::from_secs(1);
        let mut count = 0;
        for (start_by, answer_by, late) in
            [(None, None, 0), (Some(soon), Some(soon), 0), (Some(now), None, 1), (None, Some(now), 1)]
        {
            let (wanted, place, begun) = (Wanted::Tensors, Place::of_new_request(), Arc::default());
            let job = Job { input: blank(size), wanted, place, start_by, answer_by, begun };
            let item = Item { job, enqueued: now, reply: tokio::sync::oneshot::channel().0 };
            shared.count_late(&[item], now + Duration::from_millis(1));
            count += late;
            assert_eq!(shared.metrics.images.started_late.get(), count);
        }
    }
}
