//! What an ONNX model says about itself: shapes and Ultralytics' metadata properties.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::layout::{self, Evidence, Layout};
use crate::picture::Size;
use crate::properties::Properties;
use crate::task::{EXTRA_MAX, Extra, Task};

/// Input side where neither shape nor metadata names one: Ultralytics' default.
const SIDE_PX_DEFAULT: u32 = 640;

/// Name and dimensions of a model's input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorShape {
    name: String,
    dims: Vec<Option<usize>>,
}

impl TensorShape {
    /// Takes dimensions as ONNX Runtime gives them: a negative one is dynamic.
    pub fn new(name: impl Into<String>, dims: &[i64]) -> Self {
        Self { name: name.into(), dims: dims.iter().map(|&dim| usize::try_from(dim).ok()).collect() }
    }

    fn text(&self) -> String {
        let dims: Vec<_> = self.dims.iter().map(|dim| dim.map_or("?".to_owned(), |dim| dim.to_string())).collect();
        format!("{}[{}]", self.name, dims.join(","))
    }
}

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ModelError {
    /// A task that we do not know.
    #[error("the model's task is \"{task}\"; this server runs detect, segment, pose, obb and classify")]
    Task {
        /// As the metadata says.
        task: String,
    },
    /// The input is not one picture tensor.
    #[error("the model's inputs are {shapes}; expected one input [batch,3,height,width]")]
    Input {
        /// All inputs.
        shapes: String,
    },
    /// No known layout.
    #[error("the model's outputs are {shapes} with {classes}; task {} needs {}", .task.as_str(), .task.expected_outputs())]
    Output {
        /// As the metadata says, or the shapes.
        task: Task,
        /// All outputs.
        shapes: String,
        /// Number of class names, in words.
        classes: String,
    },
    /// The asked input size does not fit the model.
    #[error("the model cannot run at {asked}: {reason}")]
    ImageSize {
        /// What was asked.
        asked: Size,
        /// What to ask instead.
        reason: String,
    },
}

impl ModelError {
    /// Closed set; the operator maps it to a condition.
    pub const fn category(&self) -> &'static str {
        "model_unsupported"
    }
}

/// Everything that pre- and postprocessing need to know about a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    task: Task,
    input_name: String,
    output_names: Vec<String>,
    output_dims: Vec<Vec<Option<usize>>>,
    batch_fixed: Option<usize>,
    size_fixed: bool,
    size: Size,
    stride_px: u32,
    classes: usize,
    names: Vec<Arc<str>>,
    layout: Layout,
    extra: Extra,
}

impl ModelInfo {
    /// Reads a model's description.
    ///
    /// `metadata`: the ONNX `metadata_props` (Ultralytics' `stride`, `task`, `imgsz`, `names`, `args`, `end2end`,
    /// `kpt_shape`; all optional). A static input shape wins over `imgsz`. Without `task` the shapes tell.
    ///
    /// # Errors
    /// [`ModelError`] if the task is unknown, or the shapes are of no layout that we know.
    pub fn parse(
        metadata: &BTreeMap<String, String>,
        inputs: &[TensorShape],
        outputs: &[TensorShape],
    ) -> Result<Self, ModelError> {
        let [input] = inputs else { return Err(input_error(inputs)) };
        let &[batch_fixed, Some(3), height, width] = input.dims.as_slice() else { return Err(input_error(inputs)) };
        let properties = Properties::parse(metadata)?;
        let [height_hint, width_hint] = properties.size;
        let pixels = |fixed: Option<usize>, hint: Option<u32>| {
            fixed.and_then(|px| u32::try_from(px).ok()).or(hint).unwrap_or(SIDE_PX_DEFAULT)
        };
        let size = Size::new(pixels(width, width_hint), pixels(height, height_hint));
        if size.is_empty() {
            return Err(input_error(inputs));
        }
        let task = properties.task.unwrap_or_else(|| task_of_shapes(outputs, properties.keypoints.is_some()));
        let head = find_head(task, outputs, &properties, size).ok_or_else(|| ModelError::Output {
            task,
            shapes: joined(outputs),
            classes: properties
                .names
                .as_ref()
                .map_or_else(|| "no class names".to_owned(), |names| format!("{} class names", names.len())),
        })?;
        Ok(Self {
            task,
            input_name: input.name.clone(),
            output_names: head.outputs.iter().map(|output| output.name.clone()).collect(),
            output_dims: head.outputs.iter().map(|output| output.dims.clone()).collect(),
            batch_fixed,
            size_fixed: height.is_some() || width.is_some(),
            size,
            stride_px: properties.stride_px,
            classes: head.classes.unwrap_or_default(),
            names: properties.names.unwrap_or_default(),
            layout: head.layout,
            extra: head.extra,
        })
    }

