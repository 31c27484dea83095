//! How each target stands, since when, and whether all of them are met (design.md §3).

use serde::{Deserialize, Serialize};

use crate::explain::{Condition, ConditionReason, RowReason, TargetName, TargetRow, Tristate, Verdict};
use crate::histogram::Histogram;
use crate::policy::{Accelerator, LatencyTarget, Policy, Provision};
use crate::units::{Timestamp, real};
use crate::window::Sums;

/// Share of the offered images that must be served for on-demand throughput: the rest is queue noise at a window's ends.
const SERVED_MIN: f64 = 0.99;

/// What the rows are judged on.
pub(crate) struct Evidence<'a> {
    /// Sums over the window; `None` without data.
    pub(crate) sums: Option<&'a Sums>,
    /// Model's figures for the present knobs, where it has any: t⁺(b), response time, seconds.
    pub(crate) inference_s: Option<f64>,
    pub(crate) api_s: Option<f64>,
    /// Images/s that the ready pods sustain, and that `replicas.max` would.
    pub(crate) ready_rate: Option<f64>,
    pub(crate) max_rate: Option<f64>,
    /// Images/s offered now.
    pub(crate) level: f64,
    /// The pods are the fewest that the other targets allow.
    pub(crate) at_floor: bool,
}

/// What is remembered about verdicts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Verdicts {
    /// The policy as it was declared, to see a change.
    policy: Option<Policy>,
    /// Since when that policy holds, and the pods are those that it asks for.
    policy_since: Timestamp,
    /// When the policy changed, until a whole window has passed since [`Self::policy_since`].
    settling: Option<Timestamp>,
    rows: Vec<(TargetName, Verdict, Timestamp)>,
    /// Since when every row has been Met or Predicted.
    good_since: Option<Timestamp>,
    met: Tristate,
}

impl Verdicts {
    /// Notes a change of the declared policy: whatever was measured before says nothing about it, and while the rollout that
    /// it began is under way, pods of the old template are measured, too.
    pub(crate) fn notice_policy(&mut self, policy: &Policy, rolling: bool, now: Timestamp) {
        let declared = policy.declared();
        if self.policy.as_ref() != Some(&declared) {
            // The first policy that is seen need not have changed.
            let settling = self.policy.as_ref().map(|_changed| now);
            *self = Self { policy: Some(declared), policy_since: now, settling, ..Self::default() };
        } else if rolling && self.settling.is_some_and(|changed| now.since(changed) < policy.rollout_max.get()) {
            self.policy_since = now;
        } else if now.since(self.policy_since) >= policy.window_s() {
            self.settling = None;
        }
    }

    /// Whether the pods of `policy` are not those that were judged so far.
    pub(crate) fn revised(&self, policy: &Policy) -> bool {
        self.policy.as_ref().is_some_and(|judged| judged.revision != policy.revision)
    }

    /// The rows, with the time since which each verdict has been what it is.
    pub(crate) fn rows(&mut self, policy: &Policy, evidence: &Evidence, now: Timestamp) -> Vec<TargetRow> {
        let mut rows = judge(policy, evidence);
        let measuring = now.since(self.policy_since) < policy.window_s();
        for row in &mut rows {
            let before = self.rows.iter().find(|(name, verdict, _)| *name == row.name && *verdict == row.verdict);
            row.since = before.map_or(now, |(_, _, since)| *since);
            if measuring && row.reason == RowReason::Measured {
                row.reason = RowReason::Measuring;
            }
        }
        self.rows = rows.iter().map(|row| (row.name, row.verdict, row.since)).collect();
        rows
    }

    /// Whether all targets are met: True or False only after a whole window of it.
    ///
    /// `blind`: why there is no data, if there is none.
    pub(crate) fn targets_met(
        &mut self,
        policy: &Policy,
        rows: &[TargetRow],
        blind: Option<ConditionReason>,
        now: Timestamp,
    ) -> Condition {
        let window_s = policy.window_s();
        let applicable: Vec<_> = rows.iter().filter(|row| row.verdict != Verdict::NotApplicable).collect();
        let good = |row: &&TargetRow| matches!(row.verdict, Verdict::Met | Verdict::Predicted);
        let missed = |row: &TargetRow| row.verdict == Verdict::Missed;
        self.good_since = applicable.iter().all(good).then(|| self.good_since.unwrap_or(now));
        if applicable.iter().any(|row| row.verdict == Verdict::Unknown) {
            self.met = Tristate::Unknown;
            let reason = blind.unwrap_or(ConditionReason::NoData);
            return condition(self.met, reason, "No usable measurement of a target.".to_owned());
        }
        if now.since(self.policy_since) < window_s {
            let message = format!("Measuring since the policy changed; a verdict needs one window of {window_s:.0} s.");
            return condition(Tristate::Unknown, ConditionReason::Measuring, message);
        }
        let since = |at: Timestamp| now.since(at) >= window_s;
        if applicable.iter().any(|row| missed(row) && since(row.since)) {
            self.met = Tristate::False;
        } else if self.good_since.is_some_and(since) {
            self.met = Tristate::True;
        }
        let names: Vec<String> = rows.iter().filter(|row| missed(row)).map(sentence).collect();
        match self.met {
            Tristate::True => condition(self.met, ConditionReason::AllMet, met_message(&names)),
            Tristate::False => condition(self.met, ConditionReason::TargetMissed, missed_message(&names)),
            Tristate::Unknown => {
                condition(self.met, ConditionReason::Measuring, "No verdict has lasted a whole window yet.".to_owned())
            }
        }
    }
}

