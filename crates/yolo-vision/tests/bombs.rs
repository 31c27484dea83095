//! Small files that ask for much: refused from the header, or decoded for no more than they may cost.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a helper that fails is a failed test")]

mod fixture;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;
use png::{BitDepth, ColorType};
use yolo_vision::{DecodeLimits, Size, decode};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// The allocator counts the whole process, so that one test runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Longest refusal of a file whose header or markers claim too much.
const REFUSAL_MAX: Duration = Duration::from_millis(50);
/// Most memory of such a refusal.
const REFUSAL_BYTES_MAX: usize = 64 << 20;
/// What a decoder takes beside the pixels that its estimate counts: tables, a few rows, the allocator's rounding.
const UNCOUNTED_BYTES_MAX: usize = 1 << 20;

struct Cost {
    verdict: Result<Size, &'static str>,
    time: Duration,
    bytes: usize,
}

/// What decoding costs: the fastest of three times, since a busy machine only adds, and the peak of memory.
fn cost(file: &[u8], limits: &DecodeLimits) -> Cost {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let mut time = Duration::MAX;
    let mut verdict = Err("never decoded");
    for _ in 0..3 {
        let start = Instant::now();
        let decoded = decode(file, limits);
        time = time.min(start.elapsed());
        verdict = decoded.map(|picture| picture.size()).map_err(|error| error.category());
    }
    let bytes = MEMORY.peak_usage().saturating_sub(before);
    Cost { verdict, time, bytes }
}

fn assert_refused_at_once(name: &str, file: &[u8], category: &'static str) {
    let Cost { verdict, time, bytes } = cost(file, &DecodeLimits::default());
    assert_eq!(verdict, Err(category), "{name}");
    assert!(time <= REFUSAL_MAX, "{name}: refused after {time:?}");
    assert!(bytes <= REFUSAL_BYTES_MAX, "{name}: refused after {bytes} bytes");
}

fn patched(name: &str, position: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = fixture::bytes(&format!("decode/{name}"));
    file[position..position + bytes.len()].copy_from_slice(bytes);
    file
}

/// A JPEG fixture whose frame header claims another size.
fn jpeg_of(name: &str, width: u16, height: u16) -> Vec<u8> {
    let file = fixture::bytes(&format!("decode/{name}"));
    let is_frame = |pair: &[u8]| matches!(pair, [0xFF, 0xC0 | 0xC2]);
    let frame = file.windows(2).position(is_frame).expect("a frame header");
    let [width, height] = [width, height].map(u16::to_be_bytes);
    patched(name, frame + 5, &[height, width].concat())
}

fn png_of(size: Size, colour: ColorType, depth: BitDepth) -> Vec<u8> {
    png_with_exif(size, (colour, depth), None)
}

fn png_with_exif(size: Size, (colour, depth): (ColorType, BitDepth), exif: Option<&'static [u8]>) -> Vec<u8> {
    let mut file = Vec::new();
    let mut info = png::Info::with_size(size.width_px, size.height_px);
    info.exif_metadata = exif.map(Into::into);
    let mut encoder = png::Encoder::with_info(&mut file, info).expect("a header");
    encoder.set_color(colour);
    encoder.set_depth(depth);
    if colour == ColorType::Indexed {
        encoder.set_palette(vec![7; 3 * 256]);
    }
    let mut writer = encoder.write_header().expect("a header");
    let row = colour.samples() * usize::try_from(size.width_px).expect("small") * (depth as usize) / 8;
    let rows = usize::try_from(size.height_px).expect("small");
    writer.write_image_data(&vec![3; row * rows]).expect("pixels");
    writer.finish().expect("an end");
    file
}

/// A PNG of one pixel with compressed chunks that inflate to `bytes` each.
fn png_with_metadata(bytes: usize) -> Vec<u8> {
    let mut info = png::Info::with_size(1, 1);
    info.icc_profile = Some(vec![0; bytes].into());
    let mut file = Vec::new();
    let mut encoder = png::Encoder::with_info(&mut file, info).expect("a header");
    encoder.add_ztxt_chunk("Comment".to_owned(), "a".repeat(bytes)).expect("text");
    let mut international = png::text_metadata::ITXtChunk::new("Comment", "a".repeat(bytes));
    international.compressed = true;
    let mut writer = encoder.write_header().expect("chunks");
    writer.write_text_chunk(&international).expect("text");
    writer.write_image_data(&[0]).expect("a pixel");
    writer.finish().expect("an end");
    file
}

