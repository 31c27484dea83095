//! The loads: a closed loop for capacity, an open loop for overload.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::Runtime;
use tokio::time::Instant;
use yolo_loadgen::client::{Client, Limits, Target};
use yolo_loadgen::pictures::{Mode, Pictures};
use yolo_loadgen::record::{Ending, Outcome, quantile};
use yolo_loadgen::schedule::{Phase, arrivals};

use crate::contender::Contender;

/// Callers of the closed loop: two requests in work and six that wait, at two workers.
const CALLERS: u64 = 8;
/// Not counted: connections open, caches fill.
const WARM: Duration = Duration::from_secs(1);
const CLOSED: Duration = Duration::from_secs(5);
const OVERLOAD: Duration = Duration::from_secs(8);
/// An answer later than this is of no use to its caller: the server's default deadline of 1 s until the work starts,
/// and a quarter for the work.
pub const GOOD: Duration = Duration::from_millis(1_250);
/// Arrivals are drawn from it; the same for everybody.
const SEED: u64 = 17;

/// One thread: the client shares the cores with the server.
///
/// # Errors
/// If the system gives no resources.
pub fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("failed to start the client's runtime")
}

/// A client of a contender without any connection yet.
///
/// # Errors
/// If the contender cannot be asked.
pub fn client(contender: Contender, address: SocketAddr, connections: usize) -> anyhow::Result<Client> {
    let (path, envelope) = contender.request();
    let target = Target { address, host: address.to_string(), path: path.to_owned() };
    let limits = Limits { connections, ..Limits::default() };
    Ok(Client::new(target, limits, &[], Instant::now())?.with_envelope(envelope))
}

/// What a closed loop came to.
#[derive(Debug, Clone, Copy)]
pub struct Closed {
    /// Answers a second.
    pub rate: f64,
    /// 99th percentile of the latency.
    pub p99_ms: f64,
}

/// Eight callers, each with one request in flight; nobody repeats a picture.
///
/// # Errors
/// If there was no success at all.
pub fn closed(contender: Contender, address: SocketAddr, pictures: &Pictures) -> anyhow::Result<Closed> {
    runtime()?.block_on(async {
        let client = client(contender, address, usize::try_from(CALLERS)?)?;
        let from = client.epoch().elapsed() + WARM;
        let recording = client.run_closed((CALLERS, WARM + CLOSED), (pictures, Mode::Distinct)).await;
        // By their end, not their start: eight are in flight at either edge. A refusal is no answer.
        let counted =
            |outcome: &&Outcome| (from..from + CLOSED).contains(&outcome.ended) && outcome.ending.is_success();
        let counted: Vec<_> = recording.outcomes().iter().filter(counted).collect();
        let latencies = counted.iter().map(|outcome| outcome.latency()).collect();
        Ok(Closed { rate: per_second(counted.len(), CLOSED), p99_ms: p99_ms(latencies)? })
    })
}

/// What an overload came to.
#[derive(Debug, Clone, Copy)]
pub struct Overload {
    /// 99th percentile of the latency of successful answers, from the scheduled arrival.
    pub p99_ms: f64,
    /// Successful answers within [`GOOD`], a second.
    pub goodput: f64,
    /// Refused with a status other than 2xx, or never answered, over all.
    pub unanswered_ratio: f64,
    /// Median and 99th percentile of the time from the start of sending to a 429; none without one.
    pub refusal_ms: Option<[f64; 2]>,
}

/// Poisson arrivals at `rate`, over 128 connections.
///
/// # Errors
/// If there was no success at all.
pub fn overload(
    contender: Contender,
    address: SocketAddr,
    (pictures, rate): (&Pictures, f64),
) -> anyhow::Result<Overload> {
    runtime()?.block_on(async {
        let client = client(contender, address, Limits::default().connections)?;
        let schedule = arrivals(&[Phase { rate_per_second: rate, length: OVERLOAD }], SEED);
        let recording = client.run(schedule, (pictures, Mode::Distinct), std::future::pending()).await;
        let all = recording.outcomes();
        let answered: Vec<_> = all.iter().filter(|o| o.ending.is_success()).map(Outcome::latency).collect();
        let refused = all.iter().filter(|o| o.ending == Ending::Status(429));
        let mut refused: Vec<_> = refused.map(|o| o.ended.saturating_sub(o.started)).collect();
        refused.sort_unstable();
        let refusal_ms = |q| Some(quantile(&refused, q)?.as_secs_f64() * 1e3);
        let good = answered.iter().filter(|latency| **latency <= GOOD).count();
        Ok(Overload {
            goodput: per_second(good, OVERLOAD),
            unanswered_ratio: 1.0 - per_second(answered.len(), OVERLOAD) / per_second(all.len(), OVERLOAD),
            p99_ms: p99_ms(answered)?,
            refusal_ms: refusal_ms(0.5).zip(refusal_ms(0.99)).map(<[f64; 2]>::from),
        })
    })
}

/// 99th percentile in milliseconds.
///
/// # Errors
/// If there is no latency.
pub fn p99_ms(mut latencies: Vec<Duration>) -> anyhow::Result<f64> {
    latencies.sort_unstable();
    Ok(quantile(&latencies, 0.99).context("no request succeeded")?.as_secs_f64() * 1e3)
}

#[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2^53")]
fn per_second(count: usize, length: Duration) -> f64 {
    count as f64 / length.as_secs_f64()
}
