//! Every default of the API, in one place.
//!
//! Scalars are defaulted by the schema (a person sees them on the stored object). `accelerator` and `targets`
//! are not: a client that later adds `accelerator.emulated` or a shorter list of targets would have it *merged*
//! with defaults that the API server had stored, and get two accelerators or targets that it never asked for.
//! Their defaults act where they are read (`YoloInferenceServiceSpec::accelerator` and `targets`).

use std::collections::BTreeMap;

use super::{
    model::Nvidia,
    pod::{Drain, Resources, Server},
    scalars::{Decimal, DurationText, Quantity},
    scaling::{BatchRange, Behavior, CacheRange, Mode, ReplicaRange, Scaling},
    spec::{Overload, OverloadPolicy, Rollout, RolloutStrategy, Routing, Service, ServiceType, Tasks},
    targets::{ApiLatency, Availability, GpuUtilization, InferenceLatency, Percentile, Provision, Targets, Throughput},
};

/// Values, for `#[serde(default = "…")]`, which the schema shows too.
macro_rules! values {
    ($($name:ident: $type:ty = $value:expr;)*) => {
        $(pub(crate) fn $name() -> $type { $value.into() })*
    };
}

values! {
    confidence: Decimal = "0.25";
    iou: Decimal = "0.7";
    detections_max: i32 = 300;
    nvidia_count: i32 = 1;
    nvidia_resource: String = "nvidia.com/gpu";
    cpu: Quantity = "1";
    memory: Quantity = "2Gi";
    drain_propagation: DurationText = "5s";
    drain_budget: DurationText = "25s";
    inference_threshold: DurationText = "100ms";
    api_threshold: DurationText = "200ms";
    api_source: String = super::targets::SOURCE_SERVER;
    images_per_second: i32 = 10;
    memory_per_worker: Quantity = "2Gi";
    gpu_percent: i32 = 70;
    availability_percent: Decimal = "99";
    window: DurationText = "1m";
    violation_budget_percent: i32 = 1;
    replicas_min: i32 = 1;
    replicas_max: i32 = 10;
    batch_min: i32 = 1;
    batch_max: i32 = 16;
    cache_min: Quantity = "0";
    cache_max: Quantity = "256Mi";
    cache_ttl: DurationText = "1h";
    tasks_ttl: DurationText = "1h";
    tasks_complete_within: DurationText = "15m";
    queue_timeout: DurationText = "1s";
    service_port: i32 = 80;
}

/// `Default` of an object: what the schema fills in for an empty one, from the same values.
macro_rules! objects {
    ($($type:ident { $($field:ident: $value:expr),* $(,)? })*) => {
        $(impl Default for $type {
            fn default() -> Self {
                Self { $($field: $value),* }
            }
        })*
    };
}

objects! {
    Targets {
        inference_latency: Some(InferenceLatency::default()), api_latency: Some(ApiLatency::default()),
        throughput: Some(Throughput::default()), memory_per_worker: Some(memory_per_worker()),
        gpu_utilization: Some(GpuUtilization::default()), availability: Some(Availability::default()),
        window: window(), violation_budget_percent: violation_budget_percent(),
    }
    InferenceLatency { threshold: inference_threshold(), percentile: Percentile::default() }
    ApiLatency { threshold: api_threshold(), percentile: Percentile::default(), source: api_source() }
    Throughput { images_per_second: images_per_second(), provision: Provision::default() }
    GpuUtilization { min_percent: gpu_percent() }
    Availability { min_percent: availability_percent() }
    Scaling {
        mode: Mode::default(), replicas: ReplicaRange::default(), batch: BatchRange::default(),
        cache: CacheRange::default(), behavior: Behavior::default(), schedules: Vec::new(),
    }
    ReplicaRange { mode: None, min: replicas_min(), max: replicas_max(), fixed: None }
    BatchRange { mode: None, min: batch_min(), max: batch_max() }
    CacheRange { mode: None, min: cache_min(), max: cache_max(), ttl: cache_ttl() }
    Tasks { enabled: false, ttl: tasks_ttl(), complete_within: tasks_complete_within() }
    Overload { policy: OverloadPolicy::default(), queue_timeout: queue_timeout() }
    Service {
        r#type: ServiceType::default(), port: service_port(), annotations: BTreeMap::new(), routing: Routing::default(),
    }
    Rollout { strategy: RolloutStrategy::default() }
    Nvidia {
        count: nvidia_count(), resource_name: nvidia_resource(), provider: super::model::Provider::default(),
        precision: super::model::Precision::default(), engine_cache: None,
    }
    Resources { cpu: cpu(), memory: memory() }
    Drain { propagation: drain_propagation(), budget: drain_budget() }
    Server {
        image: None, resources: Resources::default(), image_pull_secrets: Vec::new(), pod_labels: BTreeMap::new(),
        pod_annotations: BTreeMap::new(), env: Vec::new(), node_selector: BTreeMap::new(), tolerations: Vec::new(),
        affinity: None, topology_spread_constraints: Vec::new(), priority_class_name: None, runtime_class_name: None,
        service_account_name: None, drain: Drain::default(),
    }
}
