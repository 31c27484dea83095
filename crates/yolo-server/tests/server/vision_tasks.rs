//! The real ONNX Runtime on a tiny model of every task and layout, against what OpenCV, Pillow and numpy make of it.

use std::fs;

use axum::http::StatusCode;
use serde_json::Value;

use crate::onnx::{config, runtime_is_there};
use crate::support::{call, fixture, metric, post, predict, start};

/// Last bits depend on the processor: pixels, and scores, of what the engine computed.
const TOLERANCE: f64 = 2e-3;

fn file(name: &str) -> Vec<u8> {
    let path = fixture("").with_file_name(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; make fixtures writes it", path.display()))
}

/// Fails where two documents differ in more than numbers, or in a number by more than [`TOLERANCE`].
fn assert_alike(ours: &Value, theirs: &Value, place: &str) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{place}");
            a.iter().for_each(|(key, value)| assert_alike(value, &b[key], &format!("{place}.{key}")));
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{place}: {ours} and {theirs}");
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| assert_alike(a, b, &format!("{place}[{i}]")));
        }
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            assert!((a - b).abs() <= TOLERANCE, "{place}: {a} and {b}");
        }
        _ => assert_eq!(ours, theirs, "{place}"),
    }
}

#[tokio::test]
async fn every_task_and_layout_answers_what_the_reference_finds() {
    if !runtime_is_there("every_task_and_layout_answers_what_the_reference_finds") {
        return;
    }
    let picture = file("shaded.png");
    let expected: Value = serde_json::from_slice(&file("answers.json")).unwrap();
    for (model, expected) in expected.as_object().unwrap() {
        let server = start(config(fixture(&format!("{model}.onnx")))).await;
        let answer = call(&server, post("/predict?max_det=5", picture.clone())).await;
        assert_eq!(answer.status, StatusCode::OK, "{model}: {}", answer.body);
        assert!(!expected.as_array().unwrap().is_empty(), "{model}: the reference finds something");
        assert_alike(&answer.body["detections"], expected, model);
        server.stop().await;
    }
}

#[tokio::test]
async fn the_task_and_the_precision_are_told() {
    if !runtime_is_there("the_task_and_the_precision_are_told") {
        return;
    }
    for (model, task, precision) in [
        ("standard", "detect", "fp32"),
        ("segment-half", "segment", "fp16"),
        ("pose", "pose", "fp32"),
        ("obb", "obb", "fp32"),
        ("classify", "classify", "fp32"),
    ] {
        let server = start(config(fixture(&format!("{model}.onnx")))).await;
        let answer = predict(&server, &file("shaded.png")).await;
        assert_eq!(answer.body["model"]["task"], task);
        let (_, metrics) = crate::support::admin(&server, "/metrics").await;
        let info = metrics.lines().find(|line| line.starts_with("yolo_model_info{")).unwrap();
        assert!(info.contains(&format!("task=\"{task}\"")), "{info}");
        assert!(info.contains(&format!("precision=\"{precision}\"")), "{info}");
        assert!(metric(&server, "yolo_detections_total").await > 0.0);
        server.stop().await;
    }
}

#[tokio::test]
async fn more_detections_than_masks_are_made_for_need_no_masks() {
    if !runtime_is_there("more_detections_than_masks_are_made_for_need_no_masks") {
        return;
    }
    for (model, query, status) in [
        ("segment", "max_det=300", StatusCode::OK),
        ("segment", "max_det=301", StatusCode::UNPROCESSABLE_ENTITY),
        ("segment", "max_det=3000&masks=rle", StatusCode::UNPROCESSABLE_ENTITY),
        ("segment", "max_det=3000&masks=none", StatusCode::OK),
        ("standard", "max_det=3000", StatusCode::OK),
    ] {
        let server = start(config(fixture(&format!("{model}.onnx")))).await;
        let answer = call(&server, post(&format!("/predict?{query}"), file("shaded.png"))).await;
        assert_eq!(answer.status, status, "{model} {query}: {}", answer.body);
        if status != StatusCode::OK {
            assert_eq!(answer.body["error"]["code"], "invalid_parameter");
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn masks_are_answered_as_asked() {
    if !runtime_is_there("masks_are_answered_as_asked") {
        return;
    }
    let server = start(config(fixture("segment.onnx"))).await;
    let picture = file("shaded.png");
    for (masks, present, absent) in
        [("polygon", Some("segments"), "rle"), ("rle", Some("rle"), "segments"), ("none", None, "segments")]
    {
        let answer = call(&server, post(&format!("/predict?masks={masks}"), picture.clone())).await;
        assert_eq!(answer.body["cache"], "miss", "another form is another answer");
        let detections = answer.body["detections"].as_array().unwrap();
        assert!(!detections.is_empty(), "{}", answer.body);
        for detection in detections {
            assert!(present.is_none_or(|key| detection.get(key).is_some()), "{masks}: {detection}");
            assert!(detection.get(absent).is_none(), "{masks}: {detection}");
        }
    }
    server.stop().await;
}
