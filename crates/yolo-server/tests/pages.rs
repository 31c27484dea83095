//! The real model on 23 real pages: the server's path against ONNX Runtime, OpenCV and numpy (`make reference`).
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::panic, reason = "a helper that fails is a failed test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use yolo_server::engine::ort::{Options, load};
use yolo_server::engine::{Engine, EngineInput, LoadedModel, Memory};
use yolo_testkit::figures::{self, Figure};
use yolo_vision::{DecodeLimits, Detection, Letterbox, Parameters, Picture, Size, decode, letterbox_into, postprocess};

/// Largest distance of an edge that counts as the same box, in pixels of the page.
const BOX_PX_MAX: f64 = 0.01;
/// Largest difference of a score that counts as the same.
const CONFIDENCE_MAX: f64 = 1e-4;

#[derive(Deserialize)]
struct Page {
    size: [u32; 2],
    detections: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    class: u32,
    confidence: f32,
    #[serde(rename = "box")]
    bounds: [f32; 4],
}

/// Folder of the pages, then file name.
type Reference = BTreeMap<String, BTreeMap<String, Page>>;

fn cache() -> PathBuf {
    let folder = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    folder("YOLO_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|path| path.join("yolo-operator")))
        .or_else(|| folder("HOME").map(|path| path.join(".cache/yolo-operator")))
        .expect("a home directory")
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}; make reference writes it", path.display()))
}

fn reference() -> Reference {
    serde_json::from_slice(&read(&cache().join("reference/pages-640.json"))).expect("as make reference writes it")
}

fn page_model() -> LoadedModel {
    let model = cache().join("models/page-layout-640.onnx");
    load(&Options { model, sha256: None, side_px: None, threads: 1 })
        .unwrap_or_else(|error| panic!("{error}; make test-unit fetches the model and names the library"))
}

fn page(folder: &str, name: &str) -> Picture {
    let bytes = read(&cache().join("pages").join(folder).join(name));
    decode(&bytes, &DecodeLimits::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn prepared(picture: &Picture, target: Size) -> (EngineInput, Letterbox) {
    let letterbox = Letterbox::plan(picture.size(), target).expect("pages are not empty");
    let mut pixels = vec![0; letterbox.output_len()];
    letterbox_into(picture, &letterbox, &mut pixels).expect("planned for this page");
    (EngineInput { pixels, content: [0; 32] }, letterbox)
}

/// Runs pictures as one batch.
fn detections(engine: &mut dyn Engine, model: &LoadedModel, pictures: &[Picture]) -> Vec<Vec<Detection>> {
    let prepared = pictures.iter().map(|picture| prepared(picture, model.info.size()));
    let (inputs, letterboxes): (Vec<_>, Vec<_>) = prepared.unzip();
    let outputs = engine.run(&inputs.iter().collect::<Vec<_>>(), Memory::Keep).expect("the engine runs");
    let found = |(index, letterbox): (usize, &Letterbox)| {
        let outputs = outputs.image(index).expect("an output an image");
        postprocess(&outputs, &model.info, letterbox, &Parameters::default()).expect("the model's layout")
    };
    letterboxes.iter().enumerate().map(found).collect()
}

/// Largest differences: of an edge in pixels, of a score.
fn differences(found: &[Detection], expected: &[Expected], page: &str) -> (f32, f32) {
    let ours: Vec<_> = found.iter().map(|detection| detection.class).collect();
    let theirs: Vec<_> = expected.iter().map(|detection| detection.class).collect();
    assert_eq!(ours, theirs, "classes on {page}");
    found.iter().zip(expected).fold((0.0_f32, 0.0_f32), |(box_px, confidence), (ours, theirs)| {
        let edges = [ours.bounds.x1, ours.bounds.y1, ours.bounds.x2, ours.bounds.y2];
        let edge = edges.iter().zip(theirs.bounds).map(|(a, b)| (a - b).abs()).fold(box_px, f32::max);
        (edge, confidence.max((ours.confidence - theirs.confidence).abs()))
    })
}

#[test]
fn png_pages_give_the_reference_detections_alone_and_in_batches() {
    let reference = reference();
    let pages: Vec<_> = reference.get("png").expect("png pages").iter().collect();
    let model = page_model();
    let mut engine = model.sessions.open().expect("a session");
    for batch in [1, 4] {
        let (mut box_px, mut confidence, mut elements) = (0.0_f32, 0.0_f32, 0);
        for pages in pages.chunks(batch) {
            let pictures: Vec<_> = pages.iter().map(|(name, _)| page("png", name)).collect();
            let found = detections(engine.as_mut(), &model, &pictures);
            for (found, (picture, (name, page))) in found.iter().zip(pictures.iter().zip(pages)) {
                assert_eq!(picture.size(), Size::new(page.size[0], page.size[1]), "{name}");
                let (page_box_px, page_confidence) = differences(found, &page.detections, name);
                box_px = box_px.max(page_box_px);
                confidence = confidence.max(page_confidence);
                elements += found.len();
            }
        }
        let count = pages.len();
        println!(
            "{count} png pages, batch {batch}: {elements} elements, boxes within {box_px} px, scores within {confidence}"
        );
        let (box_px, confidence) = (f64::from(box_px), f64::from(confidence));
        let id = |what: &str| format!("pages_batch_{batch}_{what}");
        let mut measured = [
            Figure::at_most(id("box_difference"), box_px, "px", BOX_PX_MAX),
            Figure::at_most(id("score_difference"), confidence, "ratio", CONFIDENCE_MAX),
            Figure::reported(id("elements"), f64::from(u32::try_from(elements).expect("few")), "boxes"),
        ];
        figures::add("server", "make bench-server", &mut measured).expect("figures are written");
        assert!(elements > 0 && box_px <= BOX_PX_MAX && confidence <= CONFIDENCE_MAX, "batch {batch}");
    }
}

/// Another JPEG decoder than OpenCV's moves pixels by a few levels, and so a score near the threshold across it.
#[test]
fn jpeg_pages_give_nearly_the_reference_count() {
    let reference = reference();
    let pages = reference.get("jpeg").expect("jpeg pages");
    let model = page_model();
    let mut engine = model.sessions.open().expect("a session");
    let mut elements = 0;
    for name in pages.keys() {
        elements += detections(engine.as_mut(), &model, &[page("jpeg", name)]).iter().map(Vec::len).sum::<usize>();
    }
    let expected: usize = pages.values().map(|page| page.detections.len()).sum();
    println!("{} jpeg pages: {elements} elements, the reference finds {expected}", pages.len());
    assert!(elements.abs_diff(expected) * 50 <= expected, "more than 2 % apart");
}
