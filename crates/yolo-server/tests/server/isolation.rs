//! An engine that fails: only the guilty image suffers, and the server heals.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use yolo_server::batcher::{Batcher, Inferred, Job, JobError, Place, Wanted};
use yolo_server::engine::{BatchOutput, Engine, EngineError, EngineInput, LoadedModel, Memory, Sessions, emulated};
use yolo_server::knobs::Knobs;
use yolo_server::lifecycle::Stage;
use yolo_server::limits::WORKERS_END_MAX;
use yolo_server::metrics::Metrics;
use yolo_vision::{Letterbox, Parameters, Size};

use crate::support;

const GOOD: u8 = 1;
/// A picture that the engine cannot run.
const BAD: u8 = 2;
/// A picture that crashes it.
const CRASHES: u8 = 3;
/// A picture that it can run only alone, which takes it a while to find out.
const ALONE: u8 = 4;
const A_WHILE: Duration = Duration::from_secs(5);

/// A real (emulated) engine in which some pictures, or all while `broken`, fail.
struct Fragile {
    inner: Arc<dyn Sessions>,
    broken: Arc<AtomicBool>,
    opened: Arc<AtomicU32>,
}

struct FragileEngine {
    inner: Box<dyn Engine>,
    broken: Arc<AtomicBool>,
}

impl Sessions for Fragile {
    fn open(&self) -> Result<Box<dyn Engine>, EngineError> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(FragileEngine { inner: self.inner.open()?, broken: Arc::clone(&self.broken) }))
    }
}

impl Engine for FragileEngine {
    fn run(&mut self, inputs: &[&EngineInput], memory: Memory) -> Result<Box<dyn BatchOutput + '_>, EngineError> {
        let any = |kind: u8| inputs.iter().any(|input| input.content[31] == kind);
        assert!(!any(CRASHES), "a picture that crashes the engine");
        if any(ALONE) && inputs.len() > 1 {
            std::thread::sleep(A_WHILE);
            return Err(EngineError("not with others".to_owned()));
        }
        if any(BAD) || self.broken.load(Ordering::SeqCst) {
            return Err(EngineError("no".to_owned()));
        }
        self.inner.run(inputs, memory)
    }
}

#[tokio::test]
async fn a_batch_that_never_ends_does_not_hold_the_end_of_the_server() {
    let (server, gate) = support::start_gated(support::emulated(0, 1)).await;
    let app = server.app();
    let held = gate.hold().await;
    let picture = support::png(8, 8, [1; 3]);
    let (answer, ended) = tokio::join!(support::predict(&server, &picture), async {
        gate.begun(1).await;
        let started = Instant::now();
        app.lifecycle.advance(Stage::Aborting);
        started
    });
    assert_eq!(answer.status, 503, "{}", answer.body);
    let stopped = tokio::time::timeout(10 * WORKERS_END_MAX, server.stop()).await;
    drop(held);
    assert!(stopped.is_ok(), "it ended {:?} after its requests", ended.elapsed());
}

/// `model` with an engine that fails while `broken`.
pub fn fragile(model: LoadedModel, broken: &Arc<AtomicBool>) -> LoadedModel {
    let sessions = Fragile { inner: model.sessions, broken: Arc::clone(broken), opened: Arc::new(AtomicU32::new(0)) };
    LoadedModel { sessions: Arc::new(sessions), ..model }
}

struct Setup {
    batcher: Batcher,
    broken: Arc<AtomicBool>,
    opened: Arc<AtomicU32>,
}

