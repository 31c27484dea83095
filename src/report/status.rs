//! The status document of one reconcile.

use yolo_api::v1alpha1::YoloInferenceServiceStatus;
use yolo_api::v1alpha1::status::{
    Advice, Bottleneck, Constraint, DECISIONS_MAX, DecisionStatus, Engine as EngineStatus, Evidence, KnobValues,
    KnobsStatus, LoadStatus, ModelStatus, Outcome, RolloutStatus, Severity, TargetName, TargetStatus, Verdict, clip,
};
use yolo_planner::decision::RecordVerdict;
use yolo_planner::policy::Mode;
use yolo_planner::units::{Bytes, Timestamp};
use yolo_planner::{Explanation, Knobs, Record, decision, explain};

use super::text::{constrained, figure, observed, seconds, time, trigger, two_digits, word};
use super::{Untold, conditions};
use crate::build;
use crate::error::Error;
use crate::fleet::{PodPhase, PodView};
use crate::reconcile::Done;
use crate::sampler::pod_id;
use crate::validate::{Engine, Validated};

/// Most advice shown; the schema's bound.
const ADVICE_MAX: usize = 16;
/// Most pods that an advice names; the others are found as those were.
const PODS_NAMED: usize = 4;

/// The status after a whole reconcile. `before` is the one that it replaces: conditions keep their times, decisions add up.
pub fn status(
    done: &Done,
    before: &YoloInferenceServiceStatus,
    untold: &Untold,
    now: Timestamp,
) -> YoloInferenceServiceStatus {
    let Done { spec, seen, decision, applied } = done;
    let explanation = &decision.explanation;
    let pods = |phases: fn(PodPhase) -> bool| count(seen.pods.iter().filter(|pod| phases(pod.phase)).count());
    YoloInferenceServiceStatus {
        observed_generation: Some(spec.generation),
        replicas: Some(pods(|phase| phase != PodPhase::Draining)),
        ready_replicas: Some(pods(|phase| phase == PodPhase::Ready)),
        selector: Some(build::selector_text(spec)),
        url: Some(url(spec)),
        engine: Some(match spec.workload.engine {
            Engine::Emulated { .. } => EngineStatus::Emulated,
            Engine::Cpu { .. } | Engine::Nvidia(_) => EngineStatus::Ort,
        }),
        model: Some(ModelStatus {
            name: spec.workload.model.path.clone(),
            desired_digest: spec.workload.model.sha256.clone(),
            active_digest: active_digest(done),
        }),
        load: Some(load(&explanation.load)),
        knobs: Some(KnobsStatus {
            current: Some(values(&seen.observation.current)),
            desired: Some(values(&decision.desired)),
            recommended: recommended(done),
            generation: i64::try_from(applied.knobs.generation).unwrap_or(i64::MAX),
            applied_pods: applied_pods(done),
        }),
        targets: explanation.targets.iter().map(target).collect(),
        targets_summary: Some(explanation.targets_summary.clone()),
        bottleneck: explanation.bottlenecks.first().map(bottleneck),
        advice: advice(explanation, &seen.pods, &spec.inactive),
        decisions: decisions(&before.decisions, untold, decision.state.awaited()),
        learned: None, // `report` decides when.
        rollout: Some(RolloutStatus {
            hash: applied.template.clone(),
            phase: match (conditions::rolling(done), applied.waits) {
                (true, _) => "Progressing",
                (false, true) => "Waiting",
                (false, false) => "Complete",
            }
            .to_owned(),
            rejected_hash: None,
        }),
        conditions: conditions::conditions(done, &before.conditions, &time(now)),
    }
}

/// The status after a failure: everything stays but the conditions.
pub fn failed(
    error: &Error,
    before: &YoloInferenceServiceStatus,
    generation: Option<i64>,
    now: Timestamp,
) -> YoloInferenceServiceStatus {
    YoloInferenceServiceStatus {
        observed_generation: generation,
        conditions: conditions::failed(error, &before.conditions, generation, &time(now)),
        ..before.clone()
    }
}

/// What the planner would order where it may not.
fn recommended(done: &Done) -> Option<KnobValues> {
    let policy = &done.seen.policy;
    let modes = [policy.replicas.mode, policy.batch.mode, policy.cache.mode];
    let free = !policy.paused && !done.seen.ownership.contested() && modes.iter().all(|mode| *mode == Mode::Auto);
    let recommended = values(&done.decision.recommended);
    (!free && recommended != values(&done.decision.desired)).then_some(recommended)
}

/// The digest that the ready pods report; none while they differ, or where nothing real is run.
fn active_digest(done: &Done) -> Option<String> {
    let snapshot =
        done.seen.snapshot.as_ref().filter(|_| !matches!(done.spec.workload.engine, Engine::Emulated { .. }))?;
    let ready = done.seen.pods.iter().filter(|pod| pod.phase == PodPhase::Ready);
    let mut digests = ready.filter_map(|pod| snapshot.model_sha256(&pod.uid));
    let first = digests.next()?;
    digests.all(|digest| digest == first).then(|| first.to_owned())
}

