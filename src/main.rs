//! The operator program: settings, logging, signals; everything else is in the library.

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use yolo_operator::args::Config;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Config::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let filter = EnvFilter::try_new(&config.log).context("--log is not a log filter")?;
    tracing_subscriber::fmt().json().with_env_filter(filter).init();
    let kubernetes = kube::Config::infer().await.context("no kubeconfig and no service account")?;
    let client = yolo_operator::client(kubernetes)?;
    let shutdown = CancellationToken::new();
    tokio::spawn(signals(shutdown.clone())?);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), config = config.effective(), "The operator starts.");
    yolo_operator::run(config, client, shutdown).await.context("the operator ended")
}

/// SIGTERM and SIGINT end the program in order: the lease is vacated, serving pods are not touched.
fn signals(shutdown: CancellationToken) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("no SIGTERM handler")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no SIGINT handler")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
    })
}
