//! What fuzz targets share: a request's body on its way through the server, and what must hold of its outcome.

use std::cell::RefCell;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header;
use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use yolo_server::http::body::{BodyMemory, Bounds, Form, receive_all};
use yolo_server::http::error::ApiError;
use yolo_server::http::oip::tensor::{Datatype, Tensor};
use yolo_server::metrics::Metrics;

thread_local! {
    static SERVER: RefCell<(Runtime, Metrics)> = RefCell::new((
        Builder::new_current_thread().enable_time().max_blocking_threads(1).build().expect("a runtime"),
        Metrics::new(),
    ));
}

/// Receives `body`, in pieces whose size follows from its length, and checks what holds of every answer: no more bytes
/// of pictures than came, and an error that blames the client.
pub fn receive(content_type: &str, body: &[u8]) {
    let pieces = body.chunks(1 + body.len() % 61).map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece)));
    let stream = futures::stream::iter(pieces.collect::<Vec<_>>());
    let request = Request::builder().header(header::CONTENT_TYPE, content_type).body(Body::from_stream(stream));
    let Ok(request) = request else { return };
    let received = SERVER.with_borrow(|(runtime, metrics)| {
        runtime.block_on(receive_all(request, &Bounds::BATCH, &BodyMemory::default(), &metrics.http))
    });
    match received {
        Ok(Form { pictures, .. }) => {
            let bytes: usize = pictures.iter().flatten().map(|upload| upload.bytes.len()).sum();
            assert!(bytes <= body.len(), "{bytes} bytes of pictures in a body of {}", body.len());
            pictures.iter().filter_map(|picture| picture.as_ref().err()).for_each(blames_the_client);
        }
        Err(error) => blames_the_client(&error),
    }
}

/// Fails unless the status is 4xx and the message is short enough to be logged.
pub fn blames_the_client(error: &ApiError) {
    assert!(error.code.status().is_client_error(), "{error:?}");
    assert!(error.message.len() < 2_000, "{} bytes of message", error.message.len());
}

/// Fails unless a tensor has as many bytes, or byte strings, as its shape says.
pub fn fills_its_shape(tensor: &Tensor) {
    if tensor.datatype != Datatype::Bytes {
        let bytes = tensor.elements().and_then(|n| n.checked_mul(tensor.datatype.element_bytes()?));
        assert_eq!(bytes, Some(tensor.data.len()), "{} {:?}", tensor.name, tensor.shape);
        return;
    }
    match tensor.byte_strings() {
        Err(error) => blames_the_client(&error),
        Ok(strings) => {
            assert_eq!(Some(strings.len()), tensor.elements());
            assert!(strings.iter().map(Bytes::len).sum::<usize>() <= tensor.data.len());
        }
    }
}
