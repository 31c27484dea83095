//! `make gpu-check`: the answers of CUDA and `TensorRT` beside the CPU's on real pages, what ran where, and images a second;
//! with the feature `cuda-preprocess` the device's letterbox beside the CPU's too, bit by bit and by time.
//!
//! Fails where there is no GPU: it must not look as if something had been checked.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::panic, reason = "a check that cannot go on has failed")]

#[path = "../tests/support/pages.rs"]
mod support;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use yolo_server::args::Precision;
use yolo_server::engine::Memory;
use yolo_server::engine::ort::{Device, Gpu, GpuProvider, Options, placement};
use yolo_server::gpu::Gpus;
use yolo_testkit::figures::{self, Figure};
use yolo_vision::{Detection, Picture};

use support::{Expected, detections, opened, page, page_options, prepared, reference};

/// Batch sizes whose throughput is told.
const BATCHES: [usize; 3] = [1, 8, 16];
/// Time for which each is run.
const RUN: Duration = Duration::from_secs(3);
/// Who letterboxes, as figures are named.
const LETTERBOX: &str = if cfg!(feature = "cuda-preprocess") { "device" } else { "cpu" };

/// A way to run the model, and how near to the CPU's its answers must be.
struct Case {
    provider: GpuProvider,
    precision: Precision,
    /// Least overlap (`IoU`) of a box with the CPU's.
    overlap_min: f32,
    /// Largest difference of a score.
    confidence_max: f32,
    /// Largest share of the CPU's elements without such a counterpart: scores near the threshold cross it.
    missing_max: f64,
}

const CASES: [Case; 3] = [
    Case {
        provider: GpuProvider::Cuda,
        precision: Precision::Fp32,
        overlap_min: 0.99,
        confidence_max: 1e-3,
        missing_max: 0.005,
    },
    Case {
        provider: GpuProvider::TensorRt,
        precision: Precision::Fp32,
        overlap_min: 0.98,
        confidence_max: 5e-3,
        missing_max: 0.01,
    },
    Case {
        provider: GpuProvider::TensorRt,
        precision: Precision::Fp16,
        overlap_min: 0.9,
        confidence_max: 0.05,
        missing_max: 0.03,
    },
];

