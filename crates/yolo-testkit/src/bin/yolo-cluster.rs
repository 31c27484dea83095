//! Starts, stops and enters the local cluster by hand; the tests and the demo use `yolo_testkit::cluster` directly.

use std::{os::unix::process::CommandExt, path::PathBuf, process::ExitCode, time::Instant};

use clap::{Parser, Subcommand, ValueEnum};
use yolo_testkit::cluster::{ClusterError, Instance, LocalCluster, Tier};

/// A real Kubernetes on this machine: start, look, enter, stop.
#[derive(Parser)]
struct Arguments {
    /// Name of the cluster; clusters of different names live side by side
    #[arg(long, global = true, default_value = "dev")]
    instance: String,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Start the cluster; it stays until `down`
    Up {
        /// Control plane alone, or a whole cluster with a node
        #[arg(long, value_enum, default_value_t = TierName::T3)]
        tier: TierName,
    },
    /// Stop the cluster and remove everything of it
    Down,
    /// Print the cluster's processes
    Status,
    /// Print the path of its kubeconfig
    Kubeconfig,
    /// Run a command in its network namespace with KUBECONFIG set
    Exec {
        /// Program and arguments, after `--`
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Load an image archive into the node
    LoadImage {
        /// A `docker-archive` or OCI archive
        archive: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum TierName {
    T1,
    T3,
}

impl From<TierName> for Tier {
    fn from(name: TierName) -> Self {
        match name {
            TierName::T1 => Self::T1,
            TierName::T3 => Self::T3,
        }
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("yolo-cluster: {}", error.with_causes());
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), ClusterError> {
    let name = &arguments.instance;
    match &arguments.action {
        Action::Up { tier } => LocalCluster::up(name, (*tier).into()).map(drop),
        Action::Down => {
            let started = Instant::now();
            LocalCluster::down(name)?;
            eprintln!("cluster {name}: stopped, nothing left ({:.1} s)", started.elapsed().as_secs_f64());
            Ok(())
        }
        Action::Status => {
            for (process, identity) in Instance::new(name)?.processes() {
                println!("{process:<24} {:>8} {}", identity.pid(), if identity.alive() { "running" } else { "ended" });
            }
            LocalCluster::attach(name).map(drop)
        }
        Action::Kubeconfig => {
            println!("{}", LocalCluster::attach(name)?.kubeconfig().display());
            Ok(())
        }
        Action::Exec { command } => Err(exec(&LocalCluster::attach(name)?, command)),
        Action::LoadImage { archive } => LocalCluster::attach(name)?.load_image(archive),
    }
}

/// Replaces this program by the command; returns only if that fails.
fn exec(cluster: &LocalCluster, command: &[String]) -> ClusterError {
    let (program, arguments) = command.split_first().map_or(("true", [].as_slice()), |(p, rest)| (p, rest));
    let mut inside = cluster.command(program);
    ClusterError::Spawn { program: program.to_owned(), source: inside.args(arguments).exec() }
}
