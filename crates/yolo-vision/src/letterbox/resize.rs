//! The pixels of a letterbox, bit-exact to OpenCV's `resize(INTER_LINEAR)` of u8.
//!
//! Rows stay interleaved (`r g b r g b …`) until the last step: a resized row's samples are made from the picture's bytes
//! sixteen at a time, two such rows are blended, and what comes out is split into the planes.
//!
//! Bounds: taps are clamped to the source's last row and pixel, and all buffers are sized from one plan. The kernel is
//! compiled once for each SIMD level of the platform and the best one is taken at run time, without `unsafe` of ours.
#![expect(clippy::indexing_slicing, reason = "see the bounds argument in the module doc")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the casts round values that are bounded by the picture's or the target's side"
)]
#![expect(clippy::inline_always, reason = "a function that is not inlined loses the SIMD level of its caller")]

mod columns;

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use fearless_simd::prelude::*;
use fearless_simd::{Level, dispatch};

use super::{Letterbox, Tap};
use crate::picture::Picture;
use columns::{Columns, SLACK_BYTES};

const PADDING: u8 = Letterbox::PADDING;

/// Fills `output` (`[3, H, W]`, as planned for `picture`), the rows of the picture by `threads` threads.
pub(super) fn fill(picture: &Picture, plan: &Letterbox, output: &mut [u8], threads: NonZeroUsize) {
    fill_at(Level::new(), picture, plan, output, threads);
}

/// As [`fill`], at a SIMD level that the processor has.
fn fill_at(level: Level, picture: &Picture, plan: &Letterbox, output: &mut [u8], threads: NonZeroUsize) {
    let width = plan.target.width();
    let rows = plan.resized.height();
    let band_rows = rows.div_ceil(threads.get());
    let start = plan.top_px as usize * width;
    let mut planes = output.chunks_exact_mut(width * plan.target.height()).map(|plane| {
        let (above, rest) = plane.split_at_mut(start);
        let (rows, below) = rest.split_at_mut(rows * width);
        above.fill(PADDING);
        below.fill(PADDING);
        rows.chunks_mut(band_rows * width)
    });
    let (Some(red), Some(green), Some(blue)) = (planes.next(), planes.next(), planes.next()) else { return };
    let columns = Columns::new(plan);
    let source = Source { rows: SourceRows::new(picture), plan, columns: &columns };
    let bands = Mutex::new((0..rows).step_by(band_rows).zip(red.zip(green).zip(blue)));
    let next = || bands.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some((first_row, ((red, green), blue))) = next() {
            let band = Band { first_row, planes: [red, green, blue] };
            dispatch!(level, simd => source.resize(simd, band));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.get() {
            // Where no thread can be started, the caller takes its band too.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
}

/// Consecutive rows of the resized picture in the three planes of the output, each as wide as the target.
struct Band<'a> {
    first_row: usize,
    planes: [&'a mut [u8]; 3],
}

/// Everything that all bands read.
struct Source<'a> {
    rows: SourceRows<'a>,
    plan: &'a Letterbox,
    columns: &'a Columns,
}

impl Source<'_> {
    #[inline(always)]
    fn resize<S: Simd>(&self, simd: S, band: Band<'_>) {
        let mut upper = BlendedRow::new(self.columns);
        let mut lower = BlendedRow::new(self.columns);
        let mut interleaved = vec![0; self.columns.samples()];
        let left = self.plan.left_px as usize;
        let right = left + self.plan.resized.width();
        let target_width = self.plan.target.width();
        let [red, green, blue] = band.planes.map(|plane| plane.chunks_exact_mut(target_width));
        for (y, ((red, green), blue)) in (band.first_row..).zip(red.zip(green).zip(blue)) {
            let tap = self.plan.row(y as u32);
            let [above, below] = [tap.first, tap.second].map(|row| row as usize);
            // Going down, the lower row of before is mostly the upper row of now.
            if upper.source_y != Some(above) && lower.source_y == Some(above) {
                std::mem::swap(&mut upper, &mut lower);
            }
            let stale = [upper.source_y != Some(above), lower.source_y != Some(below)];
            (upper.source_y, lower.source_y) = (Some(above), Some(below));
            let (first, second) = (self.rows.get(above), self.rows.get(below));
            match stale {
                [true, true] => {
                    self.columns.blend_both(simd, [first, second], [&mut upper.samples, &mut lower.samples]);
                }
                [true, false] => self.columns.blend(simd, first, &mut upper.samples),
                [false, true] => self.columns.blend(simd, second, &mut lower.samples),
                [false, false] => {}
            }
            blend_rows(&upper.samples, &lower.samples, &tap, &mut interleaved);
            let rows = [red, green, blue].map(|row| {
                row[..left].fill(PADDING);
                row[right..].fill(PADDING);
                &mut row[left..right]
            });
            split(&interleaved, rows);
        }
    }
}

