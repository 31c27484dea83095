//! HTTP/2 connections of the gRPC port: bounded, timed and recycled as the API's are.

use std::convert::Infallible;
use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{Request, Response};
use http_body_util::StreamBody;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tonic::codec::CompressionEncoding;
use tower::ServiceExt;

use super::Service;
use super::calls::{Call, Calls, Watched};
use super::deadline::Deadline;
use super::proto::grpc_inference_service_server::GrpcInferenceServiceServer;
use super::unread::Unread;
use super::upload::{self, Held, Pace};
use crate::app::App;
use crate::connection::{self, Activity, Policy};
use crate::lifecycle::Stage;
use crate::watched_io::WatchedIo;
use crate::{limits, random};

/// Header that names a call's compression.
const ENCODING: &str = "grpc-encoding";
/// Calls of one connection at a time; clients wait for the others.
const CALLS_MAX: u32 = 128;
/// Bytes with which every client begins.
const PREFACE_BYTES: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
/// Time for the answer to a ping; a peer that gives none is gone.
const PING_ANSWER_MAX: Duration = Duration::from_secs(20);

/// Serves gRPC on `listener` until the policy's stage; returns when every connection has ended.
pub(crate) async fn serve(listener: TcpListener, app: Arc<App>, policy: Policy) {
    let service = Service { app };
    connection::accept(listener, policy, |stream, policy| {
        let service = service.clone();
        async move { serve_connection(stream, service, &policy).await }
    })
    .await;
}

async fn serve_connection(stream: TcpStream, service: Service, policy: &Policy) {
    // Answers are small: waiting to fill a segment would only delay them.
    let _ = stream.set_nodelay(true);
    // hyper has no time-out for them, and pings nobody before.
    let Some(stream) = greeted(stream, policy).await else { return };
    let (calls, activity) = (Calls::new(), Arc::new(Activity::of_calls(policy.limits)));
    let head_max = Duration::from_secs(policy.limits.header_read_seconds);
    let idle_max = Duration::from_secs(policy.limits.keep_alive_idle_seconds);
    let write_max = Duration::from_secs(policy.limits.response_write_seconds);
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(CALLS_MAX)
        .max_header_list_size(u32::try_from(limits::HEADER_BYTES_MAX).unwrap_or(u32::MAX))
        .keep_alive_interval(idle_max)
        .keep_alive_timeout(PING_ANSWER_MAX)
        .serve_connection(
            WatchedIo::new(TokioIo::new(stream), Arc::clone(&activity)),
            service_fn(|request| respond(request, calls.begin(), service.clone(), idle_max)),
        );
    let mut connection = std::pin::pin!(connection);
    let mut old = std::pin::pin!(old(policy));
    let mut watch = tokio::time::interval(connection::WATCH_INTERVAL);
    let mut leaving: Option<Instant> = None;
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "gRPC connection ended early.");
                }
                return;
            }
            () = old.as_mut(), if leaving.is_none() => {
                leaving = Some(Instant::now());
                connection.as_mut().graceful_shutdown(); // calls in flight are finished, new ones go elsewhere
            }
            _ = watch.tick() => {
                // A client that does not take its leave either is gone as one that sends no head.
                let stays = leaving.is_some_and(|since| since.elapsed() > head_max) && calls.idle_for(head_max);
                // Calls have their windows, the connection the socket's buffer: a client may leave either unread.
                if stays || calls.too_slow(write_max) || activity.is_too_slow() {
                    return;
                }
                activity.caught_up();
            }
        }
    }
}

/// Waits for the connection's first bytes; `None` if they do not come in time.
async fn greeted(mut stream: TcpStream, policy: &Policy) -> Option<impl AsyncRead + AsyncWrite + Unpin + use<>> {
    let time = Duration::from_secs(policy.limits.header_read_seconds);
    let mut preface = [0; PREFACE_BYTES];
    tokio::select! {
        read = tokio::time::timeout(time, stream.read_exact(&mut preface)) => read.ok()?.ok()?,
        () = policy.lifecycle.reached(policy.close_at) => return None,
    };
    let (reader, writer) = stream.into_split();
    Some(tokio::io::join(Cursor::new(preface).chain(reader), writer))
}

/// Resolves when a connection that is opened now shall take no more calls.
async fn old(policy: &Policy) {
    let spread = limits::CONNECTION_AGE_JITTER;
    let age_max = Duration::from_secs(policy.limits.age_seconds).mul_f64(random::within(1.0 - spread, 1.0 + spread));
    // A connection that is opened while the server drains gets the rest of its time: told to go at once, its client would
    // come back at once.
    let leave_at = if policy.lifecycle.stage() < Stage::Draining { Stage::Draining } else { policy.close_at };
    tokio::select! {
        () = tokio::time::sleep(age_max) => {}
        () = policy.lifecycle.reached(leave_at) => {}
    }
}

async fn respond(
    request: Request<Incoming>,
    call: Call,
    service: Service,
    idle_max: Duration,
) -> Result<Response<Watched>, Infallible> {
    let stream = request.uri().path().ends_with("/ModelStreamInfer");
    let compressed = request.headers().get(ENCODING).is_some_and(|encoding| encoding != "identity");
    let (held, deadline) = (Held::new(stream && compressed), Deadline::of(request.headers()));
    let unread = Unread::default();
    let pace = if stream { Pace::Stream { idle_max } } else { Pace::Message };
    let memory = service.app.bodies.clone();
    let mut request = request.map(|body| StreamBody::new(Box::pin(upload::bounded(body, pace, memory, held.clone()))));
    request.extensions_mut().insert(held);
    request.extensions_mut().insert(deadline);
    request.extensions_mut().insert(unread.clone());
    // As many bytes as REST takes, so that every request fits both. A compressed one is inflated on a thread that serves
    // connections, and a few kilobytes may become all of it.
    let limits = *service.app.bodies.limits();
    let bytes_max = if compressed { limits.body_bytes_max } else { limits.batch_bytes_max };
    let calls = GrpcInferenceServiceServer::new(service)
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(bytes_max);
    let response = calls.oneshot(request).await?;
    Ok(response.map(|body| call.watch(body, unread)))
}
