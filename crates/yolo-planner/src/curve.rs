//! The service curve t(b): seconds of an engine call by batch size, learned from counters (control.md §3).
//!
//! Three layers. The *line* α + β·b follows every size of every scrape ([`crate::line`]). The *shape* is what the server timed at idle
//! (or what an earlier leader learned), relative to a line of its own: load makes every size slower alike (shared
//! cores, a slowed device), so an idle figure of batch 2 is never set beside a loaded figure of batch 1, or batching
//! would look as if it paid. And a size that ran often enough and lies off both has its *own* mean, kept relative to the
//! line of its time for the same reason: a figure of calmer minutes, or of a device as it was, follows the line.

use serde::{Deserialize, Serialize};

use crate::line::Line;
use crate::normal;
use crate::observation::{BatchCount, CurvePoint};
use crate::state::{LearnedCurve, SizeMean};
use crate::units::{BatchSize, Seconds, real};

/// What one tick leaves of the weight of earlier calls: a time constant of 20 ticks (100 s), longer than a start-up,
/// shorter than a person waits for the curve of a changed device.
const DECAY: f64 = 0.95;
/// Calls from which a size counts as measured.
const CALLS_MIN: f64 = 5.0;
/// Deviations off the line from which a size's own mean is believed instead (padding, engine profiles).
const OWN_DEVIATIONS: f64 = 2.0;
/// Jitter of a call's time until it is measured (control.md §3: σ = 0.03 t).
const JITTER: f64 = 0.03;
/// Relative deviation up to which a size that never ran counts as known, and pods may go (control.md §8).
const KNOWN: f64 = 0.10;
/// What a new model's line starts from: the old one's, this much slower (control.md §8).
const SUCCESSOR: f64 = 1.15;

/// Decayed sums of one size's calls, each call's time over the line's at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Size {
    images: BatchSize,
    calls: f64,
    ratios: f64,
    ratios_squared: f64,
}

impl Size {
    fn ratio(&self) -> f64 {
        self.ratios / self.calls.max(1e-12)
    }

    /// Standard deviation of a call's ratio.
    fn deviation(&self) -> f64 {
        let ratio = self.ratio();
        (self.ratios_squared / self.calls.max(1e-12) - ratio * ratio).max(0.0).sqrt()
    }
}

/// What is known of t(b).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Curve {
    line: Line,
    measured: Vec<Size>,
    /// What was timed at idle or learned before, rising in size.
    prior: Vec<CurvePoint>,
    /// Class of the pods that the curve is of.
    class: Option<u32>,
    /// Mean seconds of a call of 1, 2, … images on pods of the class before, while some of them serve.
    #[serde(default)]
    former: Vec<f64>,
}

/// t(b) for all sizes that are known.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Times {
    /// Mean seconds of a call of 1, 2, … images, rising.
    pub(crate) mean: Vec<f64>,
    /// Standard deviation of that mean as it is known, seconds.
    pub(crate) deviation: Vec<f64>,
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

    /// Standard deviation of that mean over it: how well the size is known.
    pub(crate) fn doubt(&self, size: u32) -> Option<f64> {
        let deviation = self.deviation.get(usize::try_from(size).ok()?.checked_sub(1)?)?;
        self.mean(size).map(|mean| deviation / mean.max(1e-12))
    }

    /// The `q`-quantile of a call's time, the curve's own uncertainty included: t⁺(b) = t(b) + z·√(var t(b) + σ²).
    pub(crate) fn upper(&self, size: u32, q: f64) -> Option<f64> {
        let (mean, doubt) = self.mean(size).zip(self.doubt(size))?;
        Some(mean * (1.0 + normal::quantile(q).max(0.0) * (doubt * doubt + self.jitter * self.jitter).sqrt()))
    }

    /// t⁺(b) without jitter, for all sizes: in a queue jitter averages out, a wrong curve does not.
    pub(crate) fn careful(&self, q: f64) -> Vec<f64> {
        let z = normal::quantile(q).max(0.0);
        rising(self.mean.iter().zip(&self.deviation).map(|(mean, deviation)| mean + z * deviation))
    }
}

/// More images never take less time: a smaller figure of a larger size is noise.
fn rising(times: impl Iterator<Item = f64>) -> Vec<f64> {
    times
        .scan(0.0, |longest: &mut f64, time| {
            *longest = longest.max(time);
            Some(*longest)
        })
        .collect()
}

/// The prior: its points (size, seconds), and a line of its own through them if there are two.
struct Shape {
    points: Vec<(f64, f64)>,
    line: Option<(f64, f64)>,
}

