//! Starts a server, drains it, stops it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use opentelemetry_otlp::ExporterBuildError;
use rustix::process::{Resource, Rlimit};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::app::App;
use crate::args::Config;
use crate::connection::{self, Policy};
use crate::engine::{EngineError, LoadError};
use crate::http;
use crate::knobs;
use crate::lifecycle::Stage;
use crate::limits::{
    ADMIN_CONNECTIONS_MAX, ConnectionLimits, FILES_RESERVED, HAND_BACK_MAX, INPUT_SIZES_MAX, WORKERS_END_MAX,
};
use crate::load;
use crate::memory::TooLittle;
use crate::reload::Reloader;
use crate::store::results::SharedResults;
use crate::store::{self, StoreError};
use crate::tasks::{self, Tasks};
use crate::traces::Traces;

/// How often the cache is fitted into memory.
const MEMORY_INTERVAL: Duration = Duration::from_secs(1);
/// Time over which the device's busy share is averaged.
const UTILIZATION_WINDOW: usize = 5;

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port is taken, or not ours.
    #[error("failed to listen on {address}")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The admin thread could not start.
    #[error("failed to start the admin thread")]
    Admin(#[source] io::Error),
    /// The model cannot be served.
    #[error("failed to load the model")]
    Model(#[from] LoadError),
    /// The model's sessions cannot be opened or warmed.
    #[error("failed to start the inference workers")]
    Engine(#[from] EngineError),
    /// The shared store cannot be used as configured.
    #[error("failed to set up the shared store")]
    Store(#[from] StoreError),
    /// Traces cannot be exported as configured.
    #[error("failed to set up the export of traces")]
    Traces(#[from] ExporterBuildError),
    /// Each size costs memory and time on every session.
    #[error("{asked} input sizes, at most {INPUT_SIZES_MAX}: name fewer in --imgsz")]
    InputSizes {
        /// As configured.
        asked: usize,
    },
    /// The container is too small.
    #[error("failed to fit into the memory limit")]
    Memory(#[from] TooLittle),
    /// A bug of ours.
    #[error("loading the model crashed")]
    Crashed,
}

/// A running server. Dropped, it stops at once.
#[derive(Debug)]
pub struct Server {
    app: Arc<App>,
    config: Config,
    api_address: SocketAddr,
    grpc_address: SocketAddr,
    admin_address: SocketAddr,
    /// The API over HTTP and over gRPC.
    apis: [JoinHandle<()>; 2],
    background: Vec<JoinHandle<()>>,
}

impl Server {
    /// Listens, then loads and warms the model; returns when predictions are served.
    ///
    /// Both ports answer from the start: the probes say what is going on, predictions get 503 `starting`.
    ///
    /// # Errors
    /// [`StartError`]; the ports are closed again.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        if config.imgsz.len() > INPUT_SIZES_MAX {
            return Err(StartError::InputSizes { asked: config.imgsz.len() });
        }
        let app = Arc::new(App::with_limits(config.bodies));
        if let Some(traces) = Traces::open(config.otlp_endpoint.as_deref())? {
            app.trace_to(traces);
        }
        let api = listen(config.api_address).await?;
        let grpc = listen(config.grpc_address).await?;
        let admin = listen(config.admin_address).await?;
        let (api_address, grpc_address) = (address(&api, config.api_address), address(&grpc, config.grpc_address));
        let admin_address = address(&admin, config.admin_address);
        start_admin(admin, Arc::clone(&app))?;
        let policy = policy(&app, Stage::Closing, within_files(config.connections));
        let apis = [
            tokio::spawn(connection::serve(api, http::router(Arc::clone(&app)), policy.clone())),
            tokio::spawn(http::oip::grpc::serve(grpc, Arc::clone(&app), policy)),
        ];
        // From here on dropping the server closes the ports.
        let background = Vec::new();
        let mut server = Self { app, config, api_address, grpc_address, admin_address, apis, background };
        server.follow_knobs();
        server.load().await?;
        server.share()?;
        server.app.lifecycle.advance(Stage::Serving);
        Ok(server)
    }

    fn follow_knobs(&mut self) {
        let Some(directory) = self.config.knobs_dir.clone() else { return };
        // Before the model is loaded: its first batches shall know the knobs.
        let first = knobs::read(&directory).ok();
        if let Some(document) = &first {
            self.app.offer_knobs(document);
        }
        let app = Arc::clone(&self.app);
        self.background.push(tokio::spawn(knobs::watch(directory, first, move |document| {
            let app = Arc::clone(&app);
            // Off the runtime's threads: to make a large cache small takes its time.
            let offered = tokio::task::spawn_blocking(move || app.offer_knobs(&document));
            async move { drop(offered.await) }
        })));
    }

    async fn load(&mut self) -> Result<(), StartError> {
        let (app, config) = (Arc::clone(&self.app), self.config.clone());
        let loaded = tokio::task::spawn_blocking(move || load::first(&app, &config)).await;
        let (predictor, footprint) = loaded.map_err(|_| StartError::Crashed)??;
        // First: the knobs, which the other one applies, need to know what memory leaves to the cache.
        self.app.offer_reloads(Reloader::new(self.config.clone(), footprint));
        self.app.serve(predictor);
        self.background.push(tokio::spawn(keep_cache_fitting(Arc::clone(&self.app))));
        self.background.push(tokio::spawn(publish_utilization(Arc::clone(&self.app))));
        Ok(())
    }

    /// Shares results with other servers if a store is named, and offers tasks if they are on.
    fn share(&mut self) -> Result<(), StoreError> {
        let client = self.config.redis_url_file.as_deref().map(store::client).transpose()?;
        if let Some(client) = &client {
            let shared = SharedResults::open(client, &self.config.redis_scope, &self.app.metrics.store)?;
            self.app.cache().share(shared);
        }
        if let Some(tasks) = Tasks::open(&self.config, client.as_ref(), &self.app.metrics)? {
            let tasks = self.app.offer_tasks(tasks);
            self.background.push(tokio::spawn(tasks::run(Arc::clone(&self.app), tasks)));
        }
        Ok(())
    }

    /// What the handlers share: for tests that call the router without a socket.
    pub fn app(&self) -> Arc<App> {
        Arc::clone(&self.app)
    }

    /// Where the API listens; the port is the real one if 0 was asked.
    pub const fn api_address(&self) -> SocketAddr {
        self.api_address
    }

    /// Where the API listens for gRPC.
    pub const fn grpc_address(&self) -> SocketAddr {
        self.grpc_address
    }

    /// Where metrics and probes listen.
    pub const fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Shuts down without failing a request: not ready, serve on while endpoints propagate and tasks end, stop accepting,
    /// finish.
    ///
    /// What is unfinished when the budget ends gets 503.
    pub async fn drain(self) {
        let start = Instant::now();
        let (propagation, budget) = (self.config.drain_propagation(), self.config.drain_budget());
        self.app.lifecycle.advance(Stage::Draining);
        tokio::time::sleep(propagation).await;
        if let Some(tasks) = self.app.tasks() {
            // Before the ports close, so that results can be fetched to the end.
            let _ = tokio::time::timeout(budget.saturating_sub(start.elapsed()), tasks.settled()).await;
        }
        self.close(budget.saturating_sub(start.elapsed())).await;
    }

    /// Shuts down at once: requests in flight get 503.
    pub async fn stop(self) {
        // First: with nobody connected the ports close in no time, and a task would be finished as if there were a budget.
        self.app.lifecycle.advance(Stage::Aborting);
        self.close(Duration::ZERO).await;
    }

    async fn close(mut self, budget: Duration) {
        let lifecycle = self.app.lifecycle.clone();
        lifecycle.advance(Stage::Closing);
        let mut ended = futures::future::join_all(&mut self.apis);
        if tokio::time::timeout(budget, &mut ended).await.is_err() {
            lifecycle.advance(Stage::Aborting);
            let _ = ended.await;
        }
        // One after the other: a batch that never ends must not take the last traces with it.
        let app = Arc::clone(&self.app);
        let flush = move || app.traces().map(|traces| traces.flush());
        let _ = tokio::task::spawn_blocking(flush).await;
        let app = Arc::clone(&self.app);
        let stop = tokio::task::spawn_blocking(move || app.predictor().map(|predictor| predictor.batcher().stop()));
        if tokio::time::timeout(WORKERS_END_MAX, stop).await.is_err() {
            tracing::warn!("A batch does not end: it is left behind.");
        }
        // The admin port answers until here: the drain can be watched.
        lifecycle.advance(Stage::Aborting);
        if let Some(tasks) = self.app.tasks().filter(|tasks| tasks.durable()) {
            let _ = tokio::time::timeout(HAND_BACK_MAX, tasks.settled()).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.app.lifecycle.advance(Stage::Aborting);
        self.background.iter().for_each(JoinHandle::abort);
    }
}

fn policy(app: &App, close_at: Stage, limits: ConnectionLimits) -> Policy {
    let refused = app.metrics.images.rejected.of("connections");
    let places = Arc::new(Semaphore::new(limits.connections_max));
    Policy { lifecycle: app.lifecycle.clone(), close_at, limits, places, refused }
}

/// Lets the process open as many files as it may, and no more connections than leave some of them: without a free one
/// the probes could not be answered either, and the pod would be restarted for being busy.
fn within_files(asked: ConnectionLimits) -> ConnectionLimits {
    let files = rustix::process::getrlimit(Resource::Nofile);
    let raised = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files });
    let files_max = if raised.is_ok() { files.maximum } else { files.current };
    let Some(files_max) = files_max else { return asked };
    let reserved = FILES_RESERVED + ADMIN_CONNECTIONS_MAX as u64;
    let most = usize::try_from(files_max.saturating_sub(reserved)).unwrap_or(usize::MAX).max(1);
    if most < asked.connections_max {
        tracing::warn!(
            asked = asked.connections_max,
            most,
            "Fewer connections: the limit of open files leaves no more."
        );
    }
    ConnectionLimits { connections_max: asked.connections_max.min(most), ..asked }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}

fn address(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}

/// Serves the admin port on a thread of its own, so that a probe is answered however busy the API is.
fn start_admin(listener: TcpListener, app: Arc<App>) -> Result<(), StartError> {
    let listener = listener.into_std().map_err(StartError::Admin)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Admin)?;
    let serve = async move {
        // It outlives the API: the probes tell of the drain until its end.
        let limits = ConnectionLimits { connections_max: ADMIN_CONNECTIONS_MAX, ..ConnectionLimits::DEFAULT };
        let policy = policy(&app, Stage::Aborting, limits);
        let router = http::health::admin_router(app);
        match TcpListener::from_std(listener) {
            Ok(listener) => connection::serve(listener, router, policy).await,
            Err(error) => tracing::error!(%error, "The admin port cannot be served."),
        }
    };
    let spawned = thread::Builder::new().name("admin".to_owned()).spawn(move || runtime.block_on(serve));
    spawned.map(drop).map_err(StartError::Admin)
}

/// Takes from the cache what the others have come to need.
async fn keep_cache_fitting(app: Arc<App>) {
    let mut ticks = tokio::time::interval(MEMORY_INTERVAL);
    loop {
        ticks.tick().await;
        let app = Arc::clone(&app);
        drop(tokio::task::spawn_blocking(move || app.fit_cache()).await);
    }
}

/// Publishes the device's busy share over the last seconds, for engines that know it.
async fn publish_utilization(app: Arc<App>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let mut samples = std::collections::VecDeque::with_capacity(UTILIZATION_WINDOW + 1);
    loop {
        ticks.tick().await;
        let Some(busy) = app.predictor().and_then(|predictor| predictor.batcher().device_busy()) else { return };
        let now = Instant::now();
        if samples.back().is_some_and(|(_, last)| busy < *last) {
            samples.clear(); // another model, whose device counts anew
        }
        samples.push_back((now, busy));
        if let Some((then, busy_then)) = samples.front().copied() {
            let elapsed_s = now.saturating_duration_since(then).as_secs_f64();
            let share = busy.saturating_sub(busy_then).as_secs_f64() / elapsed_s.max(1e-3);
            app.metrics.gpu.utilization.set("0", Some(share.min(1.0)));
        }
        if samples.len() > UTILIZATION_WINDOW {
            samples.pop_front();
        }
    }
}
