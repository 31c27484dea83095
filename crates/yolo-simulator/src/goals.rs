//! The goals of control.md §11 that a simulation can judge, from the rows of the comparison.

use crate::campaign::{Place, Row};
use crate::contestant::Contestant::{Clairvoyant, Duty, Planner, StaticPeak};
use crate::figure::also;
use crate::figures::Figure;
use crate::programme::{KEDA_BEST, KEDA_SWEEP, Size};
use crate::stats::Mean;
use crate::trace::Kind;
use crate::variation::Variation;

/// A KEDA setting counts as equal in violations up to so many points of bad windows more than ours.
const EQUAL_POINTS: f64 = 0.1;

/// The rows, to look up.
struct Rows<'a>(&'a [Row]);

impl Rows<'_> {
    fn find(&self, place: &Place, contestant: crate::contestant::Contestant) -> Option<&Row> {
        let (place, contestant) = (place.name(), contestant.name());
        self.0.iter().find(|row| row.place == place && row.contestant == contestant)
    }

    /// What the clairvoyant's cost is worth: it starts pods in time, but queues as everybody does.
    fn oracle(&self, place: &Place) -> String {
        let bad = self
            .find(place, Clairvoyant)
            .map_or_else(|| "not measured".to_owned(), |row| row.bad_windows_percent.text(2));
        format!("the clairvoyant's bad windows, %: {bad}")
    }
}

/// Figures of the goals G1–G5 and G8; a goal whose rows were not measured has none. `ablations` hold the rows without
/// metrics.
pub fn judge(size: &Size, (rows, ablations): (&[Row], &[Row])) -> Vec<Figure> {
    let rows = Rows(rows);
    let mut figures = Vec::new();
    smooth(size, &rows, &mut figures);
    bursts(size, &rows, &mut figures);
    steps(size, &rows, &mut figures);
    savings(size, &rows, &mut figures);
    calm(size, &rows, &mut figures);
    blind(ablations, &mut figures);
    figures
}

/// G1.
fn smooth(size: &Size, rows: &Rows<'_>, figures: &mut Vec<Figure>) {
    for (kind, limit) in [(Kind::Diurnal, 1.08), (Kind::Ramp, 1.10)] {
        let Some(ours) = rows.find(&size.gpu(kind), Planner) else { continue };
        let name = kind.name();
        let note = rows.oracle(&size.gpu(kind));
        figures.push(also(ours.cost.at_most(&format!("G1_{name}_cost"), "× oracle", limit), &note));
        figures.push(ours.bad_windows_percent.at_most(&format!("G1_{name}_bad_windows"), "%", 0.1));
    }
}

/// G2.
fn bursts(size: &Size, rows: &Rows<'_>, figures: &mut Vec<Figure>) {
    for (startup_s, cost, windows) in [(30.0, 1.15, 1.0), (10.0, 1.10, 0.7)] {
        let Some(ours) = rows.find(&size.gpu_start(Kind::TwitterLike, startup_s), Planner) else { continue };
        let id = |what: &str| format!("G2_twitter_L{startup_s:.0}_{what}");
        let note = rows.oracle(&size.gpu_start(Kind::TwitterLike, startup_s));
        figures.push(also(ours.cost.at_most(&id("cost"), "× oracle", cost), &note));
        figures.push(ours.bad_windows_percent.at_most(&id("bad_windows"), "%", windows));
        if startup_s > 10.0 {
            figures.push(ours.late_requests_percent.at_most(&id("late_requests"), "%", 0.7));
        }
    }
}

/// G3.
fn steps(size: &Size, rows: &Rows<'_>, figures: &mut Vec<Figure>) {
    for startup_s in [10.0, 30.0, 60.0] {
        let Some(ours) = rows.find(&size.gpu_start(Kind::Step(4), startup_s), Planner) else { continue };
        let id = format!("G3_step4_L{startup_s:.0}_recovery");
        figures.push(ours.recovery_s.at_most(&id, "s", startup_s + 15.0));
    }
    let Some(crowd) = rows.find(&size.gpu(Kind::Step(10)), Planner) else { return };
    figures.push(crowd.overshoot.at_most("G3_step10_overshoot", "× final", 1.3));
    // The target of every world (World::new), which p95 must keep in each minute, not on average over the run.
    figures.push(also(
        crowd.worst_p95_ms.at_most("G3_step10_admitted_p95", "ms", 200.0),
        "of the answers of the worst minute from the step on",
    ));
}

