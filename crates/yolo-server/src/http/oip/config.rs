//! What a model's configuration would be in Triton: its tools ask for it. Nothing here can be set by a client.

use schemars::JsonSchema;
use serde::Serialize;

use super::metadata::{self, TensorMetadata};
use crate::predictor::Predictor;

/// `GET /v2/models/{model}/config`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ModelConfig {
    /// Its file's stem.
    pub name: String,
    /// Triton's name of ONNX models.
    pub platform: &'static str,
    /// Triton's name of ONNX Runtime.
    pub backend: &'static str,
    /// 0: shapes hold the batch.
    pub max_batch_size: i32,
    /// As in the metadata.
    pub input: Vec<ConfigTensor>,
    /// As in the metadata.
    pub output: Vec<ConfigTensor>,
    /// Its sessions.
    pub instance_group: [InstanceGroup; 1],
}

/// A tensor.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ConfigTensor {
    /// As requests name it.
    pub name: String,
    /// As Triton's configurations call it.
    pub data_type: &'static str,
    /// Size of each dimension; -1 is any.
    pub dims: Vec<i64>,
}

/// Sessions that run beside each other.
#[derive(Debug, Serialize, JsonSchema)]
pub struct InstanceGroup {
    /// Where they run.
    pub kind: &'static str,
    /// How many.
    pub count: i32,
}

impl From<TensorMetadata> for ConfigTensor {
    fn from(TensorMetadata { name, datatype, shape }: TensorMetadata) -> Self {
        let data_type = match datatype {
            "BYTES" => "TYPE_STRING",
            "INT32" => "TYPE_INT32",
            "UINT8" => "TYPE_UINT8",
            _ => "TYPE_FP32",
        };
        Self { name, data_type, dims: shape }
    }
}

/// A served model's.
pub fn of(predictor: &Predictor) -> ModelConfig {
    let metadata = metadata::model(predictor.model());
    let kind = if matches!(predictor.model().provider, "cuda" | "tensorrt") { "KIND_GPU" } else { "KIND_CPU" };
    let count = i32::try_from(predictor.batcher().load().workers).unwrap_or(i32::MAX);
    ModelConfig {
        name: metadata.name,
        platform: "onnxruntime_onnx",
        backend: "onnxruntime",
        max_batch_size: 0,
        input: metadata.inputs.into_iter().map(ConfigTensor::from).collect(),
        output: metadata.outputs.into_iter().map(ConfigTensor::from).collect(),
        instance_group: [InstanceGroup { kind, count }],
    }
}
