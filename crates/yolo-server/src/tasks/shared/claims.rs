//! Taking tasks on from the queue, and keeping them this server's own while it runs them.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::aio::ConnectionManager;
use redis::streams::{
    StreamAutoClaimOptions, StreamAutoClaimReply, StreamClaimOptions, StreamId, StreamPendingReply, StreamReadOptions,
    StreamReadReply,
};
use redis::{AsyncCommands, RedisResult};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{AWAY_PAUSE, GROUP, SharedTasks, millis, parse, unix_ms};
use crate::store::{Away, PAUSE_MAX};
use crate::tasks::{Claim, End, Failure, Status, Work};

/// Time for which a read waits for a task: how late a drain is noticed.
pub(super) const READ_WAIT: Duration = Duration::from_secs(1);
/// Pods that may die over a task before it is given up: it may be what kills them.
const ENDED_SERVERS_MAX: u32 = 3;
/// The service's tasks are counted, and withdrawn ones noticed, this often.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Times that a pod says it is at work, within the time after which it would be believed dead.
const SIGNS_OF_LIFE: u32 = 3;

/// The tasks that this process is at work on, by their entries in the queue.
#[derive(Debug, Clone, Default)]
pub(super) struct Leases(Arc<watch::Sender<HashMap<String, Running>>>);

/// A task that this process runs.
#[derive(Debug, Clone)]
struct Running {
    id: String,
    withdrawn: CancellationToken,
}

/// Keeps a task this process' own while it lives.
#[derive(Debug)]
pub struct Lease {
    entry: String,
    leases: Leases,
}

impl Leases {
    /// `None` if this process is at work on it already: after a store that was away, a pod may take its own tasks for
    /// abandoned.
    fn take(&self, entry: &str, running: Running) -> Option<Lease> {
        let free = self.0.send_if_modified(|entries| {
            let vacant = !entries.contains_key(entry);
            if vacant {
                entries.insert(entry.to_owned(), running);
            }
            vacant
        });
        free.then(|| Lease { entry: entry.to_owned(), leases: self.clone() })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.0.send_modify(|entries| {
            entries.remove(&self.entry);
        });
    }
}

/// Where the search for abandoned tasks goes on, and when.
#[derive(Debug)]
pub(super) struct Search {
    from: String,
    due: Instant,
}

impl Search {
    /// From the beginning, now.
    pub(super) fn new() -> Self {
        Self { from: BEGINNING.to_owned(), due: Instant::now() }
    }
}

const BEGINNING: &str = "0-0";

/// Fields of a task's hash, in the order of [`Fields`].
const FIELDS: [&str; 7] = ["submitted_ms", "request_id", "query", "form", "bypass_cache", "content", "picture"];
/// Their values.
type Fields = (u64, String, String, String, bool, Vec<u8>, Bytes);

impl SharedTasks {
    /// Waits a while for a task; an abandoned one comes first.
    pub(in crate::tasks) async fn claim(&self) -> Option<Claim> {
        let Ok(entry) = self.next_entry().await else {
            // While it is away from all, nobody can say that he is at work: once it is back, whoever is does so before
            // another takes his tasks over, and counts him as dead.
            let all_back = self.search_interval().max(PAUSE_MAX + LOOK_INTERVAL);
            self.search.lock().unwrap_or_else(PoisonError::into_inner).due = Instant::now() + all_back;
            tokio::time::sleep(AWAY_PAUSE).await;
            return None;
        };
        self.begin(&entry?).await
    }

    /// Pause between two searches for abandoned tasks.
    fn search_interval(&self) -> Duration {
        self.times.reclaim / SIGNS_OF_LIFE
    }

    async fn next_entry(&self) -> Result<Option<StreamId>, Away> {
        match self.abandoned().await? {
            Some(entry) => Ok(Some(entry)),
            None => self.read().await,
        }
    }

