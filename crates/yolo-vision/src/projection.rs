//! From the model's input back to the picture.
//!
//! Source: Ultralytics 8.4 `scale_boxes` and `scale_coords`: gains of the rounded size, one an axis; f32.

use crate::boxes::BoxXyxyPx;
use crate::letterbox::Letterbox;
use crate::rotated::RotatedBoxPx;

impl Letterbox {
    /// Projects a point, clamped to the picture.
    pub(crate) fn project_point(&self, [x, y]: [f32; 2]) -> [f32; 2] {
        let [horizontal, vertical] = self.axes();
        [horizontal.back(x), vertical.back(y)]
    }

    /// Projects a box, clamped to the picture.
    pub(crate) fn project(&self, bounds: BoxXyxyPx) -> BoxXyxyPx {
        let [horizontal, vertical] = self.axes();
        BoxXyxyPx {
            x1: horizontal.back(bounds.x1),
            y1: vertical.back(bounds.y1),
            x2: horizontal.back(bounds.x2),
            y2: vertical.back(bounds.y2),
        }
    }

    /// The box around the picture.
    pub(crate) fn whole_picture(&self) -> BoxXyxyPx {
        let [horizontal, vertical] = self.axes();
        BoxXyxyPx { x1: 0.0, y1: 0.0, x2: horizontal.source_px, y2: vertical.source_px }
    }

    /// Projects a rotated box: centre and sides, not clamped; the angle stays.
    pub(crate) fn project_rotated(&self, rotated: RotatedBoxPx) -> RotatedBoxPx {
        let [horizontal, vertical] = self.axes();
        RotatedBoxPx {
            centre_x: (rotated.centre_x - horizontal.pad_px) / horizontal.gain,
            centre_y: (rotated.centre_y - vertical.pad_px) / vertical.gain,
            width: rotated.width / horizontal.gain,
            height: rotated.height / vertical.gain,
            angle_rad: rotated.angle_rad,
        }
    }
}

/// One axis of a letterbox.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Axis {
    /// Pixels of the input per pixel of the picture.
    pub(crate) gain: f32,
    /// Pixels of the input before the picture.
    pub(crate) pad_px: f32,
    /// The picture's side.
    pub(crate) source_px: f32,
}

impl Axis {
    fn back(self, value: f32) -> f32 {
        ((value - self.pad_px) / self.gain).clamp(0.0, self.source_px)
    }

    /// The pixel of the input that the centre of the picture's pixel falls onto.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a position inside the input, at least 0"
    )]
    pub(crate) fn under(self, pixel: u32) -> usize {
        ((pixel as f32 + 0.5) * self.gain + self.pad_px) as usize
    }
}
