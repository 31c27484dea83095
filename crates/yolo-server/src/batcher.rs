//! Dynamic batching: prepared images queue, workers pull when they are free.
//!
//! No timer forms batches. A free worker takes what is there, up to the size that pays and up to its fair share among
//! the idle workers:
//!
//! ```text
//!   admitted -> decoded, letterboxed -> queue -> worker 1: session, postprocessing -> answer
//!   (a slot each, bounded)                   \-> worker 2: ...
//! ```
//!
//! Guarantees: an image whose client has left, or whose deadline has passed, is dropped before it costs a run; a batch
//! holds images of one input size; one that fails is rerun image by image, so only the guilty image fails; a large
//! request delays a small one by one batch; of a camera's frames only the newest waits.

mod curve;
mod curves;
mod held;
mod probe;
mod queue;
mod worker;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use yolo_vision::{Detection, Letterbox, OutputError, Parameters};

use crate::admission::{Load, Refusal};
use crate::engine::{EngineError, EngineInput, LoadedModel};
pub use crate::fair::{FlowId, Lane, Place, StreamKey};
use crate::knobs::Knobs;
use crate::metrics::Metrics;
use queue::Shared;
use worker::Worker;

/// A prepared image with everything that its run needs.
#[derive(Debug)]
pub struct Job {
    /// The model's input.
    pub input: EngineInput,
    /// What its client wants to know.
    pub wanted: Wanted,
    /// Whose turn it shares.
    pub place: Place,
    /// Its batch must start before this; `None` if it may wait as long as it takes.
    pub start_by: Option<Instant>,
    /// Its answer is worthless after this; `None` if the request named no time-out.
    pub answer_by: Option<Instant>,
    /// Set when its batch begins.
    pub begun: Arc<AtomicBool>,
}

/// What a client wants to know of an image.
#[derive(Debug)]
pub enum Wanted {
    /// The objects that `parameters` let through, in pixels of the picture, to which `letterbox` is the way back.
    Detections {
        /// The way back to the picture.
        letterbox: Letterbox,
        /// What the request chose.
        parameters: Parameters,
    },
    /// The model's own outputs.
    Tensors,
}

/// What the model says of an image.
#[derive(Debug)]
pub enum Found {
    /// Found objects, best first.
    Detections(Vec<Detection>),
    /// Its share of each output, in the order of [`yolo_vision::ModelInfo::output_names`].
    Tensors(Vec<ImageTensor>),
}

/// One image's share of an output.
#[derive(Debug)]
pub struct ImageTensor {
    /// Size of each dimension, without the batch.
    pub shape: Vec<usize>,
    /// Its values, row by row.
    pub values: Vec<f32>,
}

/// What became of an image.
#[derive(Debug)]
pub struct Inferred {
    /// What its client wanted to know.
    pub found: Found,
    /// Images in its batch.
    pub batch_size: usize,
    /// When it was queued.
    pub enqueued: Instant,
    /// From queueing to the start of its batch.
    pub queue: Duration,
    /// Engine time of its batch.
    pub inference: Duration,
    /// Threshold, suppression and projection of this image.
    pub postprocess: Duration,
}

/// Why an image has no result.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Its batch did not start in time.
    #[error("the image waited longer than its deadline")]
    Expired,
    /// A newer frame of its stream took its place.
    #[error("a newer frame of the same stream replaced this one")]
    Superseded,
    /// The engine failed on this very image, or its output did not fit the model.
    #[error("inference failed on this image: {0}")]
    Failed(String),
    /// Its answer would take too much memory.
    #[error("{0}")]
    TooLarge(OutputError),
    /// No session of the engine works.
    #[error("the inference engine failed several times in a row")]
    Unsound,
    /// The server shut down first.
    #[error("the server stopped before the image was run")]
    Stopped,
}

/// Answer channel of a [`Job`].
pub type Reply = oneshot::Receiver<Result<Inferred, JobError>>;

