//! Masks of segmentation models: coefficients times prototypes, cut out by the box.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "the casts round values that are bounded by a side of the input, the prototypes or the picture"
)]

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::boxes::BoxXyxyPx;
use crate::letterbox::Letterbox;
use crate::picture::Size;
use crate::postprocess::OutputView;

/// A mask of the picture's size as runs of equal pixels, in COCO's order: column by column, the first run is background.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rle {
    /// The picture's size.
    pub size: Size,
    /// Lengths of the runs: background, object, background, and so on. Their sum is the number of pixels.
    pub counts: Vec<u32>,
}

/// Mask prototypes of one image, `[channels, height, width]`: a quarter of the input's size.
pub(crate) struct Prototypes<'a> {
    values: &'a [f32],
    channels: usize,
    height: usize,
    width: usize,
}

/// The part of a mask that lies in its box, in pixels of the model's input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bitmap {
    pub(crate) left: usize,
    pub(crate) top: usize,
    pub(crate) width: usize,
    /// `[height, width]`, row by row.
    pub(crate) pixels: Vec<bool>,
}

impl<'a> Prototypes<'a> {
    /// `None` if the shape is not `[channels, height, width]` with as many values.
    pub(crate) fn new(output: &OutputView<'a>, channels: usize) -> Option<Self> {
        let &[planes, height, width] = output.shape else { return None };
        let len = planes.checked_mul(height)?.checked_mul(width)?;
        let fits = planes == channels && len > 0 && len == output.values.len();
        fits.then_some(Self { values: output.values, channels, height, width })
    }

    /// The mask of one object: `coefficients · prototypes`, enlarged bilinearly to `input`, above 0, inside `bounds`
    /// (pixels of the input). `None` if nothing is left.
    ///
    /// Source: Ultralytics' `process_mask(upsample=True)` with `F.interpolate(bilinear, align_corners=False)`.
    pub(crate) fn mask(&self, coefficients: &[f32], bounds: BoxXyxyPx, input: Size) -> Option<Bitmap> {
        let columns = whole_pixels(bounds.x1, bounds.x2, input.width());
        let rows = whole_pixels(bounds.y1, bounds.y2, input.height());
        let across: Vec<Tap> = columns.clone().map(|x| Tap::new(x, self.width, input.width())).collect();
        let mut upper = Line::default();
        let mut lower = Line::default();
        let mut pixels = Vec::with_capacity(rows.len() * columns.len());
        for y in rows.clone() {
            let down = Tap::new(y, self.height, input.height());
            // Going down, the lower line of before is mostly the upper line of now.
            if upper.row != Some(down.first) && lower.row == Some(down.first) {
                std::mem::swap(&mut upper, &mut lower);
            }
            upper.load(self, coefficients, down.first, &across);
            lower.load(self, coefficients, down.second, &across);
            let above = |(upper, lower): (&f32, &f32)| down.mix(*upper, *lower) > 0.0;
            pixels.extend(upper.values.iter().zip(&lower.values).map(above));
        }
        let bitmap = Bitmap { left: columns.start, top: rows.start, width: columns.len(), pixels };
        bitmap.pixels.contains(&true).then_some(bitmap)
    }

    /// `coefficients · prototypes` along one row of the prototypes, for the columns `range`.
    fn combined(&self, coefficients: &[f32], row: usize, range: Range<usize>) -> Vec<f32> {
        let mut sums = vec![0.0; range.len()];
        let planes = self.values.chunks_exact(self.height * self.width);
        for (plane, &coefficient) in planes.zip(coefficients).take(self.channels) {
            let start = row * self.width;
            let line = plane.get(start + range.start..start + range.end).unwrap_or_default();
            for (sum, &value) in sums.iter_mut().zip(line) {
                *sum += coefficient * value;
            }
        }
        sums
    }
}

/// Pixels `p` with `low <= p < high`, of `side` pixels.
fn whole_pixels(low: f32, high: f32, side: usize) -> Range<usize> {
    // The casts saturate: a box outside of the input gives an empty range.
    let end = (high.ceil() as usize).min(side);
    (low.ceil() as usize).min(end)..end
}

/// Two neighbours along an axis of the prototypes and the second one's weight.
struct Tap {
    first: usize,
    second: usize,
    second_weight: f32,
}

impl Tap {
    fn new(position: usize, source: usize, target: usize) -> Self {
        let scale = source as f32 / target as f32;
        let centre = (scale * (position as f32 + 0.5) - 0.5).max(0.0);
        let first = (centre as usize).min(source - 1);
        Self { first, second: (first + 1).min(source - 1), second_weight: centre - first as f32 }
    }

    fn mix(&self, first: f32, second: f32) -> f32 {
        (1.0 - self.second_weight) * first + self.second_weight * second
    }
}

/// One row of the prototypes, combined and enlarged along x.
#[derive(Default)]
struct Line {
    row: Option<usize>,
    values: Vec<f32>,
}

impl Line {
    /// Fills the line from `row`, unless it holds it already.
    fn load(&mut self, prototypes: &Prototypes<'_>, coefficients: &[f32], row: usize, across: &[Tap]) {
        let (Some(first), Some(last)) = (across.first(), across.last()) else { return };
        if self.row == Some(row) {
            return;
        }
        let combined = prototypes.combined(coefficients, row, first.first..last.second + 1);
        let value = |index: usize| combined.get(index - first.first).copied().unwrap_or_default();
        self.values.clear();
        self.values.extend(across.iter().map(|tap| tap.mix(value(tap.first), value(tap.second))));
        self.row = Some(row);
    }
}

impl Bitmap {
    /// The mask over the whole picture: each of its pixels takes the mask's pixel under its centre.
    pub(crate) fn to_rle(&self, letterbox: &Letterbox) -> Rle {
        let size = letterbox.source();
        let [horizontal, vertical] = letterbox.axes();
        // How many of the picture's rows fall above the mask, and onto each of its rows.
        let height = self.pixels.len() / self.width;
        let (mut above, mut onto) = (0_u32, vec![0_u32; height]);
        for y in 0..size.height_px {
            let row = vertical.under(y);
            match onto.get_mut(row.wrapping_sub(self.top)) {
                Some(count) => *count += 1,
                None if row < self.top => above += 1,
                None => {}
            }
        }
        let below = size.height_px - above - onto.iter().sum::<u32>();
        let mut runs = Runs::default();
        for x in 0..size.width_px {
            let column = horizontal.under(x).wrapping_sub(self.left);
            if column >= self.width {
                runs.push(false, size.height_px);
                continue;
            }
            runs.push(false, above);
            let pixels = self.pixels.iter().skip(column).step_by(self.width);
            pixels.zip(&onto).for_each(|(&pixel, &count)| runs.push(pixel, count));
            runs.push(false, below);
        }
        Rle { size, counts: runs.counts }
    }
}

/// Run lengths that alternate, beginning with background.
#[derive(Default)]
struct Runs {
    counts: Vec<u32>,
}

impl Runs {
    fn push(&mut self, object: bool, length: u32) {
        if length == 0 {
            return;
        }
        // An odd number of runs ends with background.
        let ends_with_object = self.counts.len().is_multiple_of(2);
        match self.counts.last_mut() {
            Some(last) if ends_with_object == object => *last += length,
            None if object => self.counts.extend([0, length]),
            _ => self.counts.push(length),
        }
    }
}
