//! Rotated boxes, and how much two of them overlap.

use serde::{Deserialize, Serialize};

use crate::boxes::BoxXyxyPx;

/// Keeps divisions, roots and logarithms of the overlap defined, as in Ultralytics' `batch_probiou`.
const EPSILON: f32 = 1e-7;
/// Largest Bhattacharyya distance: beyond it the overlap is 0 in f32.
const DISTANCE_MAX: f32 = 100.0;

/// A box turned around its centre, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RotatedBoxPx {
    /// Centre from the left.
    pub centre_x: f32,
    /// Centre from the top.
    pub centre_y: f32,
    /// Side along the angle's direction.
    pub width: f32,
    /// The other side.
    pub height: f32,
    /// Clockwise from the x axis, in radians.
    pub angle_rad: f32,
}

impl RotatedBoxPx {
    pub(crate) const fn new([centre_x, centre_y, width, height]: [f32; 4], angle_rad: f32) -> Self {
        Self { centre_x, centre_y, width, height, angle_rad }
    }

    /// The four corners `[x, y]`, around the box; f32 in the order of operations of Ultralytics' `xywhr2xyxyxyxy`.
    pub fn corners(&self) -> [[f32; 2]; 4] {
        let (sine, cosine) = self.angle_rad.sin_cos();
        let (along_x, along_y) = (self.width / 2.0 * cosine, self.width / 2.0 * sine);
        let (across_x, across_y) = (-self.height / 2.0 * sine, self.height / 2.0 * cosine);
        let corner = |along: f32, across: f32| {
            let x = self.centre_x + along * along_x + across * across_x;
            [x, self.centre_y + along * along_y + across * across_y]
        };
        [corner(1.0, 1.0), corner(1.0, -1.0), corner(-1.0, -1.0), corner(-1.0, 1.0)]
    }

    /// The smallest upright box around the corners.
    pub(crate) fn hull(&self) -> BoxXyxyPx {
        let outside = BoxXyxyPx { x1: f32::MAX, y1: f32::MAX, x2: f32::MIN, y2: f32::MIN };
        self.corners().into_iter().fold(outside, |hull, [x, y]| BoxXyxyPx {
            x1: hull.x1.min(x),
            y1: hull.y1.min(y),
            x2: hull.x2.max(x),
            y2: hull.y2.max(y),
        })
    }

    /// The normal distribution with the box's mean and covariance.
    pub(crate) fn gaussian(&self) -> Gaussian {
        let (sine, cosine) = self.angle_rad.sin_cos();
        let (along, across) = (self.width * self.width / 12.0, self.height * self.height / 12.0);
        let (cosine_squared, sine_squared) = (cosine * cosine, sine * sine);
        Gaussian {
            x: self.centre_x,
            y: self.centre_y,
            a: along * cosine_squared + across * sine_squared,
            b: along * sine_squared + across * cosine_squared,
            c: (along - across) * cosine * sine,
        }
    }
}

/// A two-dimensional normal distribution: mean, and the covariance `[[a, c], [c, b]]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gaussian {
    x: f32,
    y: f32,
    a: f32,
    b: f32,
    c: f32,
}

impl Gaussian {
    /// Probabilistic intersection over union: 1 minus the Hellinger distance of the two boxes' distributions, f32.
    ///
    /// Source: Llerena et al., "Gaussian Bounding Boxes and Probabilistic Intersection-over-Union", arXiv 2106.06072.
    pub(crate) fn probiou(&self, other: &Self) -> f32 {
        let (a, b, c) = (self.a + other.a, self.b + other.b, self.c + other.c);
        let (dx, dy) = (self.x - other.x, self.y - other.y);
        let determinant = a * b - c * c;
        let own = |one: &Self| (one.a * one.b - one.c * one.c).max(0.0);
        let apart = (a * (dy * dy) + b * (dx * dx)) / (determinant + EPSILON) * 0.25;
        let turned = c * (other.x - self.x) * dy / (determinant + EPSILON) * 0.5;
        let unlike = (determinant / (4.0 * (own(self) * own(other)).sqrt() + EPSILON) + EPSILON).ln() * 0.5;
        let distance = (apart + turned + unlike).clamp(EPSILON, DISTANCE_MAX);
        1.0 - (1.0 - (-distance).exp() + EPSILON).sqrt()
    }
}
