//! Tasks in Redis or Valkey: any pod takes them on, shows them and runs them, at least once.
//!
//! A hash for each task, a stream as the queue, a consumer group that remembers who runs what. A pod says every few
//! seconds that it is at work; what nobody is at work on any more is taken over. What must happen together is a script.

mod claims;

use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::aio::ConnectionManager;
use redis::{AsyncCommands, Client, Script};
use serde_json::value::RawValue;

use super::id::{self, Names};
use super::{End, Status, Submitted, TASK_OVERHEAD_BYTES, TaskError, View, Work};
use crate::limits;
use crate::metrics::{StoreMetrics, TaskMetrics};
use crate::random;
use crate::store::{Away, Store, StoreError};
use claims::{Leases, READ_WAIT, Search};

pub use claims::Lease;

/// The consumer group: one server of any pod takes each task.
const GROUP: &str = "servers";
/// Pause before a store that is away is asked again.
const AWAY_PAUSE: Duration = Duration::from_millis(500);

/// A task may exist so long without an end; a store that keeps tasks nobody runs would fill up.
const UNFINISHED_MAX: Duration = Duration::from_hours(24);

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// A result is kept so long.
    pub ttl: Duration,
    /// A task is taken over after so long without a sign of life.
    pub reclaim: Duration,
}

/// Tasks of a service.
#[derive(Debug)]
pub struct SharedTasks {
    store: Store,
    /// Reads wait, so they have a connection of their own.
    reader: Store,
    keys: Keys,
    names: Names,
    times: Times,
    /// This process, to the consumer group.
    consumer: String,
    scripts: Scripts,
    leases: Leases,
    search: Mutex<Search>,
    metrics: TaskMetrics,
}

/// Names of everything kept: in one slot of a cluster, since scripts touch several.
#[derive(Debug)]
struct Keys {
    prefix: String,
    queue: String,
    /// Sum of what waits or runs.
    bytes: String,
    /// Ended tasks, in order.
    ended: String,
    /// Sum of theirs.
    ended_bytes: String,
}

impl Keys {
    fn new(scope: &str) -> Self {
        let prefix = format!("yolo:{{{scope}}}:");
        let key = |name| format!("{prefix}{name}");
        Self { queue: key("q"), bytes: key("b"), ended: key("e"), ended_bytes: key("eb"), prefix }
    }

    fn task(&self, id: &str) -> String {
        format!("{}t:{id}", self.prefix)
    }

    fn idempotency(&self, key: &str) -> String {
        format!("{}i:{}", self.prefix, blake3::hash(key.as_bytes()).to_hex())
    }
}

#[derive(Debug)]
struct Scripts {
    submit: Script,
    fetch: Script,
    begin: Script,
    hand_back: Script,
    end: Script,
    forget: Script,
}

