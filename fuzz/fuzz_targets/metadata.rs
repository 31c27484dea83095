//! Any text as a model's metadata: a model or an error. The first line names the key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use yolo_vision::{ModelInfo, TensorShape};

fuzz_target!(|text: &str| {
    let (key, value) = text.split_once('\n').unwrap_or(("names", text));
    let metadata = [(key.to_owned(), value.to_owned())].into();
    let inputs = [TensorShape::new("images", &[-1, 3, 640, 640])];
    for shape in [[-1, 84, 8400], [-1, 25200, 85], [-1, 300, 6]] {
        // Whether it parses is the parser's business; that it answers is what is tested.
        let _ = ModelInfo::parse(&metadata, &inputs, &[TensorShape::new("output0", &shape)]);
    }
});
