//! Jitter and request ids. Nothing here is a secret.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that differs from call to call and from process to process.
fn number() -> u64 {
    static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static CALLS: AtomicU64 = AtomicU64::new(0);
    STATE.hash_one(CALLS.fetch_add(1, Ordering::Relaxed))
}

/// Uniform in `low..high`.
#[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
pub fn within(low: f64, high: f64) -> f64 {
    let fraction = (number() >> 11) as f64 / (1_u64 << 53) as f64;
    low + (high - low) * fraction
}

/// 16 hexadecimal digits: a request's id, a span, half of a trace.
pub fn digits() -> String {
    format!("{:016x}", number())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fill_their_range() {
        let numbers: Vec<_> = (0..1_000).map(|_| within(0.5, 1.5)).collect();
        assert!(numbers.iter().all(|number| (0.5..1.5).contains(number)));
        let mean = numbers.iter().sum::<f64>() / 1_000.0;
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
        assert_ne!(digits(), digits());
    }
}
