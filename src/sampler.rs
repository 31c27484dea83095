//! Keeps a fresh sample of every pod in memory, on the leader only.
//!
//! Reads: the fleet, and each pod's `/metrics` or a Prometheus. Writes: [`Snapshots`], and a trigger for each service
//! after each round. Does not: write to the Kubernetes API, average, or judge; it hands on counters' increases.
//!
//! One round, every [`INTERVAL`]: list the pods, read them all from the [`Source`], difference each reading with the
//! pod's last one, publish one [`Snapshot`] a service, trigger its reconcile. A failed reading changes nothing: the
//! pod's last sample grows old, then stale, and is forgotten; it never turns into zeros.

mod difference;
mod exposition;
mod pods;
mod prometheus;
mod raw;
mod snapshot;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::clock::Clock;
use crate::fleet::{PodPhase, PodView, ServiceId};
use crate::metrics::{Metrics, PodState};

pub use prometheus::{Endpoint, EndpointError};
pub use snapshot::{Snapshot, Snapshots, pod_id};

use snapshot::Memory;

/// Time from one round to the next. Control ticks are at least as long.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// The inference server's admin port, which its pod template fixes.
pub const ADMIN_PORT: u16 = 8081;

/// Lists the pods to read, grouped by service; asked at the start of each round.
pub type ListPods = Arc<dyn Fn() -> BTreeMap<ServiceId, Vec<PodView>> + Send + Sync>;

/// Where readings come from.
pub enum Source {
    /// `/metrics` of every pod.
    Pods(Box<pods::Pods>),
    /// One Prometheus for all services.
    Prometheus(Box<prometheus::Prometheus>),
}

impl Source {
    /// The pods themselves, or a Prometheus where one is given.
    ///
    /// # Errors
    /// [`EndpointError`] if its settings cannot reach one.
    pub fn new(prometheus: Option<Endpoint>) -> Result<Self, EndpointError> {
        match prometheus {
            Some(endpoint) => Ok(Self::Prometheus(Box::new(prometheus::Prometheus::new(endpoint)?))),
            None => Ok(Self::Pods(Box::new(pods::Pods::new()))),
        }
    }

    async fn read(&mut self, targets: &[Target], clock: Clock) -> Readings {
        match self {
            Self::Pods(source) => source.read(targets, clock).await,
            Self::Prometheus(source) => source.read(targets, clock).await,
        }
    }
}

/// What a sampler needs.
pub struct Setup {
    /// Where readings come from.
    pub source: Source,
    /// Whom to read.
    pub pods: ListPods,
    /// Where snapshots are published.
    pub snapshots: Snapshots,
    /// Gets each service's name when a round has published its snapshot. A full channel loses nothing: a reconcile of
    /// that service is then waiting already, or the requeue comes.
    pub rounds: mpsc::Sender<ServiceId>,
    /// The operator's clock.
    pub clock: Clock,
    /// The operator's own series.
    pub metrics: Arc<Metrics>,
}

/// A sampler at work. Dropping it stops it and forgets every snapshot, so that nobody decides on a deposed leader's.
pub struct Running {
    task: JoinHandle<()>,
    snapshots: Snapshots,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
        self.snapshots.clear();
    }
}

/// Starts sampling; the first round begins at once. Must be called in a tokio runtime.
pub fn start(setup: Setup) -> Running {
    let snapshots = setup.snapshots.clone();
    // What a round of the term before may have published while it was stopped.
    snapshots.clear();
    Running { task: tokio::spawn(run(setup)), snapshots }
}

async fn run(mut setup: Setup) {
    let mut memory = HashMap::new();
    let mut ticks = interval(INTERVAL);
    // A round that took too long must not be followed by a burst of rounds.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        round(&mut setup, &mut memory).await;
    }
}

/// A pod to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    uid: String,
    namespace: String,
    name: String,
    ip: IpAddr,
}

/// A round's readings, by pod uid. A pod may be missing: it was not tried.
type Readings = HashMap<String, Result<raw::RawSample, ReadError>>;

