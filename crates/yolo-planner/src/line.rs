//! The line t(b) = α + β·b, learned from counters by recursive least squares (control.md §3).
//!
//! Each size of a scrape is a point (x, y) on the line; control.md takes a scrape's means, which lie on it, too, but say
//! nothing of the slope while the load is constant.
//! Everything scales with the model's own times: the constants below are those of a model of 14 ms at one image.

use serde::{Deserialize, Serialize};

/// What is believed before anything is seen, seconds, and how surely (variances): both a curve without intercept and a
/// flat one, which CPUs and GPUs have, lie within a deviation. (With 1e-5 for the slope, as control.md §3 has it, the
/// former is three away, and every measured batch of 2 on a CPU was taken for an outlier.)
const THETA: [f64; 2] = [0.010, 0.004];
const VARIANCE: [f64; 2] = [1e-4, 1e-4];
/// Noise of one batch's time over it.
const NOISE: f64 = 0.03;
/// Batches beyond which a scrape's mean gets no surer: neighbours and clocks move it by 1 % however many ran.
const BATCHES_MAX: f64 = 9.0;
/// What is left of old knowledge of the shape after each scrape, in the direction that the scrape speaks of.
const FORGET: f64 = 0.995;
/// What the level moves between scrapes, over the noise of one: about the share of a scrape's error that it follows. Ten
/// times what the shape follows, so that busy neighbours make sizes that do not run now slower with those that do.
const LEVEL: f64 = 0.05;
/// Sum of the variances, over the model's scale squared, from which nothing is forgotten.
const VARIANCE_MAX: f64 = 1e-3;
/// Squared distance in deviations beyond which a scrape is an outlier: one in a hundred of normal ones.
const GATE: f64 = 6.6;
/// Share of a scrape in the mean of squared errors that tells how far neighbours move the scrapes.
const SCATTER_GAIN: f64 = 0.05;
/// Outliers running that are no outliers but another model or device.
const SKIPS_MAX: u8 = 5;
/// Uncertainty of both parameters after the whole line moved: load and neighbours slow every size about alike.
const MOVED: f64 = 0.1;
/// Scrapes within which a second move means that the line's shape changed, too.
const MOVES_APART: u32 = 10;
/// Least time that an image adds.
const BETA_MIN: f64 = 1e-6;

/// The line with its uncertainty.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Line {
    alpha: f64,
    beta: f64,
    /// Covariance: of α, of both, of β.
    covariance: [f64; 3],
    /// Mean squared error of a scrape over its time.
    #[serde(default)]
    scatter: f64,
    /// Outliers running.
    skips: u8,
    /// Scrapes taken, saturating; 0: nothing is known.
    taken: u32,
    /// Scrapes since the line moved as a whole.
    since_move: u32,
    /// Batch size of the last scrape.
    last_size: f64,
    /// Timed at idle only: the first scrape under load says how much slower everything is.
    idle: bool,
}

impl Line {
    /// A line through points of (size, seconds), as far as they tell it.
    pub(crate) fn through(points: &[(f64, f64)]) -> Self {
        let mut line = Self::default();
        for (size, seconds) in points {
            line.take(*size, *seconds, 1.0, NOISE);
        }
        Self { idle: true, skips: 0, ..line }
    }

    /// Whether anything was seen.
    pub(crate) const fn known(&self) -> bool {
        self.taken > 0
    }

    /// Whether scrapes under load were seen.
    pub(crate) const fn loaded(&self) -> bool {
        self.taken > 0 && !self.idle
    }

    /// How many scrapes running lie so far off that the line itself may be old.
    pub(crate) const fn skips(&self) -> u8 {
        self.skips
    }

    /// Mean squared error of a scrape over its time.
    pub(crate) const fn scatter(&self) -> f64 {
        self.scatter
    }

    /// Batch size of the last scrape.
    pub(crate) const fn last_size(&self) -> f64 {
        self.last_size
    }

    /// Intercept and slope, seconds.
    pub(crate) const fn parameters(&self) -> (f64, f64) {
        (self.alpha, self.beta)
    }

    /// Seconds of a batch of `size` images.
    pub(crate) fn time(&self, size: f64) -> f64 {
        self.alpha + self.beta * size
    }

