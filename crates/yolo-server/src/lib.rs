//! The inference server: pictures in over HTTP, detections out.
//!
//! The path of a request: [`http::predict`] (HTTP to types) -> [`predictor`] (cache, [`admission`]) -> [`prepare`]
//! (decode, letterbox) -> [`batcher`] (queue, workers) -> [`engine`] (model) -> back.
//!
//! Pictures that nobody waits for take the same path later ([`tasks`]); what servers share is in [`store`].
//!
//! It never learns that an operator exists: it reads a file ([`knobs`]) and exports [`metrics`].
#![deny(unsafe_code)]

pub mod admission;
pub mod app;
pub mod args;
mod arrivals;
pub mod batcher;
pub mod cache;
pub mod cgroup;
mod connection;
pub mod engine;
mod fair;
pub mod fetch;
mod framing;
pub mod gpu;
pub mod http;
pub mod knobs;
pub mod libraries;
pub mod lifecycle;
pub mod limits;
mod load;
pub mod logging;
mod memory;
pub mod metrics;
mod permits;
pub mod predictor;
pub mod prepare;
mod priority;
mod random;
mod refusals;
pub mod reload;
mod server;
pub mod sha256;
pub mod store;
pub mod tasks;
mod termination;
pub mod traces;
mod watched_io;

use std::future::Future;

use tokio::sync::Notify;

pub use args::Config;
pub use server::{Server, StartError};

/// Serves until `terminate` resolves, then drains. Told `hangup`, it reads the model's file again ([`reload`]).
///
/// # Errors
/// [`StartError`] if the server cannot start; a reason that a person must act on is in the termination log.
pub async fn run(config: Config, terminate: impl Future<Output = ()>, hangup: &Notify) -> Result<(), StartError> {
    let termination_log = config.termination_log.clone();
    let mut terminate = std::pin::pin!(terminate);
    let started = tokio::select! {
        started = Box::pin(Server::start(config)) => started,
        () = terminate.as_mut() => return Ok(()),
    };
    match started {
        Ok(server) => {
            tokio::select! {
                () = terminate => {}
                () = reload::whenever(server.app(), hangup, cgroup::memory_stat) => {}
            }
            server.drain().await;
            Ok(())
        }
        Err(error) => {
            termination::write(&termination_log, &error);
            Err(error)
        }
    }
}
