//! The time of a batch by its size, learned from every batch and, at idle, from batches run for the purpose.
#![expect(clippy::indexing_slicing, reason = "every size is at most BATCH_MAX, checked by `slot`")]

use std::time::Duration;

use crate::limits::{BATCH_MAX, BATCH_SIZES};

/// Weight of the newest batch in the moving mean and variance.
const NEWEST_WEIGHT: f64 = 0.1;
/// Batches of a size after which its time is known.
const RUNS_MIN: u32 = 3;
/// Batches of a size after which its moving mean has settled.
const SETTLED_RUNS: u32 = 10;
/// A larger batch must save this share of an image's time to be worth its latency.
const GAIN_MIN: f64 = 0.03;
/// Timed sizes in a row without that gain after which timing stops.
const MISSES_MAX: u32 = 2;
/// Failures, without a batch as large that runs, after which a size that once ran is not tried any more.
const FAILURES_MAX: u32 = 3;
/// Standard deviations from the mean to the 95th percentile of a normal distribution.
const P95_DEVIATIONS: f64 = 1.645;

#[derive(Debug, Clone, Copy)]
struct Estimate {
    mean_s: f64,
    variance_s2: f64,
    /// Shortest of the first ten runs: what the size takes when nothing disturbs it.
    shortest_s: f64,
    runs: u32,
}

impl Estimate {
    /// The mean once there were enough runs, before that the shortest run: one disturbed run at idle would else rule a size
    /// out for ever, while a size that looks too good is soon corrected by use.
    fn in_use_s(&self) -> f64 {
        if self.runs < SETTLED_RUNS { self.shortest_s } else { self.mean_s }
    }
}

/// Learned times of batches, by size.
#[derive(Debug, Clone)]
pub struct Curve {
    estimates: [Option<Estimate>; BATCH_MAX + 1],
    /// The engine's bound.
    runnable_max: usize,
    /// As much of it as has not failed.
    largest: usize,
    /// Whether only [`BATCH_SIZES`] are run; others are padded.
    fixed: bool,
    /// The smallest size that failed since a batch as large ran, and the number of failures since then.
    failures: Option<(usize, u32)>,
}

impl Curve {
    /// Nothing is known; `largest` is the engine's bound, `fixed` whether it only runs [`BATCH_SIZES`].
    pub fn new(largest: usize, fixed: bool) -> Self {
        let largest = largest.clamp(1, BATCH_MAX);
        Self { estimates: [None; BATCH_MAX + 1], runnable_max: largest, largest, fixed, failures: None }
    }

    /// The engine failed to run a batch of `size`, not for one of its images: no such one, and no larger one, is taken
    /// any more; one that ran before only after three failures, of whatever sizes, while none as large ran. Returns
    /// whether it is given up by this.
    pub fn failed(&mut self, size: usize) -> bool {
        if size > self.largest {
            return false; // another session's, begun before it was given up
        }
        let (smallest, count) = self.failures.map_or((size, 1), |(smallest, count)| (smallest.min(size), count + 1));
        self.failures = Some((smallest, count));
        let given_up = !self.is_known(size) || count >= FAILURES_MAX;
        if given_up {
            self.largest = self.largest.min(size.saturating_sub(1)).max(1);
            self.failures = None;
        }
        given_up
    }

    /// The engine can run no batch of `size`, and no larger one, whatever passes.
    pub fn bound(&mut self, size: usize) {
        self.runnable_max = self.runnable_max.min(size.saturating_sub(1)).max(1);
        self.largest = self.largest.min(self.runnable_max);
    }

    /// Makes the sizes that were given up unknown, so that they are tried again.
    pub fn retry(&mut self) {
        self.estimates.iter_mut().skip(self.largest + 1).for_each(|estimate| *estimate = None);
        self.largest = self.runnable_max;
    }

    fn slot(size: usize) -> usize {
        size.min(BATCH_MAX)
    }

