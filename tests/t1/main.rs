//! Promises kept against a real API server (tier T1: etcd and kube-apiserver, no root, no node).
//!
//! One module a promise, one namespace a test, conditions instead of sleeps. See `yolo_testkit::cluster`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a failed test"
)]

mod operator;
mod promise_chart_grants;
mod promise_cluster_starts;
mod promise_crd_refuses;
mod promise_crd_shows;
mod promise_metrics_sources_agree;
mod promise_operator_reconciles;
mod promise_operator_rests;
mod promise_operator_survives;
mod promise_operator_yields;
mod promise_spec_acts;
mod promise_upgrade_rolls_in_waves;

yolo_testkit::cluster_guard!();
