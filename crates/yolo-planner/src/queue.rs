//! How long an image waits and runs in one pod: a closed form of a queue with batches.
//!
//! A server that is free takes what waits, at most b images, for t(k) seconds. Two things make an image slow: the
//! batch that runs when it comes, and the queue beyond it.
//! - **Own and running batch.** Below saturation batches settle at the k with λ·t(k) = k; the larger ones that decide
//!   a high quantile hold k + z·√(I·k) images, I being the arrivals' variance over their mean. An image waits for a
//!   uniform rest of such a batch with the probability that the server is busy, then runs in one.
//! - **Queue.** What is left at a batch's end is a random walk: arrivals in a batch (Poisson, or negative binomial for
//!   I > 1) less b. Its tail falls as C·exp(-θn), where θ > 0 solves K(θ) = θ·b for the arrivals' cumulant K, and
//!   C = (b - m)/(K'(θ) - b) with m their mean (the Cramér-Lundberg estimate; for b = 1 and Poisson arrivals that is
//!   M/D/1). n images ahead mean a wait of n·t(b)/b.
//!
//! The larger of the two waits counts. Against the exact chain of control.md §4 the rate that a target allows is
//! within 5 % for Poisson arrivals, and too low by up to a quarter for bursty ones on slow pods (tests below); the
//! chain itself is to replace this module.

use crate::normal;

/// Utilisation up to which the formula is used; beyond, the wait has no bound worth a number.
const UTILIZATION_MAX: f64 = 0.998;
/// Bisections of the largest rate: 2^-24 of the saturation rate is far below what can be measured.
const BISECTIONS: u32 = 24;
/// Bisections of the decay rate θ within a bracket of at most 32: 1e-7, a hundred-thousandth of usual values.
const DECAY_BISECTIONS: u32 = 28;
/// Dispersion up to which arrivals count as Poisson.
const POISSON_MAX: f64 = 1.01;

/// One server's batches: what a queue in front of it needs to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Server<'a> {
    /// Seconds of a batch of 1, 2, … images; rising, at least `batch` long.
    pub(crate) times: &'a [f64],
    /// Largest batch.
    pub(crate) batch: u32,
    /// Variance over mean of the arrivals in a second, at least 1.
    pub(crate) dispersion: f64,
}

impl Server<'_> {
    /// Seconds of a batch of `size` images, linear between whole sizes.
    fn time(&self, size: f64) -> f64 {
        let size = size.clamp(1.0, f64::from(self.batch));
        let mut below = self.times.first().copied().unwrap_or_default();
        for (n, &time) in (1_u32..=self.batch).zip(self.times) {
            let n = f64::from(n);
            if n >= size {
                return below + (time - below) * (1.0 - (n - size)).clamp(0.0, 1.0);
            }
            below = time;
        }
        below
    }

    /// Images a second when the server never idles.
    pub(crate) fn saturation(&self) -> f64 {
        f64::from(self.batch) / self.time(f64::from(self.batch)).max(1e-9)
    }

    /// The `q`-quantile of waiting and running at `rate` images/s, seconds; `None` beyond saturation.
    pub(crate) fn latency(&self, rate: f64, q: f64) -> Option<f64> {
        let batch = f64::from(self.batch);
        let utilization = rate / self.saturation();
        if utilization > UTILIZATION_MAX {
            return None;
        }
        let mut settled = 1.0;
        for _ in 0..32 {
            settled = (rate * self.time(settled)).clamp(1.0, batch);
        }
        let size = (settled + normal::quantile(q) * (self.dispersion * settled).sqrt()).clamp(1.0, batch);
        // A lone image meets others only as often as the server is busy.
        let size = if settled <= 1.0 { 1.0 + (size - 1.0) * (rate * self.time(1.0)).min(1.0) } else { size };
        let own = self.time(size);
        let busy = (rate * self.time(settled) / settled).min(1.0);
        let rest = if busy > 1.0 - q { own * (1.0 - (1.0 - q) / busy) } else { 0.0 };
        let (decay, front) = Count { mean: rate * self.time(batch), dispersion: self.dispersion }.tail(batch);
        let ahead = if front > 1.0 - q { libm::log(front / (1.0 - q)) / decay } else { 0.0 };
        let queue = ahead * self.time(batch) / batch;
        Some(own + rest.max(queue))
    }

    /// Largest rate whose `q`-quantile stays within `limit_s` seconds; 0 if a lone image takes longer.
    pub(crate) fn rate_within(&self, limit_s: f64, q: f64) -> f64 {
        let (mut low, mut high) = (0.0, UTILIZATION_MAX * self.saturation());
        for _ in 0..BISECTIONS {
            let middle = f64::midpoint(low, high);
            if self.latency(middle, q).is_some_and(|latency| latency <= limit_s) {
                low = middle;
            } else {
                high = middle;
            }
        }
        // Below one bisection step nothing was found to fit.
        if low > self.saturation() * 1e-6 { low } else { 0.0 }
    }
}

