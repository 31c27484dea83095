//! What the rounds add up to: figures with goals, and a row for each contender.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Serialize;
use yolo_testkit::figures::{self, Figure};

use crate::contender::Contender;
use crate::duel::Slices;
use crate::hits::Hits;
use crate::load::Overload;
use crate::site::Site;
use crate::turn::Turn;
use crate::waste::Waste;

const HOW: &str = "make bench-peers";
/// Goals of the project; vision.md, "Benchmarks".
const OF_CEILING_MIN: f64 = 0.97;
const OVER_BEST_MIN: f64 = 1.05;
const OVERLOAD_P99_MAX: f64 = 0.6;
const GOODPUT_MIN: f64 = 0.9;
const PSS_MAX: f64 = 0.4;
const READY_S_MAX: f64 = 1.0;
/// The 99th percentile is within a millisecond.
const HITS_WITHIN_MIN: f64 = 0.99;
/// Of the median and the 99th percentile of refusals.
const REFUSAL_MS_MAX: [f64; 2] = [5.0, 25.0];

/// One value of a turn, given the ceiling's rate around it; none if it was not measured.
type Value = fn(&Turn, f64) -> Option<f64>;
const OF_CEILING: Value = |turn, calibration| Some(turn.closed.rate / calibration);
const OVERLOAD_P99_MS: Value = |turn, _| turn.overload.map(|Overload { p99_ms, .. }| p99_ms);
/// Goodput under overload over the contender's own capacity in the same turn.
const GOODPUT_RATIO: Value = |turn, _| turn.overload.map(|overload| overload.goodput / turn.closed.rate);
const PSS_MB: Value = |turn, _| Some(turn.pss_mb);
const READY_S: Value = |turn, _| Some(turn.ready_s);
const REFUSAL_P50_MS: Value = |turn, _| Some(turn.overload?.refusal_ms?[0]);
const REFUSAL_P99_MS: Value = |turn, _| Some(turn.overload?.refusal_ms?[1]);
const STARTED_LATE: Value = |turn, _| turn.overload.map(|_| turn.started_late);

/// Everything that was measured.
#[derive(Default)]
pub struct Measured {
    /// Rates of the ceiling, before, between and after the turns.
    pub ceiling: Vec<f64>,
    /// The fastest peer, and slices of it, the server and the ceiling by turns.
    pub duel: Option<(Contender, Vec<Slices>)>,
    /// Cache hits, round by round.
    pub hits: Vec<Hits>,
    /// Needless inferences, round by round.
    pub waste: Vec<Waste>,
    /// Turns by round, with the mean of the ceiling's rates before and after each.
    turns: BTreeMap<Contender, BTreeMap<usize, (Turn, f64)>>,
}

/// Median, smallest and largest of some rounds.
#[derive(Debug, Clone, Copy, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

/// A contender in the report; absent values were not measured.
#[derive(Serialize)]
struct Row {
    contender: &'static str,
    rounds: usize,
    values: BTreeMap<&'static str, Spread>,
}

/// The server's rate over another's, in slices by turns.
#[derive(Serialize)]
struct Ratio {
    /// Of all slices together.
    mean: f64,
    /// Half of its 95 % interval.
    half_interval: f64,
    rounds: Vec<f64>,
}

#[derive(Serialize)]
struct Duel {
    peer: &'static str,
    of_ceiling: Ratio,
    over_peer: Ratio,
}

#[derive(Serialize)]
struct Report {
    side_px: u32,
    ceiling: Option<Spread>,
    duel: Option<Duel>,
    rows: Vec<Row>,
}

impl Measured {
    /// Keeps a turn; `calibration` is the ceiling's rate around it.
    pub fn add(&mut self, contender: Contender, round: usize, (turn, calibration): (Turn, f64)) {
        self.turns.entry(contender).or_default().insert(round, (turn, calibration));
    }

    /// Rounds in which a contender served.
    pub fn turns_of(&self, contender: Contender) -> usize {
        self.turns.get(&contender).map_or(0, BTreeMap::len)
    }

    /// The peer that came nearest to the ceiling in its turns.
    pub fn fastest_peer(&self) -> Option<Contender> {
        self.best(OF_CEILING, true)
    }

    /// The value of every round that has it.
    fn rounds(&self, contender: Contender, value: Value) -> BTreeMap<usize, f64> {
        let turns = self.turns.get(&contender).into_iter().flatten();
        turns.filter_map(|(round, (turn, calibration))| Some((*round, value(turn, *calibration)?))).collect()
    }

    fn values(&self, contender: Contender, value: Value) -> Vec<f64> {
        self.rounds(contender, value).into_values().collect()
    }

    /// The peer with the largest or smallest median of a value.
    fn best(&self, value: Value, largest: bool) -> Option<Contender> {
        let peers = self.turns.keys().copied().filter(|contender| *contender != Contender::Ours);
        let medians = peers.filter_map(|peer| Some((peer, median(&self.values(peer, value))?)));
        let order = |a: &(Contender, f64), b: &(Contender, f64)| a.1.total_cmp(&b.1);
        let best = if largest { medians.max_by(order) } else { medians.min_by(order) };
        best.map(|(peer, _)| peer)
    }

