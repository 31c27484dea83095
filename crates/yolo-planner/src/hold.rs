//! seam
use crate::decision::{Action, Decision, HoldReason};
use crate::explain::{Condition, ConditionReason, Conditions, Explanation, Forecast, Load, Tristate};
use crate::observation::Observation;
use crate::policy::Policy;
use crate::state::State;
use crate::units::Timestamp;

pub(crate) fn hold(policy: &Policy, observation: &Observation, state: &State, now: Timestamp) -> Decision {
    let unknown = |reason| Condition { status: Tristate::Unknown, reason, message: "No usable sample yet.".to_owned() };
    let mut desired = observation.current;
    desired.replicas = policy.replicas.clamp(desired.replicas);
    let mut state = state.clone();
    state.last = Some(now);
    Decision {
        action: Action::Hold { reason: HoldReason::NoData },
        desired,
        recommended: desired,
        state,
        record: None,
        judged: Vec::new(),
        explanation: Explanation {
            reason: "No usable sample yet.".to_owned(),
            load: Load::default(),
            forecast: Forecast::default(),
            capacity: crate::explain::Capacity::default(),
            constraints: Vec::new(),
            best3: Vec::new(),
            relaxations: Vec::new(),
            targets: Vec::new(),
            targets_summary: "0/0".to_owned(),
            bottlenecks: Vec::new(),
            advice: Vec::new(),
            conditions: Conditions {
                targets_met: unknown(ConditionReason::NoData),
                targets_feasible: unknown(ConditionReason::CurveUnknown),
                metrics_available: unknown(ConditionReason::NoData),
                scaling_active: unknown(ConditionReason::Active),
                scaling_limited: unknown(ConditionReason::NotLimited),
            },
        },
    }
}
