//! What the server and the model say about themselves.

use std::iter;

use schemars::JsonSchema;
use serde::Serialize;

use super::detections;
use super::infer::{FILES, PICTURES};
use super::tensor::Datatype;
use crate::engine::LoadedModel;

/// The server's name in its metadata.
pub const SERVER: &str = env!("CARGO_PKG_NAME");
/// Its version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Extensions of the protocol that it speaks.
pub const EXTENSIONS: [&str; 5] =
    ["binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics"];
/// A size that the request decides.
const ANY: i64 = -1;

/// `GET /v2`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ServerMetadata {
    /// The program's.
    pub name: &'static str,
    /// The program's.
    pub version: &'static str,
    /// Extensions of the protocol that it speaks.
    pub extensions: [&'static str; 5],
}

/// The server's.
pub const fn server() -> ServerMetadata {
    ServerMetadata { name: SERVER, version: VERSION, extensions: EXTENSIONS }
}

/// `GET /v2/models/{model}`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ModelMetadata {
    /// Its file's stem.
    pub name: String,
    /// The served version alone.
    pub versions: [String; 1],
    /// The protocol's name of ONNX files.
    pub platform: &'static str,
    /// Inputs, of which a request names one.
    pub inputs: Vec<TensorMetadata>,
    /// Outputs: those that answer `image`, then the model's own, which answer `images`.
    pub outputs: Vec<TensorMetadata>,
}

/// A tensor's name, type and shape; -1 is any size.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TensorMetadata {
    /// As requests name it.
    pub name: String,
    /// As the protocol calls it.
    pub datatype: &'static str,
    /// Size of each dimension.
    pub shape: Vec<i64>,
}

impl TensorMetadata {
    fn new(name: &str, datatype: Datatype, shape: &[i64]) -> Self {
        Self { name: name.to_owned(), datatype: datatype.as_str(), shape: shape.to_vec() }
    }
}

/// A model's.
pub fn model(model: &LoadedModel) -> ModelMetadata {
    let info = &model.info;
    let [height, width] = match &*model.sizes {
        [size] => [size.height_px, size.width_px].map(i64::from),
        _ => [ANY; 2], // one of several: `GET /models` lists them
    };
    let detections = detections::names(info.task()).iter().map(|name| {
        let (datatype, shape) = detections::described(name, info);
        TensorMetadata::new(name, datatype, &shape)
    });
    let raw = info.output_names().iter().zip(info.output_dims()).map(|(name, dims)| {
        let sizes = dims.iter().skip(1).map(|dim| dim.and_then(|size| i64::try_from(size).ok()).unwrap_or(ANY));
        TensorMetadata::new(name, Datatype::Fp32, &iter::once(ANY).chain(sizes).collect::<Vec<_>>())
    });
    ModelMetadata {
        name: model.name.clone(),
        versions: [model.version().to_owned()],
        platform: "onnx_onnxv1",
        inputs: vec![
            TensorMetadata::new(FILES, Datatype::Bytes, &[ANY]),
            TensorMetadata::new(PICTURES, Datatype::Fp32, &[ANY, 3, height, width]),
        ],
        outputs: detections.chain(raw).collect(),
    }
}