async fn round(setup: &mut Setup, memory: &mut HashMap<String, Memory>) {
    let started = setup.clock.now();
    let services = (setup.pods)();
    let targets: Vec<Target> = services.values().flatten().filter_map(target).collect();
    let mut readings = setup.source.read(&targets, setup.clock).await;
    let alive: HashSet<&str> = services.values().flatten().map(|pod| pod.uid.as_str()).collect();
    memory.retain(|uid, _| alive.contains(uid.as_str()));
    let now = setup.clock.now();
    setup.snapshots.retain(|service| services.contains_key(service));
    let mut ready = Vec::new();
    for (service, pods) in &services {
        for pod in pods {
            let entry = memory.entry(pod.uid.clone()).or_default();
            if let Some(reading) = readings.remove(&pod.uid) {
                keep(&setup.metrics, pod, entry, reading);
            }
        }
        let remembered =
            pods.iter().filter_map(|pod| Some((pod.uid.clone(), pod.phase == PodPhase::Ready, memory.get(&pod.uid)?)));
        let snapshot = Snapshot::new(now, remembered);
        let judged = pods.iter().filter(|pod| pod.phase == PodPhase::Ready);
        ready.extend(judged.map(|pod| PodState::of(&snapshot.signal(&pod.uid, now))));
        setup.snapshots.publish(service.clone(), snapshot);
        // A full channel is the only failure that matters, and `Setup::rounds` says why it is none.
        let _ = setup.rounds.try_send(service.clone());
    }
    let end = setup.clock.now();
    setup.metrics.sampler.round(end.since(started), end, &ready);
}

/// A pod without an address cannot be read. One that is not ready yet is: its counters before readiness are what the
/// first sample after it is differenced with, so that a new pod is judged one round earlier.
fn target(pod: &PodView) -> Option<Target> {
    let (uid, namespace, name) = (pod.uid.clone(), pod.namespace.clone(), pod.name.clone());
    pod.ip.map(|ip| Target { uid, namespace, name, ip })
}

/// Remembers one reading. Counted and logged for ready pods only: one that starts cannot be read yet.
fn keep(metrics: &Metrics, pod: &PodView, memory: &mut Memory, reading: Result<raw::RawSample, ReadError>) {
    let before = memory.trouble().map(ReadError::reason);
    memory.take(reading);
    let after = memory.trouble().map(ReadError::reason);
    if pod.phase != PodPhase::Ready {
        return;
    }
    if let Some(reason) = after {
        metrics.sampler.failed(reason);
    }
    // Only when it turns, or a dead pod would fill the log.
    if before != after {
        let (namespace, pod, error) = (&pod.namespace, &pod.name, memory.trouble().map(ReadError::chain));
        warn!(%namespace, %pod, error = error.as_deref().unwrap_or("none"), "Reading a pod's metrics took a turn.");
    }
}

/// Why a pod could not be read, or its reading not be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// No connection, or it broke.
    #[error("failed to read {url} (a service mesh with strict mTLS refuses this: use --prometheus-url)")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// No connection to Prometheus, or it broke.
    #[error("failed to query Prometheus")]
    Prometheus(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The file of Prometheus' token cannot be read, or holds none.
    #[error("failed to read --prometheus-token-file")]
    Token(#[source] Arc<std::io::Error>),
    /// No whole answer in time.
    #[error("no whole answer within {limit:?}")]
    Timeout {
        /// The time allowed.
        limit: Duration,
    },
    /// Not 200. A redirect is not followed: a pod must not be able to send the operator elsewhere.
    #[error("HTTP status {0}")]
    Status(u16),
    /// Longer than allowed.
    #[error("the answer is longer than {bytes_max} bytes")]
    TooLarge {
        /// The length allowed.
        bytes_max: usize,
    },
    /// NaN, an infinity or a negative number.
    #[error("{name} is NaN, infinite or negative")]
    NotANumber {
        /// The series.
        name: &'static str,
    },
    /// Not what the contract says.
    #[error("{what} does not follow the metrics contract")]
    Malformed {
        /// Which part.
        what: &'static str,
    },
    /// A family that every server has is not there.
    #[error("{name} is missing")]
    Missing {
        /// The first one that is missing.
        name: &'static str,
    },
    /// Prometheus knows no series of this pod.
    #[error("Prometheus has no series with labels namespace and pod for this pod")]
    Absent,
    /// A counter fell: the process is a new one.
    #[error("{name} fell: the server restarted")]
    CounterReset {
        /// The first counter that fell.
        name: &'static str,
    },
}

impl ReadError {
    /// Closed set: metric label and log field.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Prometheus(_) => "prometheus",
            Self::Token(_) => "token",
            Self::Timeout { .. } => "timeout",
            Self::Status(_) => "status",
            Self::TooLarge { .. } => "too_large",
            Self::NotANumber { .. } => "not_a_number",
            Self::Malformed { .. } => "malformed",
            Self::Missing { .. } => "missing",
            Self::Absent => "absent",
            Self::CounterReset { .. } => "counter_reset",
        }
    }

    /// The text with its causes, for a log line or a condition's message.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
