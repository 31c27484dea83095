//! What the program does.

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;

use crate::calls;
use crate::campaign::{Entry, Place, Row, measure_all};
use crate::contestant::Contestant;
use crate::faults;
use crate::figure::{HOW, also};
use crate::figures;
use crate::fleet::run;
use crate::goals;
use crate::policies::{Clairvoyant, Planner, StaticPeak, arrivals_by_second, policy};
use crate::programme::{KEDA_BEST, KEDA_CAREFUL, OTHERS, Size};
use crate::report::Report;
use crate::service::Service;
use crate::stats::Mean;
use crate::timeline::Picture;
use crate::trace::{Gaps, Kind, Trace};
use crate::variation::Variation;
use crate::world::World;

/// Requests of the run that measures the simulator's own speed.
const SPEED_REQUESTS: f64 = 2e7;
/// Pods and load of that run, as a share of what they can do.
const SPEED_PODS: u32 = 10;
const SPEED_SHARE: f64 = 0.85;
/// Faults are told apart over as many runs each.
pub const FAULT_SEEDS: u64 = 10;

/// Everything, printed as it comes and written at the end.
///
/// # Errors
/// If a file cannot be written.
pub fn bench(size: Size, out: &Path, folder: &Path) -> anyhow::Result<()> {
    println!("commit {}", figures::stamp());
    let (rate, call_s) = (speed(), calls::cost_s_p99());
    println!("simulated: {:.2} M requests/s on one core; planning calls: {:.2} ms p99", rate / 1e6, call_s * 1e3);
    let comparison = measured("comparison", &size.comparison());
    let ablations = measured("ablations", &size.ablations());
    let confusions = faults::confuse(FAULT_SEEDS);
    let mut figures = goals::judge(&size, (&comparison, &ablations));
    let judged = confusions.iter().filter(|confusion| confusion.of_goal);
    let (right, runs) = judged.fold((0, 0), |(right, runs), c| (right + c.right, runs + c.runs));
    let named = Mean::of(vec![100.0 * right as f64 / runs.max(1) as f64]);
    figures.push(also(named.at_least("G9_faults_named_first", "%", 95.0), &format!("{right} of {runs} runs")));
    // Speed depends on the machine's load, and is no part of a report that must repeat byte by byte.
    let report = Report { seeds: size.seeds, scale: size.scale, figures, comparison, ablations, faults: confusions };
    report.write(out)?;
    for kind in [Kind::Step(4), Kind::TwitterLike, Kind::Diurnal] {
        let (world, trace) = size.gpu(kind).scene(1);
        draw(&world, &trace, &kind.name(), &out.join(format!("{}.svg", kind.name())))?;
    }
    println!("{}", report.markdown());
    let mut figures = report.figures;
    figures.push(Mean::of(vec![rate / 1e6]).at_least("simulated_requests_per_core", "M/s", 5.0));
    figures.push(Mean::of(vec![call_s * 1e3]).at_most("planning_call_200_pods_p99", "ms", 5.0));
    figures::add_to(folder, "control", HOW, &mut figures)?;
    print!("{}", figures::table(&figures));
    Ok(())
}

/// Measures, with a word now and then on how far it is.
fn measured(what: &str, entries: &[Entry]) -> Vec<Row> {
    let begun = Instant::now();
    let progress = |done: usize, all: usize| {
        if done.is_multiple_of(20) || done == all {
            eprintln!("{what}: {done} of {all} runs, {:.0} s", begun.elapsed().as_secs_f64());
        }
    };
    measure_all(entries, &progress)
}

/// Prints one table; `picture` is where the planner's first run is drawn.
///
/// # Errors
/// If the picture cannot be drawn.
pub fn compare(place: &Place, seeds: &RangeInclusive<u64>, alone: bool, picture: Option<&Path>) -> anyhow::Result<()> {
    let others = [KEDA_CAREFUL, KEDA_BEST].into_iter().chain(OTHERS);
    let ours = [Contestant::Planner, Contestant::Clairvoyant];
    let contestants = ours.into_iter().chain(others.filter(|_| !alone));
    let entry =
        |contestant| Entry { place: place.clone(), contestant, variation: Variation::None, seeds: seeds.clone() };
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
    let Some(picture) = picture else { return Ok(()) };
    let (world, trace) = place.scene(*seeds.start());
    draw(&world, &trace, &place.load.name(), picture)
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
pub fn speed() -> f64 {
    let service = Service::GPU;
    let rate = SPEED_SHARE * f64::from(SPEED_PODS) * service.saturation_tuned();
    let trace = Trace { rates: vec![rate; (SPEED_REQUESTS / rate) as usize], gaps: Gaps::Poisson };
    let world = World::new(service, SPEED_PODS);
    let begun = Instant::now();
    let outcome = run(&world, &trace, 1, &mut StaticPeak(SPEED_PODS));
    outcome.ledger.arrivals as f64 / begun.elapsed().as_secs_f64()
}
