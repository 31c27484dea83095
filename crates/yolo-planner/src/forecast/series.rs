//! A long series of positive numbers in little room: two characters each, or a byte and a half in a binary format.
//!
//! A day of minutes as JSON numbers would alone exceed the state's 16 KiB. Logarithmic steps keep the relative error
//! at 0.3 %, a tenth of what a forecast can know; a code is the same before and after serialisation.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Least number told from zero: one image in a hundred seconds.
const LEAST: f64 = 0.01;
/// Step between two codes: 4095 of them reach 1e9.
const STEP: f64 = 0.0062;
/// Codes: two characters of 64.
const CODES: u16 = 4096;
/// As in base64, so that JSON needs no escapes.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Numbers, the newest last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Series {
    codes: Vec<u16>,
}

impl Series {
    /// Appends `value`; beyond `most` numbers the oldest goes.
    pub(crate) fn push(&mut self, value: f64, most: usize) {
        let surplus = (self.codes.len() + 1).saturating_sub(most);
        self.codes.drain(..surplus.min(self.codes.len()));
        self.codes.push(code(value));
    }

    /// The number that was appended `back` numbers before the newest.
    pub(crate) fn back(&self, back: usize) -> Option<f64> {
        let at = self.codes.len().checked_sub(back.checked_add(1)?)?;
        self.codes.get(at).copied().map(number)
    }

    /// The greatest of the numbers between `newest` and `oldest` (inclusive) before the newest one; `None` if the series does
    /// not reach back that far.
    pub(crate) fn greatest(&self, newest: usize, oldest: usize) -> Option<f64> {
        let from = self.codes.len().checked_sub(oldest.checked_add(1)?)?;
        let to = self.codes.len().checked_sub(newest)?;
        self.codes.get(from..to)?.iter().max().copied().map(number)
    }

    /// The numbers in rising order.
    pub(crate) fn sorted(&self) -> Vec<f64> {
        let mut codes = self.codes.clone();
        codes.sort_unstable();
        codes.into_iter().map(number).collect()
    }

    pub(crate) const fn len(&self) -> usize {
        self.codes.len()
    }

    pub(crate) fn clear(&mut self) {
        self.codes.clear();
    }

    /// Two codes in three bytes, the higher digits first; a last one alone in two.
    fn packed(&self) -> Vec<u8> {
        let pack = |pair: &[u16]| {
            let (first, second) = (pair.first().copied().unwrap_or(0), pair.get(1).copied());
            let [high, middle] = (first << 4 | second.unwrap_or(0) >> 8).to_be_bytes();
            let [_, low] = second.unwrap_or(0).to_be_bytes();
            [Some(high), Some(middle), second.map(|_| low)].into_iter().flatten()
        };
        self.codes.chunks(2).flat_map(pack).collect()
    }

    /// What [`Series::packed`] packed; every byte string is a series.
    fn unpacked(bytes: &[u8]) -> Self {
        let unpack = |three: &[u8]| match *three {
            [high, middle, low] => {
                let second = u16::from_be_bytes([middle & 0x0f, low]);
                [Some(u16::from_be_bytes([high, middle]) >> 4), Some(second)].into_iter().flatten()
            }
            [high, middle] => [Some(u16::from_be_bytes([high, middle]) >> 4), None].into_iter().flatten(),
            _ => [None, None].into_iter().flatten(),
        };
        Self { codes: bytes.chunks(3).flat_map(unpack).collect() }
    }
}

/// The nearest code; 0 for what is below [`LEAST`] and for NaN.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the codes' range before")]
fn code(value: f64) -> u16 {
    if value >= LEAST {
        let steps = libm::log(value / LEAST) / STEP;
        1 + steps.round().clamp(0.0, f64::from(CODES - 2)) as u16
    } else {
        0
    }
}

fn number(code: u16) -> f64 {
    if code == 0 { 0.0 } else { LEAST * libm::exp(STEP * f64::from(code - 1)) }
}

impl Serialize for Series {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return self.packed().serialize(serializer);
        }
        let digit = |value: u16| ALPHABET.get(usize::from(value % 64)).copied().map_or('A', char::from);
        let text: String = self.codes.iter().flat_map(|code| [digit(code / 64), digit(*code)]).collect();
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Series {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return Vec::deserialize(deserializer).map(|bytes| Self::unpacked(&bytes));
        }
        let text = String::deserialize(deserializer)?;
        let digit = |byte: u8| ALPHABET.iter().position(|own| *own == byte).and_then(|at| u16::try_from(at).ok());
        let pair = |pair: &[u8]| match pair {
            [high, low] => Some(64 * digit(*high)? + digit(*low)?),
            _ => None,
        };
        let codes: Option<Vec<u16>> = text.as_bytes().chunks(2).map(pair).collect();
        codes.map(|codes| Self { codes }).ok_or_else(|| serde::de::Error::custom("a series is pairs of base64 digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_within_a_third_of_a_percent() {
        let mut series = Series::default();
        for value in [0.0, 0.02, 1.0, 37.5, 4_000.0, 1e9, f64::NAN, 1e300] {
            series.push(value, 100);
        }
        let back: Vec<f64> = (0..8).rev().map(|at| series.back(at).unwrap()).collect();
        for (value, found) in [0.02, 1.0, 37.5, 4_000.0, 1e9].into_iter().zip(&back[1..6]) {
            assert!((found / value - 1.0).abs() < 0.0032, "{found} for {value}");
        }
        assert!(back[0] <= 0.0 && back[6] <= 0.0, "none and NaN are none");
        assert!(back[7] >= 1e9 && back[7].is_finite());
    }

    #[test]
    fn a_series_reads_back_as_it_was_written_and_refuses_what_it_did_not_write() {
        let mut series = Series::default();
        for value in 0..500 {
            series.push(f64::from(value) * 1.7, 1000);
        }
        let text = serde_json::to_string(&series).unwrap();
        assert_eq!(text.len(), 2 + 2 * 500);
        assert_eq!(serde_json::from_str::<Series>(&text).unwrap(), series);
        for length in [500, 499] {
            series.codes.truncate(length);
            let bytes = postcard::to_allocvec(&series).unwrap();
            assert_eq!(bytes.len(), 2 + (3 * length).div_ceil(2), "and the number of bytes");
            assert_eq!(postcard::from_bytes::<Series>(&bytes).unwrap(), series);
        }
        for broken in ["\"A\"", "\"A!\"", "7"] {
            assert!(serde_json::from_str::<Series>(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn the_oldest_goes_first_and_a_range_is_counted_from_the_newest() {
        let mut series = Series::default();
        for value in [9.0, 1.0, 5.0, 2.0, 3.0] {
            series.push(value, 4);
        }
        assert_eq!(series.len(), 4);
        assert!((series.greatest(0, 3).unwrap() - 5.0).abs() < 0.02, "9 is gone");
        assert!((series.greatest(0, 1).unwrap() - 3.0).abs() < 0.01);
        assert!((series.greatest(2, 2).unwrap() - 5.0).abs() < 0.02);
        assert_eq!(series.greatest(0, 4), None, "the past that is not known is not zero");
        assert_eq!(series.back(4), None);
    }
}
