//! Open-loop load generator and client for YOLO HTTP APIs.
