//! Output tensors to detections.

use crate::boxes::BoxXyxyPx;
use crate::contour;
use crate::detection::{Detection, Form, Keypoint};
use crate::head::{Candidate, Head};
use crate::layout::Layout;
use crate::letterbox::Letterbox;
use crate::mask::Prototypes;
use crate::metadata::ModelInfo;
use crate::nms::{self, Suppression};
use crate::rotated::RotatedBoxPx;
use crate::task::{Extra, Task};

/// Classes that a classification answers, best first, as Ultralytics' `top5`.
const CLASSES_ANSWERED: usize = 5;

/// What a request may choose.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// Keep scores above this, 0..=1. Classification ignores it.
    pub confidence: f32,
    /// Boxes of one class that overlap more than this (intersection over union, 0..=1) are one object.
    pub iou: f64,
    /// Most detections a picture.
    pub detections_max: usize,
    /// Only these classes; `None`: all.
    pub classes: Option<Vec<u32>>,
    /// Boxes of different classes suppress each other too.
    pub agnostic: bool,
    /// Answer boxes in fractions of the picture instead of pixels. Acts in the JSON form, not on [`Detection`].
    pub normalize: bool,
    /// How masks are answered.
    pub masks: Masks,
}

impl Default for Parameters {
    /// Ultralytics' defaults: 0.25, 0.7, 300.
    fn default() -> Self {
        Self {
            confidence: 0.25,
            iou: 0.7,
            detections_max: 300,
            classes: None,
            agnostic: false,
            normalize: false,
            masks: Masks::Polygon,
        }
    }
}

/// How the masks of a segmentation are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Masks {
    /// The outline of the largest part.
    Polygon,
    /// All pixels, as runs.
    Rle,
    /// Not computed; objects with an empty mask are not noticed then.
    None,
}

/// One image's share of an output tensor.
#[derive(Debug, Clone, Copy)]
pub struct OutputView<'a> {
    /// Dimensions without the batch: rows and columns of a head, `[channels, height, width]` of prototypes.
    pub shape: &'a [usize],
    /// As many values, the last dimension innermost.
    pub values: &'a [f32],
}

/// Most memory that the masks, outlines and keypoints of a picture may take, in bytes: those of 300 objects take a tenth of
/// it in a picture of 12 megapixels.
pub const FORMS_BYTES_MAX: usize = 8 << 20;

/// Outputs without detections.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OutputError {
    /// The model gave other outputs than it announced.
    #[error("the model's outputs have the shapes {shapes:?}, which do not fit its layout {layout:?}")]
    Shapes {
        /// Dimensions of each.
        shapes: Vec<Vec<usize>>,
        /// Layout decided when the model was loaded.
        layout: Layout,
    },
    /// What was asked for takes more than [`FORMS_BYTES_MAX`].
    #[error(
        "the masks of the objects take more than {} MiB: ask for fewer objects (max_det), for their outlines \
         (masks=polygon) or for none (masks=none)", FORMS_BYTES_MAX >> 20
    )]
    TooLarge,
}

