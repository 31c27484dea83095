//! ONNX Runtime, loaded at run time from `ORT_DYLIB_PATH`.
//!
//! On the CPU one session a worker thread, one thread a session, no spinning: 1.16 times the throughput of ONNX Runtime's
//! default on an idle machine and 1.94 times beside one busy competitor, which our own decoding is. On GPUs a session a
//! worker and batch size (`fixed`), and never a silent fall-back to the CPU (`device`, `placement`).

mod cpu;
mod cuda;
mod device;
mod fixed;
#[cfg(any(test, feature = "cuda-preprocess"))]
mod letterbox;
mod log;
mod model_file;
mod outputs;
mod placement;
mod signature;
mod tensorrt;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, OnceLock};

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, PrepackedWeights, SessionBuilder};
use ort::value::{Outlet, TensorElementType, ValueType};
use yolo_vision::{LetterboxError, ModelInfo, Size, TensorShape};

use super::{EngineError, EngineInput, LoadError, LoadedModel, Sessions};
use crate::args::Precision;
use crate::limits;
pub use device::{Device, Gpu, GpuProvider, choose};
#[cfg(feature = "cuda-preprocess")]
pub use letterbox::DeviceLetterbox;
use model_file::ModelFile;
pub use model_file::digest;
pub use placement::Placement;

/// Where the library is looked for if `ORT_DYLIB_PATH` is not set.
const LIBRARY: &str = "libonnxruntime.so";
/// Digits of the model's digest that name its engines.
const KEY_DIGITS: usize = 16;

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct Options {
    /// The ONNX file.
    pub model: PathBuf,
    /// Its expected SHA-256, in hexadecimal digits of either case.
    pub sha256: Option<String>,
    /// Sides of the square input, in pixels, the default first, for models whose input is dynamic; empty: the model's own.
    pub sides_px: Vec<u32>,
    /// Sessions that will be opened; several on the CPU share one copy of the weights.
    pub sessions: usize,
    /// Threads of each session on the CPU.
    pub threads: usize,
    /// What runs it.
    pub device: Device,
    /// Arithmetic asked for.
    pub precision: Precision,
    /// Largest batch that a device with fixed sizes is prepared for.
    pub batch_max: usize,
}

impl Options {
    /// One session on one core, as the file says.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            sha256: None,
            sides_px: Vec::new(),
            sessions: 1,
            threads: 1,
            device: Device::Cpu,
            precision: Precision::Auto,
            batch_max: limits::BATCH_MAX,
        }
    }
}

/// A model that is read, but not yet opened on its device.
struct Described {
    file: String,
    sha256: String,
    info: ModelInfo,
    sizes: Arc<[Size]>,
    element: Element,
    precision: &'static str,
    /// The session that told all this.
    session: Session,
    /// What sessions share.
    optimised: Option<cpu::Optimised>,
    sessions: cpu::CpuSessions,
}

/// Checks the file, loads it once and reads what it says about itself. On a GPU it also proves that the GPU runs it.
///
/// # Errors
/// [`LoadError`]: the file is missing, torn, another one, or of a kind that this server cannot run; the engine or the GPU
/// that was asked for cannot be used.
pub fn load(options: &Options) -> Result<LoadedModel, LoadError> {
    let described = describe(options)?;
    let (sha256, info, sizes) = (described.sha256.clone(), described.info.clone(), Arc::clone(&described.sizes));
    let (precision, single_batch) = (described.precision, info.batch_fixed());
    let batch_max = single_batch.unwrap_or(limits::BATCH_MAX).min(limits::BATCH_MAX);
    let provider = options.device.gpu().map_or("cpu", |gpu| gpu.provider.as_str());
    let (sessions, batch_max): (Arc<dyn Sessions>, _) = match &options.device {
        Device::Cpu => (Arc::new(opener(described)), batch_max),
        Device::CpuBound | Device::Gpu(_) => {
            let opener = fixed(described, options)?;
            let batch_max = opener.first.batches.last().copied().unwrap_or(1);
            if let Some(gpu) = &opener.first.gpu {
                let placement = opener.first.profile().map_err(|error| LoadError::Engine(error.0))?;
                placement.require(gpu.provider.ort_name()).map_err(LoadError::Engine)?;
            }
            (Arc::new(opener), batch_max)
        }
    };
    Ok(LoadedModel {
        name: stem(&options.model),
        sha256,
        provider,
        precision,
        batch_max,
        // A model with one batch size is padded to it whatever the device.
        batches_fixed: !matches!(options.device, Device::Cpu) && single_batch.is_none(),
        letterboxes: cfg!(feature = "cuda-preprocess") && options.device.gpu().is_some(),
        sessions,
        info,
        sizes,
    })
}

