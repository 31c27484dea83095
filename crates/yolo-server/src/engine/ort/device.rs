//! What runs a model: decided before anything is loaded, and checked for what it needs.

use std::path::{Path, PathBuf};

use ort::ep::ExecutionProviderDispatch;
use yolo_vision::Size;

use super::{cuda, tensorrt};
use crate::args::{Config, GpuSettings, Precision, Provider};
use crate::gpu::Gpus;
use crate::limits::SESSIONS_PER_GPU;

/// The NVIDIA driver's library; the container runtime puts it into containers that asked for a GPU.
const DRIVER: &str = "libcuda.so.1";
/// What every provider in a library of its own is loaded through.
const SHARED: &str = "libonnxruntime_providers_shared.so";

/// What runs a model.
#[derive(Debug, Clone)]
pub enum Device {
    /// ONNX Runtime's CPU provider.
    Cpu,
    /// The CPU provider by the way of the GPUs: a session a batch size, bound buffers. What a machine without a GPU can
    /// check of that way; slower than [`Self::Cpu`].
    CpuBound,
    /// NVIDIA GPUs.
    Gpu(Gpu),
}

impl Device {
    /// What the configuration asks for on a machine with these `gpus`; says in the log which and why.
    pub fn of(config: &Config, gpus: &Gpus) -> Self {
        let (provider, reason) = choose(config.provider, gpus.count(), &super::library());
        let name = provider.map_or("cpu", GpuProvider::as_str);
        tracing::info!(provider = name, reason, gpus = gpus.count(), "Provider chosen.");
        let Some(provider) = provider else { return Self::Cpu };
        let GpuSettings { engine_cache_dir, gpu_memory_mib, cuda_graphs } = &config.gpu;
        // A tenth stays free for what no arena accounts for: contexts, cuDNN's workspaces, recorded launches, staged
        // pictures.
        let most = || gpus.memory_bytes_free().map(|free| free / 10 * 9);
        Self::Gpu(Gpu {
            provider,
            precision: config.precision,
            devices: u32::try_from(gpus.count()).unwrap_or(1).max(1),
            memory_bytes_max: gpu_memory_mib.map(|mib| mib << 20).or_else(most),
            graphs: *cuda_graphs,
            cache: engine_cache_dir.clone(),
        })
    }

    /// Sessions that use it fully, where the CPU's cores do not decide.
    pub fn sessions(&self) -> Option<usize> {
        let gpu = self.gpu()?;
        Some(SESSIONS_PER_GPU * usize::try_from(gpu.devices).unwrap_or(1))
    }

    pub(super) const fn gpu(&self) -> Option<&Gpu> {
        match self {
            Self::Gpu(gpu) => Some(gpu),
            Self::Cpu | Self::CpuBound => None,
        }
    }
}

/// Execution provider on NVIDIA GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuProvider {
    /// CUDA and cuDNN.
    Cuda,
    /// `TensorRT`, which compiles the model for the GPU at hand.
    TensorRt,
}

impl GpuProvider {
    /// As in flags, answers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
        }
    }

    /// ONNX Runtime's name for it.
    pub(super) const fn ort_name(self) -> &'static str {
        match self {
            Self::Cuda => "CUDAExecutionProvider",
            Self::TensorRt => "TensorrtExecutionProvider",
        }
    }

    /// Its library, beside ONNX Runtime's.
    const fn library(self) -> &'static str {
        match self {
            Self::Cuda => "libonnxruntime_providers_cuda.so",
            Self::TensorRt => "libonnxruntime_providers_tensorrt.so",
        }
    }

    /// Fails if a library is missing without which ONNX Runtime could only say that it does not work.
    ///
    /// `runtime` is ONNX Runtime's library; a bare name is looked for by the system, so nothing is known of its folder.
    ///
    /// # Errors
    /// A text that names the library and what to do.
    pub fn check(self, runtime: &Path) -> Result<(), String> {
        if let Some(missing) = self.missing_beside(runtime) {
            return Err(format!(
                "{missing} is not beside {}, which is ONNX Runtime for the CPU: run the CUDA image, point ORT_DYLIB_PATH \
                 at the library of the wheel onnxruntime-gpu, or ask for --provider cpu",
                runtime.display()
            ));
        }
        ort::util::preload_dylib(DRIVER).map_err(|error| {
            format!(
                "{DRIVER}, the NVIDIA driver's library, cannot be loaded ({error}): run where a GPU is visible (a pod \
                 asks for nvidia.com/gpu), or ask for --provider cpu"
            )
        })
    }

    fn missing_beside(self, runtime: &Path) -> Option<&'static str> {
        let folder = runtime.parent().filter(|folder| !folder.as_os_str().is_empty())?;
        [SHARED, self.library()].into_iter().find(|library| !folder.join(library).exists())
    }
}

/// Chooses the provider, with the reason: what was asked for, or by what `gpus` visible GPUs and the ONNX Runtime at
/// `runtime` can do. `None` is the CPU.
///
/// Only `auto` looks: a GPU that was asked for by name is never replaced.
pub fn choose(asked: Provider, gpus: usize, runtime: &Path) -> (Option<GpuProvider>, &'static str) {
    match asked {
        Provider::Cpu => (None, "asked for"),
        Provider::Cuda => (Some(GpuProvider::Cuda), "asked for"),
        Provider::TensorRt => (Some(GpuProvider::TensorRt), "asked for"),
        Provider::Auto if gpus == 0 => (None, "no NVIDIA GPU is visible"),
        Provider::Auto if GpuProvider::Cuda.missing_beside(runtime).is_some() => {
            (None, "a GPU is visible, but this ONNX Runtime is built for the CPU alone")
        }
        Provider::Auto => (Some(GpuProvider::Cuda), "an NVIDIA GPU is visible"),
    }
}

/// How a model runs on NVIDIA GPUs.
#[derive(Debug, Clone)]
pub struct Gpu {
    /// Who runs it. There is no second provider: what it cannot do fails, instead of quietly running on the CPU.
    pub provider: GpuProvider,
    /// Arithmetic asked for.
    pub precision: Precision,
    /// GPUs; sessions take turns on them.
    pub devices: u32,
    /// Device memory that the arena of one session may take, in bytes.
    pub memory_bytes_max: Option<u64>,
    /// Whether launches are recorded once and replayed.
    pub graphs: bool,
    /// Where built engines are kept.
    pub cache: PathBuf,
}

/// A session on one GPU for one batch size.
pub(super) struct Place<'a> {
    /// Name of the model's input.
    pub(super) input: &'a str,
    pub(super) batch: usize,
    pub(super) size: Size,
    /// Number of the GPU, as CUDA counts them.
    pub(super) device: i32,
    pub(super) graphs: bool,
    /// Folder of this session's engine.
    pub(super) engines: &'a Path,
}

impl Gpu {
    pub(super) fn provider(&self, place: &Place<'_>) -> ExecutionProviderDispatch {
        let provider = match self.provider {
            GpuProvider::Cuda => cuda::provider(self, place),
            GpuProvider::TensorRt => tensorrt::provider(self, place),
        };
        // Without this a failure would be a line in the log, and the model would run on the CPU.
        provider.error_on_failure()
    }
}
