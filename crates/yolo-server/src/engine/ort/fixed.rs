//! A session for each batch size, with buffers bound once: how models run on GPUs.
//!
//! ```text
//!   pixels -> host input (pinned) -> device input -> session of the size -> device outputs -> host outputs (pinned)
//! ```
//! With the feature `cuda-preprocess` a kernel writes the device's input (`letterbox`).
//!
//! A GPU pays for every new shape: cuDNN searches for the fastest convolution, `TensorRT` builds an engine, and recorded
//! launches hold for one shape and one set of addresses. So only a few sizes are run; a batch between two of them gets
//! black pictures behind its own.

#![cfg_attr(
    feature = "cuda-preprocess",
    expect(unsafe_code, reason = "the kernel is told an address; the place says why it holds")
)]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use half::f16;
use half::slice::HalfFloatSliceExt;
use ort::environment::Environment;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session};
use ort::value::DynTensor;
use yolo_vision::OutputView;

use super::device::{Gpu, Place};
#[cfg(feature = "cuda-preprocess")]
use super::letterbox::{DeviceLetterbox, Target};
use super::model_file::ModelFile;
use super::outputs::Output;
use super::placement::Placement;
use super::signature::Signature;
use super::{Element, log};
use crate::engine::{BatchOutput, Engine, EngineError, EngineInput, Memory, Sessions};

/// Number of the next profile of this process, so that two never share a file.
static PROFILES: AtomicU32 = AtomicU32::new(0);

/// Opens sessions of a model whose batch sizes are fixed, at one input size.
pub(super) struct FixedSessions {
    pub(super) model: ModelFile,
    pub(super) environment: &'static Environment,
    pub(super) gpu: Option<Gpu>,
    pub(super) signature: Signature,
    /// The sizes that are run, ascending.
    pub(super) batches: Vec<usize>,
    /// Folder for built engines and the start-up profile.
    pub(super) cache: PathBuf,
    /// Tells this model's engines from others' in that folder.
    pub(super) key: String,
    /// Cleared when a model turns out not to suit recorded launches.
    pub(super) graphs: AtomicBool,
}

/// Opens engines, which keep the openers of their sessions, because they open them as sizes come.
pub(super) struct Opener {
    /// At the model's default size.
    pub(super) first: Arc<FixedSessions>,
    /// At the other sizes served.
    pub(super) others: Vec<Arc<FixedSessions>>,
    /// Engines opened: they take turns on the devices.
    pub(super) opened: AtomicU32,
}

impl Sessions for Opener {
    fn open(&self) -> Result<Box<dyn Engine>, EngineError> {
        let devices = self.first.gpu.as_ref().map_or(1, |gpu| gpu.devices.max(1));
        let device = self.opened.fetch_add(1, Ordering::Relaxed) % devices;
        let device = i32::try_from(device).unwrap_or_default();
        let sizes = std::iter::once(&self.first).chain(&self.others);
        Ok(Box::new(FixedEngine {
            device,
            #[cfg(feature = "cuda-preprocess")]
            letterbox: self.first.gpu.as_ref().map(|_| DeviceLetterbox::open(device)).transpose()?,
            sizes: sizes.map(|size| (Arc::clone(size), BTreeMap::new())).collect(),
        }))
    }
}

impl FixedSessions {
    /// Runs the smallest size once under ONNX Runtime's profiler.
    pub(super) fn profile(&self) -> Result<Placement, EngineError> {
        let batch = *self.batches.first().ok_or_else(too_large)?;
        let number = PROFILES.fetch_add(1, Ordering::Relaxed);
        fs::create_dir_all(&self.cache).map_err(|error| self.unwritable(&error))?;
        let prefix = self.cache.join(format!("profile-{}-{number}", std::process::id()));
        // Recorded launches would not show in it.
        let mut bound = self.bind(batch, 0, Run { graphs: false, profile: Some(&prefix) })?;
        bound.execute()?;
        let file = PathBuf::from(bound.session.end_profiling()?);
        let profile = fs::read_to_string(&file).map_err(|error| EngineError(error.to_string()))?;
        // It tells its story once; left behind it would only be litter.
        let _ = fs::remove_file(&file);
        Placement::read(&profile).map_err(|error| EngineError(format!("the profile of a run: {error}")))
    }

