//! Shapes on a picture's pixels, with smooth edges. What lies outside of the picture is cut off.
//!
//! Bounds: every pixel goes through [`Canvas::blend`], which looks it up with a checked range. What is done for every pixel
//! has no `mul_add` and no `hypot`: without FMA in the target, both are calls into the maths library.

use crate::picture::Picture;

/// A place in the picture, in pixels; the middle of the first pixel is at (0.5, 0.5).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    pub x: f32,
    pub y: f32,
}

impl Point {
    /// The pixel that it lies in.
    pub(super) const fn pixel(self) -> (i32, i32) {
        (to_i32(self.x), to_i32(self.y))
    }
}

/// 8-bit RGB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Colour(pub [u8; 3]);

/// Share of the circle of hues between one class and the next: the golden angle, which keeps any number of consecutive
/// classes apart.
const HUE_STEP: f32 = 0.618_034;

impl Colour {
    const BLACK: Self = Self([0; 3]);
    const WHITE: Self = Self([255; 3]);

    /// The colour of a class: the same in every picture, bright enough for a line.
    pub(super) fn of_class(class: u32) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "only the hue of a class number past 16 million is coarse")]
        let hue = (class as f32).mul_add(HUE_STEP, 0.6).fract() * 6.0;
        // A full-value, three-quarters saturated colour of the hue wheel, by channel.
        let channel = |offset: f32| {
            let distance = ((hue + offset) % 6.0 - 3.0).abs();
            to_u8(255.0 * (0.75f32.mul_add((distance - 1.0).clamp(0.0, 1.0), 0.2)))
        };
        Self([channel(0.0), channel(4.0), channel(2.0)])
    }

    /// Black or white, whichever is easier to read on this colour.
    pub(super) fn readable_on(self) -> Self {
        let [red, green, blue] = self.0.map(f32::from);
        // Perceived lightness, ITU-R BT.601.
        let luma = 0.299f32.mul_add(red, 0.587f32.mul_add(green, 0.114 * blue));
        if luma > 140.0 { Self::BLACK } else { Self::WHITE }
    }
}

/// A picture being drawn on.
pub(super) struct Canvas<'a> {
    width: i32,
    height: i32,
    rgb: &'a mut [u8],
}

impl<'a> Canvas<'a> {
    pub(super) fn new(picture: &'a mut Picture) -> Self {
        let size = picture.size();
        let pixels = |px: u32| i32::try_from(px).unwrap_or(i32::MAX);
        Self { width: pixels(size.width_px), height: pixels(size.height_px), rgb: picture.rgb_mut() }
    }

    #[expect(clippy::cast_precision_loss, reason = "at most 16384")]
    pub(super) const fn width_px(&self) -> f32 {
        self.width as f32
    }

    /// Lays `colour` over a pixel, `opacity` in 0..=1; outside of the picture nothing happens.
    pub(super) fn blend(&mut self, (x, y): (i32, i32), colour: Colour, opacity: f32) {
        if x < 0 || y < 0 || x >= self.width || y >= self.height {
            return;
        }
        let pixel = i64::from(y) * i64::from(self.width) + i64::from(x);
        let Some(pixel) = usize::try_from(3 * pixel).ok().and_then(|at| self.rgb.get_mut(at..at + 3)) else { return };
        for (below, above) in pixel.iter_mut().zip(colour.0) {
            let (old, new) = (f32::from(*below), f32::from(above));
            *below = to_u8((new - old) * opacity + old);
        }
    }

    /// Fills the rectangle between two corners.
    pub(super) fn fill(&mut self, from: Point, to: Point, colour: Colour) {
        for y in self.rows(from.y, to.y) {
            for x in self.columns(from.x, to.x) {
                self.blend((x, y), colour, 1.0);
            }
        }
    }

    /// Draws the closed line through `corners`.
    pub(super) fn outline(&mut self, corners: &[Point], line_px: f32, colour: Colour) {
        let ends = corners.iter().cycle().skip(1);
        for (from, to) in corners.iter().zip(ends) {
            self.line((*from, *to), line_px, colour);
        }
    }

    /// Draws a line with round ends; a line from a point to itself is a dot.
    pub(super) fn line(&mut self, (from, to): (Point, Point), line_px: f32, colour: Colour) {
        let reach = line_px / 2.0 + 0.5;
        let along = Point { x: to.x - from.x, y: to.y - from.y };
        let length_squared = along.x * along.x + along.y * along.y;
        for y in self.rows(from.y.min(to.y) - reach, from.y.max(to.y) + reach + 1.0) {
            let middle_y = middle(y);
            let (left, right) = span(from, along, (middle_y - reach, middle_y + reach));
            for x in self.columns(left - reach, right + reach + 1.0) {
                let offset = Point { x: middle(x) - from.x, y: middle_y - from.y };
                let projected = offset.x * along.x + offset.y * along.y;
                let share = if length_squared > 0.0 { (projected / length_squared).clamp(0.0, 1.0) } else { 0.0 };
                let apart = Point { x: offset.x - share * along.x, y: offset.y - share * along.y };
                let distance = (apart.x * apart.x + apart.y * apart.y).sqrt();
                // One pixel of transition from covered to not covered.
                self.blend((x, y), colour, (reach - distance).clamp(0.0, 1.0));
            }
        }
    }

    fn rows(&self, from: f32, to: f32) -> std::ops::Range<i32> {
        to_i32(from).clamp(0, self.height)..to_i32(to).clamp(0, self.height)
    }

    fn columns(&self, from: f32, to: f32) -> std::ops::Range<i32> {
        to_i32(from).clamp(0, self.width)..to_i32(to).clamp(0, self.width)
    }
}

/// Left and right end of the part of a line that lies between two heights.
fn span(from: Point, along: Point, (top, bottom): (f32, f32)) -> (f32, f32) {
    let at = |y: f32| if along.y == 0.0 { None } else { Some(((y - from.y) / along.y).clamp(0.0, 1.0)) };
    let x = |share: f32| share.mul_add(along.x, from.x);
    let (first, second) = (x(at(top).unwrap_or(0.0)), x(at(bottom).unwrap_or(1.0)));
    (first.min(second), first.max(second))
}

#[expect(clippy::cast_precision_loss, reason = "at most 16384")]
const fn middle(pixel: i32) -> f32 {
    pixel as f32 + 0.5
}

#[expect(clippy::cast_possible_truncation, reason = "the cast saturates, and the callers clamp")]
const fn to_i32(value: f32) -> i32 {
    value.floor() as i32
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
const fn to_u8(value: f32) -> u8 {
    value.round() as u8
}
