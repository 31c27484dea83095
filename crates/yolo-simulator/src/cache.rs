//! A pod's result cache, and value-less ghosts of other sizes fed with a sampled share of the references (SHARDS,
//! Waldspurger et al. 2015), as the server keeps them.
//!
//! **Bounds:** a slot's number comes from the map of slots or from a link, and slots are never removed.
#![expect(clippy::indexing_slicing, reason = "see Bounds")]

use std::collections::HashMap;

use crate::pictures::Popularity;

/// Sizes that the server's ghosts have: 1 GiB and quarters of it (control.md §3).
pub const GHOST_BYTES: [u64; 8] = [1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28, 1 << 30];
/// Keys that a ghost should sample (control.md §3: R = clip(8192/keys, .05, 1)).
const SAMPLED_KEYS: f64 = 8192.0;

/// Least recently used keys go first.
#[derive(Debug, Clone, Default)]
pub struct Lru {
    capacity: usize,
    slots: HashMap<u64, usize>,
    /// Key, neighbour towards the newest, neighbour towards the oldest.
    links: Vec<(u64, usize, usize)>,
    newest: usize,
    oldest: usize,
}

const NONE: usize = usize::MAX;

impl Lru {
    /// A cache of `capacity` entries.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, newest: NONE, oldest: NONE, ..Self::default() }
    }

    /// Entries held.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Another capacity; the oldest go if it is smaller.
    pub fn resize(&mut self, capacity: usize) {
        if capacity < self.slots.len() {
            *self = Self::new(capacity);
        }
        self.capacity = capacity;
    }

    /// Looks `key` up and makes it the newest; inserted if it was absent. Returns whether it was there, and whether
    /// another key had to go.
    pub fn touch(&mut self, key: u64) -> (bool, bool) {
        if self.capacity == 0 {
            return (false, false);
        }
        if let Some(&slot) = self.slots.get(&key) {
            self.unlink(slot);
            self.push(slot);
            return (true, false);
        }
        let full = self.slots.len() >= self.capacity;
        let slot = if full {
            let slot = self.oldest;
            self.unlink(slot);
            self.slots.remove(&self.links[slot].0);
            self.links[slot].0 = key;
            slot
        } else {
            self.links.push((key, NONE, NONE));
            self.links.len() - 1
        };
        self.slots.insert(key, slot);
        self.push(slot);
        (false, full)
    }

    fn unlink(&mut self, slot: usize) {
        let (_, newer, older) = self.links[slot];
        *self.older_of(newer) = older;
        *self.newer_of(older) = newer;
    }

    fn push(&mut self, slot: usize) {
        let before = self.newest;
        (self.links[slot].1, self.links[slot].2) = (NONE, before);
        *self.newer_of(before) = slot;
        self.newest = slot;
    }

    /// Where the slot's older neighbour is noted; of none, the newest of all.
    fn older_of(&mut self, slot: usize) -> &mut usize {
        if slot == NONE { &mut self.newest } else { &mut self.links[slot].2 }
    }

    /// Where the slot's newer neighbour is noted; of none, the oldest of all.
    fn newer_of(&mut self, slot: usize) -> &mut usize {
        if slot == NONE { &mut self.oldest } else { &mut self.links[slot].1 }
    }
}

/// Counters of a cache and its ghosts, all rising.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CacheCounters {
    /// Answered.
    pub hits: u64,
    /// Not there.
    pub misses: u64,
    /// Pushed out.
    pub evictions: u64,
    /// References that the ghosts sampled.
    pub ghost_refs: u64,
    /// References that sampling should have taken.
    pub ghost_expected: f64,
    /// Hits of each ghost.
    pub ghost_hits: [u64; GHOST_BYTES.len()],
}

/// The cache of one pod.
#[derive(Debug, Clone)]
pub struct PodCache {
    results: Lru,
    ghosts: Vec<Lru>,
    sampling: f64,
    entry_bytes: u64,
    /// What happened so far.
    pub counters: CacheCounters,
}

