//! Local Kubernetes cluster, demo driver and oracles for this project's tests.
pub mod cluster;
pub mod demo;
pub mod figures;
