//! The protocol over gRPC, on a port of its own: `proto/inference.proto`.

mod codec;
mod convert;
mod listener;
mod unread;
mod upload;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, Uri};
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use tokio::sync::OwnedSemaphorePermit;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

use super::infer::{self, Answered, Asked};
use super::metadata;
use crate::app::App;
use crate::http::error::ApiError;
use crate::http::image::{self, Image};
use crate::http::{OIP, Received, Record};
use crate::lifecycle::Stage;
use crate::predictor::Predictor;
use convert::status;
use upload::Held;

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
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest,
    ModelReadyResponse, ModelStreamInferResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest,
    ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
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
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(metadata::server().into()))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        let predictor = infer::model(&self.app, &name, &version).map_err(|error| status(&error))?;
        Ok(Response::new(metadata::model(predictor.model()).into()))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let memory = extensions.get::<Held>().and_then(Held::take);
        let answer = self.answer(&metadata.into_headers(), message, memory).await;
        answer.map(|answer| self.marked(Response::new(answer))).map_err(|error| status(&error))
    }

    type ModelStreamInferStream = Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let (metadata, extensions, messages) = request.into_parts();
        let headers = Arc::new(metadata.into_headers());
        let held = extensions.get::<Held>().cloned().unwrap_or_default();
        let (service, lifecycle) = (self.clone(), self.app.lifecycle.clone());
        // A stream has no end of its own: without this one, each would hold up the drain for its whole budget.
        let messages = messages.take_until(async move { lifecycle.reached(Stage::Closing).await });
        let answers = messages.map(move |message| {
            let (service, headers, memory) = (service.clone(), Arc::clone(&headers), held.take());
            async move { Ok(service.answer_in_stream(headers, message?, memory).await) }
        });
        Ok(self.marked(Response::new(Box::pin(answers.buffered(STREAM_IN_FLIGHT_MAX)))))
    }
}

/// The body's share of the memory for bodies.
type Memory = Option<OwnedSemaphorePermit>;

impl Service {
    /// One inference; counted as the same request over REST is.
    async fn answer(
        &self,
        headers: &HeaderMap,
        message: ModelInferRequest,
        memory: Memory,
    ) -> Result<ModelInferResponse, ApiError> {
        let mut record = Record::begin(Arc::clone(&self.app.metrics), OIP);
        let result = self.steps(headers, message, memory, &mut record).await;
        record.answered(result.as_ref().err());
        result
    }

    async fn steps(
        &self,
        headers: &HeaderMap,
        message: ModelInferRequest,
        memory: Memory,
        record: &mut Record,
    ) -> Result<ModelInferResponse, ApiError> {
        let app = &*self.app;
        let id = message.id.clone();
        // Refused here, a request counts as one image: nobody knows how many it held.
        let question = ask(app, headers, message, memory).inspect_err(|error| Image::arrived(app).failed(error));
        let (predictor, asked) = question?;
        record.received = Some(Received { at: asked.received, queue_and_inference: Duration::ZERO });
        let Answered { outputs, queue_and_inference } = infer::infer(app, predictor, &asked).await?;
        record.received = Some(Received { at: asked.received, queue_and_inference });
        drop((asked.inputs, asked.memory)); // the answer is not their business
        let start = Instant::now();
        let response = convert::response(predictor.model(), id, outputs);
        image::encoded(app, start);
        Ok(response)
    }

    /// One inference of a stream: a failed one does not end it.
    fn answer_in_stream(
        self,
        headers: Arc<HeaderMap>,
        message: ModelInferRequest,
        memory: Memory,
    ) -> BoxFuture<'static, ModelStreamInferResponse> {
        let id = message.id.clone();
        let answer = async move {
            match self.answer(&headers, message, memory).await {
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

    /// Marks an answer whose detections are made up.
    fn marked<T>(&self, mut response: Response<T>) -> Response<T> {
        if self.app.predictor().is_some_and(|predictor| predictor.model().emulated()) {
            response.metadata_mut().insert("x-yolo-emulated", MetadataValue::from_static("1"));
        }
        response
    }
}

fn ask<'a>(
    app: &'a App,
    headers: &HeaderMap,
    message: ModelInferRequest,
    memory: Memory,
) -> Result<(&'a Predictor, Asked), ApiError> {
    let received = Instant::now();
    let predictor = infer::model(app, &message.model_name, &message.model_version)?;
    let convert::Tensors { inputs, outputs, parameters } = convert::request(message)?;
    let wishes = infer::wishes(&Uri::default(), headers, parameters, predictor)?;
    // The time of the upload is the client's and the framework's affair; it is not known here.
    let asked = Asked { inputs, outputs, wishes, received, read: Duration::ZERO, memory };
    Ok((predictor, asked))
}
