//! What an ONNX model says about itself: shapes and Ultralytics' metadata properties.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::layout::{self, Evidence, Layout};
use crate::literal::{self, Literal};
use crate::picture::Size;

/// Input side where neither shape nor metadata names one: Ultralytics' default.
const SIDE_PX_DEFAULT: u32 = 640;
/// Largest stride of every YOLO head since v3.
const STRIDE_PX_DEFAULT: u32 = 32;
/// The one task that this version serves.
const TASK: &str = "detect";

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
    /// Another task than detection.
    #[error("the model's task is \"{task}\"; this server runs task \"detect\" only: export a detection model")]
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
    #[error(
        "the model's outputs are {shapes} with {classes}; expected one detection output: \
        [batch,4+classes,anchors], [batch,anchors,4+classes], [batch,anchors,5+classes] or [batch,N,6]"
    )]
    Output {
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

/// Everything that pre- and postprocessing need to know about a detection model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    input_name: String,
    output_name: String,
    batch_fixed: Option<usize>,
    size_fixed: bool,
    size: Size,
    stride_px: u32,
    classes: usize,
    names: Vec<Arc<str>>,
    layout: Layout,
}

impl ModelInfo {
    /// Reads a model's description.
    ///
    /// `metadata`: the ONNX `metadata_props` (Ultralytics' `stride`, `task`, `imgsz`, `names`, `args`, `end2end`; all
    /// optional). A static input shape wins over `imgsz`.
    ///
    /// # Errors
    /// [`ModelError`] if the task is not detection, or the shapes are of no layout that we know.
    pub fn parse(
        metadata: &BTreeMap<String, String>,
        inputs: &[TensorShape],
        outputs: &[TensorShape],
    ) -> Result<Self, ModelError> {
        if let Some(task) = metadata.get("task").filter(|task| *task != TASK) {
            return Err(ModelError::Task { task: task.clone() });
        }
        let [input] = inputs else { return Err(input_error(inputs)) };
        let &[batch_fixed, Some(3), height, width] = input.dims.as_slice() else { return Err(input_error(inputs)) };
        let literal = |key: &str| metadata.get(key).and_then(|text| literal::parse(text));
        let [height_hint, width_hint] = literal("imgsz").and_then(|value| image_size(&value)).unwrap_or([None; 2]);
        let pixels = |fixed: Option<usize>, hint: Option<u32>| {
            fixed.and_then(|px| u32::try_from(px).ok()).or(hint).unwrap_or(SIDE_PX_DEFAULT)
        };
        let size = Size::new(pixels(width, width_hint), pixels(height, height_hint));
        if size.is_empty() {
            return Err(input_error(inputs));
        }
        let names = literal("names").and_then(names_of);
        let (output, layout, classes) = detection_output(outputs, names.as_ref().map(Vec::len), size, || {
            literal("end2end") == Some(Literal::Bool(true)) || literal("args").is_some_and(|args| suppresses(&args))
        })?;
        let stride_px = literal("stride").and_then(|value| u32::try_from(value.as_index()?).ok());
        Ok(Self {
            input_name: input.name.clone(),
            output_name: output.name.clone(),
            batch_fixed,
            size_fixed: height.is_some() || width.is_some(),
            size,
            stride_px: stride_px.filter(|&px| px > 0).unwrap_or(STRIDE_PX_DEFAULT),
            classes: classes.unwrap_or_default(),
            names: names.unwrap_or_default(),
            layout,
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

    /// Name of the picture input, mostly `images`.
    pub fn input_name(&self) -> &str {
        &self.input_name
    }

    /// Name of the detection output, mostly `output0`.
    pub fn output_name(&self) -> &str {
        &self.output_name
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

/// Picks the one output and its layout.
fn detection_output(
    outputs: &[TensorShape],
    classes: Option<usize>,
    input: Size,
    suppressed: impl Fn() -> bool,
) -> Result<(&TensorShape, Layout, Option<usize>), ModelError> {
    let refused = || ModelError::Output {
        shapes: joined(outputs),
        classes: classes.map_or_else(|| "no class names".to_owned(), |count| format!("{count} class names")),
    };
    let [output] = outputs else { return Err(refused()) };
    let &[_, rows, columns] = output.dims.as_slice() else { return Err(refused()) };
    let evidence = Evidence { rows, columns, classes, suppressed: suppressed(), input };
    let (layout, classes) = layout::decide(&evidence).ok_or_else(refused)?;
    Ok((output, layout, classes))
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
    fn other_tasks_and_shapes_are_refused_with_a_sentence() {
        for task in ["segment", "pose", "obb", "classify"] {
            let refused = parse(&[("task", task)], &[1, 3, 64, 64], &[1, 6, 84]).expect_err("not a detection model");
            assert!(refused.to_string().contains(task), "{refused}");
        }
        let refused = parse(&[("names", "['a']")], &[1, 3, 64, 64], &[1, 9, 84]).expect_err("no layout");
        assert!(refused.to_string().contains("output0[1,9,84] with 1 class names"), "{refused}");
        assert!(matches!(parse(&[], &[1, 1, 64, 64], &[1, 6, 84]), Err(ModelError::Input { .. })));
    }
}
