//! One found object, and its JSON form.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::boxes::BoxXyxyPx;
use crate::picture::Size;

/// One found object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// The class's name.
    pub name: Arc<str>,
    /// Index of the class in the model.
    pub class: u32,
    /// Score in 0..=1.
    pub confidence: f32,
    /// Where, in pixels of the picture.
    pub bounds: BoxXyxyPx,
}

impl Detection {
    /// The JSON form, equal to Ultralytics' `Results.summary()`: five decimals, rounded as Python rounds.
    ///
    /// `normalised_by`: the picture's size if the box shall be in fractions of it instead of pixels.
    pub fn to_json(&self, normalised_by: Option<Size>) -> DetectionJson {
        let (width, height) = normalised_by.map_or((1.0, 1.0), |size| (size.width_px.into(), size.height_px.into()));
        let x = |edge: f32| five_decimals(f64::from(edge) / width);
        let y = |edge: f32| five_decimals(f64::from(edge) / height);
        DetectionJson {
            name: self.name.to_string(),
            class: self.class,
            confidence: five_decimals(f64::from(self.confidence)),
            bounds: BoxJson {
                x1: x(self.bounds.x1),
                y1: y(self.bounds.y1),
                x2: x(self.bounds.x2),
                y2: y(self.bounds.y2),
            },
        }
    }
}

/// A detection as the API answers it: `{"name","class","confidence","box":{"x1","y1","x2","y2"}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DetectionJson {
    /// The class's name.
    pub name: String,
    /// Index of the class in the model.
    pub class: u32,
    /// Score in 0..=1.
    pub confidence: f64,
    /// Where, in pixels or in fractions of the picture.
    #[serde(rename = "box")]
    pub bounds: BoxJson,
}

/// Left, top, right, bottom.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BoxJson {
    /// Left edge.
    pub x1: f64,
    /// Top edge.
    pub y1: f64,
    /// Right edge.
    pub x2: f64,
    /// Bottom edge.
    pub y2: f64,
}

/// Python's `round(value, 5)`: the decimal text is correctly rounded in both, and read back.
fn five_decimals(value: f64) -> f64 {
    format!("{value:.5}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_rounded_as_python_rounds() {
        let bounds = BoxXyxyPx { x1: 0.015_625, y1: 398.912_35, x2: 245.1, y2: 903.4 };
        let found = Detection { name: "person".into(), class: 0, confidence: 0.873_141_6, bounds };
        let json = serde_json::to_string(&found.to_json(None)).expect("plain numbers");
        let expected = r#"{"name":"person","class":0,"confidence":0.87314,"box":{"x1":0.01562,"y1":398.91235,"x2":245.10001,"y2":903.40002}}"#;
        assert_eq!(json, expected);
        let fractions = found.to_json(Some(Size::new(810, 1080))).bounds;
        assert_eq!((fractions.x2, fractions.y2), (0.30259, 0.83648));
    }
}
