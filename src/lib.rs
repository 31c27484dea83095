//! Kubernetes operator and autoscaler for YOLO object-detection inference.
