//! WebP by the crate `image-webp`.

use std::io::Cursor;

use image_webp::{DecodingError, WebPDecoder};

use super::{DecodeError, DecodeLimits, drop_alpha, orientation};
use crate::picture::{Picture, Size};

const FORMAT: &str = "WebP";

pub(super) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Picture, DecodeError> {
    // The decoder fills the rest of a cut file; libwebp, and so OpenCV, refuses it by the length that RIFF declares.
    if riff_bytes(bytes).is_none_or(|declared| bytes.len() < declared) {
        return Err(DecodeError::Truncated { format: FORMAT });
    }
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(damaged)?;
    decoder.set_memory_limit(limits.memory_bytes_max);
    let (width_px, height_px) = decoder.dimensions();
    let size = Size::new(width_px, height_px);
    // The output and what the decoder keeps beside it: canvas and frame, planes of 4:2:0, or one RGBA copy.
    let bytes_per_pixel = match (decoder.is_animated(), decoder.is_lossy(), decoder.has_alpha()) {
        (true, _, _) => 12,
        (false, true, false) => 5,
        (false, _, _) => 7,
    };
    limits.check(size, bytes_per_pixel)?;
    let mut pixels = vec![0; decoder.output_buffer_size().unwrap_or_default()];
    decoder.read_image(&mut pixels).map_err(damaged)?;
    if decoder.has_alpha() {
        drop_alpha(&mut pixels);
    }
    let picture = Picture::from_rgb(size, pixels).ok_or_else(|| DecodeError::Damaged {
        format: FORMAT,
        detail: "its frame is not of the size in its header".to_owned(),
    })?;
    // Metadata that cannot be read loses the orientation, not the picture.
    let exif = decoder.exif_metadata().ok().flatten();
    Ok(orientation::apply(picture, exif.as_deref()))
}

/// Length of the whole file as its first chunk declares it.
fn riff_bytes(bytes: &[u8]) -> Option<usize> {
    let payload = u32::from_le_bytes(*bytes.get(4..)?.first_chunk()?);
    usize::try_from(payload).ok()?.checked_add(8)
}

fn damaged(error: DecodingError) -> DecodeError {
    match error {
        DecodingError::IoError(cause) if cause.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated { format: FORMAT }
        }
        other => DecodeError::Damaged { format: FORMAT, detail: other.to_string() },
    }
}
