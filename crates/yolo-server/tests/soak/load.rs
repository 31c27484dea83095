//! Every kind of client that the server has, good and bad, each in a loop.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use bytes::Bytes;
use futures::future::LocalBoxFuture;
use http_body_util::BodyExt;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DISTINCT_PICTURES: u64 = 4_096;
/// Requests of one connection that is kept: fewer than the server itself gives it.
const KEPT_REQUESTS: u64 = 50;

/// What the clients share.
pub struct Load {
    /// Where REST is.
    pub api: SocketAddr,
    /// Where gRPC is.
    pub grpc: SocketAddr,
    /// The model's name.
    pub model: &'static str,
    /// Requests so far.
    pub requests: AtomicU64,
    /// Answers that no client may cause: 500, 502, 503.
    pub server_errors: AtomicU64,
    /// Answers with a result.
    pub successes: AtomicU64,
    /// Tells the clients to end.
    pub over: AtomicBool,
}

impl Load {
    /// Nothing asked yet.
    pub const fn new(api: SocketAddr, grpc: SocketAddr, model: &'static str) -> Self {
        let (requests, server_errors, successes) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Self { api, grpc, model, requests, server_errors, successes, over: AtomicBool::new(false) }
    }

    fn count(&self, status: StatusCode) {
        if status.is_server_error() && status != StatusCode::GATEWAY_TIMEOUT {
            self.server_errors.fetch_add(1, Ordering::Relaxed);
        }
        if status.is_success() {
            self.successes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Raw bytes on a connection of their own, which the server closes.
    async fn exchange(&self, request: &[u8]) -> std::io::Result<()> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut stream = TcpStream::connect(self.api).await?;
        stream.write_all(request).await?;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await; // a reset after the answer is none of our business here
        let status = answer.get(b"HTTP/1.1 ".len()..).and_then(|rest| StatusCode::from_bytes(rest.get(..3)?).ok());
        if let Some(status) = status {
            self.count(status);
        }
        Ok(())
    }

    /// Requests one after the other on one connection, until it ends.
    async fn keep(&self, requests: impl Iterator<Item = Request<Body>>) -> hyper::Result<()> {
        let Ok(stream) = TcpStream::connect(self.api).await else { return Ok(()) };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let ended = tokio::spawn(connection);
        for request in requests {
            self.answer(&mut sender, request).await?;
        }
        drop(sender);
        ended.await.unwrap()
    }

    /// What a request is answered, on a connection that is kept.
    async fn answer(&self, sender: &mut http1::SendRequest<Body>, request: Request<Body>) -> hyper::Result<Bytes> {
        sender.ready().await?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.whole(sender.send_request(request).await?).await
    }

    async fn whole(&self, response: Response<Incoming>) -> hyper::Result<Bytes> {
        self.count(response.status());
        Ok(response.into_body().collect().await?.to_bytes())
    }

    /// Hands a picture in, asks for it, and forgets every second one.
    async fn task(&self, turn: u64) -> hyper::Result<()> {
        let Ok(stream) = TcpStream::connect(self.api).await else { return Ok(()) };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let accepted = self.answer(&mut sender, post("/predict/async").body(picture(turn).into()).unwrap()).await?;
        let accepted: serde_json::Value = serde_json::from_slice(&accepted).unwrap_or_default();
        // None if there were too many.
        let Some(id) = accepted["task_id"].as_str() else { return Ok(()) };
        let task = |method: &str| Request::builder().method(method).uri(format!("/tasks/{id}")).header("host", "t");
        self.answer(&mut sender, task("GET").body(Body::empty()).unwrap()).await?;
        if turn.is_multiple_of(2) {
            self.answer(&mut sender, task("DELETE").body(Body::empty()).unwrap()).await?;
        }
        Ok(())
    }

    /// Inference over gRPC, several at once on one connection.
    async fn call(&self, turn: u64) -> hyper::Result<()> {
        let Ok(stream) = TcpStream::connect(self.grpc).await else { return Ok(()) };
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let infer = async |number: u64| {
            let mut sender: http2::SendRequest<Body> = sender.clone();
            sender.ready().await?;
            self.requests.fetch_add(1, Ordering::Relaxed);
            let request = Request::post("http://t/inference.GRPCInferenceService/ModelInfer")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(frame(&Infer::of(self.model, &picture(number))).into());
            self.whole(sender.send_request(request.unwrap()).await?).await
        };
        let (first, second) = tokio::join!(infer(2 * turn), infer(2 * turn + 1));
        first.and(second).map(drop)
    }

    /// Repeats one client until the load is over.
    async fn repeat(&self, client: impl AsyncFn(&Self, u64)) {
        let mut turn = 0;
        while !self.over.load(Ordering::Relaxed) {
            client(self, turn).await;
            turn += 1;
        }
    }
}

/// The part of the protocol's `ModelInferRequest` that a picture needs.
#[derive(Message)]
struct Infer {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(message, repeated, tag = "5")]
    inputs: Vec<Input>,
    #[prost(bytes = "bytes", repeated, tag = "7")]
    raw_input_contents: Vec<Bytes>,
}

