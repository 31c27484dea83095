//! Receives a request's picture: a raw body, a multipart form or JSON with base64.
//!
//! Bounds: bytes of one body (counted while streaming), bytes of all bodies in memory, time, and a lowest rate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use futures::Stream;
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{ApiError, Code};
use crate::limits;
use crate::metrics::HttpMetrics;

/// A received picture, still encoded.
#[derive(Debug)]
pub struct Upload {
    /// The encoded file.
    pub bytes: Bytes,
    /// Its hash, taken while it came in.
    pub content: [u8; 32],
    /// Parameters that came inside the body.
    pub parameters: Vec<(String, String)>,
    /// When the last byte of the body was there.
    pub received: Instant,
    /// From the request's head to that byte.
    pub read: Duration,
    /// Time spent on the hash.
    pub hash: Duration,
    /// The body's share of the memory for bodies; given back when dropped.
    pub memory: Option<OwnedSemaphorePermit>,
}

/// Memory for the bodies of all requests, in KiB, so that its count fits a semaphore on every platform.
#[derive(Debug, Clone)]
pub struct BodyMemory(Arc<Semaphore>);

impl Default for BodyMemory {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(limits::BODIES_BYTES_MAX >> 10)))
    }
}

impl BodyMemory {
    /// Lets `held` grow to what `bytes` take.
    ///
    /// # Errors
    /// 429 if all bodies together would take too much.
    pub(super) fn hold(&self, held: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> Result<(), ApiError> {
        let has = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let wanted = u32::try_from(bytes.div_ceil(1 << 10).saturating_sub(has)).unwrap_or(u32::MAX);
        let more = Arc::clone(&self.0).try_acquire_many_owned(wanted).map_err(|_| {
            let message = "the server holds as many request bodies as it can: try again later";
            ApiError::new(Code::QueueFull, message).retry_after(Duration::from_secs(1))
        })?;
        match held {
            Some(held) => held.merge(more),
            None => *held = Some(more),
        }
        Ok(())
    }
}

/// When the next piece of a body must be there that began at `started` and of which `bytes` have come: a grace, then the
/// lowest rate, and an end for the whole.
pub(super) fn due(started: Instant, bytes: usize) -> Instant {
    let at_rate = Duration::from_secs(bytes as u64 / limits::BODY_RATE_MIN_BYTES_PER_S);
    started + (limits::BODY_RATE_GRACE + at_rate).min(limits::BODY_READ_MAX)
}

/// Reads the whole body.
///
/// # Errors
/// 400 for a malformed or empty body, 408 for a slow one, 413 for a long one, 429 if all bodies together are too many.
pub async fn receive(request: Request, memory: &BodyMemory, metrics: &HttpMetrics) -> Result<Upload, ApiError> {
    let (head, body) = request.into_parts();
    let declared = declared_length(&head.headers);
    let mut source = Source::new(body, declared, limits::BODY_BYTES_MAX, memory)?;
    let media_type = media_type(&head.headers);
    let (mut picture, parameters) = if media_type.starts_with("multipart/form-data") {
        multipart(&mut source, &media_type).await?
    } else {
        let mut picture = Picture::with_capacity(declared.unwrap_or_default());
        while let Some(chunk) = source.chunk().await? {
            picture.push(&chunk);
        }
        if media_type.starts_with("application/json") { from_json(&picture.bytes)? } else { (picture, Vec::new()) }
    };
    metrics.body_bytes.inc_by(source.bytes as u64);
    if picture.bytes.is_empty() {
        return Err(ApiError::new(Code::InvalidRequest, "the body holds no picture: send the file's bytes"));
    }
    let received = Instant::now();
    Ok(Upload {
        content: picture.finish(),
        bytes: picture.bytes.freeze(),
        parameters,
        received,
        read: received.saturating_duration_since(source.started),
        hash: picture.hash_time,
        memory: source.held,
    })
}

/// A body as it came.
#[derive(Debug)]
pub struct Whole {
    /// All of it.
    pub bytes: Bytes,
    /// When its last byte was there.
    pub received: Instant,
    /// From the request's head to that byte.
    pub read: Duration,
    /// Its share of the memory for bodies.
    pub memory: Option<OwnedSemaphorePermit>,
}

/// Reads a body of up to a batch's size without looking into it.
///
/// # Errors
/// 408 for a slow one, 413 for a long one, 429 if all bodies together are too many.
pub async fn receive_whole(request: Request, memory: &BodyMemory, metrics: &HttpMetrics) -> Result<Whole, ApiError> {
    let (head, body) = request.into_parts();
    let declared = declared_length(&head.headers);
    let mut source = Source::new(body, declared, limits::BATCH_BYTES_MAX, memory)?;
    let mut bytes = BytesMut::with_capacity(declared.unwrap_or_default());
    while let Some(chunk) = source.chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    metrics.body_bytes.inc_by(source.bytes as u64);
    let received = Instant::now();
    let read = received.saturating_duration_since(source.started);
    Ok(Whole { bytes: bytes.freeze(), received, read, memory: source.held })
}

fn declared_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

fn too_large(bytes_max: usize) -> ApiError {
    let limit = bytes_max >> 20;
    ApiError::new(Code::PayloadTooLarge, format!("the body is larger than {limit} MiB: send a smaller file"))
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(Code::InvalidRequest, message)
}

/// A file that grows and is hashed on the way.
struct Picture {
    bytes: BytesMut,
    hasher: blake3::Hasher,
    hash_time: Duration,
}

impl Picture {
    fn with_capacity(bytes: usize) -> Self {
        Self { bytes: BytesMut::with_capacity(bytes), hasher: blake3::Hasher::new(), hash_time: Duration::ZERO }
    }

