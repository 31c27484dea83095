//! The API: its routes. Every request passes `observe` first.

mod about;
mod annotate;
pub mod answer;
mod batch;
pub mod body;
pub mod error;
pub mod health;
mod held_file;
mod image;
mod json;
mod making;
mod observe;
pub mod oip;
mod openapi;
pub mod parameters;
mod path;
pub mod predict;
pub mod tasks;
pub mod trace;
mod unread;
mod wire;

use std::sync::Arc;

use axum::Router;
use axum::middleware;
use axum::routing::{get, post};
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};
use tower_http::decompression::RequestDecompressionLayer;

use crate::app::App;
use crate::limits;
use error::{ApiError, Code};
use observe::{Received, RequestId};

/// The API of port 8080.
pub fn router(app: Arc<App>) -> Router {
    // Raw tensors are worth it; pictures are compressed as they are.
    let worth_it = SizeAbove::new(limits::COMPRESSED_BYTES_MIN).and(NotForContentType::IMAGES);
    Router::new()
        .route("/predict", post(predict::predict))
        .route("/predict/batch", post(batch::batch))
        .route("/predict/async", post(tasks::submit))
        .route("/tasks/{id}", get(tasks::view).delete(tasks::cancel))
        .route("/models", get(about::models))
        .route("/version", get(about::version))
        .route("/openapi.json", get(openapi::document))
        .route("/docs", get(openapi::page))
        .merge(oip::rest::routes())
        .fallback(async || ApiError::new(Code::NotFound, "no such path: GET /docs lists them"))
        .method_not_allowed_fallback(async || ApiError::new(Code::MethodNotAllowed, "the path takes another method"))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), unread::hold))
        // Bodies are counted against their limits as they are inflated; an unknown encoding is refused where they are read.
        .layer(RequestDecompressionLayer::new().pass_through_unaccepted(true))
        .layer(middleware::from_fn(wire::count))
        .layer(CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(worth_it))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), observe::observe))
        .with_state(app)
}
