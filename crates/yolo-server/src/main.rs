//! The `yolo-server` program.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use yolo_server::fetch::{self, Fetch};
use yolo_server::{Config, cgroup, libraries, limits, logging};

/// Pictures come and go on many threads: the system's allocator keeps the holes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Told apart by hand: the flags of the server have no subcommand in front, and `--model` is required of it alone.
    let mut arguments = std::env::args_os();
    let ended = if arguments.nth(1).is_some_and(|first| first == "fetch") {
        let args = Fetch::parse_from(std::iter::once("yolo-server fetch".into()).chain(arguments));
        logging::init();
        fetch(&args)
    } else {
        let config = Config::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
        logging::init();
        if let Err(error) = set_up_libraries() {
            tracing::warn!(%error, "Libraries keep their own settings: more memory, and ONNX Runtime's telemetry.");
        }
        serve(config)
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "Server failed.");
            ExitCode::FAILURE
        }
    }
}

/// Starts this program again, as the same process, unless every one of [`libraries::settings`] is in the environment.
fn set_up_libraries() -> std::io::Result<()> {
    let missing = libraries::settings().into_iter().filter(|(name, _)| std::env::var_os(name).is_none());
    let mut missing = missing.peekable();
    if missing.peek().is_none() {
        return Ok(());
    }
    let mut arguments = std::env::args_os();
    let mut again = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    Err(again.args(arguments).envs(missing).exec())
}

/// One thread: there is one transfer.
fn fetch(args: &Fetch) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // The first process of a container ignores signals that it does not ask for.
        let mut term = signal(SignalKind::terminate())?;
        tokio::select! {
            fetched = fetch::run(args) => fetched.map_err(anyhow::Error::from),
            _ = term.recv() => Err(anyhow::anyhow!("ended before the model was there")),
        }
    })
}

fn serve(config: Config) -> anyhow::Result<()> {
    let threads = worker_threads(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        // As many again decode pictures.
        .max_blocking_threads(threads + limits::BLOCKING_THREADS_BESIDE)
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let result = runtime.block_on(async {
        let mut term = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut asked = async move || {
            tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
        };
        let mut hangup = signal(SignalKind::hangup())?;
        let (drain, reload) = (CancellationToken::new(), Notify::new());
        let asked_to_reload = async {
            while hangup.recv().await.is_some() {
                reload.notify_one(); // several while one is under way are one
            }
            std::future::pending::<()>().await;
        };
        let asked_twice = async {
            asked().await;
            drain.cancel();
            asked().await;
        };
        tokio::select! {
            served = yolo_server::run(config, drain.cancelled(), &reload) => served.map_err(anyhow::Error::from),
            () = asked_twice => Ok(()), // somebody insists: now
            () = asked_to_reload => Ok(()), // never
        }
    });
    // A model that is still being loaded must not hold the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// Threads for connections and JSON; decoding and inference have their own.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few hundred cores")]
fn worker_threads(config: &Config) -> usize {
    (cgroup::usable_cores(config.cpu_request).ceil() as usize).max(1)
}
