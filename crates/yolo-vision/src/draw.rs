//! Draws detections into their picture, for people who would rather look.
//!
//! Everything scales with the picture, so that a label is as readable on 200 pixels as on 4000. A class has the same
//! colour in every picture.

mod canvas;
mod text;

use crate::boxes::BoxXyxyPx;
use crate::detection::{Detection, Form};
use crate::picture::Picture;
use canvas::{Canvas, Colour, Point};
use text::Font;

/// Detections that are drawn: of more, nobody would see any, and each costs up to 20 ms of a core in the largest picture.
const DRAWN_MAX: usize = 300;
/// Lines are one 300th of the shorter side wide, and never thinner than two pixels.
const LINE_SHARE: f32 = 1.0 / 300.0;
const LINE_PX_MIN: f32 = 2.0;
/// A keypoint's dot, in widths of a line.
const DOT_LINES: f32 = 3.0;
/// Least visibility of a keypoint that is drawn.
const KEYPOINT_SHOWN_MIN: f32 = 0.5;

/// Draws outlines and labels into `picture`, the best detection on top; of many, the 300 best.
///
/// `detections`: in pixels of the picture, best first, as [`postprocess`](crate::postprocess) gives them. Parts outside
/// of the picture are cut off.
pub fn draw(picture: &mut Picture, detections: &[Detection]) {
    let detections = detections.get(..DRAWN_MAX).unwrap_or(detections);
    let size = picture.size();
    #[expect(clippy::cast_precision_loss, reason = "at most 16384")]
    let shorter_px = size.width_px.min(size.height_px) as f32;
    let line_px = (shorter_px * LINE_SHARE).round().max(LINE_PX_MIN);
    let font = Font::for_side(shorter_px);
    let mut canvas = Canvas::new(picture);
    // Labels last: no box may cross one.
    for detection in detections.iter().rev() {
        shape(&mut canvas, detection, line_px);
    }
    for detection in detections.iter().rev().filter(|detection| detection.form != Form::Picture) {
        let above = detection.bounds.y1 - font.measure("").1;
        let top = if above >= 0.0 { above } else { detection.bounds.y1.max(0.0) };
        label(&mut canvas, detection, font, (detection.bounds.x1, top));
    }
    // Classes of the whole picture: a list in its corner.
    let mut top = 0.0;
    for detection in detections.iter().filter(|detection| detection.form == Form::Picture) {
        label(&mut canvas, detection, font, (0.0, top));
        top += font.measure("").1;
    }
}

/// The object's outline: its box, its rotated box, or its mask's edge; and its keypoints as dots.
fn shape(canvas: &mut Canvas<'_>, detection: &Detection, line_px: f32) {
    let colour = Colour::of_class(detection.class);
    let point = |[x, y]: [f32; 2]| Point { x, y };
    let BoxXyxyPx { x1, y1, x2, y2 } = detection.bounds;
    let upright = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]].map(point);
    match &detection.form {
        Form::Picture => {}
        Form::Rotated(bounds) => canvas.outline(&bounds.corners().map(point), line_px, colour),
        Form::Polygon(edge) => canvas.outline(&edge.iter().copied().map(point).collect::<Vec<_>>(), line_px, colour),
        Form::Box | Form::Rle(_) => canvas.outline(&upright, line_px, colour),
        Form::Keypoints(points) => {
            canvas.outline(&upright, line_px, colour);
            for seen in points.iter().filter(|point| point.visible.is_none_or(|share| share >= KEYPOINT_SHOWN_MIN)) {
                let dot = point([seen.x, seen.y]);
                canvas.line((dot, dot), DOT_LINES * line_px, colour);
            }
        }
    }
}

/// Name and confidence on a bar of the class's colour whose corner is at `(left, top)`, moved into the picture's width.
fn label(canvas: &mut Canvas<'_>, detection: &Detection, font: Font, (left, top): (f32, f32)) {
    let colour = Colour::of_class(detection.class);
    let text = format!("{} {:.2}", detection.name, detection.confidence);
    let (width_px, height_px) = font.measure(&text);
    let left = left.min(canvas.width_px() - width_px).max(0.0);
    let corner = Point { x: left.round(), y: top.round() };
    canvas.fill(corner, Point { x: corner.x + width_px, y: corner.y + height_px }, colour);
    font.write(canvas, &text, corner, colour.readable_on());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detection::Keypoint;
    use crate::picture::Size;
    use crate::rotated::RotatedBoxPx;

    /// Which of `places` are no longer black after `form` was drawn around (30, 40) to (90, 80).
    fn drawn(form: Form, places: &[(usize, usize)]) -> Vec<bool> {
        let mut picture = Picture::black(Size::new(120, 120));
        let bounds = BoxXyxyPx { x1: 30.0, y1: 40.0, x2: 90.0, y2: 80.0 };
        draw(&mut picture, &[Detection { name: "it".into(), class: 1, confidence: 0.5, bounds, form }]);
        places.iter().map(|(x, y)| picture.rgb()[3 * (y * 120 + x)..][..3] != [0; 3]).collect()
    }

    #[test]
    fn only_the_best_are_drawn() {
        let at = |x: f32| {
            let bounds = BoxXyxyPx { x1: x, y1: 60.0, x2: x + 20.0, y2: 80.0 };
            Detection { name: "it".into(), class: 1, confidence: 0.5, bounds, form: Form::Box }
        };
        let mut detections = vec![at(10.0); DRAWN_MAX];
        detections.push(at(80.0));
        let mut picture = Picture::black(Size::new(120, 120));
        draw(&mut picture, &detections);
        let drawn = [20, 90].map(|x| picture.rgb()[3 * (80 * 120 + x)..][..3] != [0; 3]);
        assert_eq!(drawn, [true, false]);
    }

    #[test]
    fn every_form_is_drawn_as_what_it_is() {
        let (box_edge, middle, bottom_left) = ((60, 80), (60, 60), (30, 80));
        assert_eq!(drawn(Form::Box, &[box_edge, middle]), [true, false]);
        let triangle = Form::Polygon(vec![[60.0, 60.0], [90.0, 80.0], [60.0, 80.0]]);
        assert_eq!(drawn(triangle, &[box_edge, middle, bottom_left]), [true, true, false]);
        let dots = [None, Some(0.1)].map(|visible| Keypoint { x: 60.0, y: visible.map_or(60.0, |_| 70.0), visible });
        assert_eq!(drawn(Form::Keypoints(dots.into()), &[middle, (60, 70), bottom_left]), [true, false, true]);
        let turned = RotatedBoxPx::new([60.0, 60.0, 40.0, 40.0], std::f32::consts::FRAC_PI_4);
        assert_eq!(drawn(Form::Rotated(turned), &[(60, 88), (88, 60), bottom_left]), [true, true, false]);
        assert_eq!(drawn(Form::Picture, &[box_edge, (1, 1)]), [false, true]);
    }
}
