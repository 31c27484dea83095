//! The result cache: what it answers now, and what other sizes would answer.
//!
//! The servers feed eight value-less caches with a hash-sampled share of the references. SHARDS-adj corrects for a
//! sample that caught too few or too many of the popular keys: h(M) = (hits + E - refs)/E, where E is the number of
//! references that the sampling rate should have caught (Waldspurger et al., FAST 2015; control.md §3).

use serde::{Deserialize, Serialize};

use crate::observation::{CacheCounts, Ghosts};
use crate::state::HitPoint;
use crate::units::{Bytes, Count, Ratio, real};

/// What one tick leaves of the weight of earlier references: a time constant of 10 ticks (50 s).
const DECAY: f64 = 0.9;
/// References from which the curve counts as known: ±5 points at two standard deviations.
const REFERENCES_MIN: f64 = 100.0;
/// Standard deviations from which a tick's hit ratio is news, not chance: one tick in thirty thousand.
const NEWS: f64 = 4.0;
/// Cache sizes that a server simulates.
const SIZES_MAX: usize = 8;

/// Decayed counts of the ghosts and of the cache itself.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Hits {
    refs: f64,
    expected: f64,
    sizes: Vec<(Bytes, f64)>,
    answered: f64,
    lookups: f64,
    /// Counts of the ticks since the last one, and those of that one, to see at once when pictures stop repeating.
    tick_answered: f64,
    tick_lookups: f64,
    #[serde(default)]
    last: (f64, f64),
    prior: Vec<HitPoint>,
}

impl Hits {
    /// A curve that starts from what an earlier leader learned.
    pub(crate) fn seeded(curve: &[HitPoint]) -> Self {
        Self { prior: curve.iter().copied().take(SIZES_MAX).collect(), ..Self::default() }
    }

    /// Adds one pod's sample.
    pub(crate) fn add(&mut self, ghosts: &Ghosts, cache: CacheCounts) {
        self.refs += real(ghosts.refs);
        self.expected += ghosts.expected.get();
        for size in &ghosts.sizes {
            let at = self.sizes.partition_point(|(bytes, _)| *bytes < size.bytes);
            let room = self.sizes.len() < SIZES_MAX;
            match self.sizes.get_mut(at) {
                Some((bytes, hits)) if *bytes == size.bytes => *hits += real(size.hits),
                _ if room => self.sizes.insert(at, (size.bytes, real(size.hits))),
                _ => {}
            }
        }
        self.tick_answered += real(cache.hits);
        self.tick_lookups += real(cache.hits) + real(cache.misses);
    }

    /// Ends a tick.
    pub(crate) fn tick(&mut self) {
        self.answered = self.answered * DECAY + self.tick_answered;
        self.lookups = self.lookups * DECAY + self.tick_lookups;
        self.last = (self.tick_answered, self.tick_lookups);
        (self.tick_answered, self.tick_lookups) = (0.0, 0.0);
        self.refs *= DECAY;
        self.expected *= DECAY;
        for (_, hits) in &mut self.sizes {
            *hits *= DECAY;
        }
    }

    /// Hit ratio that may be relied on: the last minute's, or the last tick's where that is lower by more than chance explains,
    /// because arrivals that stop repeating reach the engine at once. The lower of the two at each tick would be mostly
    /// chance, and would order pods.
    ///
    /// Source: the score interval of a binomial share (Wilson, 1927), which holds of a few look-ups, too.
    pub(crate) fn measured(&self) -> f64 {
        let smooth = self.answered / self.lookups.max(1.0);
        let (answered, lookups) = self.last;
        let missed = lookups - answered;
        let spread = (answered * missed / lookups.max(1.0) + NEWS * NEWS / 4.0).sqrt();
        let highest = (answered + NEWS * NEWS / 2.0 + NEWS * spread) / (lookups + NEWS * NEWS);
        let ratio = if smooth > highest { answered / lookups.max(1.0) } else { smooth };
        ratio.clamp(0.0, 1.0)
    }

    /// Hit ratio by cache size, rising in both; empty while too little was seen.
    pub(crate) fn curve(&self) -> Vec<(Bytes, f64)> {
        if self.expected < REFERENCES_MIN * DECAY {
            return self.prior.iter().map(|point| (point.bytes, point.ratio.get().clamp(0.0, 1.0))).collect();
        }
        let mut best = 0.0_f64;
        let ratio = |hits: f64| ((hits + self.expected - self.refs) / self.expected).clamp(0.0, 1.0);
        self.sizes
            .iter()
            .map(|&(bytes, hits)| {
                best = best.max(if hits > 0.0 { ratio(hits) } else { 0.0 });
                (bytes, best)
            })
            .collect()
    }

    /// What the next leader should know.
    pub(crate) fn learned(&self) -> Vec<HitPoint> {
        let point = |(bytes, ratio)| Some(HitPoint { bytes, ratio: Ratio::try_from(ratio).ok()? });
        self.curve().into_iter().filter_map(point).collect()
    }

    /// References behind the curve, as evidence.
    pub(crate) fn references(&self) -> Count {
        Count::try_from(self.expected).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observation::GhostSize;

    fn ghosts(refs: u64, expected: u32, hits: &[(u32, u64)]) -> Ghosts {
        let sizes = hits.iter().map(|(mebi, hits)| GhostSize { bytes: Bytes::mebi(*mebi), hits: *hits }).collect();
        Ghosts { refs, expected: Count::whole(expected), sizes }
    }

    #[test]
    fn a_sample_that_missed_popular_keys_is_corrected() {
        let mut hits = Hits::default();
        // 1 000 expected, 800 caught: the 200 others were references to popular keys, which hit.
        hits.add(&ghosts(800, 1000, &[(1, 200), (4, 300)]), CacheCounts::default());
        let ratios: Vec<f64> = hits.curve().into_iter().map(|(_, ratio)| ratio).collect();
        assert!((ratios[0] - 0.4).abs() < 1e-9 && (ratios[1] - 0.5).abs() < 1e-9, "{ratios:?}");
    }

    #[test]
    fn pictures_that_stop_repeating_are_seen_within_a_tick() {
        let mut hits = Hits::default();
        for _ in 0..10 {
            hits.add(&Ghosts::default(), CacheCounts { hits: 90, misses: 10, evictions: 0 });
            hits.tick();
        }
        assert!((hits.measured() - 0.9).abs() < 1e-9);
        hits.add(&Ghosts::default(), CacheCounts { hits: 0, misses: 100, evictions: 0 });
        hits.tick();
        assert!(hits.measured() <= 0.0);
    }

    #[test]
    fn chance_in_a_tick_does_not_move_the_hit_ratio() {
        let mut hits = Hits::default();
        let mut tick = |answered: u64, missed: u64| {
            hits.add(&Ghosts::default(), CacheCounts { hits: answered, misses: missed, evictions: 0 });
            hits.tick();
            hits.measured()
        };
        for _ in 0..60 {
            tick(50, 50);
        }
        let unlucky = tick(40, 60);
        assert!((0.48..0.5).contains(&unlucky), "two standard deviations: {unlucky}");
        assert!((tick(25, 75) - 0.25).abs() < 1e-9, "five: fewer pictures repeat");
        assert!(tick(0, 1) > 0.4, "of one image nothing is known");
        assert!(tick(0, 0) > 0.4, "of none neither");
    }

    #[test]
    fn too_few_references_say_nothing() {
        let mut hits = Hits::default();
        hits.add(&ghosts(10, 10, &[(1, 9)]), CacheCounts::default());
        assert!(hits.curve().is_empty());
    }
}
