//! From what was seen to figures: what the demo promises (checks) and what it measures.

use super::drive::{Driven, PhaseEnd};
use super::scenario::{Expected, PhaseScript};
use super::timeline;
use crate::figures::Figure;

/// New pods carry their share: standard deviation over mean of the pods' rates.
const VARIATION_MAX: f64 = 0.3;
/// A knob change is applied on all pods within this many seconds, at p95.
const KNOB_CHANGE_S_MAX: f64 = 1.0;

/// The promises: targets met at the end of every phase, and the knobs moved for a stated reason.
pub fn checks(driven: &Driven, phases: &[PhaseScript]) -> Vec<Figure> {
    let met = driven.ends.iter().map(|PhaseEnd { phase, service, met, missed }| {
        let id = format!("{}_{}_targets_met", slug(service), slug(phase));
        Figure::at_least(id, yes(*met), "bool", 1.0).noted(missed.join(", "))
    });
    let expected = phases.iter().flat_map(|phase| phase.expected);
    let moved = expected.filter_map(|Expected { service, change }| {
        let (_, seen) = driven.seen.iter().find(|(name, _)| name == service)?;
        let found = change.find(&seen.status);
        let id = format!("{}_{}", slug(service), change.id());
        let reason = found.map(|change| change.reason.clone()).unwrap_or_default();
        Some(Figure::at_least(id, yes(found.is_some()), "bool", 1.0).noted(reason))
    });
    met.chain(moved).collect()
}

/// The measurements.
pub fn figures(driven: &Driven) -> Vec<Figure> {
    let mut figures = Vec::new();
    for track in &driven.tracks {
        let service = slug(track.service);
        // The start offers only the probe.
        for span in driven.spans.iter().skip(1) {
            let summary = track.recording.summary(span.from, span.until);
            let id = |what: &str| format!("{service}_{}_{what}", slug(span.name));
            figures.push(Figure::reported(id("offered"), summary.offered_per_second, "/s"));
            figures.push(Figure::reported(id("succeeded"), summary.succeeded_per_second, "/s"));
            let endings = summary.endings.iter().map(|(ending, count)| format!("{ending}: {count}"));
            let note = endings.collect::<Vec<_>>().join(", ");
            figures.push(Figure::reported(id("success_ratio"), summary.success_ratio, "ratio").noted(note));
            figures.extend(summary.latency_ms_p95.map(|p95| Figure::reported(id("client_p95"), p95, "ms")));
        }
        let shares = timeline::shares(track);
        let variations: Vec<_> = shares.iter().map(|share| share.variation).collect();
        if let Some(worst) = variations.iter().copied().reduce(f64::max) {
            let pods: Vec<_> = shares.iter().map(|share| share.pods.to_string()).collect();
            let figure = Figure::at_most(format!("{service}_new_pods_rate_variation"), worst, "ratio", VARIATION_MAX);
            figures.push(figure.over(&variations).noted(format!("over {} pods", pods.join(", "))));
        }
    }
    let changes = driven.seen.iter().flat_map(|(_, seen)| &seen.knob_changes);
    let mut delays: Vec<_> = changes.clone().map(|change| change.applied_after.as_secs_f64()).collect();
    delays.sort_by(f64::total_cmp);
    if let Some(p95) = yolo_loadgen::record::quantile(&delays, 0.95) {
        let pods = changes.map(|change| change.pods).max().unwrap_or(0);
        let figure = Figure::at_most("knob_change_applied_p95", p95, "s", KNOB_CHANGE_S_MAX);
        figures.push(figure.over(&delays).noted(format!("on up to {pods} pods")));
    }
    figures
}

fn yes(holds: bool) -> f64 {
    if holds { 1.0 } else { 0.0 }
}

/// A name as part of an id.
fn slug(name: &str) -> String {
    name.replace([' ', '-'], "_")
}
