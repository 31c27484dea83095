//! A page with the boxes that a real answer of the server puts on it, as an SVG that carries the page itself.

use std::fmt::Write as _;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// What is drawn of an answer of `POST /predict`.
#[derive(Debug, Deserialize)]
struct Answer {
    image: Size,
    detections: Vec<Detection>,
}

#[derive(Debug, Deserialize)]
struct Size {
    width: f64,
    height: f64,
}

#[derive(Debug, Deserialize)]
struct Detection {
    name: String,
    class: usize,
    confidence: f64,
    #[serde(rename = "box")]
    corners: Corners,
}

#[derive(Debug, Deserialize)]
struct Corners {
    x1: f64,
    y1: f64,
    x2: f64,
    y2: f64,
}

/// One colour a class, in turn; dark enough for white text.
const COLOURS: [&str; 8] = ["#1565c0", "#c62828", "#2e7d32", "#6a1b9a", "#ad6200", "#00695c", "#4e342e", "#37474f"];
/// Text of 11 px needs about this much a letter in any sans-serif font.
const LETTER_PX: f64 = 6.4;
const LABEL_HEIGHT_PX: f64 = 14.0;

/// Draws the detections of `answer` (JSON of `POST /predict`) on `jpeg`. Returns the SVG and the number of boxes.
///
/// # Errors
/// If the answer is not such JSON.
pub fn annotate(jpeg: &[u8], answer: &[u8]) -> anyhow::Result<(String, usize)> {
    let Answer { image: Size { width, height }, detections } =
        serde_json::from_slice(answer).context("the answer of /predict is not the documented JSON")?;
    // Writing to a String cannot fail, here and below.
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\">\n\
         <image width=\"{width}\" height=\"{height}\" href=\"data:image/jpeg;base64,{}\"/>",
        STANDARD.encode(jpeg)
    );
    for Detection { name, class, confidence, corners: Corners { x1, y1, x2, y2 } } in &detections {
        let colour = COLOURS.get(class % COLOURS.len()).unwrap_or(&"#000");
        let label = format!("{} {confidence:.2}", escape(name));
        let letters = f64::from(u32::try_from(label.len())?);
        let top = (y1 - LABEL_HEIGHT_PX).max(0.0);
        let _ = writeln!(
            svg,
            "<rect x=\"{x1}\" y=\"{y1}\" width=\"{}\" height=\"{}\" fill=\"{colour}\" fill-opacity=\"0.08\" \
             stroke=\"{colour}\" stroke-width=\"2\"/>\n\
             <rect x=\"{x1}\" y=\"{top}\" width=\"{}\" height=\"{LABEL_HEIGHT_PX}\" fill=\"{colour}\"/>\n\
             <text x=\"{}\" y=\"{}\" font-size=\"11\" fill=\"#fff\">{label}</text>",
            x2 - x1,
            y2 - y1,
            letters * LETTER_PX + 4.0,
            x1 + 3.0,
            top + LABEL_HEIGHT_PX - 3.5,
        );
    }
    svg.push_str("</svg>\n");
    Ok((svg, detections.len()))
}

/// Class names come from a model file, so they may hold anything.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_detection_is_drawn_at_its_place_and_its_name_cannot_break_the_picture() {
        let answer = br#"{"image":{"width":100,"height":50},"detections":[
            {"name":"<b>","class":9,"confidence":0.87314,"box":{"x1":10.5,"y1":20.0,"x2":30.5,"y2":40.0}}]}"#;
        let (svg, boxes) = annotate(&[1, 2, 3], answer).unwrap();
        assert_eq!(boxes, 1);
        assert!(svg.contains("<rect x=\"10.5\" y=\"20\" width=\"20\" height=\"20\" fill=\"#c62828\""), "{svg}");
        assert!(svg.contains("&lt;b&gt; 0.87"), "{svg}");
        assert!(svg.contains("base64,AQID"), "{svg}");
    }

    #[test]
    fn an_answer_of_another_shape_is_refused() {
        assert!(annotate(&[], b"{}").is_err());
    }
}
