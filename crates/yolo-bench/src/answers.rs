//! Whether the contenders find the same objects: a faster answer to another question would be no comparison.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::Value;
use yolo_vision::Detection;

use crate::contender::Contender;
use crate::load;

/// Overlap (intersection over union) at which two boxes are one object. JPEG decoders differ by a few levels, which
/// moves edges by fractions of a pixel.
const SAME_IOU: f32 = 0.9;

#[derive(Deserialize)]
struct Found {
    class: u32,
    #[serde(rename = "box")]
    bounds: Corners,
}

#[derive(Deserialize)]
struct Corners {
    x1: f32,
    y1: f32,
    x2: f32,
    y2: f32,
}

#[derive(Deserialize)]
struct Answer {
    detections: Vec<Found>,
}

/// Sends every picture once. Returns objects that both have, over the objects that either has.
///
/// # Errors
/// If a picture is not answered with detections.
pub fn agreement(
    contender: Contender,
    address: SocketAddr,
    (files, expected): (Vec<Vec<u8>>, &[Vec<Detection>]),
) -> anyhow::Result<f64> {
    load::runtime()?.block_on(async {
        let client = load::client(contender, address, 1)?;
        let (mut both, mut either) = (0_u32, 0_u32);
        for (file, expected) in files.into_iter().zip(expected) {
            let (status, body) = client.once(file.into()).await?;
            if status != 200 {
                bail!("status {status}: {}", String::from_utf8_lossy(&body));
            }
            let mut found = read(&body)?.detections;
            let all = u32::try_from(found.len() + expected.len())?;
            let mut shared = 0;
            for one in expected {
                if let Some(index) = found.iter().position(|other| same(one, other)) {
                    found.swap_remove(index);
                    shared += 1;
                }
            }
            both += shared;
            either += all - shared;
        }
        Ok(if either == 0 { 1.0 } else { f64::from(both) / f64::from(either) })
    })
}

/// The answer itself, or, from Triton, the text in the one element of its one output.
fn read(body: &[u8]) -> anyhow::Result<Answer> {
    let answer: Value = serde_json::from_slice(body)?;
    match answer.pointer("/outputs/0/data/0") {
        Some(text) => Ok(serde_json::from_str(text.as_str().context("Triton's output is a text")?)?),
        None => Ok(serde_json::from_value(answer)?),
    }
}

fn same(one: &Detection, other: &Found) -> bool {
    let (a, b) = (&one.bounds, &other.bounds);
    let area = |x: f32, y: f32| x.max(0.0) * y.max(0.0);
    let shared = area(a.x2.min(b.x2) - a.x1.max(b.x1), a.y2.min(b.y2) - a.y1.max(b.y1));
    let either = area(a.x2 - a.x1, a.y2 - a.y1) + area(b.x2 - b.x1, b.y2 - b.y1) - shared;
    one.class == other.class && shared >= SAME_IOU * either
}
