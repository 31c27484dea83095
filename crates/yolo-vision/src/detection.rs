//! One found object.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::boxes::BoxXyxyPx;
use crate::mask::Rle;
use crate::rotated::RotatedBoxPx;

/// One found object, or one class of a classified picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// The class's name.
    pub name: Arc<str>,
    /// Index of the class in the model.
    pub class: u32,
    /// Score in 0..=1.
    pub confidence: f32,
    /// Where, in pixels of the picture; around all corners of a rotated box, and the whole picture of a class.
    pub bounds: BoxXyxyPx,
    /// What the model says beyond that.
    pub form: Form,
}

/// What a model says of an object besides its box, in pixels of the picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Form {
    /// Nothing: detection, or a segmentation whose masks are not wanted.
    Box,
    /// The outline of its mask, `[x, y]`, counter-clockwise as one sees it.
    Polygon(Vec<[f32; 2]>),
    /// Its mask.
    Rle(Rle),
    /// Its keypoints, in the model's order.
    Keypoints(Vec<Keypoint>),
    /// Its box is rotated.
    Rotated(RotatedBoxPx),
    /// No object: a class of the whole picture.
    Picture,
}

/// A point of an object, in pixels of the picture.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Keypoint {
    /// From the left.
    pub x: f32,
    /// From the top.
    pub y: f32,
    /// How surely it is visible, 0..=1; `None` if the model does not say.
    pub visible: Option<f32>,
}

impl Detection {
    /// Bytes that it holds besides itself; names are shared with the model.
    pub fn heap_bytes(&self) -> usize {
        match &self.form {
            Form::Polygon(points) => size_of_val(points.as_slice()),
            Form::Rle(rle) => size_of_val(rle.counts.as_slice()),
            Form::Keypoints(points) => size_of_val(points.as_slice()),
            Form::Box | Form::Rotated(_) | Form::Picture => 0,
        }
    }
}