fn webp_of(size: Size, colour: image_webp::ColorType, samples: usize, exif: &[u8]) -> Vec<u8> {
    let rgb = fixture::synthetic(size);
    let pixels: Vec<u8> = rgb.rgb().iter().copied().cycle().take(rgb.rgb().len() / 3 * samples).collect();
    let mut file = Vec::new();
    let mut encoder = image_webp::WebPEncoder::new(&mut file);
    encoder.set_exif_metadata(exif.to_vec());
    encoder.encode(&pixels, size.width_px, size.height_px, colour).expect("pixels");
    file
}

/// An EXIF block: held so that rows become columns and turn round.
const TURNED: &[u8] = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";

fn turned_jpeg(file: &[u8]) -> Vec<u8> {
    let (start, rest) = file.split_at(2);
    let length = u16::try_from(2 + 6 + TURNED.len()).expect("small").to_be_bytes();
    [start, &[0xFF, 0xE1], &length, b"Exif\0\0", TURNED, rest].concat()
}

#[test]
fn claims_of_a_header_are_refused_at_once() {
    let _alone = alone();
    let side = 60_000_u32.to_be_bytes();
    assert_refused_at_once("PNG 60000 x 60000", &patched("rgb-8.png", 16, &[side, side].concat()), "image_too_large");
    assert_refused_at_once("PNG 2^32 - 1", &patched("rgb-8.png", 16, &[0xFF; 8]), "image_too_large");
    assert_refused_at_once("PNG of no width", &patched("rgb-8.png", 16, &[0; 4]), "image_empty");
    for name in ["baseline-420.jpg", "progressive.jpg", "cmyk.jpg", "grey.jpg"] {
        assert_refused_at_once(name, &jpeg_of(name, 65_500, 65_500), "image_too_large");
        assert_refused_at_once(name, &jpeg_of(name, 16_000, 16_000), "image_too_large");
        assert_refused_at_once(name, &jpeg_of(name, 0, 100), "image_empty");
    }
    // 14 bits of width, 14 of height, both less 1.
    assert_refused_at_once(
        "lossless WebP",
        &patched("lossless.webp", 21, &[0xFE, 0xBF, 0xFF, 0x0F]),
        "image_too_large",
    );
    assert_refused_at_once("lossy WebP", &patched("lossy.webp", 26, &[0xFF, 0x3F, 0xFF, 0x3F]), "image_too_large");
    assert_refused_at_once(
        "WebP canvas",
        &patched("lossy-alpha.webp", 24, &[0x2F, 0x75, 0, 0x2F, 0x75, 0]),
        "image_too_large",
    );
}

#[test]
fn compressed_metadata_is_not_inflated() {
    let _alone = alone();
    let file = png_with_metadata(64 << 20);
    assert!(file.len() < 1 << 20, "a bomb: {} bytes", file.len());
    let Cost { verdict, time, bytes } = cost(&file, &DecodeLimits::default());
    assert_eq!(verdict, Ok(Size::new(1, 1)), "neither profile nor text changes a pixel");
    assert!(time <= REFUSAL_MAX && bytes <= 2 * file.len() + UNCOUNTED_BYTES_MAX, "{time:?}, {bytes} bytes");
}

/// An orientation that is a text of empty lines: each would become a string of its own.
#[test]
fn a_long_exif_block_is_not_read() {
    let _alone = alone();
    let lines = 8_u32 << 20;
    let entry = [&[0x12, 1, 2, 0][..], &lines.to_le_bytes(), &26_u32.to_le_bytes()].concat();
    let head = [b"II*\0\x08\0\0\0\x01\0", &entry[..], &[0; 4]].concat();
    let block = [head, vec![0; usize::try_from(lines).expect("small")]].concat();
    let mut file = Vec::new();
    let mut writer = png::Encoder::new(&mut file, 1, 1).write_header().expect("a header");
    writer.write_chunk(png::chunk::eXIf, &block).expect("a block");
    writer.write_image_data(&[0]).expect("a pixel");
    writer.finish().expect("an end");
    let Cost { verdict, bytes, .. } = cost(&file, &DecodeLimits::default());
    assert_eq!(verdict, Ok(Size::new(1, 1)));
    assert!(bytes <= 4 * file.len(), "{bytes} bytes for a file of {}", file.len());
}