    /// The same model at another input size.
    ///
    /// # Errors
    /// [`ModelError::ImageSize`] if its shape is static and different, or a side is no multiple of the stride.
    pub fn with_size(mut self, size: Size) -> Result<Self, ModelError> {
        if self.size_fixed && size != self.size {
            let reason = format!("its input is static, {}", self.size);
            return Err(ModelError::ImageSize { asked: size, reason });
        }
        let whole_strides = |side_px: u32| side_px.is_multiple_of(self.stride_px);
        if size.is_empty() || !whole_strides(size.width_px) || !whole_strides(size.height_px) {
            let reason = format!("each side must be a multiple of its stride, {} px", self.stride_px);
            return Err(ModelError::ImageSize { asked: size, reason });
        }
        self.size = size;
        Ok(self)
    }

    /// What the model is for.
    pub const fn task(&self) -> Task {
        self.task
    }

    /// Name of the picture input, mostly `images`.
    pub fn input_name(&self) -> &str {
        &self.input_name
    }

    /// Names of the outputs that [`crate::postprocess`] takes, in its order: the head, then mask prototypes.
    pub fn output_names(&self) -> &[String] {
        &self.output_names
    }

    /// Dimensions of the same outputs, the batch first; `None` is any size.
    pub fn output_dims(&self) -> &[Vec<Option<usize>>] {
        &self.output_dims
    }

    /// Number of keypoints of a pose, and of the values of each: x, y and, if 3, the visibility.
    pub const fn keypoints(&self) -> Option<[usize; 2]> {
        match self.extra {
            Extra::Keypoints { points, values } => Some([points, values]),
            Extra::None | Extra::Coefficients(_) | Extra::Angle => None,
        }
    }

    /// The one batch size that the model accepts; `None` if its batch is dynamic.
    pub const fn batch_fixed(&self) -> Option<usize> {
        self.batch_fixed
    }

    /// Size of the model's input.
    pub const fn size(&self) -> Size {
        self.size
    }

    /// Number of classes; 0 if neither names nor shape tell.
    pub const fn classes(&self) -> usize {
        self.classes
    }

    /// Layout of its output.
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// What a row of the output holds behind box and scores.
    pub(crate) const fn extra(&self) -> Extra {
        self.extra
    }

    /// A class's name; `class7` if the model gives none.
    pub fn name(&self, class: u32) -> Arc<str> {
        let index = usize::try_from(class).unwrap_or(usize::MAX);
        self.names.get(index).map_or_else(|| unnamed(index), Arc::clone)
    }
}

fn unnamed(class: usize) -> Arc<str> {
    format!("class{class}").into()
}

fn joined(shapes: &[TensorShape]) -> String {
    shapes.iter().map(TensorShape::text).collect::<Vec<_>>().join(" ")
}

fn input_error(inputs: &[TensorShape]) -> ModelError {
    ModelError::Input { shapes: joined(inputs) }
}

/// The task where the metadata names none. Rotated boxes cannot be told from one class more.
fn task_of_shapes(outputs: &[TensorShape], keypoints: bool) -> Task {
    let ranks: Vec<_> = outputs.iter().map(|output| output.dims.len()).collect();
    match ranks.as_slice() {
        [2] => Task::Classify,
        [3, 4] | [4, 3] => Task::Segment,
        _ if keypoints => Task::Pose,
        _ => Task::Detect,
    }
}

/// The outputs that matter and how the first one is laid out.
struct Head<'a> {
    outputs: Vec<&'a TensorShape>,
    layout: Layout,
    classes: Option<usize>,
    extra: Extra,
}

