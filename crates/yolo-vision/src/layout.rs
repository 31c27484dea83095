//! How a detection head lays its numbers out. Decided by shape and metadata, never by a model's name.

use crate::picture::Size;

/// Rows that an end-to-end head has at most; ordinary heads have thousands of anchors.
const END_TO_END_ROWS_MAX: usize = 1000;
/// Strides of the three detection scales of every YOLO head since v3.
const STRIDES_PX: [usize; 3] = [8, 16, 32];
/// Anchor boxes a cell in the original YOLOv5.
const YOLOV5_ANCHORS_PER_CELL: usize = 3;

/// Layout of one image's output; `nc` is the number of classes, `A` of anchors, `extra` the number of mask coefficients,
/// keypoint values or angles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[4 + nc + extra, A]`: centre x, centre y, width, height, class scores. Ultralytics v5u, 8 and later.
    Standard,
    /// `[A, 4 + nc + extra]`: the same, transposed.
    Transposed,
    /// `[A, 5 + nc + extra]`: objectness at 4, class scores to be multiplied by it. The original YOLOv5.
    Yolov5,
    /// `[N, 6 + extra]`: x1, y1, x2, y2, score, class, best first, already suppressed. Ultralytics `nms=True`, v10, 26.
    /// Rotated boxes keep centre and size.
    EndToEnd,
    /// `[nc]`: the classes' probabilities. Classification.
    Probabilities,
}

/// What is known when a layout is decided.
pub(crate) struct Evidence {
    /// Rows and columns of one image's output; `None` where dynamic.
    pub(crate) rows: Option<usize>,
    pub(crate) columns: Option<usize>,
    /// Values of an anchor behind box and scores.
    pub(crate) extra: usize,
    /// Number of class names in the metadata.
    pub(crate) classes: Option<usize>,
    /// The metadata says that suppression happened inside.
    pub(crate) suppressed: bool,
    /// The model's input.
    pub(crate) input: Size,
}

/// Decides the layout and the number of classes it implies; `None` if the shape is of no layout that we know.
pub(crate) fn decide(evidence: &Evidence) -> Option<(Layout, Option<usize>)> {
    let &Evidence { rows, columns, extra, classes, .. } = evidence;
    if is_end_to_end(evidence) {
        return (columns == Some(6 + extra)).then_some((Layout::EndToEnd, classes));
    }
    let Some(classes) = classes else { return decide_without_names(evidence) };
    let (plain, with_objectness) = (4 + classes + extra, 5 + classes + extra);
    let layout = if rows == Some(plain) {
        Layout::Standard
    } else if columns == Some(with_objectness) && rows.is_none_or(|anchors| anchors > with_objectness) {
        Layout::Yolov5
    } else if columns == Some(plain) {
        Layout::Transposed
    } else {
        return None;
    };
    Some((layout, Some(classes)))
}

/// Without names the number of anchors tells the layouts apart: the original YOLOv5 has three a cell.
fn decide_without_names(evidence: &Evidence) -> Option<(Layout, Option<usize>)> {
    let (rows, columns, extra) = (evidence.rows?, evidence.columns?, evidence.extra);
    let (layout, classes) = if rows < columns {
        (Layout::Standard, rows.checked_sub(4 + extra)?)
    } else if rows == cells(evidence.input) {
        (Layout::Transposed, columns.checked_sub(4 + extra)?)
    } else {
        (Layout::Yolov5, columns.checked_sub(5 + extra)?)
    };
    (classes > 0).then_some((layout, Some(classes)))
}

fn is_end_to_end(evidence: &Evidence) -> bool {
    let &Evidence { rows, columns, extra, classes, suppressed, input } = evidence;
    let one_class_yolov5 = classes == Some(1) && rows == Some(YOLOV5_ANCHORS_PER_CELL * cells(input));
    let two_class_transposed = classes == Some(2) && rows == Some(cells(input));
    let looks_like = columns == Some(6 + extra)
        && rows.is_some_and(|rows| rows <= END_TO_END_ROWS_MAX)
        && !one_class_yolov5
        && !two_class_transposed;
    suppressed || looks_like
}

/// Cells of the three scales together: 8400 at 640 x 640.
fn cells(input: Size) -> usize {
    STRIDES_PX.iter().map(|stride_px| (input.width() / stride_px) * (input.height() / stride_px)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout_of(shape: [usize; 2], classes: impl Into<Option<usize>>, side_px: u32) -> Option<Layout> {
        layout_with(shape, 0, classes, side_px)
    }

    fn layout_with(shape: [usize; 2], extra: usize, classes: impl Into<Option<usize>>, side_px: u32) -> Option<Layout> {
        let evidence = Evidence {
            rows: Some(shape[0]),
            columns: Some(shape[1]),
            extra,
            classes: classes.into(),
            suppressed: false,
            input: Size::new(side_px, side_px),
        };
        decide(&evidence).map(|(layout, _)| layout)
    }

    #[test]
    fn the_shapes_of_the_known_exports_are_told_apart() {
        assert_eq!(layout_of([84, 8400], 80, 640), Some(Layout::Standard));
        assert_eq!(layout_of([8400, 84], 80, 640), Some(Layout::Transposed));
        assert_eq!(layout_of([25200, 85], 80, 640), Some(Layout::Yolov5));
        assert_eq!(layout_of([300, 6], 80, 640), Some(Layout::EndToEnd));
        assert_eq!(layout_of([116, 8400], 80, 640), None, "32 mask coefficients more");
    }

    #[test]
    fn masks_keypoints_and_angles_widen_every_layout() {
        assert_eq!(layout_with([116, 8400], 32, 80, 640), Some(Layout::Standard));
        assert_eq!(layout_with([8400, 116], 32, 80, 640), Some(Layout::Transposed));
        assert_eq!(layout_with([25200, 117], 32, 80, 640), Some(Layout::Yolov5));
        assert_eq!(layout_with([300, 38], 32, 80, 640), Some(Layout::EndToEnd));
        assert_eq!(layout_with([56, 8400], 51, None, 640), Some(Layout::Standard), "one class, 17 keypoints");
        assert_eq!(layout_with([300, 7], 1, 15, 640), Some(Layout::EndToEnd), "an angle");
    }

    #[test]
    fn six_columns_are_not_always_end_to_end() {
        assert_eq!(layout_of([252, 6], 1, 64), Some(Layout::Yolov5));
        assert_eq!(layout_of([84, 6], 2, 64), Some(Layout::Transposed));
        assert_eq!(layout_of([300, 6], 2, 64), Some(Layout::EndToEnd));
    }

    #[test]
    fn without_names_the_anchor_count_decides() {
        assert_eq!(layout_of([84, 8400], None, 640), Some(Layout::Standard));
        assert_eq!(layout_of([8400, 84], None, 640), Some(Layout::Transposed));
        assert_eq!(layout_of([25200, 85], None, 640), Some(Layout::Yolov5));
    }
}
