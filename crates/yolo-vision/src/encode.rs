//! Pixels back to a file.

use std::io::Write;

use crate::picture::Picture;

/// Quality of JPEG files, 1 to 100: text on a coloured bar stays crisp.
const JPEG_QUALITY: u8 = 90;

/// A format that pictures are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PictureFormat {
    /// Small and fast.
    Jpeg,
    /// Without loss.
    Png,
}

impl PictureFormat {
    /// As in `Content-Type`.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
        }
    }
}

/// A picture could not be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// As JPEG; a side past 65535 pixels, say.
    #[error("failed to write a JPEG")]
    Jpeg(#[from] jpeg_encoder::EncodingError),
    /// As PNG.
    #[error("failed to write a PNG")]
    Png(#[from] png::EncodingError),
}

/// Bytes of a PNG's piece.
const PNG_CHUNK_BYTES: usize = 64 << 10;

/// Writes `picture` to `file` as `format` has it, piece by piece: beside the picture it takes no memory worth counting.
///
/// # Errors
/// [`EncodeError`] if the format cannot hold the picture, or `file` takes no more.
pub fn encode(picture: &Picture, format: PictureFormat, mut file: impl Write) -> Result<(), EncodeError> {
    let size = picture.size();
    match format {
        PictureFormat::Jpeg => {
            let pixels = |px: u32| u16::try_from(px).unwrap_or(u16::MAX);
            let mut encoder = jpeg_encoder::Encoder::new(&mut file, JPEG_QUALITY);
            // Halved colour would smear the text of a label into its bar.
            encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::R_4_4_4);
            let (width, height) = (pixels(size.width_px), pixels(size.height_px));
            encoder.encode(picture.rgb(), width, height, jpeg_encoder::ColorType::Rgb)?;
        }
        PictureFormat::Png => {
            let mut encoder = png::Encoder::new(&mut file, size.width_px, size.height_px);
            encoder.set_color(png::ColorType::Rgb);
            encoder.set_compression(png::Compression::Fast);
            let mut writer = encoder.write_header()?;
            let mut rows = writer.stream_writer_with_size(PNG_CHUNK_BYTES)?;
            rows.write_all(picture.rgb())
                .and_then(|()| rows.finish().map_err(Into::into))
                .map_err(png::EncodingError::from)?;
            writer.finish()?;
        }
    }
    Ok(())
}