/// The rows of a picture, each with [`SLACK_BYTES`] behind it that weigh nothing.
struct SourceRows<'a> {
    rgb: &'a [u8],
    stride: usize,
    /// First row that the picture's end leaves without its slack.
    tail_row: usize,
    /// A copy of the rows from there on, with slack.
    tail: Vec<u8>,
}

impl<'a> SourceRows<'a> {
    fn new(picture: &'a Picture) -> Self {
        let (rgb, stride) = (picture.rgb(), 3 * picture.size().width());
        let tail_row = picture.size().height().saturating_sub(1 + SLACK_BYTES.div_ceil(stride));
        let mut tail = rgb[tail_row * stride..].to_vec();
        tail.resize(tail.len() + SLACK_BYTES, 0);
        Self { rgb, stride, tail_row, tail }
    }

    fn get(&self, row: usize) -> &[u8] {
        match row.checked_sub(self.tail_row) {
            Some(row) => &self.tail[row * self.stride..],
            None => &self.rgb[row * self.stride..],
        }
    }
}

/// One source row resized along x: interleaved samples in 1/128 of a level, at most 255 * 128, which fits i16.
struct BlendedRow {
    source_y: Option<usize>,
    samples: Vec<i16>,
}

impl BlendedRow {
    fn new(columns: &Columns) -> Self {
        Self { source_y: None, samples: vec![0; columns.samples()] }
    }
}

/// One output row. No branch, no index, and the product's high half alone: it vectorises as `pmulhw`.
#[inline(always)]
fn blend_rows(upper: &[i16], lower: &[i16], tap: &Tap, output: &mut [u8]) {
    let [first_weight, second_weight] = tap.weights;
    let high = |weight: i16, value: i16| ((i32::from(weight) * i32::from(value)) >> 16) as i16;
    for ((sample, &upper), &lower) in output.iter_mut().zip(upper).zip(lower) {
        let sum = high(first_weight, upper) + high(second_weight, lower);
        *sample = ((sum + 2) >> 2) as u8;
    }
}

/// Interleaved samples into three rows of one channel each; vectorised by the compiler.
#[inline(always)]
fn split(interleaved: &[u8], rows: [&mut [u8]; 3]) {
    let [red, green, blue] = rows;
    let pixels = interleaved.as_chunks::<3>().0;
    for (((pixel, red), green), blue) in pixels.iter().zip(red).zip(green).zip(blue) {
        [*red, *green, *blue] = *pixel;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::Size;

    /// All levels that this processor has; the best one, which `tests/exactness.rs` holds to OpenCV, first.
    fn levels() -> Vec<Level> {
        let best = Level::new();
        #[cfg(target_arch = "x86_64")]
        let levels = [
            best.as_avx512().map(Level::Avx512),
            best.as_avx2().map(Level::Avx2),
            best.as_sse4_2().map(Level::Sse4_2),
            best.as_sse2().map(Level::Sse2),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let levels = [Some(best), Some(Level::baseline())];
        levels.into_iter().flatten().collect()
    }

    #[test]
    fn every_simd_level_gives_the_same_letterbox() {
        let levels = levels();
        println!("levels: {levels:?}");
        for (width, height) in [(1, 1), (1, 300), (150, 200), (333, 777), (640, 640), (1281, 97), (3000, 2), (97, 1281)]
        {
            let size = Size::new(width, height);
            let rough = |index: usize| (index * index * 7 + index * 13 / 3) as u8;
            let picture = Picture::from_rgb(size, (0..3 * size.width() * size.height()).map(rough).collect()).unwrap();
            for target in [Size::new(640, 640), Size::new(640, 384), Size::new(64, 64)] {
                let plan = Letterbox::plan(size, target).unwrap();
                let filled = |level: &Level| {
                    let mut planar = vec![0; plan.output_len()];
                    fill_at(*level, &picture, &plan, &mut planar, NonZeroUsize::MIN);
                    planar
                };
                let best = filled(&levels[0]);
                for level in &levels[1..] {
                    assert!(filled(level) == best, "{size} into {target} at {level:?}");
                }
            }
        }
    }
}
