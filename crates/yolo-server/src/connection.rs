//! The accept loop: bounded, timed and recycled connections.
//!
//! `axum::serve` sets no timer, which leaves hyper's header time-out without effect, and never tells a client to
//! reconnect; but kube-proxy balances connections, so without recycling a new replica would stay idle behind clients
//! that keep theirs alive.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::framing::StrictIo;
use crate::lifecycle::{Lifecycle, Stage};
use crate::limits::{self, ConnectionLimits};
use crate::random;
use crate::watched_io::WatchedIo;

/// How often a connection is looked at for a client that is too slow.
pub(crate) const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after a failed accept: the process is out of file descriptors, and the next accept would fail at once too.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// Time that connections get to write the last answers after [`Stage::Aborting`].
const ABORT_GRACE: Duration = Duration::from_secs(1);

/// What ends a listener, and what it counts.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The server's life.
    pub lifecycle: Lifecycle,
    /// The stage at which no more connections are accepted and idle ones are closed.
    pub close_at: Stage,
    /// Bounds of the connections.
    pub limits: ConnectionLimits,
    /// Room for connections, which several listeners may share.
    pub places: Arc<Semaphore>,
    /// Connections closed because there are too many.
    pub refused: Counter,
}

/// Serves `router` on `listener` until the policy's stage; returns when every connection has ended.
pub async fn serve(listener: TcpListener, router: Router, policy: Policy) {
    accept(listener, policy, |stream, policy| {
        let router = router.clone();
        async move { serve_connection(stream, router, &policy).await }
    })
    .await;
}

