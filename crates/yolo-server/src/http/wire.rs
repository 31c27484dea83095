//! Bytes of a request's body as they come over the wire, before they are inflated.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;

/// How many bytes of one request's body have come.
#[derive(Debug, Clone, Default)]
pub(super) struct WireBytes(Arc<AtomicU64>);

impl WireBytes {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The layer outside of the one that inflates.
pub(super) async fn count(mut request: Request, next: Next) -> Response {
    let wire = WireBytes::default();
    request.extensions_mut().insert(wire.clone());
    let counted = request.map(|body| {
        Body::new(body.inspect_frame(move |frame| {
            let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
            wire.0.fetch_add(bytes, Ordering::Relaxed);
        }))
    });
    next.run(counted).await
}
