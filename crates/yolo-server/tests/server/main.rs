//! The server as its clients see it: routes, sockets, knobs, engines.

mod batching;
mod errors;
mod knobs;
mod metrics;
mod onnx;
mod predict;
mod sockets;
mod support;
