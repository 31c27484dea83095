//! What was seen and decided as the eight conditions, each from the closed table of `yolo_api::v1alpha1::conditions`.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use yolo_api::v1alpha1::conditions::{ConditionType, Reason, set};
use yolo_planner::Observation;
use yolo_planner::decision::{Action, HoldReason};
use yolo_planner::explain::{Condition as Judged, ConditionReason, Tristate};
use yolo_planner::observation::{NoData, Phase, Signal};

use crate::call::Category;
use crate::error::Error;
use crate::fleet::{PodPhase, PodView, Termination, Waiting};
use crate::observe::Ownership;
use crate::reconcile::Done;
use crate::validate::Validated;

/// The conditions after a whole reconcile.
pub fn conditions(done: &Done, before: &[Condition], now: &Time) -> Vec<Condition> {
    let mut after = before.to_vec();
    let judged = &done.decision.explanation.conditions;
    let mut put = |reason: Reason, detail: Option<&str>| {
        set(&mut after, reason, detail, Some(done.spec.generation), now);
    };
    let denied = done.seen.deployment.as_deref().and_then(denied);
    let (ready, detail) = ready(&done.spec, &done.seen.pods, done.seen.observation.rolling, denied);
    put(ready, detail.as_deref());
    put(reconciling(done), None);
    let (stalled, detail) = stalled(done.applied.contested.as_deref(), &done.spec.left_out);
    put(stalled, detail.as_deref());
    let carried = unlooked(&done.seen.observation) || judged.targets_met.reason == ConditionReason::Measuring;
    if !(carried && is_verdict(before, done.spec.generation)) {
        put(targets_met(&judged.targets_met), sentence(&judged.targets_met));
    }
    put(targets_feasible(&judged.targets_feasible), sentence(&judged.targets_feasible));
    put(metrics_available(done), metrics_detail(done).as_deref());
    let (active, detail) = scaling_active(done);
    put(active, detail.as_deref());
    let (limited, detail) = scaling_limited(done);
    put(limited, detail.as_deref());
    after
}

/// What of the spec is not done, though the rest is.
fn stalled(contested: Option<&str>, left_out: &[String]) -> (Reason, Option<String>) {
    match contested {
        Some(detail) => (Reason::FieldConflict, Some(detail.to_owned())),
        None if left_out.is_empty() => (Reason::NotStalled, None),
        None => (Reason::PartlyInvalid, Some(format!("{}. Everything else acts.", left_out.join("; ")))),
    }
}

/// The conditions after a failure: what the planner judged last stays.
pub fn failed(error: &Error, before: &[Condition], generation: Option<i64>, now: &Time) -> Vec<Condition> {
    let mut after = before.to_vec();
    let detail = error.chain();
    let mut put = |reason: Reason| set(&mut after, reason, Some(&detail), generation, now);
    match error {
        Error::Malformed(_) => put(Reason::Malformed),
        Error::Validate(_) => {
            put(Reason::ReadyInvalidSpec);
            put(Reason::InvalidSpec);
        }
        Error::Apply(error) => put(match error.category() {
            Category::Conflict => Reason::FieldConflict,
            Category::Denied => Reason::Denied,
            Category::NameTaken => Reason::NameTaken,
            Category::AccountNotAllowed => Reason::AccountNotAllowed,
            _ => Reason::ApplyFailed,
        }),
        Error::Report(_) | Error::TooSlow(_) | Error::NotLeader(_) => put(Reason::ApplyFailed),
    }
    after
}

/// Serving the desired generation with at least `replicas.min`. A new pod that refuses its model, or cannot even start, is
/// not hidden by pods of the previous generation that still serve.
fn ready(spec: &Validated, pods: &[PodView], rolling: bool, denied: Option<&str>) -> (Reason, Option<String>) {
    let living = || pods.iter().filter(|pod| pod.phase != PodPhase::Draining);
    if let Some((pod, why)) = living().find_map(|pod| Some((pod, pod.termination.as_ref()?))) {
        return (refusal(why), Some(format!("{} (pod {})", why.message, pod.name)));
    }
    let ready = living().filter(|pod| pod.phase == PodPhase::Ready).count();
    let wanted = spec.policy.replicas.min.get();
    let enough = u32::try_from(ready).is_ok_and(|ready| ready >= wanted);
    let claim = spec.workload.model.claim();
    let missed = living().filter(|pod| !enough || (rolling && pod.waiting.is_some()));
    let count = format!("{ready} of at least {wanted} pods are ready.");
    match missed.clone().find_map(|pod| stuck(pod, claim)) {
        Some((reason, detail)) => (reason, Some(format!("{detail} {count}"))),
        None if enough && !rolling => (Reason::Serving, None),
        None if denied.is_some() => (Reason::PodsDenied, denied.map(|why| format!("{why}. {count}"))),
        None if enough => (Reason::Serving, None),
        None => {
            let detail = missed.clone().find_map(|pod| starting(pod, claim));
            (Reason::PodsNotReady, Some([Some(count), detail].into_iter().flatten().collect::<Vec<_>>().join(" ")))
        }
    }
}

