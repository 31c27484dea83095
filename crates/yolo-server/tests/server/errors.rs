//! The error table, row by row, as a client meets it on a socket. (`starting` and `draining` are in `sockets`.)

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::http::Request;
use proptest::prelude::*;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use yolo_server::Server;
use yolo_server::app::App;
use yolo_server::batcher::Batcher;
use yolo_server::engine::{LoadedModel, emulated as emulated_engine};
use yolo_server::lifecycle::Stage;
use yolo_server::limits::QUEUE_IMAGES_MAX;
use yolo_server::predictor::Predictor;
use yolo_server::prepare::Preparer;
use yolo_vision::{DecodeLimits, Parameters};

use crate::isolation::fragile;
use crate::support::{
    self, Answer, PATIENCE, call, emulated, eventually, metric, multipart, png, post, predict, send, start, start_gated,
};

/// An error has its status, its code, a sentence, the request's id, and says whether to retry.
fn assert_error(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status.as_u16(), answer.code()), (status, code), "{}", answer.body);
    let error = &answer.body["error"];
    assert!(error["message"].as_str().unwrap().len() > 10);
    assert_eq!(error["request_id"].as_str().unwrap(), answer.headers["x-request-id"]);
    assert!(error["retryable"].is_boolean());
}

/// What the server answers to these bytes, until it closes.
async fn raw(server: &Server, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.api_address()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer and its end").unwrap();
    String::from_utf8(answer).unwrap()
}

/// What the server answers to a body that it may refuse while it is being sent.
pub async fn upload(api: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(api).await.unwrap();
    let (mut reading, mut writing) = stream.split();
    let mut answer = Vec::new();
    // Refused half-way, the rest cannot be written and the connection is reset after the answer.
    let exchange = async { tokio::join!(writing.write_all(bytes), reading.read_to_end(&mut answer)) };
    let _ = tokio::time::timeout(PATIENCE, exchange).await.expect("an answer and its end");
    String::from_utf8_lossy(&answer).into_owned()
}

fn form(content_type: &str, body: &str) -> Request<Body> {
    Request::post("/predict").header("content-type", content_type).body(body.to_owned().into()).unwrap()
}

