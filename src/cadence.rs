//! When the next reconcile comes if nothing triggers one. Always jittered, so that a thousand services never come at once.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use kube::runtime::controller::Action;

use crate::error::Retry;
use crate::limits;

/// After a success: the net under the watches and the sampler's rounds.
pub fn requeue(pause: Duration) -> Action {
    Action::requeue(jittered(pause, jitter()))
}

/// How long an object rests after its `failures`-th failure in a row (1 is the first): doubled from
/// [`limits::RETRY_FIRST`] up to the category's latest.
pub fn pause(retry: Retry, failures: u32) -> Duration {
    jittered(doubled(retry, failures), jitter())
}

fn doubled(retry: Retry, failures: u32) -> Duration {
    let doubled = limits::RETRY_FIRST.saturating_mul(1_u32 << failures.saturating_sub(1).min(16));
    match retry {
        Retry::Transient => doubled.min(limits::RETRY_TRANSIENT_MAX),
        Retry::Denied => doubled.max(limits::RETRY_FIRST * 8).min(limits::RETRY_DENIED_MAX),
        Retry::Slow => limits::REQUEUE,
    }
}

/// `pause` times 0.8..1.2 for `jitter` in 0..=1.
fn jittered(pause: Duration, jitter: f64) -> Duration {
    pause.mul_f64(0.4_f64.mul_add(jitter, 0.8))
}

/// In 0..=1. The standard library seeds every hasher with randomness; nothing else here needs a generator.
fn jitter() -> f64 {
    let bits = RandomState::new().hash_one(0_u8);
    f64::from((bits >> 32) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_limit_and_a_refusal_waits_longer() {
        assert_eq!(doubled(Retry::Transient, 1), Duration::from_millis(200));
        assert_eq!(doubled(Retry::Transient, 3), Duration::from_millis(800));
        assert_eq!(doubled(Retry::Transient, u32::MAX), limits::RETRY_TRANSIENT_MAX);
        assert_eq!(doubled(Retry::Denied, 1), Duration::from_millis(1600));
        assert_eq!(doubled(Retry::Denied, 40), limits::RETRY_DENIED_MAX);
    }

    #[test]
    fn jitter_stays_within_a_fifth() {
        for _ in 0..100 {
            let pause = jittered(Duration::from_secs(10), jitter());
            assert!((8.0..=12.0).contains(&pause.as_secs_f64()), "{pause:?}");
        }
    }
}
