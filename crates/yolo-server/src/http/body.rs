//! Receives a request's pictures: a raw body, a multipart form or JSON with base64.
//!
//! Bounds: bytes of one body (counted while streaming, as inflated), bytes of all bodies in memory, time, and a lowest
//! rate of what comes over the wire.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Extensions, HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::Stream;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{ApiError, Code};
use super::json;
use super::wire::WireBytes;
use crate::limits::{self, BodyLimits};
use crate::metrics::HttpMetrics;

/// A received picture, still encoded.
#[derive(Debug, Clone)]
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
    /// The body's share of the memory for bodies; given back when its last picture is dropped.
    pub memory: Option<Arc<OwnedSemaphorePermit>>,
}

/// Everything that came with one request.
#[derive(Debug)]
pub struct Form {
    /// The pictures in their order; one that is empty or too large has failed by itself.
    pub pictures: Vec<Result<Upload, ApiError>>,
    /// Parameters that came inside the body.
    pub parameters: Vec<(String, String)>,
    /// When the last byte of the body was there.
    pub received: Instant,
}

/// What one request may bring.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    bytes: fn(&BodyLimits) -> usize,
    parts: usize,
    pictures: usize,
}

impl Bounds {
    /// One picture and its parameters.
    pub const SINGLE: Self =
        Self { bytes: |limits| limits.body_bytes_max, parts: limits::MULTIPART_PARTS_MAX, pictures: 1 };
    /// Many pictures that share their parameters.
    pub const BATCH: Self = Self {
        bytes: |limits| limits.batch_bytes_max,
        parts: limits::BATCH_PARTS_MAX,
        pictures: limits::BATCH_PARTS_MAX,
    };

    fn too_many(&self) -> ApiError {
        match self.pictures {
            1 => invalid("one picture a request: send several to /predict/batch"),
            limit => invalid(format!("at most {limit} pictures a request")),
        }
    }
}

/// The limits of bodies, and the memory for those of all requests.
#[derive(Debug, Clone)]
pub struct BodyMemory {
    limits: BodyLimits,
    /// Those that are left where the container holds less.
    shrunk: Arc<OnceLock<BodyLimits>>,
    /// In KiB, so that its count fits a semaphore on every platform.
    free: Arc<Semaphore>,
}

impl Default for BodyMemory {
    fn default() -> Self {
        Self::new(BodyLimits::DEFAULT)
    }
}

impl BodyMemory {
    /// Memory within `limits`. What it could never hold is refused as too large, not as too much for now.
    pub fn new(limits: BodyLimits) -> Self {
        let limits = limits.within(Semaphore::MAX_PERMITS);
        Self { limits, shrunk: Arc::default(), free: Arc::new(Semaphore::new(limits.bodies_bytes_max >> 10)) }
    }

    /// The limits.
    pub fn limits(&self) -> &BodyLimits {
        self.shrunk.get().unwrap_or(&self.limits)
    }

    /// When the next piece of a body must be there that began at `started` and of which `bytes` have come over the wire:
    /// a grace, then the lowest rate, and an end for the whole.
    pub(super) fn due(&self, started: Instant, bytes: u64) -> Instant {
        let at_rate = Duration::from_secs(bytes / self.limits.bytes_per_second_min.max(1));
        started + (limits::BODY_RATE_GRACE + at_rate).min(Duration::from_secs(self.limits.read_seconds))
    }

    /// Takes memory away until only `bytes` are left, what the container's limit can hold, and with it the hope for bodies
    /// that are larger; only the first call counts.
    pub fn shrink_to(&self, bytes: usize) {
        self.shrunk.get_or_init(|| {
            let limits = self.limits.within(bytes);
            self.free.forget_permits((self.limits.bodies_bytes_max >> 10) - (limits.bodies_bytes_max >> 10));
            limits
        });
    }

