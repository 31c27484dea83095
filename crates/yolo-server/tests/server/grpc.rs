//! What only a real HTTP/2 connection to the gRPC port shows: recycling, bounds, the drain.

use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use yolo_server::Server;
use yolo_server::limits::BodyLimits;

use crate::hostile::until_closed;
use crate::support::{PATIENCE, emulated, eventually, get, metric, png, start, start_gated};

/// A message without fields, in its frame: not compressed, length 0.
const EMPTY: &[u8] = &[0; 5];
/// `ServerLiveResponse { live: true }`, in its frame.
const LIVE: &[u8] = &[0, 0, 0, 0, 2, 8, 1];

struct Connection {
    calls: SendRequest<Body>,
    ended: JoinHandle<hyper::Result<()>>,
}

async fn connect(server: &Server) -> Connection {
    let stream = TcpStream::connect(server.grpc_address()).await.unwrap();
    let (calls, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    Connection { calls, ended: tokio::spawn(connection) }
}

/// Sends a call; fails if the connection takes no more of them.
async fn send(calls: &mut SendRequest<Body>, method: &str, body: Body) -> hyper::Result<Response<Incoming>> {
    let uri = format!("http://server/inference.GRPCInferenceService/{method}");
    let request = Request::post(uri).header("content-type", "application/grpc").header("te", "trailers").body(body);
    calls.ready().await?;
    calls.send_request(request.unwrap()).await
}

/// What a call is answered: the message's frame, and the status.
async fn answer(response: Response<Incoming>) -> (Bytes, String) {
    let headers = response.headers().clone();
    let collected = response.into_body().collect().await.unwrap();
    // An error without a message has its status in the headers.
    let trailers = collected.trailers().cloned().unwrap_or(headers);
    let status = trailers["grpc-status"].to_str().unwrap().to_owned();
    (collected.to_bytes(), status)
}

async fn call(calls: &mut SendRequest<Body>, method: &str, body: impl Into<Body>) -> (Bytes, String) {
    answer(send(calls, method, body.into()).await.unwrap()).await
}

/// Whether a new connection is served.
pub async fn is_live(server: &Server) -> bool {
    let mut calls = connect(server).await.calls;
    call(&mut calls, "ServerLive", EMPTY).await == (Bytes::from_static(LIVE), "0".to_owned())
}

/// A message that is not compressed.
fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], length.as_slice(), message].concat()
}

/// A body that begins so and never ends.
fn unfinished(begin: &'static [u8]) -> Body {
    use futures::StreamExt;
    let begin = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(begin))]);
    Body::from_stream(begin.chain(futures::stream::pending()))
}

#[tokio::test]
async fn a_connection_is_told_to_go_within_its_age_and_calls_in_flight_are_answered() {
    let server = start(emulated(0, 1)).await;
    let opened = Instant::now();
    let mut calls = connect(&server).await.calls;
    let stream = send(&mut calls, "ModelStreamInfer", unfinished(&[])).await.unwrap();
    while let Ok(response) = send(&mut calls, "ServerLive", EMPTY.into()).await {
        assert_eq!(answer(response).await, (Bytes::from_static(LIVE), "0".to_owned()));
        tokio::time::sleep(Duration::from_millis(50)).await; // a calm client
    }
    let age = opened.elapsed();
    assert!(age > Duration::from_secs(9) && age < Duration::from_secs(40), "{age:?}");
    server.stop().await;
    assert_eq!(answer(stream).await.1, "0", "the open stream went on, and ended well when the server did");
}

