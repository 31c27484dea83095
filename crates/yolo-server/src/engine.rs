//! What runs a model: a batch of prepared pictures in, output tensors out.

pub mod emulated;
pub mod ort;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use yolo_vision::{Letterbox, LetterboxError, ModelError, ModelInfo, OutputView, Picture, Size, Task, letterbox_into};

use crate::limits::ENGINE_PICTURE_FACTOR;

/// A picture ready for the model.
#[derive(Debug)]
pub struct EngineInput {
    /// `[3, height, width]` RGB of `size`.
    pub pixels: Pixels,
    /// One of [`LoadedModel::sizes`].
    pub size: Size,
    /// Hash of the encoded file, or of the pixels; the emulated engine derives its detections from it.
    pub content: [u8; 32],
}

/// A picture's values.
#[derive(Debug)]
pub enum Pixels {
    /// u8: what the queue holds, a quarter of f32. Divided by 255 when the batch is assembled.
    Levels(Bytes),
    /// f32 as a client made them, little-endian.
    Numbers(Bytes),
    /// A decoded picture and its place in the model's input, for engines that letterbox ([`LoadedModel::letterboxes`]).
    Picture(Picture, Letterbox),
}

impl Pixels {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::Levels(levels) => levels.len(),
            Self::Numbers(numbers) => numbers.len() / size_of::<f32>(),
            Self::Picture(_, letterbox) => letterbox.output_len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the model's f32 values to `tensor`; the shorter of the two decides how much is written.
    ///
    /// # Errors
    /// [`LetterboxError::Mismatch`] for a picture whose letterbox was planned for another one.
    pub fn write(&self, tensor: &mut [f32]) -> Result<(), LetterboxError> {
        match self {
            Self::Levels(levels) => yolo_vision::normalise(levels, tensor),
            Self::Numbers(numbers) => {
                for (value, number) in tensor.iter_mut().zip(numbers.as_chunks().0) {
                    *value = f32::from_le_bytes(*number);
                }
            }
            Self::Picture(picture, letterbox) => {
                let mut levels = vec![0; letterbox.output_len()];
                letterbox_into(picture, letterbox, &mut levels)?;
                yolo_vision::normalise(&levels, tensor);
            }
        }
        Ok(())
    }
}

impl From<Vec<u8>> for Pixels {
    fn from(levels: Vec<u8>) -> Self {
        Self::Levels(levels.into())
    }
}

/// What an engine does with the memory that a batch needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Keep it for the next batch of the size.
    Keep,
    /// Give it back: the size is rare.
    Release,
}

/// One session of a loaded model, owned by one worker thread.
pub trait Engine: Send {
    /// Runs `inputs`, all of one size, as one batch (1..=[`LoadedModel::batch_max`] pictures).
    ///
    /// # Errors
    /// [`EngineError`] if the engine refused the batch; the session stays usable.
    fn run(&mut self, inputs: &[&EngineInput], memory: Memory) -> Result<Box<dyn BatchOutput + '_>, EngineError>;
}

/// The output tensors of a batch, owned by the engine until dropped.
pub trait BatchOutput {
    /// One image's share of the outputs that [`ModelInfo::output_names`] lists, in that order; `None` if the engine gave
    /// fewer images than it got.
    fn image(&self, index: usize) -> Option<Vec<OutputView<'_>>>;
}

/// Opens sessions of a model that is loaded and checked.
pub trait Sessions: Send + Sync {
    /// Opens one more session.
    ///
    /// # Errors
    /// [`EngineError`] if the engine cannot, for want of memory say.
    fn open(&self) -> Result<Box<dyn Engine>, EngineError>;

    /// Total time for which the device was busy; `None` if there is no device to speak of.
    fn device_busy(&self) -> Option<Duration> {
        None
    }
}

/// A model that can be served.
#[derive(Clone)]
pub struct LoadedModel {
    /// Shapes, classes and output layout; its size is the default one.
    pub info: ModelInfo,
    /// Input sizes that are served, the default first.
    pub sizes: Arc<[Size]>,
    /// The file's stem.
    pub name: String,
    /// SHA-256 of the file, 64 hexadecimal digits.
    pub sha256: String,
    /// What computes: `cpu`, `cuda`, `tensorrt` or `emulated`.
    pub provider: &'static str,
    /// Arithmetic: `fp32` or `fp16`.
    pub precision: &'static str,
    /// Largest batch of the model and the engine.
    pub batch_max: usize,
    /// Whether only [`crate::limits::BATCH_SIZES`] are run, because each size costs a session of its own; a batch between
    /// two of them is padded.
    pub batches_fixed: bool,
    /// Whether its engine letterboxes pictures itself, beside the CPU.
    pub letterboxes: bool,
    /// Opens its sessions.
    pub sessions: Arc<dyn Sessions>,
}

