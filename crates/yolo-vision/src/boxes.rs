//! Boxes, each with its convention in its name.

use serde::{Deserialize, Serialize};

/// Left, top, right, bottom in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BoxXyxyPx {
    /// Left edge.
    pub x1: f32,
    /// Top edge.
    pub y1: f32,
    /// Right edge.
    pub x2: f32,
    /// Bottom edge.
    pub y2: f32,
}

impl BoxXyxyPx {
    /// From centre and size in pixels, as raw YOLO heads write them.
    pub(crate) fn from_centre([centre_x, centre_y, width, height]: [f32; 4]) -> Self {
        let (half_width, half_height) = (width / 2.0, height / 2.0);
        Self {
            x1: centre_x - half_width,
            y1: centre_y - half_height,
            x2: centre_x + half_width,
            y2: centre_y + half_height,
        }
    }

    /// From left, top, right and bottom in pixels, as end-to-end heads write them.
    pub(crate) const fn from_corners([x1, y1, x2, y2]: [f32; 4]) -> Self {
        Self { x1, y1, x2, y2 }
    }

    /// The box moved by `offset_px` along both axes.
    pub(crate) fn shifted(self, offset_px: f32) -> Self {
        Self { x1: self.x1 + offset_px, y1: self.y1 + offset_px, x2: self.x2 + offset_px, y2: self.y2 + offset_px }
    }

    /// Width times height; negative where the corners are swapped, as in torchvision.
    pub(crate) fn area(self) -> f32 {
        (self.x2 - self.x1) * (self.y2 - self.y1)
    }

    /// Intersection over union, in f32 and without an epsilon, as torchvision's `nms` computes it.
    pub(crate) fn iou(self, other: Self) -> f32 {
        let width = (self.x2.min(other.x2) - self.x1.max(other.x1)).max(0.0);
        let height = (self.y2.min(other.y2) - self.y1.max(other.y1)).max(0.0);
        let intersection = width * height;
        intersection / (self.area() + other.area() - intersection)
    }
}
