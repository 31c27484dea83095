//! PNG by the crate `png`.

use std::io::Cursor;

use png::{ColorType, Decoder, DecodingError, Limits, Transformations};

use super::{DecodeError, DecodeLimits, drop_alpha, grey_to_rgb, orientation};
use crate::picture::{Picture, Size};

const FORMAT: &str = "PNG";

pub(super) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Picture, DecodeError> {
    let size = header_size(bytes).ok_or(DecodeError::Truncated { format: FORMAT })?;
    // Grey with alpha beside its RGB is the most; RGBA is cut in place.
    limits.check(size, 5)?;
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: limits.memory_bytes_max });
    // Text and colour profiles are compressed: a few bytes may inflate to gigabytes, and neither changes a pixel.
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(damaged)?;
    let bytes_needed = reader.output_buffer_size().unwrap_or(usize::MAX);
    if bytes_needed > limits.memory_bytes_max {
        return Err(DecodeError::TooMuchMemory { size, limit_bytes: limits.memory_bytes_max });
    }
    let mut pixels = vec![0; bytes_needed];
    let frame = reader.next_frame(&mut pixels).map_err(damaged)?;
    pixels.truncate(frame.buffer_size());
    let rgb = rgb(pixels, frame.color_type);
    let picture = Picture::from_rgb(size, rgb).ok_or_else(|| DecodeError::Damaged {
        format: FORMAT,
        detail: "its first frame is not of the size in its header".to_owned(),
    })?;
    let orientation = reader.info().exif_metadata.as_deref().and_then(orientation::read);
    drop(reader);
    orientation::apply(picture, orientation, limits)
}

/// 8-bit samples of a colour type as RGB.
fn rgb(mut samples: Vec<u8>, colour: ColorType) -> Vec<u8> {
    match colour {
        ColorType::Rgb => samples,
        ColorType::Rgba => {
            drop_alpha(&mut samples);
            samples
        }
        ColorType::Grayscale => grey_to_rgb(samples.iter().copied()),
        ColorType::GrayscaleAlpha => grey_to_rgb(samples.as_chunks().0.iter().map(|&[grey, _]| grey)),
        // `normalize_to_color8` expands palettes.
        ColorType::Indexed => Vec::new(),
    }
}

/// Width and height of the header chunk, which comes first in every PNG.
fn header_size(bytes: &[u8]) -> Option<Size> {
    let (width, rest) = bytes.get(16..)?.split_first_chunk::<4>()?;
    let height = rest.first_chunk::<4>()?;
    Some(Size::new(u32::from_be_bytes(*width), u32::from_be_bytes(*height)))
}

fn damaged(error: DecodingError) -> DecodeError {
    match error {
        DecodingError::IoError(cause) if cause.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated { format: FORMAT }
        }
        other => DecodeError::Damaged { format: FORMAT, detail: other.to_string() },
    }
}
