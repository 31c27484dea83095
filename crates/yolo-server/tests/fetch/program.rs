//! The program under test, run as the kubelet runs it: flags, environment, exit status, termination log.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use yolo_server::sha256::Sha256;

/// The longest that anything may take here.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Bytes that stand for a model: no two blocks are equal, so that a piece in the wrong place is another file.
pub fn model(len: usize) -> Vec<u8> {
    (0_u32..).flat_map(|word| word.wrapping_mul(0x9e37_79b1).to_le_bytes()).take(len).collect()
}

/// SHA-256 as 64 hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    let mut sha256 = Sha256::new();
    sha256.update(bytes);
    sha256.hex()
}

/// Polls until the condition holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "still not: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One container's worth of `yolo-server fetch`: its folder outlives a run, as an `emptyDir` does.
pub struct Fetch {
    folder: TempDir,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub success: bool,
    /// `code` and `message` of the termination log; empty if it was not written.
    pub code: String,
    pub message: String,
    pub log: String,
}

impl Fetch {
    /// A fetch of `uri`, whose server's certificate `authority` (PEM) has signed.
    pub fn new(uri: &str, authority: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let arguments = vec![format!("--uri={uri}")];
        Self { folder, arguments, environment: Vec::new() }.env("YOLO_CA_CERTIFICATES", authority)
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn flag(mut self, flag: &str) -> Self {
        self.arguments.push(flag.to_owned());
        self
    }

    pub fn sha256(self, sha256: &str) -> Self {
        self.flag(&format!("--sha256={sha256}"))
    }

    /// Where the model shall be.
    pub fn model(&self) -> PathBuf {
        self.folder.path().join("model.onnx")
    }

    /// Where it is while it is on its way.
    pub fn part(&self) -> PathBuf {
        self.folder.path().join("model.onnx.part")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("termination-log")
    }

    /// Starts it.
    pub fn start(&self) -> Child {
        let _ = fs::remove_file(self.log());
        Command::new(env!("CARGO_BIN_EXE_yolo-server"))
            .arg("fetch")
            .args(&self.arguments)
            .arg(format!("--to={}", self.model().display()))
            .arg(format!("--termination-log={}", self.log().display()))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Waits for its end.
    pub fn end(&self, child: Child) -> Ended {
        let output = child.wait_with_output().unwrap();
        let reason: Value = fs::read(self.log()).map_or(Value::Null, |text| serde_json::from_slice(&text).unwrap());
        let text = |field: &str| reason[field].as_str().unwrap_or_default().to_owned();
        let log = String::from_utf8(output.stderr).unwrap();
        Ended { success: output.status.success(), code: text("code"), message: text("message"), log }
    }

    /// Starts it and waits for its end.
    pub fn run(&self) -> Ended {
        self.end(self.start())
    }

    /// Runs it and checks that the model came, whole and under its name alone.
    pub fn brings(&self, model: &[u8]) {
        let ended = self.run();
        assert!(ended.success, "{ended:#?}");
        assert_eq!(ended.code, "");
        assert!(fs::read(self.model()).unwrap() == model, "other bytes");
        assert!(!self.part().exists());
    }

    /// Runs it and checks that it refuses, says why, and leaves nothing that could be taken for a model.
    pub fn fails(&self, code: &str, says: &[&str]) -> Ended {
        let ended = self.run();
        assert!(!ended.success);
        assert_eq!(ended.code, code, "{ended:#?}");
        for words in says {
            assert!(ended.message.contains(words), "{words}: {}", ended.message);
        }
        assert!(!self.model().exists());
        ended
    }
}
