//! Arrivals: their level, their burstiness, their peak, and the rate that pods are ordered for.

use serde::{Deserialize, Serialize};

use crate::forecast::GAP_TICKS_MAX;
use crate::observation::PerSecond;
use crate::units::real;

/// Ticks that the level looks back: r30 at ticks of 5 s.
const TICKS: usize = 6;
/// The peak's half-life, 12 h: a peak of this morning counts tonight, last week's does not.
const PEAK_HALF_LIFE_S: f64 = 12.0 * 3600.0;
/// Least factor over the level, whatever the past peak (control.md §5).
const COVER_MIN: f64 = 1.05;
/// Standard deviations of a tick's count beyond which it is the new level. control.md §5 has 3.5, which noise alone exceeds
/// once in an hour and a half: each time pods come that go again.
const STEP_DEVIATIONS: f64 = 4.5;
/// Standard deviations of the level in the margin of a scale-down, and the margin's range.
const MARGIN_DEVIATIONS: f64 = 4.0;
const MARGIN: (f64, f64) = (0.02, 0.15);
/// Time in which a queue is worked off.
const BACKLOG_S: f64 = 15.0;
/// Seconds over which the dispersion is smoothed.
const DISPERSION_S: f64 = 60.0;
/// Above it the closed forms do not hold (control.md §3).
const DISPERSION_MAX: f64 = 8.0;

/// What is known of the arrivals.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Arrivals {
    /// Images/s of the last ticks, oldest first.
    rates: Vec<f64>,
    /// Greatest r10, halved every [`PEAK_HALF_LIFE_S`].
    peak: f64,
    /// Variance over mean of a second's arrivals; 0: not known.
    dispersion: f64,
    /// Ticks seen, saturating.
    pub(crate) ticks: u32,
}

impl Arrivals {
    /// Arrivals of which only the dispersion is known.
    pub(crate) fn seeded(dispersion: f64) -> Self {
        Self { dispersion, ..Self::default() }
    }

    /// Adds `count` ticks of `tick_s` seconds, all with `rate` images/s.
    pub(crate) fn tick(&mut self, rate: f64, count: u32, tick_s: f64) {
        if count > GAP_TICKS_MAX {
            // The rates before a gap are not the last half minute's.
            self.rates.clear();
        }
        let counted = if count > GAP_TICKS_MAX { 1 } else { count.max(1) };
        for _ in 0..counted {
            if self.rates.len() >= TICKS {
                self.rates.remove(0);
            }
            self.rates.push(rate);
        }
        let length_s = f64::from(count) * tick_s;
        self.peak = (self.peak * libm::exp2(-length_s / PEAK_HALF_LIFE_S)).max(self.mean(2));
        self.ticks = self.ticks.saturating_add(counted);
    }

    /// The last ticks' rates, oldest first, images/s.
    pub(crate) fn ticks_kept(&self) -> &[f64] {
        &self.rates
    }

    /// Whether as many ticks are kept as the level looks back.
    pub(crate) const fn full(&self) -> bool {
        self.rates.len() >= TICKS
    }

    /// Adds the bins of a second of the pods that a look found new samples of, out of `pods` that are looked at.
    ///
    /// A pod's few seconds tell its index within a factor; all pods' together, pooled, as one estimate of what they have in
    /// common, tell it.
    pub(crate) fn add_bins(&mut self, bins: impl Iterator<Item = PerSecond>, pods: f64) {
        let (mut n, mut sum, mut freedom, mut squares) = (0.0, 0.0, 0.0, 0.0);
        for bins in bins.filter(|bins| bins.n >= 2) {
            let (seconds, images) = (real(bins.n), real(bins.sum));
            n += seconds;
            sum += images;
            freedom += seconds - 1.0;
            squares += (real(bins.sum_sq) - images * images / seconds).max(0.0);
        }
        if sum <= 0.0 {
            return;
        }
        let index = (squares / freedom / (sum / n)).min(2.0 * DISPERSION_MAX);
        let gain = (n / pods.max(1.0) / DISPERSION_S).min(1.0);
        self.dispersion = if self.dispersion > 0.0 { self.dispersion + gain * (index - self.dispersion) } else { 1.0 };
    }

