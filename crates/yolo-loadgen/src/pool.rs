//! A fixed number of kept-alive connections, used in turn.
//!
//! In turn, not last-used-first: each connection then carries the same share, as the many clients of a real
//! service do. Which pod a connection leads to was decided when it was opened (a Service balances connections,
//! not requests), so a new pod gets load only when the server closes some connections with `Connection: close`
//! and this pool opens them anew. That is the behaviour that the demo measures.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};

/// An answer is detections as JSON; 300 of them are 40 kB. More than this is not an answer of such an API.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

type Sender = SendRequest<Full<Bytes>>;

/// The exchange failed before the whole answer was there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error("failed to connect to {address}")]
    Connect {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("the connection broke")]
    Http(#[from] hyper::Error),
    #[error("failed to read the answer")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the connection pool is closed")]
    Closed,
}

pub(crate) struct Pool {
    address: SocketAddr,
    free: Semaphore,
    /// As many entries as `free` has permits; `None` is a connection still to be opened.
    connections: Mutex<VecDeque<Option<Sender>>>,
    opened: AtomicU64,
}

/// One connection, checked out; goes back to the end of the line when dropped, also by a cancelled request.
struct Slot<'a> {
    pool: &'a Pool,
    sender: Option<Sender>,
    /// Released after `drop` has put the connection back, because fields drop after it.
    _permit: SemaphorePermit<'a>,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.pool.line().push_back(self.sender.take());
    }
}

impl Pool {
    pub(crate) fn new(address: SocketAddr, size: usize) -> Self {
        let connections = Mutex::new((0..size).map(|_| None).collect());
        Self { address, free: Semaphore::new(size), connections, opened: AtomicU64::new(0) }
    }

    /// Connections opened so far.
    pub(crate) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Sends `request` on the next connection and reads the whole answer.
    ///
    /// Cancellation: the connection is then given up and opened anew by the next request that gets its place.
    pub(crate) async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), ExchangeError> {
        let permit = self.free.acquire().await.map_err(|_| ExchangeError::Closed)?;
        let kept = self.line().pop_front().flatten();
        let mut slot = Slot { pool: self, sender: None, _permit: permit };
        let (sender, response) = self.send(kept, request).await?;
        let (parts, body) = response.into_parts();
        let answer = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(ExchangeError::Body)?.to_bytes();
        slot.sender = Some(sender);
        Ok((parts.status, answer))
    }

    /// Sends on `kept` if that still lives, else on a new connection.
    ///
    /// A request is sent a second time only if hyper hands it back, that is, if no byte of it left: a server may
    /// close an idle connection at any moment.
    async fn send(
        &self,
        kept: Option<Sender>,
        request: Request<Full<Bytes>>,
    ) -> Result<(Sender, hyper::Response<hyper::body::Incoming>), ExchangeError> {
        let mut request = request;
        if let Some(mut sender) = kept
            && sender.ready().await.is_ok()
        {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((sender, response)),
                Err(mut failure) => match failure.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(failure.into_error().into()),
                },
            }
        }
        let mut sender = self.connect().await?;
        let response = sender.send_request(request).await?;
        Ok((sender, response))
    }

    async fn connect(&self) -> Result<Sender, ExchangeError> {
        let failed = |source| ExchangeError::Connect { address: self.address, source };
        let stream = TcpStream::connect(self.address).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        self.opened.fetch_add(1, Ordering::Relaxed);
        // Ends by itself when the sender is dropped or the server closes; its error reaches the sender as well.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn line(&self) -> MutexGuard<'_, VecDeque<Option<Sender>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
