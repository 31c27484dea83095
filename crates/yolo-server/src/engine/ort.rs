//! ONNX Runtime, loaded at run time from `ORT_DYLIB_PATH`.
//!
//! One session a worker thread, one thread a session, no spinning: 1.16 times the throughput of ONNX Runtime's default
//! on an idle machine and 1.94 times beside one busy competitor, which our own decoding is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use half::f16;
use half::slice::HalfFloatSliceExt;
use ort::environment::Environment;
use ort::session::builder::{GraphOptimizationLevel, PrepackedWeights};
use ort::session::{NoSelectedOutputs, RunOptions, Session, SessionInputValue, SessionOutputs};
use ort::value::{Outlet, TensorElementType, TensorRef, ValueType};
use yolo_vision::{ModelInfo, OutputView, Size, TensorShape};

use super::{BatchOutput, Engine, EngineError, EngineInput, LoadError, LoadedModel, Memory, Sessions};
use crate::limits;
use crate::sha256::Sha256;

/// Where the library is looked for if `ORT_DYLIB_PATH` is not set.
const LIBRARY: &str = "libonnxruntime.so";

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct Options {
    /// The ONNX file.
    pub model: PathBuf,
    /// Its expected SHA-256, in hexadecimal digits of either case.
    pub sha256: Option<String>,
    /// Side of the square input, in pixels, for models whose input is dynamic.
    pub side_px: Option<u32>,
    /// Threads of each session.
    pub threads: usize,
}

/// Checks the file, loads it once and reads what it says about itself.
///
/// # Errors
/// [`LoadError`]: the file is missing, torn, another one, or of a kind that this server cannot run.
pub fn load(options: &Options) -> Result<LoadedModel, LoadError> {
    let file = options.model.display().to_string();
    let sha256 = digest(&options.model, &file)?;
    if let Some(expected) = options.sha256.as_ref().filter(|expected| !expected.eq_ignore_ascii_case(&sha256)) {
        return Err(LoadError::DigestMismatch { file, expected: expected.clone(), found: sha256 });
    }
    let opener = OrtSessions {
        model: options.model.clone(),
        threads: options.threads.max(1),
        // First: whatever touches ONNX Runtime before the environment is there panics if the library is missing.
        environment: environment().map_err(LoadError::Engine)?,
        weights: PrepackedWeights::new(),
    };
    let session = opener.session().map_err(|error| refused(&error, file.clone()))?;
    let unsupported = |detail: String| LoadError::Unsupported { file: file.clone(), detail };
    let mut info = describe(&session).map_err(unsupported)?;
    if let Some(side_px) = options.side_px {
        info = info.with_size(Size::new(side_px, side_px)).map_err(|error| unsupported(error.to_string()))?;
    }
    let precision = if session.inputs().iter().any(is_half) { Precision::Half } else { Precision::Single };
    let opener = Opener {
        batch_fixed: info.batch_fixed(),
        size: info.size(),
        precision,
        output_names: info.output_names().into(),
        sessions: opener,
        described: Mutex::new(Some(session)),
    };
    Ok(LoadedModel {
        name: stem(&options.model),
        sha256,
        provider: "cpu",
        precision: precision.as_str(),
        batch_max: info.batch_fixed().unwrap_or(limits::BATCH_MAX).min(limits::BATCH_MAX),
        sessions: Arc::new(opener),
        info,
    })
}

/// The file's name without its extension: what answers and metrics call the model.
pub fn stem(model: &Path) -> String {
    model.file_stem().map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned())
}

fn digest(model: &Path, file: &str) -> Result<String, LoadError> {
    let missing = |error: std::io::Error| LoadError::Missing { file: file.to_owned(), detail: error.to_string() };
    let mut reader = File::open(model).map_err(missing)?;
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    let mut bytes = 0;
    loop {
        let read = reader.read(&mut buffer).map_err(missing)?;
        let Some(chunk) = buffer.get(..read).filter(|chunk| !chunk.is_empty()) else { break };
        sha256.update(chunk);
        bytes += read;
    }
    if bytes == 0 {
        return Err(LoadError::Truncated { file: file.to_owned(), detail: "the file is empty".to_owned() });
    }
    Ok(sha256.hex())
}

fn refused(error: &ort::Error, file: String) -> LoadError {
    let detail = error.message().to_owned();
    match error.code() {
        // The parser gave up: the file ends early or is something else.
        ort::ErrorCode::InvalidProtobuf => LoadError::Truncated { file, detail },
        _ => LoadError::Unsupported { file, detail },
    }
}