fn url(spec: &Validated) -> String {
    let host = format!("http://{}.{}.svc", spec.id.name, spec.id.namespace);
    if spec.front.port == 80 { host } else { format!("{host}:{}", spec.front.port) }
}

/// Pods that report the generation in force; none yet if it has just been written.
fn applied_pods(done: &Done) -> i32 {
    let same = done.seen.knobs.is_some_and(|knobs| knobs.generation == done.applied.knobs.generation);
    if same { i32::try_from(done.seen.observation.applied_pods).unwrap_or(i32::MAX) } else { 0 }
}

fn load(load: &explain::Load) -> LoadStatus {
    LoadStatus {
        images_per_second: two_digits(load.images_per_second.get()),
        shed_per_second: two_digits(load.shed_per_second.get()),
        hit_ratio: load.hit_ratio.map(|ratio| two_digits(ratio.get())),
        p95: load.p95.map(|p95| seconds(two_digits(p95.get()))),
    }
}

fn values(knobs: &Knobs) -> KnobValues {
    let replicas = i32::try_from(knobs.replicas.get()).unwrap_or(i32::MAX);
    let batch = i32::try_from(knobs.max_batch_size.get()).unwrap_or(i32::MAX);
    KnobValues::new(replicas, batch, signed(knobs.cache_bytes))
}

fn target(row: &explain::TargetRow) -> TargetStatus {
    TargetStatus {
        name: match row.name {
            explain::TargetName::InferenceLatency => TargetName::InferenceLatency,
            explain::TargetName::ApiLatency => TargetName::ApiLatency,
            explain::TargetName::Throughput => TargetName::Throughput,
            explain::TargetName::MemoryPerWorker => TargetName::MemoryPerWorker,
            explain::TargetName::GpuUtilization => TargetName::GpuUtilization,
            explain::TargetName::Availability => TargetName::Availability,
        },
        threshold: figure(row.name, row.threshold),
        observed: row.observed.map(|value| observed(row.name, value)),
        margin: row.margin.map(|margin| format!("{}%", two_digits(margin * 100.0))),
        verdict: match row.verdict {
            explain::Verdict::Met => Verdict::Met,
            explain::Verdict::Missed => Verdict::Missed,
            explain::Verdict::Predicted => Verdict::Predicted,
            explain::Verdict::Unknown => Verdict::Unknown,
            explain::Verdict::NotApplicable => Verdict::NotApplicable,
        },
        reason: word(&row.reason),
        since: time(row.since),
    }
}

fn bottleneck(found: &explain::Bottleneck) -> Bottleneck {
    let evidence = |evidence: &explain::Evidence| Evidence {
        name: evidence.name.clone(),
        value: two_digits(evidence.value),
        limit: two_digits(evidence.limit),
    };
    Bottleneck {
        kind: word(&found.kind),
        confidence: two_digits(found.confidence.get()),
        evidence: found.evidence.iter().take(8).map(evidence).collect(),
    }
}

