//! The open calls of a connection, and answers that a client does not take.
//!
//! HTTP/2 has a window for each call, so the connection itself goes on; without a bound, such a client would make the server
//! hold its answers for ever. So answers go out in pieces: each must be taken in time, and all of them at the lowest rate.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::unread::Unread;
use crate::limits;

/// Most of an answer that is given to hyper at a time.
const PIECE_BYTES_MAX: usize = 64 << 10;

/// The calls of one connection: which are open, and whose answers wait for their client.
#[derive(Debug, Clone)]
pub(super) struct Calls(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    begun: u64,
    open: usize,
    /// Since when no call is open; meaningless while one is.
    idle_since: Instant,
    /// Answers that wait, by call.
    waiting: BTreeMap<u64, Waiting>,
}

/// An answer that its client has not taken.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    /// Since when there was always something to take.
    since: Instant,
    /// What was given to hyper since then.
    bytes: u64,
    /// Since when the last piece of it waits.
    piece_since: Instant,
}

impl Waiting {
    fn begins(now: Instant) -> Self {
        Self { since: now, bytes: 0, piece_since: now }
    }

    /// Whether its client is slower at `now` than one that takes a piece each `limit`, and after as long
    /// [`limits::ANSWER_BYTES_PER_SECOND_MIN`].
    fn is_too_slow(&self, limit: Duration, now: Instant) -> bool {
        let at_rate = Duration::from_secs(self.bytes / limits::ANSWER_BYTES_PER_SECOND_MIN);
        now.saturating_duration_since(self.piece_since) > limit
            || now.saturating_duration_since(self.since) > limit + at_rate
    }
}

impl Calls {
    /// Of a connection that is opened now.
    pub(super) fn new() -> Self {
        let state = State { begun: 0, open: 0, idle_since: Instant::now(), waiting: BTreeMap::new() };
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

    /// Whether a client takes an answer too slowly, of which `limit` is the longest pause.
    pub(super) fn too_slow(&self, limit: Duration) -> bool {
        let now = Instant::now();
        self.state().waiting.values().any(|waiting| waiting.is_too_slow(limit, now))
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
    /// Watches its answer from now on, whose memory is `unread`.
    pub(super) fn watch(self, body: Body, unread: Unread) -> Watched {
        self.calls.state().waiting.insert(self.number, Waiting::begins(Instant::now()));
        Watched { body, rest: Bytes::new(), unread, call: self }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.calls.state();
        state.open = state.open.saturating_sub(1);
        state.idle_since = Instant::now();
        state.waiting.remove(&self.number);
    }
}

/// An answer. It waits for its client from each piece until the next one is asked for: hyper asks when there is room.
#[derive(Debug)]
pub(super) struct Watched {
    body: Body,
    /// What was encoded and is not yet given to hyper.
    rest: Bytes,
    unread: Unread,
    call: Call,
}

impl Watched {
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = self.unread.take(data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES_MAX));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = self.poll_piece(context);
        let Call { number, calls } = &self.call;
        let mut state = calls.state();
        if let Poll::Ready(frame) = &frame {
            let now = Instant::now();
            let waiting = state.waiting.entry(*number).or_insert_with(|| Waiting::begins(now));
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            waiting.bytes += data.map_or(0, |data| data.len() as u64);
            waiting.piece_since = now;
        } else {
            state.waiting.remove(number);
        }
        drop(state);
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Of the gRPC framing, whose end nobody knows before its trailers.
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_takes_its_answer_in_drips_is_too_slow() {
        let (limit, now) = (Duration::from_secs(10), Instant::now());
        let ago = |seconds: u64| now.checked_sub(Duration::from_secs(seconds)).unwrap();
        for (seconds, bytes, piece_seconds, too_slow) in [
            (9, 0, 9, false),
            (11, 0, 11, true),
            (11, 100, 1, true),
            (70, 1 << 20, 1, false),
            (70, 1 << 20, 11, true),
            (100, 1 << 20, 1, true),
            (3_600, 64 << 20, 9, false),
        ] {
            let waiting = Waiting { since: ago(seconds), bytes, piece_since: ago(piece_seconds) };
            assert_eq!(waiting.is_too_slow(limit, now), too_slow, "{bytes} bytes in {seconds} s");
        }
    }
}
