//! The error table: every row that this path can reach, as a client meets it.

use axum::body::Body;
use axum::http::Request;
use proptest::prelude::*;

use crate::support::{Answer, call, emulated, metric, png, post, predict, start, start_patient};

/// An error has its status, its code, a sentence, the request's id, and says whether to retry.
fn assert_error(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status.as_u16(), answer.code()), (status, code), "{}", answer.body);
    let error = &answer.body["error"];
    assert!(error["message"].as_str().unwrap().len() > 10);
    assert_eq!(error["request_id"].as_str().unwrap(), answer.headers["x-request-id"]);
    assert!(error["retryable"].is_boolean());
}

fn form(content_type: &str, body: &str) -> Request<Body> {
    Request::post("/predict").header("content-type", content_type).body(body.to_owned().into()).unwrap()
}

/// A PNG's signature and header chunk, claiming a size that the file does not have.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut file = png(1, 1, [0; 3]);
    file[16..20].copy_from_slice(&width.to_be_bytes());
    file[20..24].copy_from_slice(&height.to_be_bytes());
    let checksum = crc32(&file[12..29]);
    file[29..33].copy_from_slice(&checksum.to_be_bytes());
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[tokio::test]
async fn bad_requests_and_bad_pictures_get_their_row_of_the_table() {
    let server = start(emulated(0, 1)).await;
    let whole = png(32, 32, [1, 2, 3]);
    let multipart = "multipart/form-data; boundary=x";
    for (request, status, code) in [
        (post("/predict", ""), 400, "invalid_request"),
        (post("/predict?speed=fast", whole.clone()), 400, "invalid_request"),
        (post("/predict?conf=high", whole.clone()), 400, "invalid_request"),
        (form("multipart/form-data", "x"), 400, "invalid_request"),
        (form(multipart, "no boundary here"), 400, "invalid_request"),
        (
            form(multipart, "--x\r\nContent-Disposition: form-data; name=\"conf\"\r\n\r\n0.5\r\n--x--\r\n"),
            400,
            "invalid_request",
        ),
        (form("application/json", "{\"image\":"), 400, "invalid_request"),
        (form("application/json", "{\"image\":\"*\"}"), 400, "invalid_request"),
        (form("application/json", "[]"), 400, "invalid_request"),
        (post("/elsewhere", ""), 404, "not_found"),
        (Request::get("/predict").body(Body::empty()).unwrap(), 405, "method_not_allowed"),
        (post("/predict", vec![0; (20 << 20) + 1]), 413, "payload_too_large"),
        (post("/predict", "GIF89a is no picture of ours"), 415, "unsupported_image"),
        (post("/predict", whole[..whole.len() - 20].to_vec()), 422, "bad_image"),
        (post("/predict", png_header(20_000, 1)), 422, "image_too_large"),
        (post("/predict", png_header(10_000, 10_000)), 422, "image_too_large"),
        (post("/predict?max_det=0", whole.clone()), 422, "invalid_parameter"),
        (post("/predict?imgsz=1280", whole.clone()), 422, "imgsz_unavailable"),
    ] {
        assert_error(&call(&server, request).await, status, code);
    }
    assert_eq!(predict(&server, &whole).await.status, 200, "and a good one is served");
    assert!((metric(&server, r#"yolo_images_total{outcome="ok",source="sync"}"#).await - 1.0).abs() < 1e-9);
    assert!(metric(&server, r#"yolo_images_total{outcome="failed",source="sync"}"#).await.abs() < 1e-9, "no 500");
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_one() {
    let server = start(emulated(0, 1)).await;
    let answer = call(&server, Request::delete("/predict").body(Body::empty()).unwrap()).await;
    assert_eq!(answer.headers["allow"], "POST");
    server.stop().await;
}

#[tokio::test]
async fn a_long_queue_refuses_early_and_says_when_to_come_back() {
    let mut config = emulated(200, 0);
    config.imgsz = Some(32);
    let server = start(config).await;
    server.app().offer_knobs(br#"{"deadlineMillis":250,"cacheBytes":0,"maxBatchSize":1}"#);
    let pictures: Vec<_> = (0..12).map(|shade| png(8, 8, [shade; 3])).collect();
    let answers = futures::future::join_all(pictures.iter().map(|picture| predict(&server, picture))).await;
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
    let answered = answers.iter().filter(|answer| answer.status == 200).count();
    assert!(answered >= 1 && refused.len() >= 6, "{answered} served, {} refused", refused.len());
    for answer in &refused {
        let seconds: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=30).contains(&seconds), "{seconds}");
        assert_eq!(answer.body["error"]["retryable"], true);
    }
    let shed = metric(&server, r#"yolo_http_request_duration_seconds_count{outcome="shed"}"#).await;
    assert!(shed >= 6.0);
    let arrivals = metric(&server, "yolo_arrivals_total").await;
    assert!((arrivals - 12.0).abs() < 1e-9, "shed images are demand: {arrivals}");
    server.stop().await;
}

#[tokio::test]
async fn an_answer_that_takes_longer_than_the_request_allows_is_504() {
    let server = start_patient(emulated(300, 0)).await;
    let answer = call(&server, post("/predict?timeout_ms=100", png(8, 8, [1; 3]))).await;
    assert_error(&answer, 504, "deadline_exceeded");
    server.stop().await;
}

#[test]
fn damaged_pictures_are_answered_with_a_client_error() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(start(emulated(0, 0)));
    let whole = png(24, 24, [120, 30, 7]);
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
    let damage = proptest::collection::vec((0..whole.len(), any::<u8>()), 1..6);
    proptest!(config, |(damage in damage, cut in 0..whole.len())| {
        let mut file = whole.clone();
        for (at, byte) in damage {
            file[at] = byte;
        }
        for file in [&file[..], &file[..cut]] {
            let answer = runtime.block_on(predict(&server, file));
            prop_assert!(answer.status.as_u16() < 500, "{}", answer.body);
        }
    });
    runtime.block_on(server.stop());
}
