//! Cells of the comparison: who scales what, measured over seeds, on all cores.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::contestant::Contestant;
use crate::fleet::{Outcome, run};
use crate::policies::{Clairvoyant, arrivals_by_second};
use crate::recording::Load;
use crate::service::Service;
use crate::stats::Mean;
use crate::trace::{STEP_AT_S, Trace};
use crate::variation::Variation;
use crate::world::World;

/// Share of a pod's best rate that the first pods get.
const FIRST_SHARE: f64 = 0.85;

/// Where something is measured: everything but the seed.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// The load.
    pub load: Load,
    /// The pods.
    pub service: Service,
    /// Usual peak of the load, images/s.
    pub peak: f64,
    /// From order to ready, seconds.
    pub startup_s: f64,
}

impl Place {
    /// As the report calls it.
    pub fn name(&self) -> String {
        format!("{}, {}, start-up {:.0} s", self.load.name(), self.service.name, self.startup_s)
    }

    /// The load of `seed`, and the fleet before it.
    pub fn scene(&self, seed: u64) -> (World, Trace) {
        let trace = self.load.trace(self.peak, seed);
        let first = trace.rates.first().copied().unwrap_or(0.0) / (FIRST_SHARE * self.service.saturation_tuned());
        let mut world = World::new(self.service.clone(), first.ceil() as u32);
        world.startup_s = self.startup_s;
        (world, trace)
    }
}

/// One run to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Where.
    pub place: Place,
    /// Who.
    pub contestant: Contestant,
    /// What is different from usual.
    pub variation: Variation,
    /// Which draws.
    pub seed: u64,
}

/// What a run showed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Measured {
    /// Seconds of pods.
    pub pod_seconds: f64,
    /// Share of bad windows.
    pub bad_windows: f64,
    /// Share of late or dropped requests.
    pub late_requests: f64,
    /// Seconds from the step to the end of the last bad 5 s; 0 without a step.
    pub recovery_s: f64,
    /// Greatest p95 of a minute's answers after the step, seconds; 0 without a step.
    pub worst_p95_s: f64,
    /// Most pods after the step over the pods at the end.
    pub overshoot: f64,
    /// Changed orders an hour.
    pub changes: f64,
    /// Reversals an hour.
    pub reversals: f64,
    /// Arrivals over what the serving pods could do with the tuned batch.
    pub rho_eff: f64,
    /// Orders for fewer pods without fresh samples.
    pub blind_downs: f64,
}

/// Runs one cell.
pub fn measure(cell: &Cell) -> Measured {
    let (mut world, trace) = cell.place.scene(cell.seed);
    cell.variation.apply(&mut world);
    if cell.contestant == Contestant::Clairvoyant {
        let arrivals = arrivals_by_second(&trace, cell.seed);
        let mut oracle = Clairvoyant::new(&world.service, world.startup_s, &arrivals);
        world.initial.replicas = yolo_planner::units::Replicas::new(oracle.first());
        let pod_seconds = oracle.pod_seconds(world.warmup_s);
        return Measured { pod_seconds, ..judge(cell, &world, &run(&world, &trace, cell.seed, &mut oracle)) };
    }
    let mut scaler = cell.contestant.scaler(&world, &trace, &cell.variation);
    judge(cell, &world, &run(&world, &trace, cell.seed, scaler.as_mut()))
}

fn judge(cell: &Cell, world: &World, outcome: &Outcome) -> Measured {
    let ledger = &outcome.ledger;
    let judged = ledger.seconds.get(world.warmup_s as usize..).unwrap_or(&[]);
    let (arrivals, ready) =
        judged.iter().fold((0.0, 0.0), |(a, r), second| (a + f64::from(second.arrivals), r + f64::from(second.ready)));
    let stepped = cell.place.load.steps();
    let at_s = STEP_AT_S as f64;
    let after = ledger.seconds.get(STEP_AT_S..).unwrap_or(&[]);
    let most = after.iter().map(|second| f64::from(second.pods)).fold(0.0, f64::max);
    let last = after.last().map_or(1.0, |second| f64::from(second.pods));
    Measured {
        pod_seconds: ledger.pod_seconds,
        bad_windows: ledger.bad_windows(),
        late_requests: ledger.late_requests(),
        recovery_s: if stepped { ledger.recovery_s(at_s) } else { 0.0 },
        worst_p95_s: if stepped { ledger.worst_p95_s(STEP_AT_S) } else { 0.0 },
        overshoot: if stepped { most / last } else { 0.0 },
        changes: ledger.changes_an_hour(),
        reversals: ledger.reversals_an_hour(),
        rho_eff: arrivals / (ready * world.service.saturation_tuned()).max(1e-9),
        blind_downs: f64::from(outcome.blind_downs),
    }
}

