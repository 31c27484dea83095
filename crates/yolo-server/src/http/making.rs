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

    /// Does work on it: large work off the threads that serve connections. That goes on if nobody waits for it any more,
    /// and so does its share.
    ///
    /// # Errors
    /// As [`off_thread`].
    pub(super) async fn work<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let memory = self.memory.take();
        let (done, memory) = off_thread(self.bytes, move || (work(), memory)).await?;
        self.memory = memory;
        Ok(done)
    }
}

/// Does work on `bytes`, if they are many off the threads that serve connections: what memory they hold, `work` has to
/// take with it.
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn work_that_nobody_waits_for_any_more_holds_its_memory_until_it_ends() {
        let (memory, mut making) = (BodyMemory::default(), Making::default());
        let all = memory.limits().bodies_bytes_max;
        making.add(&memory, all).unwrap();
        let (end, ended) = mpsc::channel();
        let mut work = Box::pin(making.work(move || ended.recv()));
        assert!(futures::poll!(&mut work).is_pending());
        drop(work);
        drop(making);
        let free = || memory.hold(&mut None, all).is_ok();
        assert!(!free());
        end.send(()).unwrap();
        while !free() {
            tokio::task::yield_now().await;
        }
    }
}
