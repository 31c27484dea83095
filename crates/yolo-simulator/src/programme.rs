//! What `make bench-control` compares: which contestants, under which loads, over how many seeds.

use yolo_planner::policy::Margin;

use crate::campaign::{Entry, Place};
use crate::contestant::Contestant::{
    self, Clairvoyant, Duty, Keda, Kpa, LatencyRatio, MeanRatio, Planner, Ray, StaticPeak,
};
use crate::fleet::Routing;
use crate::recording::Load;
use crate::service::Service;
use crate::trace::Kind;
use crate::variation::Variation;

/// Usual peak of a load of GPU pods, images/s: ten pods. CPU pods get a tenth of it.
pub const PEAK: f64 = 4000.0;
const PEAK_CPU: f64 = 400.0;
/// Start-up unless a place says otherwise (control.md).
const STARTUP_S: f64 = 30.0;
/// Ablations and wrong tunings differ by more than seeds do: fewer of them suffice.
const FEWER_SEEDS: u64 = 2;

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
/// KEDA tuned 30 % too high and 20 % too low, on GPU and on CPU pods.
const KEDA_WRONG: [Contestant; 2] = [Keda(1105, 60, 300), Keda(680, 60, 300)];
const KEDA_CPU_WRONG: [Contestant; 2] = [Keda(975, 60, 300), Keda(600, 60, 300)];
/// The other autoscalers, tuned as well as their rules can be; HPA on duty at its usual 70 % and at 90.
pub const OTHERS: [Contestant; 7] =
    [StaticPeak(100), Duty(70), Duty(90), Kpa(100), Ray(100), LatencyRatio(100), MeanRatio(100)];
/// The same 20 to 30 % off, to either side; for HPA on duty the 90 % above are one of them.
const OTHERS_WRONG: [Contestant; 11] = [
    StaticPeak(80),
    StaticPeak(125),
    Duty(50),
    Kpa(70),
    Kpa(130),
    Ray(70),
    Ray(130),
    LatencyRatio(70),
    LatencyRatio(130),
    MeanRatio(70),
    MeanRatio(130),
];

impl Size {
    /// The place of `kind` on GPU pods.
    pub fn gpu(&self, kind: Kind) -> Place {
        Place { load: Load::Made(kind), service: Service::GPU, peak: PEAK * self.scale, startup_s: STARTUP_S }
    }

    /// The same with another start-up.
    pub fn gpu_start(&self, kind: Kind, startup_s: f64) -> Place {
        Place { startup_s, ..self.gpu(kind) }
    }

    /// The place of `kind` on CPU pods.
    pub fn cpu(&self, kind: Kind) -> Place {
        Place { load: Load::Made(kind), service: Service::CPU, peak: PEAK_CPU * self.scale, startup_s: STARTUP_S }
    }

    fn entries(&self, place: &Place, contestants: &[Contestant]) -> Vec<Entry> {
        let entry = |contestant: &Contestant| Entry {
            place: place.clone(),
            contestant: *contestant,
            variation: Variation::None,
            seeds: 1..=self.seeds,
        };
        contestants.iter().map(entry).collect()
    }

    /// Wrong tunings at `place`.
    fn wrong(&self, place: &Place, contestants: &[Contestant]) -> Vec<Entry> {
        let fewer = Self { seeds: self.seeds.min(FEWER_SEEDS), ..*self };
        fewer.entries(place, contestants)
    }

    /// The comparison of scalers.
    pub fn comparison(&self) -> Vec<Entry> {
        let ours = [Planner, Clairvoyant];
        let smooth = [Planner, Clairvoyant, Duty(70), KEDA_BEST];
        let bursty: Vec<Contestant> = ours.into_iter().chain(KEDA_SWEEP).chain(OTHERS).collect();
        let ramp: Vec<Contestant> = smooth.into_iter().chain([KEDA_CAREFUL]).chain(OTHERS).collect();
        let on_cpu = [Planner, Clairvoyant, Duty(70), Duty(90), KEDA_CPU];
        let brief = [Planner, Clairvoyant, KEDA_CAREFUL];
        let mut all = self.entries(&self.gpu(Kind::Diurnal), &smooth);
        all.extend(self.entries(&self.gpu(Kind::Ramp), &dedup(&ramp)));
        all.extend(self.wrong(&self.gpu(Kind::Ramp), &[&KEDA_WRONG[..], &OTHERS_WRONG].concat()));
        for kind in [Kind::Spike, Kind::Mmpp, Kind::TwitterLike] {
            all.extend(self.entries(&self.gpu(kind), &bursty));
            all.extend(self.wrong(&self.gpu(kind), &KEDA_WRONG));
        }
        all.extend(self.wrong(&self.gpu(Kind::TwitterLike), &OTHERS_WRONG));
        all.extend(self.entries(&self.gpu_start(Kind::TwitterLike, 10.0), &ours));
        for startup_s in [10.0, 30.0, 60.0] {
            all.extend(self.entries(&self.gpu_start(Kind::Step(4), startup_s), &brief));
        }
        for kind in [Kind::Step(2), Kind::Step(10), Kind::Gamma(1), Kind::Gamma(4), Kind::Gamma(8)] {
            all.extend(self.entries(&self.gpu(kind), &brief));
        }
        for kind in [Kind::Diurnal, Kind::Ramp, Kind::TwitterLike] {
            all.extend(self.entries(&self.cpu(kind), &on_cpu));
            all.extend(self.wrong(&self.cpu(kind), &KEDA_CPU_WRONG));
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
        let seeds = self.seeds.min(FEWER_SEEDS);
        let entry = |kind, variation| Entry { place: self.gpu(kind), contestant: Planner, variation, seeds: 1..=seeds };
        let entries = |kind, variations: &[Variation]| -> Vec<Entry> {
            variations.iter().map(|variation| entry(kind, *variation)).collect()
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