/// One contestant at one place, over the seeds.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Row {
    /// Where.
    pub place: String,
    /// Who, and what is different from usual.
    pub contestant: String,
    /// Pods' time over the clairvoyant's.
    pub cost: Mean,
    /// Pods' hours.
    pub pod_hours: Mean,
    /// Bad windows, percent.
    pub bad_windows_percent: Mean,
    /// Late and dropped requests, percent.
    pub late_requests_percent: Mean,
    /// Seconds until a step is over.
    pub recovery_s: Mean,
    /// Greatest p95 of a minute's answers after a step, ms.
    pub worst_p95_ms: Mean,
    /// Most pods after a step over those at the end.
    pub overshoot: Mean,
    /// Changes an hour.
    pub changes_an_hour: Mean,
    /// Reversals an hour.
    pub reversals_an_hour: Mean,
    /// Arrivals over what the pods could do.
    pub rho_eff: Mean,
    /// Orders for fewer pods while blind, all seeds together.
    pub blind_downs: f64,
}

/// What is to be compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Where.
    pub place: Place,
    /// Who.
    pub contestant: Contestant,
    /// What is different from usual.
    pub variation: Variation,
    /// Seeds.
    pub seeds: RangeInclusive<u64>,
}

/// Measures all entries on all cores; the clairvoyant is added where one is missing. Rows in the entries' order.
pub fn measure_all(entries: &[Entry], progress: &(dyn Fn(usize, usize) + Sync)) -> Vec<Row> {
    let cells = cells(entries);
    // The longest first, so that no core ends long after the others.
    let mut order: Vec<usize> = (0..cells.len()).collect();
    let weight = |cell: &Cell| cell.place.load.trace(cell.place.peak, cell.seed).images();
    order.sort_by_cached_key(|index| std::cmp::Reverse(cells.get(*index).map_or(0, |cell| weight(cell) as u64)));
    let next = AtomicUsize::new(0);
    let results = Mutex::new(HashMap::with_capacity(cells.len()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let Some(cell) = cells.get(*index) else { continue };
                    let measured = measure(cell);
                    let mut results = results.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    results.insert(*index, measured);
                    progress(results.len(), cells.len());
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let found = |wanted: &Cell| {
        let index = cells.iter().position(|cell| cell == wanted)?;
        results.get(&index).copied()
    };
    entries.iter().map(|entry| row(entry, &found)).collect()
}

/// The clairvoyant that an entry is held against: it waits as long for its pods, but lacks nothing else.
fn reference(entry: &Entry, seed: u64) -> Cell {
    let mut place = entry.place.clone();
    place.startup_s = entry.variation.startup_s(place.startup_s);
    Cell { place, contestant: Contestant::Clairvoyant, variation: Variation::None, seed }
}

fn cells(entries: &[Entry]) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    for entry in entries {
        for seed in entry.seeds.clone() {
            let Entry { place, contestant, variation, .. } = entry.clone();
            for cell in [Cell { place, contestant, variation, seed }, reference(entry, seed)] {
                if !cells.contains(&cell) {
                    cells.push(cell);
                }
            }
        }
    }
    cells
}

fn row(entry: &Entry, found: &dyn Fn(&Cell) -> Option<Measured>) -> Row {
    let pairs: Vec<(Measured, Measured)> = entry
        .seeds
        .clone()
        .filter_map(|seed| {
            let Entry { place, contestant, variation, .. } = entry.clone();
            Some((found(&Cell { place, contestant, variation, seed })?, found(&reference(entry, seed))?))
        })
        .collect();
    let mean = |value: &dyn Fn(&Measured) -> f64| Mean::of(pairs.iter().map(|(own, _)| value(own)).collect());
    let suffix = entry.variation.name();
    Row {
        place: entry.place.name(),
        contestant: format!("{}{}{suffix}", entry.contestant.name(), if suffix.is_empty() { "" } else { ", " }),
        cost: Mean::of(pairs.iter().map(|(own, oracle)| own.pod_seconds / oracle.pod_seconds.max(1.0)).collect()),
        pod_hours: mean(&|m| m.pod_seconds / 3600.0),
        bad_windows_percent: mean(&|m| 100.0 * m.bad_windows),
        late_requests_percent: mean(&|m| 100.0 * m.late_requests),
        recovery_s: mean(&|m| m.recovery_s),
        worst_p95_ms: mean(&|m| 1e3 * m.worst_p95_s),
        overshoot: mean(&|m| m.overshoot),
        changes_an_hour: mean(&|m| m.changes),
        reversals_an_hour: mean(&|m| m.reversals),
        rho_eff: mean(&|m| m.rho_eff),
        blind_downs: pairs.iter().map(|(own, _)| own.blind_downs).sum(),
    }
}
