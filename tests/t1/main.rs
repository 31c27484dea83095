//! Promises kept against a real API server (tier T1: etcd and kube-apiserver, no root, no node).
//!
//! One module a promise, one namespace a test, conditions instead of sleeps. See `yolo_testkit::cluster`.

mod promise_cluster_starts;

yolo_testkit::cluster_guard!();
