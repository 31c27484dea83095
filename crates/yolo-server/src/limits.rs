//! Every bound of the server in one place: nothing that a client can send grows without one of these.
//!
//! What depends on the pictures, the clients or the machine is a flag. The others are constants: they are what an attack
//! is stopped by, far above what any honest request needs, and a flag would only be a way to do without.

use std::time::Duration;

use clap::Args;
use yolo_vision::DecodeLimits;

/// Bounds of request bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
#[command(next_help_heading = "Bodies")]
pub struct BodyLimits {
    /// Largest body with one picture, and largest picture of a batch, in bytes.
    #[arg(long = "body-bytes-max", env = "YOLO_BODY_BYTES_MAX", default_value_t = Self::DEFAULT.body_bytes_max)]
    pub body_bytes_max: usize,
    /// Largest body of a batch or of tensors, and largest output tensors of a request, in bytes.
    #[arg(long = "batch-bytes-max", env = "YOLO_BATCH_BYTES_MAX", default_value_t = Self::DEFAULT.batch_bytes_max)]
    pub batch_bytes_max: usize,
    /// Bodies of all requests and answers together, in bytes; past it a request is refused with 429.
    #[arg(long = "bodies-bytes-max", env = "YOLO_BODIES_BYTES_MAX", default_value_t = Self::DEFAULT.bodies_bytes_max)]
    pub bodies_bytes_max: usize,
    /// Seconds for a whole body.
    #[arg(long = "body-read-seconds", env = "YOLO_BODY_READ_SECONDS", default_value_t = Self::DEFAULT.read_seconds)]
    pub read_seconds: u64,
    /// Slowest accepted upload after its first 5 seconds, in bytes a second.
    #[arg(
        long = "body-bytes-per-second-min",
        env = "YOLO_BODY_BYTES_PER_SECOND_MIN",
        default_value_t = Self::DEFAULT.bytes_per_second_min,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub bytes_per_second_min: u64,
}

impl BodyLimits {
    /// 20 MiB: three times a 50-megapixel camera JPEG. 64 MiB: more pictures go into another request, which another pod
    /// may take.
    pub const DEFAULT: Self = Self {
        body_bytes_max: 20 << 20,
        batch_bytes_max: 64 << 20,
        bodies_bytes_max: 128 << 20,
        read_seconds: 60,
        bytes_per_second_min: 16 << 10,
    };

    /// These, where all bodies together have `bodies_bytes_max` at most: no single one may be larger.
    #[must_use]
    pub fn within(self, bodies_bytes_max: usize) -> Self {
        let bodies_bytes_max = self.bodies_bytes_max.min(bodies_bytes_max);
        Self {
            body_bytes_max: self.body_bytes_max.min(bodies_bytes_max),
            batch_bytes_max: self.batch_bytes_max.min(bodies_bytes_max),
            bodies_bytes_max,
            ..self
        }
    }
}

/// Bounds of one picture, checked against its header before it is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
#[command(next_help_heading = "Pictures")]
pub struct PictureLimits {
    /// Most pixels of a picture; what a decoder may take in memory bounds them too.
    #[arg(long = "image-pixels-max", env = "YOLO_IMAGE_PIXELS_MAX", default_value_t = Self::DEFAULT.pixels_max)]
    pub pixels_max: u64,
    /// Longest side of a picture, in pixels.
    #[arg(long = "image-side-px-max", env = "YOLO_IMAGE_SIDE_PX_MAX", default_value_t = Self::DEFAULT.side_px_max)]
    pub side_px_max: u32,
    /// Most scans of a progressive JPEG: each costs a pass over the whole picture.
    #[arg(long = "jpeg-scans-max", env = "YOLO_JPEG_SCANS_MAX", default_value_t = Self::DEFAULT.jpeg_scans_max)]
    pub jpeg_scans_max: usize,
}

impl PictureLimits {
    /// 50 megapixels: the largest cameras. 100 scans: ten times what encoders make.
    pub const DEFAULT: Self = Self { pixels_max: 50_000_000, side_px_max: 16_384, jpeg_scans_max: 100 };

