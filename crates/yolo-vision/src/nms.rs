//! Non-maximum suppression: of boxes that cover the same thing, the best one stays.

use crate::boxes::BoxXyxyPx;
use crate::head::Candidate;
use crate::rotated::{Gaussian, RotatedBoxPx};

/// Candidates that are looked at, best first, as in Ultralytics.
const CANDIDATES_MAX: usize = 30_000;
/// Rotated candidates that are looked at. Ours: each is compared with every better one, not with kept ones only.
const ROTATED_CANDIDATES_MAX: usize = 4_000;
/// Distance between the classes' planes in pixels. Added to the coordinates, so that boxes of different classes never
/// overlap; the rounding that the addition causes is part of the result.
const CLASS_OFFSET_PX: f32 = 7680.0;

/// How to suppress.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Suppression {
    /// Boxes of one class with a larger intersection over union are one. f64, as torchvision compares.
    pub(crate) iou: f64,
    /// Boxes of different classes suppress each other too.
    pub(crate) agnostic: bool,
    /// Stop after so many.
    pub(crate) kept_max: usize,
}

impl Suppression {
    #[expect(clippy::cast_precision_loss, reason = "class numbers are far below 2^24")]
    fn plane_px(&self, class: u32) -> f32 {
        if self.agnostic { 0.0 } else { class as f32 * CLASS_OFFSET_PX }
    }
}

/// Greedy suppression in f32 of boxes by centre and size, best score first, equal scores in the order given.
///
/// Source: `torchvision.ops.nms` on boxes shifted by class, as Ultralytics calls it. Comparing with kept boxes only
/// gives the same result, since a suppressed box suppresses nothing.
pub(crate) fn suppress(candidates: Vec<Candidate>, suppression: &Suppression) -> Vec<Candidate> {
    let mut kept: Vec<Candidate> = Vec::new();
    let mut kept_shifted: Vec<BoxXyxyPx> = Vec::new();
    for candidate in best_first(candidates, CANDIDATES_MAX) {
        if kept.len() >= suppression.kept_max {
            break;
        }
        let bounds = BoxXyxyPx::from_centre(candidate.coordinates);
        let shifted = bounds.shifted(suppression.plane_px(candidate.class));
        // Two boxes without area overlap by 0 / 0, which is not more than anything: both stay.
        if !kept_shifted.iter().any(|better| f64::from(better.iou(shifted)) > suppression.iou) {
            kept.push(candidate);
            kept_shifted.push(shifted);
        }
    }
    kept
}

/// Suppression of rotated boxes: a box goes if *any* better one overlaps it, even one that goes itself.
///
/// `angle`: of a candidate, in radians. Source: Ultralytics' `fast_nms` with `probiou`, centres shifted by class.
pub(crate) fn suppress_rotated(
    candidates: Vec<Candidate>,
    angle: impl Fn(&Candidate) -> f32,
    suppression: &Suppression,
) -> Vec<Candidate> {
    let mut kept: Vec<Candidate> = Vec::new();
    let mut better: Vec<Gaussian> = Vec::new();
    for candidate in best_first(candidates, ROTATED_CANDIDATES_MAX) {
        if kept.len() >= suppression.kept_max {
            break;
        }
        let plane_px = suppression.plane_px(candidate.class);
        let [centre_x, centre_y, width, height] = candidate.coordinates;
        let shifted = [centre_x + plane_px, centre_y + plane_px, width, height];
        let gaussian = RotatedBoxPx::new(shifted, angle(&candidate)).gaussian();
        if !better.iter().any(|better| f64::from(better.probiou(&gaussian)) > suppression.iou) {
            kept.push(candidate);
        }
        better.push(gaussian);
    }
    kept
}

fn best_first(mut candidates: Vec<Candidate>, count_max: usize) -> Vec<Candidate> {
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    candidates.truncate(count_max);
    candidates
}