    /// A task that nobody is at work on any more.
    async fn abandoned(&self) -> Result<Option<StreamId>, Away> {
        let from = {
            let search = self.search.lock().unwrap_or_else(PoisonError::into_inner);
            if Instant::now() < search.due {
                return Ok(None);
            }
            search.from.clone()
        };
        let idle_ms = millis(self.times.reclaim);
        let reply = self.store.call("task_claim", async |mut connection: ConnectionManager| {
            let options = StreamAutoClaimOptions::default().count(1);
            let (queue, consumer) = (&self.keys.queue, &self.consumer);
            let reply: RedisResult<StreamAutoClaimReply> =
                connection.xautoclaim_options(queue, GROUP, consumer, idle_ms, from, options).await;
            self.or_new_group(&mut connection, reply).await
        });
        let reply = reply.await?;
        // Empty if there was no group yet.
        let through = reply.next_stream_id.is_empty() || reply.next_stream_id == BEGINNING;
        if through {
            let mut script = self.scripts.forget.prepare_invoke();
            script.key(&self.keys.queue).arg(GROUP).arg(idle_ms);
            // Counted if it fails; the next search does it again.
            let _ = self
                .store
                .call("task_claim", async |mut connection: ConnectionManager| {
                    script.invoke_async::<()>(&mut connection).await
                })
                .await;
        }
        let mut search = self.search.lock().unwrap_or_else(PoisonError::into_inner);
        if through {
            search.due = Instant::now() + self.search_interval();
        }
        search.from = if through { BEGINNING.to_owned() } else { reply.next_stream_id };
        Ok(reply.claimed.into_iter().next())
    }

    async fn read(&self) -> Result<Option<StreamId>, Away> {
        let reply = self.reader.call("task_claim", async |mut connection: ConnectionManager| {
            let options = StreamReadOptions::default().group(GROUP, &self.consumer).count(1);
            let options = options.block(usize::try_from(millis(READ_WAIT)).unwrap_or(1_000));
            let reply: RedisResult<Option<StreamReadReply>> =
                connection.xread_options(&[&self.keys.queue], &[">"], &options).await;
            self.or_new_group(&mut connection, reply).await
        });
        let keys = reply.await?.unwrap_or_default().keys;
        Ok(keys.into_iter().next().and_then(|key| key.ids.into_iter().next()))
    }

    /// Makes the group if the store does not know it: at first, and after it lost its memory.
    async fn or_new_group<T: Default>(
        &self,
        connection: &mut ConnectionManager,
        reply: RedisResult<T>,
    ) -> RedisResult<T> {
        match reply {
            Err(error) if error.code() == Some("NOGROUP") => {
                let made: RedisResult<()> = connection.xgroup_create_mkstream(&self.keys.queue, GROUP, 0).await;
                made.or_else(|error| if error.code() == Some("BUSYGROUP") { Ok(()) } else { Err(error) })?;
                Ok(T::default())
            }
            other => other,
        }
    }

    async fn begin(&self, entry: &StreamId) -> Option<Claim> {
        let id: String = entry.get("id")?;
        let running = Running { id: id.clone(), withdrawn: CancellationToken::new() };
        let withdrawn = running.withdrawn.clone();
        let lease = self.leases.take(&entry.id, running)?;
        let mut script = self.scripts.fetch.prepare_invoke();
        script.key(self.keys.task(&id)).key(&self.keys.queue).key(&self.keys.bytes);
        script.arg(GROUP).arg(&entry.id).arg(entry.get::<u64>("bytes").unwrap_or(0)).arg(FIELDS.as_slice());
        let fields = self.store.call("task_claim", async |mut connection: ConnectionManager| {
            script.invoke_async::<Option<Fields>>(&mut connection).await
        });
        // Away, or too slow for its picture: without its lease it is abandoned, and taken over.
        let (submitted_ms, request_id, query, form, bypass_cache, content, picture) = fields.await.ok()??;
        // Not with the fields: if they never came here, nobody began.
        let mut script = self.scripts.begin.prepare_invoke();
        script.key(self.keys.task(&id));
        let begun = self.store.call("task_claim", async |mut connection: ConnectionManager| {
            script.invoke_async::<Option<u32>>(&mut connection).await
        });
        // Away again: what the store does not know of would not be counted if it ends this server, so another begins it.
        let ended_servers = begun.await.ok()??;
        self.metrics.reached(Status::Running);
        if ended_servers >= ENDED_SERVERS_MAX {
            let message = format!("{ENDED_SERVERS_MAX} servers ended or crashed while they ran this task");
            self.finish(&id, End::Failed(Failure { code: "internal".to_owned(), message })).await;
            return None;
        }
        let work = Work {
            request_id,
            picture,
            content: content.try_into().ok()?,
            query,
            form: serde_json::from_str(&form).ok()?,
            bypass_cache,
        };
        let age = Duration::from_millis(unix_ms().saturating_sub(submitted_ms));
        Some(Claim { id, work, age, withdrawn, lease: Some(lease) })
    }