impl Shape {
    /// How far the prior lies off its own line at `size`, as a factor; 1 without one, and beyond its sizes as at the
    /// last of them.
    fn bend(&self, size: f64) -> f64 {
        let Some((alpha, beta)) = self.line else { return 1.0 };
        let last = self.points.last().map_or(size, |point| point.0.min(size));
        let straight = alpha + beta * last;
        if straight > 0.0 { interpolate(&self.points, last) / straight } else { 1.0 }
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
        let points: Vec<_> = points.into_iter().filter_map(|(size, mean)| point(size, mean)).collect();
        let mut curve = Self::default();
        curve.take_idle(&points);
        curve
    }

    /// Takes the idle timing of a pod of `class` as the shape, if it timed anything, and as the line until calls say
    /// otherwise.
    pub(crate) fn time_at_idle(&mut self, class: u32, points: &[CurvePoint]) {
        if self.class.is_none_or(|known| known == class) {
            self.take_idle(points);
        }
    }

    fn take_idle(&mut self, points: &[CurvePoint]) {
        let mut points: Vec<_> = points.iter().filter(|point| point.mean > Seconds::ZERO).take(32).copied().collect();
        points.sort_by_key(|point| point.size);
        points.dedup_by_key(|point| point.size);
        let reach = |points: &[CurvePoint]| points.last().map_or(0, |point| point.size.get());
        // A pod that has not timed as much as another says nothing new.
        if points.is_empty() || reach(&points) < reach(&self.prior) {
            return;
        }
        let farther = reach(&points) > reach(&self.prior);
        self.prior = points;
        if farther {
            let old = self.line;
            self.line = Line::through(&self.shape().points);
            let size = old.last_size();
            self.measured.clear();
            if old.loaded() && self.line.time(size) > 0.0 {
                self.line = self.line.scaled(old.time(size) / self.line.time(size));
            }
        }
    }

    /// Takes a scrape of a pod of `class`, whose sessions ran `batches`.
    pub(crate) fn add(&mut self, class: u32, batches: &[BatchCount]) {
        if self.class.is_some_and(|known| known != class) {
            return;
        }
        self.class = Some(class);
        let (jitter, shape) = (self.jitter(), self.shape());
        let (skips, mut sizes) = (self.line.skips(), 0);
        let old = self.line;
        for batch in batches.iter().filter(|batch| batch.count > 0) {
            let (size, calls) = (f64::from(batch.size.get()), real(batch.count));
            // A kink that the prior or the size itself has is none of the line.
            let kink = self.time(batch.size.get(), old, (jitter, &shape)).0 / old.time(size);
            let kink = if old.known() { kink } else { 1.0 };
            self.line.take(size, batch.seconds.get() / calls / kink, calls, jitter);
            sizes += 1;
        }
        // While the line itself may be old, all lie off it.
        if u32::from(self.line.skips()) < u32::from(skips) + sizes.max(1) {
            for batch in batches {
                self.count(batch);
            }
        }
    }

    /// Starts anew for pods of another class, from the old line made slower: another image, model or device.
    pub(crate) fn succeed(&mut self, class: u32) {
        if self.class.is_some_and(|known| known != class) {
            let shape = self.times().mean;
            let points: Vec<_> = (1..).zip(&shape).map(|(size, time): (u32, _)| (f64::from(size), *time)).collect();
            *self = Self { line: Line::through(&points).scaled(SUCCESSOR), former: shape, ..Self::default() };
        }
        self.class = Some(class);
    }

    /// The pods of the class before are gone.
    pub(crate) fn bury(&mut self) {
        self.former.clear();
    }

    /// Adds one size's calls.
    fn count(&mut self, batch: &BatchCount) {
        let line_s = self.line.time(f64::from(batch.size.get()));
        if batch.count == 0 || line_s <= 0.0 {
            return;
        }
        let at = self.measured.partition_point(|size| size.images < batch.size);
        if self.measured.get(at).is_none_or(|size| size.images != batch.size) {
            self.measured.insert(at, Size { images: batch.size, calls: 0.0, ratios: 0.0, ratios_squared: 0.0 });
        }
        if let Some(size) = self.measured.get_mut(at) {
            size.calls += real(batch.count);
            size.ratios += batch.seconds.get() / line_s;
            size.ratios_squared += batch.seconds_squared.get() / (line_s * line_s);
        }
    }

