//! The JSON form of a detection, equal to Ultralytics' `Results.summary()`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::boxes::BoxXyxyPx;
use crate::detection::{Detection, Form, Keypoint};
use crate::picture::Size;

/// A detection as the API answers it, in pixels or in fractions of the picture.
///
/// Detection: `{"name","class","confidence","box":{"x1","y1","x2","y2"}}`. Rotated boxes have four corners, `x1` to `y4`;
/// classes of a picture have no box. Masks add `segments` or `rle`, poses `keypoints`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Detection")]
pub struct DetectionJson {
    /// The class's name.
    pub name: String,
    /// Index of the class in the model.
    pub class: u32,
    /// Score in 0..=1.
    pub confidence: f64,
    /// Where.
    #[serde(rename = "box", default, skip_serializing_if = "Option::is_none")]
    pub bounds: Option<BoxJson>,
    /// The mask's outline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<SegmentsJson>,
    /// The mask as runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rle: Option<RleJson>,
    /// The points of a pose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keypoints: Option<KeypointsJson>,
}

/// A box: upright, or by its four corners.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Box")]
#[serde(untagged)]
pub enum BoxJson {
    /// Of a rotated box, in order around it. First: with it a reader of upright boxes would be content, too.
    Corners(CornersJson),
    /// Left, top, right, bottom.
    Edges(EdgesJson),
}

/// Left, top, right, bottom.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Edges")]
#[expect(missing_docs, reason = "the names say it")]
pub struct EdgesJson {
    pub x1: f64,
    pub y1: f64,
    pub x2: f64,
    pub y2: f64,
}

/// Four corners, in order around the box.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Corners")]
#[expect(missing_docs, reason = "the names say it")]
pub struct CornersJson {
    pub x1: f64,
    pub y1: f64,
    pub x2: f64,
    pub y2: f64,
    pub x3: f64,
    pub y3: f64,
    pub x4: f64,
    pub y4: f64,
}

/// Points of a polygon, as many x as y.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Segments")]
pub struct SegmentsJson {
    /// From the left.
    pub x: Vec<f64>,
    /// From the top.
    pub y: Vec<f64>,
}

/// A mask of the picture's size in COCO's uncompressed run-length form: column by column, background first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Rle")]
pub struct RleJson {
    /// Height and width in pixels.
    pub size: [u32; 2],
    /// Lengths of the runs.
    pub counts: Vec<u32>,
}

/// The points of a pose, in the model's order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Keypoints")]
pub struct KeypointsJson {
    /// From the left.
    pub x: Vec<f64>,
    /// From the top.
    pub y: Vec<f64>,
    /// How surely each is visible, if the model says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visible: Option<Vec<f64>>,
}

impl Detection {
    /// The JSON form: five decimals, boxes rounded as Python rounds, points as numpy rounds.
    ///
    /// `normalised_by`: the picture's size if all shall be in fractions of it instead of pixels.
    pub fn to_json(&self, normalised_by: Option<Size>) -> DetectionJson {
        let scale = Scale::by(normalised_by);
        let mut json = DetectionJson {
            name: self.name.to_string(),
            class: self.class,
            confidence: five_decimals(self.confidence.into()),
            bounds: Some(BoxJson::Edges(scale.edges(self.bounds))),
            segments: None,
            rle: None,
            keypoints: None,
        };
        match &self.form {
            Form::Box => {}
            Form::Picture => json.bounds = None,
            Form::Rotated(rotated) => json.bounds = Some(BoxJson::Corners(scale.corners(rotated.corners()))),
            Form::Polygon(points) => {
                let [x, y] = scale.points(points.iter().copied());
                json.segments = Some(SegmentsJson { x, y });
            }
            Form::Rle(rle) => {
                json.rle = Some(RleJson { size: [rle.size.height_px, rle.size.width_px], counts: rle.counts.clone() });
            }
            Form::Keypoints(points) => {
                let [x, y] = scale.points(points.iter().map(|point| [point.x, point.y]));
                let visible = |point: &Keypoint| point.visible.map(five_decimals_of_point);
                json.keypoints = Some(KeypointsJson { x, y, visible: points.iter().map(visible).collect() });
            }
        }
        json
    }
}

/// What coordinates are divided by: 1, or the picture's sides.
struct Scale {
    width: u32,
    height: u32,
}

impl Scale {
    fn by(size: Option<Size>) -> Self {
        size.map_or(Self { width: 1, height: 1 }, |size| Self { width: size.width_px, height: size.height_px })
    }

    fn x(&self, value: f32) -> f64 {
        five_decimals(f64::from(value) / f64::from(self.width))
    }

