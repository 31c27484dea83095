//! Messages of the protocol to our types and back.

use std::collections::HashMap;

use bytes::Bytes;
use tonic::{Code as GrpcCode, Status};

use super::proto::infer_parameter::ParameterChoice;
use super::proto::model_infer_request::InferInputTensor;
use super::proto::model_infer_response::InferOutputTensor;
use super::proto::model_instance_group::Kind;
use super::proto::model_metadata_response::TensorMetadata as TensorMessage;
use super::proto::repository_index_response::ModelIndex as IndexMessage;
use super::proto::{
    DataType, InferBatchStatistics, InferParameter, InferStatistics, InferTensorContents, ModelConfig as ConfigMessage,
    ModelConfigResponse, ModelInferRequest, ModelInferResponse, ModelInput, ModelInstanceGroup, ModelMetadataResponse,
    ModelOutput, ModelStatistics as StatisticsMessage, ModelStatisticsResponse, RepositoryIndexResponse,
    ServerMetadataResponse, StatisticDuration,
};
use crate::engine::LoadedModel;
use crate::http::error::{ApiError, Code};
use crate::http::oip::config::{ConfigTensor, InstanceGroup, ModelConfig};
use crate::http::oip::metadata::{ModelMetadata, ServerMetadata, TensorMetadata};
use crate::http::oip::repository::ModelIndex;
use crate::http::oip::statistics::{BatchStatistics, ModelStatistics, Statistics, Total};
use crate::http::oip::tensor::{self, Datatype, Tensor, invalid};

/// What a request holds.
#[derive(Debug)]
pub struct Tensors {
    /// In their order.
    pub inputs: Vec<Tensor>,
    /// Names of the wanted outputs.
    pub outputs: Vec<String>,
    /// As text.
    pub parameters: Vec<(String, String)>,
}

/// Takes a request apart. Raw tensors are slices of the message.
pub(super) fn request(message: ModelInferRequest) -> Result<Tensors, ApiError> {
    let ModelInferRequest { parameters, inputs, outputs, raw_input_contents: raw, .. } = message;
    let inputs: Result<_, ApiError> = match raw.len() {
        0 => inputs
            .into_iter()
            .map(|input| {
                let data = contents(&input)?;
                tensor(input, data)
            })
            .collect(),
        count if count == inputs.len() => inputs
            .into_iter()
            .zip(raw)
            .map(|(input, data)| {
                if input.contents.is_some() {
                    return Err(invalid(format!("{:.64}: both contents and raw_input_contents", input.name)));
                }
                tensor(input, data)
            })
            .collect(),
        count => Err(invalid(format!("raw_input_contents holds {count} tensors, inputs {}", inputs.len()))),
    };
    Ok(Tensors {
        inputs: inputs?,
        outputs: outputs.into_iter().map(|output| output.name).collect(),
        parameters: texts(parameters)?,
    })
}

fn tensor(input: InferInputTensor, data: Bytes) -> Result<Tensor, ApiError> {
    let InferInputTensor { name, datatype, shape, .. } = input;
    let sizes: Option<Vec<usize>> = shape.iter().map(|size| usize::try_from(*size).ok()).collect();
    let sizes = sizes.ok_or_else(|| invalid(format!("{name:.64}: a size in its shape is negative")))?;
    Tensor::new(name, Datatype::parse(&datatype)?, sizes, data)
}

/// The elements of a tensor that came element by element.
fn contents(input: &InferInputTensor) -> Result<Bytes, ApiError> {
    let Some(InferTensorContents { uint_contents, fp32_contents, bytes_contents, .. }) = &input.contents else {
        return Err(invalid(format!("{:.64} has neither contents nor raw_input_contents", input.name)));
    };
    match Datatype::parse(&input.datatype)? {
        Datatype::Bytes => Ok(tensor::join_byte_strings(bytes_contents.iter().map(|string| &**string))),
        Datatype::Fp32 => Ok(tensor::floats(fp32_contents.iter().copied())),
        Datatype::Uint8 => {
            let levels: Result<Bytes, _> = uint_contents.iter().map(|level| u8::try_from(*level)).collect();
            levels.map_err(|_| invalid(format!("{:.64}: an element is larger than 255", input.name)))
        }
        Datatype::Int32 => Err(invalid(format!("{:.64}: no input is INT32", input.name))),
    }
}

fn texts(parameters: HashMap<String, InferParameter>) -> Result<Vec<(String, String)>, ApiError> {
    let text = |(name, parameter): (String, InferParameter)| {
        let value = match parameter.parameter_choice {
            Some(ParameterChoice::BoolParam(value)) => value.to_string(),
            Some(ParameterChoice::Int64Param(value)) => value.to_string(),
            Some(ParameterChoice::Uint64Param(value)) => value.to_string(),
            Some(ParameterChoice::DoubleParam(value)) => value.to_string(),
            Some(ParameterChoice::StringParam(value)) => value,
            None => return Err(invalid(format!("parameter {name:.64} has no value"))),
        };
        Ok((name, value))
    };
    parameters.into_iter().map(text).collect()
}