    /// Takes the engine time of a batch.
    pub fn record(&mut self, size: usize, time: Duration) {
        self.failures = self.failures.filter(|(smallest, _)| size < *smallest);
        let time_s = time.as_secs_f64();
        let slot = &mut self.estimates[Self::slot(size)];
        *slot = Some(match *slot {
            None => Estimate { mean_s: time_s, variance_s2: 0.0, shortest_s: time_s, runs: 1 },
            Some(Estimate { mean_s, variance_s2, shortest_s, runs }) => {
                // The first runs count equally, so that one odd first run is soon forgotten.
                let weight = NEWEST_WEIGHT.max(1.0 / f64::from(runs + 1));
                let difference = time_s - mean_s;
                Estimate {
                    mean_s: mean_s + weight * difference,
                    variance_s2: (1.0 - weight) * (variance_s2 + weight * difference * difference),
                    // Of as many runs for every size: the shortest of thousands is shorter by luck alone.
                    shortest_s: if runs < SETTLED_RUNS { shortest_s.min(time_s) } else { shortest_s },
                    runs: runs.saturating_add(1),
                }
            }
        });
    }

    fn known(&self, size: usize) -> Option<Estimate> {
        self.estimates[Self::slot(size)].filter(|estimate| estimate.runs >= RUNS_MIN)
    }

    /// Whether the size has run often enough.
    pub fn is_known(&self, size: usize) -> bool {
        self.known(size).is_some()
    }

    /// Mean time of a batch; of the nearest smaller known size, scaled by images, if this one is unknown.
    pub fn mean(&self, size: usize) -> Duration {
        self.scaled(size, |estimate| estimate.mean_s)
    }

    /// 95th percentile of the time of a batch, taking it as normally distributed; scaled as [`Self::mean`] is.
    pub fn p95(&self, size: usize) -> Duration {
        self.scaled(size, |estimate| estimate.mean_s + P95_DEVIATIONS * estimate.variance_s2.sqrt())
    }

    fn scaled(&self, size: usize, of: impl Fn(Estimate) -> f64) -> Duration {
        let nearest = (1..=Self::slot(size)).rev().find_map(|smaller| Some((smaller, self.estimates[smaller]?)));
        let seconds = nearest.map_or(0.0, |(smaller, estimate)| of(estimate) * ratio(size, smaller));
        Duration::try_from_secs_f64(seconds).unwrap_or_default()
    }

    /// The smallest size up to `batch_max` whose time an image is within 3 % of the best known; 1 if nothing is known.
    ///
    /// A larger size has to pay by the undisturbed runs as well as in use: sizes run at different times, so busy cores make
    /// whichever runs then look bad, and those that last ran at idle look good. A size that never ran counts as unknown, not
    /// as good.
    pub fn effective(&self, batch_max: usize) -> usize {
        let smallest_good = |seconds: fn(&Estimate) -> f64| {
            let an_image = |size: usize| Some((size, seconds(&self.known(size)?) / ratio(size, 1)));
            let sizes = || (1..=batch_max.min(self.largest)).filter_map(an_image);
            let best_s = sizes().map(|(_, seconds)| seconds).fold(f64::INFINITY, f64::min);
            sizes().find(|(_, seconds)| *seconds <= (1.0 + GAIN_MIN) * best_s).map_or(1, |(size, _)| size)
        };
        smallest_good(|estimate| estimate.shortest_s).min(smallest_good(Estimate::in_use_s))
    }

    /// How many of `size` images to take: all, but where sizes are fixed the next smaller size, unless the next larger
    /// one, padded, takes less time than two batches.
    pub fn runnable(&self, size: usize) -> usize {
        let fits = |candidate: &usize| *candidate <= self.largest;
        let next = |size: usize| BATCH_SIZES.into_iter().filter(fits).find(|larger| *larger >= size);
        let smaller = BATCH_SIZES.into_iter().filter(fits).rfind(|smaller| *smaller <= size).unwrap_or(1);
        if !self.fixed || smaller == size {
            return size;
        }
        let (Some(padded), Some(rest)) = (next(size), next(size.saturating_sub(smaller))) else { return smaller };
        let pays = self.is_known(padded) && self.mean(padded) < self.mean(smaller) + self.mean(rest);
        if pays { size } else { smaller }
    }