/// Percent that `ours` costs less than `other`, seed by seed.
fn saving(ours: &Mean, other: &Mean) -> Mean {
    Mean::of(ours.values.iter().zip(&other.values).map(|(own, other)| 100.0 * (1.0 - own / other)).collect())
}

/// G4 and G5.
fn savings(size: &Size, rows: &Rows<'_>, figures: &mut Vec<Figure>) {
    for (place, goal) in [
        (size.gpu(Kind::Diurnal), 65.0),
        (size.gpu(Kind::TwitterLike), 65.0),
        (size.gpu(Kind::Mmpp), 65.0),
        (size.cpu(Kind::Diurnal), 20.0),
        (size.cpu(Kind::TwitterLike), 20.0),
    ] {
        let Some((ours, duty)) = rows.find(&place, Planner).zip(rows.find(&place, Duty(70))) else { continue };
        let id = format!("G4_{}_{}_under_hpa_duty_70", place.service.name, place.load.name());
        figures.push(saving(&ours.cost, &duty.cost).at_least(&id, "%", goal));
    }
    for kind in [Kind::TwitterLike, Kind::Spike, Kind::Mmpp] {
        figures.extend(under_keda(size, rows, kind));
    }
    for kind in [Kind::Diurnal, Kind::Ramp] {
        let place = size.gpu(kind);
        let Some((ours, keda)) = rows.find(&place, Planner).zip(rows.find(&place, KEDA_BEST)) else { continue };
        let over = Mean::of(saving(&ours.cost, &keda.cost).values.iter().map(|percent| -percent).collect());
        let id = format!("G4_{}_over_keda_best", kind.name());
        let note = format!("its bad windows: {} %", keda.bad_windows_percent.text(2));
        figures.push(also(over.at_most(&id, "%", 3.0), &note));
    }
    let place = size.gpu(Kind::Mmpp);
    let Some((ours, peak)) = rows.find(&place, Planner).zip(rows.find(&place, StaticPeak(100))) else { return };
    figures.push(ours.bad_windows_percent.at_most("G5_mmpp_bad_windows", "%", 2.0));
    let ratio = ours.cost.values.iter().zip(&peak.cost.values).map(|(own, peak)| own / peak);
    figures.push(Mean::of(ratio.collect()).at_most("G5_mmpp_cost", "× static", 1.0));
}

/// What KEDA costs at as many violations as ours.
struct Rival {
    cost: Mean,
    note: String,
    /// Whether its violations are as many as ours, or fewer.
    equal: bool,
}

impl Rival {
    fn of(setting: &Row, equal: bool) -> Self {
        Self { cost: setting.cost.clone(), note: told(setting), equal }
    }

    /// A setting between two, as far from the first one as `ours`, percent of bad windows, are.
    fn between((fewer, more): (&Row, &Row), ours: f64) -> Self {
        let share = (ours - bad(fewer)) / (bad(more) - bad(fewer));
        let cost = |(fewer, more): (&f64, &f64)| fewer + share * (more - fewer);
        let cost = Mean::of(fewer.cost.values.iter().zip(&more.cost.values).map(cost).collect());
        Self { note: format!("between {} and {}: {:.3}", told(fewer), told(more), cost.mean), cost, equal: true }
    }
}

fn bad(row: &Row) -> f64 {
    row.bad_windows_percent.mean
}

fn told(row: &Row) -> String {
    format!("{} costs {:.3} with {:.2} % bad windows", row.contestant, row.cost.mean, bad(row))
}