/// Gives each connection of `listener` to `serve_one` until the policy's stage; returns when all have ended.
pub async fn accept<F>(listener: TcpListener, policy: Policy, serve_one: impl Fn(TcpStream, Policy) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = policy.lifecycle.reached(policy.close_at) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "Accepting a connection failed.");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&policy.places).try_acquire_owned() else {
            policy.refused.inc();
            continue; // dropping the stream closes it
        };
        let connection = serve_one(stream, policy.clone());
        connections.spawn(async move {
            connection.await;
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    tokio::select! {
        () = connections.wait() => {}
        () = aborted(&policy.lifecycle) => {}
    }
}

async fn aborted(lifecycle: &Lifecycle) {
    lifecycle.reached(Stage::Aborting).await;
    tokio::time::sleep(ABORT_GRACE).await;
}

/// What the connection's watch and its requests share.
#[derive(Debug)]
pub(crate) struct Activity {
    opened: Instant,
    limits: ConnectionLimits,
    /// Milliseconds after `opened`, plus one, at which the head being received began; 0 if none is.
    head_began: AtomicU64,
    /// The same for a write that the client does not take.
    write_began: AtomicU64,
    /// The same for the first bytes of the answer that is written.
    answer_began: AtomicU64,
    /// Its bytes that went out.
    answer_bytes: AtomicU64,
    in_request: AtomicBool,
    requests: AtomicU32,
    age_max: Duration,
}

impl Activity {
    fn new(limits: ConnectionLimits) -> Self {
        let (age, spread) = (Duration::from_secs(limits.age_seconds), limits::CONNECTION_AGE_JITTER);
        Self {
            opened: Instant::now(),
            limits,
            // Whoever connects has something to say: a connection that stays silent is as slow as a head that trickles.
            head_began: AtomicU64::new(1),
            write_began: AtomicU64::new(0),
            answer_began: AtomicU64::new(0),
            answer_bytes: AtomicU64::new(0),
            in_request: AtomicBool::new(false),
            requests: AtomicU32::new(0),
            age_max: age.mul_f64(random::within(1.0 - spread, 1.0 + spread)),
        }
    }

    /// Of a connection whose requests come side by side: only what it is sent is watched.
    pub(crate) fn of_calls(limits: ConnectionLimits) -> Self {
        Self { head_began: AtomicU64::new(0), in_request: AtomicBool::new(true), ..Self::new(limits) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// Bytes came in.
    pub(crate) fn read(&self) {
        if !self.in_request.load(Ordering::Relaxed) {
            // Kept if a head has begun already: its first byte counts.
            let _ = self.head_began.compare_exchange(0, self.now(), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// The client takes no more bytes for now.
    pub(crate) fn write_blocked(&self) {
        let _ = self.write_began.compare_exchange(0, self.now(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Bytes went out.
    pub(crate) fn wrote(&self, bytes: usize) {
        self.write_began.store(0, Ordering::Relaxed);
        self.answer_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let _ = self.answer_began.compare_exchange(0, self.now(), Ordering::Relaxed, Ordering::Relaxed);
    }

    fn begin_request(&self) {
        self.in_request.store(true, Ordering::Relaxed);
        self.head_began.store(0, Ordering::Relaxed);
        // The answer before is written: hyper reads no request sooner.
        self.begin_answer();
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn begin_answer(&self) {
        self.answer_began.store(0, Ordering::Relaxed);
        self.answer_bytes.store(0, Ordering::Relaxed);
    }

    /// Where answers have no order: while nothing waits for the client, the next ones have their own time.
    pub(crate) fn caught_up(&self) {
        if self.write_began.load(Ordering::Relaxed) == 0 {
            self.begin_answer();
        }
    }

    fn end_request(&self) {
        self.in_request.store(false, Ordering::Relaxed);
    }

    /// Whether the next response shall be the connection's last.
    fn is_old(&self) -> bool {
        self.opened.elapsed() >= self.age_max || self.requests.load(Ordering::Relaxed) >= self.limits.requests_max
    }

    /// Whether the client sends a head, or takes an answer, too slowly.
    pub(crate) fn is_too_slow(&self) -> bool {
        let past = |began: &AtomicU64, limit_seconds: u64| {
            let began = began.load(Ordering::Relaxed);
            began != 0 && self.now().saturating_sub(began) >= 1_000 * limit_seconds
        };
        let write_seconds = self.limits.response_write_seconds;
        let unread = self.write_began.load(Ordering::Relaxed) != 0;
        // Each time it takes a little, the wait for its next bytes begins anew: for the whole it must take more.
        let at_rate = self.answer_bytes.load(Ordering::Relaxed) / limits::ANSWER_BYTES_PER_SECOND_MIN;
        past(&self.head_began, self.limits.header_read_seconds)
            || past(&self.write_began, write_seconds)
            || unread && past(&self.answer_began, write_seconds + at_rate)
    }
}

async fn serve_connection(stream: TcpStream, router: Router, policy: &Policy) {
    // Answers are small: waiting to fill a segment would only delay them.
    let _ = stream.set_nodelay(true);
    let activity = Arc::new(Activity::new(policy.limits));
    let io = WatchedIo::new(TokioIo::new(StrictIo::new(stream)), Arc::clone(&activity));
    let service = service_fn(|request| respond(request, router.clone(), &activity, &policy.lifecycle));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Idle time counts as header time for hyper; the shorter limit for a head that has begun is ours.
        .header_read_timeout(Duration::from_secs(policy.limits.keep_alive_idle_seconds))
        // Twice, because hyper answers without a body: within it, the limit itself is told in JSON.
        .max_header_size(2 * limits::HEADER_BYTES_MAX)
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let mut watch = tokio::time::interval(WATCH_INTERVAL);
    let mut closing = false;
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "Connection ended early.");
                }
                return;
            }
            () = policy.lifecycle.reached(policy.close_at), if !closing => {
                closing = true;
                connection.as_mut().graceful_shutdown(); // an idle connection ends here, a busy one after its answer
            }
            _ = watch.tick() => {
                if activity.is_too_slow() {
                    return;
                }
            }
        }
    }
}

async fn respond(
    request: Request<Incoming>,
    router: Router,
    activity: &Activity,
    lifecycle: &Lifecycle,
) -> Result<Response<Body>, Infallible> {
    activity.begin_request();
    let mut response = router.oneshot(request.map(Body::new)).await?;
    activity.end_request();
    if activity.is_old() || lifecycle.stage() > Stage::Serving {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_takes_its_answer_in_drips_is_too_slow() {
        let limits = ConnectionLimits::DEFAULT;
        let open_for = |seconds: u64| Activity {
            opened: Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap(),
            head_began: AtomicU64::new(0),
            answer_began: AtomicU64::new(1),
            ..Activity::new(limits)
        };
        for (seconds, bytes, too_slow) in
            [(9, 100, false), (11, 100, true), (100, 1 << 20, true), (70, 1 << 20, false), (3_600, 64 << 20, false)]
        {
            let activity = open_for(seconds);
            activity.wrote(bytes);
            assert!(!activity.is_too_slow(), "nothing waits");
            activity.write_blocked();
            assert_eq!(activity.is_too_slow(), too_slow, "{bytes} bytes in {seconds} s");
            activity.begin_request();
            activity.wrote(1);
            activity.write_blocked();
            assert!(!activity.is_too_slow(), "the next answer has its own time");
            activity.caught_up();
            assert_ne!(activity.answer_bytes.load(Ordering::Relaxed), 0, "it is unread");
            activity.wrote(1);
            activity.caught_up();
            assert_eq!(activity.answer_bytes.load(Ordering::Relaxed), 0);
        }
    }
}
