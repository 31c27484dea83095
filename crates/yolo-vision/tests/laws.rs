//! Laws that hold for every picture, model and output.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a helper that fails is a failed test")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use yolo_vision::{
    Letterbox, LetterboxError, Masks, ModelInfo, OutputError, OutputView, Parameters, Picture, Size, TensorShape,
    letterbox_into, postprocess,
};

const TARGET: Size = Size::new(640, 640);

fn model(layout_shape: [i64; 2], names: usize) -> ModelInfo {
    let names: Vec<_> = (0..names).map(|class| format!("'{class}'")).collect();
    let metadata: BTreeMap<_, _> = [("names".to_owned(), format!("[{}]", names.join(",")))].into();
    let inputs = [TensorShape::new("images", &[-1, 3, 640, 640])];
    let [rows, columns] = layout_shape;
    ModelInfo::parse(&metadata, &inputs, &[TensorShape::new("output0", &[-1, rows, columns])]).expect("known layout")
}

/// Finds the one box of a standard output with one anchor: what a model would see at `centre_size`.
fn projected(plan: &Letterbox, centre_size: [f32; 4]) -> [f32; 4] {
    let values = [&centre_size[..], &[0.9]].concat();
    let output = OutputView { shape: &[5, 1], values: &values };
    let found = postprocess(&[output], &model([5, 1], 1), plan, &Parameters::default()).expect("one anchor");
    let bounds = found.first().expect("above the threshold").bounds;
    [bounds.x1, bounds.y1, bounds.x2, bounds.y2]
}

proptest! {
    /// A white picture on grey padding shows where the letterbox put it; a box around the white is the whole picture.
    #[test]
    fn projection_inverts_the_letterbox(width in 1..1500_u32, height in 1..1500_u32) {
        let size = Size::new(width, height);
        let white = Picture::from_rgb(size, vec![255; usize::try_from(3 * size.pixels())?]).expect("three bytes a pixel");
        let plan = Letterbox::plan(size, TARGET)?;
        let mut planar = vec![0; plan.output_len()];
        letterbox_into(&white, &plan, &mut planar)?;
        let lit: Vec<_> = (0..640 * 640_usize).filter(|&i| planar[i] == 255).collect();
        let (first, last) = (lit[0], lit[lit.len() - 1]);
        prop_assert!(planar.iter().all(|&pixel| pixel == 255 || pixel == 114));
        let edge = |index: usize| [u16::try_from(index % 640), u16::try_from(index / 640)].map(|side| f32::from(side.expect("below 640")));
        let ([x1, y1], [x2, y2]) = (edge(first), edge(last).map(|side| side + 1.0));
        let whole = projected(&plan, [f32::midpoint(x1, x2), f32::midpoint(y1, y2), x2 - x1, y2 - y1]);
        let expected = [0, 0, width, height].map(|side| f32::from(u16::try_from(side).expect("small")));
        for (found, expected) in whole.into_iter().zip(expected) {
            prop_assert!((found - expected).abs() <= 1e-3 * expected.max(1.0), "{whole:?} of {size}");
        }
    }

    #[test]
    fn a_plan_exists_for_every_size_but_an_empty_one(width in any::<u32>(), height in any::<u32>()) {
        let size = Size::new(width, height);
        match Letterbox::plan(size, TARGET) {
            Ok(plan) => prop_assert_eq!(plan.output_len(), 3 * 640 * 640),
            Err(error) => prop_assert_eq!(error, LetterboxError::Empty { source_size: size, target: TARGET }),
        }
    }

    /// Whatever an engine returns: boxes inside the picture, numbers that are numbers, at most `detections_max`, sorted.
    #[test]
    fn detections_are_bounded(
        values in prop::collection::vec(prop_oneof![4 => -10.0..700.0_f32, 2 => 0.0..1.0_f32, 1 => any::<f32>()], 7 * 40),
        transposed in any::<bool>(),
        detections_max in 1..20_usize,
    ) {
        let shape = if transposed { [40, 7] } else { [7, 40] };
        let plan = Letterbox::plan(Size::new(333, 777), TARGET)?;
        let parameters = Parameters { detections_max, classes: Some(vec![0, 2]), ..Parameters::default() };
        let model = model(shape.map(|length| i64::try_from(length).expect("small")), 3);
        let found = postprocess(&[OutputView { shape: &shape, values: &values }], &model, &plan, &parameters)?;
        prop_assert!(found.len() <= detections_max);
        prop_assert!(found.is_sorted_by(|a, b| a.confidence >= b.confidence));
        for detection in found {
            let bounds = detection.bounds;
            prop_assert!(detection.class != 1 && detection.confidence > 0.25);
            prop_assert!([bounds.x1, bounds.x2].iter().all(|x| (0.0..=333.0).contains(x)), "{bounds:?}");
            prop_assert!([bounds.y1, bounds.y2].iter().all(|y| (0.0..=777.0).contains(y)), "{bounds:?}");
        }
    }

    /// Whatever an engine returns for whatever task: an answer whose every number is one.
    #[test]
    fn answers_of_every_task_are_numbers(
        task in "segment|pose|obb|classify",
        values in prop::collection::vec(prop_oneof![4 => -10.0..700.0_f32, 2 => 0.0..1.0_f32, 1 => any::<f32>()], 12 * 20),
        masks in prop_oneof![Just(Masks::Polygon), Just(Masks::Rle)],
    ) {
        let shape: &'static [usize] = match task.as_str() {
            "segment" => &[12, 20],
            "pose" => &[11, 20],
            "obb" => &[7, 20],
            _ => &[240],
        };
        let outputs: Vec<&'static [usize]> = if task == "segment" { vec![shape, &[6, 4, 10]] } else { vec![shape] };
        let metadata: BTreeMap<_, _> =
            [("task".to_owned(), task), ("kpt_shape".to_owned(), "[2, 3]".to_owned())].into();
        let tensor = |shape: &&[usize]| {
            let dims = shape.iter().map(|&length| i64::try_from(length).expect("small"));
            TensorShape::new(format!("rank{}", shape.len()), &std::iter::once(-1).chain(dims).collect::<Vec<_>>())
        };
        let inputs = [TensorShape::new("images", &[-1, 3, 640, 640])];
        let model = ModelInfo::parse(&metadata, &inputs, &outputs.iter().map(tensor).collect::<Vec<_>>())?;
        let view = |shape: &&'static [usize]| OutputView { shape, values: &values[..shape.iter().product::<usize>()] };
        let parameters = Parameters { masks, ..Parameters::default() };
        let plan = Letterbox::plan(Size::new(333, 777), TARGET)?;
        let found = postprocess(&outputs.iter().map(view).collect::<Vec<_>>(), &model, &plan, &parameters)?;
        for detection in found {
            let json = serde_json::to_string(&detection.to_json(None))?;
            prop_assert!(!json.contains("null"), "{}", json);
        }
    }

    #[test]
    fn metadata_of_any_text_is_read_or_ignored(key in "imgsz|names|stride|args|end2end|kpt_shape", text in r#"[\[\](){}:,'"\\0-9a-zTrue .-]{0,60}"#) {
        let metadata: BTreeMap<_, _> = [(key, text)].into();
        let inputs = [TensorShape::new("images", &[-1, 3, -1, -1])];
        let _ = ModelInfo::parse(&metadata, &inputs, &[TensorShape::new("output0", &[-1, 84, 8400])]);
    }
}

