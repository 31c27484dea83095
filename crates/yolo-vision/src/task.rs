//! What a model is for.

/// Most values that an anchor may carry behind box and scores; the largest export we know has 3 * 133.
pub(crate) const EXTRA_MAX: usize = 4096;

/// Task of a model, as Ultralytics names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Task {
    /// Boxes.
    Detect,
    /// Boxes with masks.
    Segment,
    /// Boxes with keypoints.
    Pose,
    /// Rotated boxes.
    Obb,
    /// A class for the whole picture.
    Classify,
}

impl Task {
    /// Every task.
    pub const ALL: [Self; 5] = [Self::Detect, Self::Segment, Self::Pose, Self::Obb, Self::Classify];

    /// The name in metadata, answers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Detect => "detect",
            Self::Segment => "segment",
            Self::Pose => "pose",
            Self::Obb => "obb",
            Self::Classify => "classify",
        }
    }

    /// The task of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|task| task.as_str() == name)
    }

    /// The outputs that a model of this task must have, for messages.
    pub(crate) const fn expected_outputs(self) -> &'static str {
        match self {
            Self::Detect => {
                "one output: [batch,4+classes,anchors], [batch,anchors,4+classes], [batch,anchors,5+classes] or [batch,N,6]"
            }
            Self::Segment => {
                "prototypes [batch,coefficients,height,width] and one of [batch,4+classes+coefficients,anchors], its \
                transpose, [batch,anchors,5+classes+coefficients] or [batch,N,6+coefficients]"
            }
            Self::Pose => {
                "the metadata kpt_shape [K,D] with D 2 or 3, and one output: [batch,4+classes+K*D,anchors], its transpose \
                or [batch,N,6+K*D]"
            }
            Self::Obb => "one output: [batch,4+classes+1,anchors], its transpose or [batch,N,7]",
            Self::Classify => "one output [batch,classes]",
        }
    }
}

/// What a head says of an object besides box and classes: the last values of its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extra {
    /// Nothing.
    None,
    /// Coefficients of the mask prototypes, so many.
    Coefficients(usize),
    /// `points` keypoints of `values` numbers: x, y and, if 3, the visibility.
    Keypoints { points: usize, values: usize },
    /// The angle in radians.
    Angle,
}

impl Extra {
    /// Number of values in a row.
    pub(crate) const fn len(self) -> usize {
        match self {
            Self::None => 0,
            Self::Coefficients(count) => count,
            Self::Keypoints { points, values } => points * values,
            Self::Angle => 1,
        }
    }
}
