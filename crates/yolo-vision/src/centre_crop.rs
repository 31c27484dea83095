//! Preparation of a picture for classification, bit-exact to Pillow and torchvision.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "the casts round values that are bounded by a side of the picture or of the resized picture"
)]

use std::ops::Range;

use crate::letterbox::LetterboxError;
use crate::picture::{Picture, Size};

/// Pillow's `PRECISION_BITS`: weights are integers in 1/2^22, so that 255 times their sum fits i32.
const WEIGHT_BITS: u32 = 22;

/// Resizes `picture` so that its short side fits `target`, cuts the centre out and writes it to `output`,
/// `[3, H, W]` u8 RGB. A target that is not square takes the whole picture, distorted.
///
/// Source: torchvision's `Resize` and `CenterCrop` on Pillow's antialiased `BILINEAR`, in its fixed point: along x, then
/// along y. (Pillow 13 turns that round for some shapes, which moves a level by one.) Only what is cut out is computed.
///
/// # Errors
/// [`LetterboxError`] if a side of the target is 0, or `output` has another length.
pub fn centre_crop_into(picture: &Picture, target: Size, output: &mut [u8]) -> Result<(), LetterboxError> {
    let source = picture.size();
    if target.is_empty() {
        return Err(LetterboxError::Empty { source_size: source, target });
    }
    if u64::try_from(output.len()).ok() != target.pixels().checked_mul(3) {
        return Err(LetterboxError::Mismatch);
    }
    let resized = resized_size(source, target);
    let across = taps(source.width(), resized.0, centre(resized.0, target.width()));
    let down = taps(source.height(), resized.1, centre(resized.1, target.height()));
    let first = down.iter().map(|tap| tap.first).min().unwrap_or_default();
    let last = down.iter().map(|tap| tap.first + tap.weights.len()).max().unwrap_or_default();
    let narrowed = narrow(picture, first..last, &across);
    let line = 3 * across.len();
    let mut sums = vec![0; line];
    for (y, tap) in down.iter().enumerate() {
        sums.fill(1 << (WEIGHT_BITS - 1)); // rounds to nearest
        let lines = narrowed.chunks_exact(line).skip(tap.first - first);
        for (pixels, &weight) in lines.zip(&tap.weights) {
            sums.iter_mut().zip(pixels).for_each(|(sum, &pixel)| *sum += weight * i32::from(pixel));
        }
        for (channel, plane) in output.chunks_exact_mut(across.len() * down.len()).enumerate() {
            let row = plane.iter_mut().skip(y * across.len()).take(across.len());
            row.zip(sums.iter().skip(channel).step_by(3)).for_each(|(pixel, &sum)| *pixel = level(sum));
        }
    }
    Ok(())
}

/// Width and height before the cut.
fn resized_size(source: Size, target: Size) -> (usize, usize) {
    let (width, height) = (source.width(), source.height());
    if target.width() != target.height() {
        return (target.width(), target.height());
    }
    let side = target.width();
    if width <= height { (side, side * height / width) } else { (side * width / height, side) }
}

/// The middle `part` of `whole`; an odd remainder rounds half to even, as Python's `round`.
fn centre(whole: usize, part: usize) -> Range<usize> {
    let start = (whole.saturating_sub(part) as f64 / 2.0).round_ties_even() as usize;
    start..start + part
}

/// Neighbours along an axis and their weights in 1/2^22.
struct Tap {
    first: usize,
    weights: Vec<i32>,
}

/// Taps of the resized pixels `positions`, from `source` pixels to `resized`; of an axis that keeps its size, the pixel.
fn taps(source: usize, resized: usize, positions: Range<usize>) -> Vec<Tap> {
    if source == resized {
        return positions.map(|first| Tap { first, weights: vec![1 << WEIGHT_BITS] }).collect();
    }
    let scale = source as f64 / resized as f64;
    // Enlarging looks at two neighbours, shrinking at all pixels under the resized one's triangle.
    let support = scale.max(1.0);
    let tap = |position: usize| {
        let centre = (position as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(source);
        let weight = |index: usize| (1.0 - ((index as f64 - centre + 0.5) * (1.0 / support)).abs()).max(0.0);
        let sum: f64 = (first..end).map(weight).sum();
        let quantised = |index: usize| (weight(index) / sum * f64::from(1 << WEIGHT_BITS) + 0.5) as i32;
        Tap { first, weights: (first..end).map(quantised).collect() }
    };
    positions.map(tap).collect()
}

/// Resizes the rows `rows` along x: `[rows, columns, 3]`.
fn narrow(picture: &Picture, rows: Range<usize>, across: &[Tap]) -> Vec<u8> {
    let stride = 3 * picture.size().width();
    let lines = picture.rgb().chunks_exact(stride).skip(rows.start).take(rows.len());
    let mut narrowed = Vec::with_capacity(3 * rows.len() * across.len());
    for line in lines {
        for tap in across {
            let mut sums = [1 << (WEIGHT_BITS - 1); 3];
            let pixels = line.as_chunks::<3>().0.iter().skip(tap.first);
            for (pixel, &weight) in pixels.zip(&tap.weights) {
                sums.iter_mut().zip(pixel).for_each(|(sum, &level)| *sum += weight * i32::from(level));
            }
            narrowed.extend(sums.map(level));
        }
    }
    narrowed
}

fn level(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}
