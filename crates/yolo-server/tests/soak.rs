//! A compressed soak of the real program: every kind of client at once, then memory, file descriptors, threads and
//! tasks must be where they were.
//!
//! A few seconds as a test; `make soak` runs it until as many requests were made as one a second makes in 24 hours.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    reason = "a helper that fails is a failed test"
)]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::LocalBoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use yolo_testkit::figures::{self, Figure};

const PATIENCE: Duration = Duration::from_secs(30);
/// Requests of the run that is a test.
const REQUESTS_BRIEF: u64 = 5_000;
/// Growth of memory over the second half of a run that is not called flat.
const GROWTH_MB_MAX: f64 = 8.0;
const DISTINCT_PICTURES: u64 = 4_096;

/// Ends the program when the test does, however it does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the clients share.
struct Load {
    api: SocketAddr,
    requests: AtomicU64,
    server_errors: AtomicU64,
    over: AtomicBool,
}

impl Load {
    async fn exchange(&self, request: &[u8]) -> std::io::Result<String> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut stream = TcpStream::connect(self.api).await?;
        stream.write_all(request).await?;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await; // a reset after the answer is none of our business here
        let answer = String::from_utf8_lossy(&answer).into_owned();
        if answer.starts_with("HTTP/1.1 50") && !answer.starts_with("HTTP/1.1 504") {
            self.server_errors.fetch_add(1, Ordering::Relaxed);
        }
        Ok(answer)
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

fn post(head: &str, body: &[u8]) -> Vec<u8> {
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

/// Every kind of client, each in a loop.
fn clients<'a>(load: &'a Load, knobs: &Path) -> Vec<LocalBoxFuture<'a, ()>> {
    let plain = " HTTP/1.1";
    let knobs = knobs.join("knobs.json");
    vec![
        Box::pin(load.repeat(async move |load, turn| {
            let _ = load.exchange(&post(plain, &picture(turn % DISTINCT_PICTURES))).await;
        })),
        Box::pin(load.repeat(async move |load, _| {
            let _ = load.exchange(&post(plain, &picture(0))).await;
        })),
        Box::pin(load.repeat(async move |load, turn| {
            let whole = picture(turn);
            let torn = &whole[..usize::try_from(turn).unwrap_or(0) % whole.len()];
            let _ = load.exchange(&post(plain, torn)).await;
            let _ = load.exchange(&post("?speed=fast HTTP/1.1", &whole)).await;
            let _ = load.exchange(b"GET /\x01 HTTP/1.1\r\n\r\n").await;
            let _ = load.exchange(b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\n").await;
        })),
        Box::pin(load.repeat(async move |load, turn| {
            let whole = post(plain, &picture(DISTINCT_PICTURES + turn));
            let end = usize::try_from(turn * 97).unwrap_or(0) % (whole.len() + 1);
            load.requests.fetch_add(1, Ordering::Relaxed);
            if let Ok(mut leaver) = TcpStream::connect(load.api).await {
                let _ = leaver.write_all(&whole[..end]).await;
            }
        })),
        Box::pin(load.repeat(async move |load, turn| {
            let frame = |number| post(" HTTP/1.1\r\nX-Stream-Id: gate", &picture(2 * DISTINCT_PICTURES + number));
            let (old, new) = (frame(2 * turn), frame(2 * turn + 1));
            let _ = tokio::join!(load.exchange(&old), load.exchange(&new));
        })),
        Box::pin(load.repeat(async move |load, turn| {
            let _ = load.exchange(&post("?timeout_ms=1 HTTP/1.1", &picture(u64::MAX - turn))).await;
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

/// Memory in MB (10^6 bytes), and counts.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    resident_mb: f64,
    files: f64,
    threads: f64,
    tasks: f64,
}

async fn sample(admin: SocketAddr) -> Option<Sample> {
    let mut stream = TcpStream::connect(admin).await.ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    value("yolo_ready").filter(|ready| *ready > 0.5)?;
    Some(Sample {
        resident_mb: value("process_resident_memory_bytes")? / 1e6,
        files: value("process_open_fds")?,
        threads: value("process_threads")?,
        tasks: value("yolo_runtime_tasks")?,
    })
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Slope of the least-squares line through points `(x, y)`.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = f64::from(u32::try_from(points.len()).unwrap());
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let covariance: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    covariance / points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>()
}

fn start(knobs: &Path, (api, admin): (SocketAddr, SocketAddr)) -> Running {
    let program = std::env::var_os("YOLO_SERVER_PROGRAM");
    let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_yolo-server").into());
    let flags = "--model pretended.onnx --engine emulated --imgsz 64 --emulated-alpha-micros 500 --sessions 2 \
                 --emulated-beta-micros 100 --header-read-seconds 1 --grpc-address 127.0.0.1:0";
    let child = Command::new(program)
        .args(flags.split_whitespace())
        .args(["--api-address".to_owned(), api.to_string(), "--admin-address".to_owned(), admin.to_string()])
        .arg("--knobs-dir")
        .arg(knobs)
        .stderr(Stdio::null())
        .spawn();
    Running(child.unwrap())
}

#[tokio::test]
async fn memory_files_threads_and_tasks_stay_flat() {
    let requests = std::env::var("YOLO_SOAK_REQUESTS").map_or(REQUESTS_BRIEF, |number| number.parse().unwrap());
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (api, admin) = (free(), free());
    let knobs = tempfile::tempdir().unwrap();
    let _server = start(knobs.path(), (api, admin));
    eventually("ready", async || sample(admin).await.is_some()).await;
    let before = sample(admin).await.unwrap();

    let (over, errors) = (AtomicBool::new(false), AtomicU64::new(0));
    let load = Load { api, requests: AtomicU64::new(0), server_errors: errors, over };
    let (begun, mut memory) = (Instant::now(), Vec::new());
    let watch = async {
        while load.requests.load(Ordering::Relaxed) < requests {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = sample(admin).await.expect("still ready");
            memory.push((begun.elapsed().as_secs_f64(), now.resident_mb));
        }
        load.over.store(true, Ordering::Relaxed);
    };
    tokio::join!(futures::future::join_all(clients(&load, knobs.path())), watch);

    // The first half fills caches, pools and the allocator's own.
    let half = &memory[memory.len() / 2..];
    let lasted_s = half[half.len() - 1].0 - half[0].0;
    let growth_mb = slope(half) * lasted_s;
    let served = load.requests.load(Ordering::Relaxed);
    println!("{served} requests in {:.0} s, second half: {growth_mb:+.2} MB", begun.elapsed().as_secs_f64());
    let mut after = before;
    eventually("files, threads and tasks are where they were", async || {
        after = sample(admin).await.unwrap_or(after);
        after.files <= before.files && after.tasks <= before.tasks
    })
    .await;
    println!("before: {before:?}, after: {after:?}");
    // Blocking threads of the runtime that are idle end by themselves after 10 s, and are bounded: see the decode pool.
    let mut figures = [
        Figure::at_most("soak_memory_growth", growth_mb, "MB", GROWTH_MB_MAX).noted(format!("{served} requests")),
        Figure::at_most("soak_files_left_open", after.files - before.files, "files", 0.0),
        Figure::at_most("soak_tasks_left_alive", after.tasks - before.tasks, "tasks", 0.0),
    ];
    figures::add("server", "make soak", &mut figures).unwrap();
    assert_eq!(load.server_errors.load(Ordering::Relaxed), 0, "no 500, no 503");
    assert!(growth_mb <= GROWTH_MB_MAX, "{growth_mb:.1} MB in the second half");
}
