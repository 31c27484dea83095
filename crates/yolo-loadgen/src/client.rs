//! Sends scheduled requests and records what became of each.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::header::HOST;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::envelope::Envelope;
use crate::pictures::{Mode, Pictures};
use crate::pool::Pool;
use crate::record::{Ending, Outcome, Recording};
use crate::schedule::Arrival;

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Address of the service.
    pub address: SocketAddr,
    /// Value of the `Host` header.
    pub host: String,
    /// Path with query, such as `/predict`.
    pub path: String,
}

/// Bounds of a client; every one is hard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Kept-alive connections.
    pub connections: usize,
    /// Requests begun and not ended; an arrival beyond it is recorded as [`Ending::NotSent`].
    pub in_flight_max: usize,
    /// Requests of one run.
    pub requests_max: u64,
    /// From a request's start to the last byte of its answer.
    pub request_timeout: Duration,
}

impl Default for Limits {
    /// 128 connections: spread at random over 4 pods their counts differ by 15 % (standard deviation over mean,
    /// √(¾·¼·128)/32), so that an even spread can be told from an uneven one; 32 would give 31 %.
    fn default() -> Self {
        Self { connections: 128, in_flight_max: 512, requests_max: 1_000_000, request_timeout: Duration::from_secs(10) }
    }
}

/// Why a client or one exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is neither loopback nor named as allowed: load is never sent to a machine by mistake.
    #[error("{0} is neither loopback nor on the list of allowed addresses")]
    NotAllowed(IpAddr),
    /// Host or path do not form an HTTP request.
    #[error("host {host:?} and path {path:?} do not form an HTTP request")]
    Target {
        /// As given.
        host: String,
        /// As given.
        path: String,
        /// The HTTP library's reason.
        #[source]
        source: hyper::http::Error,
    },
    /// The one exchange of [`Client::once`] failed.
    #[error("failed to get an answer")]
    Exchange(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A client of one service; its connections outlive a run, as those of real clients do.
#[derive(Clone)]
pub struct Client {
    target: Arc<Target>,
    envelope: Envelope,
    limits: Limits,
    pool: Arc<Pool>,
    epoch: Instant,
}

impl Client {
    /// A client without any connection yet. `epoch` is the zero of every time it records.
    ///
    /// # Errors
    /// [`ClientError::NotAllowed`] unless the address is loopback or in `allowed`; [`ClientError::Target`] if host
    /// or path cannot be sent.
    pub fn new(target: Target, limits: Limits, allowed: &[IpAddr], epoch: Instant) -> Result<Self, ClientError> {
        let ip = target.address.ip();
        if !ip.is_loopback() && !allowed.contains(&ip) {
            return Err(ClientError::NotAllowed(ip));
        }
        let pool = Arc::new(Pool::new(target.address, limits.connections));
        let client = Self { target: Arc::new(target), envelope: Envelope::Raw, limits, pool, epoch };
        client.request(Bytes::new())?; // a target that cannot be sent shows here, not in each outcome
        Ok(client)
    }

    /// The same client with pictures sent in another form.
    #[must_use]
    pub fn with_envelope(self, envelope: Envelope) -> Self {
        Self { envelope, ..self }
    }

    /// Connections opened since the client was made.
    pub fn connections_opened(&self) -> u64 {
        self.pool.opened()
    }

    /// The zero of every time this client records.
    pub fn epoch(&self) -> Instant {
        self.epoch
    }

    /// Sends one picture and returns status and body.
    ///
    /// # Errors
    /// [`ClientError::Exchange`] if there was no whole answer within the request time limit.
    pub async fn once(&self, picture: Bytes) -> Result<(u16, Bytes), ClientError> {
        let exchange = self.pool.exchange(self.request(picture)?);
        match tokio::time::timeout(self.limits.request_timeout, exchange).await {
            Ok(Ok((status, answer))) => Ok((status.as_u16(), answer)),
            Ok(Err(failure)) => Err(ClientError::Exchange(failure.into())),
            Err(late) => Err(ClientError::Exchange(late.into())),
        }
    }

    /// Sends the requests of `arrivals` at their times, counted from now, until they end or `stop` does; then waits
    /// for the answers still due.
    ///
    /// Assumptions: runs on a tokio runtime with time and network; sends no faster than scheduled, and never waits
    /// for one answer before it sends the next request.
    pub async fn run(
        &self,
        arrivals: impl Iterator<Item = Arrival>,
        (pictures, mode): (&Pictures, Mode),
        stop: impl Future<Output = ()>,
    ) -> Recording {
        let start = Instant::now();
        let mut stop = std::pin::pin!(stop);
        let mut outcomes = Vec::new();
        let mut in_flight = JoinSet::new();
        let requests_max = usize::try_from(self.limits.requests_max).unwrap_or(usize::MAX);
        for arrival in arrivals.take(requests_max) {
            let due = start + arrival.at;
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = tokio::time::sleep_until(due) => {}
            }
            while let Some(ended) = in_flight.try_join_next() {
                outcomes.extend(ended);
            }
            if in_flight.len() >= self.limits.in_flight_max {
                let now = self.epoch.elapsed();
                let scheduled = due.saturating_duration_since(self.epoch);
                outcomes.push(Outcome { scheduled, started: now, ended: now, ending: Ending::NotSent });
                continue;
            }
            in_flight.spawn(self.clone().send(due, pictures.body(mode, arrival.index)));
        }
        while let Some(ended) = in_flight.join_next().await {
            outcomes.extend(ended);
        }
        Recording::new(outcomes)
    }

    /// Keeps `callers` requests in flight for `length`: each caller sends its next request once it has its answer.
    ///
    /// A closed loop slows down with the server: right for the server's capacity, wrong for latencies under load.
    pub async fn run_closed(
        &self,
        (callers, length): (u64, Duration),
        (pictures, mode): (&Pictures, Mode),
    ) -> Recording {
        let until = Instant::now() + length;
        let caller = async |first: u64| {
            let (mut index, mut outcomes) = (first, Vec::new());
            while Instant::now() < until {
                outcomes.push(self.clone().send(Instant::now(), pictures.body(mode, index)).await);
                index += callers;
            }
            outcomes
        };
        let outcomes = futures::future::join_all((0..callers).map(caller)).await;
        Recording::new(outcomes.into_iter().flatten().collect())
    }

    async fn send(self, due: Instant, picture: Bytes) -> Outcome {
        let started = self.epoch.elapsed();
        let ending = match self.request(picture) {
            Err(_) => Ending::NotSent,
            Ok(request) => match tokio::time::timeout(self.limits.request_timeout, self.pool.exchange(request)).await {
                Ok(Ok((status, _answer))) => Ending::Status(status.as_u16()),
                Ok(Err(_)) => Ending::Broken,
                Err(_) => Ending::TimedOut,
            },
        };
        let scheduled = due.saturating_duration_since(self.epoch);
        Outcome { scheduled, started, ended: self.epoch.elapsed(), ending }
    }

    fn request(&self, picture: Bytes) -> Result<Request<Full<Bytes>>, ClientError> {
        let Target { address: _, host, path } = self.target.as_ref();
        let (request, body) = self.envelope.wrap(Request::post(path).header(HOST, host), picture);
        request.body(Full::new(body)).map_err(|source| ClientError::Target {
            host: host.clone(),
            path: path.clone(),
            source,
        })
    }
}
