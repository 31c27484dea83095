//! Pictures that their client prepared, answered with the model's own outputs.

use std::pin::pin;
use std::time::Instant;

use bytes::{BufMut, BytesMut};
use futures::{StreamExt, stream};
use tokio::sync::OwnedSemaphorePermit;
use yolo_vision::Size;

use super::infer::{Answered, Asked, PICTURES, at, known_outputs};
use super::tensor::{Datatype, Tensor, invalid};
use crate::app::App;
use crate::batcher::ImageTensor;
use crate::engine::{EngineInput, Pixels};
use crate::http::batch;
use crate::http::error::{ApiError, Code};
use crate::http::image::Image;
use crate::http::making::off_thread;
use crate::limits;
use crate::predictor::{Predictor, Speed};

/// Runs the images of `[b, 3, h, w]` FP32 (as the model takes them) or UINT8 (divided by 255 here), h and w served.
/// Each is queued by itself, so a large request shares the workers with small ones. The outputs are FP32, the images'
/// one after the other.
///
/// # Errors
/// 400 for a tensor that does not fit the model, 413 for outputs larger than a request may be; otherwise as `/predict`.
pub async fn infer(app: &App, predictor: &Predictor, input: &Tensor, asked: &Asked) -> Result<Answered, ApiError> {
    let (size, wanted) = checked(predictor, input, asked).inspect_err(|error| Image::arrived(app).failed(error))?;
    let (tensor, memory) = (input.clone(), asked.memory.clone());
    let split = move || {
        let _held = memory;
        split(&tensor, size)
    };
    let inputs = off_thread(input.data.len(), split).await?;
    let count = inputs.len();
    let runs: Vec<_> = inputs
        .into_iter()
        .map(|input| {
            let mut image = Image::arrived(app);
            image.demanded(input.content, asked.received, asked.wishes.retry);
            run(predictor, image, input, asked)
        })
        .collect();
    let mut runs = pin!(stream::iter(runs).buffered(batch::in_flight(predictor)).enumerate());
    let mut outputs = Outputs::default();
    // The first that fails ends the others: nobody would see their results.
    while let Some((index, ran)) = runs.next().await {
        let (tensors, speed) = ran.map_err(|error| if count > 1 { at(index, error) } else { error })?;
        outputs.add(app, &tensors, &wanted)?;
        outputs.slowest(speed);
    }
    Ok(outputs.answered(predictor, count, &wanted))
}

/// The images' size, and which of the model's outputs are wanted, in the order of the wishes.
fn checked(predictor: &Predictor, input: &Tensor, asked: &Asked) -> Result<(Size, Vec<usize>), ApiError> {
    let Tensor { datatype, shape, .. } = input;
    if !matches!(datatype, Datatype::Fp32 | Datatype::Uint8) {
        return Err(invalid(format!("{PICTURES} is FP32 or UINT8, found {}", datatype.as_str())));
    }
    let (model, sizes, most) = (&predictor.model().info, &predictor.model().sizes, limits::BATCH_PARTS_MAX);
    let size = match shape.as_slice() {
        &[b, 3, h, w] if (1..=most).contains(&b) => sizes.iter().copied().find(|size| {
            [size.height_px, size.width_px].map(|side| usize::try_from(side).unwrap_or(usize::MAX)) == [h, w]
        }),
        _ => None,
    };
    let Some(size) = size else {
        let served =
            sizes.iter().map(|Size { height_px, width_px, .. }| format!("[1 to {most}, 3, {height_px}, {width_px}]"));
        let served: Vec<_> = served.collect();
        return Err(invalid(format!("{PICTURES}: shape {}, found {shape:?}", served.join(" or "))));
    };
    let names: Vec<_> = model.output_names().iter().map(String::as_str).collect();
    known_outputs(&asked.outputs, &names)?;
    if asked.outputs.is_empty() {
        return Ok((size, (0..names.len()).collect()));
    }
    let position = |wanted: &String| names.iter().position(|name| name == wanted);
    Ok((size, asked.outputs.iter().filter_map(position).collect()))
}

/// The images of a tensor; no copies.
fn split(tensor: &Tensor, size: Size) -> Vec<EngineInput> {
    let images = tensor.shape.first().copied().unwrap_or(1).max(1);
    let len = tensor.data.len() / images;
    let image = |index: usize| {
        let data = tensor.data.slice(index * len..(index + 1) * len);
        let content = *blake3::hash(&data).as_bytes();
        let pixels = if tensor.datatype == Datatype::Uint8 { Pixels::Levels(data) } else { Pixels::Numbers(data) };
        EngineInput { pixels, size, content }
    };
    (0..images).map(image).collect()
}

async fn run(
    predictor: &Predictor,
    mut image: Image<'_>,
    input: EngineInput,
    asked: &Asked,
) -> Result<(Vec<ImageTensor>, Speed), ApiError> {
    let wishes = batch::at_its_turn(&asked.wishes, asked.received);
    image.tensors(predictor, input, Instant::now(), &wishes).await
}

/// Outputs that grow image by image.
#[derive(Default)]
struct Outputs {
    /// Of each wanted output: an image's shape, and all values.
    tensors: Vec<(Vec<usize>, BytesMut)>,
    bytes: usize,
    memory: Option<OwnedSemaphorePermit>,
    speed: Speed,
}

impl Outputs {
    /// Adds an image's share. Outputs are larger than inputs, so they count among the bodies that memory holds.
    fn add(&mut self, app: &App, image: &[ImageTensor], wanted: &[usize]) -> Result<(), ApiError> {
        if self.tensors.is_empty() {
            self.tensors = vec![Default::default(); wanted.len()];
        }
        let bytes_max = app.bodies.limits().batch_bytes_max;
        for ((shape, data), index) in self.tensors.iter_mut().zip(wanted) {
            let Some(tensor) = image.get(*index) else { continue };
            self.bytes += size_of_val(tensor.values.as_slice());
            if self.bytes > bytes_max {
                let message = format!("the outputs are larger than {bytes_max} bytes: send fewer images at a time");
                return Err(ApiError::new(Code::PayloadTooLarge, message));
            }
            app.bodies.hold(&mut self.memory, self.bytes)?;
            data.reserve(size_of_val(tensor.values.as_slice()));
            tensor.values.iter().for_each(|value| data.put_f32_le(*value));
            shape.clone_from(&tensor.shape);
        }
        Ok(())
    }

    fn slowest(&mut self, speed: Speed) {
        if speed.queue_and_inference() > self.speed.queue_and_inference() {
            self.speed = speed;
        }
    }

    fn answered(self, predictor: &Predictor, images: usize, wanted: &[usize]) -> Answered {
        let names = predictor.model().info.output_names();
        let output = |((shape, data), index): ((Vec<usize>, BytesMut), &usize)| {
            let shape: Vec<_> = std::iter::once(images).chain(shape).collect();
            Some(Tensor::output(names.get(*index)?, Datatype::Fp32, &shape, data.freeze()))
        };
        let outputs = self.tensors.into_iter().zip(wanted).filter_map(output).collect();
        Answered { outputs, speed: self.speed, memory: self.memory }
    }
}
