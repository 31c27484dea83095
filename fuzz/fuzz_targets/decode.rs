//! Any bytes as a picture: an error or a picture within the limits, whose letterbox can be made.
#![no_main]

use libfuzzer_sys::fuzz_target;
use yolo_vision::{DecodeLimits, Letterbox, Size, decode, letterbox_into};

fuzz_target!(|bytes: &[u8]| {
    let limits = DecodeLimits { pixels_max: 1 << 18, memory_bytes_max: 16 << 20, ..DecodeLimits::default() };
    if let Ok(picture) = decode(bytes, &limits) {
        assert!(picture.size().pixels() <= limits.pixels_max);
        let plan = Letterbox::plan(picture.size(), Size::new(64, 32)).expect("a decoded picture is not empty");
        let mut planar = vec![0; plan.output_len()];
        letterbox_into(&picture, &plan, &mut planar).expect("planned for this picture");
    }
});
