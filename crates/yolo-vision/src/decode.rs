//! Encoded bytes to pixels: what `cv2.imdecode(IMREAD_COLOR)` gives, as RGB.
//!
//! The format is told by the magic bytes, never by a header or a file name. Sizes are checked against the limits from
//! the picture's header, before a decoder allocates or works: a JPEG of 137 kB may claim 16000 x 16000.

mod jpeg;
mod orientation;
mod png;
mod webp;

use crate::picture::{Picture, Size};

/// What a picture may cost. Every decoder is held to it before it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Largest number of pixels.
    pub pixels_max: u64,
    /// Longest side, in pixels.
    pub side_px_max: u32,
    /// Most memory that one picture may take, in bytes, the output included: the decoder's, and after it that of turning
    /// the picture as its EXIF block says.
    pub memory_bytes_max: usize,
    /// Most scans of a progressive JPEG: each costs a pass over the whole picture.
    pub jpeg_scans_max: usize,
}

impl Default for DecodeLimits {
    /// 50 megapixels, 16 384 a side, 256 MiB, 100 scans.
    fn default() -> Self {
        Self { pixels_max: 50_000_000, side_px_max: 16_384, memory_bytes_max: 256 << 20, jpeg_scans_max: 100 }
    }
}

impl DecodeLimits {
    /// Checks the size that a header claims, and the bytes a decoder would need for it.
    fn check(&self, size: Size, bytes_per_pixel: u64) -> Result<(), DecodeError> {
        if size.is_empty() {
            return Err(DecodeError::Empty { size });
        }
        let side_px = size.width_px.max(size.height_px);
        if side_px > self.side_px_max || size.pixels() > self.pixels_max {
            return Err(DecodeError::TooLarge { size, limits: *self });
        }
        match usize::try_from(size.pixels().saturating_mul(bytes_per_pixel)) {
            Ok(bytes) if bytes <= self.memory_bytes_max => Ok(()),
            _ => Err(DecodeError::TooMuchMemory { size, limit_bytes: self.memory_bytes_max }),
        }
    }
}

/// Why a picture was refused.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The magic bytes are of no format that we decode.
    #[error("the body is not a JPEG, PNG or WebP picture (told by its first bytes)")]
    Unsupported,
    /// The file ends before the picture does.
    #[error("the {format} picture is truncated: send the whole file")]
    Truncated {
        /// Format by magic.
        format: &'static str,
    },
    /// The decoder gave up.
    #[error("the {format} picture cannot be decoded: {detail}")]
    Damaged {
        /// Format by magic.
        format: &'static str,
        /// The decoder's words.
        detail: String,
    },
    /// A side is 0.
    #[error("the picture is empty ({size} pixels)")]
    Empty {
        /// As the header says.
        size: Size,
    },
    /// More pixels, or a longer side, than allowed.
    #[error(
        "the picture is too large ({size} pixels): at most {} pixels in all and {} a side",
        .limits.pixels_max, .limits.side_px_max
    )]
    TooLarge {
        /// As the header says.
        size: Size,
        /// What is allowed.
        limits: DecodeLimits,
    },
    /// Decoding would take more memory than allowed.
    #[error("decoding the picture ({size} pixels) would take more than {limit_bytes} bytes")]
    TooMuchMemory {
        /// As the header says.
        size: Size,
        /// What is allowed.
        limit_bytes: usize,
    },
}

impl DecodeError {
    /// Closed set, the `code` of the HTTP error: `unsupported_image`, `bad_image`, `image_too_large`, `image_empty`.
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Unsupported => "unsupported_image",
            Self::Truncated { .. } | Self::Damaged { .. } => "bad_image",
            Self::Empty { .. } => "image_empty",
            Self::TooLarge { .. } | Self::TooMuchMemory { .. } => "image_too_large",
        }
    }
}

/// Decodes a JPEG, PNG or WebP file to RGB, with its EXIF orientation applied.
///
/// Equal to OpenCV's `imdecode(IMREAD_COLOR)` for PNG and lossless WebP; JPEG within 4 levels (another inverse DCT),
/// and with the feature `turbojpeg` equal.
/// Alpha is dropped, not blended; palettes are expanded; 16-bit samples keep their high byte; of an animation the first
/// frame is taken.
///
/// # Errors
/// [`DecodeError`]; its [`category`](DecodeError::category) is the code of the HTTP answer.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Picture, DecodeError> {
    match bytes {
        [0xFF, 0xD8, 0xFF, ..] => jpeg::decode(bytes, limits),
        [0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A, ..] => png::decode(bytes, limits),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => webp::decode(bytes, limits),
        _ => Err(DecodeError::Unsupported),
    }
}

/// Cuts the fourth channel off `[pixels, 4]` in place.
fn drop_alpha(rgba: &mut Vec<u8>) {
    let pixels = rgba.len() / 4;
    for pixel in 1..pixels {
        // One 4-byte move: its last byte is overwritten by the next pixel, or cut off.
        rgba.copy_within(4 * pixel..4 * pixel + 4, 3 * pixel);
    }
    rgba.truncate(3 * pixels);
}

/// Grey samples to three equal channels.
fn grey_to_rgb(samples: impl ExactSizeIterator<Item = u8>) -> Vec<u8> {
    let mut rgb = vec![0; 3 * samples.len()];
    for (pixel, grey) in rgb.as_chunks_mut().0.iter_mut().zip(samples) {
        *pixel = [grey; 3];
    }
    rgb
}
