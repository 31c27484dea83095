//! Every task and layout against OpenCV, Pillow and numpy: what `make fixtures` recorded, as the API answers it.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a helper that fails is a failed test")]

mod fixture;

use std::collections::BTreeMap;

use fixture::{fixtures, synthetic};
use serde::Deserialize;
use serde_json::Value;
use yolo_vision::{
    Letterbox, LetterboxError, Masks, ModelInfo, OutputView, Parameters, Picture, Size, Task, TensorShape,
    centre_crop_into, postprocess,
};

/// Equal: what is compared has five decimals, and only reading it from JSON may cost a last bit.
const EXACT: f64 = 1e-9;
/// Corners of rotated boxes: numpy's sine and ours differ in the last bit.
const CORNER_MAX: f64 = 1e-3;

#[derive(Deserialize)]
struct CropCase {
    source: [u32; 2],
    target: [u32; 2],
    fnv1a64: String,
}

#[test]
fn centre_crop_equals_pillow_in_every_byte() {
    for case in fixtures::<Vec<CropCase>>("centre-crop.json") {
        let picture = synthetic(Size::new(case.source[0], case.source[1]));
        let target = Size::new(case.target[0], case.target[1]);
        let mut planar = vec![0; 3 * case.target[0] as usize * case.target[1] as usize];
        centre_crop_into(&picture, target, &mut planar).expect("a buffer of the target's size");
        assert_eq!(fixture::fnv1a64(&planar), case.fnv1a64, "{:?} into {:?}", case.source, case.target);
    }
}

#[test]
fn a_long_picture_costs_no_more_than_its_crop() {
    let line = Picture::from_rgb(Size::new(16_384, 1), vec![7; 3 * 16_384]).expect("three bytes a pixel");
    let mut planar = vec![0; 3 * 224 * 224];
    // Resized as a whole it would have 2.4 GB.
    centre_crop_into(&line, Size::new(224, 224), &mut planar).expect("a buffer of the target's size");
    assert!(planar.iter().all(|&pixel| pixel == 7));
    assert_eq!(centre_crop_into(&line, Size::new(224, 223), &mut planar), Err(LetterboxError::Mismatch));
    assert!(centre_crop_into(&line, Size::new(0, 0), &mut []).is_err());
}

#[derive(Deserialize)]
struct TaskCase {
    task: String,
    layout: String,
    files: Vec<String>,
    shapes: Vec<Vec<usize>>,
    source: [u32; 2],
    target: [u32; 2],
    names: Vec<String>,
    confidence: f32,
    iou: f64,
    detections_max: usize,
    #[serde(default)]
    classes: Option<Vec<u32>>,
    #[serde(default)]
    agnostic: bool,
    #[serde(default)]
    masks: String,
    normalize: bool,
    #[serde(alias = "answer")]
    summary: Vec<Value>,
}

impl TaskCase {
    fn model(&self) -> ModelInfo {
        let mut metadata: BTreeMap<_, _> = [
            ("task".to_owned(), self.task.clone()),
            ("names".to_owned(), format!("{:?}", self.names)),
            ("kpt_shape".to_owned(), "[5, 3]".to_owned()),
        ]
        .into();
        if self.layout == "end2end" {
            metadata.insert("end2end".to_owned(), "True".to_owned());
        }
        let [width, height] = self.target.map(i64::from);
        let inputs = [TensorShape::new("images", &[-1, 3, height, width])];
        let dims = |shape: &Vec<usize>| {
            let dims = shape.iter().map(|&length| i64::try_from(length).expect("small"));
            [-1].into_iter().chain(dims).collect::<Vec<_>>()
        };
        let outputs = self.shapes.iter().enumerate();
        let outputs: Vec<_> =
            outputs.map(|(index, shape)| TensorShape::new(format!("output{index}"), &dims(shape))).collect();
        ModelInfo::parse(&metadata, &inputs, &outputs).unwrap_or_else(|e| panic!("{} {}: {e}", self.task, self.layout))
    }

    fn parameters(&self) -> Parameters {
        Parameters {
            confidence: self.confidence,
            iou: self.iou,
            detections_max: self.detections_max,
            classes: self.classes.clone(),
            agnostic: self.agnostic,
            normalize: self.normalize,
            masks: match self.masks.as_str() {
                "rle" => Masks::Rle,
                "none" => Masks::None,
                _ => Masks::Polygon,
            },
        }
    }