    /// Opens the session of a size and runs it once, with recorded launches if they are wanted and the model suits them.
    fn warm(&self, batch: usize, device: i32) -> Result<Bound, EngineError> {
        let attempt = |graphs| {
            let mut bound = self.bind(batch, device, Run { graphs, profile: None })?;
            bound.execute()?;
            Ok(bound)
        };
        if self.graphs.load(Ordering::Relaxed) {
            match attempt(true) {
                Err(error) => {
                    tracing::warn!(batch, %error, "The model does not suit CUDA graphs; it runs without.");
                    self.graphs.store(false, Ordering::Relaxed);
                }
                bound @ Ok(_) => return bound,
            }
        }
        attempt(false)
    }

    fn bind(&self, batch: usize, device: i32, run: Run<'_>) -> Result<Bound, EngineError> {
        let session =
            self.session(batch, device, run).map_err(|error: EngineError| EngineError(log::explained(&error.0)))?;
        Ok(Bound::new(session, self, batch, device)?)
    }

    fn session(&self, batch: usize, device: i32, run: Run<'_>) -> Result<Session, EngineError> {
        let mut builder = super::builder(self.environment, 1)?;
        // Named dimensions become constants, and what is computed from them is computed once, at load.
        for (symbol, dim) in self.signature.named(batch) {
            builder = builder.with_dimension_override(symbol, dim)?;
        }
        if let Some(gpu) = &self.gpu {
            let engines = self.cache.join(format!("{}-{batch}", self.key));
            fs::create_dir_all(&engines).map_err(|error| self.unwritable(&error))?;
            let (input, size) = (&*self.signature.input, self.signature.size);
            let place = Place { input, batch, size, device, graphs: run.graphs, engines: &engines };
            builder = builder.with_execution_providers([gpu.provider(&place)])?;
        }
        if let Some(prefix) = run.profile {
            builder = builder.with_profiling(prefix)?;
        }
        let session = self.model.open(builder)?;
        self.model.check()?;
        Ok(session)
    }

    fn unwritable(&self, error: &std::io::Error) -> EngineError {
        let folder = self.cache.display();
        EngineError(format!("{folder} cannot be written ({error}): name another folder with --engine-cache-dir"))
    }
}

/// How a session is to run.
#[derive(Clone, Copy)]
struct Run<'a> {
    graphs: bool,
    /// Where its profile goes, if it is wanted.
    profile: Option<&'a Path>,
}

struct FixedEngine {
    device: i32,
    /// On GPUs.
    #[cfg(feature = "cuda-preprocess")]
    letterbox: Option<DeviceLetterbox>,
    /// For each input size its sessions, by batch size.
    sizes: Vec<(Arc<FixedSessions>, BTreeMap<usize, Bound>)>,
}

impl Engine for FixedEngine {
    // No size is rare: the sessions of all of them were opened on purpose, and keep their memory.
    fn run(&mut self, inputs: &[&EngineInput], _: Memory) -> Result<Box<dyn BatchOutput + '_>, EngineError> {
        let size = super::size_of(inputs)?;
        let of_size = self.sizes.iter_mut().find(|(sessions, _)| sessions.signature.size == size);
        let (sessions, bound) = of_size.ok_or_else(|| EngineError(format!("no session runs pictures of {size}")))?;
        let batch = sessions.batches.iter().copied().find(|batch| *batch >= inputs.len()).ok_or_else(too_large)?;
        let bound = match bound.entry(batch) {
            Entry::Occupied(bound) => bound.into_mut(),
            Entry::Vacant(place) => place.insert(sessions.warm(batch, self.device)?),
        };
        #[cfg(feature = "cuda-preprocess")]
        match &mut self.letterbox {
            Some(letterbox) => {
                let (size, element) = (sessions.signature.size, bound.element);
                let target = Target { address: bound.input_address(), batch, size, element };
                // SAFETY: the session's input has these dimensions, and no run is under way: they are waited for.
                unsafe { letterbox.fill(inputs, &target)? }
            }
            None => bound.upload(inputs)?,
        }
        #[cfg(not(feature = "cuda-preprocess"))]
        bound.upload(inputs)?;
        bound.execute()?;
        Ok(Box::new(bound.read()?))
    }
}

/// A session with its buffers. Their addresses never change, which recorded launches rely on.
struct Bound {
    session: Session,
    binding: IoBinding,
    element: Element,
    /// Values of one picture.
    image_len: usize,
    /// Where pictures become numbers if the model takes 16 bits.
    single: Vec<f32>,
    input: Buffer,
    outputs: Vec<Buffer>,
}

/// A tensor twice: where the CPU reads and writes, and where the session does.
struct Buffer {
    host: DynTensor,
    device: DynTensor,
}

