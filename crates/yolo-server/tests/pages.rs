//! The real model on 23 real pages: the server's path against ONNX Runtime, OpenCV and numpy (`make reference`).
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::panic, reason = "a helper that fails is a failed test")]

#[path = "support/pages.rs"]
mod support;

use yolo_server::engine::ort::{Device, Options, placement};
use yolo_testkit::figures::{self, Figure};
use yolo_vision::{Detection, Picture, Size};

use support::{Expected, detections, opened, page, page_options, reference};

/// Largest distance of an edge that counts as the same box, in pixels of the page.
const BOX_PX_MAX: f64 = 1e-3;
/// Largest difference of a score that counts as the same.
const CONFIDENCE_MAX: f64 = 1e-5;

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
    let model = opened(&page_options(640));
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
    let model = opened(&page_options(640));
    let mut engine = model.sessions.open().expect("a session");
    let mut elements = 0;
    for name in pages.keys() {
        elements += detections(engine.as_mut(), &model, &[page("jpeg", name)]).iter().map(Vec::len).sum::<usize>();
    }
    let expected: usize = pages.values().map(|page| page.detections.len()).sum();
    println!("{} jpeg pages: {elements} elements, the reference finds {expected}", pages.len());
    assert!(elements.abs_diff(expected) * 50 <= expected, "more than 2 % apart");
}

/// What a machine without a GPU can check of the way that GPUs go: a session a batch size, bound buffers, padding.
#[test]
fn bound_sessions_give_the_reference_detections_in_padded_batches() {
    let reference = reference();
    let pages: Vec<_> = reference.get("png").expect("png pages").iter().take(8).collect();
    let model = opened(&Options { device: Device::CpuBound, ..page_options(640) });
    let mut engine = model.sessions.open().expect("a session");
    let (mut box_px, mut confidence) = (0.0_f32, 0.0_f32);
    // Three are run as four; the last two as two.
    for pages in pages.chunks(3) {
        let pictures: Vec<Picture> = pages.iter().map(|(name, _)| page("png", name)).collect();
        let found = detections(engine.as_mut(), &model, &pictures);
        for (found, (name, page)) in found.iter().zip(pages) {
            let (page_box_px, page_confidence) = differences(found, &page.detections, name);
            (box_px, confidence) = (box_px.max(page_box_px), confidence.max(page_confidence));
        }
    }
    println!("bound sessions: boxes within {box_px} px, scores within {confidence}");
    assert!(f64::from(box_px) <= BOX_PX_MAX && f64::from(confidence) <= CONFIDENCE_MAX);
}

#[test]
fn a_profiled_run_tells_that_the_cpu_ran_the_convolutions() {
    let placement = placement(&Options { device: Device::CpuBound, ..page_options(320) }).expect("a profile");
    // YOLOv8n has 64 of them; none may be missed, whatever they were fused with.
    assert_eq!(placement.cpu_convolutions(), 64, "{placement:?}");
    let refused = placement.require("CUDAExecutionProvider").expect_err("it ran on the CPU");
    assert!(refused.contains("the CPU 64 convolutions"), "{refused}");
}
