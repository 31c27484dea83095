//! Any bytes as a request of the Open Inference Protocol over gRPC: tensors that fill their shapes, or an error that blames
//! the client.
#![no_main]

use libfuzzer_sys::fuzz_target;
use yolo_server::http::oip::grpc::decode;

fuzz_target!(|message: &[u8]| {
    match decode(message) {
        Err(error) => yolo_fuzz::blames_the_client(&error),
        Ok(request) => request.inputs.iter().for_each(yolo_fuzz::fills_its_shape),
    }
});
