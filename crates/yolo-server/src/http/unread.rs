//! Answers that wait for their clients: whoever reads slowly makes the server hold them, so they count among the bodies
//! that memory holds until their last byte is with the system.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::Received;
use crate::app::App;
use crate::limits;

/// Goes with an answer whose memory is held already.
#[derive(Debug, Clone)]
pub(super) struct HeldAnswer(pub(super) Option<Arc<OwnedSemaphorePermit>>);

/// The innermost layer: what is compressed further out, is held here as it was.
pub(super) async fn hold(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Some(HeldAnswer(memory)) = response.extensions_mut().remove() {
        return response.map(|body| Body::new(Counted { body, memory }));
    }
    let bytes = response.body().size_hint().lower();
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    if bytes <= limits::ANSWER_BYTES_UNCOUNTED {
        return response;
    }
    let mut memory = None;
    if let Err(error) = app.bodies.hold(&mut memory, bytes) {
        let received = response.extensions_mut().remove::<Received>();
        return Received::attach(received, error.into_response());
    }
    response.map(|body| Body::new(Counted { body, memory: memory.map(Arc::new) }))
}

/// An answer's body whose pieces hold its memory: hyper takes them long before it has written them.
struct Counted {
    body: Body,
    memory: Option<Arc<OwnedSemaphorePermit>>,
}

/// A piece of an answer.
pub(super) struct Piece {
    bytes: Bytes,
    _memory: Option<Arc<OwnedSemaphorePermit>>,
}

impl Piece {
    /// `bytes` that hold `memory` until they are dropped.
    pub(super) const fn new(bytes: Bytes, memory: Option<Arc<OwnedSemaphorePermit>>) -> Self {
        Self { bytes, _memory: memory }
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        let piece = |bytes| Bytes::from_owner(Piece::new(bytes, self.memory.clone()));
        frame.map_ok(|frame| frame.map_data(piece))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