impl PodCache {
    /// An empty cache of `bytes` for pictures of `law`.
    pub fn new(law: &Popularity, bytes: u64) -> Self {
        let sampling = (SAMPLED_KEYS / law.keys.max(1) as f64).clamp(0.05, 1.0);
        let ghost = |size: &u64| Lru::new((sampling * (*size / law.entry_bytes) as f64).round() as usize);
        Self {
            results: Lru::new((bytes / law.entry_bytes) as usize),
            ghosts: GHOST_BYTES.iter().map(ghost).collect(),
            sampling,
            entry_bytes: law.entry_bytes,
            counters: CacheCounters::default(),
        }
    }

    /// Another capacity.
    pub fn resize(&mut self, bytes: u64) {
        self.results.resize((bytes / self.entry_bytes) as usize);
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.results.len() as u64 * self.entry_bytes
    }

    /// One reference; whether the cache answers it.
    pub fn reference(&mut self, key: u64) -> bool {
        let (hit, evicted) = self.results.touch(key);
        let counters = &mut self.counters;
        counters.hits += u64::from(hit);
        counters.misses += u64::from(!hit);
        counters.evictions += u64::from(evicted);
        counters.ghost_expected += self.sampling;
        if hashed(key) < self.sampling {
            counters.ghost_refs += 1;
            for (ghost, hits) in self.ghosts.iter_mut().zip(&mut counters.ghost_hits) {
                *hits += u64::from(ghost.touch(key).0);
            }
        }
        hit
    }
}

/// A key's place in 0..1, the same in every pod.
fn hashed(key: u64) -> f64 {
    crate::random::Random::new(key, 0x5eed).unit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pictures::Pictures;
    use crate::random::Random;

    #[test]
    fn the_oldest_key_goes_first() {
        let mut lru = Lru::new(2);
        assert_eq!(lru.touch(1), (false, false));
        assert_eq!(lru.touch(2), (false, false));
        assert_eq!(lru.touch(1), (true, false));
        assert_eq!(lru.touch(3), (false, true), "2 is the oldest");
        assert_eq!((lru.touch(1).0, lru.touch(2).0), (true, false));
        assert_eq!(lru.len(), 2);
    }

    /// Che's approximation (Che et al. 2002): the time T with Σ(1 - exp(-pT)) = C; hits Σp(1 - exp(-pT)).
    fn che(pictures: &Pictures, capacity: f64) -> f64 {
        let shares: Vec<f64> = pictures.shares().collect();
        let held = |time: f64| shares.iter().map(|p| 1.0 - (-p * time).exp()).sum::<f64>();
        let (mut low, mut high) = (0.0, 1e9);
        for _ in 0..100 {
            let middle = f64::midpoint(low, high);
            if held(middle) < capacity { low = middle } else { high = middle }
        }
        shares.iter().map(|p| p * (1.0 - (-p * low).exp())).sum()
    }

    #[test]
    fn hits_and_ghosts_follow_che() {
        let law = Popularity { keys: 40_000, exponent: 0.8, new_share: 0.0, entry_bytes: 1 << 10 };
        let mut pictures = Pictures::new(&law, Random::new(5, 0));
        let mut cache = PodCache::new(&law, GHOST_BYTES[3]);
        for _ in 0..200_000 {
            cache.reference(pictures.draw());
        }
        let warm = cache.counters;
        for _ in 0..400_000 {
            cache.reference(pictures.draw());
        }
        let now = cache.counters;
        let hit_ratio = (now.hits - warm.hits) as f64 / 400_000.0;
        let expected = che(&pictures, 4096.0);
        assert!((hit_ratio - expected).abs() < 0.005, "{hit_ratio} {expected}");
        // SHARDS-adj (control.md §3).
        let sampled = now.ghost_expected - warm.ghost_expected;
        let refs = (now.ghost_refs - warm.ghost_refs) as f64;
        let ghost = ((now.ghost_hits[3] - warm.ghost_hits[3]) as f64 + sampled - refs) / sampled;
        assert!((ghost - expected).abs() < 0.02, "{ghost} {expected}");
    }
}
