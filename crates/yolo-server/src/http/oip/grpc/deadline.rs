//! `grpc-timeout`: how long a client waits for its call.

use std::time::{Duration, Instant};

use axum::http::HeaderMap;

const GRPC_TIMEOUT: &str = "grpc-timeout";
/// Most digits of its number.
const DIGITS_MAX: usize = 8;

/// When a call's client stops to wait, if it said so.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(pub Option<Instant>);

impl Deadline {
    /// Reads it of a call whose head is there now. What is malformed counts as absent: it is the client's own affair.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let text = headers.get(GRPC_TIMEOUT).and_then(|value| value.to_str().ok());
        Self(text.and_then(parse).map(|timeout| Instant::now() + timeout))
    }
}

/// Digits and a unit; a minute is `1M`, a millisecond `1m`.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = (digits.len() <= DIGITS_MAX).then(|| digits.parse().ok())??;
    match unit {
        "H" => Some(Duration::from_hours(number)),
        "M" => Some(Duration::from_mins(number)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read_and_nothing_else() {
        for (text, seconds) in [("2H", 7_200.0), ("3M", 180.0), ("4S", 4.0), ("5m", 5e-3), ("6u", 6e-6), ("7n", 7e-9)] {
            assert_eq!(parse(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "S", "5", "5s", "-5S", "123456789S", "5 S", "ä"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert!(parse("99999999H").is_some_and(|timeout| Instant::now().checked_add(timeout).is_some()));
    }
}
