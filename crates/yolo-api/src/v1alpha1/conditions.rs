//! The closed table of conditions: every reason belongs to one condition and one status, and has one sentence.
//!
//! docs/conditions.md is generated from it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::status::clip;

/// The conditions of a service, in the order in which they are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// The desired generation serves with at least replicas.min pods.
    Ready,
    /// Something is on its way.
    Reconciling,
    /// Something keeps the operator from doing what the spec asks; a person is needed.
    Stalled,
    /// The targets have held for a whole window.
    TargetsMet,
    /// The targets can hold at the planned load.
    TargetsFeasible,
    /// The figures that decisions need are there.
    MetricsAvailable,
    /// The operator turns the knobs.
    ScalingActive,
    /// Something keeps the knobs from where they should be.
    ScalingLimited,
}

impl ConditionType {
    /// Every condition, in the order in which they are shown.
    pub const ALL: [Self; 8] = [
        Self::Ready,
        Self::Reconciling,
        Self::Stalled,
        Self::TargetsMet,
        Self::TargetsFeasible,
        Self::MetricsAvailable,
        Self::ScalingActive,
        Self::ScalingLimited,
    ];

    /// As in `status.conditions[].type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
            Self::TargetsMet => "TargetsMet",
            Self::TargetsFeasible => "TargetsFeasible",
            Self::MetricsAvailable => "MetricsAvailable",
            Self::ScalingActive => "ScalingActive",
            Self::ScalingLimited => "ScalingLimited",
        }
    }
}

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tristate {
    /// Yes.
    True,
    /// No.
    False,
    /// Not known.
    Unknown,
}

impl Tristate {
    /// As in `status.conditions[].status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// A line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The condition.
    pub condition: ConditionType,
    /// Its status.
    pub status: Tristate,
    /// Its reason, as in `status.conditions[].reason`.
    pub reason: &'static str,
    /// What it means, and what to do where a person is needed.
    pub sentence: &'static str,
}

/// One line a reason: variant, condition, status, reason text, sentence. Variants carry the condition's first word
/// where the same reason text occurs under two conditions.
macro_rules! table {
    ($($variant:ident = $condition:ident $status:ident $reason:literal $sentence:literal;)*) => {
        /// Every reason of every condition.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $(#[doc = $sentence] $variant,)* }

        impl Reason {
            /// Every reason, grouped by condition.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its line of the table.
            pub fn row(self) -> Row {
                match self {
                    $(Self::$variant => Row {
                        condition: ConditionType::$condition,
                        status: Tristate::$status,
                        reason: $reason,
                        sentence: $sentence,
                    },)*
                }
            }
        }
    };
}

