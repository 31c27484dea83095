//! Latency histograms: fixed edges that travel with the counts, and quantiles by interpolation.

use serde::{Deserialize, Serialize};

use crate::units::{Seconds, real};

/// Most edges that a histogram may have: the contract's latency histograms have 37.
pub const EDGES_MAX: usize = 64;

/// Buckets that are no histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HistogramError {
    /// More than [`EDGES_MAX`] edges.
    #[error("{0} bucket edges, at most {EDGES_MAX} are allowed")]
    TooManyEdges(usize),
    /// An edge that is not above the one before it.
    #[error("bucket edges must rise")]
    EdgesNotRising,
    /// Cumulative counts must be one more than the edges (the last is +Inf).
    #[error("{counts} cumulative counts for {edges} edges, expected one more than edges")]
    CountsDoNotFit {
        /// Number of counts.
        counts: usize,
        /// Number of edges.
        edges: usize,
    },
    /// A cumulative count below the one before it.
    #[error("cumulative counts must not fall")]
    CountsFall,
}

/// Increases of a histogram's buckets over a sample or a window.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Histogram {
    edges: Vec<Seconds>,
    /// By bucket, not cumulative; one more than `edges`, or empty.
    counts: Vec<u64>,
}

/// Leaves out the edges of each histogram that has the same ones as the last that kept its own: most of a state's
/// histograms are of one kind, and edges are more than counts.
pub(crate) fn share_edges(histograms: Vec<&mut Histogram>) {
    let mut kept = Vec::new();
    for histogram in histograms.into_iter().filter(|histogram| !histogram.edges.is_empty()) {
        if histogram.edges == kept {
            histogram.edges.clear();
        } else {
            kept.clone_from(&histogram.edges);
        }
    }
}

/// Undoes [`share_edges`] in the same order; counts that fit no edges are dropped.
pub(crate) fn restore_edges(histograms: Vec<&mut Histogram>) {
    let mut kept: Vec<Seconds> = Vec::new();
    for histogram in histograms {
        if !histogram.edges.is_empty() {
            kept.clone_from(&histogram.edges);
        } else if histogram.counts.len() == kept.len() + 1 {
            histogram.edges.clone_from(&kept);
        } else if histogram.counts.len() > 1 {
            *histogram = Histogram::default();
        }
    }
}

/// A quantile as far as the buckets tell it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Quantile {
    /// Interpolated inside a bucket.
    At(Seconds),
    /// In the +Inf bucket: at least the last edge.
    AtLeast(Seconds),
}

impl Quantile {
    /// The figure itself; for [`Quantile::AtLeast`] the last edge.
    pub const fn seconds(self) -> Seconds {
        match self {
            Self::At(value) | Self::AtLeast(value) => value,
        }
    }

    /// Whether the quantile is surely within `threshold`: what is only known to be at least the last edge is not.
    pub fn within(self, threshold: Seconds) -> bool {
        matches!(self, Self::At(value) if value <= threshold)
    }
}

impl Histogram {
    /// A histogram from upper edges and cumulative counts as Prometheus exposes them.
    ///
    /// `edges`: rising, without +Inf. `cumulative`: one count an edge and one for +Inf.
    ///
    /// # Errors
    /// [`HistogramError`] if the two do not make a histogram.
    pub fn from_cumulative(edges: Vec<Seconds>, cumulative: &[u64]) -> Result<Self, HistogramError> {
        if edges.len() > EDGES_MAX {
            return Err(HistogramError::TooManyEdges(edges.len()));
        }
        if edges.iter().zip(edges.iter().skip(1)).any(|(low, high)| low >= high) {
            return Err(HistogramError::EdgesNotRising);
        }
        if cumulative.len() != edges.len() + 1 {
            return Err(HistogramError::CountsDoNotFit { counts: cumulative.len(), edges: edges.len() });
        }
        let mut counts = Vec::with_capacity(cumulative.len());
        let mut below = 0;
        for &total in cumulative {
            counts.push(total.checked_sub(below).ok_or(HistogramError::CountsFall)?);
            below = total;
        }
        Ok(Self { edges, counts })
    }

    /// Number of observations.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Adds another histogram's counts.
    ///
    /// Where the edges differ (two server versions during a rollout) a bucket goes to the first one of `self` that
    /// reaches as far: the error is towards slower, never towards a target that looks met.
    pub fn add(&mut self, other: &Self) {
        if self.counts.is_empty() {
            self.clone_from(other);
            return;
        }
        if self.edges == other.edges {
            for (own, count) in self.counts.iter_mut().zip(&other.counts) {
                *own = own.saturating_add(*count);
            }
            return;
        }
        let uppers = other.edges.iter().copied().map(Some).chain([None]);
        for (upper, &count) in uppers.zip(&other.counts) {
            let bucket = upper.map_or(self.edges.len(), |upper| self.edges.partition_point(|edge| *edge < upper));
            if let Some(own) = self.counts.get_mut(bucket) {
                *own = own.saturating_add(count);
            }
        }
    }

    /// Observations above `limit_s` seconds, linear inside the limit's bucket.
    pub(crate) fn above(&self, limit_s: f64) -> f64 {
        let mut low = 0.0;
        let mut above = 0.0;
        let uppers = self.edges.iter().map(|edge| edge.get()).chain([f64::INFINITY]);
        for (upper, &count) in uppers.zip(&self.counts) {
            // Of the +Inf bucket nothing more is known than that it lies above its lower edge.
            let share = if upper.is_infinite() {
                f64::from(u8::from(limit_s < f64::INFINITY))
            } else {
                ((upper - limit_s) / (upper - low)).clamp(0.0, 1.0)
            };
            above += share * real(count);
            low = upper;
        }
        above
    }

