//! `make gpu-check`: the answers of CUDA and `TensorRT` beside the CPU's on real pages, what ran where, and images a second.
//!
//! Fails where there is no GPU: it must not look as if something had been checked.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::panic, reason = "a check that cannot go on has failed")]

#[path = "../tests/support/pages.rs"]
mod support;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use yolo_server::args::Precision;
use yolo_server::engine::ort::{Device, Gpu, GpuProvider, Options, placement};
use yolo_server::engine::{EngineInput, Memory};
use yolo_server::gpu::Gpus;
use yolo_vision::{Detection, Picture};

use support::{Expected, detections, opened, page, page_options, reference};

/// Batch sizes whose throughput is told.
const BATCHES: [usize; 3] = [1, 8, 16];
/// Time for which each is run.
const RUN: Duration = Duration::from_secs(3);

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
    let passed = CASES.iter().map(|case| check(case, &gpus)).filter(|passed| *passed).count();
    println!("{passed} of {} passed", CASES.len());
    if passed == CASES.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn check(case: &Case, gpus: &Gpus) -> bool {
    let name = format!("{} {:?}", case.provider.as_str(), case.precision);
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
    println!("{name}: {} convolutions on the CPU; {placed:?}", placed.cpu_convolutions());
    let missing = missing_share(case, &options);
    println!(
        "{name}: {:.2} % of the CPU's elements without a counterpart (limit {} %)",
        100.0 * missing,
        100.0 * case.missing_max
    );
    for batch in BATCHES {
        println!("{name}: batch {batch}: {:.0} images/s in one session", images_a_second(&options, batch));
    }
    placed.cpu_convolutions() == 0 && missing <= case.missing_max
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

fn images_a_second(options: &Options, batch: usize) -> f64 {
    let model = opened(options);
    let mut engine = model.sessions.open().expect("a session");
    let len = 3 * usize::try_from(model.info.size().pixels()).expect("it was loaded");
    let input = EngineInput { pixels: vec![114; len].into(), size: model.info.size(), content: [0; 32] };
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
