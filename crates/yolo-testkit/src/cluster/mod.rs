//! A real Kubernetes on this machine, for tests and for the demo.
//!
//! [`Tier::T1`] is etcd and the API server on free ports of 127.0.0.1 (no root; about 4 s). [`Tier::T3`] adds the
//! controller manager, the scheduler, containerd, the kubelet, kube-proxy and `CoreDNS`, all in a network namespace of
//! their own without a link outside (root; about 12 s). The binaries come from `make cluster-binaries`.
//!
//! A test takes the one cluster of its test binary and a namespace of its own. The binary says
//! `yolo_testkit::cluster_guard!();` once at its root, and its cluster ends with it, even if it is killed:
//!
//! ```no_run
//! use std::time::Duration;
//! use yolo_testkit::cluster::{LocalCluster, Tier, wait_for};
//!
//! // #[test]
//! fn root_certificate_is_published() {
//!     let Some(cluster) = LocalCluster::shared(Tier::T3) else { return }; // printed `SKIPPED <test>: <why>`
//!     let namespace = cluster.namespace("certificate").unwrap(); // unique; deleted when dropped
//!     cluster
//!         .block_on(async |client| {
//!             let maps = kube::Api::<k8s_openapi::api::core::v1::ConfigMap>::namespaced(client, &namespace);
//!             let published = async || maps.get_opt("kube-root-ca.crt").await.ok().flatten();
//!             wait_for("the root certificate", Duration::from_secs(10), published).await.unwrap();
//!         })
//!         .unwrap();
//! }
//! ```
//!
//! [`LocalCluster::block_on`] runs on threads inside the cluster's network, so pods and Services are reachable there;
//! [`LocalCluster::command`] runs a program there (`kubectl`, `helm`). [`LocalCluster::up`] starts a cluster that stays
//! until [`LocalCluster::down`], which is what the binary `yolo-cluster` and the demo do.
//!
//! Guarantees: two instances of different names live side by side; a start first clears what a killed run of the same
//! instance left; a stop ends every process (containers and shims too) and removes every mount, cgroup, namespace and
//! directory of the instance, and no setting of the host is changed at any time. Not simulated: `NetworkPolicy` (the
//! bridge plugin does not enforce it), load balancers, more than one node.

mod cgroups;
mod client;
mod control_plane;
mod error;
pub mod guard;
mod identity;
mod instance;
mod machine;
mod network;
mod node;
mod pki;
mod process;
mod stop;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Child,
    sync::OnceLock,
    time::Instant,
};

pub use client::{TestNamespace, wait_for};
pub use error::ClusterError;
pub use identity::Identity;
pub use instance::Instance;
pub use machine::{Machine, kubernetes_version};
pub use node::SANDBOX_IMAGE;

use control_plane::{ControlPlane, Ports, START_LIMIT};
use node::Node;

/// How much of a cluster is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// etcd and the API server: objects, validation, admission, leases; nothing acts on them.
    T1,
    /// A whole cluster of one node: pods run.
    T3,
}

/// A running cluster.
///
/// Dropping it leaves it running: it ends by [`LocalCluster::down`], or with the process that it is guarded for.
#[derive(Debug)]
pub struct LocalCluster {
    machine: Machine,
    instance: Instance,
    tier: Tier,
    /// Kept so that those that end while this process lives are reaped.
    children: Vec<Child>,
    /// Its standard input is the pipe whose end tells the guard that this process is gone.
    guard: Option<Child>,
}