/// The cheapest of KEDA's settings that have as few violations as `ours`, percent of bad windows, or one between the two
/// that straddle them if that is cheaper: a setting is a number that anybody may turn. Without any that has as few, the
/// cheapest of those with fewest.
fn rival(settings: &[&Row], ours: f64) -> Option<Rival> {
    let by_cost = |a: &&Row, b: &&Row| a.cost.mean.total_cmp(&b.cost.mean);
    let cheapest = |most: f64| settings.iter().copied().filter(|row| bad(row) <= most).min_by(by_cost);
    let Some(as_few) = cheapest(ours + EQUAL_POINTS) else {
        let least = settings.iter().map(|row| bad(row)).min_by(f64::total_cmp)?;
        return cheapest(least + EQUAL_POINTS).map(|fewest| Rival::of(fewest, false));
    };
    let straddling = cheapest(ours).and_then(|fewer| {
        let cheaper = settings.iter().copied().filter(|row| bad(row) > ours && row.cost.mean < fewer.cost.mean);
        let more = cheaper.min_by(|a, b| bad(a).total_cmp(&bad(b)).then_with(|| by_cost(a, b)))?;
        Some(Rival::between((fewer, more), ours))
    });
    straddling.filter(|rival| rival.cost.mean < as_few.cost.mean).or_else(|| Some(Rival::of(as_few, true)))
}

/// Against KEDA at equal violations. Where none of its settings has as few as ours the costs are shown, not judged.
fn under_keda(size: &Size, rows: &Rows<'_>, kind: Kind) -> Option<Figure> {
    let place = size.gpu(kind);
    let ours = rows.find(&place, Planner)?;
    let settings: Vec<&Row> = KEDA_SWEEP.iter().filter_map(|keda| rows.find(&place, *keda)).collect();
    let keda = rival(&settings, bad(ours))?;
    let id = format!("G4_{}_under_keda_at_equal_violations", kind.name());
    let (saved, note) = (saving(&ours.cost, &keda.cost), format!("{}; {}", keda.note, told(ours)));
    Some(if keda.equal {
        also(saved.at_least(&id, "%", 8.0), &note)
    } else {
        also(saved.reported(&id, "%"), &format!("violations are not equal, no setting has as few as ours: {note}"))
    })
}

/// G8.
fn calm(size: &Size, rows: &Rows<'_>, figures: &mut Vec<Figure>) {
    let Some(ours) = rows.find(&size.gpu(Kind::Diurnal), Planner) else { return };
    figures.push(ours.changes_an_hour.at_most("G8_diurnal_changes", "per hour", 4.0));
    figures.push(ours.reversals_an_hour.at_most("G8_diurnal_reversals", "per hour", 1.0));
}

