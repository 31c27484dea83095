//! Resize and pad a picture to the model's input, bit-exact to OpenCV.
#![expect(
    clippy::indexing_slicing,
    reason = "taps are clamped to the source's last pixel and every buffer is sized from the same plan"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "the casts round values that are bounded by the picture's or the target's side"
)]

use crate::picture::{Picture, Size};
use crate::projection::Axis;

/// Grey of the padding, as the models were trained with.
const PADDING: u8 = 114;
/// OpenCV's `INTER_RESIZE_COEF_SCALE`: weights are integers in 1/2048.
const WEIGHT_ONE: f32 = 2048.0;

/// Why a letterbox cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LetterboxError {
    /// A side of the picture or of the target is 0.
    #[error("cannot letterbox {source_size} to {target}: a side is 0")]
    Empty {
        /// The picture's size.
        source_size: Size,
        /// The model's input size.
        target: Size,
    },
    /// The picture or the output buffer is not of the planned size.
    #[error("the letterbox was planned for another picture or buffer")]
    Mismatch,
}

/// Geometry of one letterbox: where a picture of `source` lies inside the model's input, and the way back.
///
/// Source: Ultralytics' `LetterBox(auto=False, scaleup=True, center=True)` and `scale_boxes`, in f64, rounding half to even.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Letterbox {
    source: Size,
    target: Size,
    resized: Size,
    left_px: u32,
    top_px: u32,
}

impl Letterbox {
    /// Plans how a picture of size `source` is put into a model's input of size `target`; it may be enlarged.
    ///
    /// # Errors
    /// [`LetterboxError::Empty`] if a side is 0.
    pub fn plan(source: Size, target: Size) -> Result<Self, LetterboxError> {
        if source.is_empty() || target.is_empty() {
            return Err(LetterboxError::Empty { source_size: source, target });
        }
        let ratio = (f64::from(target.height_px) / f64::from(source.height_px))
            .min(f64::from(target.width_px) / f64::from(source.width_px));
        let scaled = |side_px: u32| (f64::from(side_px) * ratio).round_ties_even().max(1.0) as u32;
        let resized = Size::new(scaled(source.width_px), scaled(source.height_px));
        // An odd remainder gives its extra pixel to the right and the bottom.
        let before = |whole_px: u32, part_px: u32| {
            (f64::from(whole_px.saturating_sub(part_px)) / 2.0 - 0.1).round_ties_even() as u32
        };
        Ok(Self {
            source,
            target,
            resized,
            left_px: before(target.width_px, resized.width_px),
            top_px: before(target.height_px, resized.height_px),
        })
    }

    /// Size of the picture that goes in.
    pub const fn source(&self) -> Size {
        self.source
    }

    /// Size of the model's input.
    pub const fn target(&self) -> Size {
        self.target
    }

    /// Number of bytes of the letterboxed picture: 3 * H * W.
    pub const fn output_len(&self) -> usize {
        3 * self.target.width() * self.target.height()
    }

    /// Both axes, x first, for the way back.
    pub(crate) fn axes(&self) -> [Axis; 2] {
        let axis = |pad_px: u32, resized_px: u32, source_px: u32| Axis {
            gain: (f64::from(resized_px) / f64::from(source_px)) as f32,
            pad_px: pad_px as f32,
            source_px: source_px as f32,
        };
        [
            axis(self.left_px, self.resized.width_px, self.source.width_px),
            axis(self.top_px, self.resized.height_px, self.source.height_px),
        ]
    }
}

/// Resizes and pads `picture` into `output`, `[3, H, W]` u8 RGB, padding 114.
///
/// Bit-exact to OpenCV's `resize(INTER_LINEAR)` of u8 (fixed point, weights in 1/2048), one pass from interleaved to
/// planar rows. Every byte of `output` is written.
///
/// # Errors
/// [`LetterboxError::Mismatch`] if the picture's size or the length of `output` is not the planned one.
pub fn letterbox_into(picture: &Picture, plan: &Letterbox, output: &mut [u8]) -> Result<(), LetterboxError> {
    if picture.size() != plan.source || output.len() != plan.output_len() {
        return Err(LetterboxError::Mismatch);
    }
    output.fill(PADDING);
    let columns = column_taps(plan);
    let rows = row_taps(plan);
    let width = plan.resized.width();
    let mut upper = BlendedRow::new(width);
    let mut lower = BlendedRow::new(width);
    for (y, tap) in rows.iter().enumerate() {
        // Going down, the lower row of before is mostly the upper row of now.
        if !upper.holds(tap.first) && lower.holds(tap.first) {
            std::mem::swap(&mut upper, &mut lower);
        }
        upper.load(picture, tap.first, &columns);
        lower.load(picture, tap.second, &columns);
        let start = (plan.top_px as usize + y) * plan.target.width() + plan.left_px as usize;
        for (channel, plane) in output.chunks_exact_mut(plan.target.width() * plan.target.height()).enumerate() {
            let span = channel * width..(channel + 1) * width;
            blend_rows(&upper.values[span.clone()], &lower.values[span], tap, &mut plane[start..start + width]);
        }
    }
    Ok(())
}