impl fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, sha256, provider, .. } = self;
        f.debug_struct("LoadedModel").field("name", name).field("sha256", sha256).field("provider", provider).finish()
    }
}

impl LoadedModel {
    /// What tells it from others, as labels of a metric.
    pub fn labels(&self) -> [(&'static str, String); 6] {
        [
            ("name", self.name.clone()),
            ("task", self.info.task().as_str().to_owned()),
            ("sha256", self.sha256.clone()),
            ("provider", self.provider.to_owned()),
            ("precision", self.precision.to_owned()),
            ("imgsz", self.sizes.iter().map(|size| size.width_px.to_string()).collect::<Vec<_>>().join(",")),
        ]
    }

    /// Whether answers are made up.
    pub fn emulated(&self) -> bool {
        self.provider == emulated::PROVIDER
    }

    /// Memory that a prepared picture of the largest size takes, in bytes.
    pub fn image_bytes_max(&self) -> usize {
        let pixels = self.sizes.iter().map(|size| size.pixels()).max().unwrap_or_default();
        let factor = if self.letterboxes { ENGINE_PICTURE_FACTOR } else { 1 };
        usize::try_from(3 * pixels * factor).unwrap_or(usize::MAX)
    }

    /// Whether its engine is to letterbox a picture of this size, for an input of size `target`.
    pub fn takes(&self, picture: Size, target: Size) -> bool {
        let small = picture.pixels() <= ENGINE_PICTURE_FACTOR * target.pixels();
        self.letterboxes && small && self.info.task() != Task::Classify
    }

    /// First digits of the digest: what answers call the model's version.
    pub fn version(&self) -> &str {
        self.sha256.get(..6).unwrap_or(&self.sha256)
    }
}

/// The model at the first of `sides_px`, or at its own size if there is none, and every size once.
///
/// # Errors
/// [`ModelError::ImageSize`] for one that the model cannot run at.
fn sized(info: ModelInfo, sides_px: &[u32]) -> Result<(ModelInfo, Arc<[Size]>), ModelError> {
    let mut sizes: Vec<Size> = Vec::with_capacity(sides_px.len());
    for size in sides_px.iter().map(|side_px| Size::new(*side_px, *side_px)) {
        info.clone().with_size(size)?;
        if !sizes.contains(&size) {
            sizes.push(size);
        }
    }
    let Some(first) = sizes.first() else { return Ok((info.clone(), [info.size()].into())) };
    Ok((info.with_size(*first)?, sizes.into()))
}

/// A batch failed.
#[derive(Debug, thiserror::Error)]
#[error("the engine failed: {0}")]
pub struct EngineError(pub String);

/// A model cannot be served. The text names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No such file, or not readable.
    #[error("the model file {file} cannot be read: {detail}")]
    Missing {
        /// Path as configured.
        file: String,
        /// The system's words.
        detail: String,
    },
    /// The file ends early or is no ONNX file.
    #[error("the model file {file} is truncated or not an ONNX file: upload it again ({detail})")]
    Truncated {
        /// Path as configured.
        file: String,
        /// The engine's words.
        detail: String,
    },
    /// Not the file that was asked for.
    #[error("the model file {file} has SHA-256 {found}, expected {expected}")]
    DigestMismatch {
        /// Path as configured.
        file: String,
        /// Digest as configured.
        expected: String,
        /// Digest of the file.
        found: String,
    },
    /// A model that this server cannot run.
    #[error("the model file {file} is not supported: {detail}")]
    Unsupported {
        /// Path as configured.
        file: String,
        /// What does not fit.
        detail: String,
    },
    /// The engine's library is missing or of another version.
    #[error("the inference engine cannot start: {0}")]
    Engine(String),
}

impl LoadError {
    /// Closed set: the code in the termination log, which becomes a condition's reason.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "model_missing",
            Self::Truncated { .. } => "model_truncated",
            Self::DigestMismatch { .. } => "model_digest_mismatch",
            Self::Unsupported { .. } => "model_unsupported",
            Self::Engine(_) => "engine_unavailable",
        }
    }
}
