//! Any bytes as a request of the Open Inference Protocol over REST with the binary-tensor extension: tensors that are
//! slices of the body, or an error that blames the client. The first line is the header that says where the JSON ends.
#![no_main]

use axum::http::{HeaderMap, HeaderValue};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use yolo_fuzz::blames_the_client;
use yolo_server::http::oip::rest::codec::decode;

fuzz_target!(|input: &[u8]| {
    let Some(end) = input.iter().position(|&byte| byte == b'\n') else { return };
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(&input[..end])
        && !value.is_empty()
    {
        headers.insert("inference-header-content-length", value);
    }
    let body = Bytes::copy_from_slice(&input[end + 1..]);
    match decode(&headers, &body) {
        Err(error) => blames_the_client(&error),
        Ok(request) => request.inputs.iter().for_each(yolo_fuzz::fills_its_shape),
    }
});
