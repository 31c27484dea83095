//! The queue and what a free worker takes from it.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use yolo_vision::Size;

use super::curve::Curve;
use super::curves::Curves;
use super::{Inferred, Job, JobError, Lane, Place, Reply};
use crate::admission::{Load, Refusal};
use crate::engine::LoadedModel;
use crate::fair::FairQueue;
use crate::knobs::Knobs;
use crate::limits;
use crate::metrics::Metrics;

/// A queued image.
pub(super) struct Item {
    pub(super) job: Job,
    pub(super) enqueued: Instant,
    pub(super) reply: oneshot::Sender<Result<Inferred, JobError>>,
}

impl Item {
    /// Of the model's input.
    pub(super) const fn size(&self) -> Size {
        self.job.input.size
    }

    /// Whether the answer would still be awaited at `now`, had the client stayed.
    pub(super) fn in_time(&self, now: Instant) -> bool {
        self.job.answer_by.is_none_or(|answer_by| now < answer_by)
    }

    /// Whether it is too late to start on it.
    pub(super) fn late(&self, now: Instant) -> bool {
        self.job.start_by.is_some_and(|start_by| now > start_by)
    }

    /// Whether its answer would be in vain: it would come too late, or its client left.
    pub(super) fn unwanted(&self, now: Instant) -> bool {
        self.reply.is_closed() || !self.in_time(now)
    }

    /// Ends it without an answer.
    pub(super) fn expire(self, now: Instant, metrics: &Metrics) {
        if self.reply.is_closed() && self.in_time(now) {
            metrics.images.cancelled.of("queue").inc();
        }
        let _ = self.reply.send(Err(JobError::Expired));
    }
}

/// What a worker does next.
pub(super) enum Pull {
    /// Run these.
    Batch(Vec<Item>),
    /// Nothing to do: time a batch of this size, of the default input size, once. One run a pull, so that an image which
    /// comes waits for no more.
    Time {
        /// Images in it.
        size: usize,
        /// Whether it is the size's last timed run.
        last: bool,
    },
    /// The worker's session failed several times: open a new one and try it.
    Repair,
    /// End.
    Stop,
}

/// What the state tells a worker that asks for work.
enum Next {
    Do(Pull),
    /// Wait for a change, at most this long.
    Wait(Option<Duration>),
}

/// A running batch.
#[derive(Debug, Clone, Copy)]
struct Running {
    since: Instant,
    input: Size,
    size: usize,
}

/// Engine time of a batch that ran well.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchTime {
    /// Of the model's input.
    pub(super) input: Size,
    /// Images in it.
    pub(super) size: usize,
    pub(super) time: Duration,
    /// Time that finding the objects in its output took after it; `None` if nobody wanted them.
    pub(super) detect: Option<Duration>,
}

/// Runs of one size at idle. The first one pays for memory; it does not count.
#[derive(Debug, Default)]
struct Timed {
    size: usize,
    runs: Vec<Duration>,
}

/// Weight of the newest batch in the moving mean of [`BatchTime::detect`].
const NEWEST_WEIGHT: f64 = 0.05;

/// Runs that a size is timed by, after the first one.
const TIMED_RUNS: usize = 3;

/// Failed batches of a worker since the last one that ran, and when the last of them failed.
#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
}

impl Failures {
    const fn sound(self) -> bool {
        self.count < limits::ENGINE_FAILURES_MAX
    }

    /// Time from the last one until a new session is tried, doubled with each that fails too.
    fn pause(self) -> Duration {
        let tried = self.count.saturating_sub(limits::ENGINE_FAILURES_MAX).min(16);
        (limits::ENGINE_RETRY * (1 << tried)).min(limits::ENGINE_RETRY_MAX)
    }
}

/// Counts by lane.
#[derive(Debug, Default)]
struct Reserved {
    interactive: usize,
    spare: usize,
}

impl Reserved {
    const fn of(&self, lane: Lane) -> usize {
        match lane {
            Lane::Interactive => self.interactive,
            Lane::Spare => self.spare,
        }
    }

