//! Any bytes as a request of the Open Inference Protocol over REST with the binary-tensor extension: tensors that are
//! slices of the body, or an error that blames the client. The first line is the header that says where the JSON ends.
#![no_main]

use axum::http::{HeaderMap, HeaderValue};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use yolo_fuzz::blames_the_client;
use yolo_server::http::oip::rest::codec::decode;
use yolo_server::http::oip::tensor::Datatype;

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
        Ok(request) => {
            for tensor in request.inputs {
                if tensor.datatype != Datatype::Bytes {
                    let bytes = tensor.elements().and_then(|n| n.checked_mul(tensor.datatype.element_bytes()?));
                    assert_eq!(bytes, Some(tensor.data.len()), "{} {:?}", tensor.name, tensor.shape);
                    continue;
                }
                match tensor.byte_strings() {
                    Err(error) => blames_the_client(&error),
                    Ok(strings) => {
                        assert_eq!(Some(strings.len()), tensor.elements());
                        assert!(strings.iter().map(Bytes::len).sum::<usize>() <= tensor.data.len());
                    }
                }
            }
        }
    }
});
