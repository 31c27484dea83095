//! A compressed soak of the real program: every kind of client at once, then memory, file descriptors, threads and
//! tasks must be where they were. Once with the emulated engine, which has queues, and once with ONNX Runtime.
//!
//! A few seconds as a test; `make soak` runs it until as many requests were made as one a second makes in 24 hours.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    reason = "a helper that fails is a failed test"
)]

mod load;
mod sample;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use load::{Load, clients};
use sample::{Sample, growth, sample};
use yolo_testkit::figures::{self, Figure};

const PATIENCE: Duration = Duration::from_secs(30);
/// Requests of the run that is a test.
const REQUESTS_BRIEF: u64 = 5_000;
/// Growth of memory over the second half of a run that is still called flat.
const GROWTH_MB_MAX: f64 = 8.0;
/// Of a brief one, which may not have filled every thread's heap by its half: 13 kB a request, a picture's pixels.
const GROWTH_MB_MAX_BRIEF: f64 = 32.0;
/// Growth of the number of threads over the same time. Not what is left afterwards: a runtime's blocking thread ends
/// after 10 s without work, and what the server does every second or two goes round among all of them that there are.
const GROWTH_THREADS_MAX: f64 = 1.0;
/// Of a brief one, in whose second half more may block at once than ever before: decoders, knobs, the cache's size.
const GROWTH_THREADS_MAX_BRIEF: f64 = 4.0;

/// The engine of one run.
struct Engine {
    name: &'static str,
    model: &'static str,
    flags: &'static str,
}

const EMULATED: Engine = Engine {
    name: "emulated",
    model: "pretended",
    flags: "--model pretended.onnx --engine emulated --imgsz 64 --emulated-alpha-micros 500 --emulated-beta-micros 100",
};
const ONNX_RUNTIME: Engine = Engine {
    name: "onnxruntime",
    model: "standard",
    flags: concat!("--model ", env!("CARGO_MANIFEST_DIR"), "/fixtures/onnx/standard.onnx"),
};

/// Ends the program when the test does, however it does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn start(engine: &Engine, knobs: &Path, [api, grpc, admin]: [SocketAddr; 3]) -> Running {
    let program = std::env::var_os("YOLO_SERVER_PROGRAM");
    let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_yolo-server").into());
    let child = Command::new(program)
        .args(engine.flags.split_whitespace())
        .args(["--sessions", "2", "--header-read-seconds", "1", "--tasks", "--tasks-ttl-seconds", "1"])
        .args(["--api-address".to_owned(), api.to_string(), "--grpc-address".to_owned(), grpc.to_string()])
        .args(["--admin-address".to_owned(), admin.to_string()])
        .arg("--knobs-dir")
        .arg(knobs)
        .stderr(Stdio::null())
        .spawn();
    Running(child.unwrap())
}

#[tokio::test]
async fn memory_files_threads_and_tasks_stay_flat_with_an_emulated_engine() {
    stays_flat(&EMULATED).await;
}

#[tokio::test]
async fn memory_files_threads_and_tasks_stay_flat_with_onnx_runtime() {
    if std::env::var_os("ORT_DYLIB_PATH").is_none_or(|library| !Path::new(&library).exists()) {
        println!("SKIPPED: ORT_DYLIB_PATH names no ONNX Runtime (make model)");
        assert!(std::env::var_os("CI").is_none(), "ONNX Runtime is required in CI");
        return;
    }
    stays_flat(&ONNX_RUNTIME).await;
}

async fn stays_flat(engine: &Engine) {
    let (requests, [mb_max, threads_max]) = match std::env::var("YOLO_SOAK_REQUESTS") {
        Ok(number) => (number.parse().unwrap(), [GROWTH_MB_MAX, GROWTH_THREADS_MAX]),
        Err(_) => (REQUESTS_BRIEF, [GROWTH_MB_MAX_BRIEF, GROWTH_THREADS_MAX_BRIEF]),
    };
    let addresses @ [api, grpc, admin] =
        std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let knobs = tempfile::tempdir().unwrap();
    let _server = start(engine, knobs.path(), addresses);
    eventually("ready", async || sample(admin).await.is_some()).await;
    let before = sample(admin).await.unwrap();

    let load = Load::new(api, grpc, engine.model);
    let (begun, mut samples) = (Instant::now(), Vec::new());
    let watch = async {
        while load.requests.load(Ordering::Relaxed) < requests {
            tokio::time::sleep(Duration::from_millis(100)).await;
            samples.push((begun.elapsed().as_secs_f64(), sample(admin).await.expect("still ready")));
        }
        load.over.store(true, Ordering::Relaxed);
    };
    tokio::join!(futures::future::join_all(clients(&load, knobs.path())), watch);

    // The first half fills caches, pools and the allocator's own.
    let half = &samples[samples.len() / 2..];
    let measures: [fn(&Sample) -> f64; 4] = [|at| at.resident_mb, |at| at.files, |at| at.threads, |at| at.tasks];
    let [memory_mb, files, threads, tasks] = measures.map(|of| growth(half, of));
    let [served, successes] = [&load.requests, &load.successes].map(|count| count.load(Ordering::Relaxed));
    let name = engine.name;
    println!(
        "{name}: {served} requests, {successes} successes in {:.0} s; slope of the second half, to its end: \
         {memory_mb:+.2} MB, {files:+.2} files, {threads:+.2} threads, {tasks:+.2} tasks",
        begun.elapsed().as_secs_f64()
    );
    let mut after = before;
    eventually("files and tasks are where they were", async || {
        after = sample(admin).await.unwrap_or(after);
        after.files <= before.files && after.tasks <= before.tasks
    })
    .await;
    println!("before: {before:?}, after: {after:?}");
    keep(name, served, [memory_mb, threads], [before, after]);
    assert_eq!(load.server_errors.load(Ordering::Relaxed), 0, "no 500, no 503");
    assert!(successes > served / 4, "most clients ask for something that can be answered: {successes} of {served}");
    assert!(memory_mb <= mb_max, "{memory_mb:.1} MB in the second half");
    assert!(threads <= threads_max, "{threads:.1} threads in the second half");
}

fn keep(engine: &str, served: u64, [memory_mb, threads]: [f64; 2], [before, after]: [Sample; 2]) {
    let id = |what: &str| format!("soak_{engine}_{what}");
    let note = format!("{served} requests");
    let mut figures = [
        Figure::at_most(id("memory_growth"), memory_mb, "MB", GROWTH_MB_MAX).noted(&note),
        Figure::at_most(id("files_left_open"), after.files - before.files, "files", 0.0),
        Figure::at_most(id("threads_growth"), threads, "threads", GROWTH_THREADS_MAX).noted(&note),
        Figure::at_most(id("tasks_left_alive"), after.tasks - before.tasks, "tasks", 0.0),
    ];
    figures::add("server", "make soak", &mut figures).unwrap();
}
