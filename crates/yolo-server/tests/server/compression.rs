//! Compressed bodies both ways; what is inflated counts, while it is inflated.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::Request;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use futures::StreamExt;
use futures::stream;
use serde_json::{Value, json};
use yolo_server::Config;
use yolo_server::limits::{BODY_RATE_GRACE, BodyLimits};

use crate::support::{call, emulated, png, post, send, start};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What HTTP calls deflate: zlib's format.
fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn encoded(uri: &str, encoding: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::post(uri).header("content-type", "application/json").header("content-encoding", encoding);
    request.body(body.into()).unwrap()
}

#[tokio::test]
async fn a_compressed_request_is_answered_as_a_plain_one() {
    let server = start(emulated(0, 1)).await;
    let picture = png(40, 30, [1; 3]);
    let plain = send(&server, post("/predict", picture.clone())).await;
    let document = json!({"image": STANDARD.encode(&picture)}).to_string().into_bytes();
    for (encoding, body) in [("gzip", gzip(&document)), ("deflate", deflate(&document)), ("identity", document.clone())]
    {
        let answer = send(&server, encoded("/predict", encoding, body)).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["detections"]),
            (200, &plain.body["detections"]),
            "{encoding}"
        );
    }
    let whole = gzip(&document);
    for (encoding, body, status, code) in [
        ("gzip", whole[..whole.len() / 2].to_vec(), 400, "invalid_request"),
        ("gzip", document.clone(), 400, "invalid_request"),
        ("br", document.clone(), 415, "unsupported_image"),
        ("gzip, gzip", gzip(&whole), 415, "unsupported_image"),
    ] {
        let answer = send(&server, encoded("/predict", encoding, body)).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (status, code), "{encoding}: {}", answer.body);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_bomb_is_refused_while_it_is_inflated() {
    let bodies = BodyLimits { body_bytes_max: 64 << 10, batch_bytes_max: 256 << 10, ..BodyLimits::DEFAULT };
    let server = start(Config { bodies, ..emulated(0, 1) }).await;
    let bomb = gzip(&vec![b' '; 16 << 20]);
    assert!(bomb.len() < bodies.body_bytes_max, "as sent it is small");
    // Its end never comes: whoever waited for it would wait for ever.
    let begun = Bytes::copy_from_slice(&bomb[..bomb.len() / 2]);
    for uri in ["/predict", "/predict/batch", "/v2/models/pretended/infer"] {
        let body = stream::iter([Ok::<_, std::io::Error>(begun.clone())]).chain(stream::pending());
        let answer = call(&server, encoded(uri, "gzip", Body::from_stream(body))).await;
        assert_eq!(answer.status.as_u16(), 413, "{uri}: {}", answer.body);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_sender_is_judged_by_what_it_sends_not_by_what_that_inflates_to() {
    let server = start(emulated(0, 1)).await;
    let inflated = gzip(&vec![b' '; 15 << 20]);
    assert!(inflated.len() < 16 << 10, "a second's worth of the slowest sender");
    let begun = Bytes::copy_from_slice(&inflated[..inflated.len() - 8]); // all but the trailer
    let sent = Instant::now();
    let body = stream::iter([Ok::<_, std::io::Error>(begun)]).chain(stream::pending());
    let answer = call(&server, encoded("/predict", "gzip", Body::from_stream(body))).await;
    assert_eq!((answer.status.as_u16(), answer.code()), (408, "request_timeout"), "{}", answer.body);
    let (took, whole) = (sent.elapsed(), Duration::from_secs(BodyLimits::DEFAULT.read_seconds));
    assert!(took >= BODY_RATE_GRACE && took < whole / 2, "{took:?}");
    server.stop().await;
}

#[tokio::test]
async fn large_answers_are_compressed_for_clients_that_accept_it() {
    let server = start(emulated(0, 1)).await;
    let plain = get(&server, "/openapi.json", "identity").await;
    assert!(plain.0.is_none());
    for encoding in ["gzip", "deflate"] {
        let (used, bytes) = get(&server, "/openapi.json", encoding).await;
        assert_eq!(used.as_deref(), Some(encoding));
        assert!(bytes.len() < plain.1.len() / 2);
        let mut inflated = Vec::new();
        match encoding {
            "gzip" => GzDecoder::new(&bytes[..]).read_to_end(&mut inflated).unwrap(),
            _ => ZlibDecoder::new(&bytes[..]).read_to_end(&mut inflated).unwrap(),
        };
        let [inflated, plain] = [&inflated, &plain.1].map(|text| serde_json::from_slice::<Value>(text).unwrap());
        assert_eq!(inflated, plain);
    }
    assert!(get(&server, "/version", "gzip").await.0.is_none(), "not worth it");
    server.stop().await;
}

async fn get(server: &yolo_server::Server, path: &str, accepted: &str) -> (Option<String>, Vec<u8>) {
    let request = Request::get(path).header("accept-encoding", accepted).body(Body::empty()).unwrap();
    let answer = send(server, request).await;
    let used = answer.headers.get("content-encoding").map(|used| used.to_str().unwrap().to_owned());
    (used, answer.bytes.to_vec())
}
