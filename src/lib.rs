//! Kubernetes operator and autoscaler for YOLO object-detection inference.
//!
//! `reconcile.rs` is the place to start reading: one object, one pass, top to bottom. `run` starts everything in the
//! caller's runtime, so that tests run the operator in their own process.

#![forbid(unsafe_code)]

pub mod accounts;
pub mod admin;
pub mod apply;
pub mod args;
pub mod autoscalers;
pub mod build;
pub mod cadence;
pub mod call;
pub mod clock;
pub mod context;
pub mod controller;
pub mod error;
pub mod fleet;
pub mod leader;
pub mod limits;
pub mod live;
pub mod memory;
pub mod metrics;
pub mod observe;
pub mod queue;
pub mod reconcile;
pub mod report;
pub mod rollouts;
pub mod sampler;
pub mod schedules;
pub mod validate;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use futures::channel::mpsc;
use futures::future;
use kube::runtime::events::Reporter;
use kube::{Api, Client};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::args::Config;
use crate::context::Context;
use crate::fleet::ServiceId;
use crate::leader::LeaderToken;
use crate::live::Live;
use crate::sampler::Source;

/// Why the operator could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No client could be made of the configuration.
    #[error("failed to build the Kubernetes client")]
    Client(#[source] Box<kube::Error>),
    /// A port is taken.
    #[error("failed to listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Prometheus cannot be asked as the settings say.
    #[error("failed to use the settings for Prometheus")]
    Prometheus(#[source] sampler::EndpointError),
    /// The election stopped by itself, so that nothing could be written any more.
    #[error("failed to go on without the election task")]
    Election,
}

/// A client whose calls fail at once instead of retrying by themselves: each of ours has its own limit and its own retry.
///
/// # Errors
/// [`RunError::Client`] if `config` makes no client.
pub fn client(mut config: kube::Config) -> Result<Client, RunError> {
    config.default_retry = false;
    Client::try_from(config).map_err(|error| RunError::Client(Box::new(error)))
}

/// Runs the operator until `shutdown`: watches always, election always, sampler and controller while leading.
///
/// # Errors
/// [`RunError`] if it cannot start, or if the election ends without `shutdown`.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), RunError> {
    let mut tasks = JoinSet::new(); // Dropped, and so aborted, with this function.
    let metrics = Arc::new(metrics::Metrics::new());
    let health = admin::Health::default();
    let scrape = admin::metrics_router(metrics.clone());
    tasks.spawn(admin::serve(listen(config.metrics_address).await?, scrape));
    tasks.spawn(admin::serve(listen(config.health_address).await?, admin::health_router(health.clone())));

    let (trigger, triggers) = mpsc::channel(limits::TRIGGERS_WAITING);
    let live = Live::watch(&client, config.watch_namespace.as_deref(), &trigger, &mut tasks);
    // Not a candidate before the stores are full: a leader without them would take "not read" for "not there".
    if shutdown.run_until_cancelled(live.ready()).await.is_none() {
        return Ok(());
    }
    health.set_ready(true);

    let lease = (config.namespace.as_str(), config.lease_name.as_str());
    let (leader, candidate) = leader::elect(client.clone(), lease, config.identity.clone(), shutdown.clone());
    // Aborted with this function: a killed operator must not go on renewing its lease.
    let election = AbortOnDropHandle::new(tokio::spawn(candidate.run()));
    let reporter = Reporter { controller: "yolo-operator".to_owned(), instance: Some(config.identity.clone()) };
    let ctx = Arc::new(Context {
        reporter,
        client,
        leader,
        live,
        snapshots: sampler::Snapshots::default(),
        clock: clock::Clock::start(),
        metrics,
        defaults: build::Defaults {
            server_image: config.server_image.clone(),
            server_cuda_image: config.server_cuda_image.clone(),
            service_types: config.service_types.clone(),
            operator_namespace: config.namespace.clone(),
            rollouts_most: config.max_concurrent_rollouts,
        },
        states: memory::Memory::default(),
        untold: memory::Memory::default(),
        applied: memory::Memory::default(),
        reported: memory::Memory::default(),
        failures: memory::Memory::default(),
        queue: queue::Queue::default(),
        rollouts: rollouts::Rollouts::default(),
    });
    let terms = Terms { ctx, config, trigger, triggers: Arc::new(Mutex::new(triggers)) };
    if let Some(Err(error)) = shutdown.run_until_cancelled(terms.lead()).await {
        return Err(error);
    }
    // The lease is vacated before the process ends, so that a successor need not wait for it to run out. Told to end, the
    // election may have done so before this noticed.
    let vacated = election.await;
    if vacated.is_ok() && shutdown.is_cancelled() { Ok(()) } else { Err(RunError::Election) }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, source })
}

/// Leadership, again and again.
struct Terms {
    ctx: Arc<Context>,
    config: Config,
    trigger: mpsc::Sender<ServiceId>,
    triggers: Arc<Mutex<mpsc::Receiver<ServiceId>>>,
}

impl Terms {
    /// Leads whenever elected. Returns only if the election has ended.
    async fn lead(self) -> Result<(), RunError> {
        let mut leader = self.ctx.leader.clone();
        while let Some(token) = leader.acquired().await {
            self.ctx.metrics.lead(true);
            let led = self.term(token).await;
            self.ctx.metrics.lead(false);
            led?;
        }
        Ok(())
    }

    /// One term: a sampler and a controller, both of which end with it.
    async fn term(&self, token: LeaderToken) -> Result<(), RunError> {
        self.ctx.forget_all();
        let _sampler = self.sample()?;
        let client = self.ctx.client.clone();
        let objects = match &self.config.watch_namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        };
        let lost = pin!(token.lost());
        let controller = pin!(controller::run(self.ctx.clone(), objects, controller::triggers(self.triggers.clone())));
        let lease_lost = matches!(future::select(lost, controller).await, future::Either::Left(_));
        tracing::warn!(lease_lost, "A term of leadership ended; this process is a candidate again.");
        Ok(())
    }

    fn sample(&self) -> Result<sampler::Running, RunError> {
        let fleet = self.ctx.live.fleet.clone();
        let config = &self.config;
        let prometheus = config.prometheus_url.clone().map(|url| sampler::Endpoint {
            url,
            ca_file: config.prometheus_ca_file.clone(),
            token_file: config.prometheus_token_file.clone(),
        });
        Ok(sampler::start(sampler::Setup {
            source: Source::new(prometheus).map_err(RunError::Prometheus)?,
            pods: Arc::new(move || fleet.by_service()),
            snapshots: self.ctx.snapshots.clone(),
            rounds: self.trigger.clone(),
            clock: self.ctx.clock,
            metrics: self.ctx.metrics.clone(),
        }))
    }
}
