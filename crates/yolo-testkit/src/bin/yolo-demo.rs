//! `yolo-demo`: the demo of this repository; `make demo` gives it its arguments.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use yolo_testkit::cluster::LocalCluster;
use yolo_testkit::demo::install::Release;
use yolo_testkit::demo::{self, Options};

/// Shows yolo-operator at work on a real cluster.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the demo; exit 0 only if every target was met and every knob moved.
    Run(Run),
    /// Stop the demo's local cluster and remove everything of it.
    Down,
}

#[derive(clap::Args)]
struct Run {
    /// A context of your kubeconfig to use instead of a local cluster; asks first.
    #[arg(long)]
    context: Option<String>,
    /// Root of the repository.
    #[arg(long, default_value = ".")]
    repository: PathBuf,
    /// A value for helm's --set in a cluster of yours, such as image.repository=…; may be repeated.
    #[arg(long = "set", requires = "context")]
    values: Vec<String>,
    /// Folder of models and pictures.
    #[arg(long, env = "YOLO_CACHE")]
    cache: PathBuf,
    /// Folder of the page, the plot and the description.
    #[arg(long, default_value = "target/demo")]
    output: PathBuf,
    /// Folder of the figures.
    #[arg(long, default_value = "target/figures")]
    figures: PathBuf,
}

fn main() -> anyhow::Result<ExitCode> {
    match Args::parse().command {
        Command::Down => {
            LocalCluster::down(demo::CLUSTER)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(Run { context, repository, values, cache, output, figures }) => {
            // An empty CONTEXT= of make means none.
            let context = context.filter(|name| !name.is_empty());
            let release = match context {
                Some(_) => Release { repository, images: Vec::new(), values },
                None => Release::local(repository),
            };
            let held = demo::run(&Options { context, release, cache, output, figures })?;
            Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}
