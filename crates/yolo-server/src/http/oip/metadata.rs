//! What the server and the model say about themselves.

use serde::Serialize;

use super::infer::FILES;
use super::tensor::Datatype;
use crate::engine::LoadedModel;

/// The server's name in its metadata.
pub const SERVER: &str = env!("CARGO_PKG_NAME");
/// Its version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Extensions of the protocol that it speaks.
pub const EXTENSIONS: [&str; 3] = ["binary_tensor_data", "statistics", "parameters"];
/// A size that the request decides.
const ANY: i64 = -1;

/// `GET /v2`.
#[derive(Debug, Serialize)]
pub struct ServerMetadata {
    /// The program's.
    pub name: &'static str,
    /// The program's.
    pub version: &'static str,
    /// Extensions of the protocol that it speaks.
    pub extensions: [&'static str; 3],
}

/// The server's.
pub const fn server() -> ServerMetadata {
    ServerMetadata { name: SERVER, version: VERSION, extensions: EXTENSIONS }
}

/// `GET /v2/models/{model}`.
#[derive(Debug, Serialize)]
pub struct ModelMetadata {
    /// Its file's stem.
    pub name: String,
    /// The served version alone.
    pub versions: [String; 1],
    /// The protocol's name of ONNX files.
    pub platform: &'static str,
    /// Inputs, of which a request names one.
    pub inputs: Vec<TensorMetadata>,
    /// Outputs of all inputs.
    pub outputs: Vec<TensorMetadata>,
}

/// A tensor's name, type and shape; -1 is any size.
#[derive(Debug, Serialize)]
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
    ModelMetadata {
        name: model.name.clone(),
        versions: [model.version().to_owned()],
        platform: "onnx_onnxv1",
        inputs: vec![TensorMetadata::new(FILES, Datatype::Bytes, &[ANY])],
        outputs: vec![
            TensorMetadata::new("num_detections", Datatype::Int32, &[ANY, 1]),
            TensorMetadata::new("boxes", Datatype::Fp32, &[ANY, ANY, 4]),
            TensorMetadata::new("scores", Datatype::Fp32, &[ANY, ANY]),
            TensorMetadata::new("classes", Datatype::Int32, &[ANY, ANY]),
        ],
    }
}
