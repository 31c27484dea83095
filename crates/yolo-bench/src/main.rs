//! `yolo-bench`: the server beside its peers and the in-process ceiling (`make bench-peers`).
//!
//! On a shared machine a rate by itself says little: other work shifts it by a factor. So the contenders take turns in
//! every round, the ceiling is measured before and after each of them, and ratios are reported with their spread.
#![forbid(unsafe_code)]

mod answers;
mod ceiling;
mod contender;
mod duel;
mod hits;
mod load;
mod machine;
mod report;
mod running;
mod site;
mod turn;
mod waste;

use anyhow::ensure;
use clap::Parser;

use contender::Contender;
use duel::{Duel, Slices};
use report::Measured;
use site::Site;
use turn::Turn;

/// As the server has: the ceiling is the same work in the same process conditions.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Beside more other work than this a turn says more about that work than about the contender.
const FOREIGN_CORES_MAX: f64 = 0.25;

/// Measures the server, its peers and the ceiling in interleaved rounds.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Side of the page-layout model's input, in pixels.
    #[arg(long, default_value_t = 640)]
    side_px: u32,
    /// Rounds in which every contender takes a turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Of these, how many also measure overload.
    #[arg(long, default_value_t = 5)]
    overload_rounds: usize,
    /// Rounds of short slices of the server, its fastest peer and the ceiling, if there was any turn.
    #[arg(long, default_value_t = 12)]
    duel_rounds: usize,
    /// Rounds of what is measured of the server alone: cache hits and needless inferences.
    #[arg(long, default_value_t = 3)]
    server_rounds: usize,
    /// Peers beside the server.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Contender::PEERS)]
    peers: Vec<Contender>,
    /// Only measures this part of the ceiling and prints it as JSON; this program starts itself so.
    #[arg(long, value_enum)]
    ceiling: Option<ceiling::Part>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let site = Site::find(args.side_px)?;
    if let Some(part) = args.ceiling {
        return ceiling::print(&site, part);
    }
    let mut measured = Measured::default();
    take_turns(&site, &args, &mut measured)?;
    if let Some(peer) = measured.fastest_peer() {
        measured.duel = Some((peer, duel(&site, peer, args.duel_rounds)?));
    }
    measure_server(&site, args.server_rounds, &mut measured)?;
    report::write(&site, &measured)?;
    ensure!(measured.turns_of(Contender::Ours) == args.rounds, "the server was not measured in every round");
    if let Some((_, slices)) = &measured.duel {
        ensure!(slices.len() == args.duel_rounds, "counted rounds of slices: {}", slices.len());
    }
    let counted = [measured.hits.len(), measured.waste.len()];
    ensure!(counted == [args.server_rounds; 2], "counted rounds of cache hits and needless inferences: {counted:?}");
    Ok(())
}

/// Every contender in every round.
fn take_turns(site: &Site, args: &Args, measured: &mut Measured) -> anyhow::Result<()> {
    let expected = ceiling::answers(site)?;
    let mut field: Vec<_> = [Contender::Ours].into_iter().chain(args.peers.iter().copied()).collect();
    field.retain(|contender| contender.installed(site));
    let mut before = ceiling::rate(site)?;
    measured.ceiling.push(before);
    for round in 0..args.rounds {
        // Another one begins each round: a drift of the machine then meets everybody.
        let turn_of = |place: usize| field.get((round + place) % field.len()).copied();
        for contender in (0..field.len()).filter_map(turn_of) {
            let overload = (round < args.overload_rounds).then_some(2.0 * before);
            let outcome = Turn::take(site, contender, &expected, overload);
            let after = ceiling::rate(site)?;
            measured.ceiling.push(after);
            let calibration = f64::midpoint(before, after);
            before = after;
            match outcome {
                Ok(turn) => {
                    let (name, round_of) = (contender.name(), format!("{} of {}", round + 1, args.rounds));
                    println!("round {round_of}, ceiling {calibration:.1}/s, {name}: {turn}");
                    if counts(turn.foreign_cores) {
                        measured.add(contender, round, (turn, calibration));
                    }
                }
                Err(error) => println!("{} failed: {error:#}", contender.name()),
            }
        }
    }
    Ok(())
}

/// Slices of the server, `peer` and the ceiling.
fn duel(site: &Site, peer: Contender, rounds: usize) -> anyhow::Result<Vec<Slices>> {
    let (mut duel, mut all) = (Duel::start(site, peer)?, Vec::new());
    for round in 0..rounds {
        let slices = duel.round(round)?;
        println!("slices, round {} of {rounds}, beside {}: {slices:?}", round + 1, peer.name());
        all.extend(counts(slices.foreign_cores).then_some(slices));
    }
    Ok(all)
}

/// What is measured of this project's server alone. A round that fails is said and missing; the others are kept.
fn measure_server(site: &Site, rounds: usize, measured: &mut Measured) -> anyhow::Result<()> {
    for round in 1..=rounds {
        match hits::measure(site, ceiling::rate(site)?) {
            Ok(hits) => {
                println!("cache hits, round {round} of {rounds}: {hits:?}");
                measured.hits.extend(counts(hits.foreign_cores).then_some(hits));
            }
            Err(error) => println!("cache hits failed: {error:#}"),
        }
        match waste::measure(site) {
            Ok(waste) => {
                println!("needless inferences, round {round} of {rounds}: {waste:?}");
                measured.waste.push(waste);
            }
            Err(error) => println!("needless inferences failed: {error:#}"),
        }
    }
    Ok(())
}

/// Says so if not.
fn counts(foreign_cores: f64) -> bool {
    let counts = foreign_cores <= FOREIGN_CORES_MAX;
    if !counts {
        println!("not counted: {foreign_cores:.2} cores of foreign load");
    }
    counts
}
