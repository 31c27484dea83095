//! Every series of the operator itself: name, unit, labels and their bound.
//!
//! Prefix `yolo_operator_`; base units; labels are words of the code (closed sets), never an object's name, so that the
//! number of series does not grow with the cluster: about 250 in all. docs/operator-metrics.md lists them; a test holds both to
//! each other.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use yolo_planner::observation::{Pod, Signal};
use yolo_planner::units::Timestamp;

type Label = [(&'static str, &'static str); 1];

/// The operator's series, and the registry that writes them out.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Written by the sampler.
    pub sampler: SamplerMetrics,
    reconcile_seconds: Histogram,
    reconciles: Family<Label, Counter>,
    wait_seconds: Histogram,
    waiting: Gauge,
    converge_seconds: Histogram,
    writes: Family<Call, Counter>,
    reads: Family<Call, Counter>,
    decisions: Family<Label, Counter>,
    leader: Gauge,
}

/// The sampler's series.
#[derive(Debug)]
pub struct SamplerMetrics {
    round_seconds: Histogram,
    round_end: Gauge<f64, AtomicU64>,
    age_seconds: Histogram,
    errors: Family<Label, Counter>,
    pods: Family<State, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
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
            wait_seconds: Histogram::new(duration_edges_s()),
            waiting: Gauge::default(),
            converge_seconds: Histogram::new(exponential_buckets(1.0, 2.0, 13)),
            writes: Family::default(),
            reads: Family::default(),
            decisions: Family::default(),
            leader: Gauge::default(),
            registry: Registry::default(),
        };
        for (name, help, histogram) in [
            ("reconcile_duration", "Time of one reconcile", &metrics.reconcile_seconds),
            ("reconcile_wait", "Time from what woke a service to its reconcile", &metrics.wait_seconds),
            ("converge", "Time from the first change to everything in place", &metrics.converge_seconds),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        registry.register("reconciles_waiting", "Services that wait for a reconcile", metrics.waiting.clone());
        registry.register(
            "reconciles",
            "Reconciles by outcome: ok, or the error's category",
            metrics.reconciles.clone(),
        );
        registry.register("api_writes", "Writes to the Kubernetes API by kind and outcome", metrics.writes.clone());
        registry.register("api_reads", "Single reads of the Kubernetes API, watches apart", metrics.reads.clone());
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
        self.writes.get_or_create(&Call { kind, outcome }).inc();
    }

    /// One read of the Kubernetes API ended; as [`Self::wrote`].
    pub fn read(&self, kind: &'static str, outcome: &'static str) {
        self.reads.get_or_create(&Call { kind, outcome }).inc();
    }

    /// So many services wait for a reconcile.
    pub fn waiting(&self, services: usize) {
        self.waiting.set(i64::try_from(services).unwrap_or(i64::MAX));
    }

    /// A service was taken up; what [`Queue::taken`](crate::queue::Queue::taken) returned.
    pub fn taken(&self, (services, waited): (usize, Option<Duration>)) {
        self.waiting(services);
        if let Some(waited) = waited {
            self.wait_seconds.observe(waited.as_secs_f64());
        }
    }

    /// Everything is in place, so long after something began to change.
    pub fn converged(&self, duration_s: f64) {
        self.converge_seconds.observe(duration_s);
    }

    /// One decision moved a knob. `trigger`: the planner's word for what caused it.
    pub fn decided(&self, trigger: &'static str) {
        self.decisions.get_or_create(&[("trigger", trigger)]).inc();
    }

    /// Leadership was won or lost. What waited, and what was sampled, is the successor's from then on.
    pub fn lead(&self, leading: bool) {
        self.leader.set(i64::from(leading));
        if !leading {
            self.waiting(0);
            self.sampler.ended();
        }
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
        let (round_end, age_seconds) = (Gauge::default(), Histogram::new(exponential_buckets(0.5, 2.0, 11)));
        let help = "Time to read all pods once and publish the snapshots";
        registry.register_with_unit("sampler_round_duration", help, Unit::Seconds, round_seconds.clone());
        let help = "When the last round ended, in seconds since 1970; 0 before the first";
        registry.register_with_unit("sampler_round_end_timestamp", help, Unit::Seconds, round_end.clone());
        let help = "Age of the oldest usable sample that a reconcile decided on";
        registry.register_with_unit("sample_age", help, Unit::Seconds, age_seconds.clone());
        registry.register("sampler_errors", "Readings of ready pods that failed, by reason", errors.clone());
        registry.register("sampler_pods", "Ready pods by the state of their sample", pods.clone());
        Self { round_seconds, round_end, age_seconds, errors, pods }
    }

    /// One round ended at `end`, after which the ready pods were in these states.
    pub(crate) fn round(&self, duration_s: f64, end: Timestamp, ready: &[PodState]) {
        self.round_seconds.observe(duration_s);
        self.round_end.set(end.get());
        for state in PodState::ALL {
            let count = ready.iter().filter(|one| **one == state).count();
            self.pods.get_or_create(&State { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Nothing is sampled any more.
    fn ended(&self) {
        for state in PodState::ALL {
            self.pods.get_or_create(&State { state }).set(0);
        }
    }

    /// A reconcile decided on `pods`.
    pub(crate) fn decided_on(&self, pods: &[Pod]) {
        let ages = pods.iter().filter_map(|pod| match &pod.sample {
            Signal::Live { age, .. } => Some(age.get()),
            Signal::Stale { .. } | Signal::NoData(_) => None,
        });
        if let Some(oldest_s) = ages.max_by(f64::total_cmp) {
            self.age_seconds.observe(oldest_s);
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
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// Each series has occurred.
    fn all() -> Metrics {
        let metrics = Metrics::new();
        metrics.reconciled(0.003, "ok");
        metrics.read("Deployment", "ok");
        metrics.taken((3, Some(Duration::from_millis(3))));
        metrics.converged(20.0);
        metrics.wrote("Deployment", "conflict");
        metrics.decided("load");
        metrics.lead(true);
        metrics.sampler.round(0.2, Timestamp::whole(100), &[PodState::Live, PodState::Live, PodState::Stale]);
        metrics.sampler.failed("timeout");
        metrics
    }

    #[test]
    fn series_have_prefix_unit_and_total() {
        let text = all().text();
        for line in [
            r#"yolo_operator_reconcile_duration_seconds_bucket{le="0.004"} 1"#,
            r#"yolo_operator_reconciles_total{outcome="ok"} 1"#,
            r#"yolo_operator_api_writes_total{kind="Deployment",outcome="conflict"} 1"#,
            r#"yolo_operator_decisions_total{trigger="load"} 1"#,
            "yolo_operator_leader 1",
            "yolo_operator_reconciles_waiting 3",
            r#"yolo_operator_reconcile_wait_seconds_bucket{le="0.004"} 1"#,
            r#"yolo_operator_converge_seconds_bucket{le="32.0"} 1"#,
            r#"yolo_operator_api_reads_total{kind="Deployment",outcome="ok"} 1"#,
            "yolo_operator_sampler_round_end_timestamp_seconds 100.0",
            r#"yolo_operator_sampler_pods{state="Live"} 2"#,
            r#"yolo_operator_sampler_pods{state="NoData"} 0"#,
            r#"yolo_operator_sampler_errors_total{reason="timeout"} 1"#,
            "# EOF",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn who_has_lost_the_lease_has_nothing_that_waits_and_no_pods() {
        let metrics = all();
        metrics.lead(false);
        let text = metrics.text();
        for line in [
            "yolo_operator_leader 0",
            "yolo_operator_reconciles_waiting 0",
            r#"yolo_operator_sampler_pods{state="Live"} 0"#,
            r#"yolo_operator_sampler_pods{state="Stale"} 0"#,
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is not in\n{text}");
        }
    }

    /// Name, type and labels of each series in docs/operator-metrics.md.
    fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
        let page = include_str!("../docs/operator-metrics.md");
        let rows = page.lines().filter(|line| line.starts_with("| `"));
        rows.map(|row| {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let label =
                |label: &str| label.split_once('=').map_or(label, |(name, _)| name).trim_matches('`').to_owned();
            let labels = cells[3].split_whitespace().map(label).collect();
            (cells[1].trim_matches('`').to_owned(), (cells[2].to_owned(), labels))
        })
        .collect()
    }

    /// The same of an exposition.
    fn exposed(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        types
            .map(|(family, kind)| {
                let suffix = match kind {
                    "counter" => "_total",
                    "info" => "_info",
                    _ => "",
                };
                let samples = text.lines().filter(|line| line.starts_with(family)).filter_map(|line| {
                    let (name, labels) = line.split_once('{')?;
                    let ours = ["", suffix, "_bucket"].iter().any(|end| name.strip_prefix(family) == Some(end));
                    ours.then(|| labels.split_once('}').unwrap().0)
                });
                let pairs = samples.flat_map(|labels| labels.split(',')).filter_map(|pair| pair.split_once('='));
                let labels = pairs.map(|(name, _)| name.to_owned()).filter(|name| name != "le").collect();
                (format!("{family}{suffix}"), (kind.to_owned(), labels))
            })
            .collect()
    }

    #[test]
    fn documented_series_are_the_exposed_ones() {
        assert_eq!(documented(), exposed(&all().text()));
    }
}