#[test]
fn pixels_that_the_header_does_not_announce_are_not_kept() {
    let _alone = alone();
    let mut file = png_of(Size::new(8192, 8192), ColorType::Grayscale, BitDepth::Eight);
    file[16..24].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1]);
    let checksum = crc32(&file[12..29]).to_be_bytes();
    file[29..33].copy_from_slice(&checksum);
    let Cost { verdict, time, bytes } = cost(&file, &DecodeLimits::default());
    assert!(verdict == Ok(Size::new(1, 1)) || verdict == Err("bad_image"), "{verdict:?}");
    assert!(time <= REFUSAL_MAX && bytes <= UNCOUNTED_BYTES_MAX, "{time:?}, {bytes} bytes for one pixel");
}

/// The checksum of a PNG chunk.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

#[test]
fn a_jpeg_of_endless_scans_is_refused_at_once() {
    let _alone = alone();
    let file = fixture::bytes("decode/progressive.jpg");
    let scans: Vec<_> = file.windows(2).enumerate().filter(|(_, pair)| *pair == [0xFF, 0xDA]).collect();
    let (last, _) = scans[scans.len() - 1];
    let (head, scan) = (&file[..last], &file[last..file.len() - 2]);
    let bomb = [head, &scan.repeat(20_000), &[0xFF, 0xD9]].concat();
    assert_refused_at_once("20 000 scans", &bomb, "bad_image");
}

/// Nothing of a large file is looked at behind a header that claims too much; twenty MiB are what a server takes.
#[test]
fn a_large_body_behind_a_large_header_is_refused_at_once() {
    let _alone = alone();
    for name in ["baseline-420.jpg", "progressive.jpg"] {
        let header = jpeg_of(name, 65_500, 65_500);
        let escaped = [0xFF, 0].repeat(10 << 20);
        let file = [&header[..header.len() - 2], &escaped, &[0xFF, 0xD9]].concat();
        assert_refused_at_once(name, &file, "image_too_large");
    }
}

/// Bits as WebP stores them, the lowest of a byte first.
#[derive(Default)]
struct Bits(Vec<bool>);

impl Bits {
    fn number(&mut self, value: u32, count: u32) {
        self.0.extend((0..count).map(|bit| value >> bit & 1 == 1));
    }

    /// A prefix code starts with its highest bit.
    fn code(&mut self, value: u32, count: u32) {
        self.0.extend((0..count).rev().map(|bit| value >> bit & 1 == 1));
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.chunks(8).map(|bits| bits.iter().rev().fold(0, |byte, &bit| byte << 1 | u8::from(bit))).collect()
    }
}

/// A lossless WebP of 4 x 4 pixels with `groups` groups of five codes; each is stored in 12 bytes and looked up in 4 KiB.
fn webp_of_many_codes(groups: u16) -> Vec<u8> {
    let mut bits = Bits::default();
    // Size less 1, no alpha, version 0; no transform, no colour cache; groups in blocks of 4 x 4.
    for (value, count) in [(3, 14), (3, 14), (0, 4), (0, 1), (0, 1), (1, 1), (0, 3)] {
        bits.number(value, count);
    }
    // The one block's pixel names the last group, high byte in red, low byte in green: five codes of one symbol.
    let [low, high] = (groups - 1).to_le_bytes().map(u32::from);
    bits.number(0, 1);
    for symbol in [low, high, 0, 0, 0] {
        for (value, count) in [(1, 1), (0, 1), (1, 1), (symbol, 8)] {
            bits.number(value, count);
        }
    }
    for _ in 0..5 * u32::from(groups) {
        // Lengths 1 to 6 are themselves coded in 3 bits, 7 to 10 in 4; places 1 to 14 of the standard's order.
        bits.number(0, 1);
        bits.number(10, 4);
        for width in [0, 0, 0, 3, 3, 3, 3, 3, 0, 3, 4, 4, 4, 4] {
            bits.number(width, 3);
        }
        // Eleven symbols of lengths 1, 2, … 9, 10, 10.
        for (value, count) in [(1, 1), (1, 3), (9, 4)] {
            bits.number(value, count);
        }
        for length in (1..=10).chain([10]) {
            let (code, width) = if length <= 6 { (length - 1, 3) } else { (length + 5, 4) };
            bits.code(code, width);
        }
    }
    let stream = [&[0x2F], &bits.bytes()[..]].concat();
    let length = |bytes: usize| u32::try_from(bytes).expect("small").to_le_bytes();
    let padding = &[0][..stream.len() % 2];
    let chunk = [b"WEBPVP8L", &length(stream.len())[..], &stream, padding].concat();
    [b"RIFF", &length(chunk.len())[..], &chunk].concat()
}

