//! GPUs that are asked for, on a machine without one: never a silent fall-back. `make gpu-check` is for machines with one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::Value;
use yolo_server::args::{Precision, Provider};
use yolo_server::batcher::Batcher;
use yolo_server::engine::ort::{Device, GpuProvider, Options, choose, library, load};
use yolo_server::engine::{
    BatchOutput, Engine, EngineError, EngineInput, LoadError, LoadedModel, Memory, Sessions, emulated,
};
use yolo_server::knobs::Knobs;
use yolo_server::metrics::Metrics;

use crate::onnx::runtime_is_there;
use crate::program::{ended, free_address, program, terminate};
use crate::support::{self, PATIENCE, admin, eventually, fixture, get, start};

/// A folder with the real ONNX Runtime and these (empty) libraries beside it.
fn runtime_with(libraries: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    symlink(fs::canonicalize(library()).unwrap(), folder.path().join("libonnxruntime.so")).unwrap();
    for library in libraries {
        fs::write(folder.path().join(library), "").unwrap();
    }
    folder
}

/// Starts the program for a GPU that it cannot have; returns its last words.
async fn last_words(provider: &str, runtime: &Path) -> Value {
    let log = tempfile::NamedTempFile::new().unwrap();
    let started = Instant::now();
    let mut child = program(fixture("standard.onnx").to_str().unwrap())
        .args(["--provider", provider, "--api-address=127.0.0.1:0", "--admin-address=127.0.0.1:0", "--termination-log"])
        .arg(log.path())
        .env("ORT_DYLIB_PATH", runtime.join("libonnxruntime.so"))
        .spawn()
        .unwrap();
    assert_eq!(ended(&mut child).await.code(), Some(1));
    assert!(started.elapsed() < PATIENCE);
    serde_json::from_str(&fs::read_to_string(log.path()).unwrap()).unwrap()
}

#[tokio::test]
async fn a_gpu_that_cannot_be_used_ends_the_program_with_the_name_of_what_is_missing() {
    if !runtime_is_there("a_gpu_that_cannot_be_used_ends_the_program_with_the_name_of_what_is_missing") {
        return;
    }
    let shared = "libonnxruntime_providers_shared.so";
    for (provider, own) in
        [("cuda", "libonnxruntime_providers_cuda.so"), ("tensorrt", "libonnxruntime_providers_tensorrt.so")]
    {
        for (beside, missing) in [(vec![], shared), (vec![shared], own), (vec![shared, own], "libcuda.so.1")] {
            let words = last_words(provider, runtime_with(&beside).path()).await;
            assert_eq!(words["code"], "engine_unavailable", "{words}");
            let message = words["message"].as_str().unwrap();
            // With a driver it gets as far as this ONNX Runtime, which is built for the CPU.
            let driver_is_there = missing == "libcuda.so.1" && message.contains("execution provider");
            assert!(message.contains(missing) && message.contains("--provider cpu") || driver_is_there, "{message}");
        }
    }
}

#[tokio::test]
async fn auto_without_a_gpu_serves_on_the_cpu_and_says_why() {
    if !runtime_is_there("auto_without_a_gpu_serves_on_the_cpu_and_says_why") {
        return;
    }
    let (admin, log) = (free_address(), tempfile::NamedTempFile::new().unwrap());
    let mut child = program(fixture("standard.onnx").to_str().unwrap())
        .args(["--provider=auto", "--api-address=127.0.0.1:0", "--drain-propagation-seconds=0", "--admin-address"])
        .arg(admin.to_string())
        .env("CUDA_VISIBLE_DEVICES", "")
        .env_remove("RUST_LOG")
        .stderr(log.reopen().unwrap())
        .spawn()
        .unwrap();
    eventually("ready", async || get(admin, "/readyz").await.is_ok_and(|(status, _)| status == 200)).await;
    let (_, exposition) = get(admin, "/metrics").await.unwrap();
    terminate(&child);
    assert!(ended(&mut child).await.success());
    let lines = fs::read_to_string(log.path()).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let chosen = lines.iter().map(|line| &line["fields"]).find(|fields| fields["message"] == "Provider chosen.");
    let chosen = chosen.unwrap_or_else(|| panic!("{lines:?}"));
    assert_eq!((&chosen["provider"], &chosen["reason"]), (&"cpu".into(), &"no NVIDIA GPU is visible".into()));
    assert!(exposition.contains("provider=\"cpu\""), "{exposition}");
    assert!(!exposition.lines().any(|line| line.starts_with("yolo_gpu_")), "no GPU, no figures of one");
}

#[test]
fn only_auto_looks_at_what_there_is() {
    let cpu_build = runtime_with(&[]);
    let gpu_build = runtime_with(&["libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"]);
    let runtime = |folder: &tempfile::TempDir| folder.path().join("libonnxruntime.so");
    for (asked, gpus, folder, expected) in [
        (Provider::Auto, 0, &gpu_build, None),
        (Provider::Auto, 1, &cpu_build, None),
        (Provider::Auto, 1, &gpu_build, Some(GpuProvider::Cuda)),
        (Provider::Cpu, 1, &gpu_build, None),
        (Provider::Cuda, 0, &cpu_build, Some(GpuProvider::Cuda)),
        (Provider::TensorRt, 0, &cpu_build, Some(GpuProvider::TensorRt)),
    ] {
        assert_eq!(choose(asked, gpus, &runtime(folder)).0, expected, "{asked:?} with {gpus} GPUs");
    }
}

