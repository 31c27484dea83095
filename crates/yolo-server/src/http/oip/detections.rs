//! Detections as tensors, by task.

use bytes::Bytes;
use yolo_vision::{Detection, Form, ModelInfo, RleJson, Task};

use super::tensor::{self, Datatype, Tensor};
use crate::predictor::Prediction;

/// How many detections each image has.
pub const COUNTS: &str = "num_detections";
/// Where they are.
pub const BOXES: &str = "boxes";
/// How sure the model is of them.
pub const SCORES: &str = "scores";
/// What they are.
pub const CLASSES: &str = "classes";
/// Which pixels are theirs.
pub const MASKS: &str = "masks";
/// Points of a pose.
pub const KEYPOINTS: &str = "keypoints";
/// How far boxes are turned.
pub const ANGLES: &str = "angles";

/// Numbers of a box.
const BOX: usize = 4;
/// Any size, in metadata.
const ANY: i64 = -1;

/// Names of the outputs of a task.
pub const fn names(task: Task) -> &'static [&'static str] {
    match task {
        Task::Detect => &[COUNTS, BOXES, SCORES, CLASSES],
        Task::Segment => &[COUNTS, BOXES, SCORES, CLASSES, MASKS],
        Task::Pose => &[COUNTS, BOXES, SCORES, CLASSES, KEYPOINTS],
        Task::Obb => &[COUNTS, BOXES, SCORES, CLASSES, ANGLES],
        Task::Classify => &[COUNTS, SCORES, CLASSES],
    }
}

/// Type of an output, and its shape: -1 is any size.
pub fn described(name: &str, model: &ModelInfo) -> (Datatype, Vec<i64>) {
    let size = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
    match name {
        COUNTS => (Datatype::Int32, vec![ANY, 1]),
        BOXES => (Datatype::Fp32, vec![ANY, ANY, size(BOX)]),
        CLASSES => (Datatype::Int32, vec![ANY, ANY]),
        MASKS => (Datatype::Bytes, vec![ANY, ANY]),
        KEYPOINTS => {
            let [points, values] = model.keypoints().unwrap_or_default();
            (Datatype::Fp32, vec![ANY, ANY, size(points), size(values)])
        }
        _ => (Datatype::Fp32, vec![ANY, ANY]),
    }
}

/// What was found in N images, of which the fullest holds D detections; the others are padded with zeros.
#[derive(Debug)]
pub struct Batch {
    /// One an image.
    pub found: Vec<Prediction>,
    /// Whether coordinates are fractions of the image instead of pixels.
    pub normalize: bool,
    /// Points of a pose, and numbers of each.
    pub keypoints: [usize; 2],
}

/// A number of a tensor: in it, in the row that goes into it, and as text.
const NUMBER_BYTES: usize = 4 + 4 + 24;

impl Batch {
    /// Most bytes of the `wanted` outputs and of their text.
    pub fn written_bytes(&self, wanted: &[String]) -> usize {
        let numbers = |name: &String| match name.as_str() {
            BOXES => BOX,
            KEYPOINTS => self.keypoints.iter().product(),
            _ => 1,
        };
        let masks = if wanted.iter().any(|name| name == MASKS) {
            self.found.iter().map(|found| found.answer.masks_written_bytes()).sum()
        } else {
            0
        };
        masks + self.found.len() * self.most() * NUMBER_BYTES * wanted.iter().map(numbers).sum::<usize>()
    }