    /// Ours over the best peer's, round by round, and who that is.
    fn over_best(&self, value: Value, largest: bool) -> Option<(f64, Vec<f64>, &'static str)> {
        let best = self.best(value, largest)?;
        let (ours, theirs) = (self.rounds(Contender::Ours, value), self.rounds(best, value));
        let ratios: Vec<_> = ours.iter().filter_map(|(round, ours)| Some(ours / theirs.get(round)?)).collect();
        Some((median(&ratios)?, ratios, best.name()))
    }

    /// None without a duel.
    fn duel_ratios(&self) -> Option<Duel> {
        let (peer, slices) = self.duel.as_ref().filter(|(_, slices)| !slices.is_empty())?;
        let over = |other: fn(&Slices) -> f64| {
            let rounds: Vec<_> = slices.iter().map(|slices| slices.ours / other(slices)).collect();
            let total = |of: fn(&Slices) -> f64| slices.iter().map(of).sum::<f64>();
            Ratio { mean: total(|slices| slices.ours) / total(other), half_interval: half_interval(&rounds), rounds }
        };
        Some(Duel {
            peer: peer.name(),
            of_ceiling: over(|slices| slices.ceiling),
            over_peer: over(|slices| slices.peer),
        })
    }

    fn row(&self, contender: Contender) -> Row {
        let measures: [(&str, Value); 10] = [
            ("rate", |turn, _| Some(turn.closed.rate)),
            ("of_ceiling", OF_CEILING),
            ("p99_ms", |turn, _| Some(turn.closed.p99_ms)),
            ("overload_p99_ms", OVERLOAD_P99_MS),
            ("goodput_ratio", GOODPUT_RATIO),
            ("refused_ratio", |turn, _| turn.overload.map(|overload| overload.unanswered_ratio)),
            ("pss_mb", PSS_MB),
            ("ready_s", READY_S),
            ("agreement", |turn, _| Some(turn.agreement)),
            ("foreign_cores", |turn, _| Some(turn.foreign_cores)),
        ];
        let spreads = measures.into_iter().filter_map(|(name, of)| Some((name, spread(&self.values(contender, of))?)));
        Row { contender: contender.name(), rounds: self.turns_of(contender), values: spreads.collect() }
    }

    fn figures(&self, side_px: u32) -> Vec<Figure> {
        let id = |name: &str| format!("peers_{side_px}_{name}");
        let ours = |of: Value| {
            let values = self.values(Contender::Ours, of);
            median(&values).map(|median| (median, values))
        };
        let mut all = Vec::new();
        if let Some(Duel { peer, of_ceiling, over_peer }) = self.duel_ratios() {
            let note = |who: &str, ratio: &Ratio| format!("{who}, ± {:.3} (95 %)", ratio.half_interval);
            let figure = Figure::at_least(id("of_ceiling"), of_ceiling.mean, "ratio", OF_CEILING_MIN);
            all.push(figure.over(&of_ceiling.rounds).noted(note("in process", &of_ceiling)));
            let figure = Figure::at_least(id("rate_over_best"), over_peer.mean, "ratio", OVER_BEST_MIN);
            all.push(figure.over(&over_peer.rounds).noted(note(peer, &over_peer)));
        }
        if let Some((value, runs, best)) = self.over_best(OVERLOAD_P99_MS, false) {
            let figure = Figure::at_most(id("overload_p99_over_best"), value, "ratio", OVERLOAD_P99_MAX);
            all.push(figure.over(&runs).noted(best));
        }
        if let Some((value, runs)) = ours(GOODPUT_RATIO) {
            all.push(Figure::at_least(id("overload_goodput"), value, "ratio", GOODPUT_MIN).over(&runs));
        }
        let refusals = [("refusal_p50", REFUSAL_P50_MS), ("refusal_p99", REFUSAL_P99_MS)];
        for ((name, of), most_ms) in refusals.into_iter().zip(REFUSAL_MS_MAX) {
            if let Some((value, runs)) = ours(of) {
                all.push(Figure::at_most(id(name), value, "ms", most_ms).over(&runs));
            }
        }
        if let Some((_, runs)) = ours(STARTED_LATE) {
            all.push(Figure::at_most(id("started_past_deadline"), runs.iter().sum(), "images", 0.0).over(&runs));
        }
        if let Some((value, runs, best)) = self.over_best(PSS_MB, false) {
            all.push(Figure::at_most(id("pss_over_best"), value, "ratio", PSS_MAX).over(&runs).noted(best));
        }
        if let Some((value, runs)) = ours(READY_S) {
            all.push(Figure::at_most(id("start_to_first_answer"), value, "s", READY_S_MAX).over(&runs));
        }
        all.extend(self.figures_of_ours(id));
        all
    }

