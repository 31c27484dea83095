//! EXIF orientation: which way a camera was held.

use exif::{In, Reader, Tag};

use crate::picture::{Picture, Size};

/// Source rows that are turned together: their cache lines and those of the target stay in the first-level cache.
const TILE_ROWS: usize = 16;

/// Longest EXIF block that is read: what a JPEG segment holds. Text of many megabytes in a PNG would become a list of as
/// many strings.
const EXIF_BYTES_MAX: usize = 1 << 16;

/// Turns and mirrors a picture as its EXIF block says; without one, or with a damaged one, it stays as it is.
///
/// `exif`: a TIFF structure, with or without the prefix `Exif\0\0`.
pub(super) fn apply(picture: Picture, exif: Option<&[u8]>) -> Picture {
    match exif.and_then(orientation) {
        Some(value @ 2..=8) => turned(picture, value),
        _ => picture,
    }
}

fn orientation(block: &[u8]) -> Option<u32> {
    let tiff = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
    if tiff.len() > EXIF_BYTES_MAX {
        return None;
    }
    let parsed = Reader::new()
        .continue_on_error(true)
        .read_raw(tiff.to_vec())
        .or_else(|error| error.distill_partial_result(|_| {}))
        .ok()?;
    parsed.get_field(Tag::Orientation, In::PRIMARY)?.value.get_uint(0)
}

/// Orientation 2 mirror x, 3 turn by 180, 4 mirror y, 5 transpose, 6 turn clockwise, 7 transverse, 8 turn anticlockwise:
/// 5 to 8 are a transposition and then nothing, or what 2 to 4 are.
fn turned(picture: Picture, orientation: u32) -> Picture {
    let mut picture = if orientation >= 5 { transposed(&picture) } else { picture };
    let (width, height) = (picture.size().width(), picture.size().height());
    let pixels = picture.pixels_mut();
    match orientation {
        2 | 6 => pixels.chunks_exact_mut(width).for_each(<[_]>::reverse),
        3 | 7 => pixels.reverse(),
        4 | 8 => {
            let (above, below) = pixels.split_at_mut(height / 2 * width);
            let opposite = below.chunks_exact_mut(width).rev();
            above.chunks_exact_mut(width).zip(opposite).for_each(|(row, other)| row.swap_with_slice(other));
        }
        _ => {}
    }
    picture
}

/// Rows become columns.
fn transposed(picture: &Picture) -> Picture {
    let size = picture.size();
    let (width, height) = (size.width(), size.height());
    let mut turned = Picture::black(Size::new(size.height_px, size.width_px));
    for (tile, rows) in picture.pixels().chunks(TILE_ROWS * width).enumerate() {
        for (x, column) in turned.pixels_mut().chunks_exact_mut(height).enumerate() {
            let places = column.iter_mut().skip(tile * TILE_ROWS);
            for (place, pixel) in places.zip(rows.iter().skip(x).step_by(width)) {
                *place = *pixel;
            }
        }
    }
    turned
}
