//! The service curve t(b): seconds of an engine call by batch size, learned from counters.
//!
//! Each size keeps its own decayed mean. The shape between and beyond them comes from the *prior*: what the server
//! timed at idle, or what an earlier leader learned. Load makes every size slower alike (shared cores, a slowed
//! device), so measured sizes scale the whole prior; otherwise an idle figure of batch 2 beside a loaded figure of
//! batch 1 would make batching look as if it paid.

use serde::{Deserialize, Serialize};

use crate::normal;
use crate::observation::{BatchCount, CurvePoint};
use crate::state::{LearnedCurve, SizeMean};
use crate::units::{BatchSize, Seconds, real};

/// What one tick leaves of the weight of earlier calls: a time constant of 20 ticks (100 s), longer than a start-up,
/// shorter than a person waits for the curve of a changed device.
const DECAY: f64 = 0.95;
/// Calls from which a size counts as measured.
const CALLS_MIN: f64 = 5.0;
/// Calls that the scaled prior weighs against a size's own mean.
const PRIOR_CALLS: f64 = 10.0;
/// Jitter of a call's time until it is measured (control.md §3: σ = 0.03 t).
const JITTER: f64 = 0.03;

/// Decayed sums of one size's calls.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Size {
    images: BatchSize,
    calls: f64,
    seconds: f64,
    seconds_squared: f64,
}

impl Size {
    fn mean(&self) -> f64 {
        self.seconds / self.calls.max(1e-12)
    }

    fn deviation(&self) -> f64 {
        let mean = self.mean();
        (self.seconds_squared / self.calls.max(1e-12) - mean * mean).max(0.0).sqrt()
    }
}

/// What is known of t(b).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Curve {
    measured: Vec<Size>,
    prior: Vec<CurvePoint>,
}

/// t(b) for all sizes that are known.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Times {
    /// Mean seconds of a call of 1, 2, … images, rising.
    pub(crate) mean: Vec<f64>,
    /// Standard deviation of a call's time over its mean.
    pub(crate) jitter: f64,
}

impl Times {
    /// Largest known size; 0 if nothing is known.
    pub(crate) fn largest(&self) -> u32 {
        u32::try_from(self.mean.len()).unwrap_or(u32::MAX)
    }

    /// Mean seconds of a call of `size` images, `None` if that size is not known.
    pub(crate) fn mean(&self, size: u32) -> Option<f64> {
        self.mean.get(usize::try_from(size).ok()?.checked_sub(1)?).copied()
    }

    /// The `q`-quantile of a call's time: t⁺(b) = t(b) + z·σ.
    pub(crate) fn upper(&self, size: u32, q: f64) -> Option<f64> {
        self.mean(size).map(|mean| mean * (1.0 + normal::quantile(q).max(0.0) * self.jitter))
    }
}

impl Curve {
    /// A curve that starts from what an earlier leader learned.
    pub(crate) fn seeded(learned: &LearnedCurve) -> Self {
        let line = [1, 2, 4, 8]
            .into_iter()
            .filter_map(|size| BatchSize::try_from(size).ok())
            .map(|size| (size, learned.alpha.get() + learned.beta.get() * f64::from(size.get())));
        let sizes: Vec<_> = learned.sizes.iter().map(|size| (size.size, size.mean.get())).collect();
        // A curve without sizes still has its line: t(1..8) is what most fleets run.
        let points: Vec<_> = if sizes.is_empty() { line.collect() } else { sizes };
        let mut curve = Self::default();
        curve.set_prior(points.into_iter().filter_map(|(size, mean)| point(size, mean)));
        curve
    }

    /// Takes the server's idle timing as the shape, if it timed anything.
    pub(crate) fn time_at_idle(&mut self, points: &[CurvePoint]) {
        if points.iter().any(|point| point.mean > Seconds::ZERO) {
            self.set_prior(points.iter().copied());
        }
    }

    fn set_prior(&mut self, points: impl Iterator<Item = CurvePoint>) {
        self.prior = points.filter(|point| point.mean > Seconds::ZERO).take(32).collect();
        self.prior.sort_by_key(|point| point.size);
        self.prior.dedup_by_key(|point| point.size);
    }

