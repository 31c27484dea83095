//! `spec.model` and `spec.accelerator`: what runs, and on what.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{defaults, scalars::Decimal};

/// The model and how its output is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!has(self.source.uri) || has(self.sha256) || self.source.uri.matches('^oci://[^ ]+@sha256:[0-9a-f]{64}$')",
        "message": "set sha256 (64 hex digits) beside source.uri, or pin an oci uri with @sha256:…: a downloaded model is checked before it is loaded",
        "fieldPath": ".sha256",
    },
    {
        "rule": "!has(self.credentialsSecretName) || has(self.source.uri)",
        "message": "credentialsSecretName is only used with source.uri; remove it, or give a uri",
        "fieldPath": ".credentialsSecretName",
    },
]))]
pub struct Model {
    /// Where the ONNX file is. Exactly one.
    pub source: ModelSource,
    /// SHA-256 of the file, 64 hex digits; checked before loading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: Option<String>,
    /// Name of a Secret of this namespace; its keys become the environment of the init container that fetches `source.uri`:
    /// `AWS_ACCESS_KEY_ID`, `GOOGLE_SERVICE_ACCOUNT_KEY`, `AZURE_STORAGE_ACCOUNT_KEY`, `HTTP_BEARER_TOKEN`, `OCI_USERNAME` and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub credentials_secret_name: Option<String>,
    /// Side of the model's square input, pixels; default: the model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 32, max = 4096), extend("x-kubernetes-validations" = [{
        "rule": "self % 32 == 0",
        "message": "imageSize must be a multiple of 32, for example 640",
    }]))]
    pub image_size: Option<i32>,
    /// Least confidence of a detection, 0 to 1, as text; a request may override it.
    #[serde(default = "defaults::confidence")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "double(self) <= 1.0",
        "message": "confidence must be between 0 and 1, for example \"0.25\"",
    }]))]
    pub confidence: Decimal,
    /// Overlap from which two boxes are the same object, 0 to 1, as text; a request may override it.
    #[serde(default = "defaults::iou")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "double(self) <= 1.0",
        "message": "iou must be between 0 and 1, for example \"0.7\"",
    }]))]
    pub iou: Decimal,
    /// Most detections of an image; a request may override it.
    #[serde(default = "defaults::detections_max")]
    #[schemars(range(min = 1, max = 3000))]
    pub max_detections: i32,
}

/// Where the ONNX file is: exactly one of the fields.
// Atomic: a source applied server-side replaces the other kind of source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend(
    "x-kubernetes-map-type" = "atomic",
    "x-kubernetes-validations" = [{
        "rule": "[has(self.uri), has(self.persistentVolumeClaim), has(self.imagePath)].filter(given, given).size() == 1",
        "message": "give exactly one of uri, persistentVolumeClaim and imagePath",
    }],
))]
pub struct ModelSource {
    /// Address of the file: s3, gs, az, https or oci. An init container fetches it, with `credentialsSecretName`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), extend("x-kubernetes-validations" = [{
        "rule": "self.matches('^(s3|gs|az|https|oci)://[^ ]+$')",
        "message": "uri must start with s3://, gs://, az://, https:// or oci://",
    }]))]
    pub uri: Option<String>,
    /// A file on a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimFile>,
    /// Absolute path of a file that the server image carries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), extend("x-kubernetes-validations" = [{
        "rule": "self.matches('^(/[^/ ]+)+$') && !self.contains('/..')",
        "message": "imagePath must be an absolute path without \"..\", for example /models/yolo11n.onnx",
    }]))]
    pub image_path: Option<String>,
}

/// A file on a `PersistentVolumeClaim` of this namespace; mounted read-only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimFile {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
    /// Path of the file inside the volume.
    #[schemars(length(max = 512), extend("x-kubernetes-validations" = [{
        "rule": "self.matches('^[^/ ]+(/[^/ ]+)*$') && !self.split('/').exists(part, part == '..')",
        "message": "path must be relative to the volume and without \"..\", for example detect/yolo11n.onnx",
    }]))]
    pub path: String,
}

