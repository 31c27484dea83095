//! One picture from its encoded bytes to JSON: a session that cannot do this is not ready, whatever its model declares.

use std::fmt::Display;

use yolo_vision::{
    DecodeLimits, Letterbox, ModelInfo, Parameters, Picture, PictureFormat, Size, Task, centre_crop_into, decode,
    encode, letterbox_into, postprocess,
};

use crate::engine::{BatchOutput, EngineError, EngineInput, LoadedModel, Pixels};

/// Its values do not matter; as any camera's it is not of the model's size.
const PICTURE: Size = Size::new(96, 64);

/// A picture on its way.
pub(super) struct Probe {
    /// Decoded and fitted into the model's input.
    pub(super) input: EngineInput,
    letterbox: Letterbox,
}

impl Probe {
    /// Decodes a picture for an input of size `target`.
    ///
    /// # Errors
    /// [`EngineError`] if no picture fits into it.
    pub(super) fn new(model: &LoadedModel, target: Size) -> Result<Self, EngineError> {
        let levels = (0..3 * PICTURE.pixels()).map(|index| index.to_le_bytes()[0]).collect();
        let picture = Picture::from_rgb(PICTURE, levels).ok_or_else(|| EngineError("no picture".to_owned()))?;
        let mut encoded = Vec::new();
        encode(&picture, PictureFormat::Jpeg, &mut encoded).map_err(failed)?;
        let picture = decode(&encoded, &DecodeLimits::default()).map_err(failed)?;
        let letterbox = Letterbox::plan(picture.size(), target).map_err(failed)?;
        let pixels = if model.takes(picture.size(), target) {
            Pixels::Picture(picture, letterbox)
        } else {
            let mut levels = vec![0; letterbox.output_len()];
            let fitted = if model.info.task() == Task::Classify {
                centre_crop_into(&picture, target, &mut levels)
            } else {
                letterbox_into(&picture, &letterbox, &mut levels)
            };
            fitted.map_err(failed)?;
            levels.into()
        };
        Ok(Self { input: EngineInput { pixels, size: target, content: [0; 32] }, letterbox })
    }

    /// Makes JSON of what the engine says of it.
    ///
    /// # Errors
    /// [`EngineError`] if that is not what the model declares.
    pub(super) fn answer(&self, output: &dyn BatchOutput, model: &ModelInfo) -> Result<(), EngineError> {
        let views = output.image(0).ok_or_else(|| failed("it gave no output"))?;
        let found = postprocess(&views, model, &self.letterbox, &Parameters::default()).map_err(failed)?;
        let json: Vec<_> = found.iter().map(|detection| detection.to_json(None)).collect();
        serde_json::to_vec(&json).map(drop).map_err(failed)
    }
}

fn failed(error: impl Display) -> EngineError {
    EngineError(format!("a picture for a try got no answer: {error}"))
}
