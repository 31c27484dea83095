//! Any numbers as a model's outputs: detections within the picture, or an error. The first byte chooses the model.
#![no_main]

use libfuzzer_sys::fuzz_target;
use yolo_vision::{Letterbox, ModelInfo, OutputView, Parameters, Size, TensorShape, postprocess};

/// Task, end to end or not, and the shapes of the outputs without the batch.
const MODELS: [(&str, &str, &[&[usize]]); 8] = [
    ("detect", "False", &[&[6, 40]]),
    ("detect", "False", &[&[40, 7]]),
    ("detect", "True", &[&[40, 6]]),
    ("segment", "False", &[&[38, 40], &[32, 8, 8]]),
    ("segment", "True", &[&[40, 38], &[32, 8, 8]]),
    ("pose", "False", &[&[57, 60]]),
    ("obb", "False", &[&[7, 40]]),
    ("classify", "False", &[&[2]]),
];

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else { return };
    let (task, end_to_end, shapes) = MODELS[usize::from(choice) % MODELS.len()];
    let metadata = [("task", task), ("end2end", end_to_end), ("names", "['a', 'b']"), ("kpt_shape", "[17, 3]")];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let dims = |shape: &[usize]| [1].into_iter().chain(shape.iter().map(|&n| n as i64)).collect::<Vec<_>>();
    let outputs: Vec<_> = shapes.iter().map(|shape| TensorShape::new("output", &dims(shape))).collect();
    let inputs = [TensorShape::new("images", &[1, 3, 32, 32])];
    let Ok(model) = ModelInfo::parse(&metadata, &inputs, &outputs) else { return };
    let mut numbers = bytes.as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number)).cycle();
    let mut tensor = |shape: &[usize]| {
        let length = shape.iter().product();
        let mut values: Vec<f32> = numbers.by_ref().take(length).collect();
        values.resize(length, 0.5);
        values
    };
    let values: Vec<_> = shapes.iter().map(|shape| tensor(shape)).collect();
    let views: Vec<_> = shapes.iter().zip(&values).map(|(shape, values)| OutputView { shape, values }).collect();
    let picture = Size::new(333, 77);
    let letterbox = Letterbox::plan(picture, Size::new(32, 32)).expect("neither is empty");
    if let Ok(found) = postprocess(&views, &model, &letterbox, &Parameters::default()) {
        assert!(found.len() <= Parameters::default().detections_max);
        assert!(found.iter().all(|detection| detection.confidence.is_finite()));
    }
});
