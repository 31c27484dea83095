//! The Open Inference Protocol, version 2: what Triton's and `KServe`'s clients speak, over REST and over gRPC.
//!
//! The model has two inputs, of which a request names one: `image` takes encoded files and answers detections, `images`
//! takes tensors that are prepared already and answers the model's own outputs. `rest` and `grpc` translate; what
//! is asked is done by `infer`, on the same path as `/predict`.

mod config;
mod detections;
pub mod grpc;
mod infer;
mod metadata;
mod raw;
mod repository;
pub mod rest;
mod statistics;
pub mod tensor;

pub(super) use config::ModelConfig;
pub(super) use metadata::{ModelMetadata, ServerMetadata};
pub(super) use repository::ModelIndex;
pub(super) use statistics::Statistics;
