//! Talking to the cluster: from inside its network namespace, as its administrator, with bounded waits.

use std::{
    fmt,
    fs::File,
    ops::Deref,
    panic,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::sched::{CloneFlags, setns};
use serde_json::json;

use super::{ClusterError, LocalCluster, Tier, error::At};

/// Pause between two looks at an awaited condition.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long the controller manager may take to make a service account; measured below 0.1 s, and 3 s after its start.
const SERVICE_ACCOUNT_LIMIT: Duration = Duration::from_secs(30);

/// Threads of the runtime that [`LocalCluster::block_on`] makes: the machine is shared with the cluster itself.
const RUNTIME_THREADS: usize = 2;

impl LocalCluster {
    /// Runs asynchronous work with a client of this cluster, on threads that live in the cluster's network namespace.
    ///
    /// Pods and Services are reachable from there and nothing else is. Do not call it from within asynchronous code.
    ///
    /// # Errors
    /// [`ClusterError::System`] if the namespace cannot be entered, [`ClusterError::Kubeconfig`] if the instance was
    /// stopped meanwhile. A panic of `work` (a failed assertion) goes on in the caller.
    pub fn block_on<T: Send>(&self, work: impl AsyncFnOnce(Client) -> T + Send) -> Result<T, ClusterError> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                // A thread inherits the namespace of the thread that creates it, so the runtime and all its workers
                // must be made after the move, and no thread of the caller's is touched.
                self.enter_network_namespace()?;
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(RUNTIME_THREADS)
                    .enable_all()
                    .build()
                    .at("make a runtime for", &self.kubeconfig())?;
                runtime.block_on(async { Ok(work(self.client().await?).await) })
            });
            inside.join().unwrap_or_else(|failure| panic::resume_unwind(failure))
        })
    }

    /// A command that will run inside the cluster's network namespace, with `KUBECONFIG` set to this cluster's, and with
    /// the `kubectl` and `helm` of the cluster's version before those of the machine.
    pub fn command(&self, program: &str) -> Command {
        let ours = self.binary(program);
        let mut command = self.instance().command_in(self.tier(), if ours.is_file() { ours } else { program.into() });
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// Creates a namespace of a unique name, `<prefix>-<five letters>`, which enforces Pod Security `restricted`.
    ///
    /// # Errors
    /// [`ClusterError::Api`] if the API server refuses; [`ClusterError::Timeout`] if the controller manager does not
    /// make the default service account, without which no pod is admitted.
    pub fn namespace(&self, prefix: &str) -> Result<TestNamespace<'_>, ClusterError> {
        let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        let namespace = json!({"metadata": {"generateName": format!("{prefix}-"), "labels": labels}});
        let name = self.block_on(async |client| {
            let namespace: Namespace = serde_json::from_value(namespace).map_err(kube::Error::SerdeError)?;
            let created = Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
            let name = created.metadata.name.unwrap_or_default();
            if self.tier() == Tier::T3 {
                let accounts = Api::<ServiceAccount>::namespaced(client, &name);
                let made = async || accounts.get_opt("default").await.ok().flatten();
                wait_for("the namespace's default service account", SERVICE_ACCOUNT_LIMIT, made).await?;
            }
            Ok::<_, ClusterError>(name)
        })??;
        Ok(TestNamespace { cluster: self, name })
    }

    async fn client(&self) -> Result<Client, ClusterError> {
        // From the file, never from the environment: a test must not reach the developer's own cluster.
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig())?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    fn enter_network_namespace(&self) -> Result<(), ClusterError> {
        if self.tier() == Tier::T1 {
            return Ok(());
        }
        let path = self.instance().network_namespace();
        let namespace = File::open(&path).at("open", &path)?;
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|source| ClusterError::System { action: "enter the cluster's network namespace", source })
    }
}

/// A namespace for one test. Dropping it asks the API server to delete it, so that its pods free the machine.
#[derive(Debug)]
pub struct TestNamespace<'a> {
    cluster: &'a LocalCluster,
    name: String,
}

impl Deref for TestNamespace<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for TestNamespace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Drop for TestNamespace<'_> {
    fn drop(&mut self) {
        // The cluster may be gone already, and then so is the namespace.
        let _ = self.cluster.block_on(async |client| {
            Api::<Namespace>::all(client).delete(&self.name, &DeleteParams::default()).await.map(drop)
        });
    }
}

/// Waits until `condition` yields a value, looking every 50 ms.
///
/// # Errors
/// [`ClusterError::Timeout`] with `what` after `limit`. A look that hangs counts against the limit too.
pub async fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> Result<T, ClusterError> {
    let looking = async {
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    let started = Instant::now();
    tokio::time::timeout(limit, looking)
        .await
        .map_err(|_elapsed| ClusterError::Timeout { what: what.to_owned(), limit: started.elapsed() })
}