#[test]
fn an_output_of_another_shape_is_an_error() {
    let plan = Letterbox::plan(Size::new(10, 10), TARGET).expect("not empty");
    let values = [0.0; 12];
    for shape in [[3, 4], [0, 0], [12, 2]] {
        let output = OutputView { shape: &shape, values: &values };
        assert!(postprocess(&[output], &model([5, 1], 1), &plan, &Parameters::default()).is_err(), "{shape:?}");
    }
    assert!(postprocess(&[], &model([5, 1], 1), &plan, &Parameters::default()).is_err());
}

#[test]
fn a_letterbox_is_for_one_picture_and_one_buffer() {
    let picture = Picture::from_rgb(Size::new(2, 2), vec![0; 12]).expect("three bytes a pixel");
    let plan = Letterbox::plan(Size::new(2, 3), TARGET).expect("not empty");
    assert_eq!(letterbox_into(&picture, &plan, &mut vec![0; plan.output_len()]), Err(LetterboxError::Mismatch));
    let plan = Letterbox::plan(picture.size(), TARGET).expect("not empty");
    assert_eq!(letterbox_into(&picture, &plan, &mut [0; 5]), Err(LetterboxError::Mismatch));
}

/// YOLOv5's score is a product, which two finite numbers can take past all numbers.
#[test]
fn a_score_that_overflows_is_dropped_and_the_others_stay() {
    let mut values = [0.0; 40 * 7];
    values[..7].copy_from_slice(&[320.0, 320.0, 9.0, 9.0, 1e30, 1e30, 0.0]);
    values[7..14].copy_from_slice(&[320.0, 320.0, 9.0, 9.0, 0.9, 0.0, 0.8]);
    let plan = Letterbox::plan(TARGET, TARGET).expect("not empty");
    let output = OutputView { shape: &[40, 7], values: &values };
    let found = postprocess(&[output], &model([40, 7], 2), &plan, &Parameters::default()).expect("the planned shape");
    assert_eq!(found.iter().map(|detection| detection.class).collect::<Vec<_>>(), [1]);
}