fn find_head<'a>(task: Task, outputs: &'a [TensorShape], properties: &Properties, input: Size) -> Option<Head<'a>> {
    let names = properties.names.as_ref().map(Vec::len);
    let of_rank = |rank: usize| outputs.iter().find(|output| output.dims.len() == rank);
    let (head, prototypes, extra) = match (task, outputs.len()) {
        (Task::Classify, 1) => {
            let &[_, probabilities] = of_rank(2)?.dims.as_slice() else { return None };
            // Fewer probabilities than names, or more, would shift every name.
            let agree = names.is_none() || probabilities.is_none() || probabilities == names;
            let (outputs, classes) = (vec![of_rank(2)?], names.or(probabilities));
            return agree.then_some(Head { outputs, layout: Layout::Probabilities, classes, extra: Extra::None });
        }
        (Task::Segment, 2) => {
            let prototypes = of_rank(4)?;
            let &[_, Some(coefficients), _, _] = prototypes.dims.as_slice() else { return None };
            (of_rank(3)?, Some(prototypes), Extra::Coefficients(coefficients))
        }
        (Task::Detect, 1) => (of_rank(3)?, None, Extra::None),
        (Task::Pose, 1) => (of_rank(3)?, None, properties.keypoints?),
        (Task::Obb, 1) => (of_rank(3)?, None, Extra::Angle),
        _ => return None,
    };
    let &[_, rows, columns] = head.dims.as_slice() else { return None };
    let suppressed = properties.suppressed;
    let evidence = Evidence { rows, columns, extra: extra.len(), classes: names, suppressed, input };
    let (layout, classes) = layout::decide(&evidence).filter(|_| extra.len() <= EXTRA_MAX)?;
    let outputs = std::iter::once(head).chain(prototypes).collect();
    Some(Head { outputs, layout, classes, extra })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn parse(pairs: &[(&str, &str)], input: &[i64], output: &[i64]) -> Result<ModelInfo, ModelError> {
        let inputs = [TensorShape::new("images", input)];
        let outputs = [TensorShape::new("output0", output)];
        ModelInfo::parse(&metadata(pairs), &inputs, &outputs)
    }

    #[test]
    fn a_dynamic_export_takes_its_size_from_the_metadata() {
        let pairs = [("imgsz", "[384, 640]"), ("names", "{0: 'cat', 1: 'dog'}"), ("stride", "32"), ("task", "detect")];
        let model = parse(&pairs, &[-1, 3, -1, -1], &[-1, 6, -1]).expect("a detection model");
        assert_eq!(model.size(), Size::new(640, 384));
        assert_eq!(model.batch_fixed(), None);
        assert_eq!(model.layout(), Layout::Standard);
        assert_eq!((&*model.name(1), &*model.name(7)), ("dog", "class7"));
        assert_eq!(model.with_size(Size::new(320, 320)).expect("any multiple of 32").size(), Size::new(320, 320));
    }

    #[test]
    fn a_static_shape_wins_over_the_metadata_and_cannot_be_changed() {
        let model = parse(&[("imgsz", "[640, 640]")], &[4, 3, 64, 64], &[4, 6, 84]).expect("a detection model");
        assert_eq!((model.size(), model.batch_fixed(), model.classes()), (Size::new(64, 64), Some(4), 2));
        let refused = model.with_size(Size::new(640, 640)).expect_err("static");
        assert_eq!(refused.to_string(), "the model cannot run at 640x640: its input is static, 64x64");
    }

    #[test]
    fn suppression_inside_the_model_is_told_by_the_arguments() {
        let pairs = [("names", "['a', 'b']"), ("args", "{'batch': 1, 'nms': True}"), ("end2end", "False")];
        assert_eq!(parse(&pairs, &[1, 3, 64, 64], &[1, -1, 6]).map(|model| model.layout()), Ok(Layout::EndToEnd));
    }

    #[test]
    fn each_task_is_told_by_the_metadata_or_by_the_shapes() {
        let tensor = |dims: &[i64]| TensorShape::new(format!("rank{}", dims.len()), dims);
        let names = ("names", "['a', 'b']");
        let keypoints = ("kpt_shape", "[17, 3]");
        for (pairs, outputs, task, layout) in [
            (vec![names], vec![tensor(&[1, 2])], Task::Classify, Layout::Probabilities),
            (vec![], vec![tensor(&[-1, 1000])], Task::Classify, Layout::Probabilities),
            (vec![names], vec![tensor(&[1, 38, 84]), tensor(&[1, 32, 16, 16])], Task::Segment, Layout::Standard),
            (vec![names], vec![tensor(&[1, 32, 16, 16]), tensor(&[1, 252, 39])], Task::Segment, Layout::Yolov5),
            (vec![names, keypoints], vec![tensor(&[1, 57, 84])], Task::Pose, Layout::Standard),
            (vec![names, keypoints, ("end2end", "True")], vec![tensor(&[1, 300, 57])], Task::Pose, Layout::EndToEnd),
            (vec![names, ("task", "obb")], vec![tensor(&[1, 7, 84])], Task::Obb, Layout::Standard),
            (vec![names, ("task", "obb")], vec![tensor(&[1, 300, 7])], Task::Obb, Layout::EndToEnd),
        ] {
            let inputs = [TensorShape::new("images", &[1, 3, 64, 64])];
            let model = ModelInfo::parse(&metadata(&pairs), &inputs, &outputs).expect("a known export");
            assert_eq!((model.task(), model.layout()), (task, layout), "{outputs:?}");
            assert_eq!(model.output_names().len(), outputs.len());
            assert_ne!(model.output_names().first().map(String::as_str), Some("rank4"), "the head comes first");
        }
    }

    #[test]
    fn unknown_tasks_and_shapes_are_refused_with_a_sentence() {
        let refused = parse(&[("task", "depth")], &[1, 3, 64, 64], &[1, 6, 84]).expect_err("no task of ours");
        assert!(refused.to_string().contains("depth"), "{refused}");
        for task in Task::ALL {
            let refused = parse(&[("task", task.as_str())], &[1, 3, 64, 64], &[1, 3, 84, 84]).expect_err("no head");
            assert!(refused.to_string().contains(task.as_str()), "{refused}");
        }
        let refused = parse(&[("task", "pose")], &[1, 3, 64, 64], &[1, 56, 84]).expect_err("how many keypoints?");
        assert!(refused.to_string().contains("kpt_shape"), "{refused}");
        let refused = parse(&[("names", "['a']")], &[1, 3, 64, 64], &[1, 9, 84]).expect_err("no layout");
        assert!(refused.to_string().contains("output0[1,9,84] with 1 class names"), "{refused}");
        assert!(matches!(parse(&[], &[1, 1, 64, 64], &[1, 6, 84]), Err(ModelError::Input { .. })));
    }
}
