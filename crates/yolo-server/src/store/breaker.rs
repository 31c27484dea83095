//! Leaves a store alone that does not answer, so that requests do not wait for it one after the other.
//!
//! ```text
//!   closed ──failures in a row──▶ open ──pause──▶ one call tries ──well──▶ closed
//!                                  ▲                     └─badly─▶ open, twice as long
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Failures in a row that open it: a lost connection fails the calls in flight together, once.
const FAILURES_MAX: u32 = 5;
/// First pause.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// Longest pause: the store is used again this soon after it came back.
const PAUSE_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, Default)]
struct State {
    failures: u32,
    /// Set while open: when a call may try again, and the pause that led there.
    open: Option<(Instant, Duration)>,
}

/// A circuit breaker. The clock is an argument.
#[derive(Debug, Default)]
pub struct Breaker(Mutex<State>);

impl Breaker {
    /// Whether a call may be made now. While open, one call at the end of each pause may.
    pub fn permits(&self, now: Instant) -> bool {
        let mut state = self.state();
        match state.open {
            None => true,
            Some((again, _)) if now < again => false,
            Some((_, pause)) => {
                state.open = Some((now + pause, pause));
                true
            }
        }
    }

    /// A call went well. Returns whether this closed it.
    pub fn succeeded(&self) -> bool {
        std::mem::take(&mut *self.state()).open.is_some()
    }

    /// A call failed. Returns whether this opened it.
    pub fn failed(&self, now: Instant) -> bool {
        let mut state = self.state();
        state.failures = state.failures.saturating_add(1);
        match state.open {
            Some((_, pause)) => {
                let pause = PAUSE_MAX.min(2 * pause);
                state.open = Some((now + pause, pause));
                false
            }
            None if state.failures >= FAILURES_MAX => {
                state.open = Some((now + PAUSE_MIN, PAUSE_MIN));
                true
            }
            None => false,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_tries_once_a_pause_and_closes_on_success() {
        let (breaker, mut now) = (Breaker::default(), Instant::now());
        for _ in 1..FAILURES_MAX {
            assert!(!breaker.failed(now) && breaker.permits(now));
        }
        assert!(!breaker.succeeded(), "it was not open");
        for _ in 1..FAILURES_MAX {
            breaker.failed(now);
        }
        assert!(breaker.permits(now), "the successes between them start the count anew");
        assert!(breaker.failed(now) && !breaker.permits(now));
        let mut pause = PAUSE_MIN;
        for _ in 0..8 {
            assert!(!breaker.permits(now + pause / 2));
            now += pause;
            assert!(breaker.permits(now) && !breaker.permits(now), "one call tries");
            breaker.failed(now);
            pause = PAUSE_MAX.min(2 * pause);
        }
        assert_eq!(pause, PAUSE_MAX);
        assert!(breaker.permits(now + PAUSE_MAX));
        assert!(breaker.succeeded() && breaker.permits(now));
    }
}