/// Runs a black picture and tells which provider ran which nodes.
///
/// # Errors
/// As [`load`].
pub fn placement(options: &Options) -> Result<Placement, LoadError> {
    fixed(describe(options)?, options)?.first.profile().map_err(|error| LoadError::Engine(error.0))
}

fn describe(options: &Options) -> Result<Described, LoadError> {
    let file = options.model.display().to_string();
    if let Some(gpu) = options.device.gpu() {
        gpu.provider.check(&library()).map_err(LoadError::Engine)?;
        #[cfg(feature = "cuda-preprocess")]
        letterbox::check(letterbox::COMPILER).map_err(LoadError::Engine)?;
    }
    let model = ModelFile::read(&options.model)?;
    let sha256 = model.sha256.clone();
    if let Some(expected) = options.sha256.as_ref().filter(|expected| !expected.eq_ignore_ascii_case(&sha256)) {
        return Err(LoadError::DigestMismatch { file, expected: expected.clone(), found: sha256 });
    }
    let sessions = cpu::CpuSessions {
        model,
        threads: options.threads.max(1),
        // First: whatever touches ONNX Runtime before the environment is there panics if the library is missing.
        environment: environment().map_err(LoadError::Engine)?,
        weights: PrepackedWeights::new(),
    };
    let of_file = || sessions.session().map_err(|error| refused(&error, file.clone()));
    let shared = (matches!(options.device, Device::Cpu) && options.sessions > 1).then(|| sessions.optimise());
    let (session, optimised) = match shared {
        Some(Ok((session, optimised))) => (session, Some(optimised)),
        Some(Err(error)) => {
            let session = of_file()?;
            tracing::warn!(%error, "The optimised model could not be kept: each session makes and holds its own.");
            (session, None)
        }
        None => (of_file()?, None),
    };
    let unsupported = |detail: String| LoadError::Unsupported { file: file.clone(), detail };
    sessions.model.check().map_err(|error| unsupported(error.0))?;
    let info = model_info(&session).map_err(unsupported)?;
    let (info, sizes) = super::sized(info, &options.sides_px).map_err(|error| unsupported(error.to_string()))?;
    let element = if session.inputs().iter().any(is_half) { Element::Half } else { Element::Single };
    let precision = precision(options, element).map_err(unsupported)?;
    Ok(Described { file, sha256, info, sizes, element, precision, session, optimised, sessions })
}

fn opener(described: Described) -> cpu::Opener {
    let Described { info, element, session, optimised, sessions, .. } = described;
    cpu::Opener {
        sessions,
        optimised,
        described: Mutex::new(Some(session)),
        output_names: info.output_names().into(),
        batch_fixed: info.batch_fixed(),
        element,
    }
}

fn fixed(mut described: Described, options: &Options) -> Result<fixed::Opener, LoadError> {
    let (default, sizes) = (described.info.size(), Arc::clone(&described.sizes));
    let mut of_size = |size: Size| fixed_size(&mut described, options, size).map(Arc::new);
    let first = of_size(default)?;
    let others = sizes.iter().filter(|size| **size != default).map(|size| of_size(*size)).collect::<Result<_, _>>()?;
    Ok(fixed::Opener { first, others, opened: AtomicU32::new(0) })
}

fn fixed_size(described: &mut Described, options: &Options, size: Size) -> Result<fixed::FixedSessions, LoadError> {
    let Described { file, sha256, info, element, precision, session, sessions, .. } = described;
    let signature = signature::Signature::learn(session, info, (size, *element))
        .map_err(|error| LoadError::Unsupported { file: file.clone(), detail: error.0 })?;
    let batches = match info.batch_fixed() {
        Some(batch) => vec![batch],
        None => limits::BATCH_SIZES.into_iter().filter(|size| *size <= options.batch_max.max(1)).collect(),
    };
    let gpu = options.device.gpu().cloned();
    let Size { height_px, width_px, .. } = size;
    let digits = sha256.get(..KEY_DIGITS).unwrap_or(sha256);
    Ok(fixed::FixedSessions {
        model: sessions.model.clone(),
        environment: sessions.environment,
        signature,
        batches,
        cache: gpu.as_ref().map_or_else(std::env::temp_dir, |gpu| gpu.cache.clone()),
        key: format!("{digits}-{height_px}x{width_px}-{precision}"),
        graphs: AtomicBool::new(gpu.as_ref().is_some_and(|gpu| gpu.graphs)),
        gpu,
    })
}

