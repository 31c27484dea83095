//! Pure decision core: policy, observation, state and time in, a decision out.
//!
//! **Invariant:** no clock, randomness, environment or I/O; [`plan`] is total and deterministic.
#![forbid(unsafe_code)]

mod arrivals;
mod burn;
mod capacity;
mod chain;
mod choose;
mod conditions;
mod control;
mod curve;
mod deadline;
pub mod decision;
mod diagnose;
pub mod explain;
mod feedback;
#[cfg(test)]
mod fleet;
mod forecast;
mod guard;
pub mod histogram;
mod hits;
mod intake;
mod learn;
mod line;
mod normal;
pub mod observation;
mod outcome;
mod pace;
mod plan;
mod pod_model;
pub mod policy;
mod raise;
mod reason;
mod relax;
mod report;
pub mod state;
mod table;
mod targets;
pub mod units;
mod view;
mod window;

pub use decision::{Action, Decision, HoldReason, Record, Trigger};
pub use explain::Explanation;
pub use histogram::Histogram;
pub use observation::{Knobs, Observation};
pub use plan::plan;
pub use policy::Policy;
pub use state::{Learned, State};
