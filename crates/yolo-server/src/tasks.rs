//! Pictures to be run later, on capacity that nobody waits for, and their results.
//!
//! ```text
//!   queued ──▶ running ──▶ succeeded | failed
//!      └──────────┴──────▶ cancelled             then, after the time to live, gone (410)
//! ```
//!
//! Guarantees: in memory a task runs once, and a drain waits for it; in a shared store it runs at least once, on any
//! pod, and its result is stored before it leaves the queue.

mod id;
mod memory;
mod run;
mod shared;

use bytes::Bytes;
use redis::Client;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use crate::args::Config;
use crate::http::answer::PredictionBody;
use crate::metrics::Metrics;
use crate::store::{Away, StoreError};
use memory::MemoryTasks;
use shared::{Lease, SharedTasks, Times};

pub(crate) use id::host;
pub use run::run;

/// Book-keeping of a task besides its picture or result, about.
const TASK_OVERHEAD_BYTES: usize = 512;

/// A picture to be run later, with everything that its request said.
#[derive(Debug, Clone)]
pub struct Work {
    /// Id of the request that brought it; its result carries it.
    pub request_id: String,
    /// The encoded file.
    pub picture: Bytes,
    /// Its hash.
    pub content: [u8; 32],
    /// The request's query, as it came.
    pub query: String,
    /// Parameters that came inside the body.
    pub form: Vec<(String, String)>,
    /// `Cache-Control: no-cache`.
    pub bypass_cache: bool,
}

impl Work {
    /// Bytes that it holds until it ends.
    pub fn weight_bytes(&self) -> usize {
        let form: usize = self.form.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.picture.len() + self.query.len() + form
    }

    /// Hash of everything that decides the result: the same under the same `Idempotency-Key`, or a conflict.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.content);
        let form = self.form.iter().flat_map(|(name, value)| [name, value]);
        for text in std::iter::once(&self.query).chain(form) {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

/// Where a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It waits for spare capacity.
    Queued,
    /// A worker has it.
    Running,
    /// Its result is there.
    Succeeded,
    /// It has no result, and a reason.
    Failed,
    /// A client withdrew it.
    Cancelled,
}

impl Status {
    /// Every status, in order.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled];

    /// Its name in answers, the store and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Why a task failed, as `/predict` would have answered it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// The error's code.
    pub code: String,
    /// What to change.
    pub message: String,
}

/// How a task ended.
#[derive(Debug, Clone)]
pub enum End {
    /// With the answer that `/predict` would have given.
    Succeeded(Box<RawValue>),
    /// With a reason.
    Failed(Failure),
    /// A client withdrew it.
    Cancelled,
}

impl End {
    /// The status that it leads to.
    pub const fn status(&self) -> Status {
        match self {
            Self::Succeeded(_) => Status::Succeeded,
            Self::Failed(_) => Status::Failed,
            Self::Cancelled => Status::Cancelled,
        }
    }
}

/// A task as clients see it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Task")]
pub struct View {
    /// Its name.
    pub task_id: String,
    /// Where it is.
    pub status: Status,
    /// What `/predict` would have answered, once it succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<PredictionBody<'static>>")]
    pub result: Option<Box<RawValue>>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

impl View {
    /// A task that has not ended.
    pub const fn unfinished(task_id: String, status: Status) -> Self {
        Self { task_id, status, result: None, error: None }
    }

