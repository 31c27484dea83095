//! The worst memory of the server, computed once its model is warm: every bound that clients can fill is made to fit.
//!
//! ```text
//!   limit >= in use + decode threads * decoder + queue + bodies + 1.15 * cache
//! ```
//! "In use" holds the model, its sessions and the memory of their warm-up, and what the tasks may fill. The result cache
//! gets what the others leave: its knob says how much of that it takes.
//!
//! A batch of several images takes more than the warm-up's: how much, only its first run tells. From then on it is in use, and
//! the cache, the one that can, gives way.

use crate::cgroup::MemoryStat;
use crate::limits::{self, BodyLimits};

/// Copies of the weights while a model is loaded: read, optimised, and written to be shared.
const LOADING_COPIES: u64 = 4;
/// What an entry of the result cache takes, in percent of what its weight says.
const CACHE_PERCENT: u64 = 115;

/// Bounds whose sum fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Pictures decoded at a time.
    pub decode_threads: usize,
    /// Memory that one of them may take, in bytes.
    pub decoder_bytes_max: usize,
    /// Memory of prepared images that somebody waits for, in bytes; spare ones take 1/[`limits::SPARE_SHARE`] of it
    /// beside them.
    pub queue_bytes_max: usize,
    /// Memory of request bodies, in bytes.
    pub bodies_bytes_max: usize,
}

/// Not even one picture at a time fits.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the memory limit of {limit_mib} MiB leaves {left_mib} MiB beside the warm model, and pictures, queue and request \
     bodies need {needed_mib} MiB: raise the limit to {} MiB", limit_mib - left_mib + needed_mib
)]
#[expect(clippy::struct_field_names, reason = "their unit")]
pub struct TooLittle {
    limit_mib: u64,
    left_mib: u64,
    needed_mib: u64,
}

impl Bounds {
    /// What `threads` decoders may take where memory is plenty.
    pub const fn full(threads: usize, bodies: &BodyLimits) -> Self {
        Self {
            decode_threads: threads,
            decoder_bytes_max: limits::DECODER_BYTES_MAX,
            queue_bytes_max: limits::QUEUE_BYTES_MAX,
            bodies_bytes_max: bodies.bodies_bytes_max,
        }
    }

    /// The sum, in bytes.
    const fn worst_bytes(&self) -> u64 {
        let queue = self.queue_bytes_max + self.queue_bytes_max / limits::SPARE_SHARE;
        (self.decode_threads * self.decoder_bytes_max + queue + self.bodies_bytes_max) as u64
    }

    /// Fits the bounds into what `limit` leaves beside `in_use`, both in bytes, and beside a small cache: fewer decode
    /// threads, and where not even one fits, all bounds in proportion. Without a limit they are full.
    ///
    /// # Errors
    /// [`TooLittle`] if the bodies' share could not hold one body of the largest size.
    pub fn fit(limit: Option<u64>, in_use: u64, threads: usize, bodies: &BodyLimits) -> Result<Self, TooLittle> {
        let full = |threads| Self::full(threads, bodies);
        let Some(limit) = limit else { return Ok(full(threads)) };
        let left = limit.saturating_sub(in_use);
        let one = full(1);
        let needed = one.worst_bytes() * bodies.body_bytes_max as u64 / bodies.bodies_bytes_max.max(1) as u64;
        let cache = limits::CACHE_RESERVE_BYTES.min(left / limits::CACHE_SHARE).min(left.saturating_sub(needed));
        let shared = left - cache;
        if let Some(fits) = (1..=threads).rev().map(full).find(|bounds| bounds.worst_bytes() <= shared) {
            return Ok(fits);
        }
        let scaled = |bytes: usize| usize::try_from(bytes as u64 * (shared >> 10) / (one.worst_bytes() >> 10));
        let scaled = |bytes: usize| scaled(bytes).unwrap_or(bytes);
        let bounds = Self {
            decode_threads: 1,
            decoder_bytes_max: scaled(one.decoder_bytes_max),
            queue_bytes_max: scaled(one.queue_bytes_max),
            bodies_bytes_max: scaled(one.bodies_bytes_max),
        };
        if bounds.bodies_bytes_max < bodies.body_bytes_max {
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            return Err(TooLittle { limit_mib: mib(limit), left_mib: left >> 20, needed_mib: mib(needed) });
        }
        Ok(bounds)
    }
}

