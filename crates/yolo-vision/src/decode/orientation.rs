//! EXIF orientation: which way a camera was held.

use exif::{In, Reader, Tag};

use super::{DecodeError, DecodeLimits};
use crate::picture::{Picture, Size};

/// Source rows that are turned together: their cache lines and those of the target stay in the first-level cache.
const TILE_ROWS: usize = 16;

/// Longest EXIF block that is read: what a JPEG segment holds. Text of many megabytes in a PNG would become a list of as
/// many strings.
const EXIF_BYTES_MAX: usize = 1 << 16;

/// The first orientation in which rows and columns change places.
const TRANSPOSED: u32 = 5;

/// Turns and mirrors a picture as its EXIF block says. The decoder's memory is taken to be given back.
///
/// `orientation`: as [`read`] gives it.
///
/// # Errors
/// [`DecodeError::TooMuchMemory`]
pub(super) fn apply(picture: Picture, orientation: Option<u32>, limits: &DecodeLimits) -> Result<Picture, DecodeError> {
    let Some(orientation @ 2..=8) = orientation else { return Ok(picture) };
    if orientation >= TRANSPOSED && picture.memory_bytes() + picture.rgb().len() / 2 > limits.memory_bytes_max {
        return Err(DecodeError::TooMuchMemory { size: picture.size(), limit_bytes: limits.memory_bytes_max });
    }
    Ok(turned(picture, orientation))
}

/// What an EXIF block says of it; nothing if the block is damaged.
///
/// `block`: a TIFF structure, with or without the prefix `Exif\0\0`.
pub(super) fn read(block: &[u8]) -> Option<u32> {
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
    let mut picture = if orientation >= TRANSPOSED { transposed(picture) } else { picture };
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

/// Rows become columns; one half of them after the other, so that it takes half a picture's memory and not a whole one's.
fn transposed(mut picture: Picture) -> Picture {
    let size = picture.size();
    let (width, height) = (size.width(), size.height());
    let (above, below) = (height.div_ceil(2), height / 2);
    let (upper, lower) = picture.pixels_mut().split_at_mut(above * width);
    let mut left = vec![[0; 3]; upper.len()];
    transpose(upper, width, &mut left);
    // The upper half's place is free now.
    transpose(lower, width, upper);
    let pixels = picture.pixels_mut();
    pixels.copy_within(..below * width, above * width);
    // A new row is written no further than where the right part of the next one is read.
    for (row, left) in left.chunks_exact(above).enumerate() {
        let right = above * width + row * below;
        pixels.copy_within(right..right + below, row * height + above);
        let places = pixels.iter_mut().skip(row * height);
        places.zip(left).for_each(|(place, pixel)| *place = *pixel);
    }
    picture.reshaped(Size::new(size.height_px, size.width_px))
}

/// Writes rows of `width` pixels as columns to the start of `turned`.
fn transpose(rows: &[[u8; 3]], width: usize, turned: &mut [[u8; 3]]) {
    let height = rows.len() / width;
    if height == 0 {
        return;
    }
    for (tile, rows) in rows.chunks(TILE_ROWS * width).enumerate() {
        for (x, column) in turned.chunks_exact_mut(height).enumerate().take(width) {
            let places = column.iter_mut().skip(tile * TILE_ROWS);
            for (place, pixel) in places.zip(rows.iter().skip(x).step_by(width)) {
                *place = *pixel;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns_whatever_the_sides() {
        for (width, height) in [(1, 1), (1, 2), (2, 1), (1, 7), (7, 1), (3, 5), (16, 33), (50, 34), (35, 200)] {
            let pixel = |x: u32, y: u32| [x, y, x ^ y].map(|value| u8::try_from(value).unwrap());
            let pixels = |columns: u32, rows: u32, of: fn(u32, u32) -> (u32, u32)| {
                let places = (0..rows).flat_map(|y| (0..columns).map(move |x| of(x, y)));
                places.flat_map(|(x, y)| pixel(x, y)).collect::<Vec<u8>>()
            };
            let upright = Picture::from_rgb(Size::new(width, height), pixels(width, height, |x, y| (x, y))).unwrap();
            let turned = Picture::from_rgb(Size::new(height, width), pixels(height, width, |x, y| (y, x))).unwrap();
            assert!(transposed(upright.clone()) == turned, "{width} x {height}");
            assert!(transposed(turned) == upright, "and back");
        }
    }
}
