//! What `make bench-control` compares: which contestants, under which loads, over how many seeds.

use yolo_planner::policy::Margin;

use crate::campaign::{Entry, Place};
use crate::contestant::Contestant::{self, Clairvoyant, Duty, Keda, Kpa, LatencyRatio, Planner, Ray, StaticPeak};
use crate::fleet::Routing;
use crate::service::Service;
use crate::trace::Kind;
use crate::variation::Variation;

/// Usual peak of a load of GPU pods, images/s: ten pods. CPU pods get a tenth of it.
const PEAK: f64 = 4000.0;
const PEAK_CPU: f64 = 400.0;
/// Start-up unless a place says otherwise (control.md).
const STARTUP_S: f64 = 30.0;
/// Ablations differ by more than seeds do: fewer of them suffice.
const ABLATION_SEEDS: u64 = 2;

/// How much is run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    /// Seeds of each cell.
    pub seeds: u64,
    /// Factor on all loads: fewer pods, so that rounding to whole pods costs more, but the same shape.
    pub scale: f64,
}

/// KEDA as a person may tune it at best: nearest to a pod's best rate, and quick.
pub const KEDA_BEST: Contestant = Keda(935, 30, 60);
/// KEDA tuned with care.
pub const KEDA_CAREFUL: Contestant = Keda(850, 60, 300);
/// The same on CPU pods.
pub const KEDA_CPU: Contestant = Keda(750, 60, 300);
/// KEDA's settings among which the one with equal violations is found.
pub const KEDA_SWEEP: [Contestant; 6] =
    [Keda(500, 30, 60), Keda(600, 30, 60), Keda(700, 30, 60), Keda(800, 30, 60), KEDA_CAREFUL, KEDA_BEST];
/// KEDA tuned 30 % too high and 20 % too low.
const KEDA_WRONG: [Contestant; 2] = [Keda(1105, 60, 300), Keda(680, 60, 300)];

impl Size {
    /// The place of `kind` on GPU pods.
    pub fn gpu(&self, kind: Kind) -> Place {
        Place { kind, service: Service::GPU, peak: PEAK * self.scale, startup_s: STARTUP_S }
    }

    /// The same with another start-up.
    pub fn gpu_start(&self, kind: Kind, startup_s: f64) -> Place {
        Place { startup_s, ..self.gpu(kind) }
    }

    /// The place of `kind` on CPU pods.
    pub fn cpu(&self, kind: Kind) -> Place {
        Place { kind, service: Service::CPU, peak: PEAK_CPU * self.scale, startup_s: STARTUP_S }
    }

    fn entries(&self, place: &Place, contestants: &[Contestant]) -> Vec<Entry> {
        let entry = |contestant: &Contestant| Entry {
            place: place.clone(),
            contestant: *contestant,
            variation: Variation::None,
            seeds: self.seeds,
        };
        contestants.iter().map(entry).collect()
    }

    /// The comparison of scalers.
    pub fn comparison(&self) -> Vec<Entry> {
        let ours = [Planner, Clairvoyant];
        let smooth = [Planner, Clairvoyant, Duty(70), KEDA_BEST];
        let others = [StaticPeak, Duty(70), Duty(90), Kpa, Ray, LatencyRatio];
        let bursty: Vec<Contestant> = ours.into_iter().chain(KEDA_SWEEP).chain(others).chain(KEDA_WRONG).collect();
        let ramp: Vec<Contestant> = smooth.into_iter().chain([KEDA_CAREFUL]).chain(KEDA_WRONG).chain(others).collect();
        let on_cpu = [Planner, Clairvoyant, Duty(70), Duty(90), KEDA_CPU];
        let brief = [Planner, Clairvoyant, KEDA_CAREFUL];
        let mut all = self.entries(&self.gpu(Kind::Diurnal), &smooth);
        all.extend(self.entries(&self.gpu(Kind::Ramp), &dedup(&ramp)));
        for kind in [Kind::Spike, Kind::Mmpp, Kind::TwitterLike] {
            all.extend(self.entries(&self.gpu(kind), &bursty));
        }
        all.extend(self.entries(&self.gpu_start(Kind::TwitterLike, 10.0), &ours));
        for startup_s in [10.0, 30.0, 60.0] {
            all.extend(self.entries(&self.gpu_start(Kind::Step(4), startup_s), &brief));
        }
        for kind in [Kind::Step(2), Kind::Step(10), Kind::Gamma(1), Kind::Gamma(4), Kind::Gamma(8)] {
            all.extend(self.entries(&self.gpu(kind), &brief));
        }
        for kind in [Kind::Diurnal, Kind::Ramp, Kind::TwitterLike] {
            all.extend(self.entries(&self.cpu(kind), &on_cpu));
        }
        all
    }

    /// The ablations: the planner with one thing different.
    pub fn ablations(&self) -> Vec<Entry> {
        let forecast = [
            Variation::None,
            Variation::Margin(Margin::None),
            Variation::Margin(Margin::Fixed),
            Variation::Trend,
            Variation::Unseasonal,
        ];
        let others = [
            Variation::Curve(80),
            Variation::Curve(120),
            Variation::SlowStart,
            Variation::SlowScrape,
            Variation::Outage,
            Variation::Silent,
            Variation::Queueing,
            Variation::Hold(0),
            Variation::Hold(300),
            Variation::Routed(Routing::Random),
            Variation::Routed(Routing::RoundRobin),
            Variation::Routed(Routing::P2c),
            Variation::Routed(Routing::Central),
        ];
        let seeds = self.seeds.min(ABLATION_SEEDS);
        let entries = |kind, variations: &[Variation]| -> Vec<Entry> {
            let entry = |variation: &Variation| Entry {
                place: self.gpu(kind),
                contestant: Planner,
                variation: *variation,
                seeds,
            };
            variations.iter().map(entry).collect()
        };
        // A season is nothing to a load without one: what the forecasts are worth shows where peaks repeat, too.
        [
            entries(Kind::TwitterLike, &forecast),
            entries(Kind::TwitterLike, &others),
            entries(Kind::Spike, &forecast),
            entries(Kind::Mmpp, &forecast),
        ]
        .concat()
    }
}

/// Each contestant once, in order of the first mention.
fn dedup(contestants: &[Contestant]) -> Vec<Contestant> {
    let mut once = Vec::new();
    for contestant in contestants {
        if !once.contains(contestant) {
            once.push(*contestant);
        }
    }
    once
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_named_twice() {
        let size = Size { seeds: 5, scale: 1.0 };
        for entries in [size.comparison(), size.ablations()] {
            for (index, entry) in entries.iter().enumerate() {
                assert!(!entries[..index].contains(entry), "{entry:?}");
            }
        }
    }
}