/// What the arithmetic will be, or why it cannot be what was asked for.
fn precision(options: &Options, element: Element) -> Result<&'static str, String> {
    let rounds = options.device.gpu().is_some_and(|gpu| gpu.provider == GpuProvider::TensorRt);
    match (options.precision, element) {
        (Precision::Fp32, Element::Half) => {
            Err("its numbers have 16 bits: export it in 32, or leave --precision at auto".to_owned())
        }
        (Precision::Fp16, Element::Single) if !rounds => {
            Err("its numbers have 32 bits, which only TensorRT rounds to \
            16: export it in 16 bits (half=True), or ask for --provider tensorrt"
                .to_owned())
        }
        (Precision::Auto, Element::Single) if !rounds => Ok("fp32"),
        (Precision::Fp32, Element::Single) => Ok("fp32"),
        (Precision::Auto | Precision::Fp16, _) => Ok("fp16"),
    }
}

/// A session's builder with what holds on every device.
fn builder(environment: &Environment, threads: usize) -> ort::Result<SessionBuilder> {
    Ok(Session::builder(environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(threads)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?)
}

/// Values of one picture of `size`.
fn image_len(size: Size) -> usize {
    usize::try_from(3 * size.pixels()).unwrap_or(usize::MAX)
}

/// `[batch, 3, height, width]`
fn input_shape(batch: usize, size: Size) -> [i64; 4] {
    let [height, width] = [size.height_px, size.width_px].map(i64::from);
    [i64::try_from(batch).unwrap_or(i64::MAX), 3, height, width]
}

/// Writes a picture's numbers over `tensor`.
fn write(input: &EngineInput, tensor: &mut [f32]) -> Result<(), EngineError> {
    if input.pixels.len() != tensor.len() {
        return Err(another_len(input.pixels.len(), tensor.len()));
    }
    Ok(input.pixels.write(tensor)?)
}

fn another_len(found: usize, expected: usize) -> EngineError {
    EngineError(format!("a picture of {found} values, expected {expected}"))
}

/// The size that a batch's pictures share.
fn size_of(inputs: &[&EngineInput]) -> Result<Size, EngineError> {
    inputs.first().map(|input| input.size).ok_or_else(|| EngineError("a batch without a picture".to_owned()))
}

fn another_type() -> EngineError {
    EngineError("the model gave an output of another type".to_owned())
}

/// The file's name without its extension: what answers and metrics call the model.
pub fn stem(model: &Path) -> String {
    model.file_stem().map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned())
}

fn refused(error: &ort::Error, file: String) -> LoadError {
    let detail = error.message().to_owned();
    match error.code() {
        // The parser gave up: the file ends early or is something else.
        ort::ErrorCode::InvalidProtobuf => LoadError::Truncated { file, detail },
        _ => LoadError::Unsupported { file, detail },
    }
}

/// The library of ONNX Runtime.
pub fn library() -> PathBuf {
    std::env::var_os("ORT_DYLIB_PATH").map_or_else(|| LIBRARY.into(), PathBuf::from)
}

/// ONNX Runtime allows one environment a process; it is never torn down.
fn environment() -> Result<&'static Environment, String> {
    static ENVIRONMENT: OnceLock<Result<Environment, String>> = OnceLock::new();
    let started = ENVIRONMENT.get_or_init(|| {
        let library = library();
        let builder = ort::init_from(&library)
            .map_err(|error| format!("{} (ORT_DYLIB_PATH): {error}", library.display()))?
            .with_name("yolo-server")
            // For processes that were started without ORT_DISABLE_TELEMETRY, which the program itself sets.
            .with_telemetry(false)
            .with_logger(Arc::new(log::forward));
        let environment = builder.build().map_err(|error| error.to_string())?;
        // A custom logger gets everything unless told otherwise, and every line costs.
        environment.set_log_level(LogLevel::Warning);
        Ok(environment)
    });
    started.as_ref().map_err(Clone::clone)
}

fn model_info(session: &Session) -> Result<ModelInfo, String> {
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    Single,
    Half,
}

impl Element {
    const fn kind(self) -> TensorElementType {
        match self {
            Self::Single => TensorElementType::Float32,
            Self::Half => TensorElementType::Float16,
        }
    }
}

impl From<LetterboxError> for EngineError {
    fn from(error: LetterboxError) -> Self {
        Self(error.to_string())
    }
}

impl<R> From<ort::Error<R>> for EngineError {
    fn from(error: ort::Error<R>) -> Self {
        Self(error.message().to_owned())
    }
}
