//! Promises kept on a real node (tier T3: a whole Kubernetes with a kubelet and containers; needs root).
//!
//! One module a promise, one namespace a test, conditions instead of sleeps. See `yolo_testkit::cluster`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a failed test"
)]

mod product;
mod promise_cluster_leaves_nothing_behind;
mod promise_cluster_runs_pods;
mod promise_drain_fails_nothing;
mod promise_knobs_apply_live;
mod promise_model_failures_are_told;
mod promise_service_meets_targets;
mod service;

yolo_testkit::cluster_guard!();
