//! WebP by the crate `image-webp`.

mod tables;

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
    // The output and what the decoder keeps beside it: canvas and frame; planes of 4:2:0, and alpha as RGBA and as bytes;
    // or one RGBA copy.
    let bytes_per_pixel = match (decoder.is_animated(), decoder.is_lossy(), decoder.has_alpha()) {
        (true, _, _) => 12,
        (false, true, true) => 11,
        (false, true, false) => 5,
        (false, false, _) => 7,
    };
    limits.check(size, bytes_per_pixel)?;
    let pixel_bytes = usize::try_from(size.pixels().saturating_mul(bytes_per_pixel)).unwrap_or(usize::MAX);
    let spare_bytes = limits.memory_bytes_max.saturating_sub(pixel_bytes);
    check_streams(bytes.get(12..).unwrap_or_default(), size, spare_bytes)
        .map_err(|fault| fault.into_error(size, limits))?;
    let mut pixels = vec![0; decoder.output_buffer_size().unwrap_or_default()];
    decoder.read_image(&mut pixels).map_err(damaged)?;
    if decoder.has_alpha() {
        drop_alpha(&mut pixels);
    }
    let picture = Picture::from_rgb(size, pixels).ok_or_else(|| Fault::OtherSize.into_error(size, limits))?;
    // Metadata that cannot be read loses the orientation, not the picture.
    let orientation = decoder.exif_metadata().ok().flatten().and_then(|exif| orientation::read(&exif));
    drop(decoder);
    orientation::apply(picture, orientation, limits)
}

/// Why the streams of a file are not given to the decoder.
enum Fault {
    OtherSize,
    TooMuchMemory,
}

impl Fault {
    fn into_error(self, size: Size, limits: &DecodeLimits) -> DecodeError {
        match self {
            Self::OtherSize => {
                DecodeError::Damaged { format: FORMAT, detail: "its frame is not of the size in its header".to_owned() }
            }
            Self::TooMuchMemory => DecodeError::TooMuchMemory { size, limit_bytes: limits.memory_bytes_max },
        }
    }
}

/// Checks the streams that the decoder will read for one frame of `size`: it allocates for the size that a lossy stream
/// claims before it compares it, and for all prefix codes of a lossless one. `spare_bytes` is left for the latter.
fn check_streams(chunks: &[u8], size: Size, mut spare_bytes: usize) -> Result<(), Fault> {
    let mut rest = chunks;
    while let Some((kind, payload, next)) = next_chunk(rest) {
        rest = next;
        let stream = match kind {
            b"VP8 " if payload.get(6..10).and_then(lossy_size) == Some(size) => continue,
            b"VP8 " => return Err(Fault::OtherSize),
            // Five bytes of signature and size.
            b"VP8L" => payload.get(5..).unwrap_or_default(),
            b"ALPH" if payload.first().is_some_and(|flags| flags & 3 == 1) => payload.get(1..).unwrap_or_default(),
            b"ANMF" => {
                let (Some(frame), Some(inner)) = (payload.get(6..12).and_then(frame_size), payload.get(16..)) else {
                    return Err(Fault::OtherSize);
                };
                // Only the first frame is decoded.
                return check_streams(inner, frame, spare_bytes);
            }
            _ => continue,
        };
        let needed = tables::table_bytes(stream, size, spare_bytes);
        spare_bytes = spare_bytes.checked_sub(needed).ok_or(Fault::TooMuchMemory)?;
    }
    Ok(())
}

/// The first chunk's name and content, and what follows it; chunks start at even offsets.
fn next_chunk(bytes: &[u8]) -> Option<(&[u8; 4], &[u8], &[u8])> {
    let (kind, rest) = bytes.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?.min(rest.len());
    let (payload, next) = rest.split_at_checked(length)?;
    Some((kind, payload, next.get(length % 2..).unwrap_or_default()))
}

/// 14 bits of width and height, each with 2 bits of scale.
fn lossy_size(bytes: &[u8]) -> Option<Size> {
    let [width_low, width_high, height_low, height_high] = *bytes.first_chunk()?;
    let side = |low, high| u32::from(u16::from_le_bytes([low, high]) & 0x3FFF);
    Some(Size::new(side(width_low, width_high), side(height_low, height_high)))
}

/// 24 bits each of width and height, less 1.
fn frame_size(bytes: &[u8]) -> Option<Size> {
    let [width_0, width_1, width_2, height_0, height_1, height_2] = *bytes.first_chunk()?;
    let side = |bytes: [u8; 3]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]) + 1;
    Some(Size::new(side([width_0, width_1, width_2]), side([height_0, height_1, height_2])))
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
