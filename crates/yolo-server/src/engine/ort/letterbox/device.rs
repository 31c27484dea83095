//! The kernel on a GPU: compiled, given a batch, launched.
#![expect(unsafe_code, reason = "NVRTC and launches are C; each place says why it holds")]

use std::ffi::{CStr, CString};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtrMut, DeviceRepr, DriverError, LaunchConfig,
    PinnedHostSlice, PushKernelArg, ValidAsZeroBits,
};
use cudarc::nvrtc::result::{self as compiler, NvrtcError};
use cudarc::nvrtc::{Ptx, sys};
use half::f16;
use yolo_vision::Size;

use super::staging::{Launch, Staging};
use super::{COMPILER, check};
use crate::engine::ort::{Element, image_len};
use crate::engine::{EngineError, EngineInput};

/// The kernel, with a stream and staging memory of its own. One session uses it, and so one thread at a time.
pub struct DeviceLetterbox {
    stream: Arc<CudaStream>,
    single: CudaFunction,
    half: CudaFunction,
    staged: Option<Staged>,
}

/// The same bytes on either side. Sized for the largest batch so far, of the largest pictures that a server stages, so that
/// once every batch size is warm nothing is allocated; pictures of 640 x 640 take 4.9 MB each.
struct Staged {
    host: PinnedHostSlice<u8>,
    device: CudaSlice<u8>,
}

/// A model's input in a GPU's memory.
pub(in crate::engine::ort) struct Target {
    /// Of `[batch, 3, height, width]` numbers.
    pub(in crate::engine::ort) address: u64,
    pub(in crate::engine::ort) batch: usize,
    pub(in crate::engine::ort) size: Size,
    pub(in crate::engine::ort) element: Element,
}

impl DeviceLetterbox {
    /// Compiles the kernel for the GPU that CUDA counts as `device`.
    ///
    /// # Errors
    /// [`EngineError`] if NVRTC is missing or the GPU refuses.
    pub fn open(device: i32) -> Result<Self, EngineError> {
        check(COMPILER).map_err(EngineError)?;
        // The device's primary context, as ONNX Runtime's: an address of either means the same to both.
        let context = CudaContext::new(usize::try_from(device).unwrap_or_default())?;
        let (major, minor) = context.compute_capability()?;
        let module = context.load_module(Ptx::from_binary(compiled(&format!("sm_{major}{minor}"))?))?;
        let [single, half] = ["write_single", "write_half"].map(|name| module.load_function(name));
        Ok(Self { stream: context.new_stream()?, single: single?, half: half?, staged: None })
    }

    /// Writes a batch over `target`, black pictures behind it. Done when it returns, so that whatever is started then, on any
    /// stream, reads it.
    ///
    /// # Errors
    /// [`EngineError`] if a picture does not fit or the GPU fails.
    ///
    /// # Safety
    /// `target` is memory of this GPU, large enough, and nothing else uses it meanwhile.
    pub(in crate::engine::ort) unsafe fn fill(
        &mut self,
        inputs: &[&EngineInput],
        target: &Target,
    ) -> Result<(), EngineError> {
        let Target { address, batch, size, element } = *target;
        let staging = Staging::plan(inputs, (batch, size), element)?;
        let Launch { grid, block } = Launch::of(batch, size)?;
        self.reserve(staging.bytes.max(Staging::bytes_max(batch, size)))?;
        let Self { stream, single, half, staged: Some(Staged { host, device }) } = self else {
            return Err(EngineError("no memory to stage a batch".to_owned()));
        };
        let host = host.as_mut_slice()?;
        staging.write(inputs, host)?;
        let copied = host.get(..staging.bytes).zip(device.try_slice_mut(..staging.bytes));
        let copied = copied.map_or(Ok(()), |(host, mut device)| stream.memcpy_htod(host, &mut device));
        let launch = LaunchConfig { grid_dim: grid.into(), block_dim: block.into(), shared_mem_bytes: 0 };
        let kernel = if element == Element::Single { single } else { half };
        let mut arguments = stream.launch_builder(kernel);
        arguments.arg(&*device).arg(&address).arg(&size.width_px).arg(&size.height_px);
        // SAFETY: the arguments are the kernel's; it reads what was planned, and writes inside of what the caller vouches for.
        let launched = copied.and_then(|()| unsafe { arguments.launch(launch) });
        // Whatever failed, the copy may be under way, and the next batch writes over its source.
        stream.synchronize()?;
        launched?;
        Ok(())
    }

