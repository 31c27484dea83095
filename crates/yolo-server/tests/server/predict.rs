//! `POST /predict`: what comes back, and that every way of sending is the same.

use axum::http::{Request, StatusCode};
use base64::Engine as _;
use serde_json::{Value, json};

use crate::support::{self, Answer, call, emulated, metric, multipart, png, post, predict, start};

fn detections(answer: &Answer) -> &Value {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    &answer.body["detections"]
}

#[tokio::test]
async fn an_answer_says_everything_and_that_it_is_emulated() {
    let server = start(emulated(1, 1)).await;
    let request = Request::post("/predict").header("x-request-id", "mine").body(png(40, 30, [9, 8, 7]).into()).unwrap();
    let answer = call(&server, request).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert_eq!(
        (&answer.headers["x-request-id"], &answer.headers["x-yolo-emulated"]),
        (&"mine".parse().unwrap(), &"1".parse().unwrap())
    );
    assert_eq!(answer.body["request_id"], "mine");
    assert_eq!(answer.body["model"]["name"], "pretended");
    assert_eq!(answer.body["image"], json!({"width": 40, "height": 30}));
    assert_eq!(
        (&answer.body["emulated"], &answer.body["cache"], &answer.body["batch_size"]),
        (&json!(true), &json!("miss"), &json!(1))
    );
    assert!(answer.body["speed"]["inference"].as_f64().unwrap() >= 1.9);
    assert!(!answer.body["detections"].as_array().unwrap().is_empty());
    server.stop().await;
}

#[tokio::test]
async fn every_way_of_sending_a_picture_gives_the_same_detections() {
    let server = start(emulated(0, 1)).await;
    let picture = png(64, 64, [200, 10, 10]);
    let raw = predict(&server, &picture).await;
    let file = call(&server, multipart("/predict", &[("file", &picture)])).await;
    let image = call(&server, multipart("/predict", &[("conf", b"0.25"), ("image", &picture)])).await;
    let text = base64::engine::general_purpose::STANDARD.encode(&picture);
    let json = call(&server, support::json("/predict", &json!({"image": text, "classes": [0, 1]}))).await;
    for other in [&file, &image, &json] {
        assert_eq!(detections(other), detections(&raw));
    }
    assert_eq!((&file.body["cache"], &json.body["cache"]), (&json!("hit"), &json!("miss")), "other classes, other key");
    server.stop().await;
}

#[tokio::test]
async fn parameters_act() {
    let server = start(emulated(0, 1)).await;
    let picture = png(50, 50, [3, 200, 10]);
    let all = predict(&server, &picture).await;
    let all = detections(&all).as_array().unwrap();
    let one = call(&server, post("/predict?max_det=1", picture.clone())).await;
    assert_eq!(detections(&one).as_array().unwrap().as_slice(), &all[..1]);
    let none = call(&server, post("/predict?conf=0.99", picture.clone())).await;
    assert_eq!(detections(&none), &json!([]));
    let shares = call(&server, post("/predict?normalize=true&max_det=1", picture.clone())).await;
    assert_eq!(shares.body["cache"], "hit", "normalising is done on the way out");
    let (share, pixels) = (&detections(&shares)[0]["box"]["x2"], &all[0]["box"]["x2"]);
    assert!((share.as_f64().unwrap() * 50.0 - pixels.as_f64().unwrap()).abs() < 1e-3);
    server.stop().await;
}

#[tokio::test]
async fn repeated_pictures_come_from_the_cache_unless_asked_otherwise() {
    let server = start(emulated(0, 1)).await;
    let picture = png(64, 64, [1, 2, 3]);
    let first = predict(&server, &picture).await;
    let second = predict(&server, &picture).await;
    let fresh = Request::post("/predict").header("cache-control", "no-cache").body(picture.into()).unwrap();
    let fresh = call(&server, fresh).await;
    let caches = [&first, &second, &fresh].map(|answer| answer.body["cache"].as_str().unwrap());
    assert_eq!(caches, ["miss", "hit", "bypass"]);
    assert_eq!(detections(&first), detections(&second));
    assert_eq!(detections(&first), detections(&fresh));
    for (series, expected) in [
        (r#"yolo_images_total{outcome="cached",source="sync"}"#, 1.0),
        (r#"yolo_images_total{outcome="ok",source="sync"}"#, 2.0),
        (r#"yolo_cache_requests_total{result="hit"}"#, 1.0),
        ("yolo_arrivals_total", 3.0),
        (r#"yolo_cache_ghost_hits_total{size="65536"}"#, 1.0),
    ] {
        assert!((metric(&server, series).await - expected).abs() < 1e-9, "{series}");
    }
    server.stop().await;
}

#[tokio::test]
async fn equal_pictures_that_arrive_together_are_run_once() {
    let server = start(emulated(50, 1)).await;
    let picture = png(64, 64, [5, 5, 5]);
    let answers = futures::future::join_all((0..6).map(|_| predict(&server, &picture))).await;
    let caches: Vec<_> = answers.iter().map(|answer| answer.body["cache"].as_str().unwrap()).collect();
    assert_eq!(caches.iter().filter(|cache| **cache == "miss").count(), 1, "{caches:?}");
    assert_eq!(caches.iter().filter(|cache| **cache == "coalesced").count(), 5, "{caches:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_picture_offered_again_after_a_refusal_is_no_new_demand() {
    let server = start(emulated(200, 0)).await;
    server.app().offer_knobs(br#"{"deadlineMillis":100,"cacheBytes":0,"maxBatchSize":1}"#);
    let pictures: Vec<_> = (0..6).map(|shade| png(8, 8, [shade; 3])).collect();
    let answers = futures::future::join_all(pictures.iter().map(|picture| predict(&server, picture))).await;
    let refused = answers.iter().position(|answer| answer.status == 429).expect("one was refused");
    predict(&server, &pictures[refused]).await;
    let marked = Request::post("/predict").header("x-retry-attempt", "2").body(png(8, 8, [99; 3]).into()).unwrap();
    call(&server, marked).await;
    for (series, expected) in [("yolo_arrivals_total", 6.0), ("yolo_retries_total", 2.0)] {
        assert!((metric(&server, series).await - expected).abs() < 1e-9, "{series}");
    }
    server.stop().await;
}