/// G8 where there is something to be blind to.
fn blind(ablations: &[Row], figures: &mut Vec<Figure>) {
    let outage = Variation::Outage.name();
    let Some(row) = ablations.iter().find(|row| row.contestant.ends_with(&outage)) else { return };
    let downs = Mean::of(vec![row.blind_downs]);
    figures.push(also(downs.at_most("G8_scale_downs_without_data", "orders", 0.0), &outage));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestant::Contestant;

    fn row(place: &Place, contestant: Contestant, cost: f64, bad: f64) -> Row {
        let mean = |value: f64| Mean::of(vec![value]);
        Row {
            place: place.name(),
            contestant: contestant.name(),
            cost: mean(cost),
            pod_hours: mean(0.0),
            bad_windows_percent: mean(bad),
            late_requests_percent: mean(0.0),
            recovery_s: mean(40.0),
            worst_p95_ms: mean(150.0),
            overshoot: mean(1.0),
            changes_an_hour: mean(5.0),
            reversals_an_hour: mean(0.0),
            rho_eff: mean(0.9),
            blind_downs: 0.0,
        }
    }

    fn figure<'a>(figures: &'a [Figure], id: &str) -> &'a Figure {
        figures.iter().find(|figure| figure.id == id).unwrap()
    }

    #[test]
    fn goals_are_judged_on_the_rows_of_their_place() {
        let size = Size { seeds: 1, scale: 1.0 };
        let (day, step, crowd) = (size.gpu(Kind::Diurnal), size.gpu(Kind::Step(4)), size.gpu(Kind::Step(10)));
        let slow = Row { worst_p95_ms: Mean::of(vec![210.0]), ..row(&crowd, Planner, 1.0, 0.0) };
        let rows = [row(&day, Planner, 1.05, 0.2), row(&day, KEDA_BEST, 1.0, 0.0), row(&step, Planner, 1.0, 0.0), slow];
        let figures = judge(&size, (&rows, &[]));
        assert!(figure(&figures, "G1_diurnal_cost").met);
        assert!(!figure(&figures, "G1_diurnal_bad_windows").met);
        assert!(!figure(&figures, "G4_diurnal_over_keda_best").met, "5 % over");
        assert!(figure(&figures, "G3_step4_L30_recovery").met, "40 s of 45");
        assert!(!figure(&figures, "G3_step10_admitted_p95").met, "210 ms of 200");
        assert!(!figure(&figures, "G8_diurnal_changes").met);
        assert!(figures.iter().all(|figure| !figure.id.starts_with("G2")));
    }

    #[test]
    fn blindness_is_judged_where_metrics_were_missing_only() {
        let size = Size { seeds: 1, scale: 1.0 };
        let place = size.gpu(Kind::TwitterLike);
        let usual = Row { blind_downs: 7.0, ..row(&place, Planner, 1.0, 0.0) };
        let name = format!("{}, {}", Planner.name(), Variation::Outage.name());
        let outage = Row { contestant: name, blind_downs: 1.0, ..row(&place, Planner, 1.0, 0.0) };
        let id = "G8_scale_downs_without_data";
        let figures = judge(&size, (&[], &[usual.clone(), outage]));
        assert!((figure(&figures, id).value - 1.0).abs() < 1e-9 && !figure(&figures, id).met);
        assert!(judge(&size, (&[], &[usual])).iter().all(|figure| figure.id != id));
    }

    /// The figure against KEDA's first settings, each a cost and its bad windows; our cost is 1.
    fn against_keda(ours: f64, settings: &[(f64, f64)]) -> Figure {
        let size = Size { seeds: 1, scale: 1.0 };
        let place = size.gpu(Kind::Spike);
        let mut rows = vec![row(&place, Planner, 1.0, ours)];
        rows.extend(KEDA_SWEEP.iter().zip(settings).map(|(keda, (cost, bad))| row(&place, *keda, *cost, *bad)));
        figure(&judge(&size, (&rows, &[])), "G4_spike_under_keda_at_equal_violations").clone()
    }

    #[test]
    fn keda_is_compared_at_equal_violations() {
        let settings = [(2.0, 0.2), (1.5, 0.9), (1.25, 1.05), (1.1, 3.0)];
        let saved = against_keda(1.0, &settings);
        assert!(saved.met && (saved.value - 20.0).abs() < 1e-9, "1.05 % are as few: {saved:?}");
        let saved = against_keda(2.025, &settings);
        assert!((saved.value - 100.0 * (1.0 - 1.0 / 1.175)).abs() < 1e-9, "half way from 1.25 to 1.1: {saved:?}");
        assert!(saved.note.contains("between"), "{}", saved.note);
        let saved = against_keda(5.0, &settings);
        assert!((saved.value - 100.0 * (1.0 - 1.0 / 1.1)).abs() < 1e-9, "nothing beyond the cheapest: {saved:?}");
    }

    #[test]
    fn keda_with_more_violations_at_any_setting_is_shown_by_the_cheapest_and_not_judged() {
        let saved = against_keda(0.85, &[(2.0, 3.4), (1.6, 3.4), (0.8, 3.4), (0.7, 3.6)]);
        assert!((saved.value + 25.0).abs() < 1e-9, "all three are as bad, the cheapest costs 0.8: {saved:?}");
        assert_eq!((saved.goal.as_str(), saved.met), ("reported", true));
        assert!(saved.note.contains("violations are not equal"), "{}", saved.note);
    }
}
