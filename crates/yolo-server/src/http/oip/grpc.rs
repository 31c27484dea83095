//! The protocol over gRPC, on a port of its own: `proto/inference.proto`.

mod calls;
mod codec;
mod convert;
mod deadline;
mod listener;
mod unread;
mod upload;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, Request as Head};
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use prost::Message;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Extensions, Request, Response, Status, Streaming};

use super::infer::{self, Answered, Asked};
use super::tensor::invalid;
use super::{config, metadata, repository, statistics};
use crate::app::App;
use crate::http::Received;
use crate::http::error::ApiError;
use crate::http::image::{self, Image};
use crate::http::observe::Record;
use crate::lifecycle::Stage;
use crate::predictor::{Predictor, Speed};
use convert::status;
use deadline::Deadline;
use unread::Unread;
use upload::Held;

pub use convert::Tensors;
pub(crate) use listener::serve;

/// Messages of one stream that are worked on at a time; answers keep their order.
const STREAM_IN_FLIGHT_MAX: usize = 8;

/// What `build.rs` made of the protocol.
#[expect(clippy::pedantic, clippy::enum_variant_names, reason = "generated")]
mod proto {
    tonic::include_proto!("inference");
}

use proto::grpc_inference_service_server::GrpcInferenceService;
use proto::{
    ModelConfigRequest, ModelConfigResponse, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
    ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse, ModelStatisticsRequest, ModelStatisticsResponse,
    ModelStreamInferResponse, RepositoryIndexRequest, RepositoryIndexResponse, ServerLiveRequest, ServerLiveResponse,
    ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
};

/// The calls of one server.
#[derive(Debug, Clone)]
struct Service {
    app: Arc<App>,
}

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: self.app.live().is_ok() }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: self.app.ready().is_ok() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let ModelReadyRequest { name, version } = request.into_inner();
        let ready = infer::model(&self.app, &name, &version).is_ok() && self.app.ready().is_ok();
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        request: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        self.told(request.extensions(), metadata::server().into())
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let (_, extensions, ModelMetadataRequest { name, version }) = request.into_parts();
        let predictor = infer::model(&self.app, &name, &version).map_err(|error| status(&error))?;
        self.told(&extensions, metadata::model(predictor.model()).into())
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let call = Call::new("ModelInfer", metadata, &extensions);
        let answer = self.answer(&call, message).await;
        answer.map(|answer| self.marked(Response::new(answer))).map_err(|error| status(&error))
    }

    type ModelStreamInferStream = Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let (metadata, extensions, messages) = request.into_parts();
        let call = Arc::new(Call::new("ModelStreamInfer", metadata, &extensions));
        let (service, lifecycle) = (self.clone(), self.app.lifecycle.clone());
        // A stream has no end of its own: without this one, each would hold up the drain for its whole budget.
        let messages = messages.take_until(async move { lifecycle.reached(Stage::Closing).await });
        let answers = messages.map(move |message| {
            let (service, call) = (service.clone(), Arc::clone(&call));
            async move { Ok(service.answer_in_stream(call, message?).await) }
        });
        Ok(self.marked(Response::new(Box::pin(answers.buffered(STREAM_IN_FLIGHT_MAX)))))
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        let (_, extensions, ModelConfigRequest { name, version }) = request.into_parts();
        let predictor = infer::model(&self.app, &name, &version).map_err(|error| status(&error))?;
        self.told(&extensions, config::of(&predictor).into())
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Result<Response<ModelStatisticsResponse>, Status> {
        let (_, extensions, ModelStatisticsRequest { name, version }) = request.into_parts();
        let predictor = infer::any_model(&self.app, &name, &version).map_err(|error| status(&error))?;
        self.told(&extensions, statistics::of(predictor.model(), &self.app.metrics.batch).into())
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let (_, extensions, RepositoryIndexRequest { ready: only_ready, .. }) = request.into_parts();
        let mut models = repository::index(&self.app);
        models.retain(|_| !only_ready || self.app.ready().is_ok());
        self.told(&extensions, models.into())
    }
}

/// The tensors and parameters in the bytes of a `ModelInferRequest`, as the server reads one.
///
/// # Errors
/// [`Code::InvalidRequest`](crate::http::error::Code::InvalidRequest) if they are none, or take more memory than they may.
pub fn decode(message: &[u8]) -> Result<Tensors, ApiError> {
    codec::check(message)?;
    let message = ModelInferRequest::decode(message).map_err(|error| invalid(error.to_string()))?;
    convert::request(message)
}

