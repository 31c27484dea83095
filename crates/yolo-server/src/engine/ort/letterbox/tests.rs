//! The kernel as C++ on the CPU: its numbers are those of the CPU's letterbox, bit by bit.
#![expect(unsafe_code, reason = "the kernel is called through C")]

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use half::f16;
use libloading::Library;
use proptest::prelude::*;
use yolo_vision::{Letterbox, Picture, Size};

use super::staging::{Launch, Staging};
use crate::engine::ort::{Element, image_len, write};
use crate::engine::{EngineInput, Pixels};

/// What no pixel of the kernel's would leave: a NaN of either width.
const UNWRITTEN: u8 = 0xFF;

/// Compiled once a test process, and unloaded with it. Undefined behaviour ends it.
fn kernel() -> &'static Library {
    static KERNEL: OnceLock<Library> = OnceLock::new();
    KERNEL.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/engine/ort/letterbox/host.cpp");
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("kernel.so");
        let flags = "-x c++ -std=c++17 -O2 -Wall -Wextra -Werror -shared -fPIC -fsanitize=undefined \
                     -fsanitize-undefined-trap-on-error -o";
        let compiler = Command::new("c++").args(flags.split_whitespace()).arg(&library).arg(source).output();
        let compiler = compiler.expect("c++ compiles the kernel (make packages)");
        assert!(compiler.status.success(), "{}", String::from_utf8_lossy(&compiler.stderr));
        // SAFETY: the library was just made, and has no constructors.
        unsafe { Library::new(&library) }.unwrap()
    })
}

/// What the kernel writes for a batch: the bits of the model's numbers.
fn written(inputs: &[&EngineInput], (batch, size): (usize, Size), element: Element) -> Vec<u32> {
    type Run<T> = unsafe extern "C" fn(*const u8, *mut T, *const u32, *const u32, *const u32);
    let staging = Staging::plan(inputs, (batch, size), element).unwrap();
    assert!(staging.bytes <= Staging::bytes_max(batch, size) || inputs.iter().any(|input| large(input)));
    // Of words, so that it is aligned as the kernel's structures are.
    let mut staged = vec![u32::MAX; staging.bytes.div_ceil(4)];
    // SAFETY: a word is four bytes of any value.
    let bytes = unsafe { std::slice::from_raw_parts_mut(staged.as_mut_ptr().cast::<u8>(), 4 * staged.len()) };
    staging.write(inputs, bytes).unwrap();
    let Launch { grid, block } = Launch::of(batch, size).unwrap();
    let sides = [size.width_px, size.height_px];
    let len = batch * image_len(size);
    match element {
        Element::Single => {
            let mut numbers = vec![f32::from_ne_bytes([UNWRITTEN; 4]); len];
            // SAFETY: the function's type, and buffers as long as it is told.
            unsafe {
                let run = kernel().get::<Run<f32>>(b"run_single").unwrap();
                run(bytes.as_ptr(), numbers.as_mut_ptr(), sides.as_ptr(), grid.as_ptr(), block.as_ptr());
            }
            numbers.into_iter().map(f32::to_bits).collect()
        }
        Element::Half => {
            let mut numbers = vec![f16::from_ne_bytes([UNWRITTEN; 2]); len];
            // SAFETY: as above.
            unsafe {
                let run = kernel().get::<Run<f16>>(b"run_half").unwrap();
                run(bytes.as_ptr(), numbers.as_mut_ptr(), sides.as_ptr(), grid.as_ptr(), block.as_ptr());
            }
            numbers.into_iter().map(|number| number.to_bits().into()).collect()
        }
    }
}

/// Larger than a server lets an engine letterbox.
fn large(input: &EngineInput) -> bool {
    matches!(&input.pixels, Pixels::Picture(picture, _)
        if picture.size().pixels() > crate::limits::ENGINE_PICTURE_FACTOR * input.size.pixels())
}

/// The same as the CPU makes them.
fn expected(inputs: &[&EngineInput], (batch, size): (usize, Size), element: Element) -> Vec<u32> {
    let mut numbers = vec![0.0_f32; batch * image_len(size)];
    for (input, numbers) in inputs.iter().zip(numbers.chunks_exact_mut(image_len(size))) {
        write(input, numbers).unwrap();
    }
    match element {
        Element::Single => numbers.into_iter().map(f32::to_bits).collect(),
        Element::Half => numbers.into_iter().map(|number| f16::from_f32(number).to_bits().into()).collect(),
    }
}