impl SharedTasks {
    /// The tasks of the service that `scope` names.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn open(
        client: &Client,
        scope: &str,
        times: Times,
        store_metrics: &StoreMetrics,
        metrics: TaskMetrics,
    ) -> Result<Self, StoreError> {
        let open = |limit| Store::open(client, limit, store_metrics.errors.clone());
        Ok(Self {
            store: open(limits::STORE_TASK_MAX)?,
            reader: open(READ_WAIT + limits::STORE_TASK_MAX)?,
            keys: Keys::new(scope),
            names: Names::shared(),
            times,
            // A restarted container has its pod's name, but not its tasks.
            consumer: format!("{}-{}", id::host(), random::digits()),
            scripts: Scripts {
                submit: Script::new(include_str!("shared/scripts/submit.lua")),
                fetch: Script::new(include_str!("shared/scripts/fetch.lua")),
                begin: Script::new(include_str!("shared/scripts/begin.lua")),
                hand_back: Script::new(include_str!("shared/scripts/hand_back.lua")),
                end: Script::new(include_str!("shared/scripts/end.lua")),
                forget: Script::new(include_str!("shared/scripts/forget.lua")),
            },
            leases: Leases::default(),
            search: Mutex::new(Search::new()),
            metrics,
        })
    }

    pub(super) async fn submit(&self, work: Work, idempotency_key: Option<String>) -> Result<Submitted, TaskError> {
        let id = self.names.next().ok_or(TaskError::Nameless)?;
        let task = self.keys.task(&id);
        // A script's keys are fixed in number; without an idempotency key the last one is not looked at.
        let key = idempotency_key.as_ref().map_or_else(|| task.clone(), |key| self.keys.idempotency(key));
        let mut script = self.scripts.submit.prepare_invoke();
        script.key(task).key(&self.keys.queue).key(&self.keys.bytes).key(key);
        script.arg(&id).arg(work.fingerprint().as_slice()).arg(u8::from(idempotency_key.is_some()));
        script.arg(limits::TASKS_MAX).arg(limits::TASKS_BYTES_MAX).arg(work.weight_bytes());
        script.arg(UNFINISHED_MAX.as_secs());
        let form = serde_json::to_string(&work.form).unwrap_or_default();
        script.arg("submitted_ms").arg(unix_ms()).arg("request_id").arg(&work.request_id);
        script.arg("query").arg(&work.query).arg("form").arg(form);
        script.arg("bypass_cache").arg(u8::from(work.bypass_cache));
        script.arg("content").arg(work.content.as_slice()).arg("picture").arg(&*work.picture);
        let answer = self.store.call("task_submit", async |mut connection: ConnectionManager| {
            script.invoke_async::<(String, String)>(&mut connection).await
        });
        let (outcome, id) = answer.await?;
        match outcome.as_str() {
            "new" => {
                self.metrics.reached(Status::Queued);
                Ok(Submitted { view: View::unfinished(id, Status::Queued), new: true })
            }
            "known" => Ok(Submitted { view: self.view(&id).await?, new: false }),
            "conflict" => Err(TaskError::Conflict),
            _ => Err(TaskError::Full),
        }
    }

    pub(super) async fn view(&self, id: &str) -> Result<View, TaskError> {
        if !self.names.gave(id) {
            return Err(TaskError::Unknown);
        }
        let task = self.keys.task(id);
        let fields = self.store.call("task_view", async |mut connection: ConnectionManager| {
            connection.hmget::<_, _, (Option<String>, Option<String>)>(task, &["status", "answer"]).await
        });
        let (status, answer) = fields.await?;
        let status = status.as_deref().and_then(parse).ok_or(TaskError::Gone)?;
        let answer = answer.unwrap_or_default();
        // What does not parse was written by something else: as good as gone.
        let end = match status {
            Status::Queued | Status::Running => return Ok(View::unfinished(id.to_owned(), status)),
            Status::Succeeded => End::Succeeded(RawValue::from_string(answer).map_err(|_| TaskError::Gone)?),
            Status::Failed => End::Failed(serde_json::from_str(&answer).map_err(|_| TaskError::Gone)?),
            Status::Cancelled => End::Cancelled,
        };
        Ok(View::ended(id.to_owned(), end))
    }

    pub(super) async fn cancel(&self, id: &str) -> Result<View, TaskError> {
        if !self.names.gave(id) {
            return Err(TaskError::Unknown);
        }
        self.end(id, &End::Cancelled).await?.ok_or(TaskError::Gone)?;
        self.view(id).await
    }

    /// Ends a task that has not ended; its status, or `None` if there is no such task.
    async fn end(&self, id: &str, end: &End) -> Result<Option<Status>, Away> {
        let answer = match end {
            End::Succeeded(result) => result.get().to_owned(),
            End::Failed(failure) => serde_json::to_string(failure).unwrap_or_default(),
            End::Cancelled => String::new(),
        };
        let mut script = self.scripts.end.prepare_invoke();
        script.key(self.keys.task(id)).key(&self.keys.queue).key(&self.keys.bytes);
        script.key(&self.keys.ended).key(&self.keys.ended_bytes);
        let bytes = answer.len() + TASK_OVERHEAD_BYTES;
        script.arg(GROUP).arg(end.status().as_str()).arg(answer).arg(self.times.ttl.as_secs().max(1));
        script.arg(bytes).arg(limits::TASKS_BYTES_MAX);
        let status = self.store.call("task_end", async |mut connection: ConnectionManager| {
            script.invoke_async::<Option<(String, bool)>>(&mut connection).await
        });
        let Some((status, ended)) = status.await? else { return Ok(None) };
        if ended {
            self.metrics.reached(end.status());
        }
        Ok(parse(&status))
    }

    /// Stores how a task ended, however long the store is away.
    pub(super) async fn finish(&self, id: &str, end: End) -> Status {
        loop {
            match self.end(id, &end).await {
                Ok(status) => return status.unwrap_or(Status::Cancelled),
                Err(Away) => tokio::time::sleep(AWAY_PAUSE).await,
            }
        }
    }
}

fn parse(status: &str) -> Option<Status> {
    Status::ALL.into_iter().find(|known| known.as_str() == status)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The clock that pods share, about.
fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}