    /// Adds one size's calls.
    pub(crate) fn add(&mut self, batch: &BatchCount) {
        if batch.count == 0 {
            return;
        }
        let at = self.measured.partition_point(|size| size.images < batch.size);
        if self.measured.get(at).is_none_or(|size| size.images != batch.size) {
            self.measured.insert(at, Size { images: batch.size, calls: 0.0, seconds: 0.0, seconds_squared: 0.0 });
        }
        if let Some(size) = self.measured.get_mut(at) {
            size.calls += real(batch.count);
            size.seconds += batch.seconds.get();
            size.seconds_squared += batch.seconds_squared.get();
        }
    }

    /// Lets one tick pass in which calls were seen: without calls nothing is forgotten.
    pub(crate) fn tick(&mut self) {
        for size in &mut self.measured {
            size.calls *= DECAY;
            size.seconds *= DECAY;
            size.seconds_squared *= DECAY;
        }
        // Below a tenth of a call a size is history.
        self.measured.retain(|size| size.calls > 0.1);
    }

    fn trusted(&self) -> impl Iterator<Item = &Size> {
        self.measured.iter().filter(|size| size.calls >= CALLS_MIN)
    }

    /// The known sizes' times.
    pub(crate) fn times(&self) -> Times {
        let largest_measured = self.trusted().map(|size| size.images.get()).max().unwrap_or(0);
        let largest_prior = self.prior.last().map_or(0, |point| point.size.get());
        let shape = self.shape();
        let scale = self.scale(&shape);
        let mut mean: Vec<f64> = Vec::new();
        for size in 1..=largest_measured.max(largest_prior) {
            let prior = scale * interpolate(&shape, f64::from(size));
            let own = self.trusted().find(|own| own.images.get() == size);
            let time = own.map_or(prior, |own| (own.seconds + PRIOR_CALLS * prior) / (own.calls + PRIOR_CALLS));
            // More images never take less time: a smaller mean of a larger size is noise.
            mean.push(mean.last().map_or(time, |&last| time.max(last)));
        }
        Times { mean, jitter: self.jitter() }
    }

    /// Points (size, seconds) of the prior, or of the measured sizes where there is none.
    fn shape(&self) -> Vec<(f64, f64)> {
        let points = self.prior.iter().map(|point| (f64::from(point.size.get()), point.mean.get()));
        if self.prior.is_empty() {
            self.trusted().map(|size| (f64::from(size.images.get()), size.mean())).collect()
        } else {
            points.collect()
        }
    }

    /// Measured time over the shape's time, all calls together.
    fn scale(&self, shape: &[(f64, f64)]) -> f64 {
        let (measured, expected) = self.trusted().fold((0.0, 0.0), |(measured, expected), size| {
            (measured + size.seconds, expected + size.calls * interpolate(shape, f64::from(size.images.get())))
        });
        if expected > 0.0 { measured / expected } else { 1.0 }
    }

    fn jitter(&self) -> f64 {
        let (calls, weighted) = self.trusted().fold((0.0, 0.0), |(calls, weighted), size| {
            (calls + size.calls, weighted + size.calls * size.deviation() / size.mean().max(1e-12))
        });
        if calls > 0.0 { weighted / calls } else { JITTER }
    }

    /// What the next leader should know.
    pub(crate) fn learned(&self) -> Option<LearnedCurve> {
        let times = self.times();
        let points: Vec<_> = (1..=times.largest()).zip(&times.mean).map(|(n, &t)| (f64::from(n), t)).collect();
        let (alpha, beta) = line(&points)?;
        let known = self.prior.iter().map(|point| point.size).chain(self.trusted().map(|size| size.images));
        let mut sizes: Vec<BatchSize> = known.collect();
        sizes.sort_unstable();
        sizes.dedup();
        let mean_of = |size: BatchSize| Seconds::try_from(times.mean(size.get())?).ok();
        let own = |size: BatchSize| self.trusted().find(|own| own.images == size);
        Some(LearnedCurve {
            alpha: Seconds::try_from(alpha).ok()?,
            beta: Seconds::try_from(beta).ok()?,
            uncertainty: Seconds::try_from(times.jitter * times.mean(1)?).ok()?,
            sizes: sizes
                .into_iter()
                .filter_map(|size| {
                    let deviation = own(size).map_or(0.0, Size::deviation);
                    let weight = own(size).map_or(0.0, |own| own.calls);
                    Some(SizeMean { size, mean: mean_of(size)?, deviation: Seconds::try_from(deviation).ok()?, weight })
                })
                .collect(),
        })
    }
}