/// Arrivals in a batch's time.
#[derive(Clone, Copy)]
struct Count {
    mean: f64,
    /// Variance over mean.
    dispersion: f64,
}

impl Count {
    /// Cumulant K(θ) = ln E exp(θA) and its derivative; infinite beyond the negative binomial's pole.
    fn cumulant(self, theta: f64) -> (f64, f64) {
        let growth = libm::exp(theta);
        if self.dispersion <= POISSON_MAX {
            return (self.mean * (growth - 1.0), self.mean * growth);
        }
        let (order, share) = (self.mean / (self.dispersion - 1.0), 1.0 - 1.0 / self.dispersion);
        let left = 1.0 - share * growth;
        if left <= 0.0 {
            return (f64::INFINITY, f64::INFINITY);
        }
        (order * libm::log((1.0 - share) / left), order * share * growth / left)
    }

    /// Decay rate θ of the queue's tail when `served` leave at each batch's end, and its factor C, at most 1.
    fn tail(self, served: f64) -> (f64, f64) {
        let (mut low, mut high) = (0.0, 1.0);
        while high < 32.0 && self.cumulant(high).0 < high * served {
            high *= 2.0;
        }
        for _ in 0..DECAY_BISECTIONS {
            let middle = f64::midpoint(low, high);
            if self.cumulant(middle).0 < middle * served { low = middle } else { high = middle }
        }
        // An idle server's arrivals leave no root but the bracket's end: no queue.
        let theta = low.max(1e-6);
        let excess = self.cumulant(theta).1 - served;
        let front = if excess > 0.0 { ((served - self.mean) / excess).clamp(0.0, 1.0) } else { 1.0 };
        (theta, front)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(alpha_ms: f64, beta_ms: f64) -> Vec<f64> {
        (1..=32).map(|n| (alpha_ms + beta_ms * f64::from(n)) / 1e3).collect()
    }

    /// control.md §4, "Golden μ*": the exact chain's largest rates at ε = 0.05.
    #[test]
    fn largest_rates_are_near_the_exact_chain() {
        let golden = [
            (6.0, 2.2, 16, 0.180, [377.3, 367.0, 347.6]),
            (6.0, 2.2, 8, 0.080, [312.4, 289.1, 248.1]),
            (10.0, 6.0, 8, 0.150, [122.0, 109.3, 88.9]),
            (5.0, 28.0, 1, 0.180, [21.74, 16.55, 12.34]),
            (5.0, 28.0, 2, 0.180, [22.97, 17.26, 12.83]),
        ];
        for (alpha, beta, batch, limit_s, rates) in golden {
            let times = line(alpha, beta);
            for (dispersion, exact) in [1.0, 2.0, 4.0].into_iter().zip(rates) {
                let found = Server { times: &times, batch, dispersion }.rate_within(limit_s, 0.95);
                let error = found / exact - 1.0;
                let least = if dispersion > 1.0 { -0.25 } else { -0.05 };
                assert!(
                    (least..0.05).contains(&error),
                    "{alpha}+{beta}b b={batch} I={dispersion}: {found} for {exact}"
                );
            }
        }
    }

    /// control.md §1 and §4: p95 of the exact chain.
    #[test]
    fn latencies_are_near_the_exact_chain() {
        let times = line(6.0, 2.2);
        for (batch, rate, exact_ms) in [(16, 116.0, 21.0), (4, 189.2, 32.68), (16, 349.5, 84.12)] {
            let found = Server { times: &times, batch, dispersion: 1.0 }.latency(rate, 0.95).unwrap() * 1e3;
            assert!((found / exact_ms - 1.0).abs() < 0.15, "b={batch} at {rate}/s: {found} for {exact_ms} ms");
        }
    }

    #[test]
    fn latency_rises_with_rate_and_has_no_value_beyond_saturation() {
        let times = line(6.0, 2.2);
        let server = Server { times: &times, batch: 8, dispersion: 1.0 };
        let mut last = 0.0;
        for percent in 0..=99 {
            let latency = server.latency(server.saturation() * f64::from(percent) / 100.0, 0.95).unwrap();
            assert!(latency >= last - 1e-12, "{percent} %: {latency} after {last}");
            last = latency;
        }
        assert_eq!(server.latency(server.saturation(), 0.95), None);
    }

    #[test]
    fn a_limit_below_one_image_allows_no_rate() {
        let times = line(50.0, 10.0);
        let server = Server { times: &times, batch: 8, dispersion: 1.0 };
        assert!(server.rate_within(0.050, 0.95) <= 0.0);
    }
}