fn met_message(missed: &[String]) -> String {
    if missed.is_empty() {
        return "Every target has been met for a whole window.".to_owned();
    }
    format!("Missed, but not yet for a whole window: {}.", missed.join("; "))
}

fn missed_message(missed: &[String]) -> String {
    if missed.is_empty() {
        return "Every target is met again, but not yet for a whole window.".to_owned();
    }
    format!("Missed: {}.", missed.join("; "))
}

fn sentence(row: &TargetRow) -> String {
    let observed = row.observed.map_or_else(|| "unknown".to_owned(), |value| quantity(row.name, value));
    let name = match row.name {
        TargetName::InferenceLatency => "inference latency",
        TargetName::ApiLatency => "API latency",
        TargetName::Throughput => "throughput",
        TargetName::MemoryPerWorker => "memory a pod",
        TargetName::GpuUtilization => "GPU utilisation",
        TargetName::Availability => "availability",
    };
    format!("{name} {observed}, target {}", quantity(row.name, row.threshold))
}

/// A row's figure with its unit.
fn quantity(name: TargetName, value: f64) -> String {
    match name {
        TargetName::InferenceLatency | TargetName::ApiLatency => format!("{:.0} ms", value * 1e3),
        TargetName::Throughput => format!("{value:.1} images/s"),
        TargetName::MemoryPerWorker => format!("{:.0} MiB", value / 1_048_576.0),
        TargetName::GpuUtilization | TargetName::Availability => format!("{:.1} %", value * 1e2),
    }
}

/// Rows that are met, over those that apply.
pub(crate) fn summary(rows: &[TargetRow]) -> String {
    let applicable = rows.iter().filter(|row| row.verdict != Verdict::NotApplicable).count();
    let met = rows.iter().filter(|row| matches!(row.verdict, Verdict::Met | Verdict::Predicted)).count();
    format!("{met}/{applicable}")
}

fn condition(status: Tristate, reason: ConditionReason, message: String) -> Condition {
    Condition { status, reason, message }
}

/// The rows as they stand now; `since` is filled by the caller.
fn judge(policy: &Policy, evidence: &Evidence) -> Vec<TargetRow> {
    let targets = &policy.targets;
    let latency = |name, target: Option<LatencyTarget>, histogram: fn(&Sums) -> &Histogram, model| {
        target.map(|target| latency_row(name, target, evidence.sums.map(histogram), model))
    };
    let rows = [
        latency(TargetName::InferenceLatency, targets.inference, |sums| &sums.inference, evidence.inference_s),
        latency(TargetName::ApiLatency, targets.api, |sums| &sums.api, evidence.api_s),
        targets.throughput.map(|target| throughput_row(target.rate.get(), target.provision, evidence)),
        targets.memory.map(|memory| memory_row(real(memory.get()), evidence)),
        targets.gpu.map(|gpu| gpu_row(gpu.get(), policy.accelerator, evidence)),
        targets.availability.map(|share| availability_row(share.get(), evidence)),
    ];
    rows.into_iter().flatten().collect()
}

/// A row whose value must not exceed (`at_most`) or fall below its threshold.
fn row(name: TargetName, threshold: f64, observed: Option<f64>, at_most: bool) -> TargetRow {
    let margin = observed.map(|value| {
        let distance = if at_most { threshold - value } else { value - threshold };
        distance / threshold.max(1e-9)
    });
    let (verdict, reason) = match margin {
        Some(margin) if margin >= 0.0 => (Verdict::Met, RowReason::Measured),
        Some(_) => (Verdict::Missed, RowReason::Measured),
        None => (Verdict::Unknown, RowReason::NoData),
    };
    TargetRow { name, threshold, observed, margin, verdict, reason, since: Timestamp::ZERO }
}

/// A row that the model fills for lack of traffic.
fn predicted(mut row: TargetRow) -> TargetRow {
    if row.verdict == Verdict::Met {
        row.verdict = Verdict::Predicted;
    }
    if row.reason == RowReason::Measured {
        row.reason = RowReason::NoTraffic;
    }
    row
}