/// What the server took at its start, beside no request.
///
/// Beside requests it cannot be measured: what a model takes cannot be told from what they take.
#[derive(Debug, Clone, Copy)]
pub struct Footprint {
    /// All but the model and what clients can fill, in bytes.
    pub others_bytes: u64,
    /// What loading and warming the model took, in bytes.
    pub model_bytes: u64,
    /// Its file, in bytes; at least 1.
    pub file_bytes: u64,
    /// What clients can fill.
    pub bounds: Bounds,
}

/// Another model does not fit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memory limit of {limit_mib} MiB is too low for {what}: {needed_mib} MiB")]
pub struct NoRoom {
    limit_mib: u64,
    what: &'static str,
    needed_mib: u64,
}

impl Footprint {
    /// Capacity of the result cache if `asked` is wanted, in bytes: what the limit leaves beside the worst of all others, or
    /// beside what they have now, should that ever be more.
    pub fn cache_bytes(&self, asked: u64, memory: MemoryStat, cached_bytes: u64) -> u64 {
        let worst = self.others_bytes + self.model_bytes + self.bounds.worst_bytes();
        let others = worst.max(memory.working_set_bytes.saturating_sub(cached_bytes));
        memory.limit_bytes.map_or(asked, |limit| asked.min(limit.saturating_sub(others) * 100 / CACHE_PERCENT))
    }