/// A PNG's signature and header chunk, claiming a size that the file does not have.
pub fn png_header(width: u32, height: u32) -> Vec<u8> {
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
    let media_type = "multipart/form-data; boundary=x";
    for (request, status, code) in [
        (post("/predict", ""), 400, "invalid_request"),
        (post("/predict?speed=fast", whole.clone()), 400, "invalid_request"),
        (post("/predict?conf=high", whole.clone()), 400, "invalid_request"),
        (form("multipart/form-data", "x"), 400, "invalid_request"),
        (form(media_type, "no boundary here"), 400, "invalid_request"),
        (
            form(media_type, "--x\r\nContent-Disposition: form-data; name=\"conf\"\r\n\r\n0.5\r\n--x--\r\n"),
            400,
            "invalid_request",
        ),
        (form("application/json", "{\"image\":"), 400, "invalid_request"),
        (form("application/json", "{\"image\":\"*\"}"), 400, "invalid_request"),
        (form("application/json", "[]"), 400, "invalid_request"),
        (support::json("/predict", &json!({"image": "QQ==", "conf": [[0.5]]})), 400, "invalid_request"),
        (support::json("/predict", &json!({"images": ["QQ==", "QQ=="]})), 400, "invalid_request"),
        (form("application/json", &"[".repeat(100_000)), 400, "invalid_request"),
        (multipart("/predict", &[("file", &whole), ("file", &whole)]), 400, "invalid_request"),
        (multipart("/predict", &[("conf", &b"0.5"[..]); 9]), 400, "invalid_request"),
        (multipart("/predict", &vec![("conf", &b"0.5"[..]); 10_000]), 400, "invalid_request"),
        (multipart("/predict", &[(&"n".repeat(1 << 20), &whole)]), 400, "invalid_request"),
        (form(media_type, &"before the first boundary ".repeat(100_000)), 400, "invalid_request"),
        (form(media_type, &format!("--x{}", " ".repeat(1 << 20))), 400, "invalid_request"),
        (
            form(media_type, "--y\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nx\r\n--y--\r\n"),
            400,
            "invalid_request",
        ),
        (form("multipart/form-data; boundary=", "--\r\n"), 400, "invalid_request"),
        (Request::get("/tasks/%ff").body(Body::empty()).unwrap(), 400, "invalid_request"),
        (post("/elsewhere", ""), 404, "not_found"),
        (post("/predict?model=another", whole.clone()), 404, "not_found"),
        (Request::get("/predict").body(Body::empty()).unwrap(), 405, "method_not_allowed"),
        (post(&format!("/predict?conf={}", "1".repeat(9_000)), ""), 414, "uri_too_long"),
        (post("/predict", "GIF89a is no picture of ours"), 415, "unsupported_image"),
        (post("/predict", whole[..whole.len() - 20].to_vec()), 422, "bad_image"),
        (post("/predict", png_header(0, 32)), 422, "image_empty"),
        (post("/predict", png_header(20_000, 1)), 422, "image_too_large"),
        (post("/predict", png_header(10_000, 10_000)), 422, "image_too_large"),
        (post("/predict?max_det=0", whole.clone()), 422, "invalid_parameter"),
        (post("/predict?imgsz=1280", whole.clone()), 422, "imgsz_unavailable"),
    ] {
        assert_error(&send(&server, request).await, status, code);
    }
    assert_eq!(predict(&server, &whole).await.status, 200, "and a good one is served");
    assert!((metric(&server, r#"yolo_images_total{outcome="ok",source="sync"}"#).await - 1.0).abs() < 1e-9);
    assert!(metric(&server, r#"yolo_images_total{outcome="failed",source="sync"}"#).await.abs() < 1e-9, "no 500");
    server.stop().await;
}

#[tokio::test]
async fn a_part_has_a_name_of_at_most_256_bytes() {
    let server = start(emulated(0, 1)).await;
    for (bytes, word) in [(256, "unknown parameter"), (257, "longer than 256 bytes")] {
        let answer = send(&server, multipart("/predict", &[("file", b"x"), (&"n".repeat(bytes), b"1")])).await;
        assert!(answer.body["error"]["message"].as_str().unwrap().contains(word), "{}", answer.body);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_one() {
    let server = start(emulated(0, 1)).await;
    let answer = send(&server, Request::delete("/predict").body(Body::empty()).unwrap()).await;
    assert_eq!(answer.headers["allow"], "POST");
    server.stop().await;
}

#[tokio::test]
async fn long_headers_are_431() {
    let server = start(emulated(0, 1)).await;
    let with = |bytes: usize| {
        let request = Request::post("/predict").header("x-padding", "x".repeat(bytes));
        request.body(png(8, 8, [1; 3]).into()).unwrap()
    };
    assert_eq!(send(&server, with(15 << 10)).await.status, 200);
    assert_error(&send(&server, with(17 << 10)).await, 431, "headers_too_large");
    assert_eq!(send(&server, with(40 << 10)).await.status, 431, "refused by the parser");
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_http_is_400_and_the_end() {
    let server = start(emulated(0, 1)).await;
    assert!(raw(&server, b"this is not HTTP\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    assert_eq!(predict(&server, &png(8, 8, [1; 3])).await.status, 200, "and others are served");
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_declares_too_much_is_413_before_it_is_sent() {
    let server = start(emulated(0, 1)).await;
    for (path, bytes) in [("/predict", (20 << 20) + 1), ("/predict/batch", (64 << 20) + 1)] {
        let head = format!("POST {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: {bytes}\r\n\r\n");
        let answer = raw(&server, head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("payload_too_large"), "{answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_body_of_unknown_length_is_counted_while_it_comes() {
    let server = start(emulated(0, 1)).await;
    let mut stream = TcpStream::connect(server.api_address()).await.unwrap();
    let (mut reading, mut writing) = stream.split();
    let upload = async {
        writing.write_all(b"POST /predict HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
        let chunk = [b"10000\r\n".as_slice(), &vec![0; 1 << 16], b"\r\n"].concat();
        for _ in 0..1_000 {
            writing.write_all(&chunk).await?; // fails when the server has closed
        }
        Ok::<_, std::io::Error>(())
    };
    let mut status = [0; 12];
    let (uploaded, answered) = tokio::join!(upload, reading.read_exact(&mut status));
    answered.unwrap();
    assert_eq!(&status, b"HTTP/1.1 413");
    assert!(uploaded.is_err(), "the server took all of it");
    server.stop().await;
}

/// Whoever sends more of it only waits for the answer: it must not depend on the rest.
#[tokio::test]
async fn a_part_without_an_end_of_its_head_is_refused_while_it_comes() {
    let server = start(emulated(0, 1)).await;
    let head = "POST /predict HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: 4194304\r\n\
                Content-Type: multipart/form-data; boundary=x\r\n\r\n";
    for begin in ["--x\r\nContent-Disposition: form-data; name=\"", "no boundary yet "] {
        let mut stream = TcpStream::connect(server.api_address()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all([head, begin].concat().as_bytes()).await.unwrap();
        for _ in 0..17 {
            stream.write_all(&[b'n'; 1 << 10]).await.unwrap();
        }
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 400", "{begin}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_trickles_in_is_408() {
    let server = start(emulated(0, 1)).await;
    let head = b"POST /predict HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: 1000\r\n\r\nfirst bytes";
    let answer = raw(&server, head).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout"), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn more_bodies_than_memory_for_them_are_429_and_given_back() {
    let server = start(emulated(0, 1)).await;
    let head = format!("POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n", 20 << 20);
    let unfinished = [head.as_bytes(), &vec![0; 19 << 20]].concat();
    let mut streams = Vec::new();
    for _ in 0..6 {
        let mut stream = TcpStream::connect(server.api_address()).await.unwrap();
        stream.write_all(&unfinished).await.unwrap();
        streams.push(stream);
    }
    let large = [head.replace("Host: t", "Host: t\r\nConnection: close").as_bytes(), &vec![0; 20 << 20]].concat();
    eventually("the memory is taken", async || {
        let answer = upload(server.api_address(), &large).await;
        answer.starts_with("HTTP/1.1 429") && answer.contains("queue_full") && answer.contains("retry-after")
    })
    .await;
    drop(streams);
    eventually("given back", async || upload(server.api_address(), &large).await.starts_with("HTTP/1.1 415")).await;
    server.stop().await;
}

/// A model, for `app` to serve, whose engine fails while `broken`.
pub fn fragile_predictor(app: &App, broken: &Arc<AtomicBool>) -> Predictor {
    let model: LoadedModel = fragile(emulated_engine::load(&emulated(1, 1)).unwrap(), broken);
    let batcher = Batcher::start(&model, 1, app.knobs(), &app.metrics).unwrap();
    let preparer = Arc::new(Preparer::new(1, DecodeLimits::default(), app.metrics.images.clone()));
    Predictor::new(model, Parameters::default(), (batcher, preparer), app.cache(), Arc::clone(&app.metrics))
}

/// Serves a model whose engine fails while `broken`; returns where.
async fn serve_fragile(broken: &Arc<AtomicBool>) -> (SocketAddr, Arc<App>) {
    let app = Arc::new(App::new());
    app.offer_knobs(br#"{"deadlineMillis":60000}"#);
    assert!(app.serve(fragile_predictor(&app, broken)).is_none());
    app.lifecycle.advance(Stage::Serving);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = yolo_server::http::router(Arc::clone(&app));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, app)
}

#[tokio::test]
async fn an_engine_that_fails_is_500_and_one_that_keeps_failing_503_until_it_works() {
    let broken = Arc::new(AtomicBool::new(false));
    let (address, app) = serve_fragile(&broken).await;
    let predictor = app.predictor().unwrap();
    let batcher = predictor.batcher();
    let mut shade = 0;
    let mut next = async || {
        shade += 1;
        support::send_to(address, post("/predict", png(8, 8, [shade; 3]))).await
    };
    assert_eq!(next().await.status, 200);
    broken.store(true, Ordering::SeqCst);
    assert_error(&next().await, 500, "inference_failed");
    eventually("engine failed", async || next().await.code() == "engine_failed").await;
    let refused = next().await;
    assert_error(&refused, 503, "engine_failed");
    assert!(refused.headers.contains_key("retry-after"));
    broken.store(false, Ordering::SeqCst);
    eventually("healed", async || batcher.sound()).await;
    assert_eq!(next().await.status, 200);
    batcher.stop();
}

#[tokio::test]
async fn an_image_that_would_come_too_late_is_refused_and_one_that_is_queued_past_its_time_out_is_504() {
    const WAITING: u8 = 60;
    let (server, gate) = start_gated(emulated(200, 0)).await;
    let (held, predictor) = (gate.hold().await, server.app().predictor().unwrap());
    let pictures: Vec<_> = (0..=WAITING).map(|shade| png(8, 8, [shade, 1, 1])).collect();
    let clients = futures::future::join_all(pictures.iter().map(|picture| predict(&server, picture)));
    let asked = async {
        eventually("all but one wait", async || predictor.batcher().queued() == usize::from(WAITING)).await;
        // 12 s of runs are before it.
        let refused = send(&server, post("/predict?timeout_ms=10000", png(8, 8, [3; 3]))).await;
        // Not even an idle server would keep this: it is no matter of load, and never refused.
        (refused, send(&server, post("/predict?timeout_ms=100", png(8, 8, [4; 3]))).await)
    };
    let (refused, late) = tokio::select! { _ = clients => panic!("the gate is shut"), asked = asked => asked };
    assert_error(&refused, 429, "predicted_late");
    assert!(refused.headers.contains_key("retry-after"));
    assert_error(&late, 504, "deadline_exceeded");
    drop(held); // its clients have left: nothing more is run
    server.stop().await;
}

#[tokio::test]
async fn a_remembered_picture_is_answered_however_many_wait() {
    const LATE: usize = 60;
    let (server, gate) = start_gated(emulated(100, 0)).await;
    server.app().offer_knobs(br#"{"cacheBytes":1048576}"#);
    let remembered = png(8, 8, [7; 3]);
    assert_eq!(predict(&server, &remembered).await.status, 200);
    let (held, predictor) = (gate.hold().await, server.app().predictor().unwrap());
    let ask = async |picture: Vec<u8>| call(&server, post("/predict?timeout_ms=5000", picture)).await;
    let is_hit = async || {
        let answer = ask(remembered.clone()).await;
        assert_eq!((answer.status.as_u16(), &answer.body["cache"]), (200, &json!("hit")), "{}", answer.body);
    };
    let asked = &server;
    let ahead = |count: usize, blue: u8| {
        let pictures = (0..count).map(move |shade| png(8, 8, [u8::try_from(shade).unwrap(), 1, blue]));
        let answers = pictures.map(|picture| async move { predict(asked, &picture).await.body });
        Box::pin(futures::future::join_all(answers))
    };
    let waiting = async |count: usize| eventually("they wait", async || predictor.batcher().queued() == count).await;
    let mut first = ahead(1 + LATE, 2);
    let late = async {
        waiting(LATE).await; // 6 s of runs
        assert_error(&ask(png(8, 8, [3; 3])).await, 429, "predicted_late");
        is_hit().await;
    };
    tokio::select! { answers = &mut first => panic!("the gate is shut: {answers:?}"), () = late => {} }
    let others = ahead(QUEUE_IMAGES_MAX - LATE, 3);
    let full = async {
        waiting(QUEUE_IMAGES_MAX).await;
        assert_error(&ask(png(8, 8, [3; 3])).await, 429, "queue_full");
        is_hit().await;
    };
    let all = futures::future::join(first, others);
    tokio::select! { answers = all => panic!("the gate is shut: {answers:?}"), () = full => {} }
    drop(held); // their clients have left: nothing more is run
    server.stop().await;
}

#[tokio::test]
async fn a_long_queue_refuses_early_and_says_when_to_come_back() {
    let mut config = emulated(500, 0);
    config.imgsz = vec![32];
    let server = start(config).await;
    server.app().offer_knobs(br#"{"deadlineMillis":5000,"cacheBytes":0,"maxBatchSize":1}"#);
    let pictures: Vec<_> = (0..24).map(|shade| png(8, 8, [shade; 3])).collect();
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
    assert!((arrivals - 24.0).abs() < 1e-9, "shed images are demand: {arrivals}");
    server.stop().await;
}

#[tokio::test]
async fn an_answer_that_takes_longer_than_the_request_allows_is_504() {
    let (server, gate) = start_gated(emulated(0, 1)).await;
    let held = gate.hold().await;
    let answer = send(&server, post("/predict?timeout_ms=100", png(8, 8, [1; 3]))).await;
    drop(held);
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
