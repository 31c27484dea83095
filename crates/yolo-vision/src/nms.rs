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
    /// Boxes of one class with a larger intersection over union are one. f64, as torchvision compares; that of rotated
    /// boxes is compared in f32, as torch compares a tensor with a number.
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
/// `angle`: of a candidate, in radians. Source: Ultralytics' `fast_nms` with `probiou`, centres shifted by class. A box
/// that overlaps by the threshold itself stays: so does 8.4.190, which `tools/fixtures/torch_reference.py` asks.
#[expect(clippy::cast_possible_truncation, reason = "rounded, as torch rounds it")]
pub(crate) fn suppress_rotated(
    candidates: Vec<Candidate>,
    angle: impl Fn(&Candidate) -> f32,
    suppression: &Suppression,
) -> Vec<Candidate> {
    let iou = suppression.iou as f32;
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
        if !better.iter().any(|better| better.probiou(&gaussian) > iou) {
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

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// What torchvision, or for rotated boxes Ultralytics, keeps of some rows.
    #[derive(Deserialize)]
    struct Case {
        name: String,
        rows: [usize; 2],
        agnostic: bool,
        iou: f64,
        kept: Vec<usize>,
    }

    fn candidate(anchor: usize, coordinates: [f32; 4], score: f32) -> Candidate {
        Candidate { anchor, coordinates, score, class: 0 }
    }

    fn all(iou: f64) -> Suppression {
        Suppression { iou, agnostic: false, kept_max: usize::MAX }
    }

    fn anchors(kept: &[Candidate]) -> Vec<usize> {
        kept.iter().map(|candidate| candidate.anchor).collect()
    }

    #[test]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a class is a small whole number")]
    fn kept_indices_equal_those_of_torchvision() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("../fixtures/suppression.json")).unwrap();
        let values = include_bytes!("../fixtures/suppression.f32").as_chunks::<4>().0;
        let values: Vec<f32> = values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let rows = values.as_chunks::<7>().0;
        for Case { name, rows: [first, end], agnostic, iou, kept } in cases {
            let rows = &rows[first..end];
            let row = |(anchor, &[x, y, width, height, score, class, _]): (usize, &[f32; 7])| Candidate {
                class: class as u32,
                ..candidate(anchor, [x, y, width, height], score)
            };
            let candidates = rows.iter().enumerate().map(row).collect();
            let suppression = Suppression { agnostic, ..all(iou) };
            let ours = if name == "rotated" {
                suppress_rotated(candidates, |candidate| rows[candidate.anchor][6], &suppression)
            } else {
                suppress(candidates, &suppression)
            };
            assert_eq!(anchors(&ours), kept, "{name}, agnostic: {agnostic}, threshold {iou}");
        }
    }

    #[test]
    fn an_overlap_of_the_threshold_itself_suppresses_nothing() {
        let of = |boxes: [[f32; 4]; 2]| {
            boxes.into_iter().zip([(0, 0.9), (1, 0.8)]).map(|(place, (anchor, score))| candidate(anchor, place, score))
        };
        let plain = of([[1.0, 0.5, 2.0, 1.0], [2.0, 0.5, 2.0, 1.0]]);
        let third = f64::from(1.0_f32 / 3.0);
        let kept = |iou| suppress(plain.clone().collect(), &all(iou)).len();
        assert_eq!([kept(third), kept(1.0 / 3.0)], [2, 1], "compared in f64");
        let boxes = [[100.0, 100.0, 40.0, 20.0], [103.0, 100.0, 40.0, 20.0]];
        let [one, two] = boxes.map(|place| RotatedBoxPx::new(place, 0.3).gaussian());
        let overlap = one.probiou(&two);
        let kept = |iou| suppress_rotated(of(boxes).collect(), |_| 0.3, &all(iou)).len();
        let (exact, below) = (f64::from(overlap), f64::from(overlap.next_down()));
        assert_eq!([kept(exact), kept(exact - 1e-12), kept(below)], [2, 2, 1], "compared in f32");
    }

    /// The same box again and again, and a last one elsewhere, which is seen or is one too many.
    fn crowd(same: usize) -> Vec<Candidate> {
        let same = (0..same).map(|anchor| candidate(anchor, [100.0, 100.0, 50.0, 50.0], 0.9));
        same.chain([candidate(usize::MAX, [400.0, 400.0, 50.0, 50.0], 0.8)]).collect()
    }

    #[test]
    fn candidates_past_the_bound_are_not_looked_at() {
        let kept = |same| suppress(crowd(same), &all(0.7)).len();
        assert_eq!([kept(29_999), kept(30_000)], [2, 1], "as Ultralytics");
        let kept = |same| suppress_rotated(crowd(same), |_| 0.0, &all(0.7)).len();
        assert_eq!([kept(3_999), kept(4_000)], [2, 1]);
    }
}
