//! Resizing along x: which bytes of a row make which samples, worked out once a picture.
//!
//! A sample is one channel of one pixel. It takes a pair of bytes, a pixel's and its right neighbour's, which lie three
//! apart. Four samples, a block, belong to two pixels at most, so that one or two loads bring all their bytes.

use fearless_simd::prelude::*;
use fearless_simd::{i16x16, u8x16, u8x32, u64x2};

use crate::letterbox::{Letterbox, Tap};

/// Samples of a block: their pairs, 16 bits each, fill 128 bits.
const BLOCK: usize = 4;
/// Blocks of a step: they fill two 256-bit vectors.
const BLOCKS: usize = 4;
/// Samples of a step.
const STEP: usize = BLOCKS * BLOCK;
/// Bytes of which a block picks its own.
const BLOCK_BYTES: usize = 16;
/// Bytes in which a step's blocks lie, unless a picture is made much smaller: any offset of 8 bits is inside, so that the
/// compiler needs no check of the single blocks.
const WINDOW_BYTES: usize = u8::MAX as usize + BLOCK_BYTES;
/// Bytes past a row's end that are read, and weigh nothing.
pub(super) const SLACK_BYTES: usize = WINDOW_BYTES;

/// How all rows of a picture are resized along x.
pub(super) struct Columns(Vec<Step>);

impl Columns {
    pub(super) fn new(plan: &Letterbox) -> Self {
        let column = |tap: Tap| Column { start: 3 * tap.first as usize, weights: tap.weights };
        let columns: Vec<Column> = plan.columns().map(column).collect();
        Self((0..3 * columns.len()).step_by(STEP).map(|first| Step::new(&columns, first)).collect())
    }

    /// Samples of a resized row and what fills its last step up.
    pub(super) fn samples(&self) -> usize {
        STEP * self.0.len()
    }

    /// Resizes `row`, a source row with its slack: samples in 1/128 of a level.
    #[inline(always)]
    pub(super) fn blend<S: Simd>(&self, simd: S, row: &[u8], samples: &mut [i16]) {
        for (step, samples) in self.0.iter().zip(samples.as_chunks_mut::<STEP>().0) {
            step.sums(simd, step.blocks(simd, row)).store_slice(samples);
        }
    }

    /// As [`Self::blend`] for two rows, which share what is read of each step.
    #[inline(always)]
    pub(super) fn blend_both<S: Simd>(&self, simd: S, rows: [&[u8]; 2], samples: [&mut [i16]; 2]) {
        let [upper, lower] = rows;
        let [above, below] = samples;
        let samples = above.as_chunks_mut::<STEP>().0.iter_mut().zip(below.as_chunks_mut::<STEP>().0);
        for (step, (above, below)) in self.0.iter().zip(samples) {
            let (upper, lower) = step.blocks_of_both(simd, upper, lower);
            step.sums(simd, upper).store_slice(above);
            step.sums(simd, lower).store_slice(below);
        }
    }
}

/// What a pixel of a resized row is made of.
struct Column {
    /// Byte offset in the row of the left neighbour; the right one follows it.
    start: usize,
    /// Weights in 1/2048 of left and right neighbour.
    weights: [i16; 2],
}

/// What [`STEP`] samples are made of.
struct Step {
    places: Places,
    /// Which of its block's bytes each sample takes: left and right neighbour, each twice, since every second is masked away.
    order: [u8; BLOCKS * BLOCK_BYTES],
    /// Weights in 1/2048 of left and right neighbour, alternating.
    weights: [i16; 2 * STEP],
}

/// Where the bytes of a step's blocks are.
enum Places {
    /// Each block's bytes in one piece: where the first one's start in the row, and all from there.
    Near { first: u32, offsets: [u8; BLOCKS] },
    /// Each block's bytes in two halves, one a pixel: where those start in the row.
    Far(Box<[[usize; 2]; BLOCKS]>),
}

