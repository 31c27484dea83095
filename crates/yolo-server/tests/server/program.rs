//! The program itself: signals, exit status, termination log.

use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use serde_json::Value;

use crate::support::{PATIENCE, eventually, get};

fn program(model: &str) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_yolo-server"));
    program.stderr(Stdio::null()).args(["--model", model, "--grpc-address", "127.0.0.1:0"]);
    program
}

fn free_address() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn ended(child: &mut Child) -> ExitStatus {
    let mut status = None;
    eventually("program ends", async || {
        status = child.try_wait().unwrap();
        status.is_some()
    })
    .await;
    status.unwrap()
}

fn terminate(child: &Child) {
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