    /// For decoders that may take `memory_bytes_max` bytes a picture.
    pub const fn decoding(self, memory_bytes_max: usize) -> DecodeLimits {
        let Self { pixels_max, side_px_max, jpeg_scans_max } = self;
        DecodeLimits { pixels_max, side_px_max, memory_bytes_max, jpeg_scans_max }
    }
}

/// Parts of one multipart body: the picture and the parameters, each once.
pub const MULTIPART_PARTS_MAX: usize = 8;
/// Parts of a batch, pictures and parameters.
pub const BATCH_PARTS_MAX: usize = 64;
/// Bytes before the content of a multipart part: what precedes its boundary, and its headers.
pub const PART_HEAD_BYTES_MAX: usize = 16 << 10;
/// Bytes of a part's name.
pub const PART_NAME_BYTES_MAX: usize = 256;
/// Bytes of a multipart text field or of a parameter's value.
pub const PARAMETER_BYTES_MAX: usize = 4 << 10;
/// Bytes of an `X-Request-Id` that is echoed; a longer one is replaced.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Bytes of a `tracestate` that is passed on: the standard's least.
pub const TRACESTATE_BYTES_MAX: usize = 512;
/// Bytes of an `X-Stream-Id`; a longer one is refused.
pub const STREAM_ID_BYTES_MAX: usize = 128;

/// Length of a request's path and query; the parameters of the longest sensible one take a tenth of it.
pub const URI_BYTES_MAX: usize = 8 << 10;
/// Smallest answer that is compressed for a client that accepts it: the JSON of a picture fits a few packets, and is not
/// worth the time.
pub const COMPRESSED_BYTES_MIN: u64 = 8 << 10;
/// Largest bound of an answer's memory that does not count while it is made: of a hundred boxes, 16 KiB of text.
pub const MAKING_BYTES_UNCOUNTED: usize = 64 << 10;
/// Most bytes that a thread that serves connections reads or writes in one go: about a millisecond.
pub const WORK_BYTES_INLINE: usize = 256 << 10;
/// Threads for what blocks or takes long beside the decoding of pictures: large JSON, a model's load and its predecessor's
/// end, names that are looked up. By default tokio starts one for each such piece of work, up to 512.
pub const BLOCKING_THREADS_BESIDE: usize = 8;
/// Largest answer that does not count among the bodies in memory: of each connection one, they take less than those.
pub const ANSWER_BYTES_UNCOUNTED: usize = 8 << 10;
/// Slowest accepted reader of an answer, in bytes a second, as of an upload.
pub const ANSWER_BYTES_PER_SECOND_MIN: u64 = 16 << 10;
/// Size of a request's header block.
pub const HEADER_BYTES_MAX: usize = 16 << 10;
/// After this time a body must have come at [`BodyLimits::bytes_per_second_min`] on average.
pub const BODY_RATE_GRACE: Duration = Duration::from_secs(5);
/// Spread of [`ConnectionLimits::age_seconds`], as a share: without it all connections of a burst would move together.
pub const CONNECTION_AGE_JITTER: f64 = 0.33;
/// File descriptors kept for everything but connections: model, knobs, logs, the admin port's listener.
pub const FILES_RESERVED: u64 = 64;
/// Connections of the admin port, beside those of the API: a flood there must not keep the probes out.
pub const ADMIN_CONNECTIONS_MAX: usize = 64;

