//! The options of ONNX Runtime's CUDA provider.

use ort::ep::cuda::ConvAlgorithmSearch;
use ort::ep::{ArenaExtendStrategy, CUDA, ExecutionProviderDispatch};

use super::device::{Gpu, Place};
use crate::args::Precision;

pub(super) fn provider(gpu: &Gpu, place: &Place<'_>) -> ExecutionProviderDispatch {
    let cuda = CUDA::default()
        .with_device_id(place.device)
        // The default doubles at each extension: a session of 1 GB would hold 2.
        .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
        // Costs seconds a shape, once: every shape in use is warmed before ready.
        .with_conv_algorithm_search(ConvAlgorithmSearch::Exhaustive)
        // Ten bits of mantissa in products: what everybody serves with, unless 32 bits are asked for by name.
        .with_tf32(gpu.precision != Precision::Fp32)
        .with_cuda_graph(place.graphs);
    match gpu.memory_bytes_max.map(usize::try_from) {
        Some(Ok(bytes)) => cuda.with_memory_limit(bytes).build(),
        _ => cuda.build(),
    }
}