impl Bound {
    fn new(session: Session, sessions: &FixedSessions, batch: usize, device: i32) -> ort::Result<Self> {
        let signature = &sessions.signature;
        let (on_device, on_host) = if sessions.gpu.is_some() {
            let memory = |kind, access| MemoryInfo::new(kind, device, AllocatorType::Device, access);
            let on_device = Allocator::new(&session, memory(AllocationDevice::CUDA, MemoryType::Default)?)?;
            // Pinned: the GPU fetches it by itself, without a detour through a buffer of the driver.
            let pinned = memory(AllocationDevice::CUDA_PINNED, MemoryType::CPUOutput)?;
            (on_device, Allocator::new(&session, pinned)?)
        } else {
            (Allocator::default(), Allocator::default())
        };
        let buffer = |kind, shape: &[i64]| {
            let host = DynTensor::new(&on_host, kind, shape.to_vec())?;
            Ok::<_, ort::Error>(Buffer { host, device: DynTensor::new(&on_device, kind, shape.to_vec())? })
        };
        let input = buffer(signature.element.kind(), &super::input_shape(batch, signature.size))?;
        let mut binding = session.create_binding()?;
        binding.bind_input(&*signature.input, &input.device)?;
        let mut outputs = Vec::with_capacity(signature.outputs.len());
        for output in &signature.outputs {
            let mut buffer = buffer(output.kind, &output.shape(batch))?;
            binding.bind_output(&*output.name, &mut buffer.device)?;
            outputs.push(buffer);
        }
        let (element, image_len) = (signature.element, super::image_len(signature.size));
        Ok(Self { session, binding, element, image_len, single: Vec::new(), input, outputs })
    }

    /// Writes the pictures into the host's input, black ones behind them.
    fn fill(&mut self, inputs: &[&EngineInput]) -> Result<(), EngineError> {
        let len = self.image_len;
        match self.element {
            Element::Single => {
                let (_, tensor) = self.input.host.try_extract_tensor_mut::<f32>()?;
                let (pictures, padding) = tensor.split_at_mut_checked(inputs.len() * len).ok_or_else(too_large)?;
                for (input, tensor) in inputs.iter().zip(pictures.chunks_exact_mut(len)) {
                    super::write(input, tensor)?;
                }
                padding.fill(0.0);
            }
            Element::Half => {
                let (_, tensor) = self.input.host.try_extract_tensor_mut::<f16>()?;
                let (pictures, padding) = tensor.split_at_mut_checked(inputs.len() * len).ok_or_else(too_large)?;
                self.single.resize(len, 0.0);
                for (input, tensor) in inputs.iter().zip(pictures.chunks_exact_mut(len)) {
                    super::write(input, &mut self.single)?;
                    // Rounding the f32 quotient equals dividing in f16: both operands are exact in f16.
                    tensor.convert_from_f32_slice(&self.single);
                }
                padding.fill(f16::ZERO);
            }
        }
        Ok(())
    }

    /// Brings the pictures to the device.
    fn upload(&mut self, inputs: &[&EngineInput]) -> Result<(), EngineError> {
        self.fill(inputs)?;
        Ok(self.input.host.copy_into(&mut self.input.device)?)
    }

    /// Of the input on the device.
    #[cfg(feature = "cuda-preprocess")]
    fn input_address(&mut self) -> u64 {
        self.input.device.data_ptr_mut().addr() as u64
    }

    /// Runs what the device's input holds.
    fn execute(&mut self) -> Result<(), EngineError> {
        drop(self.session.run_binding(&self.binding)?);
        for Buffer { host, device } in &mut self.outputs {
            device.copy_into(host)?;
        }
        Ok(())
    }

    fn read(&self) -> Result<FixedOutput<'_>, EngineError> {
        let known = |buffer: &'_ Buffer| Output::of(&buffer.host);
        let tensors = self.outputs.iter().map(known).collect::<Option<Vec<_>>>().ok_or_else(super::another_type)?;
        Ok(FixedOutput { tensors, buffers: &self.outputs })
    }
}

struct FixedOutput<'a> {
    /// One a buffer.
    tensors: Vec<Output>,
    buffers: &'a [Buffer],
}

impl BatchOutput for FixedOutput<'_> {
    fn image(&self, index: usize) -> Option<Vec<OutputView<'_>>> {
        let outputs = self.tensors.iter().zip(self.buffers);
        outputs.map(|(tensor, buffer)| tensor.image(&buffer.host, index)).collect()
    }
}

fn too_large() -> EngineError {
    EngineError("more pictures than the largest batch".to_owned())
}
