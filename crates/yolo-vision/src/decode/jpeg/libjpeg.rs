//! JPEG pixels by libjpeg-turbo: OpenCV's own decoder, with the same inverse DCT (accurate, integer) and upsampling (fancy).
//!
//! It decodes only what `zune-jpeg` and the marker walk have let through; memory is as estimated there: libjpeg, too,
//! keeps 16-bit coefficients of all components iff a file is progressive or no scan holds them all.

use turbojpeg::{Decompressor, Error, Image, PixelFormat};

use super::cmyk_to_rgb;
use crate::decode::DecodeLimits;
use crate::picture::Size;

/// How the texts of libjpeg's warnings of damaged data start, and no error's: OpenCV keeps the picture.
const WARNING: &str = "Corrupt JPEG data: ";

/// `[height, width, 3]` u8 RGB; `None` if libjpeg refuses the file, warns of its headers, or reads another size from
/// them: then the other decoder's word stands.
///
/// `components`: 4 is CMYK or YCCK.
pub(super) fn rgb(bytes: &[u8], size: Size, components: u8, limits: &DecodeLimits) -> Option<Vec<u8>> {
    let mut decompressor = Decompressor::new().ok()?;
    // Between restart markers libjpeg looks for the next scan where the marker walk skips a segment.
    decompressor.set_scan_limit(u32::try_from(limits.jpeg_scans_max).ok()?).ok()?;
    let header = decompressor.read_header(bytes).ok()?;
    let (width, height) = (size.width(), size.height());
    if (header.width, header.height) != (width, height) {
        return None;
    }
    let format = if components == 4 { PixelFormat::CMYK } else { PixelFormat::RGB };
    let pitch = width * format.size();
    let mut pixels = vec![0; pitch * height];
    match decompressor.decompress(bytes, Image { pixels: &mut pixels[..], width, pitch, height, format }) {
        Ok(()) => {}
        // The header has been read without a warning, so that the warning is of data, and every row is written.
        Err(Error::TurboJpegError(message)) if message.starts_with(WARNING) => {}
        Err(_) => return None,
    }
    if components == 4 {
        cmyk_to_rgb(&mut pixels);
    }
    Some(pixels)
}
