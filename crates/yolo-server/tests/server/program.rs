//! The program itself: signals, exit status, termination log.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use yolo_server::libraries;

use crate::redis::{Redis, SCOPE};
use crate::support::{PATIENCE, eventually, get, png, post, send_to, value_of};

/// Where the knobs are that let an image wait, however slow the machine is.
pub fn patient_knobs() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/knobs/patient")
}

pub fn program(model: &str) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_yolo-server"));
    program.stderr(Stdio::null()).args(["--model", model, "--grpc-address", "127.0.0.1:0"]);
    program.arg("--knobs-dir").arg(patient_knobs());
    program
}

pub fn free_address() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub async fn ended(child: &mut Child) -> ExitStatus {
    let mut status = None;
    eventually("program ends", async || {
        status = child.try_wait().unwrap();
        status.is_some()
    })
    .await;
    status.unwrap()
}

pub fn terminate(child: &Child) {
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
}

#[tokio::test]
async fn a_signal_drains_and_a_second_one_ends_at_once() {
    for (propagation, signals) in [("0", 1), ("3600", 2)] {
        let (api, admin) = (free_address(), free_address());
        let addresses = ["--api-address".to_owned(), api.to_string(), "--admin-address".to_owned(), admin.to_string()];
        let mut child = program("pretended.onnx")
            .args(["--engine=emulated", "--imgsz=64", "--drain-propagation-seconds", propagation])
            .args(addresses)
            .spawn()
            .unwrap();
        eventually("ready", async || get(admin, "/readyz").await.is_ok_and(|(status, _)| status == 200)).await;
        terminate(&child);
        if signals == 2 {
            eventually("drains", async || get(admin, "/readyz").await.is_ok_and(|(status, _)| status == 503)).await;
            assert!(child.try_wait().unwrap().is_none(), "the first one only drains");
            terminate(&child);
        }
        let start = Instant::now();
        assert!(ended(&mut child).await.success());
        assert!(start.elapsed() < PATIENCE);
    }
}

#[tokio::test]
async fn a_missing_model_ends_the_program_with_its_reason_in_the_termination_log() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let free = "127.0.0.1:0";
    let mut child = program("/nowhere/absent.onnx")
        .args(["--api-address", free, "--admin-address", free, "--termination-log"])
        .arg(log.path())
        .spawn()
        .unwrap();
    assert_eq!(ended(&mut child).await.code(), Some(1));
    let reason: Value = serde_json::from_str(&std::fs::read_to_string(log.path()).unwrap()).unwrap();
    assert_eq!(reason["code"], "model_missing");
    assert!(reason["message"].as_str().unwrap().contains("/nowhere/absent.onnx"));
}

#[tokio::test]
async fn libraries_are_set_up_by_the_environment_and_what_a_person_sets_stays() {
    let (api, admin) = (free_address(), free_address());
    let mut child = program("pretended.onnx")
        .args(["--engine=emulated", "--imgsz=64", "--drain-propagation-seconds=0"])
        .args(["--api-address".to_owned(), api.to_string(), "--admin-address".to_owned(), admin.to_string()])
        .env_remove("ORT_DISABLE_TELEMETRY")
        .env("MIMALLOC_PURGE_DELAY", "77")
        .spawn()
        .unwrap();
    eventually("ready", async || get(admin, "/readyz").await.is_ok_and(|(status, _)| status == 200)).await;
    let environment = std::fs::read_to_string(format!("/proc/{}/environ", child.id())).unwrap();
    for (name, ours) in libraries::settings() {
        let setting = format!("{name}={}", if name == "MIMALLOC_PURGE_DELAY" { "77" } else { ours });
        assert!(environment.split('\0').any(|entry| entry == setting), "{setting} is not in {environment:?}");
    }
    terminate(&child);
    assert!(ended(&mut child).await.success());
}

async fn put(address: std::net::SocketAddr, path: &str, body: &str) -> String {
    let request =
        format!("PUT {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn the_log_level_changes_while_it_runs() {
    let (api, admin) = (free_address(), free_address());
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut child = program("pretended.onnx")
        .args(["--engine=emulated", "--imgsz=64", "--drain-propagation-seconds=0"])
        .args(["--api-address".to_owned(), api.to_string(), "--admin-address".to_owned(), admin.to_string()])
        .env_remove("RUST_LOG")
        .stderr(log.reopen().unwrap())
        .spawn()
        .unwrap();
    eventually("ready", async || get(admin, "/readyz").await.is_ok_and(|(status, _)| status == 200)).await;
    let logged = |text: &str| std::fs::read_to_string(log.path()).unwrap().contains(text);
    // A torn request is worth a line at debug level only.
    let torn = async || drop(put(api, "/ \u{1}", "").await);
    torn().await;
    assert_eq!(get(admin, "/log").await.unwrap(), (200, "info".to_owned()));
    assert!(put(admin, "/log", "loud").await.starts_with("HTTP/1.1 400"));
    assert!(!logged("Connection ended early."));
    assert!(put(admin, "/log", "info,yolo_server=debug").await.starts_with("HTTP/1.1 200"));
    eventually("debug lines", async || {
        torn().await;
        logged("Connection ended early.")
    })
    .await;
    terminate(&child);
    assert!(ended(&mut child).await.success());
    let lines = std::fs::read_to_string(log.path()).unwrap();
    assert!(lines.lines().all(|line| serde_json::from_str::<Value>(line).is_ok_and(|line| line["level"].is_string())));
}

#[tokio::test]
async fn results_are_shared_over_tls_with_a_store_whose_certificate_is_trusted_and_with_no_other() {
    let Some(redis) = Redis::start("results_are_shared_over_tls").await else { return };
    for trusted in [false, true] {
        let (api, admin) = (free_address(), free_address());
        let mut command = program("pretended.onnx");
        command.args(["--engine=emulated", "--imgsz=64", "--drain-propagation-seconds=0", "--redis-scope", SCOPE]);
        command.args(["--api-address".to_owned(), api.to_string(), "--admin-address".to_owned(), admin.to_string()]);
        command.arg("--redis-url-file").arg(redis.tls_url_file());
        if trusted {
            command.env("SSL_CERT_FILE", redis.certificate());
        }
        let mut child = command.spawn().unwrap();
        eventually("ready", async || get(admin, "/readyz").await.is_ok_and(|(status, _)| status == 200)).await;
        let mut shade = 0;
        let mut ask = async || {
            shade += 1;
            assert_eq!(send_to(api, post("/predict", png(8, 8, [shade; 3]))).await.status, 200);
        };
        ask().await;
        if trusted {
            // What takes the store longer than it may is not sent again.
            eventually("an answer is stored", async || {
                ask().await;
                redis.answers().await > 0
            })
            .await;
        } else {
            eventually("the store is away", async || {
                let series = r#"yolo_store_errors_total{operation="cache_get"}"#;
                get(admin, "/metrics")
                    .await
                    .is_ok_and(|(_, page)| value_of(&page, series).is_some_and(|errors| errors > 0.0))
            })
            .await;
        }
        assert_eq!(redis.answers().await > 0, trusted);
        terminate(&child);
        assert!(ended(&mut child).await.success());
    }
}
