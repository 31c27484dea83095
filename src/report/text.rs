//! Figures as people read them: two digits, with their unit.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;
use yolo_planner::decision::Trigger;
use yolo_planner::explain::{ConstraintKind, TargetName};
use yolo_planner::units::Timestamp;

/// Bytes of a MiB.
const MEBI: f64 = 1_048_576.0;

/// `value` with two significant digits: more would change with every sample and tell nobody anything.
pub fn two_digits(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10_f64.powf(1.0 - value.abs().log10().floor());
    (value * scale).round() / scale
}

/// A figure of a target, in the target's unit.
pub fn figure(target: TargetName, value: f64) -> String {
    match target {
        TargetName::InferenceLatency | TargetName::ApiLatency => seconds(value),
        TargetName::Throughput => format!("{value}/s"),
        TargetName::MemoryPerWorker => bytes(value),
        TargetName::GpuUtilization | TargetName::Availability => format!("{}%", rounded(value * 100.0)),
    }
}

/// A measured figure of a target: two digits of it, in the target's unit.
pub fn observed(target: TargetName, value: f64) -> String {
    match target {
        TargetName::MemoryPerWorker => bytes_observed(value),
        // Two digits of 99.4 % would be 99 %: here it is the unanswered share that has two.
        TargetName::Availability => figure(target, 1.0 - two_digits(1.0 - value)),
        _ => figure(target, two_digits(value)),
    }
}

/// Two digits of a constraint's figure, in the kind's unit.
pub fn constrained(kind: ConstraintKind, value: f64) -> String {
    match kind {
        ConstraintKind::InferenceLatency | ConstraintKind::ApiLatency | ConstraintKind::OneImage => {
            seconds(two_digits(value))
        }
        ConstraintKind::Capacity | ConstraintKind::Throughput | ConstraintKind::CpuQuota => {
            format!("{}/s", two_digits(value))
        }
        ConstraintKind::Memory => bytes_observed(value),
        ConstraintKind::ReplicasMin | ConstraintKind::ReplicasMax => rounded(value).to_string(),
    }
}

/// Two digits in the unit that is shown: two of the bytes would be many of the MiB.
fn bytes_observed(value: f64) -> String {
    bytes(two_digits(value / MEBI) * MEBI)
}

/// `43ms`, `1.2s`.
pub fn seconds(value: f64) -> String {
    if value < 1.0 { format!("{}ms", rounded(value * 1e3)) } else { format!("{}s", rounded(value)) }
}

/// `310Mi`, `2Gi`.
fn bytes(value: f64) -> String {
    let mebi = value / MEBI;
    if mebi < 1024.0 { format!("{}Mi", rounded(mebi)) } else { format!("{}Gi", rounded(mebi / 1024.0)) }
}

/// To a thousandth, so that 0.1 + 0.2 reads 0.3.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// The word of a closed set, as the planner serialises it.
pub fn word<T: Serialize>(value: &T) -> String {
    serde_json::to_value(value).ok().and_then(|word| word.as_str().map(ToOwned::to_owned)).unwrap_or_default()
}

/// The word of a trigger; also a metric label.
pub fn trigger(trigger: Trigger) -> &'static str {
    match trigger {
        Trigger::Load => "Load",
        Trigger::Backlog => "Backlog",
        Trigger::Model => "Model",
        Trigger::Policy => "Policy",
        Trigger::Schedule => "Schedule",
        Trigger::SloBurn => "SloBurn",
        Trigger::BackOff => "BackOff",
        Trigger::Blind => "Blind",
    }
}

/// Whole seconds, as Kubernetes stores times.
pub fn time(at: Timestamp) -> Time {
    // Seconds since 1970 fit 2^53 for the next 285 million years; out of jiff's range falls back to 1970.
    #[expect(clippy::cast_possible_truncation, reason = "`as` saturates, and the fall-back covers the rest")]
    let seconds = at.get() as i64;
    Time(jiff::Timestamp::from_second(seconds).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_two_digits_and_their_unit() {
        assert_eq!(observed(TargetName::ApiLatency, 0.043_21), "43ms");
        assert_eq!(observed(TargetName::ApiLatency, 1.234), "1.2s");
        assert_eq!(observed(TargetName::Throughput, 123.4), "120/s");
        assert_eq!(observed(TargetName::Availability, 0.987), "98.7%");
        assert_eq!(observed(TargetName::MemoryPerWorker, 130_000_000.0), "120Mi");
        assert_eq!(constrained(ConstraintKind::Memory, 240_000_000.0), "230Mi");
        assert_eq!(constrained(ConstraintKind::Capacity, 75.9), "76/s");
        assert_eq!(constrained(ConstraintKind::ReplicasMax, 10.0), "10");
        assert_eq!(figure(TargetName::Availability, 0.995), "99.5%");
        assert_eq!(figure(TargetName::MemoryPerWorker, 2_147_483_648.0), "2Gi");
        assert!(two_digits(f64::NAN).abs() < f64::EPSILON);
    }
}
