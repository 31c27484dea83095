//! ONNX Runtime, loaded at run time from `ORT_DYLIB_PATH`.
//!
//! One session a worker thread, one thread a session, no spinning: 1.16 times the throughput of ONNX Runtime's default
//! on an idle machine and 1.94 times beside one busy competitor, which our own decoding is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use ort::environment::Environment;
use ort::session::builder::{GraphOptimizationLevel, PrepackedWeights};
use ort::session::{NoSelectedOutputs, RunOptions, Session, SessionInputValue, SessionOutputs};
use ort::value::{Outlet, TensorElementType, TensorRef, ValueType};
use ring::digest::{Context, SHA256};
use yolo_vision::{ModelInfo, OutputView, Size, TensorShape};

use super::{BatchOutput, Engine, EngineError, EngineInput, LoadError, LoadedModel, Memory, Sessions};
use crate::limits;

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
    let output_name = info.output_name().to_owned();
    let opener = Opener { batch_fixed: info.batch_fixed(), size: info.size(), output_name, sessions: opener };
    Ok(LoadedModel {
        name: stem(&options.model),
        sha256,
        provider: "cpu",
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
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 64 << 10];
    let mut bytes = 0;
    loop {
        let read = reader.read(&mut buffer).map_err(missing)?;
        let Some(chunk) = buffer.get(..read).filter(|chunk| !chunk.is_empty()) else { break };
        context.update(chunk);
        bytes += read;
    }
    if bytes == 0 {
        return Err(LoadError::Truncated { file: file.to_owned(), detail: "the file is empty".to_owned() });
    }
    Ok(context.finish().as_ref().iter().fold(String::new(), |digits, byte| format!("{digits}{byte:02x}")))
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
        ValueType::Tensor { ty: TensorElementType::Float32, shape, .. } => Ok(TensorShape::new(outlet.name(), shape)),
        other => Err(format!("{} is {other}; export the model in 32-bit floats", outlet.name())),
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
            .with_prepacked_weights(&self.weights)?
            .commit_from_file(&self.model)
    }
}

struct Opener {
    sessions: OrtSessions,
    output_name: String,
    batch_fixed: Option<usize>,
    size: Size,
}

impl Sessions for Opener {
    fn open(&self) -> Result<Box<dyn Engine>, EngineError> {
        let mut release = RunOptions::new()?;
        // Arenas never shrink by themselves: one rare batch of 8 would hold 400 MB for ever.
        release.set("memory.enable_memory_arena_shrinkage", "cpu:0")?;
        Ok(Box::new(OrtEngine {
            session: self.sessions.session()?,
            keep: RunOptions::new()?,
            release,
            batch_fixed: self.batch_fixed,
            size: self.size,
            output_name: self.output_name.clone(),
            tensor: Vec::new(),
        }))
    }
}

struct OrtEngine {
    session: Session,
    keep: RunOptions<NoSelectedOutputs>,
    release: RunOptions<NoSelectedOutputs>,
    batch_fixed: Option<usize>,
    size: Size,
    output_name: String,
    tensor: Vec<f32>,
}

impl Engine for OrtEngine {
    fn run(&mut self, inputs: &[&EngineInput], memory: Memory) -> Result<Box<dyn BatchOutput + '_>, EngineError> {
        let [height, width] = [self.size.height_px, self.size.width_px].map(i64::from);
        let image_len = usize::try_from(3 * self.size.pixels()).unwrap_or(usize::MAX);
        // A model with a fixed batch gets black pictures behind the real ones.
        let batch = self.batch_fixed.unwrap_or(inputs.len()).max(inputs.len());
        self.tensor.clear();
        self.tensor.resize(batch * image_len, 0.0);
        for (input, tensor) in inputs.iter().zip(self.tensor.chunks_exact_mut(image_len)) {
            if input.pixels.len() != image_len {
                return Err(EngineError(format!("a picture of {} bytes, expected {image_len}", input.pixels.len())));
            }
            yolo_vision::normalise(&input.pixels, tensor);
        }
        let shape = [i64::try_from(batch).unwrap_or(i64::MAX), 3, height, width];
        let tensor = TensorRef::from_array_view((shape, self.tensor.as_slice()))?;
        let options = if memory == Memory::Keep { &self.keep } else { &self.release };
        let outputs = self.session.run_with_options([SessionInputValue::from(tensor)], options)?;
        if memory == Memory::Release {
            self.tensor = Vec::new();
        }
        Ok(Box::new(OrtOutput { outputs, name: &self.output_name }))
    }
}

struct OrtOutput<'a> {
    outputs: SessionOutputs<'a>,
    name: &'a str,
}

impl BatchOutput for OrtOutput<'_> {
    fn image(&self, index: usize) -> Option<OutputView<'_>> {
        let (shape, values) = self.outputs.get(self.name)?.try_extract_tensor::<f32>().ok()?;
        let &[_, rows, columns] = &**shape else { return None };
        let (rows, columns) = (usize::try_from(rows).ok()?, usize::try_from(columns).ok()?);
        let len = rows.checked_mul(columns)?;
        let values = values.get(index.checked_mul(len)?..(index + 1).checked_mul(len)?)?;
        Some(OutputView { shape: [rows, columns], values })
    }
}

impl<R> From<ort::Error<R>> for EngineError {
    fn from(error: ort::Error<R>) -> Self {
        Self(error.message().to_owned())
    }
}
