//! The Open Inference Protocol, version 2: what Triton's and `KServe`'s clients speak, over REST and over gRPC.
//!
//! The model has two inputs, of which a request names one: `image` takes encoded files and answers detections, `images`
//! takes tensors that are prepared already and answers the model's own outputs. [`rest`] and [`grpc`] translate; what
//! is asked is done by [`infer`], on the same path as `/predict`.

pub(crate) mod grpc;
mod infer;
mod metadata;
pub(super) mod rest;
mod statistics;
mod tensor;
