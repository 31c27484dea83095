//! Ultralytics' metadata properties: strings that hold Python literals.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::literal::{self, Literal};
use crate::metadata::ModelError;
use crate::task::{EXTRA_MAX, Extra, Task};

/// Largest stride of every YOLO head since v3.
const STRIDE_PX_DEFAULT: u32 = 32;

/// The metadata, read; what is missing or malformed is `None`, as if it were not there.
pub(crate) struct Properties {
    pub(crate) task: Option<Task>,
    /// Height and width.
    pub(crate) size: [Option<u32>; 2],
    pub(crate) stride_px: u32,
    pub(crate) names: Option<Vec<Arc<str>>>,
    pub(crate) keypoints: Option<Extra>,
    /// Suppression happens inside the model.
    pub(crate) suppressed: bool,
}

impl Properties {
    /// Reads what we use of it.
    ///
    /// # Errors
    /// [`ModelError::Task`] for a task that we do not know.
    pub(crate) fn parse(metadata: &BTreeMap<String, String>) -> Result<Self, ModelError> {
        let unknown = |task: &String| ModelError::Task { task: task.clone() };
        let task = metadata.get("task").map(|task| Task::named(task).ok_or_else(|| unknown(task))).transpose()?;
        let literal = |key: &str| metadata.get(key).and_then(|text| literal::parse(text));
        let stride_px = literal("stride").and_then(|value| u32::try_from(value.as_index()?).ok());
        Ok(Self {
            task,
            size: literal("imgsz").and_then(|value| image_size(&value)).unwrap_or([None; 2]),
            stride_px: stride_px.filter(|&px| px > 0).unwrap_or(STRIDE_PX_DEFAULT),
            names: literal("names").and_then(names_of),
            keypoints: literal("kpt_shape").and_then(|value| keypoint_shape(&value)),
            suppressed: literal("end2end") == Some(Literal::Bool(true))
                || literal("args").is_some_and(|args| suppresses(&args)),
        })
    }
}

/// `kpt_shape`: `[points, values]`, values 2 or 3.
fn keypoint_shape(value: &Literal) -> Option<Extra> {
    let Literal::List(shape) = value else { return None };
    let [points, values] = shape.as_slice() else { return None };
    let (points, values) = (points.as_index()?, values.as_index()?);
    let plausible = (1..=EXTRA_MAX).contains(&points) && (2..=3).contains(&values);
    plausible.then_some(Extra::Keypoints { points, values })
}

/// `imgsz`: `[height, width]`, or one number for both.
fn image_size(value: &Literal) -> Option<[Option<u32>; 2]> {
    let side = |value: &Literal| value.as_index().and_then(|px| u32::try_from(px).ok()).filter(|&px| px > 0);
    match value {
        Literal::List(sides) => match sides.as_slice() {
            [height, width] => Some([side(height), side(width)]),
            _ => None,
        },
        number => Some([side(number); 2]),
    }
}

/// `names`: a dict from index to name, or a list. `None` unless every class from 0 on has a name.
fn names_of(value: Literal) -> Option<Vec<Arc<str>>> {
    let entries = match value {
        Literal::Dict(entries) => entries,
        Literal::List(items) => (0..).map(Literal::Int).zip(items).collect(),
        _ => return None,
    };
    let mut indexed = BTreeMap::new();
    for (key, name) in entries {
        let Literal::Text(name) = name else { return None };
        indexed.insert(key.as_index()?, Arc::from(name));
    }
    let dense = indexed.keys().copied().eq(0..indexed.len());
    (dense && !indexed.is_empty()).then(|| indexed.into_values().collect())
}

/// Whether the export arguments put the suppression into the model.
fn suppresses(arguments: &Literal) -> bool {
    let wanted = (Literal::Text("nms".to_owned()), Literal::Bool(true));
    matches!(arguments, Literal::Dict(entries) if entries.contains(&wanted))
}
