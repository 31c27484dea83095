//! The loads: a closed loop for capacity, an open loop for overload.

use std::net::SocketAddr;
use std::ops::Range;
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
const OVERLOAD: Duration = Duration::from_secs(8);
/// Of it, not counted in the goodput: the queue fills. Longer than [`GOOD`], so that the first counted answers have
/// waited in a queue as long as it will be.
const OVERLOAD_WARM: Duration = Duration::from_secs(2);
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

/// Eight callers, each with one request in flight, counted for `length`; nobody repeats a picture.
///
/// # Errors
/// If there was no success at all.
pub fn closed(
    contender: Contender,
    address: SocketAddr,
    (pictures, length): (&Pictures, Duration),
) -> anyhow::Result<Closed> {
    runtime()?.block_on(async {
        let client = client(contender, address, usize::try_from(CALLERS)?)?;
        // Opens the connections one after the other. Of several processes that listen on one socket the one that wakes
        // first accepts whatever waits there: all eight if they came at once, and the others would have nothing to do.
        for number in 0..CALLERS {
            client.once(pictures.body(Mode::Distinct, number)).await?;
        }
        let from = client.epoch().elapsed() + WARM;
        let recording = client.run_closed((CALLERS, WARM + length), (pictures, Mode::Distinct)).await;
        // By their end, not their start: eight are in flight at either edge. A refusal is no answer.
        let counted =
            |outcome: &&Outcome| (from..from + length).contains(&outcome.ended) && outcome.ending.is_success();
        let counted: Vec<_> = recording.outcomes().iter().filter(counted).collect();
        let latencies = counted.iter().map(|outcome| outcome.latency()).collect();
        Ok(Closed { rate: per_second(counted.len(), length), p99_ms: p99_ms(latencies)? })
    })
}

/// What an overload came to.
#[derive(Debug, Clone, Copy)]
pub struct Overload {
    /// 99th percentile of the latency of successful answers, from the scheduled arrival.
    pub p99_ms: f64,
    /// Successful answers within [`GOOD`], a second, that ended while the overload lasted.
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
        let from = client.epoch().elapsed();
        let recording = client.run(schedule, (pictures, Mode::Distinct), std::future::pending()).await;
        let all = recording.outcomes();
        let answered: Vec<_> = all.iter().filter(|o| o.ending.is_success()).map(Outcome::latency).collect();
        let refused = all.iter().filter(|o| o.ending == Ending::Status(429));
        let mut refused: Vec<_> = refused.map(|o| o.ended.saturating_sub(o.started)).collect();
        refused.sort_unstable();
        let refusal_ms = |q| Some(quantile(&refused, q)?.as_secs_f64() * 1e3);
        Ok(Overload {
            goodput: goodput(all, from + OVERLOAD_WARM..from + OVERLOAD),
            unanswered_ratio: 1.0 - per_second(answered.len(), OVERLOAD) / per_second(all.len(), OVERLOAD),
            p99_ms: p99_ms(answered)?,
            refusal_ms: refusal_ms(0.5).zip(refusal_ms(0.99)).map(<[f64; 2]>::from),
        })
    })
}

/// Successful answers within [`GOOD`] that ended in `window`, a second of it.
///
/// By their end, as [`closed`] counts: what was queued when the arrivals cease is answered later, with work of a time
/// that is not part of the window. Counted all the same, it makes a server's goodput larger than its capacity.
fn goodput(outcomes: &[Outcome], window: Range<Duration>) -> f64 {
    let good = |outcome: &&Outcome| {
        outcome.ending.is_success() && outcome.latency() <= GOOD && window.contains(&outcome.ended)
    };
    per_second(outcomes.iter().filter(good).count(), window.end.saturating_sub(window.start))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that does 10 a second, asked for 20, with a queue of 1 s: what arrives in the first second waits ever
    /// longer; from then on every other arrival is refused, and a second's worth is answered after the last arrival.
    #[test]
    fn the_queue_left_at_the_end_of_an_overload_is_no_goodput() {
        let after = |ms: u64| Duration::from_millis(ms);
        let answers = (1..=90).map(|number: u64| {
            let ended = after(100 * number);
            let waited = after(100 + 50 * number.min(20));
            let scheduled = ended.saturating_sub(waited);
            Outcome { scheduled, started: scheduled, ended, ending: Ending::Status(200) }
        });
        let refusals = (20..160).map(|number: u64| {
            let at = after(50 * number);
            Outcome { scheduled: at, started: at, ended: at, ending: Ending::Status(429) }
        });
        let outcomes: Vec<_> = answers.chain(refusals).collect();
        let goodput = goodput(&outcomes, OVERLOAD_WARM..OVERLOAD);
        assert!((goodput - 10.0).abs() < 1e-9, "{goodput} of a capacity of 10");
    }
}