/// Why `pod` does not become ready by itself, in words that stay the same while it lasts.
fn stuck(pod: &PodView, claim: Option<&str>) -> Option<(Reason, String)> {
    let name = &pod.name;
    match &pod.waiting {
        Some(Waiting::Image(image)) => {
            Some((Reason::ImageUnavailable, format!("The image {image} of pod {name} cannot be pulled.")))
        }
        Some(Waiting::Container(why)) => Some((Reason::PodsFailing, format!("Pod {name} cannot start: {why}."))),
        Some(Waiting::Node(why)) => {
            let claim = claim.filter(|_| why.to_lowercase().contains("persistentvolumeclaim"))?;
            Some((Reason::VolumeUnavailable, format!("The claim {claim} is not bound or does not exist.")))
        }
        None if pod.phase != PodPhase::Ready && pod.restarts > 0 => {
            Some((Reason::PodsFailing, format!("Pod {name} ends and restarts; see its log.")))
        }
        Some(Waiting::Creating | Waiting::Model) | None => None,
    }
}

/// What a pod that may still become ready by itself is at.
fn starting(pod: &PodView, claim: Option<&str>) -> Option<String> {
    let name = &pod.name;
    match (&pod.waiting, claim) {
        (Some(Waiting::Model), _) => Some(format!("Pod {name} fetches the model.")),
        // A volume that does not mount is told by the kubelet in Events only.
        (Some(Waiting::Creating), Some(claim)) => {
            Some(format!("The Events of pod {name} tell if the claim {claim} cannot be mounted."))
        }
        _ => None,
    }
}

/// What the server's own code for its refusal means.
fn refusal(why: &Termination) -> Reason {
    match why.code.as_str() {
        "model_missing" => Reason::ModelMissing,
        "model_truncated" => Reason::ModelTruncated,
        "model_digest_mismatch" => Reason::ModelDigestMismatch,
        "model_unsupported" => Reason::ModelUnsupported,
        "model_fetch_failed" => Reason::ModelFetchFailed,
        "engine_unavailable" => Reason::EngineUnavailable,
        _ => Reason::PodsFailing,
    }
}

fn reconciling(done: &Done) -> Reason {
    let ready = done.seen.pods.iter().filter(|pod| pod.phase == PodPhase::Ready).count();
    let complete = u32::try_from(ready).is_ok_and(|ready| ready == done.decision.desired.replicas.get());
    match (done.applied.waits, complete && !rolling(done)) {
        (true, _) => Reason::RolloutWaiting,
        (false, true) => Reason::UpToDate,
        (false, false) => Reason::Progressing,
    }
}

/// How long something was on its way, in seconds, if `after` is the first status without it.
pub fn converged_s(before: &[Condition], after: &[Condition]) -> Option<f64> {
    let reconciling = |all: &[Condition], status: &str| {
        let found = all.iter().find(|condition| condition.type_ == ConditionType::Reconciling.as_str());
        found.filter(|found| found.status == status).map(|found| found.last_transition_time.0)
    };
    let (began, ended) = (reconciling(before, "True")?, reconciling(after, "False")?);
    Some(ended.duration_since(began).as_secs_f64())
}

/// Pods of another template are there, or are about to be: the Deployment's controller has not looked at it yet.
pub fn rolling(done: &Done) -> bool {
    done.seen.observation.rolling || done.applied.unseen
}

/// The API server's words for why the Deployment's controller cannot make a pod: a quota, a policy.
fn denied(deployment: &Deployment) -> Option<&str> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let failure =
        conditions.iter().find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")?;
    failure.message.as_deref()
}

/// No ready pod was looked at twice: an operator that has just started knows nothing yet. A pod that does not answer is
/// another matter.
fn unlooked(observation: &Observation) -> bool {
    let mut ready = observation.pods.iter().filter(|pod| pod.phase == Phase::Ready).peekable();
    ready.peek().is_some() && ready.all(|pod| matches!(pod.sample, Signal::NoData(NoData::NeverSeen)))
}