    /// What our side makes of the recorded tensors, as JSON.
    fn answer(&self) -> Vec<Value> {
        let values: Vec<Vec<f32>> = self.files.iter().map(|file| floats(file)).collect();
        let views = values.iter().zip(&self.shapes).map(|(values, shape)| OutputView { shape, values });
        let source = Size::new(self.source[0], self.source[1]);
        let letterbox = Letterbox::plan(source, Size::new(self.target[0], self.target[1])).expect("not empty");
        let found = postprocess(&views.collect::<Vec<_>>(), &self.model(), &letterbox, &self.parameters())
            .expect("the layout's shape");
        let normalised_by = self.normalize.then_some(source);
        let json = found.iter().map(|detection| serde_json::to_value(detection.to_json(normalised_by)));
        json.map(|json| json.expect("finite numbers")).collect()
    }
}

fn floats(file: &str) -> Vec<f32> {
    let raw = fixture::bytes(file);
    raw.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Fails where two documents differ in more than numbers, or in a number by more than `tolerance`.
fn assert_alike(ours: &Value, theirs: &Value, tolerance: f64, place: &str) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{place}");
            a.iter().for_each(|(key, value)| assert_alike(value, &b[key], tolerance, &format!("{place}.{key}")));
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{place}: {ours} and {theirs}");
            let pairs = a.iter().zip(b).enumerate();
            pairs.for_each(|(i, (a, b))| assert_alike(a, b, tolerance, &format!("{place}[{i}]")));
        }
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().expect("finite"), b.as_f64().expect("finite"));
            assert!((a - b).abs() <= tolerance, "{place}: {a} and {b}");
        }
        _ => assert_eq!(ours, theirs, "{place}"),
    }
}

#[test]
fn recorded_outputs_of_every_task_give_the_reference_summary() {
    for case in fixtures::<Vec<TaskCase>>("tasks.json") {
        assert!(!case.summary.is_empty(), "{} {}: the fixture finds something", case.task, case.layout);
        let place = format!("{} {} masks={} conf={}", case.task, case.layout, case.masks, case.confidence);
        let tolerance = if case.task == "obb" { CORNER_MAX } else { EXACT };
        assert_alike(&Value::from(case.answer()), &Value::from(case.summary), tolerance, &place);
    }
}

/// `Results.to_json` of the pinned Ultralytics, to the last of its five decimals.
#[test]
fn recorded_outputs_give_what_ultralytics_answers() {
    let cases = fixtures::<Vec<TaskCase>>("ultralytics.json");
    for task in Task::ALL {
        assert!(cases.iter().any(|case| case.task == task.as_str() && !case.summary.is_empty()), "{task:?}");
    }
    for case in cases {
        let place = format!("{} {} {:?}", case.task, case.layout, case.parameters());
        let tolerance = if case.task == "obb" { CORNER_MAX } else { EXACT };
        assert_alike(&Value::from(case.answer()), &Value::from(case.summary), tolerance, &place);
    }
}

#[test]
fn every_task_has_its_recorded_outputs() {
    let tasks: Vec<_> = fixtures::<Vec<TaskCase>>("tasks.json").iter().map(|case| case.model().task()).collect();
    for task in Task::ALL.into_iter().filter(|task| *task != Task::Detect) {
        assert!(tasks.contains(&task), "{task:?}");
    }
}

/// Runs cover the picture, and the mask that they describe lies in the box.
#[test]
fn run_lengths_cover_the_picture_and_stay_in_the_box() {
    let cases = fixtures::<Vec<TaskCase>>("tasks.json");
    for case in cases.iter().filter(|case| case.masks == "rle") {
        for found in case.answer() {
            let counts = found["rle"]["counts"].as_array().expect("runs");
            let counts: Vec<_> = counts.iter().map(|count| count.as_u64().expect("a length")).collect();
            let [width, height] = case.source.map(u64::from);
            assert_eq!(counts.iter().sum::<u64>(), width * height);
            let left = found["box"]["x1"].as_f64().expect("a box");
            let first_column = f64::from(u32::try_from(counts[0] / height).expect("a column"));
            // A pixel of the input is about two of the picture.
            assert!(first_column + 3.0 >= left, "{first_column} is left of {left}");
        }
    }
}
