//! What limits the service, and what would help by how much (control.md §9).
//!
//! A finding counts once it has held in three windows of 60 s running: what the planner mends by itself, or what a
//! moment brings, is no bottleneck. Findings come in the order of the table of control.md §9, with one exception: that
//! pods are short comes after what makes each of them slow, if they were not short without it.

mod batch;
mod cache;
mod capacity;
mod cpu;
mod device;
mod minute;
mod service;

use serde::{Deserialize, Serialize};

use crate::capacity::{Model, PodRate};
use crate::choose::Choice;
use crate::explain::{Advice, AdviceId, Bottleneck, BottleneckKind, Evidence, Severity};
use crate::intake::Seen;
use crate::normal;
use crate::observation::{Knobs, Observation};
use crate::policy::{LatencyTarget, Policy, Routing};
use crate::state::State;
use crate::units::{Ratio, Timestamp};

use minute::{Minute, Watch};

/// Windows running in which a finding must hold (control.md §9).
const WINDOWS: usize = 3;
/// Findings shown (control.md §9).
const SHOWN: usize = 2;
/// Error of a figure where it scatters less than that over its windows, as a share of it: counters of one minute and
/// learned models are no better.
const ERROR_MIN: f64 = 0.05;
/// Batch sizes that are compared: those of the optimiser.
const BATCHES: [u32; 8] = [1, 2, 4, 8, 12, 16, 24, 32];
/// A smaller batch that carries this share of the best is as good (control.md §9, `BatchTooLarge`).
const AS_GOOD: f64 = 0.98;

/// What a diagnosis remembers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Diagnosis {
    pub(crate) watch: Watch,
    /// Kinds that held in the last closed window, and by how much in each of up to three windows running.
    running: Vec<(BottleneckKind, Vec<f64>)>,
}

/// What a diagnosis looks at.
#[derive(Clone, Copy)]
pub(crate) struct Case<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) observation: &'a Observation,
    pub(crate) state: &'a State,
    pub(crate) seen: &'a Seen,
    /// The last closed window.
    pub(crate) minute: &'a Minute,
    pub(crate) model: &'a Model,
    pub(crate) choice: Option<&'a Choice>,
    /// Images/s that reach the engines.
    pub(crate) engine_rate: f64,
    /// Share of the images that the cache surely answers.
    pub(crate) hit_ratio: f64,
    /// Images/s that arrive now.
    pub(crate) level: f64,
    /// Mean response time and the part of it outside queue and engine, seconds.
    pub(crate) latency_s: f64,
    pub(crate) overhead_s: f64,
    /// The API target is missed.
    pub(crate) late: bool,
    pub(crate) startup_s: f64,
    pub(crate) now: Timestamp,
}

