//! One outcome a request, and what a range of them adds up to.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// The server answered with this HTTP status.
    Status(u16),
    /// The connection could not be made or broke before the whole answer was there.
    Broken,
    /// No whole answer within the client's time limit.
    TimedOut,
    /// Never sent: the client's own limit of requests in flight was reached.
    NotSent,
}

impl Ending {
    /// Answered with 200…299.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Status(200..=299))
    }

    fn label(self) -> String {
        match self {
            Self::Status(code) => code.to_string(),
            Self::Broken => "broken".to_owned(),
            Self::TimedOut => "timed_out".to_owned(),
            Self::NotSent => "not_sent".to_owned(),
        }
    }
}

/// One request; all times are offsets from the client's epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// When it should have been sent.
    pub scheduled: Duration,
    /// When the client began with it.
    pub started: Duration,
    /// When the last byte of its answer was there, or it was given up.
    pub ended: Duration,
    /// How it ended.
    pub ending: Ending,
}

impl Outcome {
    /// From the scheduled time, so that a wait inside the client counts too.
    pub fn latency(&self) -> Duration {
        self.ended.saturating_sub(self.scheduled)
    }
}

/// Outcomes in no particular order.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    outcomes: Vec<Outcome>,
}

/// What some outcomes add up to. Latencies are of successful answers, in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Length of the range.
    pub seconds: f64,
    /// Requests scheduled in it.
    pub requests: u64,
    /// Scheduled a second.
    pub offered_per_second: f64,
    /// Successful a second.
    pub succeeded_per_second: f64,
    /// Successful over all; 1 if there was none.
    pub success_ratio: f64,
    /// Median latency; absent without a success.
    pub latency_ms_p50: Option<f64>,
    /// 95th percentile.
    pub latency_ms_p95: Option<f64>,
    /// 99th percentile.
    pub latency_ms_p99: Option<f64>,
    /// Largest.
    pub latency_ms_max: Option<f64>,
    /// Requests by HTTP status, `broken`, `timed_out`, `not_sent`.
    pub endings: BTreeMap<String, u64>,
}

impl Recording {
    /// A recording of these outcomes.
    pub fn new(outcomes: Vec<Outcome>) -> Self {
        Self { outcomes }
    }

    /// Takes over the outcomes of `other`.
    pub fn append(&mut self, mut other: Self) {
        self.outcomes.append(&mut other.outcomes);
    }

    /// All outcomes.
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// Sums up the requests *scheduled* in `from..until`.
    pub fn summary(&self, from: Duration, until: Duration) -> Summary {
        let inside = || self.outcomes.iter().filter(|o| (from..until).contains(&o.scheduled));
        let mut endings = BTreeMap::new();
        for outcome in inside() {
            *endings.entry(outcome.ending.label()).or_insert(0) += 1;
        }
        let mut latencies: Vec<_> = inside().filter(|o| o.ending.is_success()).map(Outcome::latency).collect();
        latencies.sort_unstable();
        let requests = endings.values().sum();
        let succeeded = as_f64(u64::try_from(latencies.len()).unwrap_or(u64::MAX));
        let seconds = until.saturating_sub(from).as_secs_f64();
        let a_second = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
        let quantile_ms = |q| quantile(&latencies, q).map(|latency| latency.as_secs_f64() * 1e3);
        Summary {
            seconds,
            requests,
            offered_per_second: a_second(as_f64(requests)),
            succeeded_per_second: a_second(succeeded),
            success_ratio: if requests == 0 { 1.0 } else { succeeded / as_f64(requests) },
            latency_ms_p50: quantile_ms(0.5),
            latency_ms_p95: quantile_ms(0.95),
            latency_ms_p99: quantile_ms(0.99),
            latency_ms_max: quantile_ms(1.0),
            endings,
        }
    }
}

/// Smallest value that at least the share `q` of `sorted` does not exceed (nearest rank); `None` if empty.
pub fn quantile<T: Copy>(sorted: &[T], q: f64) -> Option<T> {
    let count = as_f64(u64::try_from(sorted.len()).unwrap_or(u64::MAX));
    let rank = (q.clamp(0.0, 1.0) * count).ceil().max(1.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 <= rank <= sorted.len()")]
    sorted.get(rank as usize - 1).copied()
}

#[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2^53")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(scheduled_ms: u64, ended_ms: u64, ending: Ending) -> Outcome {
        let ms = Duration::from_millis;
        Outcome { scheduled: ms(scheduled_ms), started: ms(scheduled_ms), ended: ms(ended_ms), ending }
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        let values: Vec<u32> = (1..=20).collect();
        assert_eq!([0.0, 0.05, 0.5, 0.95, 0.951, 1.0].map(|q| quantile(&values, q).unwrap()), [1, 1, 10, 19, 20, 20]);
        assert_eq!(quantile::<u32>(&[], 0.5), None);
    }

    #[test]
    fn a_summary_counts_what_was_scheduled_in_its_range_and_times_only_successes() {
        let recording = Recording::new(vec![
            outcome(500, 510, Ending::Status(200)),
            outcome(1_000, 1_040, Ending::Status(200)),
            outcome(1_500, 2_600, Ending::Status(200)),
            outcome(1_900, 1_901, Ending::Status(429)),
            outcome(2_000, 2_010, Ending::Broken),
        ]);
        let summary = recording.summary(Duration::from_secs(1), Duration::from_secs(2));
        assert_eq!(summary.requests, 3);
        assert_eq!(summary.endings, BTreeMap::from([("200".to_owned(), 2), ("429".to_owned(), 1)]));
        assert_eq!((summary.latency_ms_p50, summary.latency_ms_max), (Some(40.0), Some(1_100.0)));
        assert!((summary.success_ratio - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn an_empty_range_has_no_latency_and_nothing_failed() {
        let summary = Recording::default().summary(Duration::ZERO, Duration::from_secs(1));
        assert_eq!((summary.latency_ms_p95, summary.requests), (None, 0));
        assert!((summary.success_ratio - 1.0).abs() < f64::EPSILON);
    }
}
