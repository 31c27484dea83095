//! Redis or Valkey, which all pods of a service share: every call is bounded in time, and none is made while the store
//! is known to be away.

mod breaker;
pub mod results;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, RedisResult};

use crate::limits;
use crate::metrics::Labelled;
use breaker::Breaker;
pub use breaker::PAUSE_MAX;

/// What the store is asked for; label value of `yolo_store_errors_total`.
pub const OPERATIONS: [&str; 6] = ["cache_get", "cache_put", "task_submit", "task_view", "task_claim", "task_end"];

/// Why the store cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file with the address is not readable.
    #[error("failed to read the store's URL from {file}")]
    File {
        /// Path as configured.
        file: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The address is none. It may hold a password, so it is not repeated.
    #[error(
        "the store's URL in {file} is not of the form redis://[[user]:password@]host[:port][/database] or rediss://…"
    )]
    Address {
        /// Path as configured.
        file: PathBuf,
    },
    /// The client cannot be made.
    #[error("failed to prepare a connection to the store")]
    Client(#[source] redis::RedisError),
}

/// The store did not answer well and in time, or is known to be away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shared store is away")]
pub struct Away;

/// Reads the store's address. Whether the store answers is only logged: the server starts without it.
///
/// # Errors
/// [`StoreError`]; the address itself is in no text.
pub fn client(url_file: &Path) -> Result<Client, StoreError> {
    let file = || url_file.to_owned();
    let url = std::fs::read_to_string(url_file).map_err(|source| StoreError::File { file: file(), source })?;
    // TLS needs a process-wide provider; whoever set one first is right too.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::open(url.trim()).map_err(|_| StoreError::Address { file: file() })?;
    tokio::spawn(try_once(client.clone()));
    Ok(client)
}

/// Says what is wrong, if it is; the connections that matter only try again and again.
async fn try_once(client: Client) {
    let connected = tokio::time::timeout(limits::STORE_CONNECT_MAX, client.get_multiplexed_async_connection()).await;
    let problem = match connected {
        Ok(Ok(_)) => return tracing::info!("Shared store answers."),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no connection within {:?}", limits::STORE_CONNECT_MAX),
    };
    tracing::warn!(problem, "Shared store cannot be reached yet.");
}

/// One connection with its own bound on time and its own breaker: a slow 20 MiB picture of a task must not make cache
/// lookups wait behind it.
pub struct Store {
    connection: ConnectionManager,
    breaker: Breaker,
    limit: Duration,
    errors: Labelled<Counter>,
}

impl fmt::Debug for Store {
    // The connection knows the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("limit", &self.limit).field("breaker", &self.breaker).finish_non_exhaustive()
    }
}

impl Store {
    /// A connection whose calls take at most `limit`. It is made in the background, and again for ever when it is lost.
    ///
    /// # Errors
    /// [`StoreError::Client`].
    pub fn open(client: &Client, limit: Duration, errors: Labelled<Counter>) -> Result<Self, StoreError> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(limits::STORE_CONNECT_MAX))
            .set_max_delay(limits::STORE_CONNECT_MAX)
            .set_number_of_retries(usize::MAX)
            .set_response_timeout(None); // ours is round the whole call
        let connection = ConnectionManager::new_lazy_with_config(client.clone(), config).map_err(StoreError::Client)?;
        let mut first = connection.clone();
        tokio::spawn(async move { redis::cmd("PING").exec_async(&mut first).await });
        Ok(Self { connection, breaker: Breaker::default(), limit, errors })
    }

    /// Makes a call, unless the store is known to be away.
    ///
    /// Cancellation: safe; the store may have done what was asked.
    ///
    /// # Errors
    /// [`Away`]; what failed is counted under `operation`, one of [`OPERATIONS`].
    pub async fn call<T, F>(
        &self,
        operation: &'static str,
        work: impl FnOnce(ConnectionManager) -> F + Send,
    ) -> Result<T, Away>
    where
        F: Future<Output = RedisResult<T>> + Send,
    {
        let permit = self.breaker.permit(Instant::now()).ok_or(Away)?;
        let problem = match tokio::time::timeout(self.limit, work(self.connection.clone())).await {
            Ok(Ok(value)) => {
                if self.breaker.succeeded() {
                    tracing::info!("Shared store is back.");
                }
                return Ok(value);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {:?}", self.limit),
        };
        self.errors.of(operation).inc();
        if self.breaker.failed(permit, Instant::now()) {
            tracing::warn!(operation, problem, "Shared store is away; it is left alone for a while.");
        }
        Err(Away)
    }
}