impl Step {
    /// `first`: index of its first sample in the row. Past the row's end the last pixel is repeated.
    fn new(columns: &[Column], first: usize) -> Self {
        let column = |index: usize| &columns[(index / 3).min(columns.len() - 1)];
        // The pixels of a block's first and last sample: there is none between them.
        let halves: [[usize; 2]; BLOCKS] = std::array::from_fn(|block| {
            let index = first + BLOCK * block;
            [index, index + BLOCK - 1].map(|index| column(index).start)
        });
        let window = halves[0][0];
        let near = |[left, right]: [usize; 2]| right + 6 <= left + BLOCK_BYTES && left <= window + usize::from(u8::MAX);
        let places = if halves.iter().all(|block| near(*block)) {
            Places::Near { first: window as u32, offsets: halves.map(|[left, _]| (left - window) as u8) }
        } else {
            Places::Far(Box::new(halves))
        };
        let (mut order, mut weights) = ([0; BLOCKS * BLOCK_BYTES], [0; 2 * STEP]);
        let pairs = order.as_chunks_mut::<4>().0.iter_mut().zip(weights.as_chunks_mut().0);
        for (offset, (order, weights)) in pairs.enumerate() {
            let index = first + offset;
            let column = column(index);
            let [left_half, _] = halves[offset / BLOCK];
            let pixel = match places {
                Places::Near { .. } => column.start - left_half,
                Places::Far(_) if column.start == left_half => 0,
                Places::Far(_) => BLOCK_BYTES / 2,
            };
            let left = (pixel + index % 3) as u8;
            *order = [left, left, left + 3, left + 3];
            *weights = column.weights;
        }
        Self { places, order, weights }
    }

    /// The bytes of all blocks.
    #[inline(always)]
    fn blocks<S: Simd>(&self, simd: S, row: &[u8]) -> [u8x32<S>; 2] {
        match &self.places {
            Places::Near { first, offsets } => near(simd, row, *first as usize, offsets),
            Places::Far(halves) => far(simd, row, halves),
        }
    }

    #[inline(always)]
    fn blocks_of_both<S: Simd>(&self, simd: S, upper: &[u8], lower: &[u8]) -> ([u8x32<S>; 2], [u8x32<S>; 2]) {
        match &self.places {
            Places::Near { first, offsets } => {
                (near(simd, upper, *first as usize, offsets), near(simd, lower, *first as usize, offsets))
            }
            Places::Far(halves) => (far(simd, upper, halves), far(simd, lower, halves)),
        }
    }

    /// The samples of `blocks`.
    #[inline(always)]
    fn sums<S: Simd>(&self, simd: S, [low, high]: [u8x32<S>; 2]) -> i16x16<S> {
        let (order, weights) = (self.order.as_chunks().0, self.weights.as_chunks().0);
        let sums = |blocks: u8x32<S>, order: [u8; 32], weights: [i16; 16]| {
            let pairs = blocks.swizzle_dyn_within_blocks(u8x32::simd_from(simd, order)).bitcast::<i16x16<S>>();
            let pairs = pairs & i16x16::splat(simd, 0x00FF);
            pairs.pairwise_dot_product(i16x16::simd_from(simd, weights)) >> 4
        };
        sums(low, order[0], weights[0]).relaxed_narrow(sums(high, order[1], weights[1]))
    }
}

/// Blocks in one piece each.
#[inline(always)]
fn near<S: Simd>(simd: S, row: &[u8], first: usize, offsets: &[u8; BLOCKS]) -> [u8x32<S>; 2] {
    // The row has as many bytes behind it: the alternative is never taken.
    let window = row[first..].first_chunk().unwrap_or(&[0; WINDOW_BYTES]);
    let block = |offset: u8| u8x16::simd_from(simd, array(window, usize::from(offset)));
    let [a, b, c, d] = *offsets;
    [block(a).combine(block(b)), block(c).combine(block(d))]
}

/// Blocks in two halves each.
#[inline(always)]
fn far<S: Simd>(simd: S, row: &[u8], halves: &[[usize; 2]; BLOCKS]) -> [u8x32<S>; 2] {
    let block = |[left, right]: [usize; 2]| {
        let halves = [u64::from_le_bytes(array(row, left)), u64::from_le_bytes(array(row, right))];
        u64x2::simd_from(simd, halves).bitcast::<u8x16<S>>()
    };
    let [a, b, c, d] = *halves;
    [block(a).combine(block(b)), block(c).combine(block(d))]
}

/// The `N` bytes at `start`.
#[inline(always)]
fn array<const N: usize>(bytes: &[u8], start: usize) -> [u8; N] {
    // The slice has the length that is asked for: the alternative is never taken, and not compiled.
    *bytes[start..start + N].first_chunk().unwrap_or(&[0; N])
}
