//! Any bytes as the JSON form of a request: pictures and parameters, or an error that blames the client.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| yolo_fuzz::receive("application/json", body));
