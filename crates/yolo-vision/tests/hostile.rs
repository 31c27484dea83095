//! Hostile and damaged input: an error of the right category, never a panic, never more memory than allowed.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a helper that fails is a failed test")]

mod fixture;

use proptest::prelude::*;
use serde::Deserialize;
use yolo_vision::{DecodeLimits, decode};

#[derive(Deserialize)]
struct File {
    file: String,
}

fn files(ending: &str) -> Vec<String> {
    let all: Vec<File> = fixture::fixtures("decode.json");
    all.into_iter().map(|entry| entry.file).filter(|name| name.ends_with(ending)).collect()
}

fn category(bytes: &[u8]) -> Result<(), &'static str> {
    let decoded = decode(bytes, &DecodeLimits::default());
    decoded.map(drop).map_err(|error| {
        assert!(!error.to_string().contains('\n'), "one line: {error}");
        error.category()
    })
}

/// A PNG may lack what follows the pixels: their checksum, further frames, the closing chunk.
fn png_pixels_end(file: &[u8]) -> usize {
    let start = file.windows(4).rposition(|name| name == b"IDAT").expect("pixels");
    let length = u32::from_be_bytes(*file[start - 4..].first_chunk().expect("four bytes"));
    start + 4 + usize::try_from(length).expect("small")
}

#[test]
fn no_prefix_of_a_picture_is_taken_for_the_whole() {
    for ending in [".jpg", ".png", ".webp"] {
        for name in files(ending) {
            let whole = fixture::bytes(&format!("decode/{name}"));
            let needed = if ending == ".png" { png_pixels_end(&whole) } else { whole.len() };
            for end in 0..needed {
                let refused = category(&whole[..end]);
                assert!(
                    refused == Err("bad_image") || refused == Err("unsupported_image"),
                    "{name} cut at {end}: {refused:?}"
                );
            }
        }
    }
}

#[test]
fn other_formats_are_told_by_their_first_bytes() {
    let others: [&[u8]; 14] = [
        b"",
        b"GIF89a",
        b"BM",
        b"<svg/>",
        b"%PDF-1.7",
        b"II*\0",
        b"MM\0*",
        b"\0\0\x01\0",
        b"\0\0\0\x18ftypavif",
        b"\0\0\0\x18ftypmp42",
        b"PK\x03\x04",
        b"\x89PNG",
        b"RIFF\0\0\0\0WAVE",
        b"\xFF\x4F\xFF\x51",
    ];
    for bytes in others {
        assert_eq!(category(bytes), Err("unsupported_image"), "{bytes:?}");
    }
}

#[test]
fn a_polyglot_is_what_its_first_bytes_say() {
    for name in ["baseline-420.jpg", "rgb-8.png", "lossless.webp"] {
        let file = fixture::bytes(&format!("decode/{name}"));
        let pixels = |bytes: &[u8]| decode(bytes, &DecodeLimits::default()).map(|picture| picture.rgb().to_vec());
        let with_archive = [&file[..], b"PK\x03\x04<?php system($_GET['c']); ?>"].concat();
        assert_eq!(pixels(&with_archive).ok(), pixels(&file).ok(), "{name} with an archive behind it");
        for front in [&b"GIF89a"[..], b"%PDF-1.7\n", b"<svg>", b"\n"] {
            assert_eq!(category(&[front, &file].concat()), Err("unsupported_image"), "{name} behind {front:?}");
        }
    }
}

/// Changes the size that a fixture's header claims, and leaves the rest.
fn claiming(name: &str, position: usize, size: &[u8]) -> Vec<u8> {
    let mut bytes = fixture::bytes(&format!("decode/{name}"));
    bytes[position..position + size.len()].copy_from_slice(size);
    bytes
}

#[test]
fn a_header_that_claims_too_much_is_refused_before_decoding() {
    // Width and height of PNG stand at 16; its header's checksum is only looked at later.
    let png = claiming("rgb-8.png", 16, &[0, 0, 0x40, 0, 0, 0, 0x40, 0]);
    assert_eq!(category(&png), Err("image_too_large"), "16384 x 16384 are more than 50 megapixels");
    let jpeg = fixture::bytes("decode/baseline-444.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).expect("a baseline frame");
    let wide = claiming("baseline-444.jpg", frame + 5, &[0x3E, 0x80, 0x3E, 0x80]);
    assert_eq!(category(&wide), Err("image_too_large"), "16000 x 16000");
}

#[test]
fn an_empty_picture_is_named_so() {
    assert_eq!(category(&claiming("rgb-8.png", 16, &[0; 8])), Err("image_empty"));
    let jpeg = fixture::bytes("decode/baseline-444.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).expect("a baseline frame");
    assert_eq!(category(&claiming("baseline-444.jpg", frame + 5, &[0, 0, 0, 50])), Err("image_empty"));
}

#[test]
fn limits_are_the_callers() {
    let limits = DecodeLimits { side_px_max: 18, ..DecodeLimits::default() };
    let refused = decode(&fixture::bytes("decode/rgb-8.png"), &limits).expect_err("19 pixels wide");
    assert_eq!(
        refused.to_string(),
        "the picture is too large (19x11 pixels): at most 50000000 pixels in all and 18 a side"
    );
    let limits = DecodeLimits { memory_bytes_max: 600, ..DecodeLimits::default() };
    let refused = decode(&fixture::bytes("decode/rgb-8.png"), &limits).expect_err("19 x 11 x 4 bytes");
    assert_eq!(refused.category(), "image_too_large");
}

/// The limit counts what the decoder keeps: the coefficients of a progressive file, but not of a baseline one.
#[test]
fn a_progressive_file_needs_more_memory_than_a_baseline_one() {
    let limits = DecodeLimits { memory_bytes_max: 50 * 37 * 4, ..DecodeLimits::default() };
    let decoded = |name: &str| decode(&fixture::bytes(&format!("decode/{name}")), &limits);
    assert!(decoded("baseline-420.jpg").is_ok());
    assert_eq!(decoded("progressive.jpg").map_err(|error| error.category()), Err("image_too_large"));
}

proptest! {
    #[test]
    fn damaged_bytes_never_panic(
        file in 0..1000_usize,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let names = files("");
        let mut bytes = fixture::bytes(&format!("decode/{}", names[file % names.len()]));
        for (position, value) in damage {
            let position = position.index(bytes.len());
            bytes[position] = value;
        }
        let limits = DecodeLimits { pixels_max: 1 << 20, ..DecodeLimits::default() };
        if let Ok(picture) = decode(&bytes, &limits) {
            prop_assert!(picture.size().pixels() <= limits.pixels_max);
        }
    }
}

/// Fuzzing found it: it panicked once.
#[test]
fn a_webp_symbol_beyond_its_alphabet_is_refused() {
    assert_eq!(category(&fixture::bytes("found/symbol-beyond-alphabet.webp")), Err("bad_image"));
}
