//! What a session holds of the memory that its runs needed.

use crate::engine::Memory;

/// Smaller runs in a row after which a session gives its memory back: the run that needs it again has to fault its pages in
/// once more.
const SMALLER_RUNS_MAX: u32 = 32;

/// How much a session holds: by itself it only ever holds more.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Pixels of the largest run since it gave back.
    pixels: u64,
    /// Smaller runs since one as large.
    smaller_runs: u32,
}

impl Held {
    /// What a run of `pixels`, all its pictures together, is to do with the memory.
    pub(super) fn next(&self, pixels: u64) -> Memory {
        if pixels < self.pixels && self.smaller_runs + 1 >= SMALLER_RUNS_MAX { Memory::Release } else { Memory::Keep }
    }

    /// Takes a run of `pixels` and what it did with the memory.
    pub(super) fn ran(&mut self, pixels: u64, memory: Memory) {
        *self = match memory {
            Memory::Release => Self::default(),
            Memory::Keep if pixels < self.pixels => Self { smaller_runs: self.smaller_runs + 1, ..*self },
            Memory::Keep => Self { pixels, smaller_runs: 0 },
        }
    }

    /// A run of `pixels` was for its time alone: if it is what the session holds memory for, the next smaller one gives back.
    pub(super) fn not_needed(&mut self, pixels: u64) {
        if pixels == self.pixels {
            self.smaller_runs = SMALLER_RUNS_MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs as a worker does.
    fn run(held: &mut Held, pixels: u64) -> Memory {
        let memory = held.next(pixels);
        held.ran(pixels, memory);
        memory
    }

    #[test]
    fn a_session_gives_back_what_only_a_rare_batch_needed() {
        let mut held = Held::default();
        let mut runs_until_released = |large: u64| {
            assert_eq!(run(&mut held, large), Memory::Keep);
            (1..1_000).find(|_| run(&mut held, 1) == Memory::Release)
        };
        assert_eq!([8, 2].map(&mut runs_until_released), [Some(32); 2]);
    }

    #[test]
    fn a_session_keeps_what_it_needs_now_and_then() {
        let mut held = Held::default();
        assert!((0..1_000).all(|run_of| run(&mut held, if run_of % 32 == 0 { 4 } else { 1 }) == Memory::Keep));
        assert!((0..1_000).all(|_| run(&mut held, 4) == Memory::Keep));
    }

    #[test]
    fn a_size_that_was_only_timed_is_given_back_at_once() {
        let mut held = Held::default();
        run(&mut held, 4);
        held.not_needed(2);
        assert_eq!([run(&mut held, 1), run(&mut held, 4)], [Memory::Keep; 2]);
        held.not_needed(4);
        assert_eq!([run(&mut held, 1), run(&mut held, 1)], [Memory::Release, Memory::Keep]);
    }
}
