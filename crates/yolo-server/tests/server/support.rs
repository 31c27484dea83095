//! Servers, pictures and requests for the tests.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tower::ServiceExt;
use yolo_server::args::EngineKind;
use yolo_server::batcher::Batcher;
use yolo_server::engine::{BatchOutput, Engine, EngineError, EngineInput, LoadedModel, Memory, Sessions};
use yolo_server::{Config, Server, http};

/// Longest wait for anything that a test awaits.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An emulated server on free ports: a batch of `b` takes `alpha + beta * b` milliseconds.
pub fn emulated(alpha_ms: u64, beta_ms: u64) -> Config {
    Config {
        engine: EngineKind::Emulated,
        emulated_alpha_micros: 1_000 * alpha_ms,
        emulated_beta_micros: 1_000 * beta_ms,
        imgsz: vec![64],
        sessions: Some(1),
        ..on_free_ports(Config::new("pretended.onnx"))
    }
}

pub fn on_free_ports(config: Config) -> Config {
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    Config { api_address: free, grpc_address: free, admin_address: free, drain_propagation_seconds: 0, ..config }
}

/// Starts a server that lets images wait, however slow the machine is, unless its knobs come from a directory.
pub async fn start(config: Config) -> Server {
    let patient = config.knobs_dir.is_none();
    let server = Box::pin(Server::start(config)).await.unwrap();
    if patient {
        server.app().offer_knobs(br#"{"deadlineMillis":60000}"#);
    }
    server
}

/// Starts one that remembers no answer, and runs images one by one.
pub async fn start_patient(config: Config) -> Server {
    let server = start(config).await;
    server.app().offer_knobs(br#"{"cacheBytes":0,"batchMax":1,"maxBatchSize":1}"#);
    server
}

/// Batches of requests' pictures end only while nobody holds it.
#[derive(Clone, Default)]
pub struct Gate {
    lock: Arc<Mutex<()>>,
    begun: Arc<AtomicUsize>,
    passed: Arc<AtomicUsize>,
}

impl Gate {
    pub async fn hold(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.lock).lock_owned().await
    }

    /// Waits until `batches` of them have begun.
    pub async fn begun(&self, batches: usize) {
        eventually("a batch begins", async || self.begun.load(Ordering::SeqCst) >= batches).await;
    }

    /// Lets one batch pass.
    pub async fn pass(&self, held: OwnedMutexGuard<()>) -> OwnedMutexGuard<()> {
        let (mut held, before) = (Some(held), self.passed.load(Ordering::SeqCst));
        // The lock is fair: whoever waits for it has it before this one has it again.
        eventually("a batch passes", async || {
            drop(held.take());
            held = Some(self.hold().await);
            self.passed.load(Ordering::SeqCst) > before
        })
        .await;
        held.unwrap()
    }
}

/// An engine behind a gate.
struct Gated<E: ?Sized> {
    gate: Gate,
    inner: Box<E>,
}

impl Sessions for Gated<Arc<dyn Sessions>> {
    fn open(&self) -> Result<Box<dyn Engine>, EngineError> {
        Ok(Box::new(Gated { gate: self.gate.clone(), inner: self.inner.open()? }))
    }
}

impl Engine for Gated<dyn Engine> {
    fn run(&mut self, inputs: &[&EngineInput], memory: Memory) -> Result<Box<dyn BatchOutput + '_>, EngineError> {
        // What is timed at idle has no content.
        if inputs.iter().any(|input| input.content != [0; 32]) {
            self.gate.begun.fetch_add(1, Ordering::SeqCst);
            let _passes = self.gate.lock.blocking_lock();
            self.gate.passed.fetch_add(1, Ordering::SeqCst);
        }
        self.inner.run(inputs, memory)
    }
}

/// Starts a patient server behind a gate.
pub async fn start_gated(config: Config) -> (Server, Gate) {
    let server = start_patient(config).await;
    let (model, gate) = (server.app().predictor().unwrap().model().clone(), Gate::default());
    let sessions = Arc::new(Gated { gate: gate.clone(), inner: Box::new(Arc::clone(&model.sessions)) });
    let (app, model) = (server.app(), LoadedModel { sessions, ..model });
    let batcher = Batcher::start(&model, 1, app.knobs(), &app.metrics).unwrap();
    app.serve(app.predictor().unwrap().with_model(model, batcher)).unwrap().batcher().stop();
    (server, gate)
}

/// An ONNX file of this crate's fixtures.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/onnx").join(name)
}

/// A PNG of one colour.
pub fn png(width: u32, height: u32, rgb: [u8; 3]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let pixels: Vec<u8> = rgb.into_iter().cycle().take(3 * (width * height) as usize).collect();
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    file
}

/// An answered request.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// The body as JSON; null if it is none.
    pub body: Value,
    pub bytes: Bytes,
}

impl Answer {
    pub fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or("")
    }
}

/// Calls the router without a socket.
pub async fn call(server: &Server, request: Request<Body>) -> Answer {
    answer(http::router(server.app()).oneshot(request).await.unwrap()).await
}

/// Sends a request over a connection of its own.
pub async fn send(server: &Server, request: Request<Body>) -> Answer {
    send_to(server.api_address(), request).await
}

pub async fn send_to(address: SocketAddr, mut request: Request<Body>) -> Answer {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    request.headers_mut().insert("host", "test".parse().unwrap());
    answer(sender.send_request(request).await.unwrap().map(Body::new)).await
}

async fn answer(response: axum::response::Response) -> Answer {
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    Answer { status, headers, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null), bytes }
}

/// A form with fields of these names and values.
pub fn multipart(uri: &str, fields: &[(&str, &[u8])]) -> Request<Body> {
    let mut body = Vec::new();
    for (name, value) in fields {
        body.extend_from_slice(format!("--edge\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n").as_bytes());
        body.extend_from_slice(value);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--edge--\r\n");
    let request = Request::post(uri).header("content-type", "multipart/form-data; boundary=edge");
    request.body(body.into()).unwrap()
}

/// A JSON body.
pub fn json(uri: &str, document: &Value) -> Request<Body> {
    let request = Request::post(uri).header("content-type", "application/json");
    request.body(document.to_string().into()).unwrap()
}

pub fn post(uri: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(uri).body(body.into()).unwrap()
}

pub async fn predict(server: &Server, picture: &[u8]) -> Answer {
    call(server, post("/predict", picture.to_vec())).await
}

/// The status and body of `GET path` on the admin port, over a socket.
pub async fn admin(server: &Server, path: &str) -> (u16, String) {
    get(server.admin_address(), path).await.unwrap()
}

pub async fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Ok((status, body.to_owned()))
}

/// The value of a series, by its full name with labels.
pub async fn metric(server: &Server, series: &str) -> f64 {
    let (status, text) = admin(server, "/metrics").await;
    assert_eq!(status, 200);
    value_of(&text, series).unwrap_or_else(|| panic!("no series {series} in:\n{text}"))
}

pub fn value_of(exposition: &str, series: &str) -> Option<f64> {
    exposition.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// Polls until the condition holds; fails after [`PATIENCE`].
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