    fn push(&mut self, chunk: &[u8]) {
        self.bytes.extend_from_slice(chunk);
        let start = Instant::now();
        self.hasher.update(chunk);
        self.hash_time += start.elapsed();
    }

    fn finish(&mut self) -> [u8; 32] {
        *self.hasher.finalize().as_bytes()
    }
}

/// The request's body under its bounds.
struct Source {
    body: Body,
    bytes_max: usize,
    started: Instant,
    bytes: usize,
    memory: BodyMemory,
    held: Option<OwnedSemaphorePermit>,
}

impl Source {
    /// Refuses at once what declares more bytes than accepted.
    fn new(body: Body, declared: Option<usize>, bytes_max: usize, memory: &BodyMemory) -> Result<Self, ApiError> {
        if declared.is_some_and(|length| length > bytes_max) {
            return Err(too_large(bytes_max));
        }
        Ok(Self { body, bytes_max, started: Instant::now(), bytes: 0, memory: memory.clone(), held: None })
    }

    /// The next piece; `None` at the end.
    async fn chunk(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            let frame = tokio::time::timeout_at(due(self.started, self.bytes).into(), self.body.frame()).await;
            let frame = frame.map_err(|_| ApiError::new(Code::RequestTimeout, "the body came too slowly"))?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|error| invalid(format!("the body broke off: {error}")))?;
            // Trailers say nothing to us.
            let Ok(chunk) = frame.into_data() else { continue };
            self.bytes += chunk.len();
            if self.bytes > self.bytes_max {
                return Err(too_large(self.bytes_max));
            }
            self.memory.hold(&mut self.held, self.bytes)?;
            return Ok(Some(chunk));
        }
    }
}

fn pieces(source: &mut Source) -> impl Stream<Item = Result<Bytes, ApiError>> + Send {
    futures::stream::try_unfold(source, async |source| Ok(source.chunk().await?.map(|chunk| (chunk, source))))
}

type Received = (Picture, Vec<(String, String)>);

async fn multipart(source: &mut Source, media_type: &str) -> Result<Received, ApiError> {
    let boundary = multer::parse_boundary(media_type).map_err(|error| invalid(format!("multipart: {error}")))?;
    let mut form = multer::Multipart::new(Box::pin(pieces(source)), boundary);
    let mut picture: Option<Picture> = None;
    let mut parameters = Vec::new();
    let mut parts = 0;
    while let Some(mut field) = form.next_field().await.map_err(of_multipart)? {
        parts += 1;
        if parts > limits::MULTIPART_PARTS_MAX {
            return Err(invalid(format!("multipart: more than {} parts", limits::MULTIPART_PARTS_MAX)));
        }
        let name = field.name().unwrap_or_default().to_owned();
        let is_file = matches!(name.as_str(), "file" | "image");
        if is_file && picture.is_some() {
            return Err(invalid("multipart: one picture a request, found a second"));
        }
        let mut value = Picture::with_capacity(0);
        while let Some(chunk) = field.chunk().await.map_err(of_multipart)? {
            value.push(&chunk);
            if !is_file && value.bytes.len() > limits::PARAMETER_BYTES_MAX {
                return Err(invalid(format!("multipart: field {name:.64} is too long")));
            }
        }
        if is_file {
            picture = Some(value);
        } else {
            let text = String::from_utf8(value.bytes.to_vec());
            parameters.push((name, text.map_err(|_| invalid("multipart: a parameter is not UTF-8"))?));
        }
    }
    let picture = picture.ok_or_else(|| invalid("multipart: no field named `file` (or `image`)"))?;
    Ok((picture, parameters))
}

fn of_multipart(error: multer::Error) -> ApiError {
    match error {
        // Our own bounds, passed through the parser.
        multer::Error::StreamReadFailed(source) => match source.downcast::<ApiError>() {
            Ok(ours) => *ours,
            Err(other) => invalid(format!("multipart: {other}")),
        },
        other => invalid(format!("multipart: {other}")),
    }
}

/// `{"image":"<base64>", "conf":0.3, …}`
fn from_json(document: &[u8]) -> Result<Received, ApiError> {
    let value = serde_json::from_slice(document).map_err(|error| invalid(format!("JSON: {error}")))?;
    let Value::Object(mut fields) = value else { return Err(invalid("JSON: expected an object")) };
    let Some(Value::String(encoded)) = fields.remove("image") else {
        return Err(invalid("JSON: expected the picture as base64 text in `image`"));
    };
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim());
    let mut picture = Picture::with_capacity(0);
    picture.push(&decoded.map_err(|error| invalid(format!("JSON: `image` is not base64: {error}")))?);
    let text = |value: Value| match value {
        Value::String(text) => text,
        Value::Array(items) => items.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    };
    Ok((picture, fields.into_iter().map(|(name, value)| (name, text(value))).collect()))
}