    /// Mean of the last `ticks` ticks.
    fn mean(&self, ticks: usize) -> f64 {
        let taken = self.rates.iter().rev().take(ticks);
        let n = real(u64::try_from(taken.len()).unwrap_or(1));
        // Not `sum`: of nothing that is -0.0, which a person would read.
        taken.fold(0.0, |sum, rate| sum + rate) / n.max(1.0)
    }

    /// Variance over mean, 1..=8.
    pub(crate) const fn dispersion(&self) -> f64 {
        self.dispersion.clamp(1.0, DISPERSION_MAX)
    }

    /// Arrivals now, images/s: the long mean, unless the short one differs by more than three standard deviations of
    /// a count, or the last tick exceeds it by [`STEP_DEVIATIONS`].
    pub(crate) fn level(&self, tick_s: f64) -> f64 {
        let (last, short, long) = (self.mean(1), self.mean(3), self.mean(TICKS));
        let deviation = |rate: f64, seconds: f64| (self.dispersion() * rate / seconds.max(1e-3)).sqrt();
        let level = if (short - long).abs() > 3.0 * deviation(long, 3.0 * tick_s) { short } else { long };
        if last > level + STEP_DEVIATIONS * deviation(level, tick_s) { last } else { level }
    }

    /// Images/s of the last two ticks, r10.
    pub(crate) fn pair(&self) -> f64 {
        self.mean(2)
    }

    /// The rate that pods are ordered for, without the backlog: the forecast with the factor that covers its errors, but
    /// not above the past peak unless the level itself is.
    pub(crate) fn plan(&self, level: f64, forecast: f64, factor: f64) -> f64 {
        (forecast * factor).min((COVER_MIN * level).max(self.peak))
    }

    /// Factor over the plan that a scale-down must still carry: four standard deviations of the level's own count, so that
    /// arrivals of a constant rate never take a pod that their noise brings back.
    ///
    /// control.md §7 has 1.05 for all: too little at 50/s, where half a minute counts 2.6 %, and dear at 4000/s (0.3 %).
    pub(crate) fn margin(&self, tick_s: f64) -> f64 {
        let level = self.mean(TICKS);
        let counted_s = real(TICKS as u64) * tick_s;
        let deviation = (self.dispersion() / (level * counted_s).max(1.0)).sqrt();
        1.0 + (MARGIN_DEVIATIONS * deviation).clamp(MARGIN.0, MARGIN.1)
    }

    /// The past peak, images/s.
    pub(crate) const fn peak(&self) -> f64 {
        self.peak
    }
}

