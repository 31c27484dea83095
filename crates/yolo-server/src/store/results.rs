//! The second level of the result cache: answers that any server of the service found.
//!
//! A slow store costs a request at most [`limits::STORE_CACHE_MAX`], one that is away nothing: both are misses.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::aio::ConnectionManager;
use redis::{AsyncCommands, Client};
use tokio::sync::Semaphore;
use yolo_vision::ModelInfo;

use super::{Store, StoreError};
use crate::cache::{Answer, Key};
use crate::limits;
use crate::metrics::StoreMetrics;

/// Another release may lay an answer out in another way.
const LAYOUT: &str = env!("CARGO_PKG_VERSION");
/// When the value was stored: milliseconds since 1970, before the answer.
const STORED_BYTES: usize = size_of::<u64>();

/// Answers in the shared store.
#[derive(Debug)]
pub struct SharedResults {
    store: Arc<Store>,
    prefix: String,
    /// Writes that may be under way; more are left out.
    writes: Arc<Semaphore>,
}

impl SharedResults {
    /// The answers of the service that `scope` names.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn open(client: &Client, scope: &str, metrics: &StoreMetrics) -> Result<Self, StoreError> {
        let store = Store::open(client, limits::STORE_CACHE_MAX, metrics.errors.clone())?;
        Ok(Self {
            store: Arc::new(store),
            prefix: format!("yolo:{{{scope}}}:c:"),
            writes: Arc::new(Semaphore::new(limits::STORE_WRITES_MAX)),
        })
    }

    /// The answer and its age, if the store has one younger than `ttl` and says so in time.
    ///
    /// It gets the class names of `model`, whose digest is in the key: its own copies of them.
    pub async fn get(&self, key: &Key, ttl: Duration, model: &ModelInfo) -> Option<(Answer, Duration)> {
        let name = self.name(key);
        let value = self.store.call("cache_get", async |mut connection: ConnectionManager| {
            connection.get::<_, Option<Vec<u8>>>(name).await
        });
        let value = value.await.ok()??;
        let (stored, answer) = value.split_first_chunk::<STORED_BYTES>()?;
        let age = since_1970().saturating_sub(Duration::from_millis(u64::from_le_bytes(*stored)));
        // What cannot be read was not written by us: a miss.
        let mut answer: Answer = postcard::from_bytes(answer).ok().filter(|_| age < ttl)?;
        for detection in &mut answer.detections {
            detection.name = model.name(detection.class);
        }
        Some((answer, age))
    }

    /// Stores an answer in the background, if the store keeps up.
    pub fn put(&self, key: &Key, answer: Arc<Answer>, ttl: Duration) {
        let Ok(permit) = Arc::clone(&self.writes).try_acquire_owned() else { return };
        let (store, name) = (Arc::clone(&self.store), self.name(key));
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        tokio::spawn(async move {
            let now_ms = u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX);
            let value = postcard::to_extend(&*answer, now_ms.to_le_bytes().to_vec());
            let Some(value) = value.ok().filter(|value| value.len() <= limits::STORE_VALUE_BYTES_MAX) else { return };
            if ttl_ms > 0 {
                let written = store.call("cache_put", async |mut connection: ConnectionManager| {
                    connection.pset_ex::<_, _, ()>(name, value, ttl_ms).await
                });
                let _ = written.await; // counted there
            }
            drop(permit);
        });
    }

    fn name(&self, key: &Key) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(LAYOUT.as_bytes());
        hasher.update(key);
        format!("{}{}", self.prefix, hasher.finalize().to_hex())
    }
}

/// The clock that servers share, about.
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
