//! Local Kubernetes cluster, demo driver and oracles for this project's tests.
