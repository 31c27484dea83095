//! Targets, ranges and behaviour of the spec as the planner's `Policy`.

use yolo_api::v1alpha1::model::{Accelerator as SpecAccelerator, EmulatedDevice};
use yolo_api::v1alpha1::scaling::{
    Mode as SpecMode, Scaling, ScalingPolicy, ScalingPolicyType, ScalingRules, SelectPolicy,
};
use yolo_api::v1alpha1::spec::{OverloadPolicy as SpecOverload, Routing as SpecRouting};
use yolo_api::v1alpha1::targets::{Percentile, Provision as SpecProvision, Targets as SpecTargets};
use yolo_api::v1alpha1::validate::FieldError;
use yolo_api::v1alpha1::{DurationText, YoloInferenceServiceSpec};
use yolo_planner::policy::{
    Accelerator, Amount, Knob, LatencyTarget, Mode, Overload, OverloadPolicy, Pace, Paces, Policy, Provision, Routing,
    Select, Targets, ThroughputTarget,
};
use yolo_planner::units::{BatchSize, Bytes, Rate, Ratio, Replicas, Seconds};

/// The policy of `spec`.
///
/// # Errors
/// [`FieldError`] names the first field that is no quantity.
pub fn policy(spec: &YoloInferenceServiceSpec) -> Result<Policy, FieldError> {
    let scaling = &spec.scaling;
    let (up, down) = (scaling.behavior.scale_up.as_ref(), scaling.behavior.scale_down.as_ref());
    let usual = Policy::default();
    Ok(Policy {
        targets: targets(&spec.targets())?,
        replicas: replicas(scaling),
        batch: batch(scaling),
        cache: Knob {
            mode: mode(scaling.cache.mode, scaling.mode),
            min: Bytes::new(scaling.cache.min.bytes("spec.scaling.cache.min")?),
            max: Bytes::new(scaling.cache.max.bytes("spec.scaling.cache.max")?),
        },
        cache_ttl: seconds(&scaling.cache.ttl, "spec.scaling.cache.ttl")?,
        stabilization: down.and_then(lasts),
        stabilization_up: up.and_then(lasts),
        paces_up: up.and_then(paces),
        paces_down: down.and_then(paces),
        memory_limit: Bytes::new(spec.server.resources.memory.bytes("spec.server.resources.memory")?),
        overload: Overload {
            policy: match spec.overload.policy {
                SpecOverload::Queue => OverloadPolicy::Queue,
                SpecOverload::Shed => OverloadPolicy::Shed,
            },
            queue_timeout: seconds(&spec.overload.queue_timeout, "spec.overload.queueTimeout")?,
        },
        complete_within: seconds(&spec.tasks.complete_within, "spec.tasks.completeWithin")?,
        accelerator: accelerator(&spec.accelerator()),
        routing: match spec.service.routing {
            SpecRouting::Random => Routing::Random,
            SpecRouting::RoundRobin => Routing::RoundRobin,
            SpecRouting::LeastOutstanding => Routing::LeastOutstanding,
        },
        paused: spec.paused,
        ..usual
    })
}

