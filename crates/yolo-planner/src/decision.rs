//! What the planner answers: knobs, why, and what to remember.

use serde::{Deserialize, Serialize};

use crate::explain::{Constraint, Explanation};
use crate::observation::Knobs;
use crate::state::State;
use crate::units::{Bytes, Rate, Ratio, Seconds, Timestamp};

/// The answer of one call of [`crate::plan`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Whether the knobs move, and why.
    pub action: Action,
    /// The knobs to apply. Knobs in Off or Recommend are as observed.
    pub desired: Knobs,
    /// The knobs as they would be if all were in Auto.
    pub recommended: Knobs,
    /// What the next call needs.
    pub state: State,
    /// The record of a change; only with [`Action::Change`].
    pub record: Option<Record>,
    /// Earlier records whose outcome is now known; replaces the record of the same id.
    pub judged: Vec<Record>,
    /// Why, as data.
    pub explanation: Explanation,
}

/// Whether the knobs move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// `desired` differs from the observed knobs.
    Change {
        /// What made it necessary.
        trigger: Trigger,
    },
    /// `desired` is what the previous call said, moved into the bounds.
    Hold {
        /// Why.
        reason: HoldReason,
    },
}

/// What made a change necessary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trigger {
    /// More or fewer arrivals.
    Load,
    /// A queue to work off.
    Backlog,
    /// The model of the service says that another setting is better.
    Model,
    /// The policy changed.
    Policy,
    /// A known peak comes.
    Schedule,
    /// Targets are missed too often.
    SloBurn,
    /// An earlier change made it worse.
    BackOff,
    /// Blind for so long that the peak of the past must be assumed.
    Blind,
}

/// Why nothing moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HoldReason {
    /// All is as it should be.
    Settled,
    /// No usable sample ever.
    NoData,
    /// Samples are old, or too few pods have one.
    Stale,
    /// Too little seen yet to take pods away.
    ColdStart,
    /// What was ordered is on its way.
    Pending,
    /// A lower need has not lasted long enough, or a rollout is under way.
    Stabilizing,
    /// How long a batch takes is not known yet.
    CurveUnknown,
    /// Directions changed too often.
    FlapDamped,
    /// Somebody else scales the service.
    OtherManager,
    /// Paused.
    Paused,
    /// All knobs are off.
    ModeOff,
    /// The change is only recommended.
    ModeRecommend,
    /// A number that is none, or time that runs backwards.
    NonFinite,
}

/// One change, what was expected of it, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Whole seconds of `time`: at most one change is made in a tick.
    pub id: u64,
    /// When.
    pub time: Timestamp,
    /// Why, as a class.
    pub trigger: Trigger,
    /// Knobs before.
    pub from: Knobs,
    /// Knobs after.
    pub to: Knobs,
    /// Why, as a sentence with numbers and units.
    pub reason: String,
    /// The constraints at that moment.
    pub constraints: Vec<Constraint>,
    /// What the model expects at the arrivals of that moment.
    pub predicted: Outcome,
    /// What was measured afterwards, at arrivals within 10 %.
    pub actual: Option<Outcome>,
    /// How the two compare.
    pub verdict: Option<RecordVerdict>,
}

/// Figures to compare a prediction with what came.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Median response time.
    pub p50: Option<Seconds>,
    /// 95th percentile of it.
    pub p95: Option<Seconds>,
    /// Images a second that the pods can carry within the targets.
    pub capacity: Rate,
    /// Working set of a pod.
    pub rss: Bytes,
    /// Image rate over the best possible rate of the pods.
    pub utilization: Ratio,
    /// Share of the images answered from the cache.
    pub hit_ratio: Ratio,
}

/// How a prediction and its outcome compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecordVerdict {
    /// p95 within 30 % of the prediction.
    Confirmed,
    /// Better by more.
    Better,
    /// Worse by more.
    Worse,
    /// Another change came first.
    Superseded,
    /// Arrivals moved, nothing was measured, or the change ended an overload, whose queue no prediction knows.
    Unmeasured,
}