/// ONNX Runtime allows one environment a process; it is never torn down.
fn environment() -> Result<&'static Environment, String> {
    static ENVIRONMENT: OnceLock<Result<Environment, String>> = OnceLock::new();
    let started = ENVIRONMENT.get_or_init(|| {
        let library = std::env::var("ORT_DYLIB_PATH").unwrap_or_else(|_| LIBRARY.to_owned());
        let builder = ort::init_from(&library).map_err(|error| format!("{library} (ORT_DYLIB_PATH): {error}"))?;
        builder.with_name("yolo-server").build().map_err(|error| error.to_string())
    });
    started.as_ref().map_err(Clone::clone)
}

fn describe(session: &Session) -> Result<ModelInfo, String> {
    let shapes = |outlets: &[Outlet]| outlets.iter().map(tensor_shape).collect::<Result<Vec<_>, _>>();
    let metadata = session.metadata().map_err(|error| error.to_string())?;
    let keys = metadata.custom_keys().map_err(|error| error.to_string())?;
    let metadata: BTreeMap<_, _> =
        keys.into_iter().filter_map(|key| metadata.custom(&key).map(|value| (key, value))).collect();
    ModelInfo::parse(&metadata, &shapes(session.inputs())?, &shapes(session.outputs())?)
        .map_err(|error| error.to_string())
}

fn tensor_shape(outlet: &Outlet) -> Result<TensorShape, String> {
    match outlet.dtype() {
        ValueType::Tensor { ty: TensorElementType::Float32 | TensorElementType::Float16, shape, .. } => {
            Ok(TensorShape::new(outlet.name(), shape))
        }
        other => Err(format!("{} is {other}; export the model in 32-bit or 16-bit floats", outlet.name())),
    }
}

fn is_half(outlet: &Outlet) -> bool {
    matches!(outlet.dtype(), ValueType::Tensor { ty: TensorElementType::Float16, .. })
}

/// Numbers of the model's input.
#[derive(Debug, Clone, Copy)]
enum Precision {
    Single,
    Half,
}

impl Precision {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Single => "fp32",
            Self::Half => "fp16",
        }
    }
}

struct OrtSessions {
    model: PathBuf,
    threads: usize,
    weights: PrepackedWeights,
    environment: &'static Environment,
}

impl OrtSessions {
    fn session(&self) -> ort::Result<Session> {
        Session::builder(self.environment)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_intra_threads(self.threads)?
            .with_inter_threads(1)?
            .with_intra_op_spinning(false)?
            .with_inter_op_spinning(false)?
            // Its plan of a run is one block, for which the arena grows by a power of two: a fifth of a session's memory
            // for no time saved.
            .with_memory_pattern(false)?
            .with_prepacked_weights(&self.weights)?
            .commit_from_file(&self.model)
    }
}

struct Opener {
    sessions: OrtSessions,
    /// The session that told what the model is, until a worker takes it.
    described: Mutex<Option<Session>>,
    output_names: Arc<[String]>,
    batch_fixed: Option<usize>,
    size: Size,
    precision: Precision,
}

impl Sessions for Opener {
    fn open(&self) -> Result<Box<dyn Engine>, EngineError> {
        let mut release = RunOptions::new()?;
        // Arenas never shrink by themselves: one rare batch of 8 would hold 400 MB for ever.
        release.set("memory.enable_memory_arena_shrinkage", "cpu:0")?;
        let described = self.described.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(Box::new(OrtEngine {
            session: described.map_or_else(|| self.sessions.session(), Ok)?,
            keep: RunOptions::new()?,
            release,
            batch_fixed: self.batch_fixed,
            size: self.size,
            output_names: Arc::clone(&self.output_names),
            precision: self.precision,
            tensor: Vec::new(),
            tensor_half: Vec::new(),
        }))
    }
}

struct OrtEngine {
    session: Session,
    keep: RunOptions<NoSelectedOutputs>,
    release: RunOptions<NoSelectedOutputs>,
    batch_fixed: Option<usize>,
    size: Size,
    output_names: Arc<[String]>,
    precision: Precision,
    tensor: Vec<f32>,
    /// The same in 16 bits; empty unless the model takes them.
    tensor_half: Vec<f16>,
}

