//! yolo-vision against OpenCV and numpy: files that `make fixtures` wrote, tolerance 0 wherever `zune-jpeg` is not involved.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a helper that fails is a failed test")]

mod fixture;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use fixture::{fixtures, synthetic};
use serde::Deserialize;
use yolo_vision::{
    DecodeLimits, Detection, Layout, Letterbox, ModelInfo, OutputView, Parameters, Size, TensorShape, decode,
    letterbox_into, letterbox_parallel_into, normalise, postprocess,
};

/// OpenCV's inverse DCT differs from that of `zune-jpeg` by a few levels; libjpeg-turbo's is the same.
const JPEG_LEVELS_MAX: u8 = if cfg!(feature = "turbojpeg") { 0 } else { 4 };
/// Largest mean difference on a page, in levels.
const JPEG_LEVELS_MEAN_MAX: f64 = if cfg!(feature = "turbojpeg") { 0.0 } else { 0.15 };

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

fn assert_pixels(name: &str, encoded: &[u8], case: &DecodeCase) {
    let expected = fixture::bytes(&format!("decode/{}.rgb", case.file));
    let picture = decode(encoded, &DecodeLimits::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(picture.size(), Size::new(case.size[0], case.size[1]), "{name}");
    let worst = picture.rgb().iter().zip(&expected).map(|(ours, theirs)| ours.abs_diff(*theirs)).max();
    let allowed = if case.exact { 0 } else { JPEG_LEVELS_MAX };
    assert!(worst <= Some(allowed), "{name}: differs by {worst:?} levels, allowed {allowed}");
}

#[test]
fn decoded_pixels_equal_opencv() {
    for case in fixtures::<Vec<DecodeCase>>("decode.json") {
        assert_pixels(&case.file, &fixture::bytes(&format!("decode/{}", case.file)), &case);
    }
}

/// Many a camera leaves some; libjpeg warns of them.
#[test]
fn stray_bytes_before_the_end_of_a_jpeg_change_no_pixel() {
    for case in fixtures::<Vec<DecodeCase>>("decode.json").into_iter().filter(|case| !case.exact) {
        let file = fixture::bytes(&format!("decode/{}", case.file));
        let (picture, end) = file.split_at(file.len() - 2);
        assert_pixels(&format!("{} with stray bytes", case.file), &[picture, &[0; 5], end].concat(), &case);
    }
}

/// Real files, each beside what OpenCV decodes from it.
#[test]
fn jpeg_pages_equal_opencv() {
    let Some(cache) = std::env::var_os("YOLO_CACHE").map(PathBuf::from) else {
        assert!(std::env::var_os("CI").is_none(), "CI has the pages");
        println!("SKIPPED jpeg_pages_equal_opencv: no YOLO_CACHE (make reference)");
        return;
    };
    let read = |path: PathBuf| {
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; make reference writes it", path.display()))
    };
    let pages = std::fs::read_dir(cache.join("pages/jpeg")).expect("make reference renders them");
    let (mut worst, mut worst_mean, mut count) = (0, 0.0_f64, 0);
    for page in pages.map(|page| page.expect("readable").path()) {
        let kept = cache.join("reference/jpeg").join(page.file_name().expect("a file")).with_extension("png");
        let [ours, theirs] = [page, kept].map(|path| decode(&read(path), &DecodeLimits::default()).expect("decodes"));
        assert_eq!(ours.size(), theirs.size());
        let levels = || ours.rgb().iter().zip(theirs.rgb()).map(|(ours, theirs)| ours.abs_diff(*theirs));
        worst = levels().fold(worst, u8::max);
        let samples = f64::from(u32::try_from(ours.rgb().len()).expect("a page"));
        worst_mean = worst_mean.max(levels().map(f64::from).sum::<f64>() / samples);
        count += 1;
    }
    println!("{count} JPEG pages: at most {worst} levels from OpenCV, {worst_mean:.3} on average on the worst page");
    assert!(count > 0 && (0..=JPEG_LEVELS_MAX).contains(&worst) && worst_mean <= JPEG_LEVELS_MEAN_MAX);
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