    const fn of_mut(&mut self, lane: Lane) -> &mut usize {
        match lane {
            Lane::Interactive => &mut self.interactive,
            Lane::Spare => &mut self.spare,
        }
    }

    const fn all(&self) -> usize {
        self.interactive + self.spare
    }
}

/// Batch sizes that failed and are not run, until what disturbed them may have passed.
#[derive(Debug)]
struct GivenUp {
    /// When they are tried again.
    until: Option<Instant>,
    /// Time from the next one that fails until then.
    pause: Duration,
}

struct State {
    queue: FairQueue<Item>,
    /// Images admitted and not queued yet, by lane: they are being decoded.
    reserved: Reserved,
    running: Vec<Option<Running>>,
    curves: Curves,
    /// Moving mean of the time that a worker takes for an image after its batch.
    detect: Duration,
    knobs: Knobs,
    queue_bytes_max: usize,
    /// Images of a complete batch that were left to the other idle workers: they wait for no more.
    shared_out: usize,
    /// Of each worker, in a row.
    failures: Vec<Failures>,
    given_up: GivenUp,
    closing: bool,
    /// Whether another model is served, to which times at idle would be ascribed.
    retired: bool,
    /// Whether the first worker has ended: nothing is pulled any more.
    stopped: bool,
    /// The size that is being timed at idle, and its runs.
    timed: Timed,
}

