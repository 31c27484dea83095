//! Quantities with their unit in the type, so that two numbers cannot be swapped.
//!
//! The floating ones refuse NaN, infinities and negatives: whatever holds one is a usable number.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A number that no quantity of this crate can hold.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum UnitError {
    /// NaN, infinite or negative.
    #[error("{unit} must be finite and not negative, got {value}")]
    NotFinite {
        /// The quantity's name.
        unit: &'static str,
        /// What was offered.
        value: f64,
    },
    /// A batch size outside 1..=32.
    #[error("a batch size lies in 1..=32, got {0}")]
    BatchSize(u32),
}

macro_rules! finite {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, Deserialize)]
        #[serde(try_from = "f64", into = "f64")]
        pub struct $name(f64);

        impl $name {
            /// Nothing.
            pub const ZERO: Self = Self(0.0);

            /// A whole number of the unit.
            pub const fn whole(value: u32) -> Self {
                Self(value as f64)
            }

            /// The plain number: finite and not negative.
            pub const fn get(self) -> f64 {
                self.0
            }
        }

        impl TryFrom<f64> for $name {
            type Error = UnitError;

            /// # Errors
            /// [`UnitError::NotFinite`] for NaN, an infinity or a negative number.
            fn try_from(value: f64) -> Result<Self, UnitError> {
                if value.is_finite() && value >= 0.0 {
                    Ok(Self(value))
                } else {
                    Err(UnitError::NotFinite { unit: stringify!($name), value })
                }
            }
        }

        impl From<$name> for f64 {
            fn from(value: $name) -> Self {
                value.0
            }
        }
    };
}

finite!(
    /// Seconds since the Unix epoch.
    Timestamp
);
finite!(
    /// A span of time in seconds.
    Seconds
);
finite!(
    /// Square seconds: a sum of squared durations.
    SecondsSquared
);
finite!(
    /// Images a second; a request of m images counts m.
    Rate
);
finite!(
    /// A share or a factor: 0.05 is 5 %.
    Ratio
);
finite!(
    /// CPU cores.
    Cores
);
finite!(
    /// A count that may be a fraction, such as a sum of sampling probabilities.
    Count
);

impl Seconds {
    /// `value` thousandths of a second.
    pub const fn millis(value: u32) -> Self {
        Self(value as f64 / 1e3)
    }
}

impl Ratio {
    /// `value` hundredths.
    pub const fn percent(value: u32) -> Self {
        Self(value as f64 / 1e2)
    }
}

impl From<Duration> for Seconds {
    fn from(value: Duration) -> Self {
        Self(value.as_secs_f64())
    }
}

impl From<Duration> for Timestamp {
    /// `value` is the time since the Unix epoch.
    fn from(value: Duration) -> Self {
        Self(value.as_secs_f64())
    }
}

impl Timestamp {
    /// Seconds from `earlier` to `self`; negative if `earlier` is later.
    pub fn since(self, earlier: Self) -> f64 {
        self.0 - earlier.0
    }
}

/// Bytes of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(u64);

impl Bytes {
    /// `value` bytes.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// `value` times 2²⁰ bytes.
    pub const fn mebi(value: u32) -> Self {
        Self((value as u64) << 20)
    }

    /// The plain number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A number of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Replicas(u32);

impl Replicas {
    /// `value` pods.
    pub const fn new(value: u32) -> Self {
        Self(value)
    }

    /// The plain number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Images in one call of the engine: 1..=32, the sizes that the metrics contract has labels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct BatchSize(u32);

impl BatchSize {
    /// One image.
    pub const ONE: Self = Self(1);
    /// The largest size.
    pub const MAX: Self = Self(32);

    /// The plain number, 1..=32.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl Default for BatchSize {
    fn default() -> Self {
        Self::ONE
    }
}

impl TryFrom<u32> for BatchSize {
    type Error = UnitError;

    /// # Errors
    /// [`UnitError::BatchSize`] outside 1..=32.
    fn try_from(value: u32) -> Result<Self, UnitError> {
        if (1..=Self::MAX.0).contains(&value) { Ok(Self(value)) } else { Err(UnitError::BatchSize(value)) }
    }
}

impl From<BatchSize> for u32 {
    fn from(value: BatchSize) -> Self {
        value.0
    }
}

/// A counter as a real number.
#[expect(clippy::cast_precision_loss, reason = "beyond 2^53 a count's last digits decide nothing")]
pub(crate) const fn real(count: u64) -> f64 {
    count as f64
}

/// The least whole number not below `value`; 0 for NaN and negatives, `u32::MAX` beyond it.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, which is the contract")]
pub(crate) fn ceil_u32(value: f64) -> u32 {
    // 1e-9: a quotient that is whole but for rounding must not cost a pod.
    (value - 1e-9).ceil() as u32
}

/// `value` as whole bytes; 0 for NaN and negatives, saturating.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, which is the contract")]
pub(crate) fn whole_bytes(value: f64) -> Bytes {
    Bytes(value as u64)
}

/// `value` as a whole number of milliseconds, rounded; saturating.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, which is the contract")]
pub(crate) fn whole_millis(seconds: f64) -> u64 {
    (seconds * 1e3).round() as u64
}

/// `value` as whole seconds, rounded down; saturating.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, which is the contract")]
pub(crate) fn whole_seconds(value: Seconds) -> u64 {
    value.get() as u64
}

/// `value` as whole seconds since the epoch, rounded down; saturating.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, which is the contract")]
pub(crate) fn whole_seconds_since_epoch(value: Timestamp) -> u64 {
    value.get() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_refuse_what_is_no_quantity() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e-9] {
            assert!(Seconds::try_from(value).is_err(), "{value}");
            assert!(serde_json::from_str::<Rate>("-1").is_err());
        }
        assert!(Rate::try_from(0.0).is_ok());
    }

    #[test]
    fn batch_sizes_are_those_with_a_label() {
        assert!(BatchSize::try_from(0).is_err());
        assert!(BatchSize::try_from(33).is_err());
        assert_eq!(BatchSize::try_from(32).map(u32::from), Ok(32));
    }

    #[test]
    fn rounding_up_is_total() {
        assert_eq!(ceil_u32(f64::NAN), 0);
        assert_eq!(ceil_u32(-3.0), 0);
        assert_eq!(ceil_u32(3.0 + 1e-12), 3);
        assert_eq!(ceil_u32(3.1), 4);
        assert_eq!(ceil_u32(f64::INFINITY), u32::MAX);
    }
}
