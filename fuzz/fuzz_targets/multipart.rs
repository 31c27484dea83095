//! Any bytes as a multipart form: pictures and parameters, or an error that blames the client. The first line is what
//! follows the media type.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some(end) = input.iter().position(|&byte| byte == b'\n') else { return };
    let (parameters, body) = (String::from_utf8_lossy(&input[..end]), &input[end + 1..]);
    yolo_fuzz::receive(&format!("multipart/form-data; {parameters}"), body);
});
