//! Answers while they are made: what a small request asks for may be large.

use tokio::sync::OwnedSemaphorePermit;

use super::body::BodyMemory;
use super::error::{ApiError, Code};
use crate::limits;

/// The share of the memory for bodies of the answers that a request has got, until they are written.
#[derive(Debug, Default)]
pub(super) struct Making {
    bytes: usize,
    memory: Option<OwnedSemaphorePermit>,
}

impl Making {
    /// Adds what takes `bytes`.
    ///
    /// # Errors
    /// 429 if it is more than memory can hold beside all bodies, 413 if it is more than memory can hold at all.
    pub(super) fn add(&mut self, memory: &BodyMemory, bytes: usize) -> Result<(), ApiError> {
        let bytes = self.bytes.saturating_add(bytes);
        if bytes > limits::MAKING_BYTES_UNCOUNTED {
            memory.hold(&mut self.memory, bytes)?;
        }
        self.bytes = bytes;
        Ok(())
    }

    /// The share, to be held on.
    pub(super) fn held(self) -> Option<OwnedSemaphorePermit> {
        self.memory
    }

    /// Does work on it: large work off the threads that serve connections.
    ///
    /// # Errors
    /// As [`off_thread`].
    pub(super) async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        off_thread(self.bytes, work).await
    }
}

/// Does work on `bytes`, if they are many off the threads that serve connections.
///
/// # Errors
/// 500 if it panicked.
pub(super) async fn off_thread<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= limits::WORK_BYTES_INLINE {
        return Ok(work());
    }
    let work = tokio::task::spawn_blocking(work).await;
    work.map_err(|_| ApiError::new(Code::Internal, "reading or writing a large body crashed"))
}