fn point(size: BatchSize, mean: f64) -> Option<CurvePoint> {
    let mean = Seconds::try_from(mean).ok()?;
    Some(CurvePoint { size, mean, p95: mean })
}

/// Linear between points, constant below the first (a smaller batch is not known to be faster), and with the last
/// slope beyond the last; with one point only, in proportion upwards.
fn interpolate(points: &[(f64, f64)], x: f64) -> f64 {
    let mut before: Option<(f64, f64)> = None;
    let mut slope = 0.0;
    for &(px, py) in points {
        let (from_x, from_y) = before.unwrap_or((0.0, 0.0));
        slope = (py - from_y) / (px - from_x).max(1e-12);
        if px >= x {
            return if before.is_some() { from_y + slope * (x - from_x) } else { py };
        }
        before = Some((px, py));
    }
    before.map_or(0.0, |(last_x, last_y)| last_y + slope.max(0.0) * (x - last_x))
}

/// Least squares through (x, y): intercept and slope, neither negative.
fn line(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let n = real(u64::try_from(points.len()).ok()?);
    if n < 1.0 {
        return None;
    }
    let (sum_x, sum_y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    let (mean_x, mean_y) = (sum_x / n, sum_y / n);
    let (xy, xx) = points
        .iter()
        .fold((0.0, 0.0), |(xy, xx), (x, y)| (xy + (x - mean_x) * (y - mean_y), xx + (x - mean_x) * (x - mean_x)));
    let beta = if xx > 0.0 { (xy / xx).clamp(0.0, mean_y / mean_x.max(1e-12)) } else { mean_y / mean_x.max(1e-12) };
    Some(((mean_y - beta * mean_x).max(0.0), beta))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::SecondsSquared;

    fn calls(size: u32, count: u64, each_s: f64) -> BatchCount {
        let total = real(count) * each_s;
        BatchCount {
            size: BatchSize::try_from(size).unwrap(),
            count,
            seconds: Seconds::try_from(total).unwrap(),
            seconds_squared: SecondsSquared::try_from(total * each_s).unwrap(),
        }
    }

    fn idle(points: &[(u32, f64)]) -> Vec<CurvePoint> {
        points.iter().filter_map(|(size, mean)| point(BatchSize::try_from(*size).unwrap(), *mean)).collect()
    }

    #[test]
    fn nothing_seen_is_nothing_known() {
        assert_eq!(Curve::default().times().largest(), 0);
        assert_eq!(Curve::default().learned(), None);
    }

    #[test]
    fn load_scales_the_whole_idle_curve() {
        let mut curve = Curve::default();
        curve.time_at_idle(&idle(&[(1, 0.016), (2, 0.032), (4, 0.064)]));
        curve.add(&calls(1, 1000, 0.024));
        let times = curve.times();
        assert!((times.mean(1).unwrap() - 0.024).abs() < 1e-4);
        assert!((times.mean(4).unwrap() - 0.096).abs() < 1e-3, "idle batches must not look cheap: {times:?}");
    }

    #[test]
    fn a_line_is_learned_from_two_sizes() {
        let mut curve = Curve::default();
        curve.add(&calls(1, 100, 0.032));
        curve.add(&calls(4, 100, 0.038));
        let learned = curve.learned().unwrap();
        assert!((learned.alpha.get() - 0.030).abs() < 1e-4 && (learned.beta.get() - 0.002).abs() < 1e-4, "{learned:?}");
        let again = Curve::seeded(&learned).times();
        assert!((again.mean(4).unwrap() - 0.038).abs() < 1e-6);
    }

    #[test]
    fn times_never_fall_with_size_and_old_calls_fade() {
        let mut curve = Curve::default();
        curve.add(&calls(2, 50, 0.030));
        curve.add(&calls(3, 50, 0.020));
        assert!(curve.times().mean.is_sorted());
        for _ in 0..200 {
            curve.tick();
        }
        assert_eq!(curve.times().largest(), 0);
    }
}