    /// Variance of that figure.
    pub(crate) fn variance(&self, size: f64) -> f64 {
        let [first, both, second] = self.covariance;
        (first + size * (2.0 * both + size * second)).max(0.0)
    }

    /// The whole line `factor` times as slow.
    pub(crate) fn scaled(self, factor: f64) -> Self {
        let square = factor * factor;
        let covariance = self.covariance.map(|value| value * square);
        Self { alpha: self.alpha * factor, beta: self.beta * factor, covariance, ..self }
    }

    /// Takes one scrape: mean size and mean seconds of `batches` batches, whose times vary by `jitter` of their mean.
    pub(crate) fn take(&mut self, size: f64, seconds: f64, batches: f64, jitter: f64) {
        let usable = |value: f64| (1e-9..1e9).contains(&value);
        if !(usable(size) && usable(seconds) && usable(batches)) {
            return;
        }
        self.last_size = size;
        if self.taken == 0 {
            self.start(size, seconds);
        } else if self.idle {
            self.move_by(seconds / self.time(size).max(1e-9));
            self.idle = false;
        }
        self.since_move = self.since_move.saturating_add(1);
        let spread = jitter.clamp(NOISE, 1.0);
        let scatter = (spread * spread / batches.min(BATCHES_MAX)).max(self.scatter.min(1.0));
        let noise = scatter * seconds * seconds;
        let error = seconds - self.time(size);
        let certainty = self.variance(size) + noise;
        // An outlier counts as far as the gate: a change of device must stay one.
        let squared = (error * error).min(GATE * certainty) / (seconds * seconds);
        self.scatter += SCATTER_GAIN * (squared.min(1.0) - self.scatter);
        if error * error > GATE * certainty {
            self.skips += 1;
            if self.skips >= SKIPS_MAX {
                self.move_to(size, seconds);
            }
            return;
        }
        self.skips = 0;
        self.taken = self.taken.saturating_add(1);
        self.correct(size, error, certainty);
        self.drift(LEVEL * LEVEL * scatter);
    }

    /// Lets all sizes' times move alike by a relative variance.
    fn drift(&mut self, variance: f64) {
        if self.covariance[0] + self.covariance[2] < VARIANCE_MAX * self.scale() * self.scale() {
            self.covariance[0] += variance * self.alpha * self.alpha;
            self.covariance[1] += variance * self.alpha * self.beta;
            self.covariance[2] += variance * self.beta * self.beta;
        }
    }

    /// One step of recursive least squares, then forgetting in the direction of the scrape only: what was learned of
    /// other sizes stays while they do not run.
    fn correct(&mut self, size: f64, error: f64, certainty: f64) {
        let [first, both, second] = self.covariance;
        let (to_alpha, to_beta) = (first + size * both, both + size * second);
        self.alpha = (self.alpha + to_alpha / certainty * error).max(0.0);
        self.beta = (self.beta + to_beta / certainty * error).max(BETA_MIN);
        let left = [
            (first - to_alpha * to_alpha / certainty).max(0.0),
            both - to_alpha * to_beta / certainty,
            (second - to_beta * to_beta / certainty).max(0.0),
        ];
        self.covariance = left;
        let scale = self.scale();
        let variance = self.variance(size);
        if variance <= 0.0 || left[0] + left[2] >= VARIANCE_MAX * scale * scale {
            return;
        }
        let more = (1.0 / FORGET - 1.0) / variance;
        let (to_alpha, to_beta) = (left[0] + size * left[1], left[1] + size * left[2]);
        self.covariance = [
            left[0] + more * to_alpha * to_alpha,
            left[1] + more * to_alpha * to_beta,
            left[2] + more * to_beta * to_beta,
        ];
    }

    /// The model's one-image time over that of [`THETA`].
    fn scale(&self) -> f64 {
        self.time(1.0) / (THETA[0] + THETA[1])
    }

    /// The first scrape sets the scale.
    fn start(&mut self, size: f64, seconds: f64) {
        let factor = seconds / (THETA[0] + THETA[1] * size);
        self.alpha = THETA[0] * factor;
        self.beta = THETA[1] * factor;
        self.covariance = [VARIANCE[0] * factor * factor, 0.0, VARIANCE[1] * factor * factor];
        self.taken = 1;
        self.since_move = MOVES_APART;
    }

