//! `yolo-simulator`: compares autoscalers on a simulated fleet.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use clap::{Parser, Subcommand};
use yolo_simulator::campaign::{Entry, Place, Row, measure_all};
use yolo_simulator::contestant::Contestant;
use yolo_simulator::faults;
use yolo_simulator::figure::{self, Figure};
use yolo_simulator::fleet::run;
use yolo_simulator::goals;
use yolo_simulator::policies::{Clairvoyant, Planner, StaticPeak, arrivals_by_second, policy};
use yolo_simulator::programme::Size;
use yolo_simulator::report::Report;
use yolo_simulator::service::Service;
use yolo_simulator::stats::Mean;
use yolo_simulator::timeline::Picture;
use yolo_simulator::trace::{Gaps, Kind, Trace};
use yolo_simulator::variation::Variation;
use yolo_simulator::world::World;

/// Requests of the run that measures the simulator's own speed.
const SPEED_REQUESTS: f64 = 2e7;
/// Pods and load of that run, as a share of what they can do.
const SPEED_PODS: u32 = 10;
const SPEED_SHARE: f64 = 0.85;
/// Faults are told apart over as many runs each.
const FAULT_SEEDS: u64 = 5;

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
        /// cpu instead of gpu pods.
        #[arg(long)]
        cpu: bool,
        /// Usual peak, images/s.
        #[arg(long, default_value_t = 4000.0)]
        peak: f64,
        /// From order to ready, seconds.
        #[arg(long, default_value_t = 30.0)]
        startup_s: f64,
        /// Seeds.
        #[arg(long, default_value_t = 1)]
        seeds: u64,
        /// Only the planner and the clairvoyant.
        #[arg(long)]
        alone: bool,
    },
    /// The planner on a recorded load: lines `seconds,images_per_second`.
    Replay {
        /// The file.
        file: PathBuf,
        /// cpu instead of gpu pods.
        #[arg(long)]
        cpu: bool,
        /// The picture to draw.
        #[arg(long, default_value = "target/control/replay.svg")]
        picture: PathBuf,
    },
    /// Names what is broken in fleets with injected faults.
    Faults {
        /// Seeds of each fault.
        #[arg(long, default_value_t = FAULT_SEEDS)]
        seeds: u64,
    },
    /// Simulated requests a second on one core.
    Speed,
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Bench { seeds, scale, out, figures } => bench(Size { seeds, scale }, &out, &figures),
        Command::Compare { trace, cpu, peak, startup_s, seeds, alone } => {
            let place = Place { kind: kind(&trace)?, service: service(cpu), peak, startup_s };
            compare(&place, seeds, alone);
            Ok(())
        }
        Command::Replay { file, cpu, picture } => replay(&file, service(cpu), &picture),
        Command::Faults { seeds } => {
            for faults::Confusion { fault, right, runs, instead } in faults::confuse(seeds) {
                println!("{fault:<14} {right} of {runs}  {}", instead.join(", "));
            }
            Ok(())
        }
        Command::Speed => {
            println!("{:.2} M requests/s on one core", speed() / 1e6);
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

/// Everything, printed as it comes and written at the end.
fn bench(size: Size, out: &Path, folder: &Path) -> anyhow::Result<()> {
    let rate = speed();
    println!("simulated: {:.2} M requests/s on one core", rate / 1e6);
    let comparison = measured("comparison", &size.comparison());
    let ablations = measured("ablations", &size.ablations());
    let confusions = faults::confuse(FAULT_SEEDS.min(size.seeds));
    let mut figures = goals::judge(&size, &comparison);
    let (right, runs) = confusions.iter().fold((0, 0), |(right, runs), c| (right + c.right, runs + c.runs));
    let named = Mean::of(vec![100.0 * right as f64 / runs.max(1) as f64]);
    figures
        .push(Figure::at_least("G9_faults_named_first", &named, "%", 95.0).noted(&format!("{right} of {runs} runs")));
    // Speed depends on the machine's load, and is no part of a report that must repeat byte by byte.
    let report = Report { seeds: size.seeds, scale: size.scale, figures, comparison, ablations, faults: confusions };
    report.write(out)?;
    for kind in [Kind::Step(4), Kind::TwitterLike, Kind::Diurnal] {
        let (world, trace) = size.gpu(kind).scene(1);
        draw(&world, &trace, &kind.name(), &out.join(format!("{}.svg", kind.name())))?;
    }
    println!("{}", report.markdown());
    let mut figures = report.figures;
    figures.push(Figure::at_least("simulated_requests_per_core", &Mean::of(vec![rate / 1e6]), "M/s", 5.0));
    figure::write(folder, &figures)?;
    print!("{}", figure::table(&figures));
    Ok(())
}

fn measured(what: &str, entries: &[Entry]) -> Vec<Row> {
    let begun = Instant::now();
    let progress = |done: usize, all: usize| {
        if done.is_multiple_of(20) || done == all {
            eprintln!("{what}: {done} of {all} runs, {:.0} s", begun.elapsed().as_secs_f64());
        }
    };
    measure_all(entries, &progress)
}

fn compare(place: &Place, seeds: u64, alone: bool) {
    let others = [
        Contestant::StaticPeak,
        Contestant::Duty(70),
        Contestant::Keda(850, 60, 300),
        Contestant::Keda(935, 30, 60),
        Contestant::Kpa,
        Contestant::Ray,
        Contestant::LatencyRatio,
    ];
    let ours = [Contestant::Planner, Contestant::Clairvoyant];
    let contestants = ours.into_iter().chain(others.into_iter().filter(|_| !alone));
    let entry = |contestant| Entry { place: place.clone(), contestant, variation: Variation::None, seeds };
    let entries: Vec<Entry> = contestants.map(entry).collect();
    println!("{}", place.name());
    for row in measure_all(&entries, &|_, _| {}) {
        println!(
            "{:<32} cost {:<22} bad {:<20} % late {:<18} % changes {} reversals {} ρ {} recovery {}",
            row.contestant,
            row.cost.text(3),
            row.bad_windows_percent.text(2),
            row.late_requests_percent.text(2),
            row.changes_an_hour.text(1),
            row.reversals_an_hour.text(1),
            row.rho_eff.text(2),
            row.recovery_s.text(0),
        );
    }
}

fn replay(file: &Path, service: Service, picture: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
    let trace = Trace::from_csv(&text).with_context(|| format!("{} is no trace", file.display()))?;
    let first = trace.rates.first().copied().unwrap_or(0.0) / (SPEED_SHARE * service.saturation_tuned());
    let world = World::new(service, first.ceil() as u32);
    let name = file.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    draw(&world, &trace, &name, picture)
}

/// Runs the planner and draws the run.
fn draw(world: &World, trace: &Trace, name: &str, path: &Path) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("failed to create {}", folder.display()))?;
    }
    let oracle = Clairvoyant::new(&world.service, world.startup_s, &arrivals_by_second(trace, 1));
    let outcome = run(world, trace, 1, &mut Planner::new(policy(world)));
    let ledger = &outcome.ledger;
    let cost = ledger.pod_seconds / oracle.pod_seconds(world.warmup_s).max(1.0);
    let bad = 100.0 * ledger.bad_windows();
    let title = format!("{name}: yolo-planner, {cost:.3} × clairvoyant, {bad:.2} % bad minutes (shaded)");
    Picture { title, ledger, oracle: oracle.pods(), slo_s: world.slo_s }.draw(path)?;
    println!("{}", path.display());
    Ok(())
}

/// Simulated requests a second of wall time.
fn speed() -> f64 {
    let service = Service::GPU;
    let rate = SPEED_SHARE * f64::from(SPEED_PODS) * service.saturation_tuned();
    let trace = Trace { rates: vec![rate; (SPEED_REQUESTS / rate) as usize], gaps: Gaps::Poisson };
    let world = World::new(service, SPEED_PODS);
    let begun = Instant::now();
    let outcome = run(&world, &trace, 1, &mut StaticPeak(SPEED_PODS));
    outcome.ledger.arrivals as f64 / begun.elapsed().as_secs_f64()
}
