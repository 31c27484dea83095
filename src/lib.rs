//! Kubernetes operator and autoscaler for YOLO object-detection inference.

#![forbid(unsafe_code)]

pub mod fleet;
pub mod limits;