fn start() -> Setup {
    let model = emulated::load(&support::emulated(5, 1)).unwrap();
    let (broken, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let sessions = Fragile { inner: model.sessions, broken: Arc::clone(&broken), opened: Arc::clone(&opened) };
    let model = LoadedModel { sessions: Arc::new(sessions), ..model };
    // The delay makes one batch of four.
    let (deadline, queue_delay_max) = (support::PATIENCE, support::PATIENCE);
    let knobs = Knobs { batch_max: 4, timed_batch_max: 4, deadline, queue_delay_max, ..Knobs::default() };
    let batcher = Batcher::start(&model, 1, knobs, &Arc::new(Metrics::new())).unwrap();
    Setup { batcher, broken, opened }
}

async fn run(batcher: &Batcher, kinds: &[u8]) -> Vec<Result<Inferred, JobError>> {
    run_at(batcher, 64, kinds).await
}

async fn run_at(batcher: &Batcher, side_px: u32, kinds: &[u8]) -> Vec<Result<Inferred, JobError>> {
    let patient = |kind: &u8| (*kind, support::PATIENCE, support::PATIENCE);
    run_within(batcher, side_px, &kinds.iter().map(patient).collect::<Vec<_>>()).await
}

/// Each of the pictures has its time to be started, and to be answered in.
async fn run_within(
    batcher: &Batcher,
    side_px: u32,
    pictures: &[(u8, Duration, Duration)],
) -> Vec<Result<Inferred, JobError>> {
    let side = Size::new(side_px, side_px);
    let job = |(kind, start, answer): (u8, Duration, Duration)| Job {
        input: EngineInput {
            pixels: vec![0; 3 * (side_px * side_px) as usize].into(),
            size: side,
            content: [kind; 32],
        },
        wanted: Wanted::Detections {
            letterbox: Letterbox::plan(side, side).unwrap(),
            parameters: Parameters::default(),
        },
        place: Place::of_new_request(),
        start_by: Some(Instant::now() + start),
        answer_by: Some(Instant::now() + answer),
        begun: Arc::default(),
    };
    let admit = |place: &Place| batcher.admit(place, Duration::ZERO, None).unwrap();
    let replies: Vec<_> =
        pictures.iter().map(|picture| job(*picture)).map(|job| admit(&job.place).enqueue(job)).collect();
    futures::future::join_all(replies).await.into_iter().map(|reply| reply.unwrap()).collect()
}

async fn learned_to_batch(batcher: &Batcher) {
    learned(batcher, 4).await;
}

async fn learned(batcher: &Batcher, size: usize) {
    support::eventually("larger batches pay", async || batcher.load().batch_effective == size).await;
}

#[tokio::test]
async fn a_failed_batch_is_rerun_and_only_the_guilty_image_fails() {
    let Setup { batcher, .. } = start();
    learned_to_batch(&batcher).await;
    let results = run(&batcher, &[GOOD, BAD, GOOD, GOOD]).await;
    let failed: Vec<_> = results.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, true, false, false]);
    assert!(matches!(&results[1], Err(JobError::Failed(reason)) if reason == "no"), "{results:?}");
    assert!(batcher.sound());
    batcher.stop();
}

#[tokio::test]
async fn of_a_batch_that_fails_late_who_still_wants_an_answer_gets_one() {
    let Setup { batcher, .. } = start();
    learned_to_batch(&batcher).await;
    // Long enough for a worker to start the batch, and over when that has failed.
    let (short, long) = (A_WHILE.mul_f64(0.8), support::PATIENCE);
    let pictures = [(ALONE, short, long), (GOOD, short, long), (GOOD, long, short), (GOOD, long, long)];
    // The time to be started in passes while the batch fails: it was started in it. The time for the answer passes, too.
    let results = run_within(&batcher, 64, &pictures).await;
    let answered: Vec<_> = results.iter().map(Result::is_ok).collect();
    assert!(answered == [true, true, false, true] && matches!(results[2], Err(JobError::Expired)), "{results:?}");
    batcher.stop();
}

#[tokio::test]
async fn a_crashed_session_is_replaced() {
    let Setup { batcher, opened, .. } = start();
    learned_to_batch(&batcher).await;
    let results = run(&batcher, &[GOOD, CRASHES, GOOD, GOOD]).await;
    assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1, "{results:?}");
    assert!(opened.load(Ordering::SeqCst) > 1);
    assert!(run(&batcher, &[GOOD; 4]).await.iter().all(Result::is_ok));
    batcher.stop();
}

#[tokio::test]
async fn an_engine_that_keeps_failing_is_not_ready_until_a_new_session_works() {
    let Setup { batcher, broken, .. } = start();
    learned_to_batch(&batcher).await;
    broken.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert!(run(&batcher, &[GOOD; 4]).await.iter().all(Result::is_err));
    }
    support::eventually("not sound", async || !batcher.sound()).await;
    broken.store(false, Ordering::SeqCst);
    support::eventually("sound again", async || batcher.sound()).await;
    assert!(run(&batcher, &[GOOD; 4]).await.iter().all(Result::is_ok));
    batcher.stop();
}