    /// The mean, each observation in the middle of its bucket; `None` without observations.
    pub fn mean(&self) -> Option<f64> {
        let lows = [0.0].into_iter().chain(self.edges.iter().map(|edge| edge.get()));
        let last = self.edges.last().map_or(0.0, |edge| edge.get());
        let highs = self.edges.iter().map(|edge| edge.get()).chain([last]);
        let middles = lows.zip(highs).map(|(low, high)| f64::midpoint(low, high));
        let sum: f64 = middles.zip(&self.counts).map(|(middle, &count)| middle * real(count)).sum();
        let total = real(self.count());
        (total > 0.0).then(|| sum / total)
    }

    /// The `q`-quantile, 0..=1, linear inside its bucket; `None` without observations.
    pub fn quantile(&self, q: f64) -> Option<Quantile> {
        let total = real(self.count());
        if total <= 0.0 {
            return None;
        }
        let rank = q.clamp(0.0, 1.0) * total;
        let mut below = 0.0;
        let mut low = 0.0;
        for (edge, &count) in self.edges.iter().zip(&self.counts) {
            let count = real(count);
            if count > 0.0 && below + count >= rank {
                let inside = low + (edge.get() - low) * ((rank - below) / count).clamp(0.0, 1.0);
                return Seconds::try_from(inside).ok().map(Quantile::At);
            }
            below += count;
            low = edge.get();
        }
        Some(Quantile::AtLeast(self.edges.last().copied().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(edges_ms: &[u32], cumulative: &[u64]) -> Histogram {
        Histogram::from_cumulative(edges_ms.iter().map(|ms| Seconds::millis(*ms)).collect(), cumulative).unwrap()
    }

    fn at(quantile: Option<Quantile>) -> f64 {
        let Some(Quantile::At(value)) = quantile else { panic!("{quantile:?}") };
        value.get()
    }

    #[test]
    fn quantiles_are_linear_inside_a_bucket() {
        let uniform = histogram(&[100, 200, 300], &[10, 20, 30, 30]);
        assert!((at(uniform.quantile(0.5)) - 0.15).abs() < 1e-12);
        assert!((at(uniform.quantile(1.0)) - 0.3).abs() < 1e-12);
    }

    #[test]
    fn a_mean_is_that_of_the_buckets_middles() {
        let mean = histogram(&[100, 200], &[10, 20, 20]).mean().unwrap();
        assert!((mean - 0.1).abs() < 1e-12, "{mean}");
        assert_eq!(Histogram::default().mean(), None);
    }

    #[test]
    fn beyond_the_last_edge_is_at_least_that_edge() {
        let slow = histogram(&[100, 200], &[1, 2, 100]);
        assert_eq!(slow.quantile(0.95), Some(Quantile::AtLeast(Seconds::millis(200))));
        assert!(!slow.quantile(0.95).unwrap().within(Seconds::whole(9)));
    }

    #[test]
    fn what_lies_above_a_limit_is_linear_inside_its_bucket() {
        let found = histogram(&[100, 200, 300], &[10, 20, 30, 35]);
        assert!((found.above(0.15) - 20.0).abs() < 1e-9, "half of the second bucket, the third, and the last");
        assert!((found.above(0.3) - 5.0).abs() < 1e-9);
        assert!((found.above(9.0) - 5.0).abs() < 1e-9, "beyond the last edge nothing is known");
        assert!(found.above(f64::INFINITY) <= 0.0 && Histogram::default().above(0.1) <= 0.0);
        assert!((found.mean().unwrap() - (0.5 + 1.5 + 2.5 + 1.5) / 35.0).abs() < 1e-9);
    }

    #[test]
    fn no_observation_has_no_quantile() {
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert_eq!(histogram(&[100], &[0, 0]).quantile(0.5), None);
    }

    #[test]
    fn other_edges_add_towards_slower() {
        let mut sum = histogram(&[100, 200], &[5, 5, 5]);
        sum.add(&histogram(&[150], &[5, 6]));
        assert_eq!(sum, histogram(&[100, 200], &[5, 10, 11]));
    }

    #[test]
    fn shared_edges_come_back() {
        let (two, one) = (histogram(&[100, 200], &[1, 2, 3]), histogram(&[150], &[5, 6]));
        let boundless = Histogram { edges: Vec::new(), counts: vec![7] };
        let before = [two.clone(), Histogram::default(), two.clone(), boundless, one, two.clone(), two];
        let mut shared = before.clone();
        share_edges(shared.iter_mut().collect());
        assert_eq!(shared.iter().filter(|histogram| !histogram.edges.is_empty()).count(), 3);
        restore_edges(shared.iter_mut().collect());
        assert_eq!(shared, before);
        let mut alone = Histogram { edges: Vec::new(), counts: vec![1, 2] };
        restore_edges(vec![&mut alone]);
        assert_eq!(alone, Histogram::default(), "nobody says where its buckets end");
    }

    #[test]
    fn broken_buckets_are_refused() {
        let edges = vec![Seconds::millis(2), Seconds::millis(1)];
        assert_eq!(Histogram::from_cumulative(edges, &[0, 0, 0]), Err(HistogramError::EdgesNotRising));
        assert_eq!(Histogram::from_cumulative(vec![Seconds::ZERO], &[2, 1]), Err(HistogramError::CountsFall));
    }
}