/// Whether `before` has a verdict of this spec, which then stays until there is a new one: that an operator has just started
/// says nothing about the service.
fn is_verdict(before: &[Condition], generation: i64) -> bool {
    let known = before.iter().find(|condition| condition.type_ == ConditionType::TargetsMet.as_str());
    known.is_some_and(|known| known.status != "Unknown" && known.observed_generation == Some(generation))
}

fn targets_met(judged: &Judged) -> Reason {
    match (judged.status, judged.reason) {
        (Tristate::True, _) => Reason::AllMet,
        (Tristate::False, _) => Reason::TargetMissed,
        (Tristate::Unknown, ConditionReason::Measuring) => Reason::TargetsMeasuring,
        (Tristate::Unknown, ConditionReason::Stale) => Reason::TargetsStale,
        (Tristate::Unknown, _) => Reason::TargetsNoData,
    }
}

fn targets_feasible(judged: &Judged) -> Reason {
    match (judged.status, judged.reason) {
        (Tristate::True, _) => Reason::Feasible,
        (Tristate::False, ConditionReason::InferenceTooSlow) => Reason::InferenceTooSlow,
        (Tristate::False, ConditionReason::ApiOverhead) => Reason::ApiOverheadTooHigh,
        (Tristate::False, ConditionReason::MemoryShort) => Reason::MemoryShort,
        (Tristate::False, _) => Reason::ReplicasMaxTooLow,
        (Tristate::Unknown, ConditionReason::CurveUnknown) => Reason::FeasibleCurveUnknown,
        (Tristate::Unknown, _) => Reason::FeasibleNoData,
    }
}

fn metrics_available(done: &Done) -> Reason {
    let judged = &done.decision.explanation.conditions.metrics_available;
    let measurable = done.seen.pods.iter().any(|pod| pod.phase == PodPhase::Ready);
    match judged.reason {
        ConditionReason::Stale => Reason::MetricsStale,
        _ if !measurable => Reason::MetricsUnknown,
        ConditionReason::Partial => Reason::MetricsPartial,
        ConditionReason::Fresh => Reason::MetricsFresh,
        _ => Reason::MetricsNoData,
    }
}

/// The planner's sentence, and why a pod could not be read: "connection refused" is what a person can act on.
fn metrics_detail(done: &Done) -> Option<String> {
    let sentence = sentence(&done.decision.explanation.conditions.metrics_available)?;
    match done.seen.snapshot.as_ref().and_then(|snapshot| snapshot.trouble()) {
        Some(trouble) => Some(format!("{sentence} {trouble}.")),
        None => Some(sentence.to_owned()),
    }
}

fn scaling_active(done: &Done) -> (Reason, Option<String>) {
    let judged = &done.decision.explanation.conditions.scaling_active;
    let by = match &done.seen.ownership {
        Ownership::Foreign { by, .. } => Some(by.manager.clone()),
        Ownership::Autoscaled { autoscaler, .. } => Some(format!("HorizontalPodAutoscaler {autoscaler}")),
        Ownership::Ours { .. } | Ownership::Released { .. } => None,
    };
    if let Some(by) = by {
        let detail = format!("{by} sets the number of pods; remove it, or set scaling.replicas.mode to Off.");
        return (Reason::ConflictingAutoscaler, Some(detail));
    }
    let reason = match judged.reason {
        ConditionReason::Paused => Reason::Paused,
        ConditionReason::ModeOff => Reason::ModeOff,
        ConditionReason::ModeRecommend => Reason::ModeRecommend,
        ConditionReason::OtherManager => Reason::ConflictingAutoscaler,
        _ => Reason::ScalingIsActive,
    };
    (reason, sentence(judged).map(ToOwned::to_owned))
}

fn scaling_limited(done: &Done) -> (Reason, Option<String>) {
    // Whatever else is in the way: the scheduler's own words name it.
    let unscheduled = done.seen.pods.iter().find_map(|pod| match &pod.waiting {
        Some(Waiting::Node(why)) => Some((pod, why)),
        _ => None,
    });
    if let Some((pod, why)) = unscheduled {
        return (Reason::Unschedulable, Some(format!("Pod {} has no node: {why}", pod.name)));
    }
    if let Some(why) = done.seen.deployment.as_deref().and_then(denied) {
        return (Reason::ScalingDenied, Some(why.to_owned()));
    }
    let judged = &done.decision.explanation.conditions.scaling_limited;
    let reason = match judged.reason {
        ConditionReason::AtMaximum => Reason::AtMaximum,
        ConditionReason::AtMinimum => Reason::AtMinimum,
        ConditionReason::Unschedulable => Reason::Unschedulable,
        ConditionReason::ModelDegraded => Reason::ModelDegraded,
        _ => return held(done),
    };
    (reason, sentence(judged).map(ToOwned::to_owned))
}

