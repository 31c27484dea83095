//! Where a picture lies in the model's input: resized, padded, and the way back.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "the casts round values that are bounded by the picture's or the target's side"
)]

mod resize;
mod tap;

use std::num::NonZeroUsize;

use crate::picture::{Picture, Size};
use crate::projection::Axis;
pub use tap::Tap;

/// Fewest output pixels that are worth a thread of their own: 0.2 ms of work, ten times what it takes to start one.
const PIXELS_PER_THREAD_MIN: usize = 150_000;

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
    /// Grey of the padding, as the models were trained with.
    pub const PADDING: u8 = 114;

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

    /// Size of the resized picture inside the model's input.
    pub const fn resized(&self) -> Size {
        self.resized
    }

    /// Column and row of the model's input where the resized picture begins.
    pub const fn corner_px(&self) -> [u32; 2] {
        [self.left_px, self.top_px]
    }

    /// Number of bytes of the letterboxed picture: 3 * H * W.
    pub const fn output_len(&self) -> usize {
        3 * self.target.width() * self.target.height()
    }

    /// Most threads that make this letterbox faster: two for a page in the usual 640 x 640.
    pub fn threads_max(&self) -> NonZeroUsize {
        let pixels = self.resized.width().saturating_mul(self.resized.height());
        NonZeroUsize::new(pixels / PIXELS_PER_THREAD_MIN).unwrap_or(NonZeroUsize::MIN)
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

/// Resizes and pads `picture` into `output`, `[3, H, W]` u8 RGB, padding 114, on the calling thread.
///
/// Bit-exact to OpenCV's `resize(INTER_LINEAR)` of u8 (fixed point, weights in 1/2048), one pass from interleaved to
/// planar rows. Every byte of `output` is written.
///
/// # Errors
/// [`LetterboxError::Mismatch`] if the picture's size or the length of `output` is not the planned one.
pub fn letterbox_into(picture: &Picture, plan: &Letterbox, output: &mut [u8]) -> Result<(), LetterboxError> {
    letterbox_parallel_into(picture, plan, output, NonZeroUsize::MIN)
}

/// As [`letterbox_into`], by `threads` threads that each fill a band of rows; the caller is one of them.
///
/// The same bytes for any number. More than [`Letterbox::threads_max`] are not started.
///
/// # Errors
/// [`LetterboxError::Mismatch`], as [`letterbox_into`].
pub fn letterbox_parallel_into(
    picture: &Picture,
    plan: &Letterbox,
    output: &mut [u8],
    threads: NonZeroUsize,
) -> Result<(), LetterboxError> {
    if picture.size() != plan.source || output.len() != plan.output_len() {
        return Err(LetterboxError::Mismatch);
    }
    resize::fill(picture, plan, output, threads.min(plan.threads_max()));
    Ok(())
}