/// Bounds of one connection and of their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
#[command(next_help_heading = "Connections")]
pub struct ConnectionLimits {
    /// Open connections of both APIs together; past it a new one is closed at once and counted.
    #[arg(long = "connections-max", env = "YOLO_CONNECTIONS_MAX", default_value_t = Self::DEFAULT.connections_max)]
    pub connections_max: usize,
    /// Seconds for a request head, from its first byte; for the first one from the connection's opening.
    #[arg(long = "header-read-seconds", env = "YOLO_HEADER_READ_SECONDS", default_value_t = Self::DEFAULT.header_read_seconds)]
    pub header_read_seconds: u64,
    /// Seconds that a client may leave a response unread; it must read at 16 KiB a second on average after as many.
    #[arg(long = "response-write-seconds", env = "YOLO_RESPONSE_WRITE_SECONDS", default_value_t = Self::DEFAULT.response_write_seconds)]
    pub response_write_seconds: u64,
    /// Seconds that a kept-alive connection may be idle.
    #[arg(long = "keep-alive-idle-seconds", env = "YOLO_KEEP_ALIVE_IDLE_SECONDS", default_value_t = Self::DEFAULT.keep_alive_idle_seconds)]
    pub keep_alive_idle_seconds: u64,
    /// Mean age in seconds at which a connection is told to close, so that clients find new replicas.
    #[arg(long = "connection-age-seconds", env = "YOLO_CONNECTION_AGE_SECONDS", default_value_t = Self::DEFAULT.age_seconds)]
    pub age_seconds: u64,
    /// Requests after which a connection is told to close whatever its age.
    #[arg(long = "connection-requests-max", env = "YOLO_CONNECTION_REQUESTS_MAX", default_value_t = Self::DEFAULT.requests_max)]
    pub requests_max: u32,
}

impl ConnectionLimits {
    /// 15 s of age: behind kube-proxy, which balances connections, a new replica has its share after as long.
    pub const DEFAULT: Self = Self {
        connections_max: 10_000,
        header_read_seconds: 5,
        response_write_seconds: 10,
        keep_alive_idle_seconds: 75,
        age_seconds: 15,
        requests_max: 1_000,
    };
}

/// Detections of one picture that a request may ask for.
pub const DETECTIONS_MAX: usize = 3_000;
/// Of these, with masks: an outline may have ten thousand points, and costs an inference thread milliseconds.
pub const MASKS_MAX: usize = 300;
/// Images admitted and not yet started, whatever the knobs say.
pub const QUEUE_IMAGES_MAX: usize = 256;
/// Memory that one picture may take while it is decoded: 50 megapixels and the decoder's own.
pub const DECODER_BYTES_MAX: usize = 256 << 20;
/// Memory of admitted, prepared images.
pub const QUEUE_BYTES_MAX: usize = 256 << 20;
/// Largest picture that an engine letterboxes, in pixels of the model's input: as many bytes as the f32 tensor that it
/// replaces. A resize reads four pixels for each that it makes, so of a larger one most would go up for nothing.
pub const ENGINE_PICTURE_FACTOR: u64 = 4;
/// Spare images take at most one part in this many of the queue's images and memory, beside the others.
pub const SPARE_SHARE: usize = 4;
/// Largest batch of any engine.
pub const BATCH_MAX: usize = 32;
/// Batch sizes that are timed on purpose, and the only ones that are run where each size costs a session of its own.
pub const BATCH_SIZES: [usize; 8] = [1, 2, 4, 8, 12, 16, 24, BATCH_MAX];
/// Sessions a GPU: one copies while the other computes (Triton: 73 -> 110 images/s).
pub const SESSIONS_PER_GPU: usize = 2;

/// Tasks that have not ended.
pub const TASKS_MAX: usize = 1_000;
/// Pictures and results of tasks in memory; in a shared store so many of each. In memory pictures leave
/// [`TASK_RESULT_BYTES_MAX`] of it: the newest result always fits, and the oldest ones give way to it.
pub const TASKS_BYTES_MAX: usize = 64 << 20;
/// Largest result of a task: ten times that of 3 000 boxes.
pub const TASK_RESULT_BYTES_MAX: usize = 4 << 20;
/// Time for a lookup in the shared store: what a miss may cost.
pub const STORE_CACHE_MAX: Duration = Duration::from_millis(20);
/// Answers on their way to the shared store; more are not stored.
pub const STORE_WRITES_MAX: usize = 64;
/// Largest answer in the shared store.
pub const STORE_VALUE_BYTES_MAX: usize = 1 << 20;
/// Time for a call about a task to the shared store: a picture of [`BodyLimits::body_bytes_max`] passes a slow network in it.
pub const STORE_TASK_MAX: Duration = Duration::from_secs(2);
/// Time for one attempt to connect to the shared store, and longest pause between two.
pub const STORE_CONNECT_MAX: Duration = Duration::from_secs(1);
/// Bytes of an `Idempotency-Key`.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;