#[tokio::test]
async fn a_drain_ends_streams_and_idle_connections_at_once() {
    let server = start(emulated(0, 1)).await;
    let (Connection { mut calls, ended }, idle) = (connect(&server).await, connect(&server).await);
    let stream = send(&mut calls, "ModelStreamInfer", unfinished(&[])).await.unwrap();
    let begun = Instant::now();
    server.drain().await;
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    assert_eq!(answer(stream).await.1, "0");
    drop(calls);
    for connection in [ended, idle.ended] {
        tokio::time::timeout(PATIENCE, connection).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_client_that_takes_no_answer_is_cut_off() {
    let server = start(emulated(0, 1)).await;
    let stream = TcpStream::connect(server.grpc_address()).await.unwrap();
    let mut unread = http2::Builder::new(TokioExecutor::new());
    unread.initial_stream_window_size(0);
    let (mut calls, connection) = unread.handshake(TokioIo::new(stream)).await.unwrap();
    let ended = tokio::spawn(connection);
    let response = send(&mut calls, "ServerLive", EMPTY.into()).await.unwrap();
    assert!(tokio::time::timeout(PATIENCE, response.into_body().collect()).await.unwrap().is_err());
    let _ = tokio::time::timeout(PATIENCE, ended).await.unwrap();
    server.stop().await;
}

/// Clients that say nothing, begin to say something, and say all that a connection needs but never answer.
async fn silent(server: &Server) -> Vec<TcpStream> {
    let settings: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut clients = Vec::new();
    for said in [&settings[..0], &settings[..10], settings] {
        let mut stream = TcpStream::connect(server.grpc_address()).await.unwrap();
        stream.write_all(said).await.unwrap();
        clients.push(stream);
    }
    clients
}

#[tokio::test]
async fn clients_that_say_nothing_are_cut_off() {
    let mut config = emulated(0, 1);
    (config.connections.header_read_seconds, config.connections.age_seconds) = (2, 3);
    let server = start(config).await;
    let opened = Instant::now();
    for stream in &mut silent(&server).await {
        until_closed(stream).await;
        let after = opened.elapsed();
        assert!(after > Duration::from_secs(1) && after < Duration::from_secs(15), "{after:?}");
    }
    assert_eq!(call(&mut connect(&server).await.calls, "ServerLive", EMPTY).await.1, "0");
    server.stop().await;
}

#[tokio::test]
async fn clients_that_say_nothing_hold_up_no_drain() {
    let mut config = emulated(0, 1);
    config.connections.header_read_seconds = 2;
    let server = start(config).await;
    let _clients = silent(&server).await;
    call(&mut connect(&server).await.calls, "ServerLive", EMPTY).await; // so the server has them all
    let begun = Instant::now();
    server.drain().await;
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_is_out_of_bounds_gets_the_status_that_says_so() {
    let server = start(emulated(0, 1)).await;
    let mut calls = connect(&server).await.calls;
    // The empty message names no model.
    assert_eq!(call(&mut calls, "ModelInfer", EMPTY).await.1, "5", "NOT_FOUND");
    assert_eq!(call(&mut calls, "RepositoryModelLoad", EMPTY).await.1, "12", "UNIMPLEMENTED");
    // `inputs`, and in one of them `contents.bytes_contents`, of two bytes each and a hundred in memory.
    let many = [0x2a, 0].repeat(2_000);
    let nested = field(5, &field(5, &[0x42, 0].repeat(2_000)));
    // A group of an unknown field, which a decoder skips, hides nothing behind it.
    let behind_a_group = [[0xa3, 0x06, 0xa4, 0x06].as_slice(), &many].concat();
    // A byte each, and eight in memory: of a shape, and of numbers that are few in each field only.
    let deep = field(5, &field(3, &[1].repeat(1 << 20)));
    let numbers: Vec<_> = (1..=5).map(|kind| field(kind, &[1].repeat(2 << 20))).collect();
    let wide = field(5, &field(5, &numbers.concat()));
    for message in [many, nested, behind_a_group, deep, wide] {
        assert_eq!(call(&mut calls, "ModelInfer", frame(&message)).await.1, "3", "INVALID_ARGUMENT");
    }
    let large: &[u8] = &[0, 0xf0, 0, 0, 0];
    assert_eq!(call(&mut calls, "ModelInfer", unfinished(large)).await.1, "11", "OUT_OF_RANGE");
    let begun = Instant::now();
    let slow: &[u8] = &[0, 0, 0, 0, 9, 10];
    assert_eq!(call(&mut calls, "ModelInfer", unfinished(slow)).await.1, "4", "DEADLINE_EXCEEDED");
    assert!(begun.elapsed() > Duration::from_secs(4) && begun.elapsed() < Duration::from_secs(12));
    let refused = metric(&server, r#"yolo_http_requests_total{endpoint="v2",code="404"}"#).await;
    assert!((refused - 1.0).abs() < 1e-9, "counted as over REST");
    server.stop().await;
}

/// A field that holds bytes, text or a message.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut length = vec![];
    let mut rest = value.len();
    while rest > 0x7f {
        length.push(u8::try_from(rest & 0x7f).unwrap() | 0x80);
        rest >>= 7;
    }
    length.push(u8::try_from(rest).unwrap());
    [&[number << 3 | 2], length.as_slice(), value].concat()
}

/// A `ModelInferRequest` with one file.
fn inference(file: &[u8]) -> Vec<u8> {
    named_inference("", file)
}

/// One whose answer repeats its `id`.
fn named_inference(id: &str, file: &[u8]) -> Vec<u8> {
    let input = [field(1, b"image"), field(2, b"BYTES"), field(3, &[1])].concat();
    let tensor = [&u32::try_from(file.len()).unwrap().to_le_bytes(), file].concat();
    frame(&[field(1, b"pretended"), field(3, id.as_bytes()), field(5, &input), field(7, &tensor)].concat())
}

#[tokio::test]
async fn a_calls_timeout_ends_its_work_on_the_server() {
    let (server, gate) = start_gated(emulated(0, 1)).await;
    let mut calls = connect(&server).await.calls;
    let uri = "http://server/inference.GRPCInferenceService/ModelInfer";
    let request = Request::post(uri).header("content-type", "application/grpc").header("grpc-timeout", "50m");
    let request = request.body(Body::from(inference(&png(8, 8, [1; 3])))).unwrap();
    calls.ready().await.unwrap();
    let held = gate.hold().await;
    let (_, status) = answer(calls.send_request(request).await.unwrap()).await;
    assert_eq!(status, "4", "DEADLINE_EXCEEDED");
    drop(held);
    let late = metric(&server, r#"yolo_http_requests_total{endpoint="v2",code="504"}"#).await;
    assert!((late - 1.0).abs() < 1e-9, "the server's own answer");
    assert_eq!(call(&mut calls, "ModelInfer", inference(&png(8, 8, [2; 3]))).await.1, "0", "without one it is done");
    server.stop().await;
}

/// An id of 100 KiB. It is no message: each of its fields would count.
fn long_id() -> String {
    "\u{7}".repeat(100 << 10)
}

#[tokio::test]
async fn answers_that_nobody_reads_count_among_the_bodies_until_their_client_is_cut_off() {
    let mut config = emulated(0, 1);
    config.bodies = BodyLimits { body_bytes_max: 1 << 20, bodies_bytes_max: 1 << 20, ..BodyLimits::DEFAULT };
    config.connections.response_write_seconds = 5; // in which ten calls are made
    let server = start(config).await;
    let stream = TcpStream::connect(server.grpc_address()).await.unwrap();
    let mut unread = http2::Builder::new(TokioExecutor::new());
    unread.initial_stream_window_size(0);
    let (mut calls, connection) = unread.handshake(TokioIo::new(stream)).await.unwrap();
    let ended = tokio::spawn(connection);
    let question = named_inference(&long_id(), &png(8, 8, [1; 3]));
    let mut answers = Vec::new();
    let refused = loop {
        let response = send(&mut calls, "ModelInfer", question.clone().into()).await.unwrap();
        match response.headers().get("grpc-status") {
            Some(status) => break status.clone(),
            None => answers.push(response), // its message is held back
        }
    };
    assert_eq!(refused, "8", "RESOURCE_EXHAUSTED");
    assert!((8..=9).contains(&answers.len()), "{} answers of 100 KiB in 1 MiB", answers.len());
    let _ = tokio::time::timeout(PATIENCE, ended).await.unwrap();
    let mut calls = connect(&server).await.calls;
    eventually("there is room again", async || call(&mut calls, "ModelInfer", question.clone()).await.1 == "0").await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_its_socket_unread_is_cut_off_however_wide_its_windows_are() {
    let mut config = emulated(0, 1);
    (config.connections.response_write_seconds, config.connections.connections_max) = (1, 1);
    let (server, gate) = start_gated(config).await;
    let held = gate.hold().await;
    let stream = TcpStream::connect(server.grpc_address()).await.unwrap();
    let mut wide = http2::Builder::new(TokioExecutor::new());
    wide.initial_stream_window_size(1 << 30).initial_connection_window_size(1 << 30);
    let (mut calls, mut connection) = wide.handshake(TokioIo::new(stream)).await.unwrap();
    let id = long_id();
    let questions = async {
        let mut answers = Vec::new();
        for shade in 0..100 {
            let question = named_inference(&id, &png(8, 8, [shade; 3]));
            let request = Request::post("http://server/inference.GRPCInferenceService/ModelInfer");
            let request = request.header("content-type", "application/grpc").body(Body::from(question)).unwrap();
            calls.ready().await.unwrap();
            answers.push(calls.send_request(request));
        }
        eventually("all wait", async || metric(&server, "yolo_queue_depth").await > 80.0).await;
        answers
    };
    let _answers = tokio::select! {
        answers = questions => answers,
        ended = &mut connection => panic!("{ended:?}"),
    };
    // From here on nobody polls the connection: 10 MB of answers find no reader.
    let takes_others = async || get(server.api_address(), "/version").await.is_ok_and(|(status, _)| status == 200);
    assert!(!takes_others().await, "it has the only place");
    drop(held);
    eventually("its place is free", takes_others).await;
    server.stop().await;
}
