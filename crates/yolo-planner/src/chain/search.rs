//! The largest rate whose latency keeps a target: a bracketed search that can be interrupted.

use serde::{Deserialize, Serialize};

use super::{Latencies, Server};

/// Up to this share of its saturation rate a server is tried (control.md §4).
const UTILIZATION_TRIED: f64 = 0.998;
/// Width of the last bracket over the saturation rate: a hundredth of what a curve is known to.
const PRECISION: f64 = 5e-4;
/// Steps after which the bracket's lower end is taken: bisection alone needs 14.
const STEPS_MAX: u32 = 32;
/// How far to both sides of a hint the rate is looked for first.
const HINT_MARGIN: f64 = 0.02;
/// Shares below it count as none: their logarithm would only stretch the secant.
const SHARE_MIN: f64 = 1e-9;

/// The target of a search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Goal {
    /// What waiting and running may take, seconds.
    pub(crate) limit_s: f64,
    /// Share of the images that may take longer.
    pub(crate) slow: f64,
}

/// A search under way. Which rates it tries depends on nothing but the server and the goal, so that an interrupted
/// search finds what an uninterrupted one does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Search {
    low: f64,
    high: f64,
    /// ln(share beyond/allowed share) at both ends; secants need them.
    low_error: f64,
    high_error: f64,
    steps: u32,
    /// Whether the last step moved the lower end.
    raised: bool,
    /// About what it will find.
    hint: Option<f64>,
}

impl Search {
    /// A search that has not begun, or that has ended at once: no rate keeps a target that one image alone misses.
    ///
    /// `hint`: about what it will find.
    pub(crate) fn new(server: &Server, goal: Goal, hint: Option<f64>) -> Self {
        let reachable = server.time(1) + server.delay_s <= goal.limit_s;
        let high = if reachable { UTILIZATION_TRIED * server.saturation() } else { 0.0 };
        let hint = hint.filter(|hint| *hint > 0.0);
        Self { low: 0.0, high, low_error: 0.0, high_error: 0.0, steps: 0, raised: false, hint }
    }

    /// The rate, once it is known well enough, images/s.
    pub(crate) fn found(&self, server: &Server) -> Option<f64> {
        let narrow = self.high - self.low <= PRECISION * server.saturation();
        (narrow || self.steps >= STEPS_MAX).then_some(self.low)
    }

    /// Solves the chain once more. The first steps try both sides of the hint, or the greatest rate and its half; the
    /// others a secant or the middle in turn: the share that is late grows about exponentially, but in jumps, so
    /// neither alone is quick.
    pub(crate) fn step(&mut self, server: &Server, goal: Goal) {
        let rate = match (self.steps, self.hint) {
            (0, Some(hint)) => (hint * (1.0 - HINT_MARGIN)).clamp(self.low, self.high),
            (1, Some(hint)) => (hint * (1.0 + HINT_MARGIN)).clamp(self.low, self.high),
            (0, None) => self.high,
            (1, None) => f64::midpoint(self.low, self.high),
            (step, _) if step % 2 == 1 => f64::midpoint(self.low, self.high),
            _ => self.secant(server),
        };
        self.steps += 1;
        let latencies = server.latencies(rate).filter(Latencies::true_to_life);
        // Where the chain has no answer the rate is far too high.
        let error = latencies.map_or(10.0, |latencies| {
            libm::log(latencies.beyond(goal.limit_s).max(SHARE_MIN) / goal.slow.max(SHARE_MIN))
        });
        if error <= 0.0 {
            (self.low, self.low_error) = (rate, error);
            if self.raised {
                self.high_error /= 2.0;
            }
        } else {
            (self.high, self.high_error) = (rate, error);
            if !self.raised {
                self.low_error /= 2.0;
            }
        }
        self.raised = error <= 0.0;
    }

    /// Where the line through both ends crosses zero (Illinois' variant of false position), inside the bracket.
    fn secant(&self, server: &Server) -> f64 {
        let width = self.high - self.low;
        let span = self.high_error - self.low_error;
        let share = if self.low_error < 0.0 && span > 0.0 { -self.low_error / span } else { 0.5 };
        // Not nearer to an end than the precision: it would only confirm that end.
        let inset = (0.5 * PRECISION * server.saturation()).min(0.5 * width);
        (self.low + share * width).clamp(self.low + inset, self.high - inset)
    }

    /// The whole search at once.
    #[cfg(test)]
    pub(crate) fn run(server: &Server, goal: Goal) -> f64 {
        let mut search = Self::new(server, goal, None);
        loop {
            if let Some(rate) = search.found(server) {
                return rate;
            }
            search.step(server, goal);
        }
    }

    /// Chains solved so far.
    #[cfg(test)]
    pub(crate) const fn steps(&self) -> u32 {
        self.steps
    }
}