impl LocalCluster {
    /// The one cluster of this test binary, started by the first test that asks.
    ///
    /// `None` if this machine cannot run one; then `SKIPPED <test>: <why>` has been printed.
    ///
    /// # Panics
    /// If the cluster cannot start although the machine should be able to, and on a skip where `CI` is set: a test
    /// that silently stops running there would be worse than one that fails.
    #[expect(clippy::panic, reason = "a test has no other way to fail")]
    pub fn shared(tier: Tier) -> Option<&'static Self> {
        static SHARED: OnceLock<Result<LocalCluster, ClusterError>> = OnceLock::new();
        let name = format!("test-{}", std::process::id());
        match SHARED.get_or_init(|| Self::start_guarded(&name, tier)) {
            Ok(cluster) if cluster.tier == tier => Some(cluster),
            Ok(cluster) => panic!("this test binary's cluster is {:?}, not {tier:?}", cluster.tier),
            Err(ClusterError::Unavailable(why)) if std::env::var_os("CI").is_none() => {
                let thread = std::thread::current();
                let line = format!("SKIPPED {}: {why}\n", thread.name().unwrap_or("main"));
                // Not `eprintln!`, which libtest swallows for a test that passes; in one write, for tests run at once.
                let _ = std::io::stderr().write_all(line.as_bytes());
                None
            }
            Err(error) => panic!("{}", error.with_causes()),
        }
    }

    /// Starts a cluster that stays until [`LocalCluster::down`]; attaches to it if it runs already.
    ///
    /// # Errors
    /// [`ClusterError::Unavailable`] if the machine lacks something; else what failed, with the end of its log.
    pub fn up(name: &str, tier: Tier) -> Result<Self, ClusterError> {
        match Self::attach(name) {
            Ok(running) if running.tier == tier => Ok(running),
            _ => Self::start(name, tier, false),
        }
    }

    /// Starts a cluster that stops when this process ends. Only in a test binary with `cluster_guard!()`.
    ///
    /// # Errors
    /// As [`LocalCluster::up`], and [`ClusterError::NoGuard`].
    pub fn start_guarded(name: &str, tier: Tier) -> Result<Self, ClusterError> {
        Self::start(name, tier, true)
    }

    /// A cluster that another process has started.
    ///
    /// # Errors
    /// [`ClusterError::Unavailable`] if there is none of that name, or not all of its processes run.
    pub fn attach(name: &str) -> Result<Self, ClusterError> {
        let instance = Instance::new(name)?;
        let Some(tier) = instance.tier() else {
            return Err(ClusterError::Unavailable(format!("no cluster {name} runs")));
        };
        match instance.processes().into_iter().find(|(_, identity)| !identity.alive()) {
            Some((process, _)) => Err(ClusterError::Unavailable(format!("{process} of cluster {name} has ended"))),
            None => Ok(Self { machine: Machine::check(tier)?, instance, tier, children: Vec::new(), guard: None }),
        }
    }

    /// Stops a cluster and removes everything of it, whoever started it and whatever is left of it.
    ///
    /// # Errors
    /// [`ClusterError::Unstoppable`] and [`ClusterError::File`] name what could not be removed.
    pub fn down(name: &str) -> Result<(), ClusterError> {
        let _lock = instance::lock()?;
        stop::stop(&Instance::new(name)?)
    }

    /// Stops this cluster as [`LocalCluster::down`] does.
    ///
    /// # Errors
    /// As [`LocalCluster::down`].
    pub fn stop(mut self) -> Result<(), ClusterError> {
        Self::down(self.instance.name())?;
        drop(self.guard.as_mut().and_then(|guard| guard.stdin.take()));
        for child in self.children.iter_mut().chain(&mut self.guard) {
            // Only reaps: all of them have ended, or end now that the guard's pipe is closed.
            let _ = child.wait();
        }
        Ok(())
    }

    /// How much of a cluster this is.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Its name, files and processes.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// A kubeconfig with an administrator's rights; its address is reachable inside the cluster's network only.
    pub fn kubeconfig(&self) -> PathBuf {
        self.instance.kubeconfig()
    }

    /// The API server's audit log: one JSON event a line and request, level Metadata.
    pub fn audit_log(&self) -> PathBuf {
        self.instance.path("audit.log")
    }

    /// Path of a binary of the cluster's cache, such as `helm`.
    pub fn binary(&self, name: &str) -> PathBuf {
        self.machine.binary(name)
    }

    /// Loads an image archive (`docker-archive` or OCI) into the node, under the name that the archive gives it.
    ///
    /// # Errors
    /// [`ClusterError::Command`] with containerd's words; also on a T1 cluster, which has no node.
    pub fn load_image(&self, archive: &Path) -> Result<(), ClusterError> {
        node::load_image(&self.instance, archive)
    }

    fn start(name: &str, tier: Tier, guarded: bool) -> Result<Self, ClusterError> {
        let machine = Machine::check(tier)?;
        let instance = Instance::new(name)?;
        stop::claim(&instance, tier)?;
        let mut cluster = Self { machine, instance, tier, children: Vec::new(), guard: None };
        let started = cluster.start_parts(guarded);
        if started.is_err() {
            // The logs stay for the reader of the error until the next start of this instance.
            let _ = stop::halt(&cluster.instance);
        }
        started.map(|()| cluster)
    }

    fn start_parts(&mut self, guarded: bool) -> Result<(), ClusterError> {
        if guarded {
            self.guard = Some(guard::start(&self.instance)?);
        }
        let ports = Ports::choose(self.tier)?;
        if self.tier == Tier::T3 {
            network::create(&self.instance)?;
        }
        pki::create(&self.instance, &ports.server())?;
        let (machine, instance, tier) = (self.machine.clone(), self.instance.clone(), self.tier);
        let control_plane = ControlPlane { machine: &machine, instance: &instance, tier, ports };
        let started = Instant::now();
        self.children = control_plane.start()?;
        self.await_health("kube-apiserver", &["etcd", "kube-apiserver"], async |client| {
            let request = http::Request::get("/readyz").body(Vec::new());
            match request {
                Ok(request) => client.request_text(request).await.is_ok(),
                Err(_) => false,
            }
        })?;
        self.progress("API server ready", started);
        if tier == Tier::T1 {
            return Ok(());
        }
        let started = Instant::now();
        self.children.extend(control_plane.start_controllers()?);
        self.children.extend(Node { machine: &machine, instance: &instance }.start()?);
        self.await_health("kubelet", &node::PROCESSES, node::is_ready)?;
        self.progress("node ready", started);
        Ok(())
    }

    /// Polls `healthy` until it holds, while all of `needed` run.
    fn await_health(
        &self,
        name: &str,
        needed: &[&str],
        healthy: impl AsyncFn(&kube::Client) -> bool + Sync,
    ) -> Result<(), ClusterError> {
        let look = async |client: kube::Client| {
            wait_for(name, START_LIMIT, async || {
                let alive = process::require_alive(&self.instance, needed, START_LIMIT);
                if alive.is_err() || healthy(&client).await { Some(alive) } else { None }
            })
            .await
        };
        match self.block_on(look)? {
            Ok(alive) => alive,
            Err(_timeout) => Err(process::unhealthy(&self.instance, name, "did not become healthy", START_LIMIT)),
        }
    }

    fn progress(&self, step: &str, since: Instant) {
        eprintln!("cluster {}: {step} ({:.1} s)", self.instance.name(), since.elapsed().as_secs_f64());
    }
}