/// Its second session fails once it is broken; those that replace it do not.
struct SecondBreaks {
    inner: Arc<dyn Sessions>,
    broken: Arc<AtomicBool>,
    opened: Arc<AtomicU32>,
}

impl Sessions for SecondBreaks {
    fn open(&self) -> Result<Box<dyn Engine>, EngineError> {
        let second = self.opened.fetch_add(1, Ordering::SeqCst) == 1;
        let broken = if second { Arc::clone(&self.broken) } else { Arc::default() };
        Ok(Box::new(FragileEngine { inner: self.inner.open()?, broken }))
    }
}

#[tokio::test]
async fn a_session_that_fails_beside_one_that_works_is_replaced_after_three_failures() {
    let model = emulated::load(&support::emulated(5, 0)).unwrap();
    let (broken, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let inner = Arc::clone(&model.sessions);
    let sessions = Arc::new(SecondBreaks { inner, broken: Arc::clone(&broken), opened: Arc::clone(&opened) });
    let model = LoadedModel { sessions, batch_max: 1, ..model };
    let knobs = Knobs { batch_max: 1, timed_batch_max: 0, deadline: support::PATIENCE, ..Knobs::default() };
    let batcher = Batcher::start(&model, 2, knobs, &Arc::new(Metrics::new())).unwrap();
    broken.store(true, Ordering::SeqCst);
    let mut failed = 0;
    // It fails at once and is free again at once: without an end to it, most images would fail.
    support::eventually("it is replaced", async || {
        let results = run(&batcher, &[GOOD; 16]).await;
        failed += results.iter().filter(|result| result.is_err()).count();
        assert!(batcher.sound(), "the other one works");
        opened.load(Ordering::SeqCst) > 2
    })
    .await;
    assert_eq!(failed, 3);
    support::eventually("it takes images again", async || batcher.load().workers == 2).await;
    assert!(run(&batcher, &[GOOD; 16]).await.iter().all(Result::is_ok));
    batcher.stop();
}

/// Its second session crashes in its first run.
struct SecondCrashes {
    inner: Arc<dyn Sessions>,
    opened: AtomicU32,
}

struct Crashes;

impl Sessions for SecondCrashes {
    fn open(&self) -> Result<Box<dyn Engine>, EngineError> {
        let second = self.opened.fetch_add(1, Ordering::SeqCst) == 1;
        if second { Ok(Box::new(Crashes)) } else { self.inner.open() }
    }
}

impl Engine for Crashes {
    fn run(&mut self, _: &[&EngineInput], _: Memory) -> Result<Box<dyn BatchOutput + '_>, EngineError> {
        panic!("a session that crashes")
    }
}

#[test]
fn a_session_that_crashes_while_it_is_warmed_is_an_error_and_no_endless_wait() {
    let model = emulated::load(&support::emulated(0, 0)).unwrap();
    let sessions = Arc::new(SecondCrashes { inner: Arc::clone(&model.sessions), opened: AtomicU32::new(0) });
    let model = LoadedModel { sessions, ..model };
    let started = Batcher::start(&model, 2, Knobs::default(), &Arc::new(Metrics::new()));
    assert!(started.unwrap_err().to_string().contains("panicked at its start"));
}

/// Its memory holds so many pixels.
struct Small {
    inner: Arc<dyn Sessions>,
    pixels_max: Arc<AtomicU64>,
    failed: Arc<AtomicU32>,
    crashes: bool,
}

struct SmallEngine {
    inner: Box<dyn Engine>,
    pixels_max: Arc<AtomicU64>,
    failed: Arc<AtomicU32>,
    crashes: bool,
}

impl Sessions for Small {
    fn open(&self) -> Result<Box<dyn Engine>, EngineError> {
        let (pixels_max, failed) = (Arc::clone(&self.pixels_max), Arc::clone(&self.failed));
        Ok(Box::new(SmallEngine { inner: self.inner.open()?, pixels_max, failed, crashes: self.crashes }))
    }
}

