//! Tasks in this process' memory.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::id::Names;
use super::{Claim, End, Status, Submitted, TASK_OVERHEAD_BYTES, TaskError, View, Work};
use crate::limits;
use crate::metrics::TaskMetrics;

#[derive(Debug)]
enum Stage {
    Queued(Work),
    Running(CancellationToken),
    Ended(End),
}

impl Stage {
    const fn status(&self) -> Status {
        match self {
            Self::Queued(_) => Status::Queued,
            Self::Running(_) => Status::Running,
            Self::Ended(end) => end.status(),
        }
    }
}

#[derive(Debug)]
struct Held {
    stage: Stage,
    submitted: Instant,
    fingerprint: [u8; 32],
    idempotency_key: Option<String>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    tasks: HashMap<String, Held>,
    queue: VecDeque<String>,
    /// Ended tasks, oldest end first.
    ended: VecDeque<(Instant, String)>,
    /// Task of each idempotency key.
    keys: HashMap<String, String>,
    bytes: usize,
}

/// Tasks of one process.
#[derive(Debug)]
pub struct MemoryTasks {
    names: Names,
    ttl: Duration,
    state: Mutex<State>,
    submitted: Notify,
    /// Number of tasks that have not ended.
    unfinished: watch::Sender<usize>,
    metrics: TaskMetrics,
}

impl MemoryTasks {
    /// No tasks; a result is kept for `ttl` after its task has ended.
    pub fn new(ttl: Duration, metrics: TaskMetrics) -> Self {
        Self {
            names: Names::of_this_process(),
            ttl,
            state: Mutex::default(),
            submitted: Notify::new(),
            unfinished: watch::Sender::new(0),
            metrics,
        }
    }