/// State shared by the handlers and the workers.
pub(super) struct Shared {
    pub(super) model: LoadedModel,
    pub(super) metrics: Arc<Metrics>,
    state: Mutex<State>,
    changed: Condvar,
    /// Told whenever an image leaves the queue or gives its room back.
    pub(super) room: Notify,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("load", &self.load()).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(model: LoadedModel, workers: usize, knobs: Knobs, metrics: Arc<Metrics>) -> Self {
        let input = model.info.size();
        let state = State {
            queue: FairQueue::new(),
            reserved: Reserved::default(),
            // They warm their sessions.
            running: vec![Some(Running { since: Instant::now(), input, size: 1 }); workers],
            curves: Curves::new(&Curve::new(model.batch_max, model.batches_fixed), input, &model.sizes),
            detect: Duration::ZERO,
            knobs,
            queue_bytes_max: limits::QUEUE_BYTES_MAX,
            shared_out: 0,
            failures: vec![Failures { count: 0, last: Instant::now() }; workers],
            given_up: GivenUp { until: None, pause: limits::BATCH_RETRY_MIN },
            closing: false,
            retired: false,
            stopped: false,
            timed: Timed::default(),
        };
        Self { model, metrics, state: Mutex::new(state), changed: Condvar::new(), room: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing below panics while it holds the lock; should it ever, the counts are still usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what [`Self::release`] gives back: the place, its stream only if a predecessor's turn was promised.
    pub(super) fn reserve(
        &self,
        place: &Place,
        decode_wait: Duration,
        answer_by: Option<Instant>,
    ) -> Result<Place, Refusal> {
        let mut state = self.state();
        let stream = place.stream.clone().filter(|stream| state.queue.promise(place.lane, stream, place.flow));
        // Once stopped there is no load; the image is told so when it is queued.
        if stream.is_none() && !state.stopped {
            self.load_of(&state, place.lane, decode_wait, answer_by).admit()?;
        }
        *state.reserved.of_mut(place.lane) += 1;
        Ok(Place { stream, ..place.clone() })
    }

    pub(super) fn release(&self, place: &Place) {
        let mut state = self.state();
        state.unreserve(place.lane);
        if let Some(stream) = &place.stream {
            state.queue.withdraw(place.lane, stream);
        }
        drop(state);
        self.changed.notify_all();
        self.room.notify_waiters();
    }

    pub(super) fn enqueue(&self, job: Job) -> Reply {
        let (reply, receiver) = oneshot::channel();
        let mut state = self.state();
        state.unreserve(job.place.lane);
        if state.stopped {
            // Nobody pulls: say so instead of letting the client wait.
            let _ = reply.send(Err(JobError::Stopped));
        } else if !state.sound() && !state.closing {
            let _ = reply.send(Err(JobError::Unsound));
        } else {
            let place = job.place.clone();
            for superseded in state.queue.push(&place, Item { job, enqueued: Instant::now(), reply }) {
                self.metrics.images.cancelled.of("queue").inc();
                let _ = superseded.reply.send(Err(JobError::Superseded));
            }
        }
        self.wake_one(state);
        receiver
    }

    /// Waits for work of worker `index`. The batch counts as running from here until [`Self::finish`].
    pub(super) fn pull(&self, index: usize) -> Pull {
        let mut state = self.state();
        loop {
            let next = state.next(index, Instant::now(), &self.metrics);
            self.room.notify_waiters(); // whether images were pulled or dropped
            match next {
                Next::Do(pull) => {
                    let default = self.model.info.size();
                    let (input, size) = match &pull {
                        Pull::Batch(items) => (items.first().map_or(default, Item::size), items.len()),
                        Pull::Time { size, .. } => (default, *size),
                        Pull::Repair => (default, 1),
                        Pull::Stop => (default, 0),
                    };
                    if let Pull::Batch(items) = &pull {
                        for item in items {
                            item.job.begun.store(true, Ordering::Relaxed);
                        }
                    }
                    if let Some(running) = state.running.get_mut(index).filter(|_| size > 0) {
                        *running = Some(Running { since: Instant::now(), input, size });
                    }
                    if matches!(pull, Pull::Stop) {
                        // The others end too, whenever they last looked.
                        self.changed.notify_all();
                    } else if !state.queue.is_empty() {
                        // What is left is the share of another idle worker.
                        self.wake_one(state);
                    }
                    return pull;
                }
                Next::Wait(None) => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Next::Wait(Some(time)) => {
                    state = self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// Ends worker `index`'s batch: `times` are those of the batches that ran well.
    pub(super) fn finish(&self, index: usize, times: &[BatchTime], failed: bool) {
        let mut state = self.state();
        for BatchTime { input, size, time, detect } in times {
            state.curves.record(*input, *size, *time);
            if let Some(detect) = detect {
                let image = detect.div_f64(f64::from(u32::try_from(*size).unwrap_or(u32::MAX)));
                state.detect = state.detect.mul_f64(1.0 - NEWEST_WEIGHT) + image.mul_f64(NEWEST_WEIGHT);
            }
        }
        if let Some(failures) = state.failures.get_mut(index) {
            let count = if failed { failures.count.saturating_add(1) } else { 0 };
            *failures = Failures { count, last: if failed { Instant::now() } else { failures.last } };
        }
        if let Some(running) = state.running.get_mut(index) {
            *running = None;
        }
        if !state.sound() && !state.closing {
            // Nobody takes them before a session works again: what waits is told so at once, as what comes then is.
            for item in state.queue.remove(|_| true) {
                let _ = item.reply.send(Err(JobError::Unsound));
            }
        }
        // The finished worker's peers may now take a larger share.
        self.wake_one(state);
    }

    /// Wakes a worker that takes images.
    fn wake_one(&self, state: MutexGuard<'_, State>) {
        let all_take = state.failures.iter().all(|failures| failures.sound());
        drop(state);
        if all_take {
            self.changed.notify_one();
        } else {
            // The one that is woken could be one whose session fails.
            self.changed.notify_all();
        }
    }

    /// A batch of `size` images of `input` failed, and not for one of them.
    pub(super) fn failed(&self, input: Size, size: usize) {
        self.state().failed(input, size, Instant::now());
    }

    /// A batch of `size` images of `input` cannot be run, ever.
    pub(super) fn bound(&self, input: Size, size: usize) {
        self.state().curves.bound(input, size);
    }

    /// Ends worker `index`'s run at idle; publishes the size's time once it is known.
    pub(super) fn finish_timing(&self, index: usize, size: usize, time: Duration) {
        let mut state = self.state();
        let input = self.model.info.size();
        if state.timed.size != size {
            state.timed = Timed { size, runs: Vec::new() };
        }
        let counted =
            if state.timed.runs.is_empty() { None } else { Some(BatchTime { input, size, time, detect: None }) };
        state.timed.runs.push(time);
        let runs = state.timed.runs.clone();
        drop(state);
        self.finish(index, counted.as_slice(), false);
        // The first run is not counted; real traffic may have made the size known before a second one.
        let publish = |state: &State| !state.retired && state.curves.first().is_known(size);
        if runs.len() > 1 && publish(&self.state()) {
            let counted = || runs.iter().skip(1).map(Duration::as_secs_f64);
            let mean_s = counted().sum::<f64>() / f64::from(u32::try_from(counted().count()).unwrap_or(u32::MAX));
            self.metrics.batch.set_curve(size, mean_s, counted().fold(0.0, f64::max));
        }
    }

    /// Ends worker `index`'s run at idle that failed; `lost`: it has no session any more.
    pub(super) fn timing_failed(&self, index: usize, size: usize, lost: bool) {
        self.metrics.batch.engine_errors.inc();
        let mut state = self.state();
        if size > 1 {
            state.failed(self.model.info.size(), size, Instant::now());
        }
        if size == 1 || lost {
            drop(state);
            return self.finish(index, &[], true);
        }
        // It may have been too many images: of the session that says nothing.
        if let Some(running) = state.running.get_mut(index) {
            *running = None;
        }
        self.wake_one(state);
    }

    pub(super) fn load(&self) -> Load {
        self.load_of(&self.state(), Lane::Interactive, Duration::ZERO, None)
    }

    /// What an image of `lane` meets. Only its own lane is before it: interactive images pass spare ones, and what
    /// spare images take of that, 5 %, is less than the uncertainty of the prediction.
    fn load_of(&self, state: &State, lane: Lane, decode_wait: Duration, answer_by: Option<Instant>) -> Load {
        let now = Instant::now();
        let (deadline, detect) = (state.knobs.deadline, state.detect);
        let alone = state.curves.of_load(|curve| curve.mean(1)) + detect;
        // A time-out that not even an idle server keeps is no reason to come again later.
        let left = answer_by.and_then(|answer_by| answer_by.saturating_duration_since(now).checked_sub(alone));
        let queued = state.queue.len_of(lane) + state.reserved.of(lane);
        let batch_effective = state.curves.first().effective(state.knobs.batch_max);
        let rest = |running: &Option<Running>| {
            running.map_or(Duration::ZERO, |Running { since, input, size }| {
                let usual = state.curves.of(input).p95(size) + images(detect, size);
                usual.saturating_sub(now.saturating_duration_since(since))
            })
        };
        let sound = state.running.iter().zip(&state.failures);
        Load {
            lane,
            queued,
            workers: state.failures.iter().filter(|failures| failures.sound()).count().max(1),
            idle_workers: state.idle_workers(),
            rest_of_running: sound
                .filter(|(_, failures)| failures.sound())
                .map(|(running, _)| rest(running))
                .min()
                .unwrap_or_default(),
            batch_effective,
            batch_time_p95: state.curves.of_load(|curve| curve.p95(batch_effective)) + images(detect, batch_effective),
            batch_time: state.curves.of_load(|curve| curve.mean(batch_effective)) + images(detect, batch_effective),
            batch_max: state.knobs.batch_max.min(self.model.batch_max),
            decode_wait,
            deadline,
            start_within: left.map_or(deadline, |left| left.min(deadline)),
            image_bytes: self.model.image_bytes_max(),
            queue_bytes_max: state.queue_bytes_max,
        }
    }

    pub(super) fn oldest_age(&self) -> Duration {
        self.state().queue.iter().map(|item| item.enqueued.elapsed()).max().unwrap_or_default()
    }

    pub(super) fn queued(&self) -> usize {
        self.state().queue.len()
    }

    pub(super) fn set_knobs(&self, knobs: Knobs) {
        self.state().knobs = knobs;
        self.changed.notify_all();
    }

    pub(super) fn set_queue_bytes_max(&self, bytes: usize) {
        self.state().queue_bytes_max = bytes;
    }

    pub(super) fn stuck(&self) -> bool {
        let state = self.state();
        state.running.iter().flatten().any(|running| {
            let usual = state.curves.of(running.input).p95(running.size).mul_f64(limits::STUCK_BATCH_FACTOR);
            running.since.elapsed() > usual.max(limits::STUCK_BATCH_MIN)
        })
    }

    pub(super) fn sound(&self) -> bool {
        self.state().sound()
    }

    pub(super) fn retire(&self) {
        self.state().retired = true;
    }

    pub(super) fn close(&self) {
        self.state().closing = true;
        self.changed.notify_all();
    }
}

impl State {
    fn unreserve(&mut self, lane: Lane) {
        let reserved = self.reserved.of_mut(lane);
        *reserved = reserved.saturating_sub(1);
    }

    /// Whether some worker's session works.
    fn sound(&self) -> bool {
        self.failures.iter().any(|failures| failures.sound())
    }

    fn idle_workers(&self) -> usize {
        let workers = self.running.iter().zip(&self.failures);
        workers.filter(|(running, failures)| running.is_none() && failures.sound()).count()
    }

    fn failed(&mut self, input: Size, size: usize, now: Instant) {
        if self.curves.failed(input, size) && self.given_up.until.is_none() {
            self.given_up.until = Some(now + self.given_up.pause);
            self.given_up.pause = (2 * self.given_up.pause).min(limits::BATCH_RETRY_MAX);
        }
    }

    /// What worker `index` does next.
    fn next(&mut self, index: usize, now: Instant, metrics: &Metrics) -> Next {
        if self.given_up.until.take_if(|until| *until <= now).is_some() {
            self.curves.retry();
            self.timed = Timed::default();
        }
        self.drop_dead(now, metrics);
        // It takes no image before its session works again: failing is fast, so it would take most of them.
        if let Some(failures) = self.failures.get(index).filter(|failures| !failures.sound())
            && !self.closing
        {
            let wait = failures.pause().saturating_sub(now.saturating_duration_since(failures.last));
            return if wait.is_zero() { Next::Do(Pull::Repair) } else { Next::Wait(Some(wait)) };
        }
        self.shared_out = self.shared_out.min(self.queue.len());
        let oldest = self.queue.iter().map(|item| item.enqueued).min();
        let (Some(oldest), Some(first)) = (oldest, self.queue.first()) else { return self.next_at_idle() };
        let curve = self.curves.of(first.size());
        let effective = curve.effective(self.knobs.batch_max);
        let age = now.saturating_duration_since(oldest);
        let waiting = self.queue.len();
        let complete = waiting >= effective || self.shared_out > 0;
        if !complete && age < self.knobs.queue_delay_max && !self.closing {
            return Next::Wait(Some(self.knobs.queue_delay_max.saturating_sub(age)));
        }
        // The caller is idle, so there is at least one to share with.
        let share = waiting.div_ceil(self.idle_workers().max(1));
        // A size that was never tried can only be learned if somebody tries it, once enough images wait.
        let untried = curve.next_untimed(self.knobs.batch_max, self.knobs.inference_threshold);
        let size = untried.filter(|size| share >= *size).unwrap_or_else(|| share.min(effective));
        let size = curve.runnable(size_in_time(curve, first, size, now));
        let batch = self.queue.take(size, |first, next| first.size() == next.size());
        self.shared_out = waiting.min(effective).saturating_sub(batch.len());
        if let Some(first) = batch.first() {
            self.curves.loaded(first.size());
        }
        Next::Do(Pull::Batch(batch))
    }

    fn next_at_idle(&mut self) -> Next {
        if self.closing {
            // Images that are being decoded still come.
            self.stopped = self.reserved.all() == 0;
            return if self.stopped { Next::Do(Pull::Stop) } else { Next::Wait(None) };
        }
        // One worker at a time, so that they do not disturb each other.
        let alone = !self.retired && self.reserved.all() == 0 && self.running.iter().all(Option::is_none);
        let untimed = self.curves.first().next_untimed(self.knobs.timed_batch_max, self.knobs.inference_threshold);
        match untimed.filter(|_| alone) {
            Some(size) => {
                let last = self.timed.size == size && self.timed.runs.len() >= TIMED_RUNS;
                Next::Do(Pull::Time { size, last })
            }
            None => Next::Wait(None),
        }
    }

    /// Drops images whose client left and answers those whose deadline has passed.
    fn drop_dead(&mut self, now: Instant, metrics: &Metrics) {
        for item in self.queue.remove(|item| item.unwanted(now) || item.late(now)) {
            item.expire(now, metrics);
        }
    }
}

/// `time` for each of them.
fn images(time: Duration, count: usize) -> Duration {
    time.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Fewer images than `size` if that lets the `first` one's answer come in time.
fn size_in_time(curve: &Curve, first: &Item, size: usize, now: Instant) -> usize {
    let Some(answer_by) = first.job.answer_by else { return size };
    let left = answer_by.saturating_duration_since(now);
    (1..=size).rev().find(|smaller| curve.p95(*smaller) <= left).unwrap_or(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Config;
    use crate::batcher::Wanted;
    use crate::engine::{EngineInput, emulated};

    /// Of batches of one and two images. Hours: however busy the machine is, no test comes near them.
    const TIMES: [Duration; 2] = [Duration::from_hours(10), Duration::from_hours(18)];

    fn job(input: Size, answer_by: Option<Instant>) -> Job {
        let input = EngineInput { pixels: Vec::new().into(), size: input, content: [0; 32] };
        let (wanted, place, begun) = (Wanted::Tensors, Place::of_new_request(), Arc::default());
        Job { input, wanted, place, start_by: None, answer_by, begun }
    }

    #[test]
    fn a_batch_is_smaller_if_that_saves_its_first_image() {
        let model = emulated::load(&Config::new("pretended.onnx")).unwrap();
        let input = model.info.size();
        for (answer_after_hours, pulled) in [(17, [1, 1].as_slice()), (19, &[2]), (9, &[2])] {
            let knobs = Knobs { batch_max: 2, timed_batch_max: 1, ..Knobs::default() };
            let shared = Shared::new(model.clone(), 1, knobs, Arc::new(Metrics::new()));
            let times = (1..).zip(TIMES).map(|(size, time)| BatchTime { input, size, time, detect: None });
            shared.finish(0, &times.cycle().take(6).collect::<Vec<_>>(), false);
            assert_eq!(shared.load().batch_effective, 2, "batches of two pay");
            let answer_by = Instant::now() + Duration::from_hours(answer_after_hours);
            let _replies = [Some(answer_by), None].map(|answer_by| shared.enqueue(job(input, answer_by)));
            for size in pulled {
                let Pull::Batch(items) = shared.pull(0) else { panic!("two images wait") };
                assert_eq!(items.len(), *size, "an answer within {answer_after_hours} h");
                shared.finish(0, &[], false);
            }
        }
    }

    #[test]
    fn a_size_that_was_given_up_is_tried_again_after_pauses_that_double() {
        let model = emulated::load(&Config::new("pretended.onnx")).unwrap();
        let input = model.info.size();
        let shared = Shared::new(model, 1, Knobs { timed_batch_max: 2, ..Knobs::default() }, Arc::new(Metrics::new()));
        shared.finish(0, &[BatchTime { input, size: 1, time: Duration::from_millis(10), detect: None }; 3], false);
        let mut state = shared.state();
        let mut now = Instant::now();
        for pause in [1, 2, 4, 8, 12, 12].map(|factor| factor * limits::BATCH_RETRY_MIN) {
            let timed = |next| matches!(next, Next::Do(Pull::Time { size: 2, .. }));
            assert!(timed(state.next(0, now, &shared.metrics)), "it is tried at idle");
            state.failed(input, 2, now);
            assert!(!timed(state.next(0, now + pause.mul_f64(0.99), &shared.metrics)), "{pause:?}");
            now += pause;
        }
    }

    #[test]
    fn where_no_session_works_who_waits_and_who_comes_is_told_at_once() {
        let model = emulated::load(&Config::new("pretended.onnx")).unwrap();
        let input = model.info.size();
        let shared = Shared::new(model, 2, Knobs::default(), Arc::new(Metrics::new()));
        let mut waits = shared.enqueue(job(input, None));
        let fails = |index| (0..limits::ENGINE_FAILURES_MAX).for_each(|_| shared.finish(index, &[], true));
        fails(0);
        assert!(waits.try_recv().is_err() && shared.sound(), "the other one takes it");
        fails(1);
        let mut comes = shared.enqueue(job(input, None));
        for told in [waits.try_recv(), comes.try_recv()] {
            assert!(matches!(told, Ok(Err(JobError::Unsound))), "{told:?}");
        }
    }

    #[test]
    fn a_size_that_fails_at_idle_says_nothing_of_the_session_and_is_counted() {
        let model = emulated::load(&Config::new("pretended.onnx")).unwrap();
        let shared = Shared::new(model, 1, Knobs::default(), Arc::new(Metrics::new()));
        for _ in 0..limits::ENGINE_FAILURES_MAX {
            assert!(shared.sound());
            shared.timing_failed(0, 2, false);
            shared.finish(0, &[], true);
        }
        assert!(!shared.sound(), "as many batches failed in a row");
        shared.finish(0, &[], false);
        (0..limits::ENGINE_FAILURES_MAX).for_each(|_| shared.timing_failed(0, 2, true));
        assert!(!shared.sound(), "it has no session any more");
        assert_eq!(shared.metrics.batch.engine_errors.get(), u64::from(2 * limits::ENGINE_FAILURES_MAX));
    }

    #[test]
    fn finding_objects_is_part_of_what_a_batch_takes() {
        let model = emulated::load(&Config::new("pretended.onnx")).unwrap();
        let input = model.info.size();
        let shared = Shared::new(model, 1, Knobs::default(), Arc::new(Metrics::new()));
        let (time, detect) = (Duration::from_millis(10), Some(Duration::from_millis(30)));
        shared.finish(0, &[BatchTime { input, size: 1, time, detect }; 200], false);
        let load = shared.load();
        assert!(load.batch_time.abs_diff(Duration::from_millis(40)) < Duration::from_millis(1), "{load:?}");
        assert!((load.throughput() - 25.0).abs() < 1.0, "{load:?}");
    }

    #[test]
    fn a_batch_that_runs_far_longer_than_usual_is_stuck() {
        let model = emulated::load(&Config::new("pretended.onnx")).unwrap();
        let input = model.info.size();
        let shared = Shared::new(model, 1, Knobs::default(), Arc::new(Metrics::new()));
        let runs_for = |time: Duration| {
            let since = Instant::now().checked_sub(time).unwrap();
            shared.state().running = vec![Some(Running { since, input, size: 1 })];
            shared.stuck()
        };
        assert!(!runs_for(limits::STUCK_BATCH_MIN / 2) && runs_for(2 * limits::STUCK_BATCH_MIN));
        let usual = limits::STUCK_BATCH_MIN;
        shared.finish(0, &[BatchTime { input, size: 1, time: usual, detect: None }; 3], false);
        assert!(!shared.stuck(), "nothing runs");
        assert!(!runs_for(2 * usual) && runs_for(2 * usual.mul_f64(limits::STUCK_BATCH_FACTOR)), "a slow model");
    }
}