/// Two neighbours along an axis and their weights in 1/2048.
struct Tap {
    first: usize,
    second: usize,
    first_weight: i16,
    second_weight: i16,
}

/// Index below and fraction of the sample for `position`, in OpenCV's precision: f64 until the last step, then f32.
fn sample(position: u32, source_px: u32, resized_px: u32) -> (i64, f32) {
    let scale = f64::from(source_px) / f64::from(resized_px);
    let centre = ((f64::from(position) + 0.5) * scale - 0.5) as f32;
    let below = centre.floor();
    (below as i64, centre - below)
}

fn weights(fraction: f32) -> (i16, i16) {
    let quantised = |weight: f32| (weight * WEIGHT_ONE).round_ties_even() as i16;
    (quantised(1.0 - fraction), quantised(fraction))
}

/// Horizontal taps as byte offsets of the pixels in a row. At the borders OpenCV zeroes the fraction.
fn column_taps(plan: &Letterbox) -> Vec<Tap> {
    let last = i64::from(plan.source.width_px) - 1;
    (0..plan.resized.width_px)
        .map(|x| {
            let (below, fraction) = sample(x, plan.source.width_px, plan.resized.width_px);
            let fraction = if below < 0 || below >= last { 0.0 } else { fraction };
            let (first_weight, second_weight) = weights(fraction);
            let offset = |index: i64| 3 * index.clamp(0, last) as usize;
            let first = offset(below);
            Tap { first, second: offset(below.max(0) + 1), first_weight, second_weight }
        })
        .collect()
}

/// Vertical taps as row numbers. At the borders OpenCV keeps the fraction and repeats the row.
fn row_taps(plan: &Letterbox) -> Vec<Tap> {
    let last = i64::from(plan.source.height_px) - 1;
    (0..plan.resized.height_px)
        .map(|y| {
            let (below, fraction) = sample(y, plan.source.height_px, plan.resized.height_px);
            let (first_weight, second_weight) = weights(fraction);
            let row = |index: i64| index.clamp(0, last) as usize;
            Tap { first: row(below), second: row(below + 1), first_weight, second_weight }
        })
        .collect()
}

/// One source row resized along x: `[3, width]`, planar, in 1/128 of a level: at most 255 * 128, which fits i16.
struct BlendedRow {
    source_y: Option<usize>,
    values: Vec<i16>,
}

impl BlendedRow {
    fn new(width: usize) -> Self {
        Self { source_y: None, values: vec![0; 3 * width] }
    }

    fn holds(&self, source_y: usize) -> bool {
        self.source_y == Some(source_y)
    }

    /// Fills the row from `source_y`, unless it holds it already.
    fn load(&mut self, picture: &Picture, source_y: usize, columns: &[Tap]) {
        if self.holds(source_y) {
            return;
        }
        let stride = 3 * picture.size().width();
        let row = &picture.rgb()[source_y * stride..(source_y + 1) * stride];
        let (red, rest) = self.values.split_at_mut(columns.len());
        let (green, blue) = rest.split_at_mut(columns.len());
        for (((tap, red), green), blue) in columns.iter().zip(red).zip(green).zip(blue) {
            let first = &row[tap.first..tap.first + 3];
            let second = &row[tap.second..tap.second + 3];
            let mix = |channel: usize| {
                let (a, b) = (i32::from(first[channel]), i32::from(second[channel]));
                ((a * i32::from(tap.first_weight) + b * i32::from(tap.second_weight)) >> 4) as i16
            };
            *red = mix(0);
            *green = mix(1);
            *blue = mix(2);
        }
        self.source_y = Some(source_y);
    }
}

/// One output row of one channel. No branch, no index, and the product's high half alone: it vectorises as `pmulhw`.
fn blend_rows(upper: &[i16], lower: &[i16], tap: &Tap, output: &mut [u8]) {
    let high = |weight: i16, value: i16| ((i32::from(weight) * i32::from(value)) >> 16) as i16;
    for ((pixel, &upper), &lower) in output.iter_mut().zip(upper).zip(lower) {
        let sum = high(tap.first_weight, upper) + high(tap.second_weight, lower);
        *pixel = ((sum + 2) >> 2) as u8;
    }
}
