//! `POST /predict/batch`: every picture has its own fate, in the order in which they were sent.

use axum::body::Body;
use axum::http::Request;
use base64::Engine as _;
use serde_json::{Value, json};
use tower::ServiceExt;
use yolo_server::limits::BodyLimits;
use yolo_server::{Server, http};

use crate::support::{self, Answer, emulated, eventually, metric, multipart, png, predict, send, start, start_gated};

const BATCH: &str = "/predict/batch";

fn pictures(count: u8) -> Vec<Vec<u8>> {
    (0..count).map(|shade| png(8, 8, [shade, 100, 7])).collect()
}

fn form(pictures: &[Vec<u8>], uri: &str) -> Request<Body> {
    let fields: Vec<_> = pictures.iter().map(|picture| ("file", picture.as_slice())).collect();
    multipart(uri, &fields)
}

fn results(answer: &Answer) -> &[Value] {
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body["results"].as_array().unwrap()
}

async fn images(server: &Server, outcome: &str) -> f64 {
    metric(server, &format!(r#"yolo_images_total{{outcome="{outcome}",source="sync"}}"#)).await
}

#[tokio::test]
async fn each_picture_has_its_result_or_its_error_in_order() {
    let server = start(emulated(0, 1)).await;
    let (first, last) = (png(40, 30, [9, 8, 7]), png(20, 50, [1, 200, 3]));
    let fields: [(&str, &[u8]); 5] =
        [("file", &first), ("conf", b"0.3"), ("images[]", b"no picture"), ("image", b""), ("file", &last)];
    let answer = send(&server, multipart(BATCH, &fields)).await;
    let results = results(&answer);
    assert_eq!(results.len(), 4);
    for (result, picture, width) in [(&results[0], &first, 40), (&results[3], &last, 20)] {
        let alone = send(&server, multipart("/predict", &[("file", picture), ("conf", b"0.3")])).await;
        assert_eq!((&result["detections"], &result["image"]["width"]), (&alone.body["detections"], &json!(width)));
        assert_eq!(alone.body["cache"], "hit", "the batch has left it there");
    }
    assert_eq!(results[1]["error"]["code"], "unsupported_image");
    assert_eq!(results[2]["error"]["code"], "invalid_request");
    assert_eq!(results[1]["error"]["request_id"].as_str(), answer.headers["x-request-id"].to_str().ok());
    assert_eq!(answer.headers["x-yolo-emulated"], "1");
    assert!(
        (images(&server, "ok").await - 2.0).abs() < 1e-9 && (images(&server, "bad_image").await - 2.0).abs() < 1e-9
    );
    assert!((metric(&server, r#"yolo_http_requests_total{endpoint="batch",code="200"}"#).await - 1.0).abs() < 1e-9);
    server.stop().await;
}

#[tokio::test]
async fn a_batch_as_json_is_the_same_as_one_as_a_form() {
    let server = start(emulated(0, 1)).await;
    let pictures = pictures(3);
    let encoded: Vec<_> =
        pictures.iter().map(|picture| base64::engine::general_purpose::STANDARD.encode(picture)).collect();
    let as_form = send(&server, form(&pictures, "/predict/batch?max_det=2")).await;
    let as_json = send(&server, support::json(BATCH, &json!({"images": encoded, "max_det": 2}))).await;
    let found = |answer| results(answer).iter().map(|result| result["detections"].clone()).collect::<Vec<_>>();
    assert_eq!(found(&as_form), found(&as_json));
    assert!(results(&as_json).iter().all(|result| result["cache"] == "hit"));
    server.stop().await;
}

#[tokio::test]
async fn a_batch_without_a_usable_picture_fails_as_its_pictures_do() {
    let server = start(emulated(0, 1)).await;
    let answer = send(&server, multipart(BATCH, &[("file", b"GIF89a"), ("file", b"")])).await;
    assert_eq!((answer.status.as_u16(), answer.code()), (415, "unsupported_image"), "{}", answer.body);
    assert!(answer.body["error"]["message"].as_str().unwrap().contains("2 pictures"), "{}", answer.body);
    server.stop().await;
}

#[tokio::test]
async fn every_picture_of_a_batch_whose_client_leaves_counts_as_cancelled_where_it_was() {
    let (server, gate) = start_gated(emulated(0, 1)).await;
    let (held, predictor) = (gate.hold().await, server.app().predictor().unwrap());
    let batch = tokio::spawn(http::router(server.app()).oneshot(form(&pictures(10), BATCH)));
    gate.begun(1).await;
    eventually("one is run, one is queued, eight wait", async || predictor.batcher().queued() == 1).await;
    batch.abort();
    assert!(batch.await.unwrap_err().is_cancelled());
    drop(held);
    let cancelled = async |place: &str| metric(&server, &format!(r#"yolo_cancelled_total{{where="{place}"}}"#)).await;
    eventually("all are counted", async || cancelled("queue").await > 8.5).await;
    assert!((cancelled("queue").await - 9.0).abs() < 1e-9 && (cancelled("running").await - 1.0).abs() < 1e-9);
    assert!((images(&server, "cancelled").await - 10.0).abs() < 1e-9);
    server.stop().await;
}

#[tokio::test]
async fn a_lone_client_gets_all_of_a_large_batch_whatever_the_deadline() {
    // 8 s in all, but none of them waits long.
    let server = start(emulated(400, 0)).await;
    server.app().offer_knobs(br#"{"deadlineMillis":5000,"cacheBytes":0,"maxBatchSize":1}"#);
    let answer = send(&server, form(&pictures(20), BATCH)).await;
    assert!(results(&answer).iter().all(|result| result["detections"].is_array()), "{}", answer.body);
    assert!((metric(&server, "yolo_arrivals_total").await - 20.0).abs() < 1e-9, "demand, all of it");
    server.stop().await;
}

#[tokio::test]
async fn a_large_batch_leaves_room_for_a_single_picture() {
    let server = start(emulated(400, 0)).await;
    server.app().offer_knobs(br#"{"deadlineMillis":5000,"cacheBytes":0,"maxBatchSize":1}"#);
    let batch = send(&server, form(&pictures(30), BATCH));
    let single = async {
        support::eventually("the batch runs", async || metric(&server, "yolo_queue_depth").await > 0.5).await;
        predict(&server, &png(8, 8, [250; 3])).await
    };
    let (batch, single) = tokio::join!(batch, single);
    assert_eq!(single.status, 200, "{}", single.body);
    assert!(results(&batch).iter().all(|result| result["detections"].is_array()), "{}", batch.body);
    server.stop().await;
}

#[tokio::test]
async fn the_frames_of_one_camera_in_a_batch_do_not_replace_each_other() {
    // Four of them are in flight at a time: one runs, the others wait for it or to be decoded.
    let server = start(yolo_server::Config { sessions: Some(2), ..emulated(50, 0) }).await;
    server.app().offer_knobs(br#"{"deadlineMillis":60000,"cacheBytes":0,"maxBatchSize":1}"#);
    let mut request = form(&pictures(8), BATCH);
    request.headers_mut().insert("x-stream-id", "gate".parse().unwrap());
    let answer = send(&server, request).await;
    assert!(results(&answer).iter().all(|result| result["detections"].is_array()), "{}", answer.body);
    server.stop().await;
}

#[tokio::test]
async fn a_time_out_ends_the_pictures_that_are_not_done() {
    let (server, gate) = start_gated(emulated(0, 1)).await;
    let held = gate.hold().await;
    let two_pass = async {
        let held = gate.pass(held).await;
        gate.pass(held).await
    };
    let (answer, held) = tokio::join!(send(&server, form(&pictures(8), "/predict/batch?timeout_ms=5000")), two_pass);
    drop(held);
    let results = results(&answer);
    assert!(results[0]["detections"].is_array() && results[1]["detections"].is_array(), "{}", answer.body);
    assert_eq!(results[7]["error"]["code"], "deadline_exceeded");
    server.stop().await;
}

#[tokio::test]
async fn a_batch_is_bounded() {
    let server = start(emulated(0, 0)).await;
    let most = send(&server, form(&pictures(64), BATCH)).await;
    assert_eq!(results(&most).len(), 64);
    let more = send(&server, form(&pictures(65), BATCH)).await;
    assert_eq!((more.status.as_u16(), more.code()), (400, "invalid_request"));
    let more = send(&server, support::json(BATCH, &json!({"images": vec![""; 65]}))).await;
    assert_eq!((more.status.as_u16(), more.code()), (400, "invalid_request"));
    server.stop().await;
}

#[tokio::test]
async fn one_picture_that_is_too_large_spoils_no_batch() {
    let server = start(emulated(0, 0)).await;
    let huge = vec![0; (20 << 20) + 1];
    let good = png(8, 8, [1; 3]);
    let answer = send(&server, multipart(BATCH, &[("file", &huge), ("file", &good)])).await;
    let results = results(&answer);
    assert_eq!(results[0]["error"]["code"], "payload_too_large");
    assert!(results[1]["detections"].is_array());
    server.stop().await;
}

#[tokio::test]
async fn what_is_found_in_a_batch_takes_no_more_memory_than_there_is() {
    let mut config = emulated(0, 0);
    config.bodies = BodyLimits { bodies_bytes_max: 160 << 10, ..BodyLimits::DEFAULT };
    let server = start(config).await;
    let small = send(&server, form(&pictures(8), BATCH)).await;
    assert!(results(&small).iter().all(|result| result["detections"].is_array()), "{}", small.body);
    let large = send(&server, form(&pictures(64), BATCH)).await;
    assert_eq!((large.status.as_u16(), large.code()), (413, "payload_too_large"), "{}", large.body);
    server.stop().await;
}
