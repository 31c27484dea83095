//! Public clients of other people, unchanged, against the real server with a real model.

use std::path::{Path, PathBuf};

use tokio::process::Command;
use yolo_server::Config;

use crate::onnx::runtime_is_there;
use crate::support::{emulated, fixture, on_free_ports, start};

/// The interpreter with the pinned packages of `tools/model/requirements.txt`.
fn python(test: &str) -> Option<PathBuf> {
    let python = std::env::var_os("YOLO_CACHE").map(|cache| Path::new(&cache).join("venv/bin/python"));
    let python = python.filter(|python| python.exists());
    if python.is_none() {
        println!("SKIPPED {test}: no venv in YOLO_CACHE (make model)");
        assert!(std::env::var_os("CI").is_none(), "the Python environment is required in CI");
    }
    python
}

/// Runs a script of `tests/clients` against a server with the model of this name; `arguments` follow the addresses.
async fn run(python: &Path, script: &str, model: &str, arguments: &[PathBuf]) {
    let config = Config { sessions: Some(1), ..on_free_ports(Config::new(fixture(model))) };
    run_against(config, python, script, arguments).await;
}

async fn run_against(config: Config, python: &Path, script: &str, arguments: &[PathBuf]) {
    let server = start(config).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
    let addresses = [server.api_address().to_string(), server.grpc_address().to_string()];
    let run = Command::new(python).arg(script).args(addresses).args(arguments).output().await.unwrap();
    let output = [run.stdout, run.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).join("\n");
    assert!(run.status.success(), "{arguments:?}: {output}");
    println!("{output}");
    server.stop().await;
}

#[tokio::test]
async fn tritonclient_gets_detections_and_raw_outputs_over_rest_and_grpc() {
    let test = "tritonclient_gets_detections_and_raw_outputs_over_rest_and_grpc";
    let Some(python) = python(test).filter(|_| runtime_is_there(test)) else { return };
    run(&python, "oip.py", "standard.onnx", &[fixture("standard.onnx")]).await;
}

#[tokio::test]
async fn tritonclient_gets_what_every_task_finds_as_tensors() {
    let test = "tritonclient_gets_what_every_task_finds_as_tensors";
    let Some(python) = python(test).filter(|_| runtime_is_there(test)) else { return };
    let picture = fixture("").with_file_name("shaded.png");
    for model in ["segment", "pose", "pose-without-visibility", "obb", "classify"] {
        run(&python, "oip_tasks.py", &format!("{model}.onnx"), &[model.into(), picture.clone()]).await;
    }
}

#[tokio::test]
async fn a_public_validator_finds_the_openapi_document_valid() {
    let Some(python) = python("a_public_validator_finds_the_openapi_document_valid") else { return };
    run_against(Config { tasks: true, ..emulated(0, 1) }, &python, "openapi.py", &[]).await;
}
