//! Pure decision core: policy, observation, state and time in, a decision out.
//!
//! **Invariant:** no clock, randomness, environment or I/O; [`plan`] is total and deterministic.
#![forbid(unsafe_code)]

pub mod decision;
pub mod explain;
pub mod histogram;
mod hold;
pub mod observation;
mod plan;
pub mod policy;
pub mod state;
pub mod units;

pub use decision::{Action, Decision, HoldReason, Record, Trigger};
pub use explain::Explanation;
pub use histogram::Histogram;
pub use observation::{Knobs, Observation};
pub use plan::plan;
pub use policy::Policy;
pub use state::{Learned, State};
