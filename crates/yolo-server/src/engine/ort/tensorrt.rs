//! The options of ONNX Runtime's `TensorRT` provider.

use ort::ep::{ExecutionProviderDispatch, TensorRT};

use super::device::{Gpu, Place};
use crate::args::Precision;

pub(super) fn provider(gpu: &Gpu, place: &Place<'_>) -> ExecutionProviderDispatch {
    // One shape, and told in so many words: an engine for shapes that are found out as they come is rebuilt at each new
    // one, 50 s instead of 0.03 (onnxruntime #12120).
    let shape = shape(place);
    let tensorrt = TensorRT::default()
        .with_device_id(place.device)
        .with_fp16(gpu.precision != Precision::Fp32)
        .with_profile_min_shapes(&shape)
        .with_profile_opt_shapes(&shape)
        .with_profile_max_shapes(&shape)
        .with_engine_cache(true)
        .with_engine_cache_path(place.engines.display())
        // What is learned about kernels serves every model and size.
        .with_timing_cache(true)
        .with_timing_cache_path(gpu.cache.display())
        .with_context_memory_sharing(true)
        .with_cuda_graph(place.graphs);
    match gpu.memory_bytes_max.map(usize::try_from) {
        Some(Ok(bytes)) => tensorrt.with_max_workspace_size(bytes).build(),
        _ => tensorrt.build(),
    }
}

/// `images:8x3x640x640`
fn shape(place: &Place<'_>) -> String {
    let Place { input, batch, size, .. } = place;
    format!("{input}:{batch}x3x{}x{}", size.height_px, size.width_px)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use yolo_vision::Size;

    use super::*;

    #[test]
    fn shapes_are_written_as_tensorrt_reads_them() {
        let engines = Path::new("/engines");
        let size = Size { width_px: 640, height_px: 480 };
        let place = Place { input: "images", batch: 8, size, device: 0, graphs: true, engines };
        assert_eq!(shape(&place), "images:8x3x480x640");
    }
}
