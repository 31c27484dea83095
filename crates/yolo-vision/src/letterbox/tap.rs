//! Which rows and columns of a picture those of the resized one are made of, in OpenCV's integers.

use super::Letterbox;

/// OpenCV's `INTER_RESIZE_COEF_SCALE`: weights are integers in 1/2048.
const WEIGHT_ONE: f32 = 2048.0;

/// Two neighbouring rows or columns of a picture and their weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tap {
    /// Index of the upper or left one.
    pub first: u32,
    /// Index of the other; at a border the same.
    pub second: u32,
    /// Their weights in 1/2048.
    pub weights: [i16; 2],
}

impl Letterbox {
    /// What each column of the resized picture is made of. At the borders OpenCV zeroes the fraction, so that what
    /// follows a row's last pixel weighs nothing.
    pub fn columns(&self) -> impl Iterator<Item = Tap> {
        let last = i64::from(self.source.width_px) - 1;
        let (source_px, resized_px) = (self.source.width_px, self.resized.width_px);
        (0..resized_px).map(move |x| {
            let (below, fraction) = sample(x, source_px, resized_px);
            let inside = (0..last).contains(&below);
            Tap::new(below.clamp(0, last), last, if inside { fraction } else { 0.0 })
        })
    }

    /// What each row of the resized picture is made of.
    pub fn rows(&self) -> impl Iterator<Item = Tap> {
        (0..self.resized.height_px).map(|y| self.row(y))
    }

    /// At the borders OpenCV keeps the fraction and repeats the row.
    pub(super) fn row(&self, y: u32) -> Tap {
        let (below, fraction) = sample(y, self.source.height_px, self.resized.height_px);
        Tap::new(below, i64::from(self.source.height_px) - 1, fraction)
    }
}

impl Tap {
    fn new(below: i64, last: i64, fraction: f32) -> Self {
        let [first, second] = [below, below + 1].map(|index| index.clamp(0, last) as u32);
        Self { first, second, weights: weights(fraction) }
    }
}

/// Index below and fraction of the sample for `position`, in OpenCV's precision: f64 until the last step, then f32.
fn sample(position: u32, source_px: u32, resized_px: u32) -> (i64, f32) {
    let scale = f64::from(source_px) / f64::from(resized_px);
    let centre = ((f64::from(position) + 0.5) * scale - 0.5) as f32;
    let below = centre.floor();
    (below as i64, centre - below)
}

/// Weights in 1/2048 of the two neighbours.
fn weights(fraction: f32) -> [i16; 2] {
    [1.0 - fraction, fraction].map(|weight| (weight * WEIGHT_ONE).round_ties_even() as i16)
}