impl OrtEngine {
    /// Writes the pictures into the tensor; a model with a fixed batch gets black ones behind them. Returns the batch.
    fn fill(&mut self, inputs: &[&EngineInput]) -> Result<usize, EngineError> {
        let image_len = usize::try_from(3 * self.size.pixels()).unwrap_or(usize::MAX);
        let batch = self.batch_fixed.unwrap_or(inputs.len()).max(inputs.len());
        self.tensor.clear();
        self.tensor.resize(batch * image_len, 0.0);
        for (input, tensor) in inputs.iter().zip(self.tensor.chunks_exact_mut(image_len)) {
            if input.pixels.len() != image_len {
                return Err(EngineError(format!("a picture of {} bytes, expected {image_len}", input.pixels.len())));
            }
            yolo_vision::normalise(&input.pixels, tensor);
        }
        if matches!(self.precision, Precision::Half) {
            // Rounding the f32 quotient equals dividing in f16: both operands are exact in f16.
            self.tensor_half.resize(self.tensor.len(), f16::ZERO);
            self.tensor_half.convert_from_f32_slice(&self.tensor);
        }
        Ok(batch)
    }
}

impl Engine for OrtEngine {
    fn run(&mut self, inputs: &[&EngineInput], memory: Memory) -> Result<Box<dyn BatchOutput + '_>, EngineError> {
        let batch = self.fill(inputs)?;
        let [height, width] = [self.size.height_px, self.size.width_px].map(i64::from);
        let shape = [i64::try_from(batch).unwrap_or(i64::MAX), 3, height, width];
        let tensor: SessionInputValue<'_> = match self.precision {
            Precision::Single => TensorRef::from_array_view((shape, self.tensor.as_slice()))?.into(),
            Precision::Half => TensorRef::from_array_view((shape, self.tensor_half.as_slice()))?.into(),
        };
        let options = if memory == Memory::Keep { &self.keep } else { &self.release };
        let outputs = self.session.run_with_options([tensor], options)?;
        if memory == Memory::Release {
            (self.tensor, self.tensor_half) = (Vec::new(), Vec::new());
        }
        let tensors = self.output_names.iter().map(|name| OutputTensor::of(&outputs, name)).collect::<Option<Vec<_>>>();
        let tensors = tensors.ok_or_else(|| EngineError("the model gave an output of another type".to_owned()))?;
        Ok(Box::new(OrtOutput { outputs, names: &self.output_names, tensors }))
    }
}

struct OrtOutput<'a> {
    outputs: SessionOutputs<'a>,
    names: &'a [String],
    /// One a name.
    tensors: Vec<OutputTensor>,
}

/// What is known of an output before its values are looked at.
struct OutputTensor {
    /// Without the batch.
    image_shape: Vec<usize>,
    /// Its values, if the model gives them in 16 bits.
    widened: Option<Vec<f32>>,
}

impl OutputTensor {
    fn of(outputs: &SessionOutputs<'_>, name: &str) -> Option<Self> {
        let value = outputs.get(name)?;
        let (shape, widened) = if let Ok((shape, _)) = value.try_extract_tensor::<f32>() {
            (shape, None)
        } else {
            let (shape, values) = value.try_extract_tensor::<f16>().ok()?;
            (shape, Some(values.to_f32_vec()))
        };
        let image_shape = shape.iter().skip(1).map(|&dim| usize::try_from(dim).ok()).collect::<Option<_>>()?;
        Some(Self { image_shape, widened })
    }
}

impl BatchOutput for OrtOutput<'_> {
    fn image(&self, index: usize) -> Option<Vec<OutputView<'_>>> {
        let mut views = Vec::with_capacity(self.tensors.len());
        for (name, tensor) in self.names.iter().zip(&self.tensors) {
            let values = match &tensor.widened {
                Some(values) => values,
                None => self.outputs.get(name)?.try_extract_tensor::<f32>().ok()?.1,
            };
            let len = tensor.image_shape.iter().try_fold(1_usize, |len, &dim| len.checked_mul(dim))?;
            let values = values.get(index.checked_mul(len)?..(index + 1).checked_mul(len)?)?;
            views.push(OutputView { shape: &tensor.image_shape, values });
        }
        Some(views)
    }
}

impl<R> From<ort::Error<R>> for EngineError {
    fn from(error: ort::Error<R>) -> Self {
        Self(error.message().to_owned())
    }
}
