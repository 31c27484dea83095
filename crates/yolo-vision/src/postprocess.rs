//! Output tensor to detections.

use crate::boxes::BoxXyxyPx;
use crate::detection::Detection;
use crate::layout::Layout;
use crate::letterbox::Letterbox;
use crate::metadata::ModelInfo;
use crate::nms::{self, Candidate, Suppression};

/// What a request may choose.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// Keep scores above this, 0..=1.
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
}

impl Default for Parameters {
    /// Ultralytics' defaults: 0.25, 0.7, 300.
    fn default() -> Self {
        Self { confidence: 0.25, iou: 0.7, detections_max: 300, classes: None, agnostic: false, normalize: false }
    }
}

/// One image's share of an output tensor: `[rows, columns]` f32, row by row.
#[derive(Debug, Clone, Copy)]
pub struct OutputView<'a> {
    /// Rows and columns, without the batch.
    pub shape: [usize; 2],
    /// `rows * columns` values.
    pub values: &'a [f32],
}

/// The model gave another output than it announced.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the model's output has shape {shape:?} and {values} values, which does not fit its layout {layout:?}")]
pub struct OutputError {
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Number of values.
    pub values: usize,
    /// Layout decided when the model was loaded.
    pub layout: Layout,
}

/// Finds the objects in one image's output: threshold, suppression, projection back to the picture.
///
/// `outputs`: the model's outputs for this image, in the model's order (detection has one). Rows with a number that is
/// not finite are dropped. Best score first.
///
/// # Errors
/// [`OutputError`] if the shape is not one of the model's layout.
pub fn postprocess(
    outputs: &[OutputView<'_>],
    model: &ModelInfo,
    letterbox: &Letterbox,
    parameters: &Parameters,
) -> Result<Vec<Detection>, OutputError> {
    let layout = model.layout();
    let output = outputs.first().copied().unwrap_or(OutputView { shape: [0, 0], values: &[] });
    let misfit = OutputError { shape: output.shape, values: output.values.len(), layout };
    let [rows, columns] = output.shape;
    if rows.checked_mul(columns) != Some(output.values.len()) || output.values.is_empty() {
        return Err(misfit);
    }
    let found = match layout {
        Layout::Standard => from_columns(output, parameters),
        Layout::Transposed => from_rows(output, parameters, centre_row),
        Layout::Yolov5 => from_rows(output, parameters, objectness_row),
        Layout::EndToEnd => from_rows(output, parameters, final_row),
    };
    let mut candidates = found.ok_or(misfit)?;
    candidates.retain(|candidate| {
        candidate.score > parameters.confidence
            && parameters.classes.as_ref().is_none_or(|classes| classes.contains(&candidate.class))
    });
    let kept = if layout == Layout::EndToEnd {
        candidates.truncate(parameters.detections_max);
        candidates
    } else {
        let Parameters { iou, agnostic, detections_max: kept_max, .. } = *parameters;
        nms::suppress(candidates, &Suppression { iou, agnostic, kept_max })
    };
    let detection = |candidate: Candidate| Detection {
        name: model.name(candidate.class),
        class: candidate.class,
        confidence: candidate.score,
        bounds: letterbox.project(candidate.bounds),
    };
    Ok(kept.into_iter().map(detection).collect())
}

/// `[4 + nc, A]`. Goes class by class, so that the inner loop runs along memory and vectorises.
fn from_columns(output: OutputView<'_>, parameters: &Parameters) -> Option<Vec<Candidate>> {
    let [rows, anchors] = output.shape;
    if rows < 5 {
        return None;
    }
    let (coordinates, scores) = output.values.split_at_checked(4 * anchors)?;
    let mut best = vec![(f32::NEG_INFINITY, 0_u32); anchors];
    for (class, scores) in (0..).zip(scores.chunks_exact(anchors)) {
        for (best, &score) in best.iter_mut().zip(scores) {
            // Strict: of equal classes the first one stays.
            if score > best.0 {
                *best = (score, class);
            }
        }
    }
    let candidate = |(anchor, (score, class)): (usize, (f32, u32))| {
        let coordinate = |row: usize| coordinates.get(row * anchors + anchor).copied();
        let bounds = BoxXyxyPx::from_centre([coordinate(0)?, coordinate(1)?, coordinate(2)?, coordinate(3)?]);
        let all_finite = scores.iter().skip(anchor).step_by(anchors).all(|score| score.is_finite());
        (all_finite && bounds.is_finite()).then_some(Candidate { bounds, score, class })
    };
    let above = best.into_iter().enumerate().filter(|(_, (score, _))| *score > parameters.confidence);
    Some(above.filter_map(candidate).collect())
}

/// Layouts with one row an anchor.
fn from_rows(
    output: OutputView<'_>,
    parameters: &Parameters,
    candidate: fn(&[f32], &Parameters) -> Option<Candidate>,
) -> Option<Vec<Candidate>> {
    let columns = output.shape[1];
    if columns < 5 {
        return None;
    }
    let finite = |row: &&[f32]| row.iter().all(|value| value.is_finite());
    Some(output.values.chunks_exact(columns).filter(finite).filter_map(|row| candidate(row, parameters)).collect())
}

/// `[cx, cy, w, h, scores…]`
fn centre_row(row: &[f32], _: &Parameters) -> Option<Candidate> {
    let (&coordinates, scores) = row.split_first_chunk::<4>()?;
    let (score, class) = best_class(scores)?;
    Some(Candidate { bounds: BoxXyxyPx::from_centre(coordinates), score, class })
}

/// `[cx, cy, w, h, objectness, scores…]`: the objectness alone must pass the threshold, then its product with the score.
fn objectness_row(row: &[f32], parameters: &Parameters) -> Option<Candidate> {
    let (&[centre_x, centre_y, width, height, objectness], scores) = row.split_first_chunk::<5>()?;
    if objectness <= parameters.confidence {
        return None;
    }
    // The products are compared, not the scores: two of them may round to the same number.
    let products: Vec<f32> = scores.iter().map(|score| score * objectness).collect();
    let (score, class) = best_class(&products)?;
    Some(Candidate { bounds: BoxXyxyPx::from_centre([centre_x, centre_y, width, height]), score, class })
}

/// `[x1, y1, x2, y2, score, class]`
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the class is a small whole number in f32; the cast saturates"
)]
fn final_row(row: &[f32], _: &Parameters) -> Option<Candidate> {
    let &[x1, y1, x2, y2, score, class] = row.first_chunk::<6>()?;
    Some(Candidate { bounds: BoxXyxyPx { x1, y1, x2, y2 }, score, class: class as u32 })
}

/// The highest score and its class, the lowest class on ties.
fn best_class(scores: &[f32]) -> Option<(f32, u32)> {
    let (&first, rest) = scores.split_first()?;
    let best = rest
        .iter()
        .zip(1..)
        .fold((first, 0), |best, (&score, class)| if score > best.0 { (score, class) } else { best });
    Some(best)
}
