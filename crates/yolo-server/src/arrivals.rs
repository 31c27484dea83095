//! Offered images: a counter, and closed one-second bins whose sum of squares tells how bursty they are.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;

use crate::metrics::ImageMetrics;

#[derive(Debug)]
struct Bins {
    /// Whole seconds since `start` whose bins are closed.
    closed: u64,
    /// Images in the open bin.
    open: u64,
}

/// Counts arrivals. Shed images count, retries do not: they are no new demand.
#[derive(Debug)]
pub struct Arrivals {
    start: Instant,
    bins: Mutex<Bins>,
    all: Counter,
    /// Number of closed bins, sum and sum of squares of their images.
    totals: [Counter; 3],
}

impl Arrivals {
    /// The first bin opens at `start`.
    pub fn new(start: Instant, metrics: &ImageMetrics) -> Self {
        let bins = Mutex::new(Bins { closed: 0, open: 0 });
        Self { start, bins, all: metrics.arrivals.clone(), totals: metrics.arrival_bins.clone() }
    }

    /// Counts one image.
    pub fn count(&self, now: Instant) {
        self.all.inc();
        self.close_until(now, 1);
    }

    /// Closes the bins that have ended; called before the counters are read.
    pub fn close(&self, now: Instant) {
        self.close_until(now, 0);
    }

    fn close_until(&self, now: Instant, images: u64) {
        let mut bins = self.bins.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = now.saturating_duration_since(self.start).as_secs();
        if ended > bins.closed {
            // Only the first of them can hold images: any image closes what ended before it.
            let [count, sum, squares] = &self.totals;
            count.inc_by(ended - bins.closed);
            sum.inc_by(bins.open);
            squares.inc_by(bins.open * bins.open);
            *bins = Bins { closed: ended, open: 0 };
        }
        bins.open += images;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn empty_seconds_are_bins_too_and_the_open_bin_does_not_count() {
        let metrics = Metrics::new().images;
        let start = Instant::now();
        let arrivals = Arrivals::new(start, &metrics);
        for millis in [100, 900, 950, 1_000, 4_200] {
            arrivals.count(start + Duration::from_millis(millis));
        }
        arrivals.close(start + Duration::from_millis(4_999));
        let totals = metrics.arrival_bins.each_ref().map(Counter::get);
        assert_eq!(totals, [4, 4, 10], "bins of 3, 1, 0 and 0 images");
        assert_eq!(metrics.arrivals.get(), 5);
    }
}
