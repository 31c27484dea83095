//! Means over seeds with a bootstrap interval.

use serde::Serialize;

use crate::random::Random;

/// Resamples of the bootstrap (Efron 1979): more moves the interval's ends by less than they are wide.
const RESAMPLES: usize = 2000;
/// The interval holds this share of the resampled means.
const COVER: f64 = 0.95;

/// A mean over seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Lower end of its 95 % interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// One value a seed, in the seeds' order.
    pub values: Vec<f64>,
}

impl Mean {
    /// Of `values`; zeros for none.
    pub fn of(values: Vec<f64>) -> Self {
        let n = values.len();
        if n == 0 {
            return Self { mean: 0.0, low: 0.0, high: 0.0, values };
        }
        let mean_of = |sum: f64| sum / n as f64;
        let mut random = Random::new(n as u64, 7);
        let resample = |_| mean_of((0..n).map(|_| values.get(random.below(n)).copied().unwrap_or(0.0)).sum());
        let mut means: Vec<f64> = (0..RESAMPLES).map(resample).collect();
        means.sort_by(f64::total_cmp);
        let at = |share: f64| means.get((share * (RESAMPLES - 1) as f64).round() as usize).copied().unwrap_or(0.0);
        Self {
            mean: mean_of(values.iter().sum()),
            low: at((1.0 - COVER) / 2.0),
            high: at(f64::midpoint(1.0, COVER)),
            values,
        }
    }

    /// As a person reads it: the mean and, if the seeds differ, the interval.
    pub fn text(&self, digits: usize) -> String {
        let (mean, low, high) = (self.mean, self.low, self.high);
        let plain = format!("{mean:.digits$}");
        if format!("{low:.digits$}") == plain && format!("{high:.digits$}") == plain {
            plain
        } else {
            format!("{plain} ({low:.digits$}–{high:.digits$})")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_holds_the_mean_and_narrows_with_agreement() {
        let wide = Mean::of(vec![1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!((wide.mean - 3.0).abs() < 1e-12);
        // The normal interval of this mean would be 3 ± 1.24.
        assert!((1.6..2.2).contains(&wide.low) && (3.8..4.4).contains(&wide.high), "{wide:?}");
        let same = Mean::of(vec![2.0; 5]);
        assert_eq!(same.text(2), "2.00");
        assert!(wide.text(1).starts_with("3.0 ("), "{}", wide.text(1));
        assert_eq!(Mean::of(Vec::new()).text(1), "0.0");
    }
}
