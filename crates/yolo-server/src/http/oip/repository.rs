//! The models of this server, as Triton's repository extension lists them.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use crate::app::App;
use crate::predictor::Predictor;

/// A model and whether it is served.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ModelIndex {
    /// Its file's stem.
    pub name: String,
    /// The served version.
    pub version: String,
    /// `READY` or `UNAVAILABLE`.
    pub state: &'static str,
    /// Why it is unavailable.
    pub reason: &'static str,
}

/// Every model that is loaded.
pub fn index(app: &App) -> Vec<ModelIndex> {
    let (state, reason) = app.ready().map_or_else(|reason| ("UNAVAILABLE", reason), |()| ("READY", ""));
    let model = |predictor: Arc<Predictor>| {
        let model = predictor.model();
        ModelIndex { name: model.name.clone(), version: model.version().to_owned(), state, reason }
    };
    app.predictor().into_iter().map(model).collect()
}
