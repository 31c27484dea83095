//! The pixels of a letterbox, bit-exact to OpenCV's `resize(INTER_LINEAR)` of u8.
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

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use fearless_simd::prelude::*;
use fearless_simd::{Level, dispatch, i16x16, u8x32, u64x4};

use super::Letterbox;
use crate::picture::Picture;

/// Grey of the padding, as the models were trained with.
const PADDING: u8 = 114;
/// OpenCV's `INTER_RESIZE_COEF_SCALE`: weights are integers in 1/2048.
const WEIGHT_ONE: f32 = 2048.0;
/// Output pixels of one step along x: their pairs of samples fill one 256-bit vector.
const LANES: usize = 8;
/// Bytes that are read at a tap: two RGB neighbours and two bytes that are masked away.
const TAP_BYTES: usize = 8;
/// Bytes in which all taps of a group lie, unless a picture is made more than twelve times smaller: any offset of 8 bits
/// is inside, so that the compiler needs no check of the single taps.
const WINDOW_BYTES: usize = u8::MAX as usize + TAP_BYTES;

/// Fills `output` (`[3, H, W]`, as planned for `picture`), the rows of the picture by `threads` threads.
pub(super) fn fill(picture: &Picture, plan: &Letterbox, output: &mut [u8], threads: NonZeroUsize) {
    let width = plan.target.width();
    let rows = plan.resized.height();
    let band_rows = rows.div_ceil(threads.get());
    output.fill(PADDING);
    let start = plan.top_px as usize * width;
    let mut planes = output
        .chunks_exact_mut(width * plan.target.height())
        .map(|plane| plane[start..start + rows * width].chunks_mut(band_rows * width));
    let (Some(red), Some(green), Some(blue)) = (planes.next(), planes.next(), planes.next()) else { return };
    let columns = Columns::new(plan);
    let source = Source { picture, plan, columns: &columns };
    let bands = Mutex::new((0..rows).step_by(band_rows).zip(red.zip(green).zip(blue)));
    let next = || bands.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some((first_row, ((red, green), blue))) = next() {
            let band = Band { first_row, planes: [red, green, blue] };
            dispatch!(Level::new(), simd => source.resize(simd, band));
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
    picture: &'a Picture,
    plan: &'a Letterbox,
    columns: &'a Columns,
}

impl Source<'_> {
    #[inline(always)]
    fn resize<S: Simd>(&self, simd: S, band: Band<'_>) {
        let mut upper = BlendedRow::new(self.columns);
        let mut lower = BlendedRow::new(self.columns);
        let mut spare = Vec::new();
        let left = self.plan.left_px as usize;
        let right = left + self.plan.resized.width();
        let target_width = self.plan.target.width();
        let [red, green, blue] = band.planes.map(|plane| plane.chunks_exact_mut(target_width));
        for (y, ((red, green), blue)) in (band.first_row..).zip(red.zip(green).zip(blue)) {
            let tap = RowTap::new(self.plan, y);
            // Going down, the lower row of before is mostly the upper row of now.
            if upper.source_y != Some(tap.first) && lower.source_y == Some(tap.first) {
                std::mem::swap(&mut upper, &mut lower);
            }
            for (blended, source_y) in [(&mut upper, tap.first), (&mut lower, tap.second)] {
                if blended.source_y != Some(source_y) {
                    blended.source_y = Some(source_y);
                    blended.fill(simd, row_with_slack(self.picture, source_y, &mut spare), self.columns);
                }
            }
            for ((row, upper), lower) in [red, green, blue].into_iter().zip(&upper.planes).zip(&lower.planes) {
                blend_rows(upper, lower, &tap, &mut row[left..right]);
            }
        }
    }
}