#[derive(Message)]
struct Input {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    datatype: String,
    #[prost(int64, repeated, tag = "3")]
    shape: Vec<i64>,
}

impl Infer {
    fn of(model: &str, file: &[u8]) -> Self {
        let input = Input { name: "image".to_owned(), datatype: "BYTES".to_owned(), shape: vec![1] };
        Self { model_name: model.to_owned(), inputs: vec![input], raw_input_contents: vec![tensor(file).into()] }
    }
}

/// A file as the protocol's `BYTES` tensor.
fn tensor(file: &[u8]) -> Vec<u8> {
    let length = u32::try_from(file.len()).unwrap().to_le_bytes();
    [length.as_slice(), file].concat()
}

/// A gRPC message that is not compressed.
fn frame(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], length.as_slice(), &message].concat()
}

fn post(uri: &str) -> axum::http::request::Builder {
    Request::post(uri).header("host", "t")
}

fn raw_post(head: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("POST /predict{head}\r\nHost: t\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

fn picture(number: u64) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, 64, 64);
    encoder.set_color(png::ColorType::Rgb);
    let pixels: Vec<u8> = number.to_le_bytes().into_iter().cycle().take(3 * 64 * 64).collect();
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    file
}

/// Three pictures in a form, the second of them torn.
fn batch(turn: u64) -> Request<Body> {
    let (first, second) = (picture(turn), picture(turn + 1));
    let files = [first.as_slice(), &second[..second.len() / 2], &second];
    let part = |file: &[u8]| {
        let head = b"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n";
        [head, file, b"\r\n"].concat()
    };
    let body = [files.map(part).concat().as_slice(), b"--b--\r\n"].concat();
    post("/predict/batch").header("content-type", "multipart/form-data; boundary=b").body(body.into()).unwrap()
}

/// Open Inference Protocol: the first of a pair in JSON alone, the second in binary.
fn infer(model: &str, turn: u64) -> Request<Body> {
    let (request, file) = (post(&format!("/v2/models/{model}/infer")), picture(turn));
    let input = json!({"name": "image", "datatype": "BYTES", "shape": [1]});
    if turn.is_multiple_of(2) {
        let mut input = input;
        input["data"] = json!([base64::engine::general_purpose::STANDARD.encode(&file)]);
        return request.body(json!({ "inputs": [input] }).to_string().into()).unwrap();
    }
    let (mut input, tensor) = (input, tensor(&file));
    input["parameters"] = json!({"binary_data_size": tensor.len()});
    let head = json!({"inputs": [input], "parameters": {"binary_data_output": true}}).to_string().into_bytes();
    let request = request.header("inference-header-content-length", head.len());
    request.body([head, tensor].concat().into()).unwrap()
}

