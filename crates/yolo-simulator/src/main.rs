//! `yolo-simulator`: compares autoscalers on a simulated fleet.

use std::time::Instant;

use clap::{Parser, Subcommand};
use yolo_simulator::campaign::{Entry, Place, measure_all};
use yolo_simulator::contestant::Contestant;
use yolo_simulator::fleet::run;
use yolo_simulator::policies::StaticPeak;
use yolo_simulator::service::Service;
use yolo_simulator::trace::{Gaps, Kind, Trace};
use yolo_simulator::variation::Variation;
use yolo_simulator::world::World;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Simulated requests a second on one core.
    Speed,
    /// Try.
    Try { seeds: u64 },
}

fn main() {
    match Args::parse().command {
        Command::Speed => {
            for (service, pods, share) in [(Service::GPU, 10, 0.85), (Service::GPU, 10, 0.5), (Service::CPU, 20, 0.8)] {
                let rate = share * f64::from(pods) * service.saturation_tuned();
                let trace = Trace { rates: vec![rate; (1e7 / rate) as usize], gaps: Gaps::Poisson };
                let world = World::new(service, pods);
                let begun = Instant::now();
                let outcome = run(&world, &trace, 1, &mut StaticPeak(pods));
                println!("{:.2} M requests/s", outcome.ledger.arrivals as f64 / begun.elapsed().as_secs_f64() / 1e6);
            }
        }
        Command::Try { seeds } => {
            let mut entries = Vec::new();
            for kind in [Kind::Ramp, Kind::Spike, Kind::Mmpp, Kind::TwitterLike] {
                let place = Place { kind, service: Service::GPU, peak: 4000.0, startup_s: 30.0 };
                for contestant in [
                    Contestant::Planner,
                    Contestant::Clairvoyant,
                    Contestant::StaticPeak,
                    Contestant::Keda(935, 30, 60),
                    Contestant::Keda(850, 60, 300),
                    Contestant::Duty(70),
                    Contestant::Kpa,
                ] {
                    entries.push(Entry { place: place.clone(), contestant, variation: Variation::None, seeds });
                }
            }
            for row in measure_all(&entries, &|_, _| {}) {
                println!(
                    "{:40} {:35} cost {} bad {} late {} chg {} rev {} rho {}",
                    row.place,
                    row.contestant,
                    row.cost.text(3),
                    row.bad_windows_percent.text(2),
                    row.late_requests_percent.text(2),
                    row.changes_an_hour.text(1),
                    row.reversals_an_hour.text(1),
                    row.rho_eff.text(2)
                );
            }
        }
    }
}
