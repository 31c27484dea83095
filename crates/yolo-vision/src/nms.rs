//! Non-maximum suppression: of boxes that cover the same thing, the best one stays.

use crate::boxes::BoxXyxyPx;

/// Candidates that are looked at, best first, as in Ultralytics.
const CANDIDATES_MAX: usize = 30_000;
/// Distance between the classes' planes in pixels. Added to the coordinates, so that boxes of different classes never
/// overlap; the rounding that the addition causes is part of the result.
const CLASS_OFFSET_PX: f32 = 7680.0;

/// A box that passed the confidence threshold, in pixels of the model's input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) bounds: BoxXyxyPx,
    pub(crate) score: f32,
    pub(crate) class: u32,
}

/// How to suppress.
pub(crate) struct Suppression {
    /// Boxes of one class with a larger intersection over union are one. f64, as torchvision compares.
    pub(crate) iou: f64,
    /// Boxes of different classes suppress each other too.
    pub(crate) agnostic: bool,
    /// Stop after so many.
    pub(crate) kept_max: usize,
}

/// Greedy suppression in f32, best score first, equal scores in the order given.
///
/// Source: `torchvision.ops.nms` on boxes shifted by class, as Ultralytics calls it. Comparing with kept boxes only
/// gives the same result, since a suppressed box suppresses nothing.
pub(crate) fn suppress(mut candidates: Vec<Candidate>, suppression: &Suppression) -> Vec<Candidate> {
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    candidates.truncate(CANDIDATES_MAX);
    let mut kept: Vec<Candidate> = Vec::new();
    let mut kept_shifted: Vec<BoxXyxyPx> = Vec::new();
    for candidate in candidates {
        if kept.len() >= suppression.kept_max {
            break;
        }
        let shifted = candidate.bounds.shifted(plane_px(candidate.class, suppression.agnostic));
        if kept_shifted.iter().all(|better| f64::from(better.iou(shifted)) <= suppression.iou) {
            kept.push(candidate);
            kept_shifted.push(shifted);
        }
    }
    kept
}

#[expect(clippy::cast_precision_loss, reason = "class numbers are far below 2^24")]
fn plane_px(class: u32, agnostic: bool) -> f32 {
    if agnostic { 0.0 } else { class as f32 * CLASS_OFFSET_PX }
}