impl Engine for SmallEngine {
    fn run(&mut self, inputs: &[&EngineInput], memory: Memory) -> Result<Box<dyn BatchOutput + '_>, EngineError> {
        if inputs.iter().map(|input| input.size.pixels()).sum::<u64>() > self.pixels_max.load(Ordering::SeqCst) {
            self.failed.fetch_add(1, Ordering::SeqCst);
            assert!(!self.crashes, "a batch that crashes the engine");
            return Err(EngineError("out of memory".to_owned()));
        }
        self.inner.run(inputs, memory)
    }
}

#[tokio::test]
async fn a_batch_size_that_does_not_fit_at_another_input_size_is_tried_once() {
    for batches_fixed in [true, false] {
        let mut config = support::emulated(5, 0);
        config.imgsz = vec![64, 128];
        let (model, failed) = (emulated::load(&config).unwrap(), Arc::new(AtomicU32::new(0)));
        let (inner, pixels_max) = (Arc::clone(&model.sessions), Arc::new(AtomicU64::new(4 * 128 * 128)));
        let sessions = Arc::new(Small { inner, pixels_max, failed: Arc::clone(&failed), crashes: false });
        let model = LoadedModel { sessions, batches_fixed, batch_max: 8, ..model };
        let knobs = Knobs { batch_max: 8, timed_batch_max: 8, deadline: support::PATIENCE, ..Knobs::default() };
        let batcher = Batcher::start(&model, 1, knobs, &Arc::new(Metrics::new())).unwrap();
        let largest = async || {
            let results = run_at(&batcher, 128, &[GOOD; 24]).await;
            results.iter().map(|result| result.as_ref().unwrap().batch_size).max().unwrap()
        };
        support::eventually("a batch of 8 was tried, those of 4 pay", async || {
            largest().await == 4 && failed.load(Ordering::SeqCst) > 0
        })
        .await;
        for _ in 0..4 {
            assert_eq!(largest().await, 4);
        }
        assert_eq!(failed.load(Ordering::SeqCst), 1, "{batches_fixed}");
        learned(&batcher, 8).await; // the default size has room for them
        batcher.stop();
    }
}

#[tokio::test]
async fn a_batch_size_that_fits_no_more_is_given_up_after_three_failures_however_busy_the_server() {
    let (model, failed) = (emulated::load(&support::emulated(5, 0)).unwrap(), Arc::new(AtomicU32::new(0)));
    let (inner, pixels_max) = (Arc::clone(&model.sessions), Arc::new(AtomicU64::new(u64::MAX)));
    let sessions =
        Arc::new(Small { inner, pixels_max: Arc::clone(&pixels_max), failed: Arc::clone(&failed), crashes: false });
    let model = LoadedModel { sessions, batch_max: 8, ..model };
    // The delay fills every batch: one of a size that never ran would be given up at once.
    let (deadline, queue_delay_max) = (support::PATIENCE, Duration::from_secs(1));
    let knobs = Knobs { batch_max: 8, timed_batch_max: 8, deadline, queue_delay_max, ..Knobs::default() };
    let batcher = Batcher::start(&model, 1, knobs, &Arc::new(Metrics::new())).unwrap();
    learned(&batcher, 8).await;
    pixels_max.store(4 * 64 * 64, Ordering::SeqCst);
    for _ in 0..3 {
        assert!(run(&batcher, &[GOOD; 48]).await.iter().all(Result::is_ok));
    }
    assert_eq!(failed.load(Ordering::SeqCst), 3);
    assert_eq!(batcher.load().batch_effective, 4);
    batcher.stop();
}

