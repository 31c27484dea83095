//! The decision, top to bottom.

use crate::decision::Decision;
use crate::observation::Observation;
use crate::policy::Policy;
use crate::state::State;
use crate::units::Timestamp;

/// Decides the knobs of one service.
pub fn plan(policy: &Policy, observation: &Observation, state: &State, now: Timestamp) -> Decision {
    crate::hold::hold(policy, observation, state, now)
}
