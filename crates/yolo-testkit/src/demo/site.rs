//! Where the demo runs: the local cluster of this repository, or a cluster that the user named.

use std::io::{BufRead, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use yolo_loadgen::client::Target;

use crate::cluster::{LocalCluster, Tier};

/// Port of the `kubectl proxy` that carries load and scrapes into a named cluster.
const PROXY_PORT: u16 = 8_901;

/// The cluster of the demo.
#[derive(Debug)]
pub enum Site {
    /// Built and started here; Service and pod addresses are reachable from inside its network namespace.
    Local(Box<LocalCluster>),
    /// A context of the user's kubeconfig, reached through the API server's proxy. There the API server, not
    /// kube-proxy, spreads the requests, so the figure on connection recycling says nothing.
    Context {
        /// Its name.
        name: String,
        /// `kubectl proxy`, ended with the demo.
        proxy: Child,
    },
}

impl Site {
    /// Starts the local cluster `name`, or attaches to it where it runs already.
    ///
    /// # Errors
    /// [`crate::cluster::ClusterError`] with what is missing or failed.
    pub fn local(name: &str) -> anyhow::Result<Self> {
        Ok(Self::Local(Box::new(LocalCluster::up(name, Tier::T3)?)))
    }

    /// Uses the user's kube context `name`, after a yes on the terminal.
    ///
    /// # Errors
    /// Without a terminal, without a yes, or if `kubectl proxy` cannot be started.
    pub fn context(name: &str) -> anyhow::Result<Self> {
        if !std::io::stdin().is_terminal() {
            bail!("CONTEXT={name} needs a terminal to ask on");
        }
        print!("Install yolo-operator, its CRD and two demo services into the cluster of context {name:?}? [y/N] ");
        std::io::stdout().flush()?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            bail!("not confirmed");
        }
        let proxy = Command::new("kubectl")
            .args(["--context", name, "proxy", "--port", &PROXY_PORT.to_string()])
            .stdout(Stdio::null())
            .spawn()
            .context("failed to run kubectl proxy")?;
        Ok(Self::Context { name: name.to_owned(), proxy })
    }

    /// A `kubectl` for this cluster.
    pub fn kubectl(&self) -> Command {
        match self {
            Self::Local(cluster) => cluster.command("kubectl"),
            Self::Context { name, .. } => with_args(Command::new("kubectl"), ["--context", name]),
        }
    }

    /// A `helm` for this cluster.
    pub fn helm(&self) -> Command {
        match self {
            Self::Local(cluster) => cluster.command(&cluster.binary("helm").display().to_string()),
            Self::Context { name, .. } => with_args(Command::new("helm"), ["--kube-context", name]),
        }
    }

    /// Runs `work` with a client of this cluster, where [`Site::service`] and [`Site::pod_metrics`] are reachable.
    ///
    /// # Errors
    /// If the cluster's network or configuration cannot be used.
    pub fn block_on<T: Send>(&self, work: impl AsyncFnOnce(Client) -> T + Send) -> anyhow::Result<T> {
        match self {
            Self::Local(cluster) => Ok(cluster.block_on(work)?),
            Self::Context { name, .. } => {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
                runtime.block_on(async {
                    let options = KubeConfigOptions { context: Some(name.clone()), ..KubeConfigOptions::default() };
                    let config = Config::from_custom_kubeconfig(Kubeconfig::read()?, &options).await?;
                    Ok(work(Client::try_from(config)?).await)
                })
            }
        }
    }

    /// Where the port `http` of a Service takes requests for `path`.
    pub fn service(&self, namespace: &str, name: &str, (ip, port): (IpAddr, u16), path: &str) -> Target {
        match self {
            Self::Local(_) => {
                Target { address: SocketAddr::new(ip, port), host: name.to_owned(), path: path.to_owned() }
            }
            Self::Context { .. } => Target {
                address: proxy_address(),
                host: proxy_address().to_string(),
                path: format!("/api/v1/namespaces/{namespace}/services/{name}:{port}/proxy{path}"),
            },
        }
    }

    /// Where a pod shows its metrics: address and path.
    pub fn pod_metrics(&self, namespace: &str, name: &str, ip: IpAddr) -> (SocketAddr, String) {
        const ADMIN_PORT: u16 = 8_081;
        match self {
            Self::Local(_) => (SocketAddr::new(ip, ADMIN_PORT), "/metrics".to_owned()),
            Self::Context { .. } => {
                (proxy_address(), format!("/api/v1/namespaces/{namespace}/pods/{name}:{ADMIN_PORT}/proxy/metrics"))
            }
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Self::Context { proxy, .. } = self {
            // It may have ended by itself; there is nobody left to tell.
            let _ = proxy.kill();
            let _ = proxy.wait();
        }
    }
}

fn proxy_address() -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PROXY_PORT)
}

fn with_args<const N: usize>(mut command: Command, args: [&str; N]) -> Command {
    command.args(args);
    command
}