/// The bytes of a source row and [`WINDOW_BYTES`] behind it, which weigh nothing; where the picture ends there, by way of `spare`.
fn row_with_slack<'a>(picture: &'a Picture, source_y: usize, spare: &'a mut Vec<u8>) -> &'a [u8] {
    let stride = 3 * picture.size().width();
    let start = source_y * stride;
    if let Some(row) = picture.rgb().get(start..start + stride + WINDOW_BYTES) {
        return row;
    }
    spare.clear();
    spare.extend_from_slice(&picture.rgb()[start..start + stride]);
    spare.resize(stride + WINDOW_BYTES, 0);
    spare
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

/// Horizontal taps, in groups of [`LANES`]; the last group is filled up with taps of no weight.
struct Columns {
    /// Byte offset in the row of the left neighbour; the right one follows it.
    starts: Vec<[usize; LANES]>,
    /// The same from the group's first one; `None` if it is too far.
    offsets: Vec<Option<[u8; LANES]>>,
    /// Weights of left and right neighbour, alternating.
    weights: Vec<[i16; 2 * LANES]>,
}

impl Columns {
    /// At the borders OpenCV zeroes the fraction, so that what follows a row's last pixel weighs nothing.
    fn new(plan: &Letterbox) -> Self {
        let groups = plan.resized.width().div_ceil(LANES);
        let (mut starts, mut all_weights) = (vec![[0; LANES]; groups], vec![[0; 2 * LANES]; groups]);
        let last = i64::from(plan.source.width_px) - 1;
        let places = starts.as_flattened_mut().iter_mut().zip(all_weights.as_flattened_mut().as_chunks_mut().0);
        for (x, (start, pair)) in (0..plan.resized.width_px).zip(places) {
            let (below, fraction) = sample(x, plan.source.width_px, plan.resized.width_px);
            let inside = (0..last).contains(&below);
            *start = 3 * below.clamp(0, last) as usize;
            *pair = weights(if inside { fraction } else { 0.0 });
        }
        // What fills the last group up would lie before its first tap.
        if let Some(group) = starts.last_mut() {
            let first = group[0];
            group.iter_mut().for_each(|start| *start = first.max(*start));
        }
        Self { offsets: starts.iter().map(offsets).collect(), starts, weights: all_weights }
    }
}

fn offsets(starts: &[usize; LANES]) -> Option<[u8; LANES]> {
    let far = starts.iter().any(|start| start - starts[0] > usize::from(u8::MAX));
    (!far).then(|| starts.map(|start| (start - starts[0]) as u8))
}

/// Two neighbouring source rows and their weights in 1/2048.
struct RowTap {
    first: usize,
    second: usize,
    weights: [i16; 2],
}

impl RowTap {
    /// At the borders OpenCV keeps the fraction and repeats the row.
    fn new(plan: &Letterbox, y: usize) -> Self {
        let last = i64::from(plan.source.height_px) - 1;
        let (below, fraction) = sample(y as u32, plan.source.height_px, plan.resized.height_px);
        let row = |index: i64| index.clamp(0, last) as usize;
        Self { first: row(below), second: row(below + 1), weights: weights(fraction) }
    }
}

/// One source row resized along x: three planes in 1/128 of a level, at most 255 * 128, which fits i16.
struct BlendedRow {
    source_y: Option<usize>,
    planes: [Vec<i16>; 3],
}

impl BlendedRow {
    fn new(columns: &Columns) -> Self {
        Self { source_y: None, planes: [0; 3].map(|_: u8| vec![0; LANES * columns.starts.len()]) }
    }

    /// `row`: a source row with its slack.
    #[inline(always)]
    fn fill<S: Simd>(&mut self, simd: S, row: &[u8], columns: &Columns) {
        let [red, green, blue] = self.planes.each_mut().map(|plane| plane.as_chunks_mut::<LANES>().0.iter_mut());
        let places = red.zip(green).zip(blue);
        let taps = columns.starts.iter().zip(&columns.offsets).zip(&columns.weights);
        for (((starts, offsets), weights), ((red, green), blue)) in taps.zip(places) {
            let weights = i16x16::simd_from(simd, *weights);
            let samples = match (offsets, row[starts[0]..].first_chunk::<WINDOW_BYTES>()) {
                (Some(offsets), Some(window)) => Samples::new(simd, window, offsets.map(usize::from)),
                _ => Samples::new(simd, row, *starts),
            };
            samples.blend::<0>(simd, weights, red);
            samples.blend::<1>(simd, weights, green);
            samples.blend::<2>(simd, weights, blue);
        }
    }
}

/// Two neighbouring RGB pixels, the lowest byte first; the two highest bytes are whatever follows.
#[inline(always)]
fn pixel_pair(row: &[u8], start: usize) -> u64 {
    // The slice has the length that the chunk asks for: the alternative is never taken, and not compiled.
    let bytes = row[start..start + TAP_BYTES].first_chunk().unwrap_or(&[0; TAP_BYTES]);
    u64::from_le_bytes(*bytes)
}

/// Eight pixel pairs of which the two highest bytes are 0: pairs 0, 1, 4, 5, and pairs 2, 3, 6, 7.
///
/// In this order the shuffles of [`Samples::blend`], which stay within 128 bits, give the pairs in their order.
struct Samples<S: Simd> {
    outer: u8x32<S>,
    inner: u8x32<S>,
}

impl<S: Simd> Samples<S> {
    #[inline(always)]
    fn new(simd: S, row: &[u8], starts: [usize; LANES]) -> Self {
        let mask = u64x4::splat(simd, 0x0000_FFFF_FFFF_FFFF);
        let pairs = |places: [usize; 4]| {
            let [a, b, c, d] = places;
            let pairs = [starts[a], starts[b], starts[c], starts[d]].map(
                #[inline(always)]
                |start| pixel_pair(row, start),
            );
            (u64x4::simd_from(simd, pairs) & mask).bitcast::<u8x32<S>>()
        };
        Self { outer: pairs([0, 1, 4, 5]), inner: pairs([2, 3, 6, 7]) }
    }

    /// One channel: `(left * weight + right * weight) >> 4` of the eight pairs.
    #[inline(always)]
    fn blend<const CHANNEL: u8>(&self, simd: S, weights: i16x16<S>, output: &mut [i16; LANES]) {
        // Byte 6 is one of the zeroes: a pair of samples becomes two 16-bit numbers.
        let (left, right, zero) = (CHANNEL, CHANNEL + 3, 6);
        let pairs = [left, zero, right, zero, left + 8, zero, right + 8, zero];
        let none = [zero; 8];
        let control = |low: [u8; 8], high: [u8; 8]| {
            let block: [u8; 16] = std::array::from_fn(|i| if i < 8 { low[i] } else { high[i - 8] });
            u8x32::simd_from(simd, std::array::from_fn(|i| block[i % 16]))
        };
        let samples = self.outer.swizzle_dyn_within_blocks(control(pairs, none))
            | self.inner.swizzle_dyn_within_blocks(control(none, pairs));
        let sums = samples.bitcast::<i16x16<S>>().pairwise_dot_product(weights) >> 4;
        let (low, high) = sums.split();
        low.relaxed_narrow(high).store_slice(output);
    }
}

/// One output row of one channel. No branch, no index, and the product's high half alone: it vectorises as `pmulhw`.
#[inline(always)]
fn blend_rows(upper: &[i16], lower: &[i16], tap: &RowTap, output: &mut [u8]) {
    let [first_weight, second_weight] = tap.weights;
    let high = |weight: i16, value: i16| ((i32::from(weight) * i32::from(value)) >> 16) as i16;
    for ((pixel, &upper), &lower) in output.iter_mut().zip(upper).zip(lower) {
        let sum = high(first_weight, upper) + high(second_weight, lower);
        *pixel = ((sum + 2) >> 2) as u8;
    }
}
