//! `yolo-simulator`: compares autoscalers on a simulated fleet.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use yolo_simulator::bench::{self, FAULT_SEEDS};
use yolo_simulator::calls;
use yolo_simulator::campaign::Place;
use yolo_simulator::faults;
use yolo_simulator::programme::{PEAK, Size};
use yolo_simulator::recording::{Load, Recording};
use yolo_simulator::service::Service;
use yolo_simulator::trace::Kind;

#[derive(Parser)]
#[command(about = "Compares autoscalers on a simulated fleet.")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The whole comparison: goals, tables, pictures.
    Bench {
        /// Seeds of each cell.
        #[arg(long, default_value_t = 5)]
        seeds: u64,
        /// Factor on the loads.
        #[arg(long, default_value_t = 1.0)]
        scale: f64,
        /// Folder of the report and the pictures.
        #[arg(long, default_value = "target/control")]
        out: PathBuf,
        /// Folder of `control.json`.
        #[arg(long, default_value = "target/figures")]
        figures: PathBuf,
    },
    /// One load, some scalers, one table.
    Compare {
        /// diurnal, ramp, spike, mmpp, step, gamma, twitter-like or constant.
        #[arg(long, default_value = "step")]
        trace: String,
        /// A recorded load instead (docs/simulator.md): rates, or requests as in the Azure LLM inference traces.
        #[arg(long, value_name = "FILE", conflicts_with = "trace")]
        csv: Option<PathBuf>,
        /// cpu instead of gpu pods.
        #[arg(long)]
        cpu: bool,
        /// Usual peak, images/s; a recorded load is multiplied to reach it [default: 4000, or as recorded].
        #[arg(long)]
        peak: Option<f64>,
        /// From order to ready, seconds.
        #[arg(long, default_value_t = 30.0)]
        startup_s: f64,
        /// Seeds.
        #[arg(long, default_value_t = 1)]
        seeds: u64,
        /// The first of them: whether a figure holds beyond the seeds that it was found with.
        #[arg(long, default_value_t = 1)]
        first_seed: u64,
        /// Only the planner and the clairvoyant.
        #[arg(long)]
        alone: bool,
        /// Draws the planner's first run into this file (SVG).
        #[arg(long, value_name = "FILE")]
        picture: Option<PathBuf>,
    },
    /// Names what is broken in fleets with injected faults.
    Faults {
        /// Seeds of each fault.
        #[arg(long, default_value_t = FAULT_SEEDS)]
        seeds: u64,
    },
    /// Simulated requests a second on one core, and what a planning call costs.
    Speed,
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Bench { seeds, scale, out, figures } => bench::bench(Size { seeds, scale }, &out, &figures),
        Command::Compare { trace, csv, cpu, peak, startup_s, seeds, first_seed, alone, picture } => {
            let (load, usual) = match csv {
                Some(file) => {
                    let recording = Recording::read(&file)?;
                    let peak = recording.peak();
                    (Load::Recorded(recording.into()), peak)
                }
                None => (Load::Made(kind(&trace)?), PEAK),
            };
            let peak = peak.unwrap_or(usual);
            anyhow::ensure!(peak.is_finite() && peak > 0.0, "a peak of {peak} images/s makes no load");
            let place = Place { load, service: service(cpu), peak, startup_s };
            bench::compare(
                &place,
                &(first_seed..=first_seed.saturating_add(seeds).saturating_sub(1)),
                alone,
                picture.as_deref(),
            )
        }
        Command::Faults { seeds } => {
            for faults::Confusion { fault, severity, right, runs, instead, .. } in faults::confuse(seeds) {
                println!("{fault:<18} {severity:<46} {right} of {runs}  {}", instead.join(", "));
            }
            Ok(())
        }
        Command::Speed => {
            println!("{:.2} M requests/s on one core", bench::speed() / 1e6);
            println!("{:.2} ms p99 of a planning call for 200 pods", calls::cost_s_p99() * 1e3);
            Ok(())
        }
    }
}

const fn service(cpu: bool) -> Service {
    if cpu { Service::CPU } else { Service::GPU }
}

fn kind(name: &str) -> anyhow::Result<Kind> {
    Ok(match name {
        "diurnal" => Kind::Diurnal,
        "ramp" => Kind::Ramp,
        "spike" => Kind::Spike,
        "mmpp" => Kind::Mmpp,
        "step" => Kind::Step(4),
        "gamma" => Kind::Gamma(4),
        "twitter-like" => Kind::TwitterLike,
        "constant" => Kind::Constant,
        _ => anyhow::bail!("no trace {name:?}: diurnal, ramp, spike, mmpp, step, gamma, twitter-like or constant"),
    })
}