fn advice(explanation: &Explanation, pods: &[PodView], inactive: &[&'static str]) -> Vec<Advice> {
    let planned = explanation.advice.iter().map(|advice| Advice {
        id: word(&advice.id),
        severity: match advice.severity {
            explain::Severity::Info => Severity::Info,
            explain::Severity::Warning => Severity::Warning,
            explain::Severity::Critical => Severity::Critical,
        },
        message: clip(&format!("{}{}", advice.message, named(&advice.pods, pods))),
        action: clip(&advice.action),
        predicted: Some(clip(&advice.predicted)).filter(|text| !text.is_empty()),
    });
    let inactive = (!inactive.is_empty()).then(|| Advice {
        id: "FieldsNotYetActive".to_owned(),
        severity: Severity::Warning,
        message: clip(&format!("Accepted, but without effect in this version: {}.", inactive.join(", "))),
        action: "Remove these fields, or wait for the version that serves them.".to_owned(),
        predicted: None,
    });
    inactive.into_iter().chain(planned).take(ADVICE_MAX).collect()
}

/// The names of the pods that an advice is about: " Pods: fork-1, fork-2."
fn named(ids: &[u64], pods: &[PodView]) -> String {
    let about = pods.iter().filter(|pod| ids.contains(&pod_id(&pod.uid)));
    let names: Vec<&str> = about.take(PODS_NAMED).map(|pod| pod.name.as_str()).collect();
    if names.is_empty() { String::new() } else { format!(" Pods: {}.", names.join(", ")) }
}

/// The last decisions, newest last: new ones appended, judged ones replaced. Of those without a verdict only the `awaited`
/// one will get one: the leader that waited for the others' outcome is gone.
fn decisions(before: &[DecisionStatus], untold: &Untold, awaited: Option<u64>) -> Vec<DecisionStatus> {
    let mut all = before.to_vec();
    for record in untold.made.iter().chain(&untold.judged).map(record) {
        match all.iter_mut().find(|known| known.id == record.id) {
            Some(known) => *known = record,
            None => all.push(record),
        }
    }
    let abandoned = |known: &&mut DecisionStatus| known.verdict.is_none() && u64::try_from(known.id).ok() != awaited;
    for known in all.iter_mut().filter(abandoned) {
        known.verdict = Some(word(&RecordVerdict::Unmeasured));
    }
    // A judged one that had left the list comes back only if there is room.
    all.sort_by_key(|known| known.id);
    let extra = all.len().saturating_sub(DECISIONS_MAX);
    all.split_off(extra)
}

fn record(record: &Record) -> DecisionStatus {
    DecisionStatus {
        id: i64::try_from(record.id).unwrap_or(i64::MAX),
        time: time(record.time),
        trigger: trigger(record.trigger).to_owned(),
        from: values(&record.from),
        to: values(&record.to),
        reason: clip(&record.reason),
        constraints: record.constraints.iter().take(12).map(constraint).collect(),
        predicted: Some(outcome(&record.predicted)),
        actual: record.actual.as_ref().map(outcome),
        verdict: record.verdict.as_ref().map(word),
    }
}

fn constraint(constraint: &explain::Constraint) -> Constraint {
    Constraint {
        kind: word(&constraint.kind),
        value: constrained(constraint.kind, constraint.value),
        limit: constrained(constraint.kind, constraint.limit),
        binding: constraint.binding,
    }
}

fn outcome(outcome: &decision::Outcome) -> Outcome {
    Outcome {
        p50_seconds: outcome.p50.map(|value| two_digits(value.get())),
        p95_seconds: outcome.p95.map(|value| two_digits(value.get())),
        capacity: two_digits(outcome.capacity.get()),
        rss_bytes: signed(outcome.rss),
        utilization: two_digits(outcome.utilization.get()),
        hit_ratio: two_digits(outcome.hit_ratio.get()),
    }
}

fn signed(bytes: Bytes) -> i64 {
    i64::try_from(bytes.get()).unwrap_or(i64::MAX)
}

fn count(pods: usize) -> i32 {
    i32::try_from(pods).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use yolo_planner::decision::Trigger;
    use yolo_planner::{Observation, Policy, State, plan};

    fn made(id: u64) -> Record {
        let knobs = Knobs::initial(&Policy::default());
        Record {
            id,
            time: Timestamp::ZERO,
            trigger: Trigger::Load,
            from: knobs,
            to: knobs,
            reason: "it does not pay".to_owned(),
            constraints: Vec::new(),
            predicted: decision::Outcome::default(),
            actual: None,
            verdict: None,
        }
    }

    /// What a tick that made `record` and judged `judged` leaves untold.
    fn tick(untold: Untold, record: Option<Record>, judged: Vec<Record>) -> Untold {
        let seen = Observation::new(Knobs::initial(&Policy::default()));
        let decision = plan(&Policy::default(), &seen, &State::default(), Timestamp::whole(1));
        untold.with(&decision::Decision { record, judged, ..decision })
    }

    #[test]
    fn decisions_of_ticks_that_failed_are_told_by_the_next_status_once_and_in_order() {
        let shown = decisions(&[], &tick(Untold::default(), Some(made(1)), Vec::new()), Some(1));
        let judged = |id| Record { verdict: Some(RecordVerdict::Confirmed), ..made(id) };
        let failed = tick(Untold::default(), Some(made(2)), vec![judged(1)]);
        let untold = tick(tick(failed, None, vec![judged(2)]), Some(made(3)), Vec::new());
        let all = decisions(&shown, &untold, Some(3));
        let told: Vec<_> = all.iter().map(|record| (record.id, record.verdict.as_deref())).collect();
        assert_eq!(told, [(1, Some("Confirmed")), (2, Some("Confirmed")), (3, None)]);
    }

    #[test]
    fn a_decision_whose_leader_has_gone_is_unmeasured() {
        let shown = decisions(&[], &tick(Untold::default(), Some(made(1)), Vec::new()), Some(1));
        assert_eq!(shown[0].verdict, None);
        let of_the_next_leader = decisions(&shown, &tick(Untold::default(), Some(made(2)), Vec::new()), Some(2));
        let verdicts: Vec<_> = of_the_next_leader.iter().map(|record| record.verdict.as_deref()).collect();
        assert_eq!(verdicts, [Some("Unmeasured"), None]);
    }

    #[test]
    fn outage_of_the_api_server_keeps_the_newest_decisions() {
        let untold = (1..=12).fold(Untold::default(), |untold, id| tick(untold, Some(made(id)), Vec::new()));
        assert_eq!(untold.made.len(), DECISIONS_MAX);
        let all = decisions(&[], &untold, Some(12));
        assert_eq!((all.first().map(|record| record.id), all.last().map(|record| record.id)), (Some(3), Some(12)));
    }
}
