//! Text in a bitmap font with smooth edges: Noto Sans Mono in four sizes, enlarged by whole factors past the largest.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use super::canvas::{Canvas, Colour, Point};

/// What is written for a character that the font lacks (it has Latin, basic and supplement).
const MISSING: char = '?';
/// Lines of text that would fit the picture's shorter side.
const LINES_PER_SIDE: f32 = 42.0;
/// Longest label; a class name past it is cut.
const CHARACTERS_MAX: usize = 48;

/// A size of the font.
#[derive(Debug, Clone, Copy)]
pub(super) struct Font {
    height: RasterHeight,
    /// Side of the square that each pixel of the font takes.
    factor: u16,
}

impl Font {
    /// The size that reads well in a picture whose shorter side is `side_px`.
    pub(super) fn for_side(side_px: f32) -> Self {
        let wanted = side_px / LINES_PER_SIDE;
        let (height, factor) = match wanted {
            ..18.0 => (RasterHeight::Size16, 1),
            ..22.0 => (RasterHeight::Size20, 1),
            ..28.0 => (RasterHeight::Size24, 1),
            ..40.0 => (RasterHeight::Size32, 1),
            ..56.0 => (RasterHeight::Size24, 2),
            ..80.0 => (RasterHeight::Size32, 2),
            ..112.0 => (RasterHeight::Size32, 3),
            _ => (RasterHeight::Size32, 4),
        };
        Self { height, factor }
    }

    /// Width and height of `text` with its margins, in pixels of the picture.
    pub(super) fn measure(self, text: &str) -> (f32, f32) {
        let characters = u16::try_from(text.chars().take(CHARACTERS_MAX).count()).unwrap_or(u16::MAX);
        let width = f32::from(characters) * self.advance_px() + 2.0 * self.margin_px();
        (width, px(self.height.val()) * f32::from(self.factor))
    }

    /// Writes `text` with its margins from `corner` on.
    pub(super) fn write(self, canvas: &mut Canvas<'_>, text: &str, corner: Point, colour: Colour) {
        let mut left = corner.x + self.margin_px();
        for character in text.chars().take(CHARACTERS_MAX) {
            self.glyph(canvas, character, Point { x: left, y: corner.y }, colour);
            left += self.advance_px();
        }
    }

    fn glyph(self, canvas: &mut Canvas<'_>, character: char, corner: Point, colour: Colour) {
        let raster = |character| get_raster(character, FontWeight::Bold, self.height);
        let Some(raster) = raster(character).or_else(|| raster(MISSING)) else { return };
        let factor = usize::from(self.factor);
        for (row, coverage) in raster.rows().flat_map(|row| std::iter::repeat_n(row, factor)).enumerate() {
            let pixels = coverage.iter().flat_map(|coverage| std::iter::repeat_n(*coverage, factor));
            for (column, coverage) in pixels.enumerate().filter(|(_, coverage)| *coverage > 0) {
                let at = Point { x: corner.x + px(column), y: corner.y + px(row) };
                canvas.blend(at.pixel(), colour, f32::from(coverage) / 255.0);
            }
        }
    }

    fn advance_px(self) -> f32 {
        px(get_raster_width(FontWeight::Bold, self.height)) * f32::from(self.factor)
    }

    fn margin_px(self) -> f32 {
        (self.advance_px() / 2.0).round()
    }
}

#[expect(clippy::cast_precision_loss, reason = "a glyph has some hundred pixels")]
const fn px(count: usize) -> f32 {
    count as f32
}
