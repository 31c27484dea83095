//! The factor that covers a forecast's errors, from the errors that it made: conformal prediction.
//!
//! Without an assumption on the errors' distribution, the (1 - a)-quantile of past ratios (what came over what was
//! forecast) covers the next one with probability 1 - a, if errors stay as they were. Where they do not, adaptive
//! conformal inference moves a against the misses (Gibbs & Candès, 2021, arXiv 2106.00170; control.md §5).

use serde::{Deserialize, Serialize};

use super::series::Series;
use crate::units::real;

/// Ratios that count: the last hour at ticks of 5 s.
const RATIOS_MAX: usize = 720;
/// Ratios below which their quantile says nothing. control.md §5 begins at 60, but one step leaves a horizon of ratios, up
/// to 14 at the usual start-up times: among 60 it alone would be the 95th percentile, and a new service would keep its
/// pods for an hour after its first burst.
const RATIOS_MIN: usize = 300;
/// The factor until then.
const UNKNOWN: f64 = 1.15;
/// A bound is never below its forecast, and a forecast that was wrong by more is none.
const FACTOR: (f64, f64) = (1.0, 8.0);
/// Level at the start, and its range: a quarter may be exceeded where nothing goes wrong, a thousandth where much does.
const LEVEL_START: f64 = 0.05;
const LEVEL: (f64, f64) = (0.001, 0.25);
/// Step of the level: a miss outweighs a budget of 1 % for a hundred ticks.
const LEVEL_STEP: f64 = 0.004;

/// The forecast's past errors and the level that they are cut at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bound {
    ratios: Series,
    level: f64,
}

impl Default for Bound {
    fn default() -> Self {
        Self { ratios: Series::default(), level: LEVEL_START }
    }
}

impl Bound {
    /// Adds what came over what had been forecast.
    pub(crate) fn add(&mut self, ratio: f64) {
        self.ratios.push(ratio, RATIOS_MAX);
    }

    /// Moves the level: `missed` tells whether pods were short in the last `ticks`, `budget` how often they may be.
    pub(crate) fn adapt(&mut self, missed: bool, budget: f64, ticks: f64) {
        let target = budget.clamp(0.0, 1.0);
        self.level = (self.level + LEVEL_STEP * ticks * (target - f64::from(u8::from(missed)))).clamp(LEVEL.0, LEVEL.1);
    }

    /// Targets are missed so often that only half as many errors may go uncovered (control.md §7, SLO burn).
    pub(crate) fn tighten(&mut self) {
        self.level = (0.5 * self.level).max(LEVEL.0);
    }

    /// Share of the forecasts that may be exceeded, a.
    pub(crate) const fn level(&self) -> f64 {
        self.level
    }

    /// Whether enough errors are known.
    const fn known(&self) -> bool {
        self.ratios.len() >= RATIOS_MIN
    }

    /// The factor q: the ratio of rank ⌊(n-1)(1-a)⌋.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 ≤ rank < n ≤ 720")]
    pub(crate) fn factor(&self) -> f64 {
        if !self.known() {
            return UNKNOWN;
        }
        let sorted = self.ratios.sorted();
        let last = real(sorted.len().saturating_sub(1) as u64);
        let rank = (last * (1.0 - self.level)).floor() as usize;
        sorted.get(rank).map_or(UNKNOWN, |ratio| ratio.clamp(FACTOR.0, FACTOR.1))
    }
}