/// Time for the last traces at the end of a drain; a collector that is gone must not cost the grace period.
pub const TRACES_FLUSH_MAX: Duration = Duration::from_secs(2);

/// Time for the batches that run at the end of a drain; nobody waits for them any more.
pub const WORKERS_END_MAX: Duration = Duration::from_secs(1);
/// Time in which the tasks that a server leaves to others are handed back at its end.
pub const HAND_BACK_MAX: Duration = Duration::from_secs(1);

/// Size of `knobs.json`.
pub const KNOBS_BYTES_MAX: u64 = 4 << 10;
/// The knobs directory is read this often even if no change was notified.
pub const KNOBS_POLL: Duration = Duration::from_secs(5);
/// Largest result cache.
pub const CACHE_BYTES_MAX: u64 = 1 << 30;
/// Memory that pictures and bodies leave to the cache: as much as the one that a server without an operator has takes.
pub const CACHE_RESERVE_BYTES: u64 = 74 << 20;
/// Where memory is short, they leave it one part in this many.
pub const CACHE_SHARE: u64 = 8;
/// Where memory leaves fewer bytes for the result cache, it is off.
pub const CACHE_FITTED_BYTES_MIN: u64 = 64 << 10;
/// Bytes that one step of making the cache smaller evicts: about a thousand answers, in less than a millisecond.
pub const CACHE_EVICTED_BYTES_MAX: u64 = 256 << 10;

/// A batch that runs longer than this, and longer than [`STUCK_BATCH_FACTOR`] times its usual time, fails `/livez`.
pub const STUCK_BATCH_MIN: Duration = Duration::from_secs(30);
/// See [`STUCK_BATCH_MIN`].
pub const STUCK_BATCH_FACTOR: f64 = 20.0;
/// Engine failures in a row after which the server is no longer ready.
pub const ENGINE_FAILURES_MAX: u32 = 3;
/// Time after which a session that failed so is replaced: nothing else would reach it any more. Doubled while new ones
/// fail too, up to [`ENGINE_RETRY_MAX`].
pub const ENGINE_RETRY: Duration = Duration::from_secs(1);
/// See [`ENGINE_RETRY`].
pub const ENGINE_RETRY_MAX: Duration = Duration::from_secs(16);

/// Time after which a batch size that failed and was given up is tried again: a neighbour on the device may have taken its
/// memory. Doubled with each failure.
pub const BATCH_RETRY_MIN: Duration = Duration::from_mins(5);
/// Longest of these times.
pub const BATCH_RETRY_MAX: Duration = Duration::from_hours(1);

/// Input sizes of one server: each is warmed on every session, keeps its memory there, and on a GPU has sessions of its own.
pub const INPUT_SIZES_MAX: usize = 8;
/// Largest model: a protocol-buffer message has less than 2 GiB, and an ONNX file is one.
pub const MODEL_BYTES_MAX: u64 = (2 << 30) - 1;
/// Time for a connection to a model store.
pub const FETCH_CONNECT_MAX: Duration = Duration::from_secs(10);
/// Time without a byte after which a transfer counts as broken.
pub const FETCH_STALL_MAX: Duration = Duration::from_secs(30);
/// Shortest wait before a broken transfer is taken up again; doubled from failure to failure.
pub const FETCH_WAIT_MIN: Duration = Duration::from_millis(500);
/// Longest such wait.
pub const FETCH_WAIT_MAX: Duration = Duration::from_secs(30);
/// Broken transfers of one fetch, however far each came.
pub const FETCH_TRANSFERS_MAX: u32 = 200;