    /// The next size to time, or `None` when larger ones cannot pay: twice in a row no gain, or the last one took
    /// longer than `threshold`. Sizes are compared by their shortest runs, because a busy neighbour only ever adds.
    pub fn next_untimed(&self, batch_max: usize, threshold: Duration) -> Option<usize> {
        let mut best_s = f64::INFINITY;
        let mut misses = 0;
        for size in BATCH_SIZES.into_iter().filter(|size| *size <= batch_max.min(self.largest)) {
            let Some(estimate) = self.known(size) else { return Some(size) };
            let image_s = estimate.shortest_s / ratio(size, 1);
            misses = if image_s > (1.0 - GAIN_MIN) * best_s { misses + 1 } else { 0 };
            best_s = best_s.min(image_s);
            if misses >= MISSES_MAX || estimate.shortest_s > threshold.as_secs_f64() {
                return None;
            }
        }
        None
    }
}

fn ratio(size: usize, to: usize) -> f64 {
    let float = |size: usize| f64::from(u32::try_from(size).unwrap_or(u32::MAX));
    float(size) / float(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLD: Duration = Duration::from_millis(100);

    /// Times sizes as the idle worker does; returns the order.
    fn time_all(curve: &mut Curve, batch_max: usize, millis: impl Fn(usize) -> f64) -> Vec<usize> {
        let mut order = Vec::new();
        while let Some(size) = curve.next_untimed(batch_max, THRESHOLD) {
            order.push(size);
            for _ in 0..RUNS_MIN {
                curve.record(size, Duration::from_secs_f64(millis(size) / 1_000.0));
            }
        }
        order
    }

    #[test]
    fn on_a_linear_curve_batching_does_not_pay_and_timing_stops_early() {
        let mut curve = Curve::new(32, false);
        let order = time_all(&mut curve, 32, |size| 16.0 * ratio(size, 1));
        assert_eq!(order, [1, 2, 4]);
        assert_eq!(curve.effective(32), 1);
    }

    #[test]
    fn on_a_gpu_like_curve_the_largest_asked_size_pays() {
        let mut curve = Curve::new(32, false);
        let order = time_all(&mut curve, 16, |size| 30.0 + 2.0 * ratio(size, 1));
        assert_eq!(order, [1, 2, 4, 8, 12, 16]);
        assert_eq!((curve.effective(16), curve.effective(4), curve.effective(1)), (16, 4, 1));
        assert_eq!(curve.effective(32), 16, "sizes that never ran are not good");
    }

    #[test]
    fn timing_stops_at_the_first_size_past_the_threshold() {
        let order = time_all(&mut Curve::new(32, false), 32, |size| 60.0 + 15.0 * ratio(size, 1));
        assert_eq!(order, [1, 2, 4]);
    }

    #[test]
    fn a_disturbed_run_does_not_make_larger_batches_look_good() {
        let mut curve = Curve::new(32, false);
        curve.record(1, Duration::from_millis(40));
        let order = time_all(&mut curve, 32, |size| 16.0 * ratio(size, 1));
        assert_eq!(order, [1, 2, 4]);
        assert_eq!(curve.effective(32), 1);
    }

    #[test]
    fn a_size_that_looked_too_good_is_corrected_by_use() {
        let mut curve = Curve::new(2, false);
        time_all(&mut curve, 2, |size| if size == 2 { 10.0 } else { 9.0 });
        assert_eq!(curve.effective(2), 2);
        for _ in 0..50 {
            curve.record(2, Duration::from_millis(20));
        }
        assert_eq!(curve.effective(2), 1);
    }

    #[test]
    fn busy_cores_do_not_make_sizes_that_ran_at_idle_look_good() {
        let mut curve = Curve::new(32, false);
        time_all(&mut curve, 32, |size| 16.0 * ratio(size, 1));
        for _ in 0..50 {
            curve.record(1, Duration::from_millis(30));
            assert_eq!(curve.effective(32), 1);
        }
    }

    #[test]
    fn a_size_in_use_does_not_win_by_the_luck_of_many_runs() {
        let mut curve = Curve::new(2, false);
        time_all(&mut curve, 2, |size| if size == 2 { 30.0 } else { 16.0 });
        for run in 0..1_000 {
            curve.record(1, Duration::from_secs_f64(if run % 100 == 99 { 0.0145 } else { 0.016 }));
        }
        assert_eq!(curve.effective(2), 2);
    }

    #[test]
    fn the_engine_bounds_every_size() {
        let mut curve = Curve::new(1, false);
        assert_eq!(time_all(&mut curve, 32, |_| 10.0), [1]);
        assert_eq!(curve.effective(32), 1);
    }

    #[test]
    fn a_size_that_cannot_be_run_bounds_every_later_batch() {
        let mut curve = Curve::new(16, true);
        curve.failed(8);
        assert_eq!(time_all(&mut curve, 16, |size| 30.0 + 2.0 * ratio(size, 1)), [1, 2, 4]);
        assert_eq!((curve.effective(16), curve.runnable(7), curve.runnable(16)), (4, 4, 4));
        for _ in 0..4 {
            curve.failed(4);
            curve.failed(4);
            assert_eq!(curve.effective(16), 4, "failures of a size that runs are accidents");
            curve.record(4, Duration::from_millis(38));
        }
        let mut other = curve.clone();
        for _ in 0..3 {
            curve.failed(4);
        }
        assert_eq!((curve.effective(16), curve.runnable(7)), (2, 2), "it does not run any more");
        for size in [4, 2, 4] {
            other.failed(size);
            other.record(1, Duration::from_millis(32));
        }
        assert_eq!(other.effective(16), 2, "whatever size fails, and however well smaller ones run");
        for _ in 0..3 {
            other.failed(2);
        }
        assert_eq!(other.effective(16), 1);
        other.retry();
        assert_eq!((other.effective(16), other.next_untimed(16, THRESHOLD)), (1, Some(2)), "tried anew");
        assert!(other.failed(2), "as at first, one failure is enough");
        assert_eq!(other.next_untimed(16, THRESHOLD), None);
        other.bound(2);
        other.retry();
        assert_eq!(other.next_untimed(16, THRESHOLD), None, "what cannot be run is not tried");
    }

    #[test]
    fn where_sizes_are_fixed_a_batch_is_cut_or_padded_to_one_by_what_is_faster() {
        for (alpha_ms, taken) in [(30.0, 3), (0.5, 2)] {
            let mut curve = Curve::new(16, true);
            assert_eq!(curve.runnable(3), 2, "a size of unknown time is not padded to");
            time_all(&mut curve, 16, |size| alpha_ms + 2.0 * ratio(size, 1));
            assert_eq!(curve.runnable(3), taken);
            assert_eq!([1, 2, 4, 8, 12, 16].map(|size| curve.runnable(size)), [1, 2, 4, 8, 12, 16]);
            assert_eq!(curve.runnable(17), 16);
        }
        assert_eq!(Curve::new(16, false).runnable(3), 3);
    }

    #[test]
    fn an_unknown_size_is_estimated_from_the_nearest_smaller_one() {
        let mut curve = Curve::new(32, false);
        assert_eq!(curve.mean(4), Duration::ZERO);
        curve.record(2, Duration::from_millis(10));
        assert_eq!(curve.mean(4), Duration::from_millis(20));
        curve.record(2, Duration::from_millis(14));
        assert_eq!(curve.mean(2), Duration::from_millis(12));
        assert!(curve.p95(2) > Duration::from_millis(14));
    }
}