    /// Lets `held` grow to what `bytes` take.
    ///
    /// # Errors
    /// 429 if all bodies together would take too much, 413 if this one alone does.
    pub(super) fn hold(&self, held: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> Result<(), ApiError> {
        let bytes_max = self.limits().bodies_bytes_max;
        if bytes > bytes_max {
            let bytes_max = mebibytes(bytes_max);
            let message =
                format!("request or answer takes more memory than {bytes_max}: send or ask for less at a time");
            return Err(ApiError::new(Code::PayloadTooLarge, message));
        }
        let has = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let wanted = u32::try_from(bytes.div_ceil(1 << 10).saturating_sub(has)).unwrap_or(u32::MAX);
        let more = Arc::clone(&self.free).try_acquire_many_owned(wanted).map_err(|_| {
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

/// Reads a body that holds one picture.
///
/// # Errors
/// As [`receive_all`].
pub async fn receive(request: Request, memory: &BodyMemory, metrics: &HttpMetrics) -> Result<Upload, ApiError> {
    let Form { pictures, parameters, .. } = receive_all(request, &Bounds::SINGLE, memory, metrics).await?;
    let upload = pictures.into_iter().next().unwrap_or_else(|| Err(no_picture()))?;
    Ok(Upload { parameters, ..upload })
}

/// Reads the whole body; it holds at least one picture.
///
/// # Errors
/// 400 for a malformed or empty body, 408 for a slow one, 413 for a long one (as
/// inflated), 415 for an unknown `Content-Encoding`, 429 if all bodies together are too many.
pub async fn receive_all(
    request: Request,
    bounds: &Bounds,
    memory: &BodyMemory,
    metrics: &HttpMetrics,
) -> Result<Form, ApiError> {
    let (head, body) = request.into_parts();
    check_inflated(&head.headers)?;
    let declared = declared_length(&head.headers);
    let bytes_max = (bounds.bytes)(memory.limits());
    if declared.is_some_and(|length| length > bytes_max) {
        return Err(too_large(bytes_max));
    }
    let mut source = Source::open(&head.extensions, body, bytes_max, memory);
    let media_type = media_type(&head.headers);
    let (pictures, parameters) = if is(&media_type, "multipart/form-data") {
        multipart(&mut source, bounds, &media_type).await?
    } else {
        let mut picture = Picture::with_capacity(declared.unwrap_or_default());
        while let Some(chunk) = source.chunk().await? {
            picture.push(&chunk);
        }
        if is(&media_type, "application/json") {
            from_json(picture.bytes.freeze(), &mut source).await?
        } else {
            (vec![picture], Vec::new())
        }
    };
    metrics.body_bytes.inc_by(source.wire.get());
    if pictures.is_empty() {
        return Err(no_picture());
    }
    if pictures.len() > bounds.pictures {
        return Err(bounds.too_many());
    }
    let received = Instant::now();
    let read = received.saturating_duration_since(source.started);
    let (limits, memory) = (*source.memory.limits(), source.held.map(Arc::new));
    let upload = |picture: Picture| {
        let (hash, content) = (picture.hash_time, *picture.hasher.finalize().as_bytes());
        let bytes = picture.finish(limits.body_bytes_max)?;
        Ok(Upload { bytes, content, parameters: Vec::new(), received, read, hash, memory: memory.clone() })
    };
    Ok(Form { pictures: pictures.into_iter().map(upload).collect(), parameters, received })
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

/// Reads a body without looking into it.
///
/// # Errors
/// As [`receive_all`].
pub async fn receive_whole(request: Request, memory: &BodyMemory, metrics: &HttpMetrics) -> Result<Whole, ApiError> {
    let (head, body) = request.into_parts();
    check_inflated(&head.headers)?;
    let bytes_max = memory.limits().batch_bytes_max;
    let declared = declared_length(&head.headers).unwrap_or_default();
    if declared > bytes_max {
        return Err(too_large(bytes_max));
    }
    let mut source = Source::open(&head.extensions, body, bytes_max, memory);
    let mut bytes = BytesMut::with_capacity(declared);
    while let Some(chunk) = source.chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    metrics.body_bytes.inc_by(source.wire.get());
    let (received, memory) = (Instant::now(), source.held);
    let read = received.saturating_duration_since(source.started);
    Ok(Whole { bytes: bytes.freeze(), received, read, memory })
}

/// Refuses a body that is still encoded: of an encoding that the layer before does not know.
fn check_inflated(headers: &HeaderMap) -> Result<(), ApiError> {
    let left = headers.get(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity");
    left.map_or(Ok(()), |encoding| {
        let message = format!("Content-Encoding {encoding:.32?} is not understood: send gzip, deflate or none");
        Err(ApiError::new(Code::UnsupportedImage, message))
    })
}

fn declared_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

/// Media types have no case.
fn is(media_type: &str, name: &str) -> bool {
    media_type.get(..name.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(name))
}

fn too_large(bytes_max: usize) -> ApiError {
    let message = format!("the body is larger than {}: send less at a time", mebibytes(bytes_max));
    ApiError::new(Code::PayloadTooLarge, message)
}

/// Of one picture among others.
pub(super) fn picture_too_large(bytes_max: usize) -> ApiError {
    ApiError::new(Code::PayloadTooLarge, format!("the picture is larger than {}", mebibytes(bytes_max)))
}

/// A limit for people.
fn mebibytes(bytes: usize) -> String {
    if bytes < 1 << 20 { format!("{bytes} bytes") } else { format!("{} MiB", bytes >> 20) }
}

fn no_picture() -> ApiError {
    invalid("the body holds no picture: send the file's bytes, a form field named `file`, or JSON with `image`")
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
        self.hash(chunk);
    }

    fn hash(&mut self, chunk: &[u8]) {
        let start = Instant::now();
        self.hasher.update(chunk);
        self.hash_time += start.elapsed();
    }

    fn finish(self, bytes_max: usize) -> Result<Bytes, ApiError> {
        match self.bytes.len() {
            0 => Err(ApiError::new(Code::InvalidRequest, "the picture is empty: send the file's bytes")),
            bytes if bytes > bytes_max => Err(picture_too_large(bytes_max)),
            _ => Ok(self.bytes.freeze()),
        }
    }
}

/// The request's body under its bounds.
struct Source {
    body: Body,
    bytes_max: usize,
    started: Instant,
    /// By which the sender's rate is judged: a few kilobytes may inflate to all that a body may have.
    wire: WireBytes,
    /// As inflated.
    bytes: usize,
    memory: BodyMemory,
    held: Option<OwnedSemaphorePermit>,
}

impl Source {
    /// `extensions`: the request's, in which its layer counts what comes.
    fn open(extensions: &Extensions, body: Body, bytes_max: usize, memory: &BodyMemory) -> Self {
        let wire = extensions.get::<WireBytes>().cloned().unwrap_or_default();
        Self { body, bytes_max, started: Instant::now(), wire, bytes: 0, memory: memory.clone(), held: None }
    }

    /// The next piece; `None` at the end.
    async fn chunk(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            // Inflating never waits while there is input: without this one body would keep a thread from all others.
            tokio::task::coop::consume_budget().await;
            let due = self.memory.due(self.started, self.wire.get());
            let frame = tokio::time::timeout_at(due.into(), self.body.frame()).await;
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

/// What a form's parser is given: one piece, then it must look at it. Left alone it takes all that it can get first, would
/// buffer what precedes a part's content for ever, and would search all of it anew with each piece.
#[derive(Debug, Default)]
struct Feed {
    /// A piece was given since the parser was last asked.
    given: AtomicBool,
    /// Bytes of which it could make nothing yet.
    unparsed: AtomicUsize,
}

impl Feed {
    /// The body, piece by piece.
    fn pieces(self: Arc<Self>, source: &mut Source) -> impl Stream<Item = Result<Bytes, ApiError>> + Send {
        let chunks =
            futures::stream::try_unfold(source, async |source| Ok(source.chunk().await?.map(|chunk| (chunk, source))));
        let mut chunks = Box::pin(chunks);
        futures::stream::poll_fn(move |context| {
            if self.given.load(Ordering::Relaxed) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.unparsed.load(Ordering::Relaxed) > limits::PART_HEAD_BYTES_MAX {
                let message = format!("multipart: no part begins within {} bytes", limits::PART_HEAD_BYTES_MAX);
                return Poll::Ready(Some(Err(invalid(message))));
            }
            let piece = chunks.as_mut().poll_next(context);
            if let Poll::Ready(Some(Ok(piece))) = &piece {
                self.given.store(true, Ordering::Relaxed);
                self.unparsed.fetch_add(piece.len(), Ordering::Relaxed);
            }
            piece
        })
    }

    /// Asks the parser for its next part, or the next bytes of one.
    async fn next<T>(&self, asked: impl Future<Output = multer::Result<Option<T>>>) -> Result<Option<T>, ApiError> {
        let mut asked = std::pin::pin!(asked);
        let found = std::future::poll_fn(|context| {
            self.given.store(false, Ordering::Relaxed);
            asked.as_mut().poll(context)
        });
        let found = found.await.map_err(of_multipart)?;
        self.unparsed.store(0, Ordering::Relaxed);
        Ok(found)
    }
}

type Received = (Vec<Picture>, Vec<(String, String)>);

async fn multipart(source: &mut Source, bounds: &Bounds, media_type: &str) -> Result<Received, ApiError> {
    let boundary = multer::parse_boundary(media_type).map_err(|error| invalid(format!("multipart: {error}")))?;
    let feed = Arc::new(Feed::default());
    let mut form = multer::Multipart::new(Box::pin(Arc::clone(&feed).pieces(source)), boundary);
    let (mut pictures, mut parameters) = (Vec::new(), Vec::new());
    while let Some(mut field) = feed.next(form.next_field()).await? {
        if pictures.len() + parameters.len() == bounds.parts {
            return Err(invalid(format!("multipart: more than {} parts", bounds.parts)));
        }
        let name = field.name().unwrap_or_default().to_owned();
        if name.len() > limits::PART_NAME_BYTES_MAX {
            return Err(invalid(format!(
                "multipart: a part's name is longer than {} bytes",
                limits::PART_NAME_BYTES_MAX
            )));
        }
        let is_file = matches!(name.as_str(), "file" | "files" | "image" | "images" | "images[]");
        if is_file && pictures.len() == bounds.pictures {
            return Err(bounds.too_many());
        }
        let mut value = Picture::with_capacity(0);
        while let Some(chunk) = feed.next(field.chunk()).await? {
            value.push(&chunk);
            if !is_file && value.bytes.len() > limits::PARAMETER_BYTES_MAX {
                return Err(invalid(format!("multipart: field {name:.64} is too long")));
            }
        }
        if is_file {
            pictures.push(value);
        } else {
            let text = String::from_utf8(value.bytes.to_vec());
            parameters.push((name, text.map_err(|_| invalid("multipart: a parameter is not UTF-8"))?));
        }
    }
    Ok((pictures, parameters))
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

/// Off the runtime's threads: 64 MiB of base64 take tens of milliseconds.
async fn from_json(body: Bytes, source: &mut Source) -> Result<Received, ApiError> {
    let (memory, mut held) = (source.memory.clone(), source.held.take());
    let read = move || {
        memory.hold(&mut held, body.len() + json::reading_bytes(&body))?;
        let document = json::read(&body).map_err(|error| invalid(format!("JSON: {error}")))?;
        let picture = |bytes: Vec<u8>| {
            let mut picture = Picture::with_capacity(0);
            picture.hash(&bytes);
            Picture { bytes: Bytes::from(bytes).into(), ..picture } // no copy
        };
        let received = (document.pictures.into_iter().map(picture).collect(), document.parameters);
        Ok::<_, ApiError>((received, held))
    };
    // The task is never aborted, so the only error is a panic.
    let read = tokio::task::spawn_blocking(read).await;
    let (received, held) = read.map_err(|_| ApiError::new(Code::Internal, "reading the JSON crashed"))??;
    source.held = held;
    Ok(received)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn what_shrunk_memory_could_never_hold_is_too_large_not_too_much_for_now() {
        let memory = BodyMemory::default();
        memory.shrink_to(4 << 10);
        let metrics = Metrics::new().http;
        let receive = async |bytes: usize| {
            let whole = receive_whole(Request::new(Body::from(vec![b'x'; bytes])), &memory, &metrics).await;
            whole.map_err(|error| error.code)
        };
        let held = receive(4 << 10).await.unwrap();
        assert_eq!(receive(1).await.unwrap_err(), Code::QueueFull, "for now");
        drop(held);
        assert_eq!(receive(5 << 10).await.unwrap_err(), Code::PayloadTooLarge);
        assert!(receive(4 << 10).await.is_ok());
    }

    #[tokio::test]
    async fn a_form_is_read_however_it_is_cut() {
        let (memory, metrics) = (BodyMemory::default(), Metrics::new().http);
        let part = |file: &[u8]| {
            [b"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n", file, b"\r\n"].concat()
        };
        // With what looks like the beginning of a boundary.
        let files = [b"\r\n--".repeat(40_000), b"\xFF\xD8\r".repeat(40_000)];
        let whole = Bytes::from([part(&files[0]), part(&files[1]), b"--b--\r\n".to_vec()].concat());
        for size in [97, 5_000, 16 << 10, 60_000, 200_000, usize::MAX] {
            let pieces = std::iter::successors(Some(whole.clone()), |rest| Some(rest.slice(size.min(rest.len())..)));
            let pieces: Vec<Result<Bytes, std::io::Error>> =
                pieces.take_while(|rest| !rest.is_empty()).map(|rest| Ok(rest.slice(..size.min(rest.len())))).collect();
            let request = Request::post("/").header("content-type", "multipart/form-data; boundary=b");
            let request = request.body(Body::from_stream(futures::stream::iter(pieces))).unwrap();
            let form = receive_all(request, &Bounds::BATCH, &memory, &metrics).await.unwrap();
            let found: Vec<_> = form.pictures.into_iter().map(|picture| picture.unwrap().bytes).collect();
            assert!(found == files, "in pieces of {size} bytes");
        }
    }

    #[tokio::test]
    async fn json_holds_what_it_becomes_beside_its_text() {
        let memory = BodyMemory::default();
        let metrics = Metrics::new().http;
        let receive = async |body: String| {
            let request = Request::post("/").header("content-type", "application/json").body(Body::from(body));
            receive_all(request.unwrap(), &Bounds::BATCH, &memory, &metrics).await
        };
        let document = |text: &str| format!("{{\"image\":\"{}{text}\"}}", "QUJD".repeat(1 << 18));
        let kib_held = |form: &Form| form.pictures[0].as_ref().unwrap().memory.as_ref().unwrap().num_permits();
        let plain = receive(document("")).await.unwrap();
        assert_eq!(kib_held(&plain), (1 << 10) + 768 + 1);
        let escaped = receive(document("\\/\\/\\/\\/")).await.unwrap();
        assert_eq!(kib_held(&escaped), (1 << 10) + 768 + (2 << 10) + 1);
        drop((plain, escaped));
        memory.shrink_to(1536 << 10);
        assert_eq!(receive(document("")).await.unwrap_err().code, Code::PayloadTooLarge, "its text alone would fit");
    }
}