/// Images/s to add so that `images` waiting are served within [`BACKLOG_S`].
pub(crate) const fn backlog_rate(images: f64) -> f64 {
    images / BACKLOG_S
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steady(rate: f64) -> Arrivals {
        let mut arrivals = Arrivals::default();
        for _ in 0..TICKS {
            arrivals.tick(rate, 1, 5.0);
        }
        arrivals
    }

    #[test]
    fn a_step_is_believed_at_once_and_noise_is_not() {
        let mut arrivals = steady(20.0);
        arrivals.tick(22.0, 1, 5.0);
        assert!((arrivals.level(5.0) - 20.333).abs() < 0.01, "one sigma is noise");
        arrivals.tick(60.0, 1, 5.0);
        assert!((arrivals.level(5.0) - 60.0).abs() < 1e-9);
    }

    #[test]
    fn the_cover_ends_at_the_past_peak() {
        let arrivals = steady(20.0);
        assert!((arrivals.plan(20.0, 20.0, 1.15) - 21.0).abs() < 1e-9, "never seen more than 20/s: the least cover");
        let mut arrivals = steady(60.0);
        arrivals.tick(20.0, 1, 5.0);
        assert!((arrivals.plan(20.0, 20.0, 1.15) - 23.0).abs() < 1e-9);
    }

    #[test]
    fn rates_from_before_a_gap_are_no_level() {
        let mut arrivals = steady(60.0);
        arrivals.tick(20.0, 7, 5.0);
        assert!((arrivals.level(5.0) - 20.0).abs() < 1e-9);
        let mut arrivals = steady(60.0);
        arrivals.tick(20.0, 6, 5.0);
        assert!((arrivals.level(5.0) - 20.0).abs() < 1e-9);
        assert_eq!(arrivals.ticks, 12, "six ticks of the same rate");
    }

    #[test]
    fn the_margin_of_a_scale_down_is_the_counts_noise() {
        let margin = |rate: f64| steady(rate).margin(5.0);
        assert!((margin(100.0) - (1.0 + 4.0 / 3000_f64.sqrt())).abs() < 1e-9);
        assert!((margin(1.0) - 1.15).abs() < 1e-9 && (margin(10_000.0) - 1.02).abs() < 1e-9);
    }

    #[test]
    fn a_peak_is_half_forgotten_after_half_a_day() {
        let mut arrivals = steady(60.0);
        arrivals.tick(0.0, 1, 5.0);
        let before = arrivals.peak();
        for _ in 0..8640 {
            arrivals.tick(0.0, 1, 5.0);
        }
        assert!((arrivals.peak() / before - 0.5).abs() < 1e-3, "{} of {before}", arrivals.peak());
    }

    #[test]
    fn dispersion_is_one_for_regular_and_rises_for_bursty_arrivals() {
        let mut arrivals = Arrivals::default();
        for _ in 0..100 {
            arrivals.add_bins([PerSecond { n: 5, sum: 50, sum_sq: 500 }].into_iter(), 1.0);
        }
        assert!(arrivals.dispersion() <= 1.0);
        for _ in 0..100 {
            // 50 images in one of five seconds: variance 500, mean 10.
            arrivals.add_bins([PerSecond { n: 5, sum: 50, sum_sq: 2500 }].into_iter(), 1.0);
        }
        assert!(arrivals.dispersion() >= DISPERSION_MAX);
    }

    /// Bursty arrivals (pairs, so an index of 2) on fifty pods: how far the figure wanders about its mean.
    #[test]
    fn dispersion_of_many_pods_is_surer_than_of_one() {
        let wanders = |pods: u32| {
            let (mut arrivals, mut seed) = (Arrivals::default(), 7_u64);
            let mut uniform = || {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                real(seed >> 11) / real(1 << 53)
            };
            let mut count = || 2 * (0..40).filter(|_| uniform() < 0.05).count() as u64;
            let mut figures = Vec::new();
            for look in 0..400 {
                let bins = (0..pods).map(|_| {
                    let counts = [(); 5].map(|()| count());
                    let sum_sq = counts.iter().map(|count| count * count).sum();
                    PerSecond { n: 5, sum: counts.iter().sum(), sum_sq }
                });
                arrivals.add_bins(bins.collect::<Vec<_>>().into_iter(), f64::from(pods));
                if look >= 50 {
                    figures.push(arrivals.dispersion());
                }
            }
            let mean = figures.iter().sum::<f64>() / 350.0;
            let deviation = (figures.iter().map(|one| (one - mean) * (one - mean)).sum::<f64>() / 350.0).sqrt();
            (mean, deviation)
        };
        let ((one, noise), (many, less)) = (wanders(1), wanders(50));
        assert!((one - 1.9).abs() < 0.15 && (many - 1.9).abs() < 0.05, "2·0.95: {one}, {many}");
        assert!(noise > 0.1 && less < noise / 4.0, "a seventh of it: {noise}, {less}");
    }
}