/// The least rate at which pods would have met the target over the rates that came, images/s: no stretch of `window` of
/// them loses more than the share `let_go` of its images.
///
/// What exceeds a rate c is refused: Σ(rᵢ - c)⁺ ≤ ε·Σrᵢ, so that c = max over k of (the k greatest less ε·Σr)/k. Where
/// nothing may be lost that is the greatest rate; where a twentieth may, noise and a slow rise need no pod.
pub(crate) fn needed(rates: &[f64], window: usize, let_go: f64) -> f64 {
    if let_go <= 0.0 {
        return rates.iter().copied().fold(0.0, f64::max);
    }
    let stretch = |rates: &[f64]| {
        let mut falling = rates.to_vec();
        falling.sort_by(|a, b| b.total_cmp(a));
        let lost = let_go * falling.iter().sum::<f64>();
        let sums = falling.iter().scan(-lost, |sum, rate| {
            *sum += rate;
            Some(*sum)
        });
        (1_u32..).zip(sums).map(|(count, sum)| sum / f64::from(count)).fold(0.0, f64::max)
    };
    rates.windows(window.clamp(1, rates.len().max(1))).map(stretch).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(ratios: impl IntoIterator<Item = f64>) -> Bound {
        let mut bound = Bound::default();
        ratios.into_iter().for_each(|ratio| bound.add(ratio));
        bound
    }

    #[test]
    fn the_factor_is_the_quantile_of_past_errors() {
        let percent = |n: u32| 1.0 + f64::from(n) / 100.0;
        let known = bound((0..=100).flat_map(|n| [percent(n); 3]));
        assert!((known.factor() - 1.95).abs() < 0.01, "rank 286 of 303: {}", known.factor());
        assert!((bound(std::iter::repeat_n(1.5, 299)).factor() - UNKNOWN).abs() < 1e-9, "299 are too few");
        assert!(bound(std::iter::repeat_n(1.5, 300)).factor() > 1.49, "300 are enough");
    }

    #[test]
    fn what_the_target_lets_go_needs_no_pods() {
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found} for {expected}");
        let rising = [100.0, 102.0, 104.0, 106.0];
        near(needed(&rising, 12, 0.0), 106.0);
        near(needed(&rising, 12, 0.05), 97.85);
        // 5 % of 700 are 35 of the burst's 400.
        near(needed(&[100.0, 100.0, 400.0, 100.0], 12, 0.05), 365.0);
        near(needed(&[100.0, 100.0, 400.0, 100.0], 2, 0.05), 375.0);
        near(needed(&[], 12, 0.05), 0.0);
    }

    #[test]
    fn the_factor_stays_in_its_range() {
        assert!((bound(std::iter::repeat_n(0.3, 400)).factor() - 1.0).abs() < 1e-9);
        assert!((bound(std::iter::repeat_n(90.0, 400)).factor() - 8.0).abs() < 1e-9);
    }

    #[test]
    fn one_step_is_not_the_usual_error() {
        let mut bound = bound(std::iter::repeat_n(1.05, 300));
        std::iter::repeat_n(3.0, 14).for_each(|ratio| bound.add(ratio));
        assert!(bound.factor() < 1.06, "{}", bound.factor());
    }

    #[test]
    fn errors_older_than_an_hour_are_forgotten() {
        let mut bound = bound(std::iter::repeat_n(4.0, 720));
        std::iter::repeat_n(1.1, 720).for_each(|ratio| bound.add(ratio));
        assert!((bound.factor() - 1.1).abs() < 0.01);
    }

    #[test]
    fn the_level_falls_with_misses_and_rises_slowly_without() {
        let mut bound = Bound::default();
        bound.adapt(true, 0.01, 1.0);
        assert!((bound.level() - (0.05 - 0.003_96)).abs() < 1e-9);
        for _ in 0..1000 {
            bound.adapt(false, 0.01, 1.0);
        }
        assert!((bound.level() - (0.05 - 0.003_96 + 0.04)).abs() < 1e-9);
        for _ in 0..100_000 {
            bound.adapt(false, 0.01, 1.0);
        }
        assert!((bound.level() - 0.25).abs() < 1e-9);
        for _ in 0..1000 {
            bound.adapt(true, 0.01, 1.0);
        }
        assert!((bound.level() - 0.001).abs() < 1e-9);
    }

    /// Coverage: ratios drawn from one distribution exceed the factor in a share a of the ticks.
    #[test]
    fn a_twentieth_of_the_errors_exceeds_the_factor() {
        let mut seed = 7_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            real(seed >> 11) / real(1 << 53)
        };
        let mut bound = bound((0..720).map(|_| 1.0 + random()));
        let mut exceeded = 0;
        for _ in 0..4000 {
            let next = 1.0 + random();
            exceeded += u32::from(next > bound.factor());
            bound.add(next);
        }
        let share = f64::from(exceeded) / 4000.0;
        assert!((0.035..0.065).contains(&share), "{share}");
    }
}
