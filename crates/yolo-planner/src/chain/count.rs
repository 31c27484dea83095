//! How many images arrive in a given time: Poisson, or for bursty arrivals negative binomial (control.md §4).
//!
//! **Bounds:** indices run over the distribution's own length.

/// Mean beyond which the distribution is that of this mean: larger than any queue that the chain holds.
const MEAN_MAX: f64 = 4096.0;
/// Dispersion up to which arrivals are Poisson: below, the negative binomial's order only loses digits.
const POISSON_MAX: f64 = 1.001;
/// exp of less than this would underflow to numbers without digits (1e-290).
const LOG_MIN: f64 = -667.0;
/// Tail that is cut off.
const TAIL: f64 = 1e-12;

/// The distribution of a count of mean `mean` and variance `dispersion`·`mean`; sums to 1.
///
/// Negative binomial of order r = m/(I - 1): p₀ = I^-r, p(k+1) = p(k)·(r + k)/(k + 1)·(1 - 1/I). Cut at
/// m + 8√(m·I) + 12·I, or past the mean once the sum reaches 1 - 1e-12.
pub(super) fn distribution(mean: f64, dispersion: f64) -> Vec<f64> {
    let mut found = Vec::new();
    append(&mut found, mean, dispersion);
    found
}

/// Appends [`distribution`] to `found`.
pub(super) fn append(found: &mut Vec<f64>, mean: f64, dispersion: f64) {
    if mean.is_nan() || mean <= 0.0 {
        found.push(1.0);
        return;
    }
    let mean = mean.min(MEAN_MAX);
    let last = mean + 8.0 * (mean * dispersion).sqrt() + 12.0 * dispersion;
    let begin = found.len();
    let sum = if dispersion <= POISSON_MAX {
        run(found, -mean, (mean, last), |k| mean / (k + 1.0))
    } else {
        let order = mean / (dispersion - 1.0);
        let share = 1.0 - 1.0 / dispersion;
        run(found, -order * libm::log(dispersion), (mean, last), |k| (order + k) / (k + 1.0) * share)
    };
    for probability in found.iter_mut().skip(begin) {
        *probability /= sum;
    }
}

/// Appends probabilities from ln p₀ and the ratio p(k+1)/p(k), by logarithms while they are too small for a number; their
/// sum.
fn run(found: &mut Vec<f64>, log_first: f64, (mean, last): (f64, f64), ratio: impl Fn(f64) -> f64) -> f64 {
    let (mut log, mut value) = (log_first, libm::exp(log_first));
    let (mut sum, mut k) = (value, 0.0);
    found.push(value);
    while k < last && (k < mean || sum < 1.0 - TAIL) {
        if log < LOG_MIN {
            log += libm::log(ratio(k));
            value = libm::exp(log);
        } else {
            value *= ratio(k);
        }
        sum += value;
        k += 1.0;
        found.push(value);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(found: &[f64]) -> (f64, f64, f64) {
        let weighted = |f: &dyn Fn(f64) -> f64| (0_u32..).zip(found).map(|(k, p)| f(f64::from(k)) * p).sum::<f64>();
        let mean = weighted(&|k| k);
        (weighted(&|_| 1.0), mean, weighted(&|k| (k - mean) * (k - mean)))
    }

    #[test]
    fn counts_have_the_mean_and_variance_that_was_asked() {
        for mean in [0.001, 0.5, 7.0, 60.0, 1000.0] {
            for dispersion in [1.0, 1.2, 2.0, 4.0, 8.0] {
                let (sum, found, variance) = moments(&distribution(mean, dispersion));
                assert!((sum - 1.0).abs() < 1e-12);
                assert!((found / mean - 1.0).abs() < 1e-5, "{mean} {dispersion}: mean {found}");
                assert!((variance / (mean * dispersion) - 1.0).abs() < 1e-3, "{mean} {dispersion}: {variance}");
            }
        }
    }

    #[test]
    fn no_time_brings_no_arrival() {
        for mean in [0.0, -1.0, f64::NAN] {
            assert_eq!(distribution(mean, 2.0), vec![1.0]);
        }
    }
}
