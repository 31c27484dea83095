//! What libjpeg-turbo takes. The allocator of `bombs.rs` does not see it: the kernel's count of a process does, and this
//! one has a single test.
#![cfg(all(feature = "turbojpeg", target_os = "linux"))]
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a helper that fails is a failed test")]

mod fixture;

use yolo_vision::{DecodeLimits, decode};

/// Tables, rows, stacks, and pages of the program that are touched for the first time.
const UNCOUNTED_BYTES_MAX: usize = 4 << 20;

/// A line of the kernel's account of this process, in bytes.
fn resident(line: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let value = status.lines().find_map(|found| found.strip_prefix(line)).expect("the line");
    value.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
}

#[test]
fn libjpeg_takes_no_more_memory_than_it_is_allowed() {
    let (width, height) = (4000_u16, 3000_u16);
    let mut file = fixture::bytes("decode/progressive.jpg");
    let frame = file.windows(2).position(|pair| pair == [0xFF, 0xC2]).expect("a progressive frame");
    file[frame + 5..frame + 9].copy_from_slice(&[height.to_be_bytes(), width.to_be_bytes()].concat());
    // RGB, and 16-bit coefficients of three components.
    let (pixels, bytes_per_pixel) = (usize::from(width) * usize::from(height), 3 + 2 * 3);
    let limits = |bytes| DecodeLimits { memory_bytes_max: bytes, ..DecodeLimits::default() };
    let needed = bytes_per_pixel * pixels;
    assert_eq!(decode(&file, &limits(needed - 1)).map_err(|error| error.category()), Err("image_too_large"));
    let before = resident("VmRSS:");
    decode(&file, &limits(needed)).expect("a picture");
    let taken = resident("VmHWM:") - before;
    assert!(taken > needed / 2, "{taken} bytes: the coefficients are counted");
    assert!(taken <= needed + UNCOUNTED_BYTES_MAX, "allowed {needed} bytes, took {taken}");
}