    /// After a run of outliers: the whole line moves; if that was not enough, its shape is open again.
    fn move_to(&mut self, size: f64, seconds: f64) {
        let again = self.since_move < MOVES_APART;
        self.move_by(seconds / self.time(size).max(1e-9));
        (self.skips, self.since_move) = (0, 0);
        if again {
            let scale = self.scale();
            self.covariance = [VARIANCE[0] * scale * scale, 0.0, VARIANCE[1] * scale * scale];
        }
    }

    /// All sizes take `factor` times as long, and each parameter is a little less sure.
    fn move_by(&mut self, factor: f64) {
        *self = self.scaled(factor);
        self.covariance[0] += (MOVED * self.alpha) * (MOVED * self.alpha);
        self.covariance[2] += (MOVED * self.beta) * (MOVED * self.beta);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds scrapes of a fleet whose mean batch size swings by ±10 % around `size`.
    fn swing(line: &mut Line, scrapes: u32, size: f64, time: impl Fn(f64) -> f64) {
        for scrape in 0..scrapes {
            let x = size * (1.0 + 0.1 * libm::sin(f64::from(scrape)));
            line.take(x, time(x), 100.0, 0.0);
        }
    }

    fn gpu(size: f64) -> f64 {
        0.006 + 0.0022 * size
    }

    /// control.md §3 and law 14: exact counters, ±10 % load: t(16) within 5 % after a minute, and surely known.
    #[test]
    fn exact_counters_give_the_line_back() {
        let mut line = Line::default();
        swing(&mut line, 12, 6.0, gpu);
        assert!((line.time(16.0) / gpu(16.0) - 1.0).abs() < 0.05, "{line:?}");
        swing(&mut line, 12, 6.0, gpu);
        assert!((line.time(16.0) / gpu(16.0) - 1.0).abs() < 0.01, "{line:?}");
        assert!(line.variance(6.0).sqrt() < 0.01 * gpu(6.0));
    }

    #[test]
    fn constant_load_says_nothing_of_other_sizes() {
        let mut line = Line::default();
        for _ in 0..200 {
            line.take(4.0, gpu(4.0), 100.0, 0.0);
        }
        assert!((line.time(4.0) / gpu(4.0) - 1.0).abs() < 1e-3);
        assert!(line.variance(4.0).sqrt() < 0.01 * gpu(4.0), "sure of what it sees");
        assert!(line.variance(16.0).sqrt() > 0.1 * gpu(16.0), "and not of what it does not: {line:?}");
    }

    #[test]
    fn an_outlier_is_skipped_and_a_lasting_change_is_believed() {
        let mut line = Line::default();
        swing(&mut line, 60, 6.0, gpu);
        let before = line.time(8.0);
        line.take(6.0, 10.0 * gpu(6.0), 100.0, 0.0);
        assert!((line.time(8.0) - before).abs() < 1e-12, "one odd scrape");
        swing(&mut line, 4, 6.0, gpu);
        swing(&mut line, 8, 6.0, |size| 2.0 * gpu(size));
        assert!((line.time(6.0) / (2.0 * gpu(6.0)) - 1.0).abs() < 0.02, "{line:?}");
        assert!((line.time(16.0) / (2.0 * gpu(16.0)) - 1.0).abs() < 0.05, "slower as a whole: {line:?}");
        swing(&mut line, 24, 6.0, |size| 0.050 + 0.001 * size);
        assert!((line.time(16.0) / 0.066 - 1.0).abs() < 0.05, "another shape: {line:?}");
    }

    /// Law 10: a thousand times slower is a thousand times the line.
    #[test]
    fn time_scales_out() {
        let (mut quick, mut slow) = (Line::default(), Line::default());
        swing(&mut quick, 30, 3.0, gpu);
        swing(&mut slow, 30, 3.0, |size| 1000.0 * gpu(size));
        assert!((slow.time(16.0) / quick.time(16.0) / 1000.0 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn any_number_leaves_a_usable_line() {
        let mut line = Line::default();
        for value in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e308, 1e-308, 5e-324, 1.0] {
            for size in [1.0, 32.0, value] {
                line.take(size, value, 3.0, value);
                assert!(line.time(8.0).is_finite() && line.variance(8.0) >= 0.0, "{value}: {line:?}");
            }
        }
    }
}
