//! The open calls of a connection, and answers that a client does not take.
//!
//! HTTP/2 has a window for each call, so the connection itself goes on; without a bound, such a client would make the server
//! hold its answers for ever.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

/// The calls of one connection: which are open, and whose answers wait for their client.
#[derive(Debug, Clone)]
pub(super) struct Calls(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    begun: u64,
    open: usize,
    /// Since when no call is open; meaningless while one is.
    idle_since: Instant,
    /// Since when an answer waits, by call.
    unread_since: BTreeMap<u64, Instant>,
}

impl Calls {
    /// Of a connection that is opened now.
    pub(super) fn new() -> Self {
        let state = State { begun: 0, open: 0, idle_since: Instant::now(), unread_since: BTreeMap::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a call.
    pub(super) fn begin(&self) -> Call {
        let mut state = self.state();
        state.begun += 1;
        state.open += 1;
        Call { number: state.begun, calls: self.clone() }
    }

    /// Whether an answer has waited for its client for longer than `limit`.
    pub(super) fn unread_for(&self, limit: Duration) -> bool {
        self.state().unread_since.values().any(|since| since.elapsed() > limit)
    }

    /// Whether no call has been open for longer than `limit`.
    pub(super) fn idle_for(&self, limit: Duration) -> bool {
        let state = self.state();
        state.open == 0 && state.idle_since.elapsed() > limit
    }
}

/// An open call; dropped, it has ended.
#[derive(Debug)]
pub(super) struct Call {
    number: u64,
    calls: Calls,
}

impl Call {
    /// Watches its answer from now on.
    pub(super) fn watch(self, body: Body) -> Watched {
        self.calls.state().unread_since.insert(self.number, Instant::now());
        Watched { body, call: self }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.calls.state();
        state.open = state.open.saturating_sub(1);
        state.idle_since = Instant::now();
        state.unread_since.remove(&self.number);
    }
}

/// An answer. It waits for its client from each piece until the next one is asked for: hyper asks when there is room.
#[derive(Debug)]
pub(super) struct Watched {
    body: Body,
    call: Call,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        let Call { number, calls } = &self.call;
        if frame.is_ready() {
            calls.state().unread_since.insert(*number, Instant::now());
        } else {
            calls.state().unread_since.remove(number);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
