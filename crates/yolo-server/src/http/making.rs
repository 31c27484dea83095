//! Answers while they are made: what a small request asks for may be large.

use std::sync::Arc;
use std::thread::Builder;
use std::time::Instant;

use axum::response::Response;
use hyper::body::Body;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::body::BodyMemory;
use super::error::{ApiError, Code};
use super::unread::HeldAnswer;
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

    /// [`Self::add`] of an answer whose contents are known already: it is not refused at once, but waits for memory until
    /// `by`.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub(super) async fn add_by(&mut self, memory: &BodyMemory, bytes: usize, by: Instant) -> Result<(), ApiError> {
        let bytes = self.bytes.saturating_add(bytes);
        if bytes > limits::MAKING_BYTES_UNCOUNTED {
            memory.hold_by(&mut self.memory, bytes, by).await?;
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Leaves of the share what the answer takes to the answer, and gives the rest back: it need not ask again.
    pub(super) fn hand_over(self, answer: &mut Response) {
        let bytes = usize::try_from(answer.body().size_hint().lower()).unwrap_or(usize::MAX);
        if let Some(held) = self.memory.and_then(|mut memory| memory.split(bytes.div_ceil(1 << 10))) {
            answer.extensions_mut().insert(HeldAnswer(Some(Arc::new(held))));
        }
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
    // On a thread of its own: the runtime's have run the decoders, and give way to answers for good. There are never many,
    // since memory holds the bytes of all. Those who left need no result.
    let (sender, done) = oneshot::channel();
    let begun = Builder::new().name("large body".to_owned()).spawn(move || drop(sender.send(work())));
    let done = match begun {
        Ok(_) => done.await.ok(),
        Err(_) => None,
    };
    done.ok_or_else(|| ApiError::new(Code::Internal, "reading or writing a large body crashed"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::response::IntoResponse;
    use futures::FutureExt;
    use tokio::runtime;

    use super::*;
    use crate::limits::BodyLimits;
    use crate::priority;

    /// How much this thread gives way to others.
    fn niceness() -> i32 {
        rustix::process::getpriority_process(None).unwrap()
    }

    #[tokio::test]
    async fn a_large_answer_waits_for_memory_and_keeps_what_it_takes() {
        let memory = BodyMemory::new(BodyLimits { bodies_bytes_max: 100 << 10, ..BodyLimits::DEFAULT });
        let is_free = |kib: usize| memory.hold(&mut None, kib << 10).is_ok();
        let (mut others, mut making) = (None, Making::default());
        memory.hold(&mut others, 60 << 10).unwrap();
        let late = making.add_by(&memory, 80 << 10, Instant::now()).await;
        assert_eq!(late.unwrap_err().code, Code::QueueFull);
        let in_an_hour = Instant::now() + Duration::from_hours(1);
        {
            let mut waiting = Box::pin(making.add_by(&memory, 80 << 10, in_an_hour));
            assert!(waiting.as_mut().now_or_never().is_none());
            drop(others);
            waiting.now_or_never().unwrap().unwrap();
        }
        assert!(is_free(20) && !is_free(21));
        let mut answer = vec![7; 30_000].into_response();
        making.hand_over(&mut answer);
        assert!(is_free(70) && !is_free(71), "30 KB of 100 KiB");
        drop(answer);
        assert!(is_free(100));
        let too_large = Making::default().add_by(&memory, 101 << 10, in_an_hour).await;
        assert_eq!(too_large.unwrap_err().code, Code::PayloadTooLarge);
    }

    #[test]
    fn large_work_does_not_give_way_as_decoders_do() {
        let runtime = runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let decoder = || {
                priority::give_way();
                niceness()
            };
            let (here, there) = (niceness(), tokio::task::spawn_blocking(decoder).await.unwrap());
            assert!(there > here);
            for bytes in [0, limits::WORK_BYTES_INLINE + 1] {
                assert_eq!(off_thread(bytes, niceness).await.unwrap(), here, "{bytes} bytes");
            }
        });
    }

    #[tokio::test]
    async fn large_work_that_panics_is_an_error() {
        let work = || assert_eq!(1, 2, "meant to fail");
        assert_eq!(off_thread(usize::MAX, work).await.unwrap_err().code, Code::Internal);
    }
}