fn targets(spec: &SpecTargets) -> Result<Targets, FieldError> {
    let latency = |threshold: &DurationText, percentile: Percentile, path| {
        let quantile = Ratio::try_from(percentile.quantile()).unwrap_or_default();
        seconds(threshold, path).map(|threshold| LatencyTarget { threshold, quantile })
    };
    let inference = spec.inference_latency.as_ref();
    let api = spec.api_latency.as_ref();
    let availability = spec.availability.as_ref();
    Ok(Targets {
        inference: inference
            .map(|row| latency(&row.threshold, row.percentile, "spec.targets.inferenceLatency.threshold"))
            .transpose()?,
        api: api.map(|row| latency(&row.threshold, row.percentile, "spec.targets.apiLatency.threshold")).transpose()?,
        throughput: spec.throughput.as_ref().map(|row| ThroughputTarget {
            rate: Rate::whole(count(row.images_per_second)),
            provision: match row.provision {
                SpecProvision::OnDemand => Provision::OnDemand,
                SpecProvision::Always => Provision::Always,
            },
        }),
        memory: spec
            .memory_per_worker
            .as_ref()
            .map(|quantity| quantity.bytes("spec.targets.memoryPerWorker").map(Bytes::new))
            .transpose()?,
        gpu: spec.gpu_utilization.as_ref().map(|row| Ratio::percent(count(row.min_percent))),
        availability: availability
            .map(|row| row.min_percent.number("spec.targets.availability.minPercent"))
            .transpose()?
            .and_then(|percent| Ratio::try_from(percent / 100.0).ok()),
        window: seconds(&spec.window, "spec.targets.window")?,
        budget: Ratio::percent(count(spec.violation_budget_percent)),
    })
}

fn replicas(scaling: &Scaling) -> Knob<Replicas> {
    let range = &scaling.replicas;
    // `kubectl scale` sets `fixed`, which no CEL rule compares with the range: what it says is what is held, in every mode.
    let mode = if range.fixed.is_some() { Mode::Auto } else { mode(range.mode, scaling.mode) };
    let (min, max) = range.fixed.map_or((range.min, range.max), |fixed| (fixed, fixed));
    Knob { mode, min: Replicas::new(count(min).max(1)), max: Replicas::new(count(max).max(1)) }
}

fn batch(scaling: &Scaling) -> Knob<BatchSize> {
    let range = &scaling.batch;
    let size = |value: i32| BatchSize::try_from(count(value).clamp(1, BatchSize::MAX.get())).unwrap_or_default();
    Knob { mode: mode(range.mode, scaling.mode), min: size(range.min), max: size(range.max) }
}

/// The knob's own mode wins.
fn mode(own: Option<SpecMode>, all: SpecMode) -> Mode {
    match own.unwrap_or(all) {
        SpecMode::Auto => Mode::Auto,
        SpecMode::Recommend => Mode::Recommend,
        SpecMode::Off => Mode::Off,
    }
}

/// How long a need must last.
fn lasts(rules: &ScalingRules) -> Option<Seconds> {
    rules.stabilization_window_seconds.map(|s| Seconds::whole(count(s)))
}

/// The limits on the speed of one direction; none where nothing limits it.
fn paces(rules: &ScalingRules) -> Option<Paces> {
    let select = match rules.select_policy {
        SelectPolicy::Max => Select::Fastest,
        SelectPolicy::Min => Select::Slowest,
        SelectPolicy::Disabled => Select::Disabled,
    };
    let limits: Vec<Pace> = rules.policies.iter().map(pace).collect();
    (!limits.is_empty() || select == Select::Disabled).then_some(Paces { limits, select })
}

fn pace(rule: &ScalingPolicy) -> Pace {
    let most = match rule.r#type {
        ScalingPolicyType::Pods => Amount::Pods(count(rule.value)),
        ScalingPolicyType::Percent => Amount::Percent(count(rule.value)),
    };
    Pace { most, period: Seconds::whole(count(rule.period_seconds)) }
}

/// What the pods compute on, as the planner's rules tell devices apart.
fn accelerator(spec: &SpecAccelerator) -> Accelerator {
    match spec.emulated.as_ref().map(|emulated| emulated.device) {
        Some(EmulatedDevice::Gpu) => Accelerator::Gpu,
        None if spec.nvidia.is_some() => Accelerator::Gpu,
        Some(EmulatedDevice::Cpu) | None => Accelerator::Cpu,
    }
}

fn seconds(text: &DurationText, path: &'static str) -> Result<Seconds, FieldError> {
    text.parse(path).map(Seconds::from)
}

/// Negative numbers were refused by the schema; they count as none.
fn count(value: i32) -> u32 {
    u32::try_from(value).unwrap_or(0)
}