    /// What is measured of this project's server alone.
    fn figures_of_ours(&self, id: impl Fn(&str) -> String) -> Vec<Figure> {
        let hits = |of: fn(&Hits) -> f64| self.hits.iter().map(of).collect::<Vec<_>>();
        let waste = |of: fn(&Waste) -> f64| self.waste.iter().map(of).collect::<Vec<_>>();
        let mut all = Vec::new();
        let within = hits(|hits| hits.within);
        if let Some(value) = median(&within) {
            let note =
                format!("{} hits, by the server's clock", self.hits.iter().map(|hits| hits.count).sum::<usize>());
            let figure = Figure::at_least(id("cache_hits_within_1_ms"), value, "ratio", HITS_WITHIN_MIN);
            all.push(figure.over(&within).noted(note));
        }
        for (name, unit, values) in [
            ("cache_hit_client_p99", "ms", hits(|hits| hits.p99_ms)),
            ("cache_hit_client_p99_of_nginx", "ms", hits(|hits| hits.discarded_p99_ms)),
            ("cache_hit_utilisation", "ratio", hits(|hits| hits.utilisation)),
        ] {
            all.extend(median(&values).map(|value| Figure::reported(id(name), value, unit).over(&values)));
        }
        let (repeated, left) = (waste(|waste| waste.repeated), waste(|waste| waste.left_ratio));
        if let Some(value) = median(&left) {
            let (all_repeated, goal) = (repeated.iter().sum(), Waste::LEFT_RATIO_MAX);
            let figure = Figure::at_most(id("inferences_of_pictures_in_work"), all_repeated, "images", 0.0);
            all.push(figure.over(&repeated));
            all.push(Figure::at_most(id("inferences_for_left_callers"), value, "ratio", goal).over(&left));
        }
        all
    }
}

/// Half of the 95 % interval of the values' mean: 2.2 standard errors, Student's t at the eleven degrees of freedom of
/// twelve values.
fn half_interval(values: &[f64]) -> f64 {
    let count: f64 = values.iter().map(|_| 1.0).sum();
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    2.2 * (squares / (count - 1.0).max(1.0) / count).sqrt()
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    let upper = *sorted.get(half)?;
    if sorted.len() % 2 == 1 { Some(upper) } else { Some(f64::midpoint(*sorted.get(half - 1)?, upper)) }
}

fn spread(values: &[f64]) -> Option<Spread> {
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Some(Spread { median: median(values)?, min, max })
}

/// Prints the figures; writes them and, of turns that were taken, `peers-<side>.json`, the rows of the table.
///
/// # Errors
/// If a file cannot be written.
pub fn write(site: &Site, measured: &Measured) -> anyhow::Result<()> {
    let folder = site.target.join("figures");
    let mut all = measured.figures(site.side_px);
    print!("{}", figures::table(&all));
    figures::add("peers", HOW, &mut all)?; // beside those of another input size
    if measured.turns.is_empty() {
        return Ok(()); // only the server alone was measured: the table stays
    }
    let rows = measured.turns.keys().map(|contender| measured.row(*contender)).collect();
    let (ceiling, duel) = (spread(&measured.ceiling), measured.duel_ratios());
    let report = Report { side_px: site.side_px, ceiling, duel, rows };
    let path = folder.join(format!("peers-{}.json", site.side_px));
    let text = serde_json::to_string_pretty(&report)? + "\n";
    std::fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Closed;

    fn turn(rate: f64, pss_mb: f64) -> Turn {
        let closed = Closed { rate, p99_ms: 1.0 };
        Turn { ready_s: 0.5, agreement: 1.0, closed, pss_mb, foreign_cores: 0.0, overload: None, started_late: 0.0 }
    }

    /// The machine slows to half in round 2 and everybody with it: ratios must not notice.
    #[test]
    fn ratios_are_taken_within_a_round_against_the_best_peer() {
        let mut measured = Measured::default();
        for (round, slow) in [1.0, 0.5, 1.0].into_iter().enumerate() {
            measured.add(Contender::Ours, round, (turn(38.0 * slow, 150.0), 40.0 * slow));
            measured.add(Contender::Mosec, round, (turn(36.0 * slow, 500.0), 40.0 * slow));
            measured.add(Contender::Ray, round, (turn(20.0 * slow, 400.0), 40.0 * slow));
        }
        let peer = measured.fastest_peer().unwrap();
        let slices = [1.0, 0.5, 1.0].map(|slow| Slices {
            ours: 38.0 * slow,
            peer: 36.0 * slow,
            ceiling: 40.0 * slow,
            foreign_cores: 0.0,
        });
        measured.duel = Some((peer, slices.to_vec()));
        let figures = measured.figures(640);
        let of = |id: &str| figures.iter().find(|figure| figure.id == id).unwrap();
        let rate = of("peers_640_rate_over_best");
        assert!((rate.value - 38.0 / 36.0).abs() < 1e-9 && (rate.max - rate.min) < 1e-9, "{rate:?}");
        assert_eq!((rate.note.as_str(), rate.runs, rate.met), ("mosec, ± 0.000 (95 %)", 3, true));
        assert!((of("peers_640_of_ceiling").value - 0.95).abs() < 1e-9);
        assert!(!of("peers_640_of_ceiling").met);
        // Another peer may be the best in another discipline.
        assert_eq!(of("peers_640_pss_over_best").note, "ray");
    }
}
