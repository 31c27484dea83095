//! Another model in place of the served one, on the real ONNX Runtime: no request fails for it, and nothing else changes
//! unless all goes well.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use yolo_server::cgroup::{self, MemoryStat};
use yolo_server::engine::{EngineError, EngineInput, LoadedModel, Memory, ort};
use yolo_server::reload::{self, ReloadError, Reloaded};
use yolo_server::{Config, Server};

use crate::onnx::{config, runtime_is_there};
use crate::program::{ended, free_address, program, terminate};
use crate::support::{Answer, admin, eventually, fixture, get, metric, png, post, predict, send_to, start, value_of};
use crate::tasks::{self, submit};

/// A model of three classes, and one of another task.
const MODELS: [&str; 2] = ["standard.onnx", "pose.onnx"];

/// The file that servers are pointed at.
struct ModelFile {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl ModelFile {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = Self { path: folder.path().join("served.onnx"), _folder: folder };
        file.put(&fs::read(fixture(MODELS[0])).unwrap());
        file
    }

    /// Replaces the file as whoever uploads a model should: by renaming.
    fn put(&self, bytes: &[u8]) {
        let beside = self.path.with_extension("part");
        fs::write(&beside, bytes).unwrap();
        fs::rename(beside, &self.path).unwrap();
    }
}

async fn reload(server: &Server) -> Result<Reloaded, ReloadError> {
    reload::reload(&server.app(), cgroup::memory_stat).await
}

async fn models(server: &Server) -> Value {
    tasks::get(server, "/models").await.body
}

/// Reloads that swapped the model, changed nothing, were refused.
fn reloads(exposition: &str) -> [Option<f64>; 3] {
    let series = |outcome| format!("yolo_model_reloads_total{{outcome=\"{outcome}\"}}");
    ["swapped", "unchanged", "refused"].map(|outcome| value_of(exposition, &series(outcome)))
}

fn version(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body["model"]["version"].as_str().unwrap().to_owned()
}