table! {
    Serving = Ready True "Serving" "The desired generation serves with at least replicas.min pods.";
    PodsNotReady = Ready False "PodsNotReady" "Fewer pods than replicas.min are ready.";
    PodsFailing = Ready False "PodsFailing" "Pods end or restart; see their logs.";
    PodsDenied = Ready False "PodsDenied" "The API server refuses pods of this service (quota or policy); the message is its own.";
    ImageUnavailable = Ready False "ImageUnavailable" "The server image cannot be pulled; check server.image and server.imagePullSecrets.";
    VolumeUnavailable = Ready False "VolumeUnavailable" "A volume of the pods cannot be mounted; check the claim that model.source names.";
    ModelMissing = Ready False "ModelMissing" "The model file does not exist; correct model.source.";
    ModelTruncated = Ready False "ModelTruncated" "The model file is cut short or is no ONNX file; replace it.";
    ModelDigestMismatch = Ready False "ModelDigestMismatch" "The model file does not have the SHA-256 that model.sha256 asks for; correct one of them.";
    ModelUnsupported = Ready False "ModelUnsupported" "The model cannot be served; its outputs or operators are not supported.";
    ModelFetchFailed = Ready False "ModelFetchFailed" "The model cannot be fetched from model.source.uri, or not be written; it is tried again.";
    EngineUnavailable = Ready False "EngineUnavailable" "The model cannot run in the pods: ONNX Runtime or its execution provider is missing, or the warm-up failed.";
    ReadyInvalidSpec = Ready False "InvalidSpec" "The spec cannot be acted on; the message says what to change.";
    Progressing = Reconciling True "Progressing" "Pods of the desired generation are on their way.";
    RolloutWaiting = Reconciling True "RolloutWaiting" "The operator has changed what pods are made of; this service replaces its own when others have replaced theirs.";
    UpToDate = Reconciling False "UpToDate" "All that the spec asks for is in place.";
    InvalidSpec = Stalled True "InvalidSpec" "The spec cannot be acted on; the message says what to change.";
    PartlyInvalid = Stalled True "PartlyInvalid" "A part of the spec, which the message names, cannot be acted on and is left out; all else acts.";
    Malformed = Stalled True "Malformed" "The stored object does not have the form of its type; apply a correct one.";
    FieldConflict = Stalled True "FieldConflict" "Another client owns, or keeps changing, a field that the operator has to set; remove it there.";
    NameTaken = Stalled True "NameTaken" "An object that the service needs exists already and is not its own; delete or rename it, or give the service another name.";
    AccountNotAllowed = Stalled True "ServiceAccountNotAllowed" "The service account that server.serviceAccountName names does not exist or lacks the label yolo-operator.io/allowed=true; nothing is changed until it has it.";
    Denied = Stalled True "Denied" "The API server refuses an object of this service (quota, policy or permission); the message is its own.";
    ApplyFailed = Stalled True "ApplyFailed" "An object of this service could not be written; it is tried again.";
    NotStalled = Stalled False "NotStalled" "Nothing keeps the operator from doing what the spec asks.";
    AllMet = TargetsMet True "AllMet" "Every target that applies has been met or predicted for a whole window.";
    TargetMissed = TargetsMet False "TargetMissed" "A target has been missed for a whole window.";
    TargetsMeasuring = TargetsMet Unknown "Measuring" "No whole window has passed since the spec changed.";
    TargetsNoData = TargetsMet Unknown "NoData" "Nothing usable was measured yet.";
    TargetsStale = TargetsMet Unknown "Stale" "What was measured is too old, or covers too few pods.";
    Feasible = TargetsFeasible True "Feasible" "The targets can hold at the planned load.";
    ReplicasMaxTooLow = TargetsFeasible False "ReplicasMax" "More pods than replicas.max would be needed; raise it.";
    InferenceTooSlow = TargetsFeasible False "InferenceTooSlow" "One image alone, or the smallest batch that range and mode allow, takes longer than the inference threshold; more pods do not help.";
    ApiOverheadTooHigh = TargetsFeasible False "ApiOverhead" "Time outside the engine leaves too little of the API threshold; more pods do not help.";
    MemoryShort = TargetsFeasible False "MemoryShort" "Model and batch do not fit into the memory target or limit.";
    FeasibleCurveUnknown = TargetsFeasible Unknown "CurveUnknown" "How long a batch takes is not known yet.";
    FeasibleNoData = TargetsFeasible Unknown "NoData" "Nothing usable was measured yet.";
    MetricsFresh = MetricsAvailable True "Fresh" "Figures of all pods are fresh.";
    MetricsPartial = MetricsAvailable True "Partial" "Figures are fresh, but some pods are silent; pods are not removed on the word of the others alone.";
    MetricsNoData = MetricsAvailable False "NoData" "No usable figure was ever seen; nothing is scaled down.";
    MetricsStale = MetricsAvailable False "Stale" "Figures are too old, or cover too few pods; nothing is scaled down.";
    MetricsUnknown = MetricsAvailable Unknown "NoPods" "There is no ready pod to measure.";
    ScalingIsActive = ScalingActive True "Active" "The operator turns the knobs.";
    Paused = ScalingActive False "Paused" "spec.paused is true.";
    ModeOff = ScalingActive False "ModeOff" "scaling.mode is Off for every knob.";
    ModeRecommend = ScalingActive False "ModeRecommend" "scaling.mode is Recommend: the status says what the operator would do.";
    ConflictingAutoscaler = ScalingActive False "ConflictingAutoscaler" "Something else sets the number of pods; remove it, or set scaling.replicas.mode to Off.";
    WithinRange = ScalingLimited False "NotLimited" "Nothing keeps the knobs from where they should be.";
    AtMaximum = ScalingLimited True "AtMaximum" "More is needed than the range allows; raise the maximum.";
    AtMinimum = ScalingLimited True "AtMinimum" "Less is needed than the range allows.";
    Unschedulable = ScalingLimited True "Unschedulable" "No node has room for a pod.";
    ScalingDenied = ScalingLimited True "PodsDenied" "The API server refuses more pods of this service (quota or policy); the message is its own.";
    ModelDegraded = ScalingLimited True "ModelDegraded" "Measured latency does not fit the learned model; a simpler, more careful rule decides.";
    ColdStart = ScalingLimited True "ColdStart" "Too little was seen yet to take pods away.";
    Pending = ScalingLimited True "Pending" "What was ordered is on its way.";
    Stabilizing = ScalingLimited True "Stabilizing" "A lower or higher need has not lasted long enough, scaling.behavior allows no more yet, or a rollout is under way.";
    LimitedCurveUnknown = ScalingLimited True "CurveUnknown" "How long a batch takes is not known yet, so the batch is not raised.";
    FlapDamped = ScalingLimited True "FlapDamped" "Directions changed too often; the next change down waits longer.";
    NonFinite = ScalingLimited True "NonFinite" "A figure is no number, or time ran backwards; nothing moves on it.";
}

