//! The real ONNX Runtime on tiny YOLO-shaped models, one for every output layout.

use std::fs;

use serde_json::Value;
use tokio::sync::Notify;
use yolo_server::{Config, Server, StartError};

use crate::support::{eventually, fixture, on_free_ports, png, predict, start, start_gated};

/// Where the library is: set by `make`, which also fetches it.
pub fn runtime_is_there(test: &str) -> bool {
    let there = std::env::var_os("ORT_DYLIB_PATH").is_some_and(|path| std::path::Path::new(&path).exists());
    if !there {
        println!("SKIPPED {test}: ORT_DYLIB_PATH names no ONNX Runtime (make model)");
        assert!(std::env::var_os("CI").is_none(), "ONNX Runtime is required in CI");
    }
    there
}

pub fn config(model: std::path::PathBuf) -> Config {
    Config { sessions: Some(1), ..on_free_ports(Config::new(model)) }
}

async fn refused(config: Config) -> String {
    let log = tempfile::NamedTempFile::new().unwrap();
    let config = Config { termination_log: log.path().to_owned(), ..config };
    let failed = Box::pin(yolo_server::run(config, std::future::pending(), &Notify::new())).await;
    assert!(matches!(failed, Err(StartError::Model(_))), "{failed:?}");
    fs::read_to_string(log.path()).unwrap()
}

#[tokio::test]
async fn every_layout_finds_the_coloured_picture() {
    if !runtime_is_there("every_layout_finds_the_coloured_picture") {
        return;
    }
    for model in [
        "standard.onnx",
        "standard-batch-2.onnx",
        "standard-half.onnx",
        "transposed.onnx",
        "yolov5.onnx",
        "end2end.onnx",
    ] {
        let server = start(config(fixture(model))).await;
        for (colour, name) in [([250, 4, 4], "red"), ([4, 250, 4], "green"), ([4, 4, 250], "driver's blue")] {
            let answer = predict(&server, &png(64, 64, colour)).await;
            let detections = answer.body["detections"].as_array().unwrap();
            assert!(!detections.is_empty(), "{model} found nothing {name}: {}", answer.body);
            assert!(detections.iter().all(|detection| detection["name"] == name), "{model}: {}", answer.body);
            assert_eq!(answer.body["emulated"], false);
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn a_batch_gives_each_picture_its_own_answer() {
    if !runtime_is_there("a_batch_gives_each_picture_its_own_answer") {
        return;
    }
    let (server, gate) = start_gated(config(fixture("standard.onnx"))).await;
    let colours = [[250, 4, 4], [4, 250, 4], [4, 4, 250], [250, 8, 8]];
    let pictures: Vec<_> = colours.iter().map(|colour| png(64, 64, *colour)).collect();
    // Alone, they make the time of one known: then a batch of two is tried as soon as two wait.
    let alone: Vec<Value> = one_by_one(&server, &pictures).await;
    server.app().offer_knobs(br#"{"maxBatchSize":4}"#);
    let (held, predictor) = (gate.hold().await, server.app().predictor().unwrap());
    let before = png(64, 64, [8, 250, 8]);
    let together = async {
        gate.begun(pictures.len() + 1).await;
        futures::future::join_all(pictures.iter().map(|picture| predict(&server, picture))).await
    };
    let all_wait = async {
        eventually("they wait", async || predictor.batcher().queued() == pictures.len()).await;
        drop(held);
    };
    let (_, together, ()) = tokio::join!(predict(&server, &before), together, all_wait);
    for (together, alone) in together.iter().zip(&alone) {
        assert_eq!((&together.body["detections"], &together.body["batch_size"]), (alone, &Value::from(2)));
    }
    server.stop().await;
}

async fn one_by_one(server: &Server, pictures: &[Vec<u8>]) -> Vec<Value> {
    let mut answers = Vec::new();
    for picture in pictures {
        answers.push(predict(server, picture).await.body["detections"].clone());
    }
    answers
}

#[tokio::test]
async fn a_model_that_cannot_be_served_says_why_and_names_the_file() {
    if !runtime_is_there("a_model_that_cannot_be_served_says_why_and_names_the_file") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let whole = fs::read(fixture("standard.onnx")).unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        config(path)
    };
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    // It is there, as long as the model says: only where it lies is wrong.
    fs::write(folder.path().join("outside.bin"), [0; 1 << 10]).unwrap();
    let outside = inner.join("external-data-outside.onnx");
    fs::copy(fixture("external-data-outside.onnx"), &outside).unwrap();
    let digest = Some("0".repeat(64));
    for (config, code, name) in [
        (config(folder.path().join("absent.onnx")), "model_missing", "absent.onnx"),
        (file("empty.onnx", b""), "model_truncated", "empty.onnx"),
        (file("half.onnx", &whole[..whole.len() / 2]), "model_truncated", "half.onnx"),
        (file("text.onnx", b"this is no model"), "model_truncated", "text.onnx"),
        (Config { model_sha256: digest, ..file("other.onnx", &whole) }, "model_digest_mismatch", "other.onnx"),
        (config(outside), "model_unsupported", "external-data-outside.onnx"),
        (config(fixture("custom-operator.onnx")), "model_unsupported", "custom-operator.onnx"),
        (config(fixture("unknown-task.onnx")), "model_unsupported", "unknown-task.onnx"),
        (Config { imgsz: vec![33], ..file("odd.onnx", &whole) }, "model_unsupported", "odd.onnx"),
    ] {
        let log: Value = serde_json::from_str(&refused(config).await).unwrap();
        assert_eq!(log["code"], code, "{log}");
        assert!(log["message"].as_str().unwrap().contains(name), "{log}");
    }
}
