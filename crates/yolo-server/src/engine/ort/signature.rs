//! What a session with bound buffers must know of a model beforehand: names, types and shapes.

use half::f16;
use ort::session::{Session, SessionInputValue};
use ort::value::{Tensor, TensorElementType, ValueType};
use yolo_vision::{ModelInfo, Size};

use super::Element;
use crate::engine::EngineError;

/// Input and outputs of a model.
#[derive(Debug)]
pub(super) struct Signature {
    /// Name of the input.
    pub(super) input: String,
    /// Names of its dimensions (batch, channels, height, width); empty where one is a constant.
    symbols: Vec<String>,
    pub(super) element: Element,
    pub(super) size: Size,
    /// In the order of [`ModelInfo::output_names`].
    pub(super) outputs: Vec<OutputSignature>,
}

/// One output.
#[derive(Debug)]
pub(super) struct OutputSignature {
    pub(super) name: String,
    pub(super) kind: TensorElementType,
    /// Without the batch.
    image_shape: Vec<i64>,
}

impl OutputSignature {
    pub(super) fn shape(&self, batch: usize) -> Vec<i64> {
        let batch = i64::try_from(batch).unwrap_or(i64::MAX);
        std::iter::once(batch).chain(self.image_shape.iter().copied()).collect()
    }
}

impl Signature {
    /// Runs a black picture of `size` through `session`, because models leave the shapes of their outputs open.
    pub(super) fn learn(
        session: &mut Session,
        info: &ModelInfo,
        (size, element): (Size, Element),
    ) -> Result<Self, EngineError> {
        let input = session.inputs().first().ok_or_else(|| EngineError("the model has no input".to_owned()))?;
        let name = input.name().to_owned();
        let symbols = match input.dtype() {
            ValueType::Tensor { dimension_symbols, .. } => dimension_symbols.to_vec(),
            _ => Vec::new(),
        };
        let batch = info.batch_fixed().unwrap_or(1);
        let (shape, len) = (super::input_shape(batch, size), batch * super::image_len(size));
        let black: SessionInputValue<'_> = match element {
            Element::Single => Tensor::from_array((shape, vec![0.0_f32; len]))?.into(),
            Element::Half => Tensor::from_array((shape, vec![f16::ZERO; len]))?.into(),
        };
        let outputs = session.run([black])?;
        let signature = |name: &String| match outputs.get(name)?.dtype() {
            ValueType::Tensor { ty, shape, .. } => {
                let image_shape = shape.iter().skip(1).copied().collect();
                Some(OutputSignature { name: name.clone(), kind: *ty, image_shape })
            }
            _ => None,
        };
        let outputs =
            info.output_names().iter().map(signature).collect::<Option<_>>().ok_or_else(super::another_type)?;
        Ok(Self { input: name, symbols, element, size, outputs })
    }

    /// The sizes of the input's named dimensions for a batch.
    pub(super) fn named(&self, batch: usize) -> impl Iterator<Item = (&str, i64)> {
        let sizes = super::input_shape(batch, self.size);
        self.symbols.iter().map(String::as_str).zip(sizes).filter(|(symbol, _)| !symbol.is_empty())
    }
}
