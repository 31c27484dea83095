//! A decoded picture and its size.

use serde::{Deserialize, Serialize};

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Size {
    /// Pixels from left to right.
    pub width_px: u32,
    /// Pixels from top to bottom.
    pub height_px: u32,
}

impl Size {
    /// A size of `width_px` by `height_px`.
    pub const fn new(width_px: u32, height_px: u32) -> Self {
        Self { width_px, height_px }
    }

    /// Whether a side is 0.
    pub const fn is_empty(self) -> bool {
        self.width_px == 0 || self.height_px == 0
    }

    /// Number of pixels.
    pub const fn pixels(self) -> u64 {
        self.width_px as u64 * self.height_px as u64
    }

    /// Width as an index; every target of ours has at least 32-bit pointers.
    pub(crate) const fn width(self) -> usize {
        self.width_px as usize
    }

    /// Height as an index.
    pub(crate) const fn height(self) -> usize {
        self.height_px as usize
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.width_px, self.height_px)
    }
}

/// A picture in memory: `[height, width, 3]` u8 RGB, rows from top to bottom, never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    size: Size,
    rgb: Vec<u8>,
}

impl Picture {
    /// Takes `rgb` (`[height, width, 3]`) as a picture; `None` if a side is 0 or the length does not fit the size.
    pub fn from_rgb(size: Size, rgb: Vec<u8>) -> Option<Self> {
        let fits = u64::try_from(rgb.len()).is_ok_and(|bytes| Some(bytes) == size.pixels().checked_mul(3));
        (fits && !size.is_empty()).then_some(Self { size, rgb })
    }

    /// Width and height.
    pub const fn size(&self) -> Size {
        self.size
    }

    /// A black picture.
    #[cfg(test)]
    pub(crate) fn black(size: Size) -> Self {
        Self { size, rgb: vec![0; 3 * size.width() * size.height()] }
    }

    /// The same pixels in rows of another length. `size` must have as many.
    pub(crate) fn reshaped(self, size: Size) -> Self {
        Self { size, ..self }
    }

    /// What it takes, in bytes: more than its pixels where they were decoded with another channel.
    pub(crate) const fn memory_bytes(&self) -> usize {
        self.rgb.capacity()
    }

    /// `[height, width, 3]` u8 RGB.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The same, to draw on.
    pub(crate) fn rgb_mut(&mut self) -> &mut [u8] {
        &mut self.rgb
    }

    /// `[height * width]` RGB pixels, to be changed.
    pub(crate) fn pixels_mut(&mut self) -> &mut [[u8; 3]] {
        self.rgb.as_chunks_mut().0
    }
}