fn main() -> ExitCode {
    let gpus = Gpus::visible();
    if gpus.count() == 0 {
        println!("no NVIDIA GPU here: nothing was checked");
        return ExitCode::FAILURE;
    }
    let mut measured: Vec<Figure> = CASES.iter().flat_map(|case| check(case, &gpus)).collect();
    #[cfg(feature = "cuda-preprocess")]
    measured.extend(letterbox::check());
    figures::add("gpu", "make gpu-check", &mut measured).expect("figures are written");
    print!("{}", figures::table(&measured));
    if measured.iter().all(|figure| figure.met) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn check(case: &Case, gpus: &Gpus) -> Vec<Figure> {
    let name = format!("{}_{:?}_{LETTERBOX}_letterbox", case.provider.as_str(), case.precision).to_lowercase();
    let gpu = Gpu {
        provider: case.provider,
        precision: case.precision,
        devices: 1,
        memory_bytes_max: gpus.memory_bytes_free().map(|free| free / 10 * 9),
        graphs: true,
        cache: std::env::temp_dir().join("yolo-gpu-check"),
    };
    let options = Options { device: Device::Gpu(gpu), precision: case.precision, batch_max: 16, ..page_options(640) };
    // Loading has refused convolutions on the CPU; this says so.
    let placed = placement(&options).unwrap_or_else(|error| panic!("{name}: {error}"));
    println!("{name}: {placed:?}");
    let on_cpu = f64::from(u32::try_from(placed.cpu_convolutions()).expect("few"));
    let mut measured = vec![
        Figure::at_most(format!("{name}_convolutions_on_cpu"), on_cpu, "nodes", 0.0),
        Figure::at_most(format!("{name}_missing"), missing_share(case, &options), "share", case.missing_max),
    ];
    let mut alone = None;
    for batch in BATCHES {
        let rate = images_a_second(&options, batch);
        let gain = rate / *alone.get_or_insert(rate);
        let note = format!("in one session; {gain:.2} x one by one");
        measured.push(Figure::reported(format!("{name}_batch_{batch}"), rate, "images/s").noted(note));
    }
    measured
}

/// Share of the reference's elements that the GPU does not find again, alone and in padded batches.
fn missing_share(case: &Case, options: &Options) -> f64 {
    let reference = reference();
    let pages: Vec<_> = reference.get("png").expect("png pages").iter().collect();
    let model = opened(options);
    let mut engine = model.sessions.open().expect("a session");
    let (mut elements, mut missing) = (0_u32, 0_u32);
    for batch in [1, 3] {
        for pages in pages.chunks(batch) {
            let pictures: Vec<Picture> = pages.iter().map(|(name, _)| page("png", name)).collect();
            let found = detections(engine.as_mut(), &model, &pictures);
            for (found, (name, page)) in found.iter().zip(pages) {
                let lost = page.detections.iter().filter(|expected| !found.iter().any(|one| same(case, one, expected)));
                let lost = u32::try_from(lost.count()).expect("few");
                if lost > 0 {
                    println!("  {name} of {:?}: {lost} of {} not found again", page.size, page.detections.len());
                }
                elements += u32::try_from(page.detections.len()).expect("few");
                missing += lost;
            }
        }
    }
    f64::from(missing) / f64::from(elements)
}

fn same(case: &Case, found: &Detection, expected: &Expected) -> bool {
    found.class == expected.class
        && (found.confidence - expected.confidence).abs() <= case.confidence_max
        && overlap([found.bounds.x1, found.bounds.y1, found.bounds.x2, found.bounds.y2], expected.bounds)
            >= case.overlap_min
}

/// Intersection over union of two boxes, x1 y1 x2 y2.
fn overlap(a: [f32; 4], b: [f32; 4]) -> f32 {
    let area = |[x1, y1, x2, y2]: [f32; 4]| (x2 - x1).max(0.0) * (y2 - y1).max(0.0);
    let ([x1, y1, x2, y2], [u1, v1, u2, v2]) = (a, b);
    let common = area([x1.max(u1), y1.max(v1), x2.min(u2), y2.min(v2)]);
    common / (area(a) + area(b) - common)
}

fn first_page() -> Picture {
    let reference = reference();
    let (name, _) = reference.get("png").and_then(|pages| pages.first_key_value()).expect("png pages");
    page("png", name)
}

fn images_a_second(options: &Options, batch: usize) -> f64 {
    let model = opened(options);
    let mut engine = model.sessions.open().expect("a session");
    let (input, _) = prepared(&first_page(), &model);
    let inputs = vec![&input; batch];
    let mut run = || drop(engine.run(&inputs, Memory::Keep).expect("the engine runs"));
    // The first run opens the size's session.
    run();
    let (start, mut images) = (Instant::now(), 0_u32);
    while start.elapsed() < RUN {
        run();
        images += u32::try_from(batch).expect("few");
    }
    f64::from(images) / start.elapsed().as_secs_f64()
}

#[cfg(feature = "cuda-preprocess")]
mod letterbox {
    use half::f16;
    use yolo_server::engine::ort::DeviceLetterbox;
    use yolo_server::engine::{EngineInput, Pixels};
    use yolo_vision::{Letterbox, Size};

    use super::{Duration, Figure, Instant, Picture, page, reference};

    const TARGET: Size = Size::new(640, 640);
    /// Pages of a batch, and runs whose mean time is told.
    const BATCH: usize = 8;
    const RUNS: u32 = 100;

    /// The device's numbers of all pages beside the CPU's, and the time of a page on both.
    pub fn check() -> Vec<Figure> {
        let reference = reference();
        let pages: Vec<EngineInput> =
            reference.iter().flat_map(|(folder, pages)| pages.keys().map(|name| input(&page(folder, name)))).collect();
        let mut device = DeviceLetterbox::open(0).expect("NVRTC and a GPU");
        let differ: usize = pages.chunks(BATCH).map(|pages| differing(&mut device, pages)).sum();
        let differ = f64::from(u32::try_from(differ).expect("few"));
        let batch: Vec<_> = pages.iter().cycle().take(BATCH).collect();
        let images = u32::try_from(BATCH).expect("few");
        device.time(&batch, TARGET, 1).expect("a first run, which finds its memory");
        let on_device = device.time(&batch, TARGET, RUNS).expect("the device runs") / images;
        let start = Instant::now();
        for _ in 0..RUNS {
            for input in &batch {
                drop(numbers(input));
            }
        }
        let on_cpu = start.elapsed() / (RUNS * images);
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        vec![
            Figure::at_most("device_letterbox_numbers_that_differ", differ, "numbers", 0.0),
            Figure::reported("device_letterbox", milliseconds(on_device), "ms")
                .noted(format!("a page in a batch of {BATCH}, upload included")),
            Figure::reported("cpu_letterbox", milliseconds(on_cpu), "ms")
                .noted("a page on one core, upload not included"),
        ]
    }

    fn input(picture: &Picture) -> EngineInput {
        let letterbox = Letterbox::plan(picture.size(), TARGET).expect("pages are not empty");
        EngineInput { pixels: Pixels::Picture(picture.clone(), letterbox), size: TARGET, content: [0; 32] }
    }

    /// As the CPU makes them.
    fn numbers(input: &EngineInput) -> Vec<f32> {
        let mut numbers = vec![0.0; input.pixels.len()];
        input.pixels.write(&mut numbers).expect("planned for this page");
        numbers
    }

    fn differing(device: &mut DeviceLetterbox, pages: &[EngineInput]) -> usize {
        let expected: Vec<f32> = pages.iter().flat_map(numbers).collect();
        let pages: Vec<_> = pages.iter().collect();
        let singles = device.singles(&pages, TARGET).expect("the device runs");
        let halves = device.halves(&pages, TARGET).expect("the device runs");
        let single = singles.iter().zip(&expected).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        let half = halves.iter().zip(&expected).filter(|(a, b)| a.to_bits() != f16::from_f32(**b).to_bits()).count();
        single + half + expected.len().abs_diff(singles.len()) + expected.len().abs_diff(halves.len())
    }
}