    /// Lets one tick pass in which calls were seen: without calls nothing is forgotten.
    pub(crate) fn tick(&mut self) {
        for size in &mut self.measured {
            size.calls *= DECAY;
            size.ratios *= DECAY;
            size.ratios_squared *= DECAY;
        }
        // Below a tenth of a call a size is history.
        self.measured.retain(|size| size.calls > 0.1);
    }

    /// Whether batches up to `size` are known well enough to take pods away on it (control.md §8): not within 10 %, or by an
    /// earlier class of pods alone, they are not.
    pub(crate) fn sure(&self, size: u32) -> bool {
        let borrowed = self.prior.is_empty() && !self.line.loaded();
        !borrowed && self.times().doubt(size).is_some_and(|doubt| doubt <= KNOWN)
    }

    /// Whether any size up to `size` is known so well. A larger one, chosen but never run since, would else keep the pods that
    /// keep it from running.
    pub(crate) fn sure_of_any(&self, size: u32) -> bool {
        (1..=size).any(|size| self.sure(size))
    }

    fn trusted(&self) -> impl Iterator<Item = &Size> {
        self.measured.iter().filter(|size| size.calls >= CALLS_MIN)
    }

    /// What was measured of `size`, if that is enough.
    fn own(&self, size: u32) -> Option<&Size> {
        let at = self.measured.binary_search_by_key(&size, |own| own.images.get()).ok()?;
        self.measured.get(at).filter(|own| own.calls >= CALLS_MIN)
    }

    /// The known sizes' times.
    pub(crate) fn times(&self) -> Times {
        let jitter = self.jitter();
        if !self.line.known() {
            return Times { mean: Vec::new(), deviation: Vec::new(), jitter };
        }
        let known = self.trusted().map(|size| size.images).chain(self.prior.last().map(|point| point.size));
        let known = known.max().map_or(0, BatchSize::get);
        let (mut mean, mut deviation) = (Vec::new(), Vec::new());
        let shape = self.shape();
        for size in 1..=BatchSize::MAX.get() {
            let (time, doubt) = self.time(size, self.line, (jitter, &shape));
            if size > known && doubt > KNOWN * time {
                break;
            }
            mean.push(time);
            deviation.push(doubt);
        }
        Times { mean: rising(mean.into_iter()), deviation, jitter }
    }

    /// The times that capacity rests on: in a rollout each size's on the slower class of pods. Nobody knows which class
    /// serves when the load changes, and before the last of the old ones has gone a quicker model has saved nothing.
    pub(crate) fn slowest(&self) -> Times {
        let Times { mean, deviation, jitter } = self.times();
        let former = self.former.iter().copied().chain(std::iter::repeat(0.0));
        let mean = rising(mean.into_iter().zip(former).map(|(new, old)| new.max(old)));
        Times { mean, deviation, jitter }
    }

    /// Mean seconds of a call of `size` images along `line`, and how surely that is known (a standard deviation).
    fn time(&self, size: u32, line: Line, (jitter, shape): (f64, &Shape)) -> (f64, f64) {
        let images = f64::from(size);
        let straight = line.time(images);
        let bend = shape.bend(images);
        let (time, doubt) = (straight * bend, line.variance(images).sqrt() * bend);
        // While the line itself may be old, so is what is relative to it.
        let own = self.own(size).filter(|_| line.skips() == 0);
        let Some(own) = own else { return (time, doubt) };
        let mean = own.ratio() * straight;
        let own_doubt = jitter.max(JITTER) * mean / own.calls.sqrt();
        // What all sizes of a scrape have in common is none of this one's, however many calls it had.
        let common = line.scatter() * time * time;
        let off = (mean - time).abs() > OWN_DEVIATIONS * (doubt * doubt + own_doubt * own_doubt + common).sqrt();
        if off { (mean, own_doubt) } else { (time, doubt) }
    }

    fn shape(&self) -> Shape {
        let points: Vec<_> = self.prior.iter().map(|point| (f64::from(point.size.get()), point.mean.get())).collect();
        Shape { line: line(&points).filter(|_| points.len() > 1), points }
    }

    fn jitter(&self) -> f64 {
        let (calls, weighted) = self.trusted().fold((0.0, 0.0), |(calls, weighted), size| {
            (calls + size.calls, weighted + size.calls * size.deviation() / size.ratio().max(1e-12))
        });
        // A deviation from n calls is itself known to one part in √2n: that much more, or a bound covers too little.
        if calls > 0.0 { weighted / calls * (1.0 + 1.0 / (2.0 * calls).sqrt()) } else { JITTER }
    }