    /// The state without what has expired.
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing below panics while it holds the lock; should it ever, the counts are still usable.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.ended.front().is_some_and(|(ended, _)| ended.elapsed() >= self.ttl) {
            self.forget_oldest(&mut state);
        }
        state
    }

    /// Forgets the task that ended first.
    fn forget_oldest(&self, state: &mut State) {
        let Some((_, id)) = state.ended.pop_front() else { return };
        if let Some(held) = state.tasks.remove(&id) {
            state.bytes = state.bytes.saturating_sub(held.bytes);
            held.idempotency_key.map(|key| state.keys.remove(&key));
            self.metrics.moved(Some(held.stage.status()), None);
        }
    }

    pub(super) fn submit(&self, work: Work, idempotency_key: Option<String>) -> Result<Submitted, TaskError> {
        let fingerprint = work.fingerprint();
        let mut state = self.state();
        if let Some(id) = idempotency_key.as_ref().and_then(|key| state.keys.get(key)) {
            let held = state.tasks.get(id).ok_or(TaskError::Gone)?;
            let same = held.fingerprint == fingerprint;
            return if same { Ok(Submitted { view: held.view(id), new: false }) } else { Err(TaskError::Conflict) };
        }
        let bytes = work.weight_bytes() + TASK_OVERHEAD_BYTES;
        let bytes_max = limits::TASKS_BYTES_MAX - limits::TASK_RESULT_BYTES_MAX;
        if *self.unfinished.borrow() >= limits::TASKS_MAX || state.bytes + bytes > bytes_max {
            return Err(TaskError::Full);
        }
        let id = self.names.next().ok_or(TaskError::Nameless)?;
        if let Some(key) = &idempotency_key {
            state.keys.insert(key.clone(), id.clone());
        }
        let held = Held { stage: Stage::Queued(work), submitted: Instant::now(), fingerprint, idempotency_key, bytes };
        let view = held.view(&id);
        state.bytes += bytes;
        state.queue.push_back(id.clone());
        state.tasks.insert(id, held);
        self.unfinished.send_modify(|count| *count += 1);
        self.metrics.moved(None, Some(Status::Queued));
        drop(state);
        self.submitted.notify_one();
        Ok(Submitted { view, new: true })
    }

    pub(super) fn view(&self, id: &str) -> Result<View, TaskError> {
        self.state().tasks.get(id).map(|held| held.view(id)).ok_or_else(|| self.missing(id))
    }

    pub(super) fn cancel(&self, id: &str) -> Result<View, TaskError> {
        self.end(id, End::Cancelled).ok_or_else(|| self.missing(id))?;
        self.view(id)
    }

    fn missing(&self, id: &str) -> TaskError {
        if self.names.gave(id) { TaskError::Gone } else { TaskError::Unknown }
    }

    pub(super) async fn claim(&self) -> Claim {
        loop {
            if let Some(claim) = self.take() {
                return claim;
            }
            // A submission between the two leaves its permit.
            self.submitted.notified().await;
        }
    }

    fn take(&self) -> Option<Claim> {
        let mut state = self.state();
        let id = state.queue.pop_front()?;
        let held = state.tasks.get_mut(&id)?;
        let withdrawn = CancellationToken::new();
        let age = held.submitted.elapsed();
        let Stage::Queued(work) = std::mem::replace(&mut held.stage, Stage::Running(withdrawn.clone())) else {
            return None;
        };
        self.metrics.moved(Some(Status::Queued), Some(Status::Running));
        Some(Claim { id, work, age, withdrawn, lease: None })
    }

    pub(super) fn finish(&self, id: &str, end: End) -> Status {
        self.end(id, end).unwrap_or(Status::Cancelled)
    }

    /// Ends a task that has not ended; its final status, or `None` if there is no such task.
    fn end(&self, id: &str, end: End) -> Option<Status> {
        let mut guard = self.state();
        let state = &mut *guard;
        let held = state.tasks.get_mut(id)?;
        let before = held.stage.status();
        match &held.stage {
            Stage::Ended(_) => return Some(before),
            Stage::Queued(_) => state.queue.retain(|queued| queued != id),
            Stage::Running(withdrawn) => withdrawn.cancel(),
        }
        let status = end.status();
        let bytes = end.weight_bytes() + TASK_OVERHEAD_BYTES;
        state.bytes = state.bytes.saturating_sub(held.bytes) + bytes;
        held.bytes = bytes;
        held.stage = Stage::Ended(end);
        state.ended.push_back((Instant::now(), id.to_owned()));
        self.metrics.moved(Some(before), Some(status));
        // A result may be far larger than its picture was.
        while state.bytes > limits::TASKS_BYTES_MAX && !state.ended.is_empty() {
            self.forget_oldest(state);
        }
        drop(guard);
        self.unfinished.send_modify(|count| *count = count.saturating_sub(1));
        Some(status)
    }

    pub(super) async fn settled(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.unfinished.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Held {
    fn view(&self, id: &str) -> View {
        match &self.stage {
            Stage::Ended(end) => View::ended(id.to_owned(), end.clone()),
            stage => View::unfinished(id.to_owned(), stage.status()),
        }
    }
}

impl End {
    fn weight_bytes(&self) -> usize {
        match self {
            Self::Succeeded(result) => result.get().len(),
            Self::Failed(failure) => failure.code.len() + failure.message.len(),
            Self::Cancelled => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::value::RawValue;

    use super::*;
    use crate::metrics::Metrics;

    const HOUR: Duration = Duration::from_hours(1);

    fn tasks(ttl: Duration) -> MemoryTasks {
        MemoryTasks::new(ttl, Metrics::new().tasks)
    }

    fn work(bytes: usize) -> Work {
        Work {
            request_id: "r".to_owned(),
            picture: Bytes::from(vec![0; bytes]),
            content: *blake3::hash(&bytes.to_le_bytes()).as_bytes(),
            query: String::new(),
            form: Vec::new(),
            bypass_cache: false,
        }
    }

    fn done() -> End {
        End::Succeeded(RawValue::from_string("{}".to_owned()).unwrap())
    }

    #[tokio::test]
    async fn unfinished_tasks_and_bytes_are_bounded_and_come_back() {
        let tasks = tasks(HOUR);
        for _ in 0..limits::TASKS_MAX {
            tasks.submit(work(1), None).unwrap();
        }
        assert!(matches!(tasks.submit(work(1), None), Err(TaskError::Full)));
        let claim = tasks.claim().await;
        assert!(matches!(tasks.submit(work(1), None), Err(TaskError::Full)), "a running one counts");
        assert_eq!(tasks.finish(&claim.id, done()), Status::Succeeded);
        tasks.submit(work(1), None).unwrap();
        while *tasks.unfinished.borrow() > 0 {
            let claim = tasks.claim().await;
            tasks.finish(&claim.id, done());
        }
        assert!(matches!(tasks.submit(work(limits::TASKS_BYTES_MAX), None), Err(TaskError::Full)));
        tasks.submit(work(limits::TASKS_BYTES_MAX / 2), None).unwrap();
    }

    #[tokio::test]
    async fn results_larger_than_their_pictures_push_out_the_oldest() {
        let tasks = tasks(HOUR);
        let ids: Vec<_> = (0..100).map(|_| tasks.submit(work(1), None).unwrap().view.task_id).collect();
        let large = || RawValue::from_string(format!("\"{}\"", "x".repeat((1 << 20) - 2))).unwrap();
        for id in &ids {
            let claim = tasks.claim().await;
            assert_eq!(tasks.finish(&claim.id, End::Succeeded(large())), Status::Succeeded);
            assert!(tasks.view(id).unwrap().result.is_some(), "the newest is there");
            assert!(tasks.state().bytes <= limits::TASKS_BYTES_MAX);
        }
        let kept = ids.iter().filter(|id| tasks.view(id).is_ok()).count();
        assert_eq!(kept, limits::TASKS_BYTES_MAX / (1 << 20) - 1);
        assert!(matches!(tasks.view(&ids[0]), Err(TaskError::Gone)), "the oldest went");
        let state = tasks.state();
        assert_eq!((state.tasks.len(), state.ended.len()), (kept, kept));
    }

    #[tokio::test]
    async fn pictures_leave_room_for_the_largest_result() {
        let tasks = tasks(HOUR);
        while tasks.submit(work(1 << 20), None).is_ok() {}
        let claim = tasks.claim().await;
        let largest = format!("\"{}\"", "x".repeat(limits::TASK_RESULT_BYTES_MAX - 2));
        tasks.finish(&claim.id, End::Succeeded(RawValue::from_string(largest).unwrap()));
        assert!(tasks.view(&claim.id).unwrap().result.is_some());
        assert!(tasks.state().bytes <= limits::TASKS_BYTES_MAX);
    }

    #[tokio::test]
    async fn nothing_is_left_of_an_expired_task() {
        let tasks = tasks(Duration::ZERO);
        let id = tasks.submit(work(9), Some("key".to_owned())).unwrap().view.task_id;
        assert_eq!(tasks.view(&id).unwrap().status, Status::Queued, "the time to live begins at the end");
        let claim = tasks.claim().await;
        tasks.finish(&claim.id, done());
        assert!(matches!(tasks.view(&id), Err(TaskError::Gone)));
        let state = tasks.state();
        assert!(state.tasks.is_empty() && state.keys.is_empty() && state.bytes == 0, "{state:?}");
    }

    #[tokio::test]
    async fn a_withdrawn_task_stays_withdrawn() {
        let tasks = tasks(HOUR);
        let waiting = tasks.submit(work(1), None).unwrap().view.task_id;
        assert_eq!(tasks.cancel(&waiting).unwrap().status, Status::Cancelled);
        let running = tasks.submit(work(2), None).unwrap().view.task_id;
        let claim = tasks.claim().await;
        assert_eq!(claim.id, running, "the withdrawn one is not claimed");
        tasks.cancel(&running).unwrap();
        assert!(claim.withdrawn.is_cancelled());
        assert_eq!(tasks.finish(&claim.id, done()), Status::Cancelled);
        assert!(tasks.view(&running).unwrap().result.is_none());
        let ended = tasks.submit(work(3), None).unwrap().view.task_id;
        let claim = tasks.claim().await;
        tasks.finish(&claim.id, done());
        assert_eq!(tasks.cancel(&ended).unwrap().status, Status::Succeeded, "too late");
        tasks.settled().await;
    }

    #[tokio::test]
    async fn a_key_means_one_task_and_one_content() {
        let tasks = tasks(HOUR);
        let key = || Some("key".to_owned());
        let first = tasks.submit(work(5), key()).unwrap().view.task_id;
        assert_eq!(tasks.submit(work(5), key()).unwrap().view.task_id, first);
        assert!(matches!(tasks.submit(work(6), key()), Err(TaskError::Conflict)));
        let form = vec![("conf".to_owned(), "0.5".to_owned())];
        assert!(matches!(tasks.submit(Work { form, ..work(5) }, key()), Err(TaskError::Conflict)));
        assert_ne!(tasks.submit(work(5), None).unwrap().view.task_id, first);
    }
}