    fn y(&self, value: f32) -> f64 {
        five_decimals(f64::from(value) / f64::from(self.height))
    }

    fn edges(&self, bounds: BoxXyxyPx) -> EdgesJson {
        EdgesJson { x1: self.x(bounds.x1), y1: self.y(bounds.y1), x2: self.x(bounds.x2), y2: self.y(bounds.y2) }
    }

    fn corners(&self, corners: [[f32; 2]; 4]) -> CornersJson {
        let [[x1, y1], [x2, y2], [x3, y3], [x4, y4]] = corners.map(|[x, y]| [self.x(x), self.y(y)]);
        CornersJson { x1, y1, x2, y2, x3, y3, x4, y4 }
    }

    /// All x and all y. Divided in f32, as Ultralytics divides points; boxes it divides in f64.
    #[expect(clippy::cast_precision_loss, reason = "sides are far below 2^24")]
    fn points(&self, points: impl Iterator<Item = [f32; 2]>) -> [Vec<f64>; 2] {
        let (width, height) = (self.width as f32, self.height as f32);
        let (x, y) =
            points.map(|[x, y]| (five_decimals_of_point(x / width), five_decimals_of_point(y / height))).unzip();
        [x, y]
    }
}

/// Python's `round(value, 5)`: the decimal text is correctly rounded in both, and read back.
fn five_decimals(value: f64) -> f64 {
    format!("{value:.5}").parse().unwrap_or(value)
}

/// numpy's `round(5)` in f64, which scales and rounds without a look at the decimal text. So does 8.4.190, which
/// `fixtures/ultralytics.json` shows; an older Ultralytics rounded in f32, with other digits from the eighth on.
fn five_decimals_of_point(value: f32) -> f64 {
    (f64::from(value) * 1e5).round_ties_even() / 1e5
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotated::RotatedBoxPx;

    fn found(form: Form) -> Detection {
        let bounds = BoxXyxyPx { x1: 0.015_625, y1: 398.912_35, x2: 245.1, y2: 903.4 };
        Detection { name: "person".into(), class: 0, confidence: 0.873_141_6, bounds, form }
    }

    fn json(form: Form) -> String {
        let json = found(form).to_json(None);
        let text = serde_json::to_string(&json).expect("plain numbers");
        assert_eq!(serde_json::from_str::<DetectionJson>(&text).expect("what was written"), json);
        text
    }

    const HEAD: &str = r#"{"name":"person","class":0,"confidence":0.87314"#;
    const EDGES: &str = r#""box":{"x1":0.01562,"y1":398.91235,"x2":245.10001,"y2":903.40002}"#;

    #[test]
    fn json_is_rounded_as_python_rounds() {
        assert_eq!(json(Form::Box), format!("{HEAD},{EDGES}}}"));
        let fractions = found(Form::Box).to_json(Some(Size::new(810, 1080))).bounds;
        let expected = EdgesJson { x1: 0.000_02, y1: 0.369_36, x2: 0.302_59, y2: 0.836_48 };
        assert_eq!(fractions, Some(BoxJson::Edges(expected)));
    }

    #[test]
    fn each_form_adds_its_part_and_nothing_else() {
        let polygon = Form::Polygon(vec![[1.5, 2.0], [245.1, 1.0 / 3.0]]);
        let segments = r#""segments":{"x":[1.5,245.10001],"y":[2.0,0.33333]}"#;
        assert_eq!(json(polygon), format!("{HEAD},{EDGES},{segments}}}"));
        let rle = Form::Rle(crate::mask::Rle { size: Size::new(3, 2), counts: vec![1, 2, 3] });
        assert_eq!(json(rle), format!(r#"{HEAD},{EDGES},"rle":{{"size":[2,3],"counts":[1,2,3]}}}}"#));
        let point = |visible| Form::Keypoints(vec![Keypoint { x: 1.0, y: 2.0, visible }]);
        let keypoints = r#""keypoints":{"x":[1.0],"y":[2.0]"#;
        assert_eq!(json(point(None)), format!("{HEAD},{EDGES},{keypoints}}}}}"));
        assert_eq!(json(point(Some(0.5))), format!(r#"{HEAD},{EDGES},{keypoints},"visible":[0.5]}}}}"#));
        let rotated = Form::Rotated(RotatedBoxPx::new([10.0, 20.0, 4.0, 2.0], 0.0));
        let corners = r#""box":{"x1":12.0,"y1":21.0,"x2":12.0,"y2":19.0,"x3":8.0,"y3":19.0,"x4":8.0,"y4":21.0}"#;
        assert_eq!(json(rotated), format!("{HEAD},{corners}}}"));
        assert_eq!(json(Form::Picture), format!("{HEAD}}}"));
    }
}