/// The answer of a model.
pub(super) fn response(model: &LoadedModel, id: String, outputs: Vec<Tensor>) -> ModelInferResponse {
    let (outputs, raw_output_contents) = outputs
        .into_iter()
        .map(|Tensor { name, datatype, shape, data }| {
            let shape = shape.into_iter().map(|size| i64::try_from(size).unwrap_or(i64::MAX)).collect();
            (
                InferOutputTensor {
                    name,
                    datatype: datatype.as_str().to_owned(),
                    shape,
                    ..InferOutputTensor::default()
                },
                data,
            )
        })
        .unzip();
    ModelInferResponse {
        model_name: model.name.clone(),
        model_version: model.version().to_owned(),
        id,
        parameters: HashMap::new(),
        outputs,
        raw_output_contents,
    }
}

impl From<ServerMetadata> for ServerMetadataResponse {
    fn from(ServerMetadata { name, version, extensions }: ServerMetadata) -> Self {
        Self { name: name.to_owned(), version: version.to_owned(), extensions: extensions.map(str::to_owned).to_vec() }
    }
}

impl From<ModelMetadata> for ModelMetadataResponse {
    fn from(ModelMetadata { name, versions, platform, inputs, outputs }: ModelMetadata) -> Self {
        let tensors = |tensors: Vec<TensorMetadata>| tensors.into_iter().map(TensorMessage::from).collect();
        let (inputs, outputs) = (tensors(inputs), tensors(outputs));
        Self { name, versions: versions.to_vec(), platform: platform.to_owned(), inputs, outputs }
    }
}

impl From<TensorMetadata> for TensorMessage {
    fn from(TensorMetadata { name, datatype, shape }: TensorMetadata) -> Self {
        Self { name, datatype: datatype.to_owned(), shape }
    }
}

impl From<ModelConfig> for ModelConfigResponse {
    fn from(config: ModelConfig) -> Self {
        let ModelConfig { name, platform, backend, max_batch_size, input, output, instance_group } = config;
        let data_type = |name: &str| DataType::from_str_name(name).unwrap_or_default().into();
        let input = input.into_iter().map(|ConfigTensor { name, data_type: named, dims }| ModelInput {
            name,
            data_type: data_type(named),
            dims,
        });
        let output = output.into_iter().map(|ConfigTensor { name, data_type: named, dims }| ModelOutput {
            name,
            data_type: data_type(named),
            dims,
        });
        let group = |InstanceGroup { kind, count }| ModelInstanceGroup {
            count,
            kind: Kind::from_str_name(kind).unwrap_or_default().into(),
        };
        Self {
            config: Some(ConfigMessage {
                name,
                platform: platform.to_owned(),
                backend: backend.to_owned(),
                max_batch_size,
                input: input.collect(),
                output: output.collect(),
                instance_group: instance_group.into_iter().map(group).collect(),
            }),
        }
    }
}

impl From<Statistics<'_>> for ModelStatisticsResponse {
    fn from(Statistics { model_stats }: Statistics<'_>) -> Self {
        Self { model_stats: model_stats.into_iter().map(StatisticsMessage::from).collect() }
    }
}

impl From<ModelStatistics<'_>> for StatisticsMessage {
    fn from(statistics: ModelStatistics<'_>) -> Self {
        let total = |Total { count, ns }| Some(StatisticDuration { count, ns });
        let batch = |BatchStatistics { batch_size, compute_infer }| InferBatchStatistics {
            batch_size: batch_size as u64,
            compute_infer: total(compute_infer),
        };
        Self {
            name: statistics.name.to_owned(),
            version: statistics.version.to_owned(),
            inference_count: statistics.inference_count,
            execution_count: statistics.execution_count,
            inference_stats: Some(InferStatistics { compute_infer: total(statistics.inference_stats.compute_infer) }),
            batch_stats: statistics.batch_stats.into_iter().map(batch).collect(),
        }
    }
}

impl From<Vec<ModelIndex>> for RepositoryIndexResponse {
    fn from(models: Vec<ModelIndex>) -> Self {
        let model = |ModelIndex { name, version, state, reason }| IndexMessage {
            name,
            version,
            state: state.to_owned(),
            reason: reason.to_owned(),
        };
        Self { models: models.into_iter().map(model).collect() }
    }
}

/// An error as gRPC tells it; the message begins with our code.
pub(super) fn status(error: &ApiError) -> Status {
    let code = match error.code {
        Code::NotFound | Code::TaskExpired => GrpcCode::NotFound,
        Code::Superseded => GrpcCode::Aborted,
        Code::QueueFull | Code::PredictedLate => GrpcCode::ResourceExhausted,
        Code::Starting | Code::Draining | Code::EngineFailed | Code::StoreUnavailable => GrpcCode::Unavailable,
        Code::DeadlineExceeded | Code::RequestTimeout => GrpcCode::DeadlineExceeded,
        Code::InferenceFailed | Code::Internal => GrpcCode::Internal,
        _ => GrpcCode::InvalidArgument,
    };
    Status::new(code, error.to_string())
}