fn sha256(path: &Path) -> String {
    ort::digest(path).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_no_request_fails_and_each_is_answered_by_one_of_the_two_models() {
    if !runtime_is_there("under_load_no_request_fails_and_each_is_answered_by_one_of_the_two_models") {
        return;
    }
    let file = ModelFile::new();
    let server = start(Config { tasks: true, ..config(file.path.clone()) }).await;
    server.app().offer_knobs(br#"{"cacheBytes":1048576,"deadlineMillis":60000}"#);
    let digests = MODELS.map(|model| sha256(&fixture(model)));
    let (over, picture) = (AtomicBool::new(false), png(64, 64, [250, 4, 4]));
    let client = async |bypass: bool| {
        let mut versions = Vec::new();
        while !over.load(Ordering::SeqCst) {
            let mut request = post("/predict", picture.clone());
            if bypass {
                request.headers_mut().insert("cache-control", "no-cache".parse().unwrap());
            }
            let answer = send_to(server.api_address(), request).await;
            let (version, keypoints) = (version(&answer), answer.body["detections"][0]["keypoints"].is_object());
            assert_eq!(keypoints, version == digests[1][..6], "{}", answer.body);
            versions.push(version);
        }
        versions
    };
    let swap = async {
        eventually("served", async || metric(&server, "yolo_batched_images_total").await > 20.0).await;
        let task = submit(&server, &picture).await;
        assert_eq!(tasks::ended(&server, &task).await.body["result"]["model"]["version"], digests[0][..6]);
        file.put(&fs::read(fixture(MODELS[1])).unwrap());
        assert_eq!(version(&predict(&server, &picture).await), digests[0][..6], "nothing is read unasked");
        let images = async || metric(&server, "yolo_batched_images_total").await;
        let reloading = async {
            let reloaded = reload(&server).await.unwrap();
            let before = images().await;
            eventually("served by the new one", async || images().await > before + 20.0).await;
            over.store(true, Ordering::SeqCst);
            reloaded
        };
        let ready = async {
            while !over.load(Ordering::SeqCst) {
                assert_eq!(admin(&server, "/readyz").await.0, 200);
            }
        };
        let (reloaded, ()) = tokio::join!(reloading, ready);
        assert_eq!(reloaded, Reloaded::Swapped(digests[1].clone()));
        assert_eq!(version(&predict(&server, &picture).await), digests[1][..6], "the cache tells the models apart");
    };
    // More than are run at a time: some wait in the old model's queue when it is replaced.
    let clients = futures::future::join_all([true, true, true, true, false].map(client));
    let ((), versions) = tokio::join!(swap, clients);
    for versions in versions {
        assert_eq!(versions[0], digests[0][..6]);
        assert!(versions.is_sorted_by_key(|version| *version == digests[1][..6]), "{versions:?}");
    }
    let served_now = models(&server).await;
    let model = &served_now["models"][0];
    assert_eq!(
        (&model["sha256"], &model["task"], &model["name"]),
        (&json!(digests[1]), &json!("pose"), &json!("served"))
    );
    let (_, metadata) = get(server.api_address(), "/v2/models/served").await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&metadata).unwrap()["versions"], json!([digests[1][..6]]));
    let (_, exposition) = admin(&server, "/metrics").await;
    let info: Vec<_> = exposition.lines().filter(|line| line.starts_with("yolo_model_info{")).collect();
    assert!(info.len() == 1 && info[0].contains(&digests[1]), "{info:?}");
    assert_eq!(value_of(&exposition, "yolo_model_loads_total"), Some(2.0));
    assert_eq!(reloads(&exposition), [1.0, 0.0, 0.0].map(Some));
    let task = submit(&server, &picture).await;
    assert_eq!(tasks::ended(&server, &task).await.body["result"]["model"]["version"], digests[1][..6]);
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_served_changes_nothing() {
    if !runtime_is_there("what_cannot_be_served_changes_nothing") {
        return;
    }
    let file = ModelFile::new();
    let (asked, other) = (sha256(&file.path), fs::read(fixture(MODELS[1])).unwrap());
    let server = start(Config { model_sha256: Some(asked.clone()), ..config(file.path.clone()) }).await;
    assert_eq!(reload(&server).await.unwrap(), Reloaded::Unchanged(asked.clone()));
    let (half, whole) = (&other[..other.len() / 2], &other[..]);
    for (bytes, reason, shade) in [(half, "expected", 1), (whole, "expected", 2), (&b""[..], "empty", 3)] {
        file.put(bytes);
        let error = reload::told(&reload(&server).await.unwrap_err());
        assert!(error.contains(reason) && error.contains("served.onnx"), "{error}");
        assert_eq!(version(&predict(&server, &png(64, 64, [shade; 3])).await), asked[..6]);
    }
    assert_eq!(models(&server).await["models"][0]["sha256"], asked);
    let series = admin(&server, "/metrics").await.1;
    assert_eq!(value_of(&series, "yolo_model_loads_total"), Some(1.0));
    assert_eq!(reloads(&series), [0.0, 1.0, 3.0].map(Some));
    server.stop().await;
}

#[tokio::test]
async fn a_torn_file_and_one_without_room_are_refused_and_a_whole_one_with_room_is_served() {
    if !runtime_is_there("a_torn_file_and_one_without_room_are_refused_and_a_whole_one_with_room_is_served") {
        return;
    }
    let file = ModelFile::new();
    let server = start(config(file.path.clone())).await;
    let (first, other) = (sha256(&file.path), fs::read(fixture(MODELS[1])).unwrap());
    let torn = async |bytes: &[u8]| {
        file.put(bytes);
        reload::told(&reload(&server).await.unwrap_err())
    };
    assert!(torn(&other[..other.len() / 2]).await.contains("truncated"));
    // Known only once it is loaded.
    assert!(torn(&fs::read(fixture("unknown-task.onnx")).unwrap()).await.contains("not supported"));
    file.put(&other);
    let full = || MemoryStat { working_set_bytes: 4 << 30, limit_bytes: Some(4 << 30) };
    let refused = reload::reload(&server.app(), full).await.unwrap_err();
    assert!(matches!(refused, ReloadError::Memory(_)), "{refused:?}");
    assert!(reload::told(&refused).contains("memory limit of 4096 MiB is too low for both models"), "{refused:?}");
    assert_eq!(version(&predict(&server, &png(64, 64, [250, 4, 4])).await), first[..6]);
    let roomy = || MemoryStat { working_set_bytes: 4 << 30, limit_bytes: Some(1 << 40) };
    let digest = sha256(&fixture(MODELS[1]));
    assert_eq!(reload::reload(&server.app(), roomy).await.unwrap(), Reloaded::Swapped(digest.clone()));
    assert_eq!(version(&predict(&server, &png(64, 64, [250, 4, 4])).await), digest[..6]);
    server.stop().await;
}

/// What a new session makes of a grey picture.
fn outputs(model: &LoadedModel) -> Result<Vec<Vec<f32>>, EngineError> {
    let size = model.info.size();
    let pixels = vec![93; 3 * usize::try_from(size.pixels()).unwrap_or_default()];
    let input = EngineInput { pixels: pixels.into(), size, content: [1; 32] };
    let mut engine = model.sessions.open()?;
    let batch = engine.run(&[&input], Memory::Keep)?;
    Ok(batch.image(0).unwrap_or_default().iter().map(|output| output.values.to_vec()).collect())
}

#[test]
fn no_session_is_of_a_file_that_took_the_models_place() {
    if !runtime_is_there("no_session_is_of_a_file_that_took_the_models_place") {
        return;
    }
    let file = ModelFile::new();
    let load = |device, sessions| {
        ort::load(&ort::Options { device, sessions, batch_max: 1, ..ort::Options::new(&file.path) }).unwrap()
    };
    // Several sessions share what the first made of the file; one is opened of the file, and so is each size on a GPU,
    // which the bound one stands for.
    let (shared, alone, bound) = (load(ort::Device::Cpu, 2), load(ort::Device::Cpu, 1), load(ort::Device::CpuBound, 1));
    let (own, before) = (fs::read(&file.path).unwrap(), outputs(&shared).unwrap());
    assert_eq!(outputs(&alone).unwrap(), before);
    file.put(&fs::read(fixture(MODELS[1])).unwrap());
    assert_eq!(outputs(&shared).unwrap(), before);
    for model in [&alone, &bound] {
        let refused = outputs(model).unwrap_err().to_string();
        assert!(refused.contains("was replaced: reload it"), "{refused}");
    }
    assert_ne!(outputs(&load(ort::Device::Cpu, 2)).unwrap(), before);
    file.put(&own);
    for model in [&alone, &bound] {
        assert_eq!(outputs(model).unwrap(), before, "the same bytes again");
    }
}

/// How many threads of a process run a model.
fn inference_threads(pid: u32) -> usize {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let name = |thread: std::io::Result<fs::DirEntry>| fs::read_to_string(thread.ok()?.path().join("comm")).ok();
    threads.filter_map(name).filter(|name| name.starts_with("inference-")).count()
}

#[tokio::test]
async fn a_hangup_and_the_admin_port_reload_and_the_old_model_ends() {
    if !runtime_is_there("a_hangup_and_the_admin_port_reload_and_the_old_model_ends") {
        return;
    }
    let (file, api, admin) = (ModelFile::new(), free_address(), free_address());
    let mut child = program(file.path.to_str().unwrap())
        .args(["--sessions=1", "--drain-propagation-seconds=0"])
        .args(["--api-address".to_owned(), api.to_string(), "--admin-address".to_owned(), admin.to_string()])
        .spawn()
        .unwrap();
    eventually("ready", async || get(admin, "/readyz").await.is_ok_and(|(status, _)| status == 200)).await;
    for (model, by_signal) in [(MODELS[1], true), (MODELS[0], false)] {
        file.put(&fs::read(fixture(model)).unwrap());
        let digest = sha256(&file.path);
        if by_signal {
            assert!(Command::new("kill").args(["-HUP", &child.id().to_string()]).status().unwrap().success());
        } else {
            let answer = send_to(admin, post("/reload", "")).await;
            assert_eq!((answer.status.as_u16(), &answer.bytes[..]), (200, format!("reloaded {digest}").as_bytes()));
        }
        eventually("served", async || get(api, "/models").await.is_ok_and(|(_, models)| models.contains(&digest)))
            .await;
        eventually("the old one has ended", async || inference_threads(child.id()) == 1).await;
        let again = send_to(admin, post("/reload", "")).await;
        assert_eq!((again.status.as_u16(), &again.bytes[..]), (200, format!("unchanged {digest}").as_bytes()));
    }
    file.put(b"torn");
    assert_eq!(send_to(admin, post("/reload", "")).await.status, 409);
    assert_eq!(get(admin, "/readyz").await.unwrap().0, 200);
    terminate(&child);
    assert!(ended(&mut child).await.success());
}