    /// Says of a claimed task that this process will not end it, as far as the store hears it. It keeps its lease.
    pub(in crate::tasks) async fn hand_back(&self, claim: &Claim) {
        let Some(lease) = &claim.lease else { return };
        let mut script = self.scripts.hand_back.prepare_invoke();
        script.key(self.keys.task(&claim.id)).key(&self.keys.queue);
        script.arg(GROUP).arg(&lease.entry).arg(&self.consumer);
        let told = self.store.call("task_end", async |mut connection: ConnectionManager| {
            script.invoke_async::<()>(&mut connection).await
        });
        // Counted if it fails; then it looks as if this process had died.
        let _ = told.await;
    }

    /// Says, for ever, that this process is at work on its tasks, stops those that were withdrawn, and counts those of
    /// the service.
    pub(in crate::tasks) async fn keep(&self) {
        let mut ticks = tokio::time::interval((self.times.reclaim / SIGNS_OF_LIFE).min(LOOK_INTERVAL));
        loop {
            ticks.tick().await;
            let (entries, running): (Vec<String>, Vec<Running>) = self.leases.0.borrow().clone().into_iter().unzip();
            let seen = self.store.call("task_claim", async |mut connection: ConnectionManager| {
                let (mut statuses, mut pipeline) = (Vec::new(), redis::pipe());
                if !entries.is_empty() {
                    let options = StreamClaimOptions::default().with_justid();
                    let (queue, consumer) = (&self.keys.queue, &self.consumer);
                    let _: Vec<String> =
                        connection.xclaim_options(queue, GROUP, consumer, 0, &entries, options).await?;
                    for task in &running {
                        pipeline.hget(self.keys.task(&task.id), "status");
                    }
                    statuses = pipeline.query_async::<Vec<Option<String>>>(&mut connection).await?;
                }
                let pending: RedisResult<StreamPendingReply> = connection.xpending(&self.keys.queue, GROUP).await;
                let running = self.or_new_group(&mut connection, pending).await?.count();
                let unfinished = connection.xlen::<_, usize>(&self.keys.queue).await?;
                Ok((unfinished.saturating_sub(running), statuses))
            });
            let Ok((queued, statuses)) = seen.await else { continue };
            for (task, status) in running.iter().zip(statuses) {
                // One that the store has lost has nowhere to put its result either.
                if !matches!(status.as_deref().and_then(parse), Some(Status::Queued | Status::Running)) {
                    task.withdrawn.cancel();
                }
            }
            self.metrics.set_kept(Status::Queued, queued);
            self.metrics.set_kept(Status::Running, entries.len());
        }
    }

    pub(in crate::tasks) async fn settled(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.leases.0.subscribe().wait_for(HashMap::is_empty).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::tasks::shared::Times;

    #[tokio::test]
    async fn a_store_that_was_away_is_not_searched_for_abandoned_tasks_at_once() {
        let (metrics, hour) = (Metrics::new(), Duration::from_hours(1));
        let nobody = redis::Client::open("redis://127.0.0.1:1").unwrap();
        let times = Times { ttl: hour, reclaim: hour };
        let tasks = SharedTasks::open(&nobody, "test", times, &metrics.store, metrics.tasks.clone()).unwrap();
        let due = || tasks.search.lock().unwrap().due;
        assert!(due() <= Instant::now(), "a server that has just started searches first");
        assert!(tasks.claim().await.is_none());
        assert!(due() > Instant::now() + hour / 4, "those who live have the time to say so");
    }

    #[test]
    fn an_entry_that_is_run_here_is_not_begun_again() {
        let leases = Leases::default();
        let take = || leases.take("1-0", Running { id: "t".to_owned(), withdrawn: CancellationToken::new() });
        let first = take();
        assert!(first.is_some() && take().is_none());
        drop(first);
        assert!(take().is_some());
    }
}