    /// The output of a name:
    ///
    /// name | type, shape | what
    /// ---|---|---
    /// `num_detections` | INT32 `[N, 1]` |
    /// `boxes` | FP32 `[N, D, 4]` | x1, y1, x2, y2; of rotated boxes centre x, centre y, width, height
    /// `scores`, `classes` | FP32, INT32 `[N, D]` |
    /// `masks` | BYTES `[N, D]` | `{"size":[height,width],"counts":[…]}`, runs in COCO's order
    /// `keypoints` | FP32 `[N, D, K, 2 or 3]` | x, y, visibility
    /// `angles` | FP32 `[N, D]` | radians, clockwise
    pub fn output(&self, name: &str) -> Tensor {
        let (images, most) = (self.found.len(), self.most());
        match name {
            COUNTS => {
                let counts = self.found.iter().map(|prediction| small(prediction.answer.detections.len()));
                Tensor::output(name, Datatype::Int32, &[images, 1], tensor::integers(counts))
            }
            BOXES => Tensor::output(name, Datatype::Fp32, &[images, most, BOX], self.rows(BOX, numbers_of_box)),
            CLASSES => {
                let class = |detection: &Detection| i32::try_from(detection.class).unwrap_or(i32::MAX);
                let classes = self.padded().map(|(detection, _)| detection.map_or(0, class));
                Tensor::output(name, Datatype::Int32, &[images, most], tensor::integers(classes))
            }
            MASKS => {
                let masks: Vec<_> =
                    self.padded().map(|(detection, _)| detection.map(mask).unwrap_or_default()).collect();
                let masks = tensor::join_byte_strings(masks.iter().map(Vec::as_slice));
                Tensor::output(name, Datatype::Bytes, &[images, most], masks)
            }
            KEYPOINTS => {
                let [points, values] = self.keypoints;
                let rows = self.rows(points * values, numbers_of_points);
                Tensor::output(name, Datatype::Fp32, &[images, most, points, values], rows)
            }
            ANGLES => {
                Tensor::output(name, Datatype::Fp32, &[images, most], self.rows(1, |found, _| vec![angle(found)]))
            }
            _ => Tensor::output(
                name,
                Datatype::Fp32,
                &[images, most],
                self.rows(1, |detection, _| vec![detection.confidence]),
            ),
        }
    }

    fn most(&self) -> usize {
        self.found.iter().map(|prediction| prediction.answer.detections.len()).max().unwrap_or_default()
    }

    /// D places an image, and what its coordinates are divided by.
    fn padded(&self) -> impl Iterator<Item = (Option<&Detection>, [f64; 2])> {
        let most = self.most();
        self.found.iter().flat_map(move |Prediction { answer, .. }| {
            let size = answer.size;
            let sides = if self.normalize { [size.width_px, size.height_px].map(f64::from) } else { [1.0; 2] };
            let places = answer.detections.iter().map(Some).chain(std::iter::repeat(None));
            places.take(most).map(move |place| (place, sides))
        })
    }

    /// `width` numbers a place.
    fn rows(&self, width: usize, numbers: impl Fn(&Detection, [f64; 2]) -> Vec<f32>) -> Bytes {
        let row = |(detection, sides): (Option<&Detection>, _)| {
            let mut row = detection.map(|detection| numbers(detection, sides)).unwrap_or_default();
            row.resize(width, 0.0);
            row
        };
        tensor::floats(self.padded().flat_map(row))
    }
}

fn numbers_of_box(detection: &Detection, [width, height]: [f64; 2]) -> Vec<f32> {
    let numbers = match &detection.form {
        Form::Rotated(turned) => [turned.centre_x, turned.centre_y, turned.width, turned.height],
        _ => [detection.bounds.x1, detection.bounds.y1, detection.bounds.x2, detection.bounds.y2],
    };
    numbers.into_iter().zip([width, height, width, height]).map(|(number, side)| part(number, side)).collect()
}

fn numbers_of_points(detection: &Detection, [width, height]: [f64; 2]) -> Vec<f32> {
    let Form::Keypoints(points) = &detection.form else { return Vec::new() };
    let numbers = points.iter().flat_map(|point| {
        [Some(part(point.x, width)), Some(part(point.y, height)), point.visible].into_iter().flatten()
    });
    numbers.collect()
}

fn angle(detection: &Detection) -> f32 {
    if let Form::Rotated(turned) = &detection.form { turned.angle_rad } else { 0.0 }
}

fn mask(detection: &Detection) -> Vec<u8> {
    let Form::Rle(runs) = &detection.form else { return Vec::new() };
    let runs = RleJson { size: [runs.size.height_px, runs.size.width_px], counts: runs.counts.clone() };
    // Numbers always have a JSON form.
    serde_json::to_vec(&runs).unwrap_or_default()
}

#[expect(clippy::cast_possible_truncation, reason = "coordinates are f32")]
fn part(number: f32, whole: f64) -> f32 {
    (f64::from(number) / whole) as f32
}

/// A count of at most a few thousand.
fn small(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
