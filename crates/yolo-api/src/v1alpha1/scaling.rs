//! `spec.scaling`: the three knobs and how far the operator may turn them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    defaults,
    scalars::{DurationText, Quantity},
};

/// The three knobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.schedules) || self.schedules.all(peak, peak.replicasMin <= self.replicas.max)",
    "message": "schedules[].replicasMin must not be above replicas.max; lower it, or raise replicas.max",
    "fieldPath": ".schedules",
}]))]
pub struct Scaling {
    /// Who turns the knobs. A knob's own mode wins.
    #[serde(default)]
    pub mode: Mode,
    /// Number of pods.
    #[serde(default)]
    pub replicas: ReplicaRange,
    /// Largest batch of the engine, images.
    #[serde(default)]
    pub batch: BatchRange,
    /// Result cache of a pod, bytes.
    #[serde(default)]
    pub cache: CacheRange,
    /// Limits on the speed of scaling, as in autoscaling/v2; those of `scaleUp` bind schedules, too. Defaults come from the
    /// learned start-up time.
    #[serde(default)]
    pub behavior: Behavior,
    /// Known peaks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub schedules: Vec<Schedule>,
}

/// Who turns a knob.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// The operator.
    #[default]
    Auto,
    /// Nobody; the status says what the operator would do.
    Recommend,
    /// Nobody.
    Off,
}

/// Range of the number of pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.min <= self.max",
    "message": "replicas.min must not be above replicas.max; lower min, or raise max",
    "fieldPath": ".min",
}]))]
pub struct ReplicaRange {
    /// Who turns this knob; default: scaling.mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Fewest pods.
    #[serde(default = "defaults::replicas_min")]
    #[schemars(range(min = 1, max = 1000))]
    pub min: i32,
    /// Most pods.
    #[serde(default = "defaults::replicas_max")]
    #[schemars(range(min = 1, max = 1000))]
    pub max: i32,
    /// Exactly so many pods: min = max = fixed (also `kubectl scale`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub fixed: Option<i32>,
}

/// Range of the largest batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.min <= self.max",
    "message": "batch.min must not be above batch.max; lower min, or raise max (at most 32)",
    "fieldPath": ".min",
}]))]
pub struct BatchRange {
    /// Who turns this knob; default: scaling.mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Least value, images.
    #[serde(default = "defaults::batch_min")]
    #[schemars(range(min = 1, max = 32))]
    pub min: i32,
    /// Greatest value, images.
    #[serde(default = "defaults::batch_max")]
    #[schemars(range(min = 1, max = 32))]
    pub max: i32,
}

/// Range of a pod's result cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "quantity(string(self.min)).compareTo(quantity(string(self.max))) <= 0",
        "message": "cache.min must not be above cache.max; lower min, or raise max (at most 1Gi)",
        "fieldPath": ".min",
    },
    {
        "rule": "quantity(string(self.max)).compareTo(quantity('1Gi')) <= 0",
        "message": "cache.max must be at most 1Gi, for example \"256Mi\"",
        "fieldPath": ".max",
    },
]))]
pub struct CacheRange {
    /// Who turns this knob; default: scaling.mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Least value, bytes; 0 is off.
    #[serde(default = "defaults::cache_min")]
    pub min: Quantity,
    /// Greatest value, bytes.
    #[serde(default = "defaults::cache_max")]
    pub max: Quantity,
    /// How long a result may be reused (1s to 24h).
    #[serde(default = "defaults::cache_ttl")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "duration(self) >= duration('1s') && duration(self) <= duration('24h')",
        "message": "cache.ttl must be between 1s and 24h, for example \"1h\"",
    }]))]
    pub ttl: DurationText,
}

/// Limits on the speed of scaling.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Behavior {
    /// Limits on adding pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_up: Option<ScalingRules>,
    /// Limits on removing pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_down: Option<ScalingRules>,
}

/// Limits of one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScalingRules {
    /// How long a lower need must last before pods go (default: as long as a pod takes to start, at least 30 s), or
    /// under `scaleUp` a higher one before pods come (default: not at all), seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub stabilization_window_seconds: Option<i32>,
    /// Largest changes in a period, counted from the pods at its start, as in autoscaling/v2. Without any, pods come at
    /// once, and at most a fifth of them (at least one) goes in 30 s.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "atomic"))]
    pub policies: Vec<ScalingPolicy>,
    /// Which of several policies holds.
    #[serde(default)]
    pub select_policy: SelectPolicy,
}

/// Which of several policies holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SelectPolicy {
    /// The one that allows the largest change.
    #[default]
    Max,
    /// The one that allows the smallest change.
    Min,
    /// None: pods do not come, or do not go, except into the range of `replicas`.
    Disabled,
}

/// Largest change of the number of pods in a period.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScalingPolicy {
    /// What `value` counts.
    pub r#type: ScalingPolicyType,
    /// Pods, or percent of the pods (at least one pod).
    #[schemars(range(min = 1, max = 1000))]
    pub value: i32,
    /// The period, seconds.
    #[schemars(range(min = 1, max = 1800))]
    pub period_seconds: i32,
}

/// What a policy's value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ScalingPolicyType {
    /// Pods.
    Pods,
    /// Percent of the pods.
    Percent,
}

/// A known peak.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// When it starts: minute, hour, day of month, month, day of week.
    #[schemars(length(max = 128), extend("x-kubernetes-validations" = [{
        "rule": "self.matches('^[0-9*/,-]+( [0-9A-Za-z*/,-]+){4}$')",
        "message": "cron must have five fields (minute hour day-of-month month day-of-week), for example \"0 8 * * 1-5\"",
    }]))]
    pub cron: String,
    /// IANA time zone of `cron`; default: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: Option<String>,
    /// How long it lasts (1m to 7 days).
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "duration(self) >= duration('1m') && duration(self) <= duration('168h')",
        "message": "duration must be between 1m and 168h, for example \"2h\"",
    }]))]
    pub duration: DurationText,
    /// Fewest pods while it lasts.
    #[schemars(range(min = 1, max = 1000))]
    pub replicas_min: i32,
}
