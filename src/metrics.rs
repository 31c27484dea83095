//! Every series of the operator itself: name, unit, labels and their bound.
//!
//! Prefix `yolo_operator_`; base units; labels are words of the code (closed sets), never an object's name, so that the
//! number of series does not grow with the cluster: about 150 in all.

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use yolo_planner::observation::Signal;

type Label = [(&'static str, &'static str); 1];

/// The operator's series, and the registry that writes them out.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Written by the sampler.
    pub sampler: SamplerMetrics,
    reconcile_seconds: Histogram,
    reconciles: Family<Label, Counter>,
    writes: Family<Write, Counter>,
    decisions: Family<Label, Counter>,
    leader: Gauge,
}

/// The sampler's series.
#[derive(Debug)]
pub struct SamplerMetrics {
    round_seconds: Histogram,
    errors: Family<Label, Counter>,
    pods: Family<State, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Write {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: PodState,
}

/// What the sampler knows of a ready pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum PodState {
    /// A fresh sample.
    Live,
    /// An old one.
    Stale,
    /// None.
    NoData,
}

impl PodState {
    /// All of them.
    const ALL: [Self; 3] = [Self::Live, Self::Stale, Self::NoData];

    /// The state that `signal` is in.
    pub const fn of<T>(signal: &Signal<T>) -> Self {
        match signal {
            Signal::Live { .. } => Self::Live,
            Signal::Stale { .. } => Self::Stale,
            Signal::NoData(_) => Self::NoData,
        }
    }
}

impl Metrics {
    /// All series, at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("yolo_operator");
        registry.register("build", "The program's version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let metrics = Self {
            sampler: SamplerMetrics::new(&mut registry),
            reconcile_seconds: Histogram::new(duration_edges_s()),
            reconciles: Family::default(),
            writes: Family::default(),
            decisions: Family::default(),
            leader: Gauge::default(),
            registry: Registry::default(),
        };
        let (seconds, reconcile) = (Unit::Seconds, metrics.reconcile_seconds.clone());
        registry.register_with_unit("reconcile_duration", "Time of one reconcile", seconds, reconcile);
        registry.register(
            "reconciles",
            "Reconciles by outcome: ok, or the error's category",
            metrics.reconciles.clone(),
        );
        registry.register("api_writes", "Writes to the Kubernetes API by kind and outcome", metrics.writes.clone());
        registry.register("decisions", "Changes of a knob by trigger", metrics.decisions.clone());
        registry.register("leader", "1 while this process holds the lease", metrics.leader.clone());
        Self { registry, ..metrics }
    }

    /// One reconcile ended. `outcome`: `ok` or an error's category.
    pub fn reconciled(&self, duration_s: f64, outcome: &'static str) {
        self.reconcile_seconds.observe(duration_s);
        self.reconciles.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// One write to the Kubernetes API ended. `kind`: of the object; `outcome`: `ok` or an error's category.
    pub fn wrote(&self, kind: &'static str, outcome: &'static str) {
        self.writes.get_or_create(&Write { kind, outcome }).inc();
    }

    /// One decision moved a knob. `trigger`: the planner's word for what caused it.
    pub fn decided(&self, trigger: &'static str) {
        self.decisions.get_or_create(&[("trigger", trigger)]).inc();
    }

    /// Leadership was won or lost.
    pub fn lead(&self, leading: bool) {
        self.leader.set(i64::from(leading));
    }

    /// All series as OpenMetrics text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail, and no family is native-only, which this format could not express.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl SamplerMetrics {
    fn new(registry: &mut Registry) -> Self {
        let round_seconds = Histogram::new(duration_edges_s());
        let (errors, pods) = (Family::default(), Family::default());
        let (help, unit) = ("Time to read all pods once and publish the snapshots", Unit::Seconds);
        registry.register_with_unit("sampler_round_duration", help, unit, round_seconds.clone());
        registry.register("sampler_errors", "Readings of ready pods that failed, by reason", errors.clone());
        registry.register("sampler_pods", "Ready pods by the state of their sample", pods.clone());
        Self { round_seconds, errors, pods }
    }

    /// One round ended, after which the ready pods were in these states.
    pub(crate) fn round(&self, duration_s: f64, ready: &[PodState]) {
        self.round_seconds.observe(duration_s);
        for state in PodState::ALL {
            let count = ready.iter().filter(|one| **one == state).count();
            self.pods.get_or_create(&State { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// One reading of a ready pod failed. `reason`: the error's.
    pub(crate) fn failed(&self, reason: &'static str) {
        self.errors.get_or_create(&[("reason", reason)]).inc();
    }
}

/// 1 ms to 33 s, doubling: a reconcile from memory and one at its limit of 30 s both lie inside.
fn duration_edges_s() -> impl Iterator<Item = f64> {
    exponential_buckets(0.001, 2.0, 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_have_prefix_unit_and_total() {
        let metrics = Metrics::new();
        metrics.reconciled(0.003, "ok");
        metrics.wrote("Deployment", "apply_conflict");
        metrics.decided("load");
        metrics.lead(true);
        metrics.sampler.round(0.2, &[PodState::Live, PodState::Live, PodState::Stale]);
        metrics.sampler.failed("timeout");
        let text = metrics.text();
        for line in [
            r#"yolo_operator_reconcile_duration_seconds_bucket{le="0.004"} 1"#,
            r#"yolo_operator_reconciles_total{outcome="ok"} 1"#,
            r#"yolo_operator_api_writes_total{kind="Deployment",outcome="apply_conflict"} 1"#,
            r#"yolo_operator_decisions_total{trigger="load"} 1"#,
            "yolo_operator_leader 1",
            r#"yolo_operator_sampler_pods{state="Live"} 2"#,
            r#"yolo_operator_sampler_pods{state="NoData"} 0"#,
            r#"yolo_operator_sampler_errors_total{reason="timeout"} 1"#,
            "# EOF",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is not in\n{text}");
        }
    }
}
