//! A fleet of inference pods, simulated event by event, under `yolo_planner::plan` and under other autoscalers.
//!
//! `trace -> fleet (pods, routing, queues) -> a scaler's order -> fleet`, then `ledger -> report`. Everything is seeded:
//! the same seed makes the same bytes, and the same arrivals under every scaler.
//!
//! **Bounds:** an index into pods, seats or bins is made in the module that uses it, from the length of what it indexes.
#![forbid(unsafe_code)]
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts and times of a simulation are far below 2^52, and `as` saturates"
)]

pub mod bench;
pub mod cache;
pub mod calls;
pub mod campaign;
pub mod chart;
pub mod contestant;
pub mod course;
pub mod faults;
pub mod figure;
/// The file alone: the crate around it would bring Kubernetes into a simulation.
#[path = "../../yolo-testkit/src/figures.rs"]
pub mod figures;
pub mod fleet;
pub mod goals;
pub mod pictures;
pub mod policies;
pub mod programme;
pub mod random;
pub mod recording;
pub mod report;
pub mod sampling;
pub mod scaler;
pub mod service;
pub mod stats;
pub mod timeline;
pub mod trace;
pub mod variation;
pub mod world;
