//! `make demo`: two services from `kubectl apply` to `TargetsMet=True` under load, on a real cluster.
pub mod install;
pub mod knobs;
pub mod observe;
pub mod page;
pub mod plot;
pub mod pods;
pub mod progress;
pub mod scenario;
pub mod site;
pub mod status;
pub mod timeline;
