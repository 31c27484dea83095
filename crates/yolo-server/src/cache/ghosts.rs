//! What caches of other sizes would serve: eight caches without values, over a sample of the keys.
//!
//! Spatially hashed sampling (SHARDS, Waldspurger et al., FAST 2015): keys below a share `R` of the hash space go
//! through caches of `R * M` bytes each. The hit ratio of a cache of `M` bytes is estimated by whoever reads the
//! counters as `(hits + E - refs) / E`, where `E` is the expected number of sampled lookups: without the correction a
//! single popular key, in or out of the sample, shifts it by up to 55 points.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quick_cache::Weighter;
use quick_cache::unsync::Cache;

use super::{Key, entries_typical};
use crate::metrics::CacheMetrics;

/// Sizes of the caches that are pretended, in bytes: 64 KiB to 1 GiB, each four times the one before.
pub const GHOST_SIZES_BYTES: [u64; 8] = [64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20, 1 << 30];
/// Keys in the largest ghost past which the sampled share is halved.
const KEYS_MAX: usize = 8_192;
/// Smallest sampled share: below it the estimate's error grows past a point.
const SHARE_MIN: f64 = 0.05;

#[derive(Debug, Clone)]
struct Entry {
    bytes: u64,
    stored: Instant,
}

#[derive(Debug, Clone)]
struct Bytes;

impl Weighter<Key, Entry> for Bytes {
    fn weight(&self, _: &Key, entry: &Entry) -> u64 {
        entry.bytes
    }
}

type Ghost = Cache<Key, Entry, Bytes>;

#[derive(Debug)]
struct State {
    share: f64,
    ghosts: Vec<Ghost>,
}

#[derive(Debug)]
pub(super) struct Ghosts {
    state: Mutex<State>,
    metrics: CacheMetrics,
}

impl Ghosts {
    pub(super) fn new(metrics: CacheMetrics) -> Self {
        for size in GHOST_SIZES_BYTES {
            metrics.ghost_hits.of(byte_size(size)); // present from 0
        }
        let ghosts = GHOST_SIZES_BYTES.map(|size| Cache::with_weighter(entries_typical(size), size, Bytes)).into();
        Self { state: Mutex::new(State { share: 1.0, ghosts }), metrics }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a lookup; returns whether its key is sampled, so that the answer is to be [stored](Self::store).
    pub(super) fn refer(&self, key: &Key, ttl: Duration) -> bool {
        let mut state = self.state();
        self.metrics.ghost_expected.inc_by(state.share);
        if !sampled(key, state.share) {
            return false;
        }
        self.metrics.ghost_references.inc();
        for (ghost, size) in state.ghosts.iter_mut().zip(GHOST_SIZES_BYTES) {
            ghost.remove_if(key, |entry| entry.stored.elapsed() >= ttl);
            if ghost.get(key).is_some() {
                self.metrics.ghost_hits.of(byte_size(size)).inc();
            }
        }
        true
    }

    /// Remembers a sampled key in every ghost that does not hold it.
    pub(super) fn store(&self, key: Key, bytes: u64) {
        let mut state = self.state();
        if !sampled(&key, state.share) {
            return; // the share was halved since the lookup
        }
        let stored = Instant::now();
        for ghost in &mut state.ghosts {
            if ghost.peek(&key).is_none() {
                ghost.insert(key, Entry { bytes, stored });
            }
        }
        if state.ghosts.last().is_some_and(|largest| largest.len() > KEYS_MAX) && state.share > SHARE_MIN {
            state.halve();
        }
    }
}

impl State {
    fn halve(&mut self) {
        let share = (self.share / 2.0).max(SHARE_MIN);
        self.share = share;
        for (ghost, size) in self.ghosts.iter_mut().zip(GHOST_SIZES_BYTES) {
            ghost.retain(|key, _| sampled(key, share));
            ghost.set_capacity(scaled(size, share));
        }
    }
}

/// Whether the key's hash, read as a fraction, is below the share.
#[expect(clippy::cast_precision_loss, reason = "the low bits of a hash do not matter for a share of it")]
fn sampled(key: &Key, share: f64) -> bool {
    let Some(&first) = key.first_chunk::<8>() else { return false };
    u64::from_be_bytes(first) as f64 <= share * u64::MAX as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a size up to 1 GiB times a share up to 1"
)]
fn scaled(size: u64, share: f64) -> u64 {
    (size as f64 * share) as u64
}

fn byte_size(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    const HOUR: Duration = Duration::from_hours(1);

    fn numbered(number: u64) -> Key {
        *blake3::hash(&number.to_le_bytes()).as_bytes()
    }

    /// Requests each key of a loop `rounds` times, 1 KiB an answer.
    fn run_loop(ghosts: &Ghosts, keys: u64, rounds: u64) {
        for _ in 0..rounds {
            for number in 0..keys {
                let key = numbered(number);
                if ghosts.refer(&key, HOUR) {
                    ghosts.store(key, 1 << 10);
                }
            }
        }
    }

    /// Hits of each size, references and expected references so far.
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    fn totals(metrics: &CacheMetrics) -> ([f64; 8], f64, f64) {
        let hits = GHOST_SIZES_BYTES.map(|size| metrics.ghost_hits.of(byte_size(size)).get() as f64);
        (hits, metrics.ghost_references.get() as f64, metrics.ghost_expected.get())
    }

    /// Estimated hit ratio of each size during `run`.
    fn hit_ratios(metrics: &CacheMetrics, run: impl FnOnce()) -> [f64; 8] {
        let (hits_before, references_before, expected_before) = totals(metrics);
        run();
        let (hits, references, expected) = totals(metrics);
        let expected = expected - expected_before;
        let correction = expected - (references - references_before);
        std::array::from_fn(|size| (hits[size] - hits_before[size] + correction) / expected)
    }

    #[test]
    fn a_loop_that_fits_hits_in_all_but_its_first_round() {
        let metrics = Metrics::new().cache;
        let ghosts = Ghosts::new(metrics.clone());
        let ratios = hit_ratios(&metrics, || run_loop(&ghosts, 200, 10));
        assert!((ratios[1] - 0.9).abs() < 1e-9, "200 KiB fit 256 KiB: {ratios:?}");
        assert!(ratios[0] < 0.5, "and not 64 KiB: {ratios:?}");
    }

    #[test]
    fn many_keys_halve_the_sample_and_the_estimate_stays() {
        let metrics = Metrics::new().cache;
        let ghosts = Ghosts::new(metrics.clone());
        run_loop(&ghosts, 30_000, 1);
        assert!(ghosts.state().share <= 0.25);
        assert!(ghosts.state().ghosts.iter().all(|ghost| ghost.len() <= KEYS_MAX + 1));
        let ratios = hit_ratios(&metrics, || run_loop(&ghosts, 30_000, 2));
        assert!((ratios[5] - 1.0).abs() < 0.02, "30 MiB fit 64 MiB: {ratios:?}");
        assert!(ratios[2] < 0.2, "and not 1 MiB: {ratios:?}");
    }

    #[test]
    fn old_entries_do_not_hit() {
        let metrics = Metrics::new().cache;
        let ghosts = Ghosts::new(metrics.clone());
        run_loop(&ghosts, 1, 1);
        assert!(ghosts.refer(&numbered(0), Duration::ZERO));
        assert_eq!(metrics.ghost_hits.of(1 << 30).get(), 0);
    }
}
