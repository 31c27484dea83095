//! The limits of request bodies and of pictures are settings.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use clap::Parser;
use futures::StreamExt;
use tower::ServiceExt;
use yolo_server::limits::{BodyLimits, PictureLimits};
use yolo_server::{Config, http};

use crate::support::{PATIENCE, call, emulated, multipart, png, post, predict, start};

#[tokio::test]
async fn a_body_is_as_large_and_as_slow_as_the_settings_let_it_be() {
    let bodies = BodyLimits { body_bytes_max: 2_000, batch_bytes_max: 6_000, ..BodyLimits::DEFAULT };
    let server = start(Config { bodies, ..emulated(0, 1) }).await;
    let bytes = |count: usize| vec![b'x'; count];
    for (request, status, word) in [
        (post("/predict", bytes(2_000)), 415, "JPEG"),
        (post("/predict", bytes(2_001)), 413, "2000 bytes"),
        (multipart("/predict/batch", &[("file", &bytes(2_001))]), 413, "2000 bytes"),
        (multipart("/predict/batch", &[("file", &bytes(6_000))]), 413, "6000 bytes"),
        (post("/v2/models/pretended/infer", bytes(6_001)), 413, "6000 bytes"),
    ] {
        let answer = call(&server, request).await;
        assert_eq!(answer.status, status, "{}", answer.body);
        assert!(answer.body.to_string().contains(word), "{}", answer.body);
    }
    server.stop().await;
    let server = start(Config { bodies: BodyLimits { read_seconds: 1, ..bodies }, ..emulated(0, 1) }).await;
    let mut fastest = PATIENCE;
    for _ in 0..3 {
        let begun = Instant::now();
        let never = Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        assert_eq!(call(&server, Request::post("/predict").body(never).unwrap()).await.status, 408);
        fastest = fastest.min(begun.elapsed());
    }
    assert!(fastest > Duration::from_millis(900) && fastest < Duration::from_secs(4), "{fastest:?}");
    server.stop().await;
}

#[tokio::test]
async fn what_memory_could_never_hold_is_too_large_not_too_much_for_now() {
    let bodies = BodyLimits { bodies_bytes_max: 4 << 10, ..BodyLimits::DEFAULT };
    let server = start(Config { bodies, ..emulated(0, 1) }).await;
    assert_eq!(call(&server, post("/predict", vec![b'x'; 4 << 10])).await.status, 415);
    assert_eq!(call(&server, post("/predict", vec![b'x'; 5 << 10])).await.status, 413);
    server.stop().await;
}

#[tokio::test]
async fn a_picture_is_as_large_as_the_settings_let_it_be() {
    let pictures = PictureLimits { pixels_max: 1_000, side_px_max: 100, ..PictureLimits::DEFAULT };
    let server = start(Config { pictures, ..emulated(0, 1) }).await;
    for (width, height, status) in [(100, 10, 200), (101, 1, 422), (1, 101, 422), (40, 26, 422)] {
        let answer = predict(&server, &png(width, height, [1; 3])).await;
        assert_eq!(answer.status, status, "{width}x{height}: {}", answer.body);
        assert!(status == 200 || answer.code() == "image_too_large", "{}", answer.body);
    }
    server.stop().await;
}

#[test]
fn each_limit_has_a_flag() {
    let flags = ["--body-bytes-max=1", "--batch-bytes-max=2", "--bodies-bytes-max=3", "--body-read-seconds=4"];
    let flags = ["yolo-server", "--model=m.onnx", "--body-bytes-per-second-min=5"].into_iter().chain(flags);
    let expected = BodyLimits {
        body_bytes_max: 1,
        batch_bytes_max: 2,
        bodies_bytes_max: 3,
        read_seconds: 4,
        bytes_per_second_min: 5,
    };
    assert_eq!(Config::try_parse_from(flags).unwrap().bodies, expected);
    let flags = ["--image-pixels-max=1", "--image-side-px-max=2", "--jpeg-scans-max=3"];
    let flags = ["yolo-server", "--model=m.onnx"].into_iter().chain(flags);
    let expected = PictureLimits { pixels_max: 1, side_px_max: 2, jpeg_scans_max: 3 };
    assert_eq!(Config::try_parse_from(flags).unwrap().pictures, expected);
}

#[tokio::test]
async fn an_answer_that_waits_for_its_client_counts_among_the_bodies() {
    let picture = png(900, 900, [9; 3]);
    let bodies = BodyLimits { body_bytes_max: 64 << 10, bodies_bytes_max: 128 << 10, ..BodyLimits::DEFAULT };
    let server = start(Config { bodies, ..emulated(0, 1) }).await;
    let ask = async || {
        let request = Request::post("/predict").header("accept", "image/jpeg").body(Body::from(picture.clone()));
        http::router(server.app()).oneshot(request.unwrap()).await.unwrap()
    };
    let mut unread = Vec::new();
    let refused = loop {
        let answer = ask().await;
        if answer.status() != 200 {
            break answer;
        }
        // As hyper: the piece is taken, and not written yet.
        unread.push(answer.into_body().into_data_stream().next().await.unwrap().unwrap());
        assert!(unread.len() < 16, "answers of {} bytes", unread[0].len());
    };
    assert_eq!(refused.status(), 429);
    assert!(!unread.is_empty());
    drop(unread);
    assert_eq!(ask().await.status(), 200);
    server.stop().await;
}