#[test]
fn a_webp_of_many_codes_is_refused_at_once() {
    let _alone = alone();
    let small = cost(&webp_of_many_codes(100), &DecodeLimits::default());
    assert_ne!(small.verdict, Err("image_too_large"), "a hundred groups are fine");
    assert!(small.bytes > 100 * 5 * 4096, "each code takes 4 KiB: the bomb is one ({} bytes)", small.bytes);
    let bomb = webp_of_many_codes(u16::MAX);
    let Cost { verdict, bytes, .. } = cost(&bomb, &DecodeLimits::default());
    assert_eq!(verdict, Err("image_too_large"), "1.3 GB from {} bytes", bomb.len());
    assert!(bytes <= REFUSAL_BYTES_MAX, "{bytes} bytes");
}

/// A canvas of one pixel over a lossy stream that claims 16383 x 16383.
#[test]
fn a_webp_stream_larger_than_its_canvas_is_refused_at_once() {
    let _alone = alone();
    let mut file = fixture::bytes("decode/lossy-alpha.webp");
    let stream = file.windows(4).position(|name| name == b"VP8 ").expect("a lossy stream");
    file[stream + 14..stream + 18].copy_from_slice(&[0xFF, 0x3F, 0xFF, 0x3F]);
    assert_refused_at_once("lossy WebP", &file, "bad_image");
}

/// The smallest `memory_bytes_max` that lets a file through is really enough for its decoder.
#[test]
fn a_decoder_takes_no_more_memory_than_it_is_allowed() {
    let _alone = alone();
    let size = Size::new(1000, 800);
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for name in
        ["baseline-420.jpg", "baseline-444.jpg", "progressive.jpg", "restart-markers.jpg", "grey.jpg", "cmyk.jpg"]
    {
        files.push((name.to_owned(), jpeg_of(name, 1000, 800)));
        files.push((format!("turned {name}"), turned_jpeg(&jpeg_of(name, 1000, 800))));
    }
    for colour in [ColorType::Grayscale, ColorType::Rgb, ColorType::GrayscaleAlpha, ColorType::Rgba] {
        for depth in [BitDepth::Eight, BitDepth::Sixteen] {
            files.push((format!("PNG {colour:?} {depth:?}"), png_of(size, colour, depth)));
            let turned = png_with_exif(size, (colour, depth), Some(TURNED));
            files.push((format!("turned PNG {colour:?} {depth:?}"), turned));
        }
    }
    files.push(("PNG palette".to_owned(), png_of(size, ColorType::Indexed, BitDepth::Eight)));
    for (samples, colour) in [(3, image_webp::ColorType::Rgb8), (4, image_webp::ColorType::Rgba8)] {
        files.push((format!("lossless WebP {colour:?}"), webp_of(size, colour, samples, &[])));
        files.push((format!("turned lossless WebP {colour:?}"), webp_of(size, colour, samples, TURNED)));
    }
    for name in ["lossy.webp", "lossy-alpha.webp", "animated.webp"] {
        files.push((format!("large {name}"), fixture::bytes(&format!("large/{name}"))));
    }
    for (name, file) in files {
        let allowed =
            |bytes| decode(&file, &DecodeLimits { memory_bytes_max: bytes, ..DecodeLimits::default() }).is_ok();
        let (mut refused, mut enough) = (0, 32 << 20);
        assert!(allowed(enough), "{name} is decoded: {:?}", cost(&file, &DecodeLimits::default()).verdict);
        while enough - refused > 1024 {
            let middle = usize::midpoint(refused, enough);
            *(if allowed(middle) { &mut enough } else { &mut refused }) = middle;
        }
        let Cost { verdict, bytes, .. } =
            cost(&file, &DecodeLimits { memory_bytes_max: enough, ..DecodeLimits::default() });
        let turned = Size::new(size.height_px, size.width_px);
        assert!(!name.starts_with("turned") || verdict == Ok(turned), "{name}: {verdict:?}");
        assert!(bytes <= enough + UNCOUNTED_BYTES_MAX, "{name}: allowed {enough} bytes, took {bytes}");
    }
}
