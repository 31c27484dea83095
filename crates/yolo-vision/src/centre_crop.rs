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
/// What a sum of weighted levels starts at, so that it rounds to nearest.
const HALF: i32 = 1 << (WEIGHT_BITS - 1);

/// Resizes `picture` so that its short side fits `target`, cuts the centre out and writes it to `output`,
/// `[3, H, W]` u8 RGB. A target that is not square takes the whole picture, distorted.
///
/// Source: torchvision's `Resize` and `CenterCrop` on Pillow 13's antialiased `BILINEAR`, in its fixed point and its order
/// of the axes. Only what is cut out is computed.
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
    let across = Taps::new(source.width(), resized.0, centre(resized.0, target.width()));
    let down = Taps::new(source.height(), resized.1, centre(resized.1, target.height()));
    let rows = picture.rgb().chunks_exact(3 * source.width()).skip(down.first).take(down.len);
    let lines: Vec<&[u8]> = rows.map(|row| row.get(across.bytes()).unwrap_or_default()).collect();
    let pixels = if vertical_first(source, resized) {
        let flat = along_y(&lines, &down);
        along_x(flat.chunks_exact(3 * across.len), &across)
    } else {
        let narrow = along_x(lines.into_iter(), &across);
        along_y(&narrow.chunks_exact(3 * target.width()).collect::<Vec<_>>(), &down)
    };
    for (channel, plane) in output.chunks_exact_mut(target.width() * target.height()).enumerate() {
        plane.iter_mut().zip(pixels.iter().skip(channel).step_by(3)).for_each(|(pixel, &level)| *pixel = level);
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

/// Whether the picture is resized along y before it is resized along x: the order decides how the levels between are
/// rounded.
///
/// Source: what Pillow 13.0 does with 1 500 random shapes: so it is where the height loses more than twice the pixels
/// that the width loses.
const fn vertical_first(source: Size, resized: (usize, usize)) -> bool {
    source.height().saturating_sub(resized.1) > 2 * source.width().saturating_sub(resized.0)
}

/// How an axis is resized.
struct Taps {
    /// The first source pixel that is used, and how many are.
    first: usize,
    len: usize,
    /// Of each resized pixel, the first neighbour, counted from `first`, and the neighbours' weights in 1/2^22.
    places: Vec<(usize, Vec<i32>)>,
}

impl Taps {
    /// Of the resized pixels `positions`, from `source` pixels to `resized`; of an axis that keeps its size, the pixel.
    fn new(source: usize, resized: usize, positions: Range<usize>) -> Self {
        let scale = source as f64 / resized as f64;
        // Enlarging looks at two neighbours, shrinking at all pixels under the resized one's triangle.
        let support = scale.max(1.0);
        let tap = |position: usize| {
            if source == resized {
                return (position, vec![1 << WEIGHT_BITS]);
            }
            let centre = (position as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(source);
            let weight = |index: usize| (1.0 - ((index as f64 - centre + 0.5) * (1.0 / support)).abs()).max(0.0);
            let sum: f64 = (first..end).map(weight).sum();
            let quantised = |index: usize| (weight(index) / sum * f64::from(1 << WEIGHT_BITS) + 0.5) as i32;
            (first, (first..end).map(quantised).collect())
        };
        let mut places: Vec<(usize, Vec<i32>)> = positions.map(tap).collect();
        let first = places.iter().map(|(first, _)| *first).min().unwrap_or_default();
        let end = places.iter().map(|(first, weights)| first + weights.len()).max().unwrap_or_default();
        for (start, _) in &mut places {
            *start -= first;
        }
        Self { first, len: end - first, places }
    }

    /// Bytes of the used pixels in a row.
    const fn bytes(&self) -> Range<usize> {
        3 * self.first..3 * (self.first + self.len)
    }
}

/// Resizes every line of interleaved pixels along x.
fn along_x<'a>(lines: impl ExactSizeIterator<Item = &'a [u8]>, across: &Taps) -> Vec<u8> {
    let mut resized = Vec::with_capacity(3 * lines.len() * across.places.len());
    for line in lines {
        for (first, weights) in &across.places {
            let mut sums = [HALF; 3];
            let pixels = line.as_chunks::<3>().0.iter().skip(*first);
            for (pixel, &weight) in pixels.zip(weights) {
                sums.iter_mut().zip(pixel).for_each(|(sum, &level)| *sum += weight * i32::from(level));
            }
            resized.extend(sums.map(level));
        }
    }
    resized
}

/// Resizes lines of interleaved pixels along y.
fn along_y(lines: &[&[u8]], down: &Taps) -> Vec<u8> {
    let bytes = lines.first().map_or(0, |line| line.len());
    let mut resized = Vec::with_capacity(bytes * down.places.len());
    let mut sums = vec![0; bytes];
    for (first, weights) in &down.places {
        sums.fill(HALF);
        for (line, &weight) in lines.iter().skip(*first).zip(weights) {
            sums.iter_mut().zip(*line).for_each(|(sum, &level)| *sum += weight * i32::from(level));
        }
        resized.extend(sums.iter().map(|&sum| level(sum)));
    }
    resized
}

fn level(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}