/// All other forms of a request, in turn.
fn other(model: &str, turn: u64) -> Request<Body> {
    match turn % 6 {
        0 => batch(turn),
        1 | 2 => infer(model, turn),
        3 => {
            let file = base64::engine::general_purpose::STANDARD.encode(picture(turn));
            let request = post("/predict").header("content-type", "application/json");
            request.body(json!({"image": file, "conf": 0.1}).to_string().into()).unwrap()
        }
        4 => post("/predict").header("accept", "image/png").body(picture(turn).into()).unwrap(),
        _ => Request::get("/v2").header("host", "t").body(Body::empty()).unwrap(),
    }
}

/// Every kind of client. Errors of a connection are no failure: the server ends some of them on purpose.
pub fn clients<'a>(load: &'a Load, knobs: &Path) -> Vec<LocalBoxFuture<'a, ()>> {
    let plain = " HTTP/1.1";
    let knobs = knobs.join("knobs.json");
    vec![
        Box::pin(load.repeat(async move |load, turn| {
            let _ = load.exchange(&raw_post(plain, &picture(turn % DISTINCT_PICTURES))).await;
        })),
        Box::pin(load.repeat(async move |load, _| {
            let _ = load.exchange(&raw_post(plain, &picture(0))).await;
        })),
        Box::pin(load.repeat(async move |load, turn| {
            let of = |number| post("/predict").body(picture(number % DISTINCT_PICTURES).into()).unwrap();
            let _ = load.keep((0..KEPT_REQUESTS).map(|number| of(KEPT_REQUESTS * turn + number))).await;
        })),
        Box::pin(load.repeat(async move |load, turn| {
            let numbers = (0..KEPT_REQUESTS).map(|number| KEPT_REQUESTS * turn + number);
            let _ = load.keep(numbers.map(|number| other(load.model, number))).await;
        })),
        Box::pin(load.repeat(async move |load, turn| {
            let _ = load.task(turn).await;
        })),
        Box::pin(load.repeat(async move |load, turn| {
            let _ = load.call(turn).await;
        })),
        Box::pin(load.repeat(async move |load, turn| {
            let whole = picture(turn);
            let torn = &whole[..usize::try_from(turn).unwrap_or(0) % whole.len()];
            let _ = load.exchange(&raw_post(plain, torn)).await;
            let _ = load.exchange(&raw_post("?speed=fast HTTP/1.1", &whole)).await;
            let _ = load.exchange(b"GET /\x01 HTTP/1.1\r\n\r\n").await;
            let _ = load.exchange(b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\n").await;
        })),
        Box::pin(load.repeat(async move |load, turn| {
            let whole = raw_post(plain, &picture(DISTINCT_PICTURES + turn));
            let end = usize::try_from(turn * 97).unwrap_or(0) % (whole.len() + 1);
            load.requests.fetch_add(1, Ordering::Relaxed);
            if let Ok(mut leaver) = TcpStream::connect(load.api).await {
                let _ = leaver.write_all(&whole[..end]).await;
            }
        })),
        Box::pin(load.repeat(async move |load, turn| {
            let frame = |number| raw_post(" HTTP/1.1\r\nX-Stream-Id: gate", &picture(2 * DISTINCT_PICTURES + number));
            let (old, new) = (frame(2 * turn), frame(2 * turn + 1));
            let _ = tokio::join!(load.exchange(&old), load.exchange(&new));
        })),
        Box::pin(load.repeat(async move |load, turn| {
            let _ = load.exchange(&raw_post("?timeout_ms=1 HTTP/1.1", &picture(u64::MAX - turn))).await;
            let _ = load.exchange(b"POST /predict HTTP/1.1\r\nHo").await; // until it is cut off
        })),
        Box::pin(load.repeat(async move |_, turn| {
            let document =
                format!(r#"{{"generation":{turn},"maxBatchSize":{},"cacheBytes":{}}}"#, 1 + turn % 8, (turn % 3) << 19);
            fs::write(&knobs, document).unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
        })),
    ]
}
