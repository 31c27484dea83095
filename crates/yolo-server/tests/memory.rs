//! Memory of the real program with the real model: one session, batch 1, every page once; what more sessions take.
//!
//! `make bench-server` runs it on the release build (`YOLO_SERVER_PROGRAM`) and prints the figure.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use yolo_testkit::figures::{self, Figure};

/// Goal of the project.
const RESIDENT_MB_MAX: f64 = 200.0;
/// A picture's input and activations take some 30 MB, a copy of the weights would take 13 more.
const SESSION_MB_MAX: f64 = 38.0;
const PATIENCE: Duration = Duration::from_mins(1);

/// Ends the program when the test does, however it does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn cache() -> Option<PathBuf> {
    let named = std::env::var_os("YOLO_CACHE").map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/yolo-operator")))
}

/// `VmRSS` of a process in MB (10^6 bytes).
fn resident_mb(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap() * 1_024.0 / 1e6
}

async fn exchange(address: &str, request: &[u8]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// The real program with the real model, on free ports.
struct Program {
    server: Running,
    api: String,
    _knobs: tempfile::TempDir,
}

impl Program {
    /// Starts it with `sessions` and waits until it is ready; `None` where the model or ONNX Runtime is missing.
    async fn start(test: &str, sessions: usize) -> Option<Self> {
        let model = cache().map(|cache| cache.join("models/page-layout-640.onnx")).filter(|model| model.exists());
        let library = std::env::var_os("ORT_DYLIB_PATH").filter(|library| PathBuf::from(library).exists());
        let (Some(model), Some(_)) = (model, library) else {
            println!("SKIPPED {test}: no model or no ONNX Runtime (make model pages)");
            assert!(std::env::var_os("CI").is_none(), "model and ONNX Runtime are required in CI");
            return None;
        };
        let knobs = tempfile::tempdir().unwrap();
        fs::write(
            knobs.path().join("knobs.json"),
            r#"{"generation":1,"maxBatchSize":1,"batchMax":1,"deadlineMillis":60000}"#,
        )
        .unwrap();
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let (api, admin) = (free(), free());
        let program = std::env::var_os("YOLO_SERVER_PROGRAM");
        let server = Command::new(program.unwrap_or_else(|| env!("CARGO_BIN_EXE_yolo-server").into()))
            .arg("--model")
            .arg(model)
            .args(["--sessions", &sessions.to_string(), "--api-address", &api, "--grpc-address", "127.0.0.1:0"])
            .args(["--admin-address", &admin, "--knobs-dir"])
            .arg(knobs.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Running(server);
        let start = Instant::now();
        let ready = b"GET /readyz HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";
        while !exchange(&admin, ready).await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            assert!(start.elapsed() < PATIENCE, "not ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Some(Self { server, api, _knobs: knobs })
    }

    fn resident_mb(&self) -> f64 {
        resident_mb(self.server.0.id())
    }
}

#[tokio::test]
async fn the_real_model_takes_at_most_200_mb() {
    let Some(program) = Program::start("the_real_model_takes_at_most_200_mb", 1).await else { return };
    let pages: Vec<_> =
        fs::read_dir(cache().unwrap().join("pages/jpeg")).unwrap().map(|page| page.unwrap().path()).collect();
    assert_eq!(pages.len(), 23);
    let warm_mb = program.resident_mb();
    for page in &pages {
        let picture = fs::read(page).unwrap();
        let head = format!(
            "POST /predict HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            picture.len()
        );
        let answer = exchange(&program.api, &[head.as_bytes(), &picture].concat()).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let served_mb = program.resident_mb();
    println!("resident memory, 640 model, 1 session, batch 1: {warm_mb:.0} MB warm, {served_mb:.0} MB after 23 pages");
    let figure = Figure::at_most("resident_640_one_session_batch_1", served_mb, "MB", RESIDENT_MB_MAX);
    figures::add("server", "make bench-server", &mut [figure]).unwrap();
    assert!(served_mb <= RESIDENT_MB_MAX, "{served_mb:.0} MB");
}

#[tokio::test]
async fn sessions_share_one_copy_of_the_weights() {
    let mut resident = Vec::new();
    for sessions in [2, 4] {
        let Some(program) = Program::start("sessions_share_one_copy_of_the_weights", sessions).await else { return };
        resident.push(program.resident_mb());
    }
    let each_mb = (resident[1] - resident[0]) / 2.0;
    println!("resident memory, 640 model: {resident:.0?} MB with 2 and 4 sessions, {each_mb:.0} MB a session");
    let figure = Figure::at_most("resident_640_one_more_session", each_mb, "MB", SESSION_MB_MAX);
    figures::add("server", "make bench-server", &mut [figure]).unwrap();
    assert!(each_mb <= SESSION_MB_MAX, "{each_mb:.0} MB");
}
