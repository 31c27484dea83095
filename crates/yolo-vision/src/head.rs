//! Reads a detection head's output, whatever its layout: rows above the threshold, and what they carry besides.

use crate::layout::Layout;
use crate::postprocess::OutputView;

/// An anchor that passed the confidence threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Candidate {
    /// Its number in the output.
    pub(crate) anchor: usize,
    /// Its box in pixels of the model's input, as the head writes it: centre and size, or corners where it is final.
    pub(crate) coordinates: [f32; 4],
    pub(crate) score: f32,
    pub(crate) class: u32,
}

/// One image's head output.
pub(crate) struct Head<'a> {
    values: &'a [f32],
    columns: usize,
    layout: Layout,
    /// Values of an anchor up to the extra ones.
    plain: usize,
    extra: usize,
}

impl<'a> Head<'a> {
    /// `None` if the shape is not one of `layout` with `extra` values behind box and scores.
    pub(crate) fn new(output: &OutputView<'a>, layout: Layout, extra: usize) -> Option<Self> {
        let &[rows, columns] = output.shape else { return None };
        let of_anchor = if layout == Layout::Standard { rows } else { columns };
        let plain = of_anchor.checked_sub(extra)?;
        let fits = match layout {
            Layout::Standard | Layout::Transposed => plain > 4,
            Layout::Yolov5 => plain > 5,
            Layout::EndToEnd => plain == 6,
            Layout::Probabilities => false,
        };
        let whole = rows.checked_mul(columns) == Some(output.values.len()) && !output.values.is_empty();
        (fits && whole).then_some(Self { values: output.values, columns, layout, plain, extra })
    }

    /// Anchors with a score above `confidence`, in their order. Those with a number that is not finite are dropped.
    pub(crate) fn candidates(&self, confidence: f32) -> Vec<Candidate> {
        match self.layout {
            Layout::Standard => self.scan_columns(confidence),
            Layout::Yolov5 => self.scan_rows(confidence, objectness_row),
            Layout::EndToEnd => self.scan_rows(confidence, final_row),
            Layout::Transposed | Layout::Probabilities => self.scan_rows(confidence, centre_row),
        }
    }

    /// The values behind box and scores of one anchor: mask coefficients, keypoints or angle.
    pub(crate) fn extra(&self, anchor: usize) -> Vec<f32> {
        let value = |index: usize| match self.layout {
            Layout::Standard => index * self.columns + anchor,
            _ => anchor * self.columns + index,
        };
        (self.plain..self.plain + self.extra).filter_map(|index| self.values.get(value(index)).copied()).collect()
    }

    /// `[4 + nc + extra, A]`. Goes class by class, so that the inner loop runs along memory and vectorises.
    fn scan_columns(&self, confidence: f32) -> Vec<Candidate> {
        let anchors = self.columns;
        let rows = || self.values.chunks_exact(anchors);
        let mut best = vec![(f32::NEG_INFINITY, 0_u32); anchors];
        for (class, scores) in (0..).zip(rows().take(self.plain).skip(4)) {
            for (best, &score) in best.iter_mut().zip(scores) {
                // Strict: of equal classes the first one stays.
                if score > best.0 {
                    *best = (score, class);
                }
            }
        }
        let candidate = |(anchor, (score, class)): (usize, (f32, u32))| {
            let all_finite = rows().all(|row| row.get(anchor).is_some_and(|value| value.is_finite()));
            let coordinate = |row: usize| self.values.get(row * anchors + anchor).copied();
            let coordinates = [coordinate(0)?, coordinate(1)?, coordinate(2)?, coordinate(3)?];
            all_finite.then_some(Candidate { anchor, coordinates, score, class })
        };
        best.into_iter().enumerate().filter(|(_, (score, _))| *score > confidence).filter_map(candidate).collect()
    }

    /// Layouts with one row an anchor.
    fn scan_rows(&self, confidence: f32, read: fn(&[f32], f32) -> Option<Scored>) -> Vec<Candidate> {
        let rows = self.values.chunks_exact(self.columns).enumerate();
        rows.filter(|(_, row)| row.iter().all(|value| value.is_finite()))
            .filter_map(|(anchor, row)| {
                let (coordinates, score, class) = read(row.get(..self.plain)?, confidence)?;
                // The product of two finite numbers need not be finite.
                let counts = score > confidence && score.is_finite();
                counts.then_some(Candidate { anchor, coordinates, score, class })
            })
            .collect()
    }
}

/// Box, score and class of a row.
type Scored = ([f32; 4], f32, u32);

/// `[cx, cy, w, h, scores…]`
fn centre_row(row: &[f32], _: f32) -> Option<Scored> {
    let (&coordinates, scores) = row.split_first_chunk::<4>()?;
    let (score, class) = best_class(scores)?;
    Some((coordinates, score, class))
}

/// `[cx, cy, w, h, objectness, scores…]`: the objectness alone must pass the threshold, then its product with the score.
fn objectness_row(row: &[f32], confidence: f32) -> Option<Scored> {
    let (&[centre_x, centre_y, width, height, objectness], scores) = row.split_first_chunk::<5>()?;
    if objectness <= confidence {
        return None;
    }
    // The products are compared, not the scores: two of them may round to the same number.
    let products: Vec<f32> = scores.iter().map(|score| score * objectness).collect();
    let (score, class) = best_class(&products)?;
    Some(([centre_x, centre_y, width, height], score, class))
}

/// `[…, score, class]`
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the class is a small whole number in f32; the cast saturates"
)]
fn final_row(row: &[f32], _: f32) -> Option<Scored> {
    let (&coordinates, rest) = row.split_first_chunk::<4>()?;
    let &[score, class] = rest.first_chunk::<2>()?;
    Some((coordinates, score, class as u32))
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