/// What the planner waits for.
fn held(done: &Done) -> (Reason, Option<String>) {
    let reason = match done.decision.action {
        Action::Hold { reason: HoldReason::ColdStart } => Reason::ColdStart,
        Action::Hold { reason: HoldReason::Pending } => Reason::Pending,
        Action::Hold { reason: HoldReason::Stabilizing } => Reason::Stabilizing,
        Action::Hold { reason: HoldReason::CurveUnknown } => Reason::LimitedCurveUnknown,
        Action::Hold { reason: HoldReason::FlapDamped } => Reason::FlapDamped,
        Action::Hold { reason: HoldReason::NonFinite } => Reason::NonFinite,
        Action::Hold { .. } | Action::Change { .. } => return (Reason::WithinRange, None),
    };
    (reason, Some(done.decision.explanation.reason.clone()))
}

/// The planner's sentence; an empty one leaves the table's.
fn sentence(judged: &Judged) -> Option<&str> {
    Some(judged.message.as_str()).filter(|message| !message.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::ServiceId;
    use crate::observe;
    use crate::validate::fixtures::checked;
    use yolo_planner::observation::{Pod, Sample};
    use yolo_planner::units::Timestamp;
    use yolo_planner::{Knobs, Policy};

    fn pod(waiting: Option<Waiting>) -> PodView {
        PodView {
            uid: "u1".to_owned(),
            namespace: "kitchen".to_owned(),
            name: "fork-1".to_owned(),
            service: ServiceId { namespace: "kitchen".to_owned(), name: "fork".to_owned() },
            ip: None,
            phase: PodPhase::Pending,
            created: jiff::Timestamp::UNIX_EPOCH,
            ready_since: None,
            class: 0,
            node: None,
            knobs_annotation: None,
            deletion_cost: None,
            oom_killed: None,
            termination: None,
            restarts: 0,
            waiting,
        }
    }

    #[test]
    fn pod_that_does_not_start_is_told_with_what_it_lacks() {
        let claim = "{model: {source: {persistentVolumeClaim: {claimName: models, path: b.onnx}}}}";
        let told = |waiting| {
            let (reason, detail) = ready(&checked(claim).unwrap(), &[pod(waiting)], false, None);
            (reason, detail.unwrap())
        };
        let (reason, detail) = told(Some(Waiting::Image("local/s:1".to_owned())));
        assert_eq!(reason, Reason::ImageUnavailable);
        assert!(detail.contains("local/s:1"), "{detail}");
        let unbound = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.";
        let (reason, detail) = told(Some(Waiting::Node(unbound.to_owned())));
        assert_eq!(reason, Reason::VolumeUnavailable);
        assert!(detail.contains("claim models"), "{detail}");
        let (reason, detail) = told(Some(Waiting::Node("0/1 nodes are available: 1 Insufficient cpu.".to_owned())));
        assert_eq!((reason, detail.as_str()), (Reason::PodsNotReady, "0 of at least 1 pods are ready."));
        let (reason, detail) = told(Some(Waiting::Creating));
        assert_eq!(reason, Reason::PodsNotReady);
        assert!(detail.contains("claim models"), "{detail}");
        let (reason, detail) = told(Some(Waiting::Model));
        assert_eq!(reason, Reason::PodsNotReady);
        assert!(detail.ends_with("Pod fork-1 fetches the model."), "{detail}");
    }

    #[test]
    fn pods_that_serve_hide_a_stuck_scale_up_but_not_a_stuck_rollout() {
        let spec = checked("{model: {source: {imagePath: /a}}}").unwrap();
        let serving = PodView { phase: PodPhase::Ready, ..pod(None) };
        let pods = [serving, pod(Some(Waiting::Image("local/s:2".to_owned())))];
        assert_eq!(ready(&spec, &pods, false, None), (Reason::Serving, None));
        assert_eq!(ready(&spec, &pods, true, None).0, Reason::ImageUnavailable);
    }

    #[test]
    fn what_is_left_out_is_told_after_a_conflict_and_what_has_no_effect_is_no_stall() {
        let left_out = |clients: &str| {
            let spec = format!(
                "{{model: {{source: {{imagePath: /a}}}}, network: {{allowedClients: [{clients}]}}, \
                 targets: {{apiLatency: {{source: ingress}}}}}}"
            );
            checked(&spec).unwrap().left_out
        };
        assert_eq!(stalled(None, &left_out("")), (Reason::NotStalled, None));
        let left_out = left_out("{ipBlock: {cidr: here}}, {ipBlock: {cidr: there}}");
        let (reason, detail) = stalled(None, &left_out);
        assert_eq!(reason, Reason::PartlyInvalid);
        for value in ["allowedClients.ipBlock.cidr: \"here\"", "\"there\""] {
            assert!(detail.as_ref().unwrap().contains(value), "{detail:?}");
        }
        assert_eq!(stalled(Some("by kubectl"), &left_out), (Reason::FieldConflict, Some("by kubectl".to_owned())));
    }

    #[test]
    fn quota_that_keeps_pods_away_is_told_in_its_own_words() {
        let spec = checked("{model: {source: {imagePath: /a}}}").unwrap();
        let quota = "pods \"fork-1\" is forbidden: exceeded quota: small";
        let (reason, detail) = ready(&spec, &[], false, Some(quota));
        assert_eq!(
            (reason, detail.unwrap()),
            (Reason::PodsDenied, format!("{quota}. 0 of at least 1 pods are ready."))
        );
        let serving = PodView { phase: PodPhase::Ready, ..pod(None) };
        assert_eq!(ready(&spec, std::slice::from_ref(&serving), false, Some(quota)).0, Reason::Serving);
        assert_eq!(ready(&spec, &[serving], true, Some(quota)).0, Reason::PodsDenied, "the new version cannot come");
        let deployment = |status: &str| -> Deployment {
            let text = format!(
                "{{spec: {{selector: {{}}, template: {{}}}}, status: {{conditions: [{{type: ReplicaFailure, \
                 status: '{status}', message: over quota}}]}}}}"
            );
            serde_yaml_ng::from_str(&text).unwrap()
        };
        assert_eq!((denied(&deployment("True")), denied(&deployment("False"))), (Some("over quota"), None));
    }

    #[test]
    fn verdict_of_before_a_restart_stays_until_there_is_a_new_one() {
        let mut before = Vec::new();
        set(&mut before, Reason::TargetMissed, None, Some(3), &Time(jiff::Timestamp::UNIX_EPOCH));
        assert!(is_verdict(&before, 3));
        assert!(!is_verdict(&before, 4), "another spec");
        set(&mut before, Reason::TargetsNoData, None, Some(3), &Time(jiff::Timestamp::UNIX_EPOCH));
        assert!(!is_verdict(&before, 3), "nothing was known");

        let looked = |sample: Option<Signal<Sample>>| {
            let ready = PodView { phase: PodPhase::Ready, ..pod(None) };
            let unread = observe::pod(&ready, None, Timestamp::ZERO);
            let pods = vec![Pod { sample: sample.unwrap_or(unread.sample), ..unread }];
            Observation { pods, ..Observation::new(Knobs::initial(&Policy::default())) }
        };
        assert!(unlooked(&looked(None)));
        assert!(!unlooked(&looked(Some(Signal::NoData(NoData::Unreachable)))), "it does not answer");
        assert!(!unlooked(&Observation { pods: Vec::new(), ..looked(None) }), "nobody is there");
    }

    #[test]
    fn time_to_converge_is_counted_once_from_the_first_change() {
        let at = |seconds| Time(jiff::Timestamp::from_second(seconds).unwrap());
        let mut before = Vec::new();
        set(&mut before, Reason::Progressing, None, Some(1), &at(10));
        set(&mut before, Reason::Progressing, None, Some(2), &at(20));
        let mut after = before.clone();
        assert_eq!(converged_s(&before, &after), None);
        set(&mut after, Reason::UpToDate, None, Some(2), &at(52));
        assert_eq!(converged_s(&before, &after), Some(42.0));
        assert_eq!(converged_s(&after, &after), None, "told");
        assert_eq!(converged_s(&[], &after), None, "nothing was on its way");
    }

    #[test]
    fn refusal_of_the_server_has_a_reason_of_its_own() {
        let ended = |code: &str| {
            let termination = Termination { code: code.to_owned(), message: "it is not there".to_owned() };
            let pod = PodView { termination: Some(termination), restarts: 3, ..pod(None) };
            ready(&checked("{model: {source: {imagePath: /a}}}").unwrap(), &[pod], false, None).0
        };
        assert_eq!(ended("engine_unavailable"), Reason::EngineUnavailable);
        assert_eq!(ended("model_missing"), Reason::ModelMissing);
        assert_eq!(ended("model_fetch_failed"), Reason::ModelFetchFailed);
        assert_eq!(ended("from_the_future"), Reason::PodsFailing);
    }
}