impl Case<'_> {
    fn knobs(&self) -> &Knobs {
        &self.observation.current
    }

    /// The present batch size, as far as the curve reaches.
    fn batch(&self) -> u32 {
        self.knobs().max_batch_size.get().min(self.model.times.largest())
    }

    fn pods(&self) -> f64 {
        f64::from(self.seen.ready)
    }

    /// What one of the ready pods carries with batches up to `batch`; without a latency target that it could meet, what
    /// it can do at all.
    fn pod(&self, batch: u32) -> Option<PodRate> {
        let within = self.model.pod(batch, self.seen.ready).filter(|pod| pod.carried > 0.0);
        within.or_else(|| self.model.pod_regardless_of_latency(batch))
    }

    /// What the ready pods carry together now.
    fn carried(&self) -> Option<f64> {
        self.pod(self.batch()).map(|pod| pod.carried * self.pods())
    }

    /// Whether batches of `size` keep the inference target.
    fn quick(&self, size: u32) -> bool {
        let target = self.policy.targets.inference;
        target.is_none_or(|target| self.model.times.upper(size, target.at()).is_some_and(|s| s <= target.limit_s()))
    }

    /// Images/s that a pod carries within the targets, by known batch size within the inference threshold; without a
    /// size that meets the API target, what each can do at all.
    fn batches(&self) -> Vec<(u32, f64)> {
        let (largest, now) = (self.model.times.largest(), self.batch());
        let mut sizes: Vec<u32> = BATCHES.into_iter().chain([largest, now]).collect();
        sizes.retain(|size| (1..=largest).contains(size) && ([1, now].contains(size) || self.quick(*size)));
        sizes.sort_unstable();
        sizes.dedup();
        let within = |size: u32| self.model.pod(size, self.seen.ready).map(|pod| pod.carried);
        let at_all = |size: u32| self.model.pod_regardless_of_latency(size).map(|pod| pod.carried);
        let met = sizes.iter().any(|size| within(*size).is_some_and(|rate| rate > 0.0));
        let rate = |size: u32| if met { within(size) } else { at_all(size) };
        sizes.into_iter().filter_map(|size| Some((size, rate(size)?))).collect()
    }

    /// Images/s that a pod carries with the present batch size, as [`Self::batches`] has it.
    fn batch_rate(&self) -> Option<f64> {
        let now = self.batch();
        self.batches().into_iter().find(|(size, _)| *size == now).map(|(_, rate)| rate)
    }

    /// The batch size that carries most, the smallest of those as good; of those that keep the inference target, if any
    /// does.
    fn best_batch(&self) -> Option<(u32, f64)> {
        let mut rates = self.batches();
        if rates.iter().any(|(size, _)| self.quick(*size)) {
            rates.retain(|(size, _)| self.quick(*size));
        }
        let best = rates.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
        rates.into_iter().find(|(_, rate)| *rate >= AS_GOOD * best)
    }

    /// The model if something else balanced in front of the pods.
    fn with_routing(&self, routing: Routing) -> Model {
        let policy = Policy { routing, ..self.policy.clone() };
        Model::new(&policy, self.state, self.seen, self.hit_ratio)
    }

    /// The API threshold, seconds.
    fn api_s(&self) -> Option<f64> {
        self.policy.targets.api.map(LatencyTarget::limit_s)
    }

    /// Share of the response time that passes in queue and engine.
    fn engine_share(&self) -> f64 {
        if self.latency_s > 0.0 { (1.0 - self.overhead_s / self.latency_s).clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// A bottleneck whose test holds now.
pub(crate) struct Finding {
    kind: BottleneckKind,
    /// How far the figure is beyond its limit: the logarithm of their ratio.
    excess: f64,
    /// Standard error of the figure, as a share of it, where the test knows it.
    error: f64,
    /// Factor by which the pods would carry more without it; 1 if it costs no capacity.
    relief: f64,
    /// An event or a state of the operator, which needs no windows.
    at_once: bool,
    /// Name, value, limit.
    evidence: Vec<(&'static str, f64, f64)>,
    pods: Vec<u64>,
    advice: Vec<Advice>,
}

impl Finding {
    fn new(kind: BottleneckKind, excess: f64, evidence: Vec<(&'static str, f64, f64)>) -> Self {
        Self { kind, excess, error: 0.0, relief: 1.0, at_once: false, evidence, pods: Vec::new(), advice: Vec::new() }
    }
}

/// How far `value` is above `limit`: the logarithm of their ratio.
fn above(value: f64, limit: f64) -> f64 {
    // A limit of nothing is passed by far, not infinitely.
    libm::log((value.max(1e-9) / limit.max(1e-9)).clamp(1e-3, 1e3))
}

/// `text`: what is the matter, what to do, what it would bring.
fn advice(id: AdviceId, severity: Severity, text: (String, String, String)) -> Advice {
    let (message, action, predicted) = text;
    Advice { id, severity, message, action, predicted, pods: Vec::new() }
}

/// All bottlenecks whose test holds now, in the order of the table of control.md §9.
pub(crate) fn find(case: Case) -> Vec<Finding> {
    let checks: [fn(Case) -> Option<Finding>; 18] = [
        service::model_reload,
        capacity::capacity_short,
        cpu::cpu_preprocess,
        cpu::gpu_starved,
        cpu::concurrency_limited,
        batch::small_batches,
        batch::batch_too_large,
        batch::inference_too_slow,
        device::device_slowed,
        service::network_upload,
        cpu::api_overhead,
        device::imbalance,
        device::straggler,
        service::memory_pressure,
        cache::too_small,
        cache::useless,
        capacity::bursty,
        capacity::over_provisioned,
    ];
    checks.iter().filter_map(|check| check(case)).collect()
}

impl Diagnosis {
    /// What to show of `found`: the first two that have held for three windows running.
    ///
    /// `ended`: a window has just closed; `missed`: a target is missed, so that "nothing" would be no answer.
    pub(crate) fn judge(&mut self, found: Vec<Finding>, ended: bool, missed: bool) -> (Vec<Bottleneck>, Vec<Advice>) {
        if ended {
            self.count(&found);
        }
        let mut lasting: Vec<(Finding, f64)> =
            found.into_iter().filter_map(|finding| self.confidence(&finding).map(|sure| (finding, sure))).collect();
        cause_before_shortage(&mut lasting);
        lasting.truncate(SHOWN);
        if lasting.is_empty() && !missed {
            return (vec![bottleneck(&Finding::new(BottleneckKind::None, 0.0, Vec::new()), 1.0)], Vec::new());
        }
        let bottlenecks = lasting.iter().map(|(finding, sure)| bottleneck(finding, *sure)).collect();
        let mut given: Vec<Advice> = Vec::new();
        let about = |finding: Finding| {
            let pods = finding.pods;
            finding.advice.into_iter().map(move |advice| Advice { pods: pods.clone(), ..advice })
        };
        for advice in lasting.into_iter().flat_map(|(finding, _)| about(finding)) {
            // What two bottlenecks call for is said once, for the first of them.
            if given.iter().all(|other| other.id != advice.id) {
                given.push(advice);
            }
        }
        (bottlenecks, given)
    }

    /// Counts a closed window: kinds that did not hold in it begin anew.
    fn count(&mut self, found: &[Finding]) {
        let before = std::mem::take(&mut self.running);
        for finding in found {
            let known = before.iter().find(|(kind, _)| *kind == finding.kind);
            let mut excesses = known.map(|(_, excesses)| excesses.clone()).unwrap_or_default();
            excesses.push(finding.excess);
            if excesses.len() > WINDOWS {
                excesses.remove(0);
            }
            self.running.push((finding.kind, excesses));
        }
    }

    /// Φ(margin/σ) of a finding that has lasted long enough: its mean margin over the windows, and the error of that
    /// from their scatter.
    fn confidence(&self, finding: &Finding) -> Option<f64> {
        if finding.at_once {
            return Some(1.0);
        }
        let (_, excesses) = self.running.iter().find(|(kind, _)| *kind == finding.kind)?;
        if excesses.len() < WINDOWS {
            return None;
        }
        let n = f64::from(u32::try_from(excesses.len()).unwrap_or(1));
        let mean = excesses.iter().sum::<f64>() / n;
        let scatter = (excesses.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0).max(1.0) / n).sqrt();
        Some(normal::below(mean / scatter.max(finding.error).max(ERROR_MIN)))
    }
}

/// Moves a shortage of pods behind the first finding without which there would be none.
fn cause_before_shortage(found: &mut [(Finding, f64)]) {
    let Some(short) = found.iter().position(|(finding, _)| finding.kind == BottleneckKind::CapacityShort) else {
        return;
    };
    let lacking = found.get(short).map_or(1.0, |(finding, _)| libm::exp(finding.excess));
    let cause = found.iter().position(|(finding, _)| finding.relief > 1.0 && finding.relief >= lacking);
    if let Some(affected) = cause.filter(|cause| *cause > short).and_then(|cause| found.get_mut(short..=cause)) {
        // The cause goes first; whatever stood between the two stays behind the shortage.
        affected.rotate_right(1);
    }
}

fn bottleneck(finding: &Finding, confidence: f64) -> Bottleneck {
    let evidence = finding.evidence.iter().map(|(name, value, limit)| Evidence {
        name: (*name).to_owned(),
        value: *value,
        limit: *limit,
    });
    Bottleneck {
        kind: finding.kind,
        confidence: Ratio::try_from(confidence.clamp(0.0, 1.0)).unwrap_or_default(),
        evidence: evidence.collect(),
    }
}

/// The answer without metrics: nothing can be told but that.
pub(crate) fn blind() -> (Vec<Bottleneck>, Vec<Advice>) {
    let text = (
        "No usable metrics: the pods do not answer on /metrics, or too few of them do.".to_owned(),
        "Let the operator reach the pods' port 8081 (NetworkPolicy, service mesh), or name a Prometheus that scrapes \
         them in the operator's configuration."
            .to_owned(),
        "Scaling and diagnosis resume with the second answer; until then nothing is scaled down.".to_owned(),
    );
    let found = Finding::new(BottleneckKind::NoMetrics, 0.0, Vec::new());
    (vec![bottleneck(&found, 1.0)], vec![advice(AdviceId::FixMetrics, Severity::Critical, text)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(kind: BottleneckKind, excess: f64, relief: f64) -> Finding {
        Finding { relief, ..Finding::new(kind, excess, Vec::new()) }
    }

    fn shown(diagnosis: &mut Diagnosis, found: Vec<Finding>) -> Vec<BottleneckKind> {
        diagnosis.judge(found, true, false).0.into_iter().map(|bottleneck| bottleneck.kind).collect()
    }

    #[test]
    fn a_finding_needs_three_windows_running() {
        let mut diagnosis = Diagnosis::default();
        let one = || vec![found(BottleneckKind::Bursty, 0.5, 1.0)];
        assert_eq!(shown(&mut diagnosis, one()), [BottleneckKind::None]);
        assert_eq!(shown(&mut diagnosis, one()), [BottleneckKind::None]);
        assert_eq!(shown(&mut diagnosis, Vec::new()), [BottleneckKind::None], "a window without it starts anew");
        assert_eq!(shown(&mut diagnosis, one()), [BottleneckKind::None]);
        assert_eq!(shown(&mut diagnosis, one()), [BottleneckKind::None]);
        assert_eq!(shown(&mut diagnosis, one()), [BottleneckKind::Bursty]);
        let (bottlenecks, _) = diagnosis.judge(one(), false, false);
        assert_eq!(bottlenecks[0].kind, BottleneckKind::Bursty, "shown between the windows' ends too");
    }

    #[test]
    fn between_windows_nothing_is_counted() {
        let mut diagnosis = Diagnosis::default();
        for _ in 0..10 {
            let (bottlenecks, _) = diagnosis.judge(vec![found(BottleneckKind::Bursty, 0.5, 1.0)], false, false);
            assert_eq!(bottlenecks[0].kind, BottleneckKind::None);
        }
        assert!(diagnosis.judge(Vec::new(), false, true).0.is_empty(), "a missed target is not nothing");
    }

    #[test]
    fn what_makes_pods_slow_comes_before_their_number() {
        let mut diagnosis = Diagnosis::default();
        let all = |relief: f64| {
            vec![
                found(BottleneckKind::CapacityShort, libm::log(1.5), 1.0),
                found(BottleneckKind::BatchTooLarge, 0.5, 1.0),
                found(BottleneckKind::DeviceSlowed, 0.5, relief),
            ]
        };
        for _ in 0..2 {
            shown(&mut diagnosis, all(2.0));
        }
        assert_eq!(
            shown(&mut diagnosis, all(2.0)),
            [BottleneckKind::DeviceSlowed, BottleneckKind::CapacityShort],
            "twice as fast, they would not be short"
        );
        assert_eq!(shown(&mut diagnosis, all(1.2)), [BottleneckKind::CapacityShort, BottleneckKind::BatchTooLarge]);
    }

    #[test]
    fn confidence_rises_with_the_margin_and_falls_with_scatter() {
        let judged = |excesses: [f64; 3]| {
            let mut diagnosis = Diagnosis::default();
            let mut last = 0.0;
            for excess in excesses {
                let (bottlenecks, _) = diagnosis.judge(vec![found(BottleneckKind::Bursty, excess, 1.0)], true, false);
                last = bottlenecks[0].confidence.get();
            }
            last
        };
        let (far, near, scattered) = (judged([0.2; 3]), judged([0.01; 3]), judged([0.01, 0.5, 0.09]));
        assert!(far > 0.99 && (0.5..0.7).contains(&near), "{far} {near}");
        assert!(scattered < far, "{scattered}");
    }
}
