//! ONNX Runtime's CPU provider: one session runs every batch size.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use half::f16;
use half::slice::HalfFloatSliceExt;
use ort::environment::Environment;
use ort::session::builder::{PrepackedWeights, SessionBuilder};
use ort::session::{NoSelectedOutputs, RunOptions, Session, SessionInputValue, SessionOutputs};
use ort::value::TensorRef;
use rustix::fs::{MemfdFlags, memfd_create};
use yolo_vision::{OutputView, Size};

use super::Element;
use super::model_file::ModelFile;
use super::outputs::Output;
use crate::engine::{BatchOutput, Engine, EngineError, EngineInput, Memory, Sessions};

/// Opens sessions that share their prepacked weights.
pub(super) struct CpuSessions {
    pub(super) model: ModelFile,
    pub(super) threads: usize,
    pub(super) weights: PrepackedWeights,
    pub(super) environment: &'static Environment,
}

/// A model as ONNX Runtime optimised it for this processor, in its own format.
pub(super) type Optimised = Arc<Vec<u8>>;

impl CpuSessions {
    fn builder(&self) -> ort::Result<SessionBuilder> {
        Ok(super::builder(self.environment, self.threads)?
            // Its plan of a run is one block, for which the arena grows by a power of two: a fifth of a session's memory
            // for no time saved.
            .with_memory_pattern(false)?
            .with_prepacked_weights(&self.weights)?)
    }

    /// Opens a session of the file.
    pub(super) fn session(&self) -> ort::Result<Session> {
        self.model.open(self.builder()?)
    }

    /// Has ONNX Runtime optimise the file, and opens a session of what it made of it. More sessions of that share its
    /// weights, and optimise nothing again. For a moment this takes four times the memory of the weights.
    ///
    /// # Errors
    /// As [`Self::session`]; the format cannot hold the model (2 GiB); no place for it.
    pub(super) fn optimise(&self) -> Result<(Session, Optimised), EngineError> {
        let unwritten = |error: std::io::Error| EngineError(error.to_string());
        // ONNX Runtime writes to a path alone, and a root file system may be read only.
        let mut file =
            File::from(memfd_create("optimised", MemfdFlags::CLOEXEC).map_err(|error| unwritten(error.into()))?);
        let builder = self
            .builder()?
            .with_optimized_model_path(format!("/proc/self/fd/{}", file.as_raw_fd()))?
            .with_config_entry("session.save_model_format", "ORT")?;
        drop(self.model.open(builder)?);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(unwritten)?;
        let bytes = Arc::new(bytes);
        Ok((self.session_of(&bytes)?, bytes))
    }

    /// Opens a session whose weights lie in `model`, which must outlive it.
    fn session_of(&self, model: &Optimised) -> ort::Result<Session> {
        // What `commit_from_memory_directly` does, which lends the bytes instead: engines own both.
        self.builder()?
            .with_config_entry("session.use_ort_model_bytes_directly", "1")?
            .with_config_entry("session.use_ort_model_bytes_for_initializers", "1")?
            .commit_from_memory(model)
    }
}

/// [`CpuSessions`] with what their engines must know of the model.
pub(super) struct Opener {
    pub(super) sessions: CpuSessions,
    /// What sessions are opened of; `None`: of the file.
    pub(super) optimised: Option<Optimised>,
    /// The session that told what the model is, until a worker takes it.
    pub(super) described: Mutex<Option<Session>>,
    pub(super) output_names: Arc<[String]>,
    pub(super) batch_fixed: Option<usize>,
    pub(super) element: Element,
}

impl Opener {
    fn session(&self) -> Result<Session, EngineError> {
        let described = self.described.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(model) = &self.optimised else {
            let session = described.map_or_else(|| self.sessions.session(), Ok)?;
            self.sessions.model.check()?;
            return Ok(session);
        };
        Ok(described.map_or_else(|| self.sessions.session_of(model), Ok)?)
    }
}

impl Sessions for Opener {
    fn open(&self) -> Result<Box<dyn Engine>, EngineError> {
        let mut release = RunOptions::new()?;
        // Arenas never shrink by themselves: one rare batch of 8 would hold 400 MB for ever.
        release.set("memory.enable_memory_arena_shrinkage", "cpu:0")?;
        Ok(Box::new(CpuEngine {
            session: self.session()?,
            _weights: self.optimised.clone(),
            keep: RunOptions::new()?,
            release,
            batch_fixed: self.batch_fixed,
            output_names: Arc::clone(&self.output_names),
            element: self.element,
            tensor: Vec::new(),
            tensor_half: Vec::new(),
        }))
    }
}

struct CpuEngine {
    session: Session,
    /// Where the session's lie: a field behind it, because fields are dropped in their order.
    _weights: Option<Optimised>,
    keep: RunOptions<NoSelectedOutputs>,
    release: RunOptions<NoSelectedOutputs>,
    batch_fixed: Option<usize>,
    output_names: Arc<[String]>,
    element: Element,
    tensor: Vec<f32>,
    /// The same in 16 bits; empty unless the model takes them.
    tensor_half: Vec<f16>,
}

impl CpuEngine {
    /// Writes the pictures, of `size`, into the tensor; a model with a fixed batch gets black ones behind them. Returns the
    /// batch.
    fn fill(&mut self, inputs: &[&EngineInput], size: Size) -> Result<usize, EngineError> {
        let image_len = super::image_len(size);
        let batch = self.batch_fixed.unwrap_or(inputs.len()).max(inputs.len());
        self.tensor.clear();
        self.tensor.resize(batch * image_len, 0.0);
        for (input, tensor) in inputs.iter().zip(self.tensor.chunks_exact_mut(image_len)) {
            super::write(input, tensor)?;
        }
        if self.element == Element::Half {
            // Rounding the f32 quotient equals dividing in f16: both operands are exact in f16.
            self.tensor_half.resize(self.tensor.len(), f16::ZERO);
            self.tensor_half.convert_from_f32_slice(&self.tensor);
        }
        Ok(batch)
    }
}

impl Engine for CpuEngine {
    fn run(&mut self, inputs: &[&EngineInput], memory: Memory) -> Result<Box<dyn BatchOutput + '_>, EngineError> {
        let size = super::size_of(inputs)?;
        let batch = self.fill(inputs, size)?;
        let shape = super::input_shape(batch, size);
        let tensor: SessionInputValue<'_> = match self.element {
            Element::Single => TensorRef::from_array_view((shape, self.tensor.as_slice()))?.into(),
            Element::Half => TensorRef::from_array_view((shape, self.tensor_half.as_slice()))?.into(),
        };
        let options = if memory == Memory::Keep { &self.keep } else { &self.release };
        let outputs = self.session.run_with_options([tensor], options)?;
        if memory == Memory::Release {
            (self.tensor, self.tensor_half) = (Vec::new(), Vec::new());
        }
        let known = |name: &String| Output::of(outputs.get(name)?);
        let tensors = self.output_names.iter().map(known).collect::<Option<Vec<_>>>();
        let tensors = tensors.ok_or_else(super::another_type)?;
        Ok(Box::new(CpuOutput { outputs, names: &self.output_names, tensors }))
    }
}

struct CpuOutput<'a> {
    outputs: SessionOutputs<'a>,
    names: &'a [String],
    /// One a name.
    tensors: Vec<Output>,
}

impl BatchOutput for CpuOutput<'_> {
    fn image(&self, index: usize) -> Option<Vec<OutputView<'_>>> {
        let outputs = self.names.iter().zip(&self.tensors);
        outputs.map(|(name, tensor)| tensor.image(self.outputs.get(name)?, index)).collect()
    }
}