fn latency_row(name: TargetName, target: LatencyTarget, seen: Option<&Histogram>, model: Option<f64>) -> TargetRow {
    let threshold = target.limit_s();
    let Some(histogram) = seen else { return row(name, threshold, None, true) };
    match histogram.quantile(target.at()) {
        None => predicted(row(name, threshold, model, true)),
        Some(quantile) => {
            let row = row(name, threshold, Some(quantile.seconds().get()), true);
            // In the last bucket a quantile is only known to be at least the last edge.
            let verdict = if quantile.within(target.threshold) { row.verdict } else { Verdict::Missed };
            TargetRow { verdict, ..row }
        }
    }
}

fn throughput_row(target: f64, provision: Provision, evidence: &Evidence) -> TargetRow {
    let held = row(TargetName::Throughput, target, evidence.sums.and(evidence.ready_rate), false);
    let Some((sums, _)) = evidence.sums.zip(held.observed) else { return held };
    if provision == Provision::Always {
        return held;
    }
    let served = (sums.arrivals - sums.shed) / sums.arrivals.max(1.0);
    // Beyond the target nothing is promised: of 30/s offered against a target of 10/s a third must be served.
    let share = if sums.arrivals > 0.0 { served * (evidence.level / target.max(1e-9)).max(1.0) } else { 1.0 };
    let reachable = evidence.max_rate.is_none_or(|rate| rate >= target);
    let (verdict, reason) = match (reachable, share >= SERVED_MIN) {
        (false, _) => (Verdict::Missed, RowReason::BeyondMaximum),
        (true, false) => (Verdict::Missed, RowReason::NotServed),
        (true, true) => (Verdict::Met, RowReason::Reachable),
    };
    TargetRow { verdict, reason, ..held }
}

fn memory_row(target: f64, evidence: &Evidence) -> TargetRow {
    let rss = evidence.sums.map(|sums| real(sums.rss.get())).filter(|rss| *rss > 0.0);
    let row = row(TargetName::MemoryPerWorker, target, rss, true);
    // The table of design.md §3 says less than, not at most.
    let verdict = if rss.is_some_and(|rss| rss >= target) { Verdict::Missed } else { row.verdict };
    TargetRow { verdict, ..row }
}

fn gpu_row(target: f64, accelerator: Accelerator, evidence: &Evidence) -> TargetRow {
    let duty = evidence.sums.filter(|sums| sums.duty_pod_s > 0.0).map(|sums| sums.duty_s / sums.duty_pod_s);
    let row = row(TargetName::GpuUtilization, target, duty, false);
    match (accelerator, row.verdict) {
        (Accelerator::Cpu, _) => {
            TargetRow { observed: None, margin: None, verdict: Verdict::NotApplicable, reason: RowReason::NoGpu, ..row }
        }
        (Accelerator::Gpu, Verdict::Missed) if evidence.at_floor => {
            TargetRow { verdict: Verdict::Met, reason: RowReason::AtFloor, ..row }
        }
        (Accelerator::Gpu, _) => row,
    }
}

