//! The letterbox on the GPU (feature `cuda-preprocess`): pictures go up as they were decoded, and a kernel writes the
//! model's input in the device's memory, with the integers of the CPU's letterbox.
//!
//! ```text
//!   pictures -> staged (pinned) -> staged (device) -> kernel -> the session's input
//! ```
//! One copy and one launch a batch. The kernel's source is compiled at run time by NVRTC for the GPU at hand; the tests
//! compile it as C++ and compare what it writes, bit by bit, on any machine.

#[cfg(feature = "cuda-preprocess")]
mod device;
mod staging;

#[cfg(test)]
mod tests;

#[cfg(feature = "cuda-preprocess")]
pub use device::DeviceLetterbox;
#[cfg(feature = "cuda-preprocess")]
pub(super) use device::Target;

/// NVRTC, which compiles the kernel.
#[cfg(feature = "cuda-preprocess")]
pub(super) const COMPILER: &str = "libnvrtc.so.13";

/// Fails if the `compiler`'s library cannot be loaded.
///
/// # Errors
/// A text that names the library and what to do.
pub(super) fn check(compiler: &str) -> Result<(), String> {
    ort::util::preload_dylib(compiler).map_err(|error| {
        format!(
            "{compiler}, NVIDIA's run-time compiler, which the letterbox on the GPU needs, cannot be loaded ({error}): \
             put the library of the wheel nvidia-cuda-nvrtc into LD_LIBRARY_PATH, or run a server that is built without \
             the feature cuda-preprocess"
        )
    })
}
