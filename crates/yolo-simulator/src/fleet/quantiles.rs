//! Laws as tables of equally likely values: a table is drawn from faster than a law.

use super::pod::bucket;

/// Values of the overhead.
const OVERHEADS: usize = 256;
/// Deviation of the overhead over its mean.
const OVERHEAD_SPREAD: f64 = 1.0 / 3.0;

/// Overheads with their buckets.
pub(super) fn overheads(mean_s: f64) -> Vec<(f64, usize)> {
    let sigma = libm::log1p(OVERHEAD_SPREAD * OVERHEAD_SPREAD).sqrt();
    lognormal(OVERHEADS, sigma).map(|factor| (mean_s * factor, bucket(mean_s * factor))).collect()
}

/// `count` equally likely values of a lognormal law of mean 1.
pub(super) fn lognormal(count: usize, sigma: f64) -> impl Iterator<Item = f64> {
    let middle = move |index| (index as f64 + 0.5) / count as f64;
    (0..count).map(move |index| libm::exp(sigma * normal_quantile(middle(index)) - sigma * sigma / 2.0))
}

/// Quantile of the standard normal law by bisection of the error function.
fn normal_quantile(u: f64) -> f64 {
    let (mut low, mut high) = (-8.0, 8.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if 0.5 * libm::erfc(-middle / std::f64::consts::SQRT_2) < u { low = middle } else { high = middle }
    }
    low
}