    /// A task that has.
    pub fn ended(task_id: String, end: End) -> Self {
        let view = Self::unfinished(task_id, end.status());
        match end {
            End::Succeeded(result) => Self { result: Some(result), ..view },
            End::Failed(failure) => Self { error: Some(failure), ..view },
            End::Cancelled => view,
        }
    }
}

/// Why a request about a task cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// As many tasks, or as many bytes of them, as are kept.
    #[error("as many tasks wait as are kept: try again later")]
    Full,
    /// The key was used for another picture or other parameters.
    #[error("this Idempotency-Key was used for another picture or other parameters: use a new key")]
    Conflict,
    /// This name was never given here.
    #[error("no task has this name")]
    Unknown,
    /// It was here and is no more.
    #[error("the task is gone: results are kept for a limited time")]
    Gone,
    /// The store does not answer.
    #[error("the store of the tasks is away: try again later")]
    Away(#[from] Away),
    /// The system has no randomness for a name.
    #[error("no name can be made for the task")]
    Nameless,
}

/// What a submission led to.
#[derive(Debug)]
pub struct Submitted {
    /// The task.
    pub view: View,
    /// Whether it was made for this; else an earlier one with the same idempotency key was.
    pub new: bool,
}

/// A task that this process has taken on.
#[derive(Debug)]
pub struct Claim {
    /// Its name.
    pub id: String,
    /// What to run.
    pub work: Work,
    /// How long ago it was submitted.
    pub age: std::time::Duration,
    /// Cancelled when a client withdraws it.
    pub withdrawn: CancellationToken,
    /// Keeps other servers from taking it over.
    lease: Option<Lease>,
}

/// The tasks of a server.
#[derive(Debug)]
pub enum Tasks {
    /// In this process: lost with it.
    Memory(Box<MemoryTasks>),
    /// In a store that all pods share.
    Shared(Box<SharedTasks>),
}

impl Tasks {
    /// The tasks that the settings ask for, in the store if there is one; `None` if they are off.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn open(config: &Config, store: Option<&Client>, metrics: &Metrics) -> Result<Option<Self>, StoreError> {
        if !config.tasks {
            return Ok(None);
        }
        let (ttl, metrics, store_metrics) = (config.tasks_ttl(), metrics.tasks.clone(), &metrics.store);
        let Some(client) = store else {
            return Ok(Some(Self::Memory(Box::new(MemoryTasks::new(ttl, metrics)))));
        };
        let times = Times { ttl, reclaim: config.tasks_reclaim() };
        let tasks = SharedTasks::open(client, &config.redis_scope, times, store_metrics, metrics)?;
        Ok(Some(Self::Shared(Box::new(tasks))))
    }

    /// Takes work on, once for each idempotency key.
    ///
    /// # Errors
    /// [`TaskError::Full`], [`TaskError::Conflict`], [`TaskError::Nameless`].
    pub async fn submit(&self, work: Work, idempotency_key: Option<String>) -> Result<Submitted, TaskError> {
        match self {
            Self::Memory(tasks) => tasks.submit(work, idempotency_key),
            Self::Shared(tasks) => tasks.submit(work, idempotency_key).await,
        }
    }

    /// Shows a task.
    ///
    /// # Errors
    /// [`TaskError::Unknown`], [`TaskError::Gone`].
    pub async fn view(&self, id: &str) -> Result<View, TaskError> {
        match self {
            Self::Memory(tasks) => tasks.view(id),
            Self::Shared(tasks) => tasks.view(id).await,
        }
    }

    /// Withdraws a task that has not ended; one that has stays as it is.
    ///
    /// # Errors
    /// As [`Self::view`].
    pub async fn cancel(&self, id: &str) -> Result<View, TaskError> {
        match self {
            Self::Memory(tasks) => tasks.cancel(id),
            Self::Shared(tasks) => tasks.cancel(id).await,
        }
    }

    /// Waits for work; for durable tasks not for ever, so that a drain is noticed.
    pub async fn claim(&self) -> Option<Claim> {
        match self {
            Self::Memory(tasks) => Some(tasks.claim().await),
            Self::Shared(tasks) => tasks.claim().await,
        }
    }

    /// Stores how a claimed task ended, unless it was withdrawn meanwhile. Returns its final status.
    pub async fn finish(&self, claim: &Claim, end: End) -> Status {
        match self {
            Self::Memory(tasks) => tasks.finish(&claim.id, end),
            Self::Shared(tasks) => tasks.finish(&claim.id, end).await,
        }
    }

    /// Leaves a claimed task to others in good order: nothing is wrong with it, this process cannot run it. One in
    /// memory ends with the process.
    pub async fn hand_back(&self, claim: &Claim) {
        match self {
            Self::Memory(_) => {}
            Self::Shared(tasks) => tasks.hand_back(claim).await,
        }
    }

    /// Waits until a drain need not wait any longer for this process' tasks.
    pub async fn settled(&self) {
        match self {
            Self::Memory(tasks) => tasks.settled().await,
            Self::Shared(tasks) => tasks.settled().await,
        }
    }

    /// Whether a task outlives this process.
    pub const fn durable(&self) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Shared(_) => true,
        }
    }

    /// Keeps up, for ever, what must be done beside the tasks' work.
    pub async fn keep(&self) {
        match self {
            Self::Memory(_) => std::future::pending().await,
            Self::Shared(tasks) => tasks.keep().await,
        }
    }
}
