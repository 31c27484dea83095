//! yolo-vision against OpenCV and numpy: files that `make fixtures` wrote, tolerance 0 wherever no JPEG is involved.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a helper that fails is a failed test")]

mod fixture;

use std::num::NonZeroUsize;

use fixture::{fixtures, synthetic};
use serde::Deserialize;
use yolo_vision::{
    DecodeLimits, Detection, Layout, Letterbox, ModelInfo, OutputView, Parameters, Size, TensorShape, decode,
    letterbox_into, letterbox_parallel_into, normalise, postprocess,
};

/// OpenCV's inverse DCT differs from ours by a few levels.
const JPEG_LEVELS_MAX: u8 = 4;

#[derive(Deserialize)]
struct LetterboxCase {
    source: [u32; 2],
    target: [u32; 2],
    fnv1a64: String,
}

#[test]
fn letterbox_equals_opencv_in_every_byte() {
    for case in fixtures::<Vec<LetterboxCase>>("letterbox.json") {
        let picture = synthetic(Size::new(case.source[0], case.source[1]));
        let plan = Letterbox::plan(picture.size(), Size::new(case.target[0], case.target[1])).expect("not empty");
        let mut planar = vec![0; plan.output_len()];
        letterbox_into(&picture, &plan, &mut planar).expect("planned for this picture");
        assert_eq!(fixture::fnv1a64(&planar), case.fnv1a64, "{:?} into {:?}", case.source, case.target);
    }
}

#[test]
fn any_number_of_threads_gives_the_same_letterbox() {
    for size in [Size::new(1920, 1080), Size::new(777, 933), Size::new(1279, 1281)] {
        let picture = synthetic(size);
        let plan = Letterbox::plan(size, Size::new(1280, 1280)).expect("not empty");
        let filled = |threads: usize| {
            let mut planar = vec![0; plan.output_len()];
            let threads = NonZeroUsize::new(threads).expect("some");
            letterbox_parallel_into(&picture, &plan, &mut planar, threads).expect("planned for this picture");
            planar
        };
        assert!(plan.threads_max().get() > 1, "{size} is worth a second thread");
        let alone = filled(1);
        assert!([2, 3, 64].into_iter().all(|threads| filled(threads) == alone), "{size}");
    }
}

#[test]
fn tensor_values_equal_numpy_in_every_bit() {
    let expected: Vec<u32> = fixtures("tensor.json");
    let pixels: Vec<u8> = (0..=u8::MAX).collect();
    let mut tensor = vec![0.0; pixels.len()];
    normalise(&pixels, &mut tensor);
    assert_eq!(tensor.into_iter().map(f32::to_bits).collect::<Vec<_>>(), expected);
}

#[derive(Deserialize)]
struct DecodeCase {
    file: String,
    size: [u32; 2],
    exact: bool,
}

#[test]
fn decoded_pixels_equal_opencv() {
    for case in fixtures::<Vec<DecodeCase>>("decode.json") {
        let encoded = fixture::bytes(&format!("decode/{}", case.file));
        let expected = fixture::bytes(&format!("decode/{}.rgb", case.file));
        let picture = decode(&encoded, &DecodeLimits::default()).unwrap_or_else(|e| panic!("{}: {e}", case.file));
        assert_eq!(picture.size(), Size::new(case.size[0], case.size[1]), "{}", case.file);
        let worst = picture.rgb().iter().zip(&expected).map(|(ours, theirs)| ours.abs_diff(*theirs)).max();
        let allowed = if case.exact { 0 } else { JPEG_LEVELS_MAX };
        assert!(worst <= Some(allowed), "{}: differs by {worst:?} levels, allowed {allowed}", case.file);
    }
}

#[derive(Deserialize)]
struct OutputCase {
    file: String,
    layout: String,
    shape: [usize; 2],
    source: [u32; 2],
    target: [u32; 2],
    names: usize,
    confidence: f32,
    iou: f64,
    detections_max: usize,
    detections: Vec<ExpectedDetection>,
}

#[derive(Deserialize)]
struct ExpectedDetection {
    class: u32,
    confidence: f32,
    #[serde(rename = "box")]
    bounds: [f32; 4],
}

impl OutputCase {
    fn model(&self) -> ModelInfo {
        let names: Vec<_> = (0..self.names).map(|class| format!("'{class}'")).collect();
        let mut metadata: std::collections::BTreeMap<_, _> =
            [("names".to_owned(), format!("[{}]", names.join(",")))].into();
        if self.layout == "end2end" {
            metadata.insert("end2end".to_owned(), "True".to_owned());
        }
        let [width, height] = self.target.map(i64::from);
        let [rows, columns] = self.shape.map(|length| i64::try_from(length).expect("small"));
        let inputs = [TensorShape::new("images", &[-1, 3, height, width])];
        ModelInfo::parse(&metadata, &inputs, &[TensorShape::new("output0", &[-1, rows, columns])])
            .expect("known layout")
    }

    fn detections(&self) -> Vec<Detection> {
        let raw = fixture::bytes(&format!("outputs/{}", self.file));
        let values: Vec<f32> = raw.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let plan =
            Letterbox::plan(Size::new(self.source[0], self.source[1]), Size::new(self.target[0], self.target[1]));
        let parameters = Parameters {
            confidence: self.confidence,
            iou: self.iou,
            detections_max: self.detections_max,
            ..Parameters::default()
        };
        let output = OutputView { shape: &self.shape, values: &values };
        postprocess(&[output], &self.model(), &plan.expect("not empty"), &parameters).expect("the layout's shape")
    }
}

#[test]
fn recorded_outputs_give_the_reference_detections_in_every_bit() {
    for case in fixtures::<Vec<OutputCase>>("outputs.json") {
        let expected: Vec<_> =
            case.detections.iter().map(|d| (d.class, d.confidence.to_bits(), d.bounds.map(f32::to_bits))).collect();
        let bits = |d: &Detection| [d.bounds.x1, d.bounds.y1, d.bounds.x2, d.bounds.y2].map(f32::to_bits);
        let found: Vec<_> = case.detections().iter().map(|d| (d.class, d.confidence.to_bits(), bits(d))).collect();
        assert!(!expected.is_empty(), "{}: the fixture finds something", case.file);
        assert_eq!(found, expected, "{} at confidence {}", case.file, case.confidence);
    }
}

#[test]
fn every_layout_has_its_recorded_output() {
    let layouts: Vec<_> =
        fixtures::<Vec<OutputCase>>("outputs.json").iter().map(|case| case.model().layout()).collect();
    for layout in [Layout::Standard, Layout::Transposed, Layout::Yolov5, Layout::EndToEnd] {
        assert!(layouts.contains(&layout), "{layout:?}");
    }
}