/// Finds the objects in one image's outputs: threshold, suppression, projection back to the picture.
///
/// `outputs`: this image's share of the outputs that [`ModelInfo::output_names`] lists. Rows with a number that is not
/// finite are dropped. Best score first.
///
/// # Errors
/// [`OutputError`]
pub fn postprocess(
    outputs: &[OutputView<'_>],
    model: &ModelInfo,
    letterbox: &Letterbox,
    parameters: &Parameters,
) -> Result<Vec<Detection>, OutputError> {
    let found = match model.task() {
        Task::Classify => classes(outputs, model, letterbox, parameters),
        _ => objects(outputs, model, letterbox, parameters),
    };
    let found = found.ok_or_else(|| OutputError::Shapes {
        shapes: outputs.iter().map(|output| output.shape.to_vec()).collect(),
        layout: model.layout(),
    })?;
    if found.iter().map(Detection::heap_bytes).sum::<usize>() > FORMS_BYTES_MAX {
        return Err(OutputError::TooLarge);
    }
    Ok(found)
}

/// The best classes of a picture; of equal ones the first. `None` if the output is not `[nc]`.
fn classes(
    outputs: &[OutputView<'_>],
    model: &ModelInfo,
    letterbox: &Letterbox,
    parameters: &Parameters,
) -> Option<Vec<Detection>> {
    let [OutputView { shape: &[count], values }] = *outputs else { return None };
    // 0: neither names nor shape told.
    if count != values.len() || ![0, count].contains(&model.classes()) {
        return None;
    }
    let finite = (0..).zip(values.iter().copied()).filter(|(_, score)| score.is_finite());
    let mut ranked: Vec<(u32, f32)> = finite.filter(|(class, _)| wanted(parameters, *class)).collect();
    ranked.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    ranked.truncate(CLASSES_ANSWERED.min(parameters.detections_max));
    let detection = |(class, confidence)| Detection {
        name: model.name(class),
        class,
        confidence,
        bounds: letterbox.whole_picture(),
        form: Form::Picture,
    };
    Some(ranked.into_iter().map(detection).collect())
}

fn wanted(parameters: &Parameters, class: u32) -> bool {
    parameters.classes.as_ref().is_none_or(|classes| classes.contains(&class))
}

/// The objects of every other task, up to the one with which they take too much. `None` if an output does not fit.
fn objects(
    outputs: &[OutputView<'_>],
    model: &ModelInfo,
    letterbox: &Letterbox,
    parameters: &Parameters,
) -> Option<Vec<Detection>> {
    let head = Head::new(outputs.first()?, model.layout(), model.extra().len())?;
    let prototypes = match model.extra() {
        Extra::Coefficients(channels) => Some(Prototypes::new(outputs.get(1)?, channels)?),
        _ => None,
    };
    let mut candidates = head.candidates(parameters.confidence);
    candidates.retain(|candidate| wanted(parameters, candidate.class));
    let objects = Objects { head, prototypes, model, letterbox, masks: parameters.masks };
    let kept = objects.suppress(candidates, parameters);
    let (mut found, mut forms_bytes) = (Vec::new(), 0);
    for detection in kept.into_iter().filter_map(|candidate| objects.detection(candidate)) {
        forms_bytes += detection.heap_bytes();
        found.push(detection);
        if forms_bytes > FORMS_BYTES_MAX {
            break;
        }
    }
    Some(found)
}

/// Everything that turns a candidate into a detection.
struct Objects<'a> {
    head: Head<'a>,
    prototypes: Option<Prototypes<'a>>,
    model: &'a ModelInfo,
    letterbox: &'a Letterbox,
    masks: Masks,
}

impl Objects<'_> {
    fn suppress(&self, mut candidates: Vec<Candidate>, parameters: &Parameters) -> Vec<Candidate> {
        let &Parameters { iou, agnostic, detections_max: kept_max, .. } = parameters;
        let suppression = Suppression { iou, agnostic, kept_max };
        match (self.model.layout(), self.model.task()) {
            (Layout::EndToEnd, _) => {
                candidates.truncate(kept_max);
                candidates
            }
            (_, Task::Obb) => nms::suppress_rotated(candidates, |candidate| self.angle(candidate), &suppression),
            _ => nms::suppress(candidates, &suppression),
        }
    }

    fn angle(&self, candidate: &Candidate) -> f32 {
        self.head.extra(candidate.anchor).first().copied().unwrap_or_default()
    }

    /// `None` if its mask is empty, or a corner is beyond all numbers.
    fn detection(&self, candidate: Candidate) -> Option<Detection> {
        let bounds = match self.model.layout() {
            Layout::EndToEnd => BoxXyxyPx::from_corners(candidate.coordinates),
            _ => BoxXyxyPx::from_centre(candidate.coordinates),
        };
        let (bounds, form) = match self.model.extra() {
            Extra::None => (self.letterbox.project(bounds), Form::Box),
            Extra::Coefficients(_) => (self.letterbox.project(bounds), self.mask(&candidate, bounds)?),
            Extra::Keypoints { values, .. } => (self.letterbox.project(bounds), self.pose(&candidate, values)),
            Extra::Angle => {
                let turned = RotatedBoxPx::new(candidate.coordinates, self.angle(&candidate));
                let projected = self.letterbox.project_rotated(turned);
                projected.corners().as_flattened().iter().all(|side| side.is_finite()).then_some(())?;
                (projected.hull(), Form::Rotated(projected))
            }
        };
        let Candidate { score: confidence, class, .. } = candidate;
        Some(Detection { name: self.model.name(class), class, confidence, bounds, form })
    }

    fn mask(&self, candidate: &Candidate, bounds: BoxXyxyPx) -> Option<Form> {
        let Some(prototypes) = self.prototypes.as_ref().filter(|_| self.masks != Masks::None) else {
            return Some(Form::Box);
        };
        let bitmap = prototypes.mask(&self.head.extra(candidate.anchor), bounds, self.letterbox.target())?;
        Some(match self.masks {
            Masks::Rle => Form::Rle(bitmap.to_rle(self.letterbox)),
            _ => Form::Polygon(self.outline(contour::largest_outline(&bitmap))),
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "pixels of the model's input are far below 2^24")]
    fn outline(&self, points: Vec<[usize; 2]>) -> Vec<[f32; 2]> {
        points.into_iter().map(|[x, y]| self.letterbox.project_point([x as f32, y as f32])).collect()
    }

    fn pose(&self, candidate: &Candidate, values: usize) -> Form {
        let numbers = self.head.extra(candidate.anchor);
        let point = |numbers: &[f32]| {
            let (&position, rest) = numbers.split_first_chunk::<2>()?;
            let [x, y] = self.letterbox.project_point(position);
            Some(Keypoint { x, y, visible: rest.first().copied() })
        };
        Form::Keypoints(numbers.chunks_exact(values).filter_map(point).collect())
    }
}
