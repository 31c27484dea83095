//! `yolo-bench`: the server beside its peers and the in-process ceiling (`make bench-peers`).
//!
//! On a shared machine a rate by itself says little: other work shifts it by a factor. So the contenders take turns in
//! every round, the ceiling is measured before and after each of them, and ratios are reported with their spread.
#![forbid(unsafe_code)]

mod answers;
mod ceiling;
mod contender;
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

use ceiling::Ceiling;
use contender::Contender;
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
    #[arg(long, default_value_t = 2)]
    overload_rounds: usize,
    /// Peers beside the server.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Contender::PEERS)]
    peers: Vec<Contender>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let site = Site::find(args.side_px)?;
    let mut ceiling = Ceiling::load(&site)?;
    let expected = ceiling.answers()?;
    let mut field: Vec<_> = [Contender::Ours].into_iter().chain(args.peers.iter().copied()).collect();
    field.retain(|contender| contender.installed(&site));
    let mut measured = Measured::default();
    let mut before = ceiling.rate()?;
    measured.ceiling.push(before);
    for round in 0..args.rounds {
        // Another one begins each round: a drift of the machine then meets everybody.
        let turn_of = |place: usize| field.get((round + place) % field.len()).copied();
        for contender in (0..field.len()).filter_map(turn_of) {
            let overload = (round < args.overload_rounds).then_some(2.0 * before);
            let outcome = Turn::take(&site, contender, &expected, overload);
            let after = ceiling.rate()?;
            measured.ceiling.push(after);
            let calibration = f64::midpoint(before, after);
            before = after;
            match outcome {
                Ok(turn) => {
                    let (name, round_of) = (contender.name(), format!("{} of {}", round + 1, args.rounds));
                    println!("round {round_of}, ceiling {calibration:.1}/s, {name}: {turn}");
                    if turn.foreign_cores <= FOREIGN_CORES_MAX {
                        measured.add(contender, round, (turn, calibration));
                    } else {
                        println!("not counted: more than {FOREIGN_CORES_MAX} cores of foreign load");
                    }
                }
                Err(error) => println!("{} failed: {error:#}", contender.name()),
            }
        }
    }
    measured.hits = hits::measure(&site, before)?;
    measured.waste = waste::measure(&site)?;
    report::write(&site, &measured)?;
    ensure!(measured.turns_of(Contender::Ours) == args.rounds, "the server was not measured in every round");
    Ok(())
}
