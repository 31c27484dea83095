//! Draws detections into their picture, for people who would rather look.
//!
//! Everything scales with the picture, so that a label is as readable on 200 pixels as on 4000. A class has the same
//! colour in every picture.

mod canvas;
mod text;

use crate::detection::Detection;
use crate::picture::Picture;
use canvas::{Canvas, Colour, Point};
use text::Font;

/// Lines are one 300th of the shorter side wide, and never thinner than two pixels.
const LINE_SHARE: f32 = 1.0 / 300.0;
const LINE_PX_MIN: f32 = 2.0;

/// Draws boxes and labels into `picture`, the best detection on top.
///
/// `detections`: in pixels of the picture, best first, as [`postprocess`](crate::postprocess) gives them. Parts outside
/// of the picture are cut off.
pub fn draw(picture: &mut Picture, detections: &[Detection]) {
    let size = picture.size();
    #[expect(clippy::cast_precision_loss, reason = "at most 16384")]
    let shorter_px = size.width_px.min(size.height_px) as f32;
    let line_px = (shorter_px * LINE_SHARE).round().max(LINE_PX_MIN);
    let font = Font::for_side(shorter_px);
    let mut canvas = Canvas::new(picture);
    // Labels last: no box may cross one.
    for detection in detections.iter().rev() {
        outline(&mut canvas, detection, line_px);
    }
    for detection in detections.iter().rev() {
        label(&mut canvas, detection, font);
    }
}

fn outline(canvas: &mut Canvas<'_>, detection: &Detection, line_px: f32) {
    let bounds = &detection.bounds;
    let corners = [
        Point { x: bounds.x1, y: bounds.y1 },
        Point { x: bounds.x2, y: bounds.y1 },
        Point { x: bounds.x2, y: bounds.y2 },
        Point { x: bounds.x1, y: bounds.y2 },
    ];
    canvas.outline(&corners, line_px, Colour::of_class(detection.class));
}

/// Name and confidence on a bar of the class's colour: above the box, or inside where the picture ends.
fn label(canvas: &mut Canvas<'_>, detection: &Detection, font: Font) {
    let colour = Colour::of_class(detection.class);
    let text = format!("{} {:.2}", detection.name, detection.confidence);
    let (width_px, height_px) = font.measure(&text);
    let above = detection.bounds.y1 - height_px;
    let top = if above >= 0.0 { above } else { detection.bounds.y1.max(0.0) };
    let left = detection.bounds.x1.min(canvas.width_px() - width_px).max(0.0);
    let corner = Point { x: left.round(), y: top.round() };
    canvas.fill(corner, Point { x: corner.x + width_px, y: corner.y + height_px }, colour);
    font.write(canvas, &text, corner, colour.readable_on());
}