    /// Whether a model whose file has `file_bytes` can be loaded beside the served one now, and served in its place. It is
    /// taken to need as much as the first one, or more as its file is larger.
    ///
    /// # Errors
    /// [`NoRoom`]
    pub fn room_for(&self, file_bytes: u64, memory: MemoryStat) -> Result<(), NoRoom> {
        let Some(limit) = memory.limit_bytes else { return Ok(()) };
        let larger = file_bytes.max(self.file_bytes);
        let model = u128::from(self.model_bytes) * u128::from(larger) / u128::from(self.file_bytes.max(1));
        let model = u64::try_from(model).unwrap_or(u64::MAX);
        let alone = self.others_bytes + self.bounds.worst_bytes();
        let loading = model.max(LOADING_COPIES.saturating_mul(file_bytes));
        let beside = memory.working_set_bytes;
        for (what, needed) in [
            ("both models", beside.saturating_add(loading)),
            ("the new model under full load", alone.saturating_add(model)),
        ] {
            if needed > limit {
                let mib = |bytes: u64| bytes.div_ceil(1 << 20);
                return Err(NoRoom { limit_mib: limit >> 20, what, needed_mib: mib(needed) });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn fit(limit: Option<u64>, in_use: u64, threads: usize) -> Result<Bounds, TooLittle> {
        Bounds::fit(limit, in_use, threads, &BodyLimits::DEFAULT)
    }

    const fn full(threads: usize) -> Bounds {
        Bounds::full(threads, &BodyLimits::DEFAULT)
    }

    #[test]
    fn where_memory_is_plenty_nothing_is_cut() {
        assert_eq!(fit(None, 9 << 30, 8), Ok(full(8)));
        assert_eq!(fit(Some(4 << 30), 300 * MIB, 8), Ok(full(8)));
    }

    #[test]
    fn fewer_pictures_are_decoded_at_a_time_before_anything_else_shrinks() {
        assert_eq!(fit(Some(2 << 30), 200 * MIB, 8), Ok(full(5)));
        assert_eq!(fit(Some(1 << 30), 200 * MIB, 8), Ok(full(1)));
    }

    #[test]
    fn whatever_is_cut_fits() {
        for limit_mib in 1..2_000 {
            for in_use_mib in [0, 40, 400] {
                let left = (limit_mib * MIB).saturating_sub(in_use_mib * MIB);
                match fit(Some(limit_mib * MIB), in_use_mib * MIB, 3) {
                    Ok(bounds) => assert!(bounds.worst_bytes() <= left, "{bounds:?} in {left}"),
                    Err(_) => assert!(left < 111 * MIB, "{left} is enough"),
                }
            }
        }
    }

    #[test]
    fn the_cache_gets_what_the_worst_of_all_others_leaves() {
        for limit_mib in (256..4_096).step_by(16) {
            let (limit, in_use) = (limit_mib * MIB, 100 * MIB);
            let bounds = fit(Some(limit), in_use, 4).unwrap();
            let footprint = Footprint { others_bytes: 40 * MIB, model_bytes: 60 * MIB, file_bytes: MIB, bounds };
            let idle = MemoryStat { working_set_bytes: in_use, limit_bytes: Some(limit) };
            let cache = footprint.cache_bytes(1 << 30, idle, 0);
            let worst = in_use + bounds.worst_bytes() + cache * 115 / 100;
            assert!(worst <= limit, "{worst} of {limit_mib} MiB");
            assert!(cache > 14 * MIB, "{cache} of {limit_mib} MiB");
            assert_eq!(footprint.cache_bytes(MIB, idle, 0), MIB, "no more than asked");
            let full = in_use + bounds.worst_bytes() + cache;
            let busy = MemoryStat { working_set_bytes: full, ..idle };
            assert_eq!(footprint.cache_bytes(1 << 30, busy, cache), cache, "what it holds is its own");
            let grown = MemoryStat { working_set_bytes: limit, ..idle };
            assert_eq!(footprint.cache_bytes(1 << 30, grown, 0), 0, "it gives way");
            let unlimited = MemoryStat { limit_bytes: None, ..grown };
            assert_eq!(footprint.cache_bytes(1 << 30, unlimited, 0), 1 << 30);
        }
    }

    #[test]
    fn a_model_is_loaded_beside_another_only_where_both_fit_and_then_the_worst_case() {
        let (limit, bounds) = (1 << 30, full(1));
        let footprint = Footprint { others_bytes: 40 * MIB, model_bytes: 200 * MIB, file_bytes: 10 * MIB, bounds };
        let room = |file_mib: u64, working_mib: u64| {
            let memory = MemoryStat { working_set_bytes: working_mib * MIB, limit_bytes: Some(limit) };
            footprint.room_for(file_mib * MIB, memory).map_err(|error| error.to_string())
        };
        assert_eq!(room(10, 824), Ok(()));
        assert_eq!(room(5, 825), Err("the memory limit of 1024 MiB is too low for both models: 1025 MiB".to_owned()));
        assert_eq!(room(20, 625), Err("the memory limit of 1024 MiB is too low for both models: 1025 MiB".to_owned()));
        let lean = Footprint { model_bytes: 20 * MIB, ..footprint };
        let memory = MemoryStat { working_set_bytes: 985 * MIB, limit_bytes: Some(limit) };
        assert!(lean.room_for(10 * MIB, memory).is_err(), "it takes more while it is loaded than later");
        let spare_mib = (limit - 40 * MIB - bounds.worst_bytes()) / MIB;
        assert!(room(spare_mib / 20, 0).is_ok());
        assert!(room(spare_mib / 20 + 1, 0).unwrap_err().contains("the new model under full load"));
        let unlimited = MemoryStat { working_set_bytes: u64::MAX, limit_bytes: None };
        assert_eq!(footprint.room_for(u64::MAX, unlimited), Ok(()));
    }

    #[test]
    fn a_limit_that_cannot_hold_the_worst_case_names_one_that_can() {
        let error = fit(Some(300 * MIB), 250 * MIB, 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the memory limit of 300 MiB leaves 50 MiB beside the warm model, and pictures, queue and request bodies \
             need 110 MiB: raise the limit to 360 MiB"
        );
        assert!(fit(Some(360 * MIB), 250 * MIB, 1).is_ok());
    }
}
