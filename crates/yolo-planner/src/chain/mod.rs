//! One pod as a queue: images arrive, a free server takes what waits, at most b images, for t(k) seconds.
//!
//! The number left waiting when a batch ends is a Markov chain (control.md §4): from n it goes to n - k + A(λ·t(k)) with
//! k = min(n, b), and from an empty queue by way of the batch that the next arrival starts. Its stationary
//! distribution gives the latency of every image of every batch; it is computed exactly (`stationary`), not by
//! iteration.

mod count;
mod latency;
#[cfg(test)]
mod oracles;
mod search;
mod stationary;

pub(crate) use latency::Latencies;
pub(crate) use search::{Goal, Search};

use count::distribution;

/// States beyond the last full batches: 6b + 60 images waiting, of which a pod that meets any target has almost never
/// that many (control.md §4).
const STATES_PER_BATCH: usize = 6;
const STATES_MORE: usize = 60;
/// Utilisation from which the queue is not solved: it would not settle within any window.
const UTILIZATION_MAX: f64 = 0.999;

/// One server's batches: what a queue in front of it needs to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Server<'a> {
    /// Seconds of a batch of 1, 2, … images; rising, at least `batch` long.
    pub(crate) times: &'a [f64],
    /// Largest batch.
    pub(crate) batch: u32,
    /// How long the first image of a batch waits for others, seconds.
    pub(crate) delay_s: f64,
    /// Variance over mean of the arrivals in a second, at least 1.
    pub(crate) dispersion: f64,
}

/// A batch that an arrival at an idle server starts.
#[derive(Debug, Clone, Copy)]
struct Starter {
    /// Images in it.
    size: usize,
    /// Probability that it is this one.
    weight: f64,
    /// How long its first image waited, seconds.
    wait_s: f64,
}

impl<'a> Server<'a> {
    /// A server whose curve reaches `batch`; `None` where it does not, or holds what is no time.
    pub(crate) fn new(times: &'a [f64], batch: u32, dispersion: f64) -> Option<Self> {
        let times = times.get(..usize::try_from(batch).ok()?).filter(|times| !times.is_empty())?;
        let usable = times.iter().all(|time| time.is_finite() && *time > 0.0);
        let dispersion = if dispersion.is_finite() { dispersion.max(1.0) } else { 1.0 };
        usable.then_some(Self { times, batch, delay_s: 0.0, dispersion })
    }

    fn batch(&self) -> usize {
        self.times.len()
    }

    /// Seconds of a batch of `size` images.
    fn time(&self, size: usize) -> f64 {
        self.times.get(size.saturating_sub(1)).or_else(|| self.times.last()).copied().unwrap_or(f64::INFINITY)
    }

    /// Seconds of one image.
    pub(crate) fn first_s(&self) -> f64 {
        self.time(1)
    }

    /// Seconds of a full batch.
    pub(crate) fn full_s(&self) -> f64 {
        self.time(self.batch())
    }

    /// Images a second when the server never idles.
    pub(crate) fn saturation(&self) -> f64 {
        f64::from(self.batch) / self.full_s()
    }

    /// Longest queue that is told apart.
    fn states(&self) -> usize {
        STATES_PER_BATCH * self.batch() + STATES_MORE
    }

    /// What one solution of the chain costs, in steps of about a nanosecond: the elimination, the convolutions of the
    /// latencies, and the counts. Measured within a factor of 1.5 over b = 1..=32 (`solutions_cost_what_they_say`).
    pub(crate) fn cost(&self) -> u32 {
        let batch = f64::from(self.batch);
        let counts = batch + 8.0 * (batch * self.dispersion).sqrt() + 12.0 * self.dispersion;
        let states = real(self.states());
        crate::units::ceil_u32(
            15_000.0 + states * (counts * batch.max(4.0) + 12.0 * counts) / 2.0 + 12.0 * batch * counts * 2.0,
        )
    }

    /// The batches that an arrival at an idle server starts, by size.
    fn starters(&self, rate: f64) -> Vec<Starter> {
        if self.delay_s <= 0.0 {
            return vec![Starter { size: 1, weight: 1.0, wait_s: 0.0 }];
        }
        let batch = self.batch();
        let mut starters: Vec<Starter> = Vec::new();
        for (more, probability) in distribution(rate * self.delay_s, self.dispersion).into_iter().enumerate() {
            let size = (1 + more).min(batch);
            let full = more > 0 && 1 + more >= batch;
            let share = real(batch - 1) / real(more + 1);
            let wait_s = if full { self.delay_s * share } else { self.delay_s };
            starters.push(Starter { size, weight: probability, wait_s });
        }
        starters
    }

    /// Latencies at `rate` images/s; `None` beyond saturation.
    pub(crate) fn latencies(&self, rate: f64) -> Option<Latencies> {
        let utilization = rate / self.saturation();
        if !(rate > 0.0 && utilization < UTILIZATION_MAX) {
            return None;
        }
        let starters = self.starters(rate);
        let waiting = stationary::waiting(self, rate, &starters);
        Some(Latencies::new(*self, rate, &waiting, starters))
    }
}

#[expect(clippy::cast_precision_loss, reason = "queue lengths are below 2^16")]
const fn real(count: usize) -> f64 {
    count as f64
}
