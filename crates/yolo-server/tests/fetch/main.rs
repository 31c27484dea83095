//! `yolo-server fetch` against real servers: nginx, moto's S3, docker-registry.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a helper that fails is a failed test")]

mod buckets;
mod https;
mod program;
mod proxy;
mod registry;
mod servers;