/// What all messages of a call share.
struct Call {
    method: &'static str,
    headers: HeaderMap,
    deadline: Option<Instant>,
    /// The bodies' share of the memory for bodies.
    held: Held,
    /// The answers' share of it.
    unread: Unread,
}

impl Call {
    fn new(method: &'static str, metadata: MetadataMap, extensions: &Extensions) -> Self {
        let deadline = extensions.get::<Deadline>().and_then(|deadline| deadline.0);
        let held = extensions.get::<Held>().cloned().unwrap_or_default();
        Self { method, headers: metadata.into_headers(), deadline, held, unread: Unread::of(extensions) }
    }
}

impl Service {
    /// One inference; counted and logged as the same request over REST is.
    async fn answer(&self, call: &Call, message: ModelInferRequest) -> Result<ModelInferResponse, ApiError> {
        let mut record = Record::begin(&self.app, &head(call));
        let result = self.steps(call, message, &mut record).await;
        record.answered(result.as_ref().err());
        result
    }

    async fn steps(
        &self,
        call: &Call,
        message: ModelInferRequest,
        record: &mut Record,
    ) -> Result<ModelInferResponse, ApiError> {
        let app = &*self.app;
        let id = message.id.clone();
        // Refused here, a request counts as one image: nobody knows how many it held.
        let (predictor, asked) = ask(app, call, message).inspect_err(|error| Image::arrived(app).failed(error))?;
        record.received(Received { at: asked.received, speed: Speed::default() });
        let Answered { outputs, speed, memory } = infer::infer(app, &predictor, &asked).await?;
        record.received(Received { at: asked.received, speed });
        let start = Instant::now();
        let response = convert::response(predictor.model(), id, outputs);
        call.unread.add(&app.bodies, memory, response.encoded_len())?;
        image::encoded(app, start);
        Ok(response)
    }

    /// One inference of a stream: a failed one does not end it.
    fn answer_in_stream(
        self,
        call: Arc<Call>,
        message: ModelInferRequest,
    ) -> BoxFuture<'static, ModelStreamInferResponse> {
        let id = message.id.clone();
        let answer = async move {
            match self.answer(&call, message).await {
                Ok(response) => {
                    ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) }
                }
                Err(error) => ModelStreamInferResponse {
                    error_message: error.to_string(),
                    infer_response: Some(ModelInferResponse { id, ..ModelInferResponse::default() }),
                },
            }
        };
        answer.boxed()
    }

    /// An answer about the server or a model. It is held as others are: its client may leave it unread.
    fn told<T: Message>(&self, extensions: &Extensions, message: T) -> Result<Response<T>, Status> {
        let held = Unread::of(extensions).add(&self.app.bodies, None, message.encoded_len());
        held.map(|()| Response::new(message)).map_err(|error| status(&error))
    }

    /// Marks an answer whose detections are made up.
    fn marked<T>(&self, mut response: Response<T>) -> Response<T> {
        if self.app.predictor().is_some_and(|predictor| predictor.model().emulated()) {
            response.metadata_mut().insert("x-yolo-emulated", MetadataValue::from_static("1"));
        }
        response
    }
}

/// The head that the same request would have over REST.
fn head(call: &Call) -> Head<()> {
    let mut head = Head::new(());
    *head.method_mut() = axum::http::Method::POST;
    // The names of two methods are always valid in a path.
    *head.uri_mut() = format!("/v2/inference.GRPCInferenceService/{}", call.method).parse().unwrap_or_default();
    *head.headers_mut() = call.headers.clone();
    head
}

fn ask(app: &App, call: &Call, message: ModelInferRequest) -> Result<(Arc<Predictor>, Asked), ApiError> {
    let received = Instant::now();
    let memory = call.held.take(&app.bodies, message.encoded_len())?.map(Arc::new);
    let predictor = infer::model(app, &message.model_name, &message.model_version)?;
    let Tensors { inputs, outputs, parameters } = convert::request(message)?;
    let mut wishes = infer::wishes(&axum::http::Uri::default(), &call.headers, parameters, &predictor)?;
    let left = call.deadline.map(|deadline| deadline.saturating_duration_since(received));
    wishes.timeout = wishes.timeout.into_iter().chain(left).min();
    // The time of the upload is the client's and the framework's affair; it is not known here.
    Ok((predictor, Asked { inputs, outputs, wishes, received, read: Duration::ZERO, memory }))
}
