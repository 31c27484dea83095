//! The server as its clients see it: routes, sockets, knobs, engines.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a failed test"
)]

mod annotate;
mod batch;
mod batching;
mod body_limits;
mod clients;
mod compression;
mod decoders;
mod errors;
mod fairness;
mod footprint;
mod gpu;
mod grpc;
mod hostile;
mod hostile_models;
mod http2;
mod isolation;
mod knobs;
mod metrics;
mod oip;
mod onnx;
mod openapi;
mod predict;
mod profile;
mod program;
mod redis;
mod reload;
mod shared_cache;
mod shared_tasks;
mod single_flight;
mod sizes;
mod sockets;
mod support;
mod tasks;
mod trace;
mod vision_tasks;
