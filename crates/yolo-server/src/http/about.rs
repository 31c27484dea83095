//! `GET /version` and `GET /models`: what runs here.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::error::ApiError;
use crate::app::App;

/// The program.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Version")]
pub(super) struct VersionBody {
    name: &'static str,
    version: &'static str,
    /// Commit that it was built from; empty if the build did not say.
    revision: &'static str,
    /// Whether detections are made up, for rehearsals; null until the model is loaded.
    emulated: Option<bool>,
}

/// Every served model.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Models")]
pub(super) struct ModelsBody<'a> {
    models: Vec<ServedModel<'a>>,
}

/// A served model.
#[derive(Debug, Serialize, JsonSchema)]
struct ServedModel<'a> {
    /// The file's stem.
    name: &'a str,
    /// First digits of `sha256`.
    version: &'a str,
    /// Digest of the file.
    sha256: &'a str,
    /// What the model does.
    task: &'a str,
    /// Names of its classes, by number.
    names: Vec<Arc<str>>,
    /// Width and height of its input in pixels where a request names no `imgsz`.
    imgsz: [u32; 2],
    /// Width and height of all that are served, the default first; `imgsz` chooses by the width.
    sizes: Vec<[u32; 2]>,
    /// What computes.
    provider: &'a str,
    /// Numbers of its input: `fp32` or `fp16`.
    precision: &'a str,
    /// Most images that run together.
    batch_max: usize,
}

/// `GET /version`.
pub(super) async fn version(State(app): State<Arc<App>>) -> Json<VersionBody> {
    Json(VersionBody {
        name: "yolo-server",
        version: env!("CARGO_PKG_VERSION"),
        revision: option_env!("YOLO_REVISION").unwrap_or(""),
        emulated: app.predictor().map(|predictor| predictor.model().emulated()),
    })
}

/// `GET /models`; 503 until the model is loaded.
pub(super) async fn models(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let predictor = app.serving()?;
    let model = predictor.model();
    let (size, classes) = (model.info.size(), u32::try_from(model.info.classes()).unwrap_or(u32::MAX));
    let served = ServedModel {
        name: &model.name,
        version: model.version(),
        sha256: &model.sha256,
        task: model.info.task().as_str(),
        names: (0..classes).map(|class| model.info.name(class)).collect(),
        imgsz: [size.width_px, size.height_px],
        sizes: model.sizes.iter().map(|size| [size.width_px, size.height_px]).collect(),
        provider: model.provider,
        precision: model.precision,
        batch_max: model.batch_max,
    };
    Ok(Json(ModelsBody { models: vec![served] }).into_response())
}