fn availability_row(target: f64, evidence: &Evidence) -> TargetRow {
    let share = evidence.sums.map(|sums| {
        let judged = sums.done + sums.shed + sums.errors;
        (judged > 0.0).then(|| sums.done / judged)
    });
    match share {
        None => row(TargetName::Availability, target, None, false),
        Some(Some(share)) => row(TargetName::Availability, target, Some(share), false),
        // Nothing was asked, so nothing was refused.
        Some(None) => predicted(row(TargetName::Availability, target, Some(1.0), false)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Bytes, Seconds};

    fn evidence(sums: Option<&Sums>) -> Evidence<'_> {
        Evidence {
            sums,
            inference_s: Some(0.020),
            api_s: Some(0.250),
            ready_rate: Some(8.0),
            max_rate: Some(80.0),
            level: 0.0,
            at_floor: true,
        }
    }

    fn verdict(rows: &[TargetRow], name: TargetName) -> (Verdict, RowReason) {
        rows.iter().find(|row| row.name == name).map(|row| (row.verdict, row.reason)).unwrap()
    }

    #[test]
    fn without_data_every_row_is_unknown() {
        let rows = judge(&Policy::default(), &evidence(None));
        assert_eq!(summary(&rows), "0/5", "six rows, of which the GPU's does not apply on CPU");
        assert!(rows.iter().all(|row| matches!(row.verdict, Verdict::Unknown | Verdict::NotApplicable)));
    }

    #[test]
    fn without_traffic_the_model_speaks() {
        let sums = Sums { rss: Bytes::mebi(200), ..Sums::default() };
        let rows = judge(&Policy::default(), &evidence(Some(&sums)));
        assert_eq!(verdict(&rows, TargetName::InferenceLatency), (Verdict::Predicted, RowReason::NoTraffic));
        assert_eq!(verdict(&rows, TargetName::ApiLatency), (Verdict::Missed, RowReason::NoTraffic));
        assert_eq!(verdict(&rows, TargetName::Throughput), (Verdict::Met, RowReason::Reachable));
        assert_eq!(verdict(&rows, TargetName::Availability), (Verdict::Predicted, RowReason::NoTraffic));
    }

    #[test]
    fn an_idle_gpu_with_the_fewest_pods_is_met_at_the_floor() {
        let sums = Sums { duty_s: 10.0, duty_pod_s: 60.0, ..Sums::default() };
        let policy = Policy { accelerator: Accelerator::Gpu, ..Policy::default() };
        let rows = judge(&policy, &evidence(Some(&sums)));
        assert_eq!(verdict(&rows, TargetName::GpuUtilization), (Verdict::Met, RowReason::AtFloor));
        let rows = judge(&policy, &Evidence { at_floor: false, ..evidence(Some(&sums)) });
        assert_eq!(verdict(&rows, TargetName::GpuUtilization), (Verdict::Missed, RowReason::Measured));
    }

    #[test]
    fn a_verdict_needs_a_whole_window() {
        let policy = Policy::default();
        let mut verdicts = Verdicts::default();
        let at = Timestamp::whole;
        verdicts.notice_policy(&policy, false, at(1000));
        let mut judge_at = |second: u32, missed: bool| {
            let verdict = if missed { Verdict::Missed } else { Verdict::Met };
            let found = row(TargetName::ApiLatency, 0.2, Some(0.1), true);
            let before = verdicts.rows.first().filter(|before| before.1 == verdict).map(|before| before.2);
            let row = TargetRow { verdict, since: before.unwrap_or_else(|| at(second)), ..found };
            verdicts.rows = vec![(row.name, row.verdict, row.since)];
            verdicts.targets_met(&policy, &[row], None, at(second)).status
        };
        assert_eq!(judge_at(1000, false), Tristate::Unknown);
        assert_eq!(judge_at(1059, false), Tristate::Unknown);
        assert_eq!(judge_at(1060, false), Tristate::True);
        assert_eq!(judge_at(1070, true), Tristate::True, "a miss counts after a window");
        assert_eq!(judge_at(1130, true), Tristate::False);
        assert_eq!(judge_at(1140, false), Tristate::False);
        assert_eq!(judge_at(1200, false), Tristate::True);
    }

    #[test]
    fn another_model_is_judged_anew_once_its_pods_are_the_only_ones() {
        let (old, new) = (Policy::default(), Policy { revision: 2, ..Policy::default() });
        let mut verdicts = Verdicts::default();
        let mut judge_at = |policy: &Policy, rolling: bool, second: u32| {
            verdicts.notice_policy(policy, rolling, Timestamp::whole(second));
            let row = row(TargetName::ApiLatency, 0.2, Some(0.1), true);
            verdicts.targets_met(policy, &[row], None, Timestamp::whole(second)).status
        };
        judge_at(&old, false, 1000);
        assert_eq!(judge_at(&old, false, 1060), Tristate::True);
        assert_eq!(judge_at(&old, true, 1065), Tristate::True, "a rollout of the same model ends no verdict");
        assert_eq!(judge_at(&new, false, 1070), Tristate::Unknown);
        assert_eq!(judge_at(&new, true, 1075), Tristate::Unknown);
        assert_eq!(judge_at(&new, true, 1200), Tristate::Unknown, "old pods are measured still");
        assert_eq!(judge_at(&new, false, 1259), Tristate::Unknown);
        assert_eq!(judge_at(&new, false, 1260), Tristate::True);
        assert_eq!(judge_at(&new, true, 1265), Tristate::True);
        let hangs = Policy { revision: 3, rollout_max: Seconds::whole(700), ..Policy::default() };
        assert_eq!(judge_at(&hangs, true, 2000), Tristate::Unknown);
        for second in (2005..2700).step_by(5) {
            assert_eq!(judge_at(&hangs, true, second), Tristate::Unknown, "{second}");
        }
        judge_at(&hangs, true, 2700);
        assert_eq!(judge_at(&hangs, true, 2760), Tristate::True, "a rollout that hangs hides no verdict for ever");
    }

    #[test]
    fn a_quantile_beyond_the_last_edge_is_missed() {
        let edges = vec![Seconds::millis(50)];
        let histogram = Histogram::from_cumulative(edges, &[0, 10]).unwrap();
        let sums = Sums { api: histogram, ..Sums::default() };
        let rows = judge(&Policy::default(), &evidence(Some(&sums)));
        assert_eq!(verdict(&rows, TargetName::ApiLatency).0, Verdict::Missed);
    }
}