/// What the model runs on: exactly one of the fields. Absent: `cpu: {profile: Throughput}`.
// Atomic: an accelerator applied server-side replaces the other kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend(
    "x-kubernetes-map-type" = "atomic",
    "x-kubernetes-validations" = [{
        "rule": "[has(self.cpu), has(self.nvidia), has(self.emulated)].filter(given, given).size() == 1",
        "message": "give exactly one of cpu, nvidia and emulated, or leave accelerator out to get cpu",
    }],
))]
pub struct Accelerator {
    /// CPU cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// NVIDIA GPUs. They need a server image with CUDA: `server.image`, or the one that the operator was installed with
    /// for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvidia: Option<Nvidia>,
    /// Rehearsal without hardware: no inference happens. Said in status and in every response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emulated: Option<Emulated>,
}

impl Default for Accelerator {
    fn default() -> Self {
        Self { cpu: Some(Cpu::default()), nvidia: None, emulated: None }
    }
}

/// Inference on CPU cores.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cpu {
    /// How the cores are used.
    #[serde(default)]
    pub profile: CpuProfile,
}

/// How cores are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CpuProfile {
    /// A session a core.
    #[default]
    Throughput,
    /// One session on all cores.
    Latency,
}

/// Inference on NVIDIA GPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.count == 1 || !self.resourceName.contains('/mig-')",
    "message": "count must be 1 with slices of a GPU (MIG): a process can use one; name the resource of a larger slice, or raise scaling.replicas",
    "fieldPath": ".count",
}]))]
pub struct Nvidia {
    /// GPUs of a pod; of slices (MIG) one.
    #[serde(default = "defaults::nvidia_count")]
    #[schemars(range(min = 1, max = 16))]
    pub count: i32,
    /// The extended resource that stands for them, such as `nvidia.com/gpu` or `nvidia.com/mig-1g.10gb`.
    #[serde(default = "defaults::nvidia_resource")]
    #[schemars(length(max = 128), regex(pattern = r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$"))]
    pub resource_name: String,
    /// Execution provider of ONNX Runtime. Never falls back to the CPU.
    #[serde(default)]
    pub provider: Provider,
    /// Arithmetic of the engine.
    #[serde(default)]
    pub precision: Precision,
    /// Where built `TensorRT` engines are kept; default: the pod's own disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_cache: Option<EngineCache>,
}

/// Execution provider on NVIDIA GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Provider {
    /// CUDA, which runs every model at once.
    #[default]
    Auto,
    /// CUDA.
    Cuda,
    /// `TensorRT`.
    TensorRt,
}

/// Arithmetic of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Precision {
    /// The server decides.
    #[default]
    Auto,
    /// 32-bit floats.
    Fp32,
    /// 16-bit floats.
    Fp16,
}

/// Where built engines are kept: exactly one of the fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend(
    "x-kubernetes-map-type" = "atomic",
    "x-kubernetes-validations" = [{
        "rule": "has(self.persistentVolumeClaim) != has(self.emptyDir)",
        "message": "give exactly one of persistentVolumeClaim and emptyDir",
    }],
))]
pub struct EngineCache {
    /// A claim of this namespace that every pod can write to: engines outlive pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<EngineCacheClaim>,
    /// The pod's own disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EngineCacheEmptyDir>,
}

/// A claim for built engines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EngineCacheClaim {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
}

/// Engines on the pod's own disk; takes no settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EngineCacheEmptyDir {}

/// An engine that sleeps `alphaMicros + betaMicros · batch` instead of computing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.alphaMicros + self.betaMicros > 0",
    "message": "alphaMicros and betaMicros must not both be 0: a batch has to take some time",
}]))]
pub struct Emulated {
    /// Time of a batch without images, microseconds.
    #[schemars(range(min = 0, max = 10_000_000))]
    pub alpha_micros: i32,
    /// Time that each image adds, microseconds.
    #[schemars(range(min = 0, max = 10_000_000))]
    pub beta_micros: i32,
    /// What it stands for: `Gpu` serves one batch at a time, `Cpu` a batch a core.
    #[serde(default)]
    pub device: EmulatedDevice,
}

/// What the emulated engine stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EmulatedDevice {
    /// One batch at a time.
    #[default]
    Gpu,
    /// A batch a core.
    Cpu,
}