fn assert_equal(inputs: &[EngineInput], batch: usize, size: Size) {
    let inputs: Vec<_> = inputs.iter().collect();
    for element in [Element::Single, Element::Half] {
        let [found, expected] = [written, expected].map(|numbers| numbers(&inputs, (batch, size), element));
        let differ = found.iter().zip(&expected).position(|(a, b)| a != b);
        assert!(differ.is_none() && found.len() == expected.len(), "{element:?} into {size}: number {differ:?}");
    }
}

/// Noise, the same for the same seed (xorshift).
fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..len).map(|_| next()).collect()
}

fn picture(source: Size, target: Size, seed: u32) -> EngineInput {
    let picture = Picture::from_rgb(source, noise(image_len(source), seed)).unwrap();
    let letterbox = Letterbox::plan(source, target).unwrap();
    EngineInput { pixels: Pixels::Picture(picture, letterbox), size: target, content: [0; 32] }
}

#[test]
fn the_kernel_letterboxes_every_shape_as_the_cpu_does() {
    let usual = Size::new(640, 640);
    for (source, target) in [
        // As it is; one pixel; slivers; smaller, so enlarged; odd, with uneven padding on either side; halves; pages.
        ([640, 640], usual),
        ([1, 1], usual),
        ([1, 3000], usual),
        ([3000, 1], usual),
        ([2, 2], Size::new(33, 7)),
        ([150, 200], usual),
        ([333, 777], usual),
        ([777, 333], usual),
        ([1281, 1281], usual),
        ([1280, 720], usual),
        ([810, 1080], usual),
        ([810, 1080], Size::new(320, 320)),
        ([810, 1080], Size::new(640, 384)),
        // Larger than a server would hand over.
        ([4000, 3000], usual),
    ] {
        let [width_px, height_px] = source;
        assert_equal(&[picture(Size::new(width_px, height_px), target, width_px)], 1, target);
    }
}

#[test]
fn a_batch_mixes_pictures_prepared_ones_and_black() {
    let size = Size::new(96, 64);
    let input = |pixels| EngineInput { pixels, size, content: [0; 32] };
    let numbers = noise(image_len(size), 5).into_iter().flat_map(|level| (f32::from(level) / 7.0).to_le_bytes());
    let inputs = [
        picture(Size::new(31, 101), size, 1),
        input(noise(image_len(size), 2).into()),
        picture(Size::new(97, 5), size, 3),
        input(Pixels::Numbers(numbers.collect::<Vec<_>>().into())),
        picture(Size::new(96, 64), size, 4),
    ];
    assert_equal(&inputs, 5, size);
    assert_equal(&inputs, 8, size);
    assert_equal(&[], 2, size);
}

#[test]
fn what_does_not_fit_is_refused() {
    let size = Size::new(32, 32);
    let refused = |input: &EngineInput, batch| Staging::plan(&[input], (batch, size), Element::Single).is_err();
    let input = |pixels| EngineInput { pixels, size, content: [0; 32] };
    assert!(!refused(&input(vec![0; image_len(size)].into()), 1));
    assert!(refused(&input(vec![0; image_len(size)].into()), 0), "no room in the batch");
    assert!(refused(&input(vec![0; image_len(size) - 1].into()), 1), "too short");
    assert!(refused(&picture(size, Size::new(64, 64), 1), 1), "planned for another input");
    let letterbox = Letterbox::plan(Size::new(9, 9), size).unwrap();
    let other = Picture::from_rgb(Size::new(8, 9), vec![0; 3 * 8 * 9]).unwrap();
    assert!(refused(&input(Pixels::Picture(other, letterbox)), 1), "planned for another picture");
    let staging = Staging::plan(&[&picture(size, size, 1)], (1, size), Element::Single).unwrap();
    assert!(staging.write(&[&picture(size, size, 1)], &mut vec![0; staging.bytes - 1]).is_err(), "a short buffer");
}

#[test]
fn a_compiler_that_is_missing_is_named() {
    let error = super::check("libnvrtc.so.0").unwrap_err();
    assert!(error.contains("libnvrtc.so.0") && error.contains("nvidia-cuda-nvrtc"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_kernel_letterboxes_as_the_cpu_does(
        sources in prop::collection::vec((1_u32..300, 1_u32..300), 1..4),
        (width_px, height_px) in (1_u32..130, 1_u32..130),
        seed in any::<u32>(),
    ) {
        let target = Size::new(width_px, height_px);
        let inputs: Vec<_> = (seed..).zip(&sources).map(|(seed, (width_px, height_px))| {
            picture(Size::new(*width_px, *height_px), target, seed)
        }).collect();
        assert_equal(&inputs, sources.len() + 1, target);
    }
}
