//! Answers that a client does not take. HTTP/2 has a window for each call, so the connection itself goes on; without a
//! bound, such a client would make the server hold its answers for ever.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

/// The answers of one connection that wait for their client, by call, and since when.
#[derive(Debug, Clone, Default)]
pub(super) struct Unread(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    calls: u64,
    since: BTreeMap<u64, Instant>,
}

impl Unread {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches an answer from now on.
    pub(super) fn watch(&self, body: Body) -> Watched {
        let mut waiting = self.waiting();
        waiting.calls += 1;
        let call = waiting.calls;
        waiting.since.insert(call, Instant::now());
        Watched { body, call, unread: self.clone() }
    }

    /// Whether one of them has waited for longer than `limit`.
    pub(super) fn longer_than(&self, limit: Duration) -> bool {
        self.waiting().since.values().any(|since| since.elapsed() > limit)
    }
}

/// An answer. It waits for its client from each piece until the next one is asked for: hyper asks when there is room.
#[derive(Debug)]
pub(super) struct Watched {
    body: Body,
    call: u64,
    unread: Unread,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        let mut waiting = self.unread.waiting();
        if frame.is_ready() {
            waiting.since.insert(self.call, Instant::now());
        } else {
            waiting.since.remove(&self.call);
        }
        drop(waiting);
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.unread.waiting().since.remove(&self.call);
    }
}