    /// What the next leader should know.
    pub(crate) fn learned(&self) -> Option<LearnedCurve> {
        let times = self.times();
        let first_s = times.mean(1)?;
        let (alpha, beta) = self.line.parameters();
        let known = self.prior.iter().map(|point| point.size).chain(self.trusted().map(|size| size.images));
        let mut sizes: Vec<BatchSize> = known.collect();
        sizes.sort_unstable();
        sizes.dedup();
        let mean_of = |size: BatchSize| Seconds::try_from(times.mean(size.get())?).ok();
        let own = |size: BatchSize| self.own(size.get());
        Some(LearnedCurve {
            alpha: Seconds::try_from(alpha).ok()?,
            beta: Seconds::try_from(beta).ok()?,
            uncertainty: Seconds::try_from(times.jitter * first_s).ok()?,
            sizes: sizes
                .into_iter()
                .filter_map(|size| {
                    let line_s = self.line.time(f64::from(size.get()));
                    let deviation = own(size).map_or(0.0, |own| own.deviation() * line_s);
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
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small counts")]
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
        curve.time_at_idle(0, &idle(&[(1, 0.016), (2, 0.032), (4, 0.064)]));
        curve.add(0, &[calls(1, 1000, 0.024)]);
        let times = curve.times();
        assert!((times.mean(1).unwrap() - 0.024).abs() < 1e-4);
        assert!((times.mean(4).unwrap() - 0.096).abs() < 1e-3, "idle batches must not look cheap: {times:?}");
    }

    #[test]
    fn a_line_is_learned_from_two_sizes() {
        let mut curve = Curve::default();
        curve.add(0, &[calls(1, 100, 0.032)]);
        curve.add(0, &[calls(4, 100, 0.038)]);
        let learned = curve.learned().unwrap();
        assert!((learned.alpha.get() - 0.030).abs() < 1e-4 && (learned.beta.get() - 0.002).abs() < 1e-4, "{learned:?}");
        let again = Curve::seeded(&learned).times();
        assert!((again.mean(4).unwrap() - 0.038).abs() < 2e-4, "{again:?}");
    }

    #[test]
    fn of_two_classes_the_slower_counts_until_the_old_one_is_gone() {
        let mut curve = Curve::default();
        let calls_of = |first_s: f64| [calls(1, 100, first_s), calls(4, 100, 2.0 * first_s)];
        curve.succeed(7);
        curve.add(7, &calls_of(0.020));
        assert_eq!(curve.slowest(), curve.times(), "one class alone");
        curve.succeed(8);
        for _ in 0..9 {
            curve.add(8, &calls_of(0.010));
        }
        let (own, counted) = (curve.times().mean, curve.slowest().mean);
        assert!((own[0] / 0.010 - 1.0).abs() < 0.05 && (counted[0] / 0.020 - 1.0).abs() < 0.01, "{own:?} {counted:?}");
        assert!(curve.sure(4), "its own times are known");
        curve.bury();
        assert_eq!(curve.slowest(), curve.times());
        curve.succeed(9);
        for _ in 0..9 {
            curve.add(9, &calls_of(0.030));
        }
        assert_eq!(curve.slowest(), curve.times(), "the new one is the slower one");
    }

    #[test]
    fn another_class_starts_from_the_old_curve_made_slower_and_old_pods_no_longer_count() {
        let mut curve = Curve::default();
        curve.succeed(7);
        curve.add(7, &[calls(1, 100, 0.020), calls(4, 100, 0.050)]);
        curve.add(7, &[calls(1, 100, 0.020), calls(2, 100, 0.030)]);
        let before = curve.times().mean(1).unwrap();
        curve.succeed(8);
        let after = curve.times().mean(1).unwrap();
        assert!((after / before - 1.15).abs() < 0.01, "{before} {after}");
        curve.add(7, &[calls(1, 100, 0.020)]);
        curve.time_at_idle(7, &idle(&[(1, 0.002), (32, 0.004)]));
        assert_eq!(curve.times().mean(1), Some(after));
        curve.add(8, &[calls(1, 100, 0.010)]);
        assert!((curve.times().mean(1).unwrap() / 0.010 - 1.0).abs() < 0.05, "its own first scrape sets the level");
    }

    #[test]
    fn a_size_that_pays_less_than_the_line_says_has_its_own_mean() {
        let mut curve = Curve::default();
        for _ in 0..20 {
            curve.add(0, &[calls(2, 100, 0.012), calls(3, 100, 0.024), calls(4, 100, 0.024), calls(8, 100, 0.048)]);
        }
        let times = curve.times();
        assert!((times.mean(3).unwrap() / 0.024 - 1.0).abs() < 0.01, "padded to 4: {times:?}");
    }

    /// G6: t⁺ at 95 % is not exceeded by more than one call in twenty, whatever the line, the sizes seen and their number.
    #[test]
    fn upper_bounds_cover_nineteen_of_twenty_calls() {
        let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
        let mut uniform = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (f64::from((seed >> 40) as u32) + 0.5) / f64::from(1_u32 << 24)
        };
        let (mut covered, mut all, mut least) = (0_u32, 0_u32, 1.0_f64);
        for _ in 0..60 {
            let (alpha, beta) = (0.002 + 0.030 * uniform(), 0.001 + 0.020 * uniform());
            let jitter = 0.02 + 0.06 * uniform();
            let largest = 2 + (uniform() * 6.0) as u32;
            let mut call = |size: u32| {
                let normal = (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
                (alpha + beta * f64::from(size)) * (1.0 + jitter * normal)
            };
            let mut curve = Curve::default();
            for _ in 0..12 {
                let batches: Vec<BatchCount> = (1..=largest)
                    .map(|size| {
                        let times: Vec<f64> = (0..20).map(|_| call(size)).collect();
                        let squared = times.iter().map(|time| time * time).sum::<f64>();
                        BatchCount {
                            size: BatchSize::try_from(size).unwrap(),
                            count: 20,
                            seconds: Seconds::try_from(times.iter().sum::<f64>()).unwrap(),
                            seconds_squared: SecondsSquared::try_from(squared).unwrap(),
                        }
                    })
                    .collect();
                curve.add(0, &batches);
                curve.tick();
            }
            let times = curve.times();
            // Sizes that never ran are covered as well, by their doubt.
            for size in [1, largest, times.largest().min(2 * largest)] {
                let bound = times.upper(size, 0.95).unwrap();
                let within = (0..400).filter(|_| call(size) <= bound).count() as u32;
                (covered, all) = (covered + within, all + 400);
                least = least.min(f64::from(within) / 400.0);
            }
        }
        let share = f64::from(covered) / f64::from(all);
        println!("t+ covers {:.2} % of calls, {:.1} % at worst", share * 1e2, least * 1e2);
        assert!(share >= 0.95, "{share}, at worst {least}");
    }

    #[test]
    fn what_is_not_sure_counts_as_slower() {
        let mut curve = Curve::default();
        curve.time_at_idle(0, &idle(&[(1, 0.010), (2, 0.014), (4, 0.022)]));
        let times = curve.times();
        let (mean, careful) = (times.mean(4).unwrap(), times.careful(0.95)[3]);
        assert!(careful > 1.01 * mean && careful < 1.3 * mean, "{mean} {careful}");
        assert!(times.upper(4, 0.95).unwrap() > careful, "jitter comes on top");
        assert!(times.careful(0.95).is_sorted());
    }

    #[test]
    fn times_never_fall_with_size_and_old_calls_fade() {
        let mut curve = Curve::default();
        curve.add(0, &[calls(2, 50, 0.030)]);
        curve.add(0, &[calls(3, 50, 0.020)]);
        assert!(curve.times().mean.is_sorted());
        for _ in 0..200 {
            curve.tick();
        }
        assert!(curve.measured.is_empty() && curve.times().largest() >= 3, "the line stays");
    }

    #[test]
    fn a_size_that_hardly_ever_ran_leaves_the_others_sure() {
        let varying = |size: u32, count: u64, each_s: f64| BatchCount {
            seconds_squared: SecondsSquared::try_from(1.25 * each_s * each_s * real(count)).unwrap(),
            ..calls(size, count, each_s)
        };
        let mut curve = Curve::default();
        for _ in 0..50 {
            curve.add(1, &[varying(1, 1000, 0.032)]);
        }
        curve.add(1, &[varying(16, 6, 0.062)]);
        assert!(curve.times().largest() >= 16 && !curve.sure(16), "{:?}", curve.times());
        assert!(curve.sure_of_any(16));
        assert!(!Curve::default().sure_of_any(16), "nothing is known");
    }

    #[test]
    fn a_curve_that_another_model_left_is_sure_of_nothing() {
        let batches = [calls(1, 100, 0.0082), calls(4, 100, 0.0148)];
        let mut curve = Curve::default();
        assert!(!curve.sure(1), "nothing is known");
        for _ in 0..20 {
            curve.add(1, &batches);
        }
        assert!(curve.sure(4));
        curve.succeed(2);
        assert!(curve.times().mean(4).is_some() && !curve.sure(4), "the last model's times stand in for its own");
        curve.add(2, &batches);
        assert!(curve.sure(4));
    }
}
