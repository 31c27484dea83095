//! A call's body on its way in, under the same bounds as REST's.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, stream};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use super::convert::status;
use crate::http::body::BodyMemory;
use crate::http::error::{ApiError, Code};

/// The memory that a call's bytes hold. Its handler takes it with each message, so that it is given back with the
/// message's answer; what it leaves goes with the call.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    share: Arc<Mutex<Share>>,
    /// Whether the call keeps a buffer that its messages are inflated into.
    inflates: bool,
}

#[derive(Debug, Default)]
struct Share {
    bytes: usize,
    memory: Option<OwnedSemaphorePermit>,
    buffer: Option<OwnedSemaphorePermit>,
}

impl Held {
    pub(super) fn new(inflates: bool) -> Self {
        Self { inflates, ..Self::default() }
    }

    fn share(&self) -> MutexGuard<'_, Share> {
        self.share.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grow(&self, memory: &BodyMemory, bytes: usize) -> Result<(), ApiError> {
        let mut share = self.share();
        let bytes = share.bytes + bytes;
        memory.hold(&mut share.memory, bytes)?;
        share.bytes = bytes;
        Ok(())
    }

    /// What the bytes hold that have come since the last call, grown to the size of the message that they became.
    ///
    /// # Errors
    /// 429 if an inflated message is more than memory can hold.
    pub(super) fn take(
        &self,
        memory: &BodyMemory,
        message_bytes: usize,
    ) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        let mut share = self.share();
        share.bytes = 0;
        let mut held = share.memory.take();
        memory.hold(&mut held, message_bytes)?;
        if self.inflates {
            // The buffer stays as large as its largest message until the call ends.
            memory.hold(&mut share.buffer, message_bytes)?;
        }
        Ok(held)
    }
}

/// How long a body may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// One message: as long as a body over REST.
    Message,
    /// A stream of messages: for ever, with pauses of at most `idle_max`.
    Stream { idle_max: Duration },
}

struct Upload {
    body: Incoming,
    pace: Pace,
    started: Instant,
    /// Bytes that have come.
    bytes: u64,
    memory: BodyMemory,
    held: Held,
}

/// Passes a body on.
///
/// # Errors
/// `ResourceExhausted` if all bodies together take too much memory, `DeadlineExceeded` if it comes too slowly.
pub(super) fn bounded(
    body: Incoming,
    pace: Pace,
    memory: BodyMemory,
    held: Held,
) -> impl Stream<Item = Result<Frame<Bytes>, Status>> + Send {
    let upload = Upload { body, pace, started: Instant::now(), bytes: 0, memory, held };
    stream::try_unfold(upload, Upload::next)
}

impl Upload {
    async fn next(mut self) -> Result<Option<(Frame<Bytes>, Self)>, Status> {
        let due = match self.pace {
            Pace::Message => self.memory.due(self.started, self.bytes),
            Pace::Stream { idle_max } => Instant::now() + idle_max,
        };
        let too_slow = || status(&ApiError::new(Code::RequestTimeout, "the messages came too slowly"));
        let frame = tokio::time::timeout_at(due.into(), self.body.frame()).await.map_err(|_| too_slow())?;
        let Some(frame) = frame else { return Ok(None) };
        let frame = frame.map_err(|error| Status::from_error(error.into()))?;
        if let Some(data) = frame.data_ref() {
            self.bytes += data.len() as u64;
            self.held.grow(&self.memory, data.len()).map_err(|error| status(&error))?;
        }
        Ok(Some((frame, self)))
    }
}
