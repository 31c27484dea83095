//! EXIF orientation: which way a camera was held.
#![expect(clippy::indexing_slicing, reason = "source indices come from a bijection of the picture's own pixels")]

use exif::{In, Reader, Tag};

use crate::picture::{Picture, Size};

/// Turns and mirrors a picture as its EXIF block says; without one, or with a damaged one, it stays as it is.
///
/// `exif`: a TIFF structure, with or without the prefix `Exif\0\0`.
pub(super) fn apply(picture: Picture, exif: Option<&[u8]>) -> Picture {
    match exif.and_then(orientation) {
        Some(value @ 2..=8) => turned(&picture, value).unwrap_or(picture),
        _ => picture,
    }
}

fn orientation(block: &[u8]) -> Option<u32> {
    let tiff = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
    let parsed = Reader::new()
        .continue_on_error(true)
        .read_raw(tiff.to_vec())
        .or_else(|error| error.distill_partial_result(|_| {}))
        .ok()?;
    parsed.get_field(Tag::Orientation, In::PRIMARY)?.value.get_uint(0)
}

/// Orientation 2 mirror x, 3 turn by 180, 4 mirror y, 5 transpose, 6 turn clockwise, 7 transverse, 8 turn anticlockwise.
fn turned(picture: &Picture, orientation: u32) -> Option<Picture> {
    let (width, height) = (picture.size().width(), picture.size().height());
    let swaps = orientation >= 5;
    let size = if swaps { Size::new(picture.size().height_px, picture.size().width_px) } else { picture.size() };
    let (flip_x, flip_y) = match orientation {
        2 | 8 => (true, false),
        3 | 7 => (true, true),
        4 | 6 => (false, true),
        _ => (false, false),
    };
    let mut rgb = Vec::with_capacity(picture.rgb().len());
    for y in 0..size.height() {
        for x in 0..size.width() {
            let (from_x, from_y) = if swaps { (y, x) } else { (x, y) };
            let from_x = if flip_x { width - 1 - from_x } else { from_x };
            let from_y = if flip_y { height - 1 - from_y } else { from_y };
            let start = (from_y * width + from_x) * 3;
            rgb.extend_from_slice(&picture.rgb()[start..start + 3]);
        }
    }
    Picture::from_rgb(size, rgb)
}