/// What each reason of the planner to hold still means in conditions.
pub const HOLD_REASONS: [(&str, Reason); 13] = [
    ("Settled", Reason::WithinRange),
    ("NoData", Reason::MetricsNoData),
    ("Stale", Reason::MetricsStale),
    ("ColdStart", Reason::ColdStart),
    ("Pending", Reason::Pending),
    ("Stabilizing", Reason::Stabilizing),
    ("CurveUnknown", Reason::LimitedCurveUnknown),
    ("FlapDamped", Reason::FlapDamped),
    ("OtherManager", Reason::ConflictingAutoscaler),
    ("Paused", Reason::Paused),
    ("ModeOff", Reason::ModeOff),
    ("ModeRecommend", Reason::ModeRecommend),
    ("NonFinite", Reason::NonFinite),
];

/// Sets the reason's condition in `conditions`. `detail` replaces the sentence of the table where more is known.
/// `lastTransitionTime` moves only when the status does.
pub fn set(conditions: &mut Vec<Condition>, reason: Reason, detail: Option<&str>, generation: Option<i64>, now: &Time) {
    let row = reason.row();
    let old = conditions.iter().position(|condition| condition.type_ == row.condition.as_str());
    let since = old
        .and_then(|at| conditions.get(at))
        .filter(|condition| condition.status == row.status.as_str())
        .map_or_else(|| now.clone(), |condition| condition.last_transition_time.clone());
    let condition = Condition {
        type_: row.condition.as_str().to_owned(),
        status: row.status.as_str().to_owned(),
        reason: row.reason.to_owned(),
        message: clip(detail.unwrap_or(row.sentence)),
        observed_generation: generation,
        last_transition_time: since,
    };
    match old.and_then(|at| conditions.get_mut(at)) {
        Some(place) => *place = condition,
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Time {
        serde_json::from_value(serde_json::json!(text)).unwrap()
    }

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let (early, late) = (at("2026-01-01T00:00:00Z"), at("2026-01-01T00:01:00Z"));
        let mut conditions = Vec::new();
        set(&mut conditions, Reason::ModelMissing, Some("/models/a.onnx is missing"), Some(1), &early);
        set(&mut conditions, Reason::PodsNotReady, None, Some(2), &late);
        assert_eq!(conditions.len(), 1);
        assert_eq!((conditions[0].reason.as_str(), conditions[0].observed_generation), ("PodsNotReady", Some(2)));
        assert_eq!(conditions[0].last_transition_time, early);
        set(&mut conditions, Reason::Serving, None, Some(2), &late);
        assert_eq!(conditions[0].last_transition_time, late);
    }

    #[test]
    fn a_reason_occurs_once_under_a_condition() {
        let mut seen: Vec<_> = Reason::ALL.iter().map(|reason| (reason.row().condition, reason.row().reason)).collect();
        let all = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), all);
        for condition in ConditionType::ALL {
            assert!(
                Reason::ALL.iter().any(|reason| reason.row().condition == condition),
                "{condition:?} has no reason"
            );
        }
    }
}
