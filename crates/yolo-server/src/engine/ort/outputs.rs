//! Views of single images in output tensors.

use half::f16;
use half::slice::HalfFloatSliceExt;
use ort::value::{TensorValueTypeMarker, Value};
use yolo_vision::OutputView;

/// What is known of an output tensor before its values are looked at.
pub(super) struct Output {
    /// Without the batch.
    image_shape: Vec<usize>,
    /// Its values, if the model gives them in 16 bits.
    widened: Option<Vec<f32>>,
}

impl Output {
    /// `None` unless `value` is a tensor of 32-bit or 16-bit floats in memory that the CPU can read.
    pub(super) fn of<T: TensorValueTypeMarker + ?Sized>(value: &Value<T>) -> Option<Self> {
        let (shape, widened) = if let Ok((shape, _)) = value.try_extract_tensor::<f32>() {
            (shape, None)
        } else {
            let (shape, values) = value.try_extract_tensor::<f16>().ok()?;
            (shape, Some(values.to_f32_vec()))
        };
        let image_shape = shape.iter().skip(1).map(|&dim| usize::try_from(dim).ok()).collect::<Option<_>>()?;
        Some(Self { image_shape, widened })
    }

    /// The share of one image in `value`, the tensor that this was made of; `None` if it holds fewer images.
    pub(super) fn image<'a, T>(&'a self, value: &'a Value<T>, index: usize) -> Option<OutputView<'a>>
    where
        T: TensorValueTypeMarker + ?Sized,
    {
        let values = match &self.widened {
            Some(values) => values,
            None => value.try_extract_tensor::<f32>().ok()?.1,
        };
        let len = self.image_shape.iter().try_fold(1_usize, |len, &dim| len.checked_mul(dim))?;
        let values = values.get(index.checked_mul(len)?..(index + 1).checked_mul(len)?)?;
        Some(OutputView { shape: &self.image_shape, values })
    }
}
