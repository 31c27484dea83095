//! Leaves a store alone that does not answer, so that requests do not wait for it one after the other.
//!
//! ```text
//!   closed ──failures in a row──▶ open ──pause──▶ one call tries ──well──▶ closed
//!                                  ▲                     └─badly─▶ open, twice as long
//! ```
//! Calls that were under way when it opened change nothing by failing: one hiccup is one pause, however many it met.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Failures in a row that open it: a lost connection fails the calls in flight together, once.
const FAILURES_MAX: u32 = 5;
/// First pause.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// Longest pause: the store is used again this soon after it came back.
pub const PAUSE_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, Default)]
struct State {
    failures: u32,
    /// Set while open: when a call may try again, and the pause that led there.
    open: Option<(Instant, Duration)>,
}

/// A call that may be made.
#[derive(Debug, Clone, Copy)]
pub struct Permit {
    /// The pause after which it tries; `None` while closed.
    tries_after: Option<Duration>,
}

/// A circuit breaker. The clock is an argument.
#[derive(Debug, Default)]
pub struct Breaker(Mutex<State>);

impl Breaker {
    /// Lets a call be made now, or not. While open, one call at the end of each pause may.
    pub fn permit(&self, now: Instant) -> Option<Permit> {
        let mut state = self.state();
        let tries_after = match state.open {
            None => None,
            Some((again, _)) if now < again => return None,
            Some((_, pause)) => {
                state.open = Some((now + pause, pause));
                Some(pause)
            }
        };
        Some(Permit { tries_after })
    }

    /// A call went well. Returns whether this closed it.
    pub fn succeeded(&self) -> bool {
        std::mem::take(&mut *self.state()).open.is_some()
    }

    /// The call failed that was permitted. Returns whether this opened it.
    pub fn failed(&self, permit: Permit, now: Instant) -> bool {
        let mut state = self.state();
        state.failures = state.failures.saturating_add(1);
        match (state.open, permit.tries_after) {
            // One that took longer than its pause, so that another tried beside it, counts as much as that one.
            (Some((_, pause)), Some(tried)) if tried == pause => {
                let pause = PAUSE_MAX.min(2 * pause);
                state.open = Some((now + pause, pause));
                false
            }
            (None, _) if state.failures >= FAILURES_MAX => {
                state.open = Some((now + PAUSE_MIN, PAUSE_MIN));
                true
            }
            // Those that were under way when it opened change nothing.
            _ => false,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(breaker: &Breaker, now: Instant) -> bool {
        breaker.permit(now).is_some()
    }

    #[test]
    fn it_opens_after_failures_in_a_row_tries_once_a_pause_and_closes_on_success() {
        let (breaker, mut now) = (Breaker::default(), Instant::now());
        let fails = |now| breaker.permit(now).is_some_and(|permit| breaker.failed(permit, now));
        for _ in 1..FAILURES_MAX {
            assert!(!fails(now) && permits(&breaker, now));
        }
        assert!(!breaker.succeeded(), "it was not open");
        for _ in 1..FAILURES_MAX {
            fails(now);
        }
        assert!(permits(&breaker, now), "the successes between them start the count anew");
        assert!(fails(now) && !permits(&breaker, now));
        let mut pause = PAUSE_MIN;
        for _ in 0..8 {
            assert!(!permits(&breaker, now + pause / 2));
            now += pause;
            let trial = breaker.permit(now).unwrap();
            assert!(!permits(&breaker, now), "one call tries");
            breaker.failed(trial, now);
            pause = PAUSE_MAX.min(2 * pause);
        }
        assert_eq!(pause, PAUSE_MAX);
        assert!(permits(&breaker, now + PAUSE_MAX));
        assert!(breaker.succeeded() && permits(&breaker, now));
    }

    #[test]
    fn calls_that_were_under_way_when_it_opened_do_not_lengthen_the_pause() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        let calls: Vec<_> = (0..=2 * FAILURES_MAX).map(|_| breaker.permit(now).unwrap()).collect();
        let (last, calls) = calls.split_last().unwrap();
        assert_eq!(calls.iter().filter(|call| breaker.failed(**call, now)).count(), 1, "it opens once");
        let trial = breaker.permit(now + PAUSE_MIN).expect("the first pause is over");
        // Nor while another one tries, whose failure does.
        breaker.failed(*last, now + PAUSE_MIN);
        breaker.failed(trial, now + PAUSE_MIN);
        assert!(!permits(&breaker, now + (3 * PAUSE_MIN).saturating_sub(Duration::from_nanos(1))));
        assert!(permits(&breaker, now + 3 * PAUSE_MIN));
    }

    #[test]
    fn trials_that_outlast_their_pauses_double_it_once() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..FAILURES_MAX {
            breaker.failed(breaker.permit(now).unwrap(), now);
        }
        let trials = [1, 2, 3].map(|pauses| breaker.permit(now + pauses * PAUSE_MIN).unwrap());
        let failed = now + 4 * PAUSE_MIN;
        for trial in trials {
            breaker.failed(trial, failed);
        }
        assert!(permits(&breaker, failed + 2 * PAUSE_MIN));
    }
}