#[tokio::test]
async fn a_batch_that_fails_when_it_is_timed_at_idle_has_no_time_and_ends_no_worker() {
    for crashes in [false, true] {
        let (model, failed) = (emulated::load(&support::emulated(5, 0)).unwrap(), Arc::new(AtomicU32::new(0)));
        let (inner, pixels_max) = (Arc::clone(&model.sessions), Arc::new(AtomicU64::new(4 * 64 * 64)));
        let sessions = Arc::new(Small { inner, pixels_max, failed: Arc::clone(&failed), crashes });
        let model = LoadedModel { sessions, batch_max: 8, ..model };
        let knobs = Knobs { batch_max: 8, timed_batch_max: 8, deadline: support::PATIENCE, ..Knobs::default() };
        let metrics = Arc::new(Metrics::new());
        let batcher = Batcher::start(&model, 1, knobs, &metrics).unwrap();
        support::eventually("8 was tried", async || failed.load(Ordering::SeqCst) > 0).await;
        let results = run(&batcher, &[GOOD; 24]).await;
        let largest = results.iter().map(|result| result.as_ref().unwrap().batch_size).max();
        assert_eq!((largest, failed.load(Ordering::SeqCst)), (Some(4), 1));
        let page = metrics.encode(false).unwrap();
        let timed = |size| page.contains(&format!(r#"yolo_batch_curve_seconds{{size="{size}""#));
        assert!(timed(4) && !timed(8), "{page}");
        batcher.stop();
    }
}

/// Its memory holds one session.
struct Single {
    inner: Arc<dyn Sessions>,
    broken: Arc<AtomicBool>,
    open: Arc<()>,
    refused: Arc<AtomicU32>,
}

struct SingleEngine {
    inner: FragileEngine,
    _open: Arc<()>,
}

impl Sessions for Single {
    fn open(&self) -> Result<Box<dyn Engine>, EngineError> {
        if Arc::strong_count(&self.open) > 1 {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(EngineError("out of memory".to_owned()));
        }
        let inner = FragileEngine { inner: self.inner.open()?, broken: Arc::clone(&self.broken) };
        Ok(Box::new(SingleEngine { inner, _open: Arc::clone(&self.open) }))
    }
}

impl Engine for SingleEngine {
    fn run(&mut self, inputs: &[&EngineInput], memory: Memory) -> Result<Box<dyn BatchOutput + '_>, EngineError> {
        self.inner.run(inputs, memory)
    }
}

#[tokio::test]
async fn a_broken_session_makes_room_before_another_one_is_opened() {
    let (model, broken) = (emulated::load(&support::emulated(5, 0)).unwrap(), Arc::new(AtomicBool::new(false)));
    let (broken_now, refused) = (Arc::clone(&broken), Arc::default());
    let sessions = Single { inner: model.sessions, broken: broken_now, open: Arc::default(), refused };
    let model = LoadedModel { sessions: Arc::new(sessions), ..model };
    let knobs = Knobs { batch_max: 1, timed_batch_max: 0, deadline: support::PATIENCE, ..Knobs::default() };
    let batcher = Batcher::start(&model, 1, knobs, &Arc::new(Metrics::new())).unwrap();
    let crashed = run(&batcher, &[CRASHES]).await;
    assert!(matches!(&crashed[0], Err(JobError::Failed(reason)) if reason.contains("panicked")), "{crashed:?}");
    assert!(run(&batcher, &[GOOD]).await[0].is_ok());
    broken.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert!(run(&batcher, &[GOOD]).await[0].is_err());
    }
    support::eventually("not sound", async || !batcher.sound()).await;
    broken.store(false, Ordering::SeqCst);
    support::eventually("sound again", async || batcher.sound()).await;
    assert!(run(&batcher, &[GOOD]).await[0].is_ok());
    batcher.stop();
}

#[tokio::test]
async fn without_a_session_a_batch_is_not_tried_image_by_image() {
    let (model, open, refused) = (emulated::load(&support::emulated(5, 0)).unwrap(), Arc::new(()), Arc::default());
    let others = Arc::downgrade(&open);
    let sessions = Single { inner: model.sessions, broken: Arc::default(), open, refused: Arc::clone(&refused) };
    let model = LoadedModel { sessions: Arc::new(sessions), ..model };
    let (deadline, queue_delay_max) = (support::PATIENCE, support::PATIENCE);
    let knobs = Knobs { batch_max: 4, timed_batch_max: 4, deadline, queue_delay_max, ..Knobs::default() };
    let batcher = Batcher::start(&model, 1, knobs, &Arc::new(Metrics::new())).unwrap();
    learned_to_batch(&batcher).await;
    let _neighbour = others.upgrade(); // it has the memory as soon as the broken session is closed
    let results = run(&batcher, &[GOOD, CRASHES, GOOD, GOOD]).await;
    assert!(results.iter().all(|result| matches!(result, Err(JobError::Failed(_)))), "{results:?}");
    assert_eq!(refused.load(Ordering::SeqCst), 1);
    batcher.stop();
}