#[tokio::test]
async fn a_precision_that_the_model_does_not_have_is_refused() {
    if !runtime_is_there("a_precision_that_the_model_does_not_have_is_refused") {
        return;
    }
    let loaded = |model: &str, precision| load(&Options { precision, ..Options::new(fixture(model)) });
    for (model, precision, expected) in [
        ("standard.onnx", Precision::Auto, Some("fp32")),
        ("standard.onnx", Precision::Fp32, Some("fp32")),
        ("standard.onnx", Precision::Fp16, None),
        ("standard-half.onnx", Precision::Auto, Some("fp16")),
        ("standard-half.onnx", Precision::Fp16, Some("fp16")),
        ("standard-half.onnx", Precision::Fp32, None),
    ] {
        match (loaded(model, precision), expected) {
            (Ok(model), Some(expected)) => assert_eq!(model.precision, expected),
            (Err(LoadError::Unsupported { file, .. }), None) => assert!(file.ends_with(model)),
            (other, _) => panic!("{model} as {precision:?}: {other:?}"),
        }
    }
}

/// All values of the first outputs of `count` pictures, each of one grey.
fn values(model: &LoadedModel, count: u8) -> Vec<Vec<f32>> {
    let len = 3 * usize::try_from(model.info.size().pixels()).unwrap();
    let picture = |index: u8| EngineInput {
        pixels: vec![40 * index + 20; len].into(),
        size: model.info.size(),
        content: [index; 32],
    };
    let pictures: Vec<_> = (0..count).map(picture).collect();
    let mut engine = model.sessions.open().unwrap();
    let output = engine.run(&pictures.iter().collect::<Vec<_>>(), Memory::Keep).unwrap();
    let of = |index: u8| output.image(index.into()).unwrap().iter().flat_map(|view| view.values.to_vec()).collect();
    (0..count).map(of).collect()
}

#[test]
fn bound_buffers_and_padding_change_no_answer() {
    if !runtime_is_there("bound_buffers_and_padding_change_no_answer") {
        return;
    }
    let loaded = |model: &str, device| load(&Options { device, ..Options::new(fixture(model)) }).unwrap();
    for (model, counts) in [
        ("standard.onnx", 1..=5),
        ("standard-half.onnx", 1..=3),
        ("segment.onnx", 2..=3),
        ("end2end.onnx", 3..=3),
        // Its batch is 2 and nothing else.
        ("standard-batch-2.onnx", 1..=2),
    ] {
        let (free, bound) = (loaded(model, Device::Cpu), loaded(model, Device::CpuBound));
        assert_eq!(bound.batches_fixed, model != "standard-batch-2.onnx");
        for count in counts {
            for (free, bound) in values(&free, count).iter().zip(values(&bound, count)) {
                assert!(!free.is_empty() && free.len() == bound.len(), "{model}");
                let furthest = free.iter().zip(&bound).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(furthest <= 1e-4, "{model}, {count} pictures: {furthest}");
            }
        }
    }
}

/// An engine that notes the size of every batch.
struct Noting {
    inner: Arc<dyn Sessions>,
    sizes: Arc<Mutex<Vec<usize>>>,
}

struct NotingEngine {
    inner: Box<dyn Engine>,
    sizes: Arc<Mutex<Vec<usize>>>,
}

impl NotingEngine {
    fn note(&self, size: usize) {
        self.sizes.lock().unwrap().push(size);
    }
}

impl Sessions for Noting {
    fn open(&self) -> Result<Box<dyn Engine>, EngineError> {
        Ok(Box::new(NotingEngine { inner: self.inner.open()?, sizes: Arc::clone(&self.sizes) }))
    }
}

impl Engine for NotingEngine {
    fn run(&mut self, inputs: &[&EngineInput], memory: Memory) -> Result<Box<dyn BatchOutput + '_>, EngineError> {
        self.note(inputs.len());
        self.inner.run(inputs, memory)
    }
}

#[test]
fn where_a_size_costs_seconds_each_session_has_run_all_before_the_first_request() {
    for (batches_fixed, expected) in [(true, vec![1, 2, 4, 8, 12, 16]), (false, vec![1])] {
        let model = emulated::load(&support::emulated(0, 0)).unwrap();
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let sessions = Arc::new(Noting { inner: model.sessions, sizes: Arc::clone(&sizes) });
        let model = LoadedModel { sessions, batches_fixed, batch_max: 16, ..model };
        let knobs = Knobs { timed_batch_max: 1, ..Knobs::default() };
        let batcher = Batcher::start(&model, 2, knobs, &Arc::new(Metrics::new())).unwrap();
        let mut ran = sizes.lock().unwrap().clone();
        let twice = expected.iter().skip(1).all(|size| ran.iter().filter(|ran| *ran == size).count() == 2);
        ran.sort_unstable();
        ran.dedup();
        assert_eq!(ran, expected);
        assert!(twice, "each session runs each size");
        batcher.stop();
    }
}

#[tokio::test]
async fn the_emulated_device_is_the_only_gpu_in_the_figures() {
    let server = start(support::emulated(0, 1)).await;
    let series = "yolo_gpu_utilization_ratio{gpu=\"0\"}";
    eventually("a busy share", async || support::value_of(&admin(&server, "/metrics").await.1, series).is_some()).await;
    let (_, exposition) = admin(&server, "/metrics").await;
    let figures: Vec<_> = exposition.lines().filter(|line| line.starts_with("yolo_gpu_")).collect();
    assert!(matches!(figures[..], [one] if one.starts_with(series)), "{figures:?}");
    server.stop().await;
}