/// A hundred masks, each a bar across a picture of 16 000 x 3 000 pixels: two runs a column.
#[test]
fn masks_that_take_too_much_are_refused() {
    const ANCHORS: usize = 100;
    // Centre, width and height, the scores of two classes, a coefficient.
    let rows = [320.0, 320.0, 640.0, 8.0, 0.9, 0.1, 1.0];
    let values: Vec<f32> = rows.into_iter().flat_map(|value| [value; ANCHORS]).collect();
    let metadata: BTreeMap<_, _> = [("task".to_owned(), "segment".to_owned())].into();
    let outputs = [TensorShape::new("output0", &[-1, 7, 100]), TensorShape::new("output1", &[-1, 1, 160, 160])];
    let inputs = [TensorShape::new("images", &[-1, 3, 640, 640])];
    let model = ModelInfo::parse(&metadata, &inputs, &outputs).expect("a segmentation");
    let plan = Letterbox::plan(Size::new(16_000, 3_000), TARGET).expect("not empty");
    let found = |masks, detections_max| {
        let parameters = Parameters { masks, detections_max, iou: 1.0, ..Parameters::default() };
        let views = [
            OutputView { shape: &[7, ANCHORS], values: &values },
            OutputView { shape: &[1, 160, 160], values: &vec![1.0; 160 * 160] },
        ];
        postprocess(&views, &model, &plan, &parameters).map(|found| found.len())
    };
    assert_eq!(found(Masks::Rle, 60), Ok(60));
    assert_eq!(found(Masks::Rle, ANCHORS), Err(OutputError::TooLarge));
    assert_eq!(found(Masks::Polygon, ANCHORS), Ok(ANCHORS));
}

/// The most that a request may ask for: 100 000 anchors that all pass, 2 999 boxes side by side and then one of them again
/// and again, so that each is compared with all that stay. Measured: 0.4 s of one core either way. Without a bound on the
/// rotated candidates it would be 40 times as long.
#[test]
fn a_hundred_thousand_candidates_are_answered_in_time() {
    const ANCHORS: usize = 100_000;
    const STAY: usize = 2_999;
    const TIME_MAX: Duration = Duration::from_secs(10);
    let place = |side: usize| f32::from(u16::try_from(10 * side + 5).expect("inside the input"));
    let row = |of: &dyn Fn(usize) -> f32| (0..ANCHORS).map(of).collect::<Vec<f32>>();
    let plain = [
        row(&|anchor| place(anchor.min(STAY - 1) % 60)),
        row(&|anchor| place(anchor.min(STAY - 1) / 60)),
        row(&|_| 8.0),
        row(&|_| 8.0),
        row(&|anchor| if anchor < STAY { 0.9 } else { 0.5 }),
    ];
    let plain = plain.concat();
    let rotated = [&plain[..], &row(&|_| 0.1)].concat();
    let letterbox = Letterbox::plan(TARGET, TARGET).expect("not empty");
    let parameters = Parameters { confidence: 0.0, detections_max: 3_000, ..Parameters::default() };
    for (task, values) in [("detect", plain), ("obb", rotated)] {
        let shape = [values.len() / ANCHORS, ANCHORS];
        let metadata: BTreeMap<_, _> =
            [("task".to_owned(), task.to_owned()), ("names".to_owned(), "['0']".to_owned())].into();
        let dims = shape.map(|length| i64::try_from(length).expect("small"));
        let output = TensorShape::new("output0", &[-1, dims[0], dims[1]]);
        let inputs = [TensorShape::new("images", &[-1, 3, 640, 640])];
        let model = ModelInfo::parse(&metadata, &inputs, &[output]).expect("known layout");
        let start = Instant::now();
        let found = postprocess(&[OutputView { shape: &shape, values: &values }], &model, &letterbox, &parameters);
        let took = start.elapsed();
        assert_eq!(found.expect("the model's shape").len(), STAY, "{task}");
        println!("{ANCHORS} candidates, {task}: {took:?}");
        assert!(took <= TIME_MAX, "{task}: {took:?}");
    }
}