/// Queue and workers of one model.
#[derive(Debug)]
pub struct Batcher {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Batcher {
    /// Opens a session for each worker and warms it (three runs of one image of each input size, the first of them from a
    /// picture's bytes to JSON) in the worker's thread.
    ///
    /// # Errors
    /// [`EngineError`] if a session cannot be opened or the warm-up fails.
    pub fn start(
        model: &LoadedModel,
        workers: usize,
        knobs: Knobs,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, EngineError> {
        let shared = Arc::new(Shared::new(model.clone(), workers, knobs, Arc::clone(metrics)));
        let mut threads = Vec::with_capacity(workers);
        let (told, warmed) = mpsc::channel();
        let started = (0..workers).try_for_each(|index| {
            // Opened by this thread, one after the other: the system's allocator keeps for a thread what it gave back.
            let (engine, shared, told) = (model.sessions.open()?, Arc::clone(&shared), told.clone());
            let work = move || match Worker::warm(shared, index, engine) {
                Ok(worker) => {
                    let _ = told.send(Ok(()));
                    // Kept, it would make the wait for a worker that panicked endless.
                    drop(told);
                    worker.run();
                }
                Err(error) => drop(told.send(Err(error))),
            };
            let spawned = std::thread::Builder::new().name(format!("inference-{index}")).spawn(work);
            threads.push(spawned.map_err(|error| EngineError(error.to_string()))?);
            Ok(())
        });
        drop(told);
        // Warmed side by side: ready sooner. One that panics tells nothing.
        let panicked = || Err(EngineError("the engine panicked at its start".to_owned()));
        let started =
            started.and_then(|()| (0..workers).try_for_each(|_| warmed.recv().unwrap_or_else(|_| panicked())));
        let batcher = Self { shared, threads: Mutex::new(threads) };
        match started {
            Ok(()) => Ok(batcher),
            Err(error) => {
                batcher.stop();
                Err(error)
            }
        }
    }

    /// Reserves room for one image, before it is decoded. `answer_by`: when its request gives it up.
    ///
    /// A frame whose predecessor is still queued is never refused: it takes no more room.
    ///
    /// # Errors
    /// [`Refusal`] if the image would start too late or its lane is full.
    pub fn admit(&self, place: &Place, decode_wait: Duration, answer_by: Option<Instant>) -> Result<Slot, Refusal> {
        let reserved = Some(self.shared.reserve(place, decode_wait, answer_by)?);
        Ok(Slot { shared: Arc::clone(&self.shared), reserved })
    }

    /// [`Self::admit`], but waits for room instead of being refused for want of it.
    pub async fn admit_patiently(&self, place: &Place, decode_wait: Duration) -> Slot {
        loop {
            // Before the attempt: room that comes between the two must not be missed.
            let room = self.shared.room.notified();
            if let Ok(slot) = self.admit(place, decode_wait, None) {
                return slot;
            }
            room.await;
        }
    }

    /// The load as admission sees it for an image that somebody waits for.
    pub fn load(&self) -> Load {
        self.shared.load()
    }

    /// Age of the oldest queued image.
    pub fn oldest_age(&self) -> Duration {
        self.shared.oldest_age()
    }

    /// Images that are prepared and wait for a worker.
    pub fn queued(&self) -> usize {
        self.shared.queued()
    }

    /// Applies new knobs from the next pull on.
    pub fn set_knobs(&self, knobs: Knobs) {
        self.shared.set_knobs(knobs);
    }

    /// Bounds the memory of prepared images that somebody waits for, in bytes.
    pub fn set_queue_bytes_max(&self, bytes: usize) {
        self.shared.set_queue_bytes_max(bytes);
    }

    /// Whether a batch runs for much longer than batches do.
    pub fn stuck(&self) -> bool {
        self.shared.stuck()
    }

    /// Whether the engine works: some session had less than three failures in a row.
    pub fn sound(&self) -> bool {
        self.shared.sound()
    }

    /// Total time for which the device was busy, if the engine knows.
    pub fn device_busy(&self) -> Option<Duration> {
        self.shared.model.sessions.device_busy()
    }

    /// Finishes what is queued and ends the workers; blocks until they have.
    pub fn stop(&self) {
        self.shared.close();
        self.retire().join();
    }

    /// Another batcher takes its place: nothing is timed at idle any more. It serves who holds it, and its workers end
    /// when nobody does.
    pub fn retire(&self) -> Workers {
        self.shared.retire();
        Workers(std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// The threads of a batcher that ends.
#[derive(Debug)]
#[must_use]
pub struct Workers(Vec<JoinHandle<()>>);

impl Workers {
    /// Blocks until all have ended.
    pub fn join(self) {
        for thread in self.0 {
            // A worker catches its panics; what is left is a bug that must not take the server down.
            if thread.join().is_err() {
                tracing::error!("An inference worker panicked.");
            }
        }
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        // Without this a failed start or a forgotten stop would leave threads waiting for ever.
        self.shared.close();
    }
}

/// Room for one image in the queue; given back when dropped.
#[derive(Debug)]
pub struct Slot {
    shared: Arc<Shared>,
    reserved: Option<Place>,
}

impl Slot {
    /// Puts the prepared image into the queue.
    ///
    /// Cancellation: drop the receiver and the image is dropped before its run, or its result after it.
    pub fn enqueue(mut self, job: Job) -> Reply {
        self.reserved = None;
        self.shared.enqueue(job)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(place) = &self.reserved {
            self.shared.release(place);
        }
    }
}