    fn reserve(&mut self, bytes: usize) -> Result<(), EngineError> {
        if self.staged.as_ref().is_none_or(|staged| staged.host.len() < bytes) {
            // The smaller one first: both need not fit.
            self.staged = None;
            // SAFETY: bytes of any value, and these are set before they are read.
            let mut host = unsafe { self.stream.context().alloc_pinned::<u8>(bytes)? };
            host.as_mut_slice()?.fill(0);
            self.staged = Some(Staged { host, device: self.stream.alloc_zeros(bytes)? });
        }
        Ok(())
    }

    /// `[n, 3, height, width]` as a model in 32 bits would read `inputs`, of `size`. For checks: it takes memory of its own.
    ///
    /// # Errors
    /// [`EngineError`] if a picture does not fit or the GPU fails.
    pub fn singles(&mut self, inputs: &[&EngineInput], size: Size) -> Result<Vec<f32>, EngineError> {
        Ok(self.numbers(inputs, size, (Element::Single, 1))?.0)
    }

    /// Mean time of `runs` batches of `inputs`, of `size`, from decoded pictures to the model's numbers on the GPU.
    ///
    /// # Errors
    /// As [`Self::singles`].
    pub fn time(&mut self, inputs: &[&EngineInput], size: Size, runs: u32) -> Result<Duration, EngineError> {
        Ok(self.numbers::<f32>(inputs, size, (Element::Single, runs))?.1 / runs.max(1))
    }

    /// As [`Self::singles`], for a model in 16 bits.
    ///
    /// # Errors
    /// As [`Self::singles`].
    pub fn halves(&mut self, inputs: &[&EngineInput], size: Size) -> Result<Vec<f16>, EngineError> {
        let bits = self.numbers::<u16>(inputs, size, (Element::Half, 1))?.0;
        Ok(bits.into_iter().map(f16::from_bits).collect())
    }

    /// The numbers, and how long it took to write them `runs` times. `T` is as wide as `element`.
    fn numbers<T: DeviceRepr + ValidAsZeroBits>(
        &mut self,
        inputs: &[&EngineInput],
        size: Size,
        (element, runs): (Element, u32),
    ) -> Result<(Vec<T>, Duration), EngineError> {
        let stream = Arc::clone(&self.stream);
        let mut input = stream.alloc_zeros::<T>(inputs.len() * image_len(size))?;
        let (address, written) = input.device_ptr_mut(&stream);
        let target = Target { address, batch: inputs.len(), size, element };
        // The zeros come first: the kernel runs on the same stream.
        let start = Instant::now();
        // SAFETY: the memory was just made, for as many numbers, and only this knows of it.
        let filled = (0..runs).try_for_each(|_| unsafe { self.fill(inputs, &target) });
        let time = start.elapsed();
        drop(written);
        filled?;
        Ok((stream.clone_dtoh(&input)?, time))
    }
}

/// The kernel's machine code for an architecture such as `sm_90`. No PTX: a driver takes that of its own CUDA release and
/// of older ones alone, machine code of its whole major release.
///
/// The compiler must have been loaded: cudarc panics without it.
fn compiled(architecture: &str) -> Result<Vec<u8>, EngineError> {
    let source = CString::new(include_str!("kernel.cu")).map_err(|error| EngineError(error.to_string()))?;
    let program = compiler::create_program(&source, Some(c"kernel.cu"))?;
    let options = [format!("--gpu-architecture={architecture}")];
    // SAFETY: the program is there until the last line, and the buffer is as long as the compiler says.
    unsafe {
        let code = compiler::compile_program(program, &options).and_then(|()| {
            let mut bytes = 0;
            sys::nvrtcGetCUBINSize(program, &raw mut bytes).result()?;
            let mut code = vec![0_u8; bytes];
            sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result()?;
            Ok(code)
        });
        let code = code.map_err(|error| {
            let log = compiler::get_program_log(program).unwrap_or_default();
            let log: Vec<u8> = log.into_iter().map(|byte| byte.to_ne_bytes()[0]).collect();
            let log = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
            EngineError(format!("{COMPILER} cannot compile the letterbox for {architecture}: {error} {log}"))
        });
        compiler::destroy_program(program)?;
        code
    }
}

impl From<DriverError> for EngineError {
    fn from(error: DriverError) -> Self {
        Self(format!("the letterbox on the GPU: {error}"))
    }
}

impl From<NvrtcError> for EngineError {
    fn from(error: NvrtcError) -> Self {
        Self(format!("{COMPILER}: {error}"))
    }
}
