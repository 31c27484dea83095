//! How the program shares its CPU among sessions, with ONNX Runtime.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command};

use crate::onnx::runtime_is_there;
use crate::program::patient_knobs;
use crate::support::{eventually, fixture, get, png, post, send_to, value_of};

/// A program that is killed with the test.
struct Program {
    child: Child,
    api: SocketAddr,
    admin: SocketAddr,
    log: tempfile::NamedTempFile,
}

impl Program {
    async fn start(flags: &[&str]) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (api, admin, log) = (free(), free(), tempfile::NamedTempFile::new().unwrap());
        let mut program = Command::new(env!("CARGO_BIN_EXE_yolo-server"));
        program.arg("--model").arg(fixture("standard.onnx")).args(flags).args(["--grpc-address", "127.0.0.1:0"]);
        program.arg("--knobs-dir").arg(patient_knobs());
        program.args(["--api-address".to_owned(), api.to_string(), "--admin-address".to_owned(), admin.to_string()]);
        let child = program.env_remove("RUST_LOG").stderr(File::create(log.path()).unwrap()).spawn().unwrap();
        let started = Self { child, api, admin, log };
        eventually("ready", async || get(admin, "/readyz").await.is_ok_and(|(status, _)| status == 200)).await;
        started
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn the_profile_shares_the_quota_as_sessions_or_as_threads_of_one() {
    if !runtime_is_there("the_profile_shares_the_quota_as_sessions_or_as_threads_of_one") {
        return;
    }
    let mut answers = Vec::new();
    for profile in ["throughput", "latency"] {
        let program = Program::start(&["--profile", profile]).await;
        // It too knows affinity and cgroup quota.
        let cores = std::thread::available_parallelism().unwrap().get();
        let (sessions, threads) = if profile == "latency" { (1, cores) } else { (cores, 1) };
        let workers = value_of(&get(program.admin, "/metrics").await.unwrap().1, "yolo_workers");
        assert_eq!(
            workers.map(|workers| workers.to_string()),
            Some(sessions.to_string()),
            "{profile} on {cores} cores"
        );
        let log = std::fs::read_to_string(program.log.path()).unwrap();
        assert!(log.contains(&format!("sessions: {sessions}, session_threads: {threads}")), "{log}");
        let answer = send_to(program.api, post("/predict", png(64, 64, [250, 4, 4]))).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answers.push(answer.body["detections"].clone());
    }
    assert_eq!(answers[0], answers[1]);
}
