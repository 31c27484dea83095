//! Picture kernels against OpenCV and numpy on the same machine in the same run, round by round in turn.
//!
//! The other side is `tools/bench/opencv.py`, once with one thread and once as OpenCV comes. Both sides' pixels are
//! compared before anything is timed. Prints a table, adds to `target/figures/server.json`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a bench that cannot run must stop")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use figures::Figure;
use yolo_vision::{DecodeLimits, Letterbox, Picture, Size, decode, letterbox_into, letterbox_parallel_into, normalise};

/// The file alone: the crate around it would bring Kubernetes into a bench of pictures.
#[path = "../../yolo-testkit/src/figures.rs"]
#[allow(dead_code, unused_imports, reason = "a part of it is used")]
mod figures;

const ROUNDS: usize = 15;
/// Repeats of a piece of work in one round; their median counts.
const REPEATS: usize = 15;
const SIDE_PX: u32 = 640;
/// zune-jpeg and libjpeg-turbo differ by so many levels.
const JPEG_LEVELS_MAX: u8 = 4;
const JPEG_MEAN_MAX: f64 = 0.15;
/// What the other side calls "as many threads as OpenCV likes".
const OPENCV_DEFAULT: usize = 0;

fn main() {
    let Some(mut opencv) = Opencv::start() else {
        println!("SKIPPED bench-vision: no Python with OpenCV (make model)");
        return;
    };
    let mut all = vec![];
    all.extend(letterboxes(&mut opencv, Size::new(810, 1080), SIDE_PX, Some(3.0)));
    all.extend(letterboxes(&mut opencv, Size::new(4000, 3000), SIDE_PX, None));
    all.extend(letterboxes(&mut opencv, Size::new(1920, 1080), 2 * SIDE_PX, None));
    all.extend(tensors(&mut opencv));
    all.extend(jpegs(&mut opencv));
    print!("{}", figures::table(&all));
    figures::add("server", "make bench-vision", &mut all).unwrap();
}

/// Resizing, padding and layout, to planar u8 and on to f32; ours on one thread against OpenCV's on one, and the first
/// with both on all cores.
fn letterboxes(opencv: &mut Opencv, size: Size, side_px: u32, goal: Option<f64>) -> Vec<Figure> {
    let picture = synthetic(size);
    let plan = Letterbox::plan(size, Size::new(side_px, side_px)).unwrap();
    let mut planar = vec![0; plan.output_len()];
    let mut tensor = vec![0.0; plan.output_len()];
    let dimensions = format!("{} {} {side_px}", size.width_px, size.height_px);
    let line = format!("letterbox {dimensions}");
    letterbox_into(&picture, &plan, &mut planar).unwrap();
    assert_eq!(planar, opencv.bytes(&line), "the pixels of both sides");
    let name = format!("letterbox_{size}_into_{side_px}");
    let cores = std::thread::available_parallelism().unwrap();
    let alone = Work { name: name.clone(), line: line.clone(), threads: 1, goal };
    let mut figures = versus(opencv, &alone, || letterbox_into(&picture, &plan, &mut planar).unwrap());
    let all_cores = Work { name: format!("{name}_all_cores"), line, threads: OPENCV_DEFAULT, goal };
    figures.extend(versus(opencv, &all_cores, || {
        letterbox_parallel_into(&picture, &plan, &mut planar, cores).unwrap();
    }));
    let to_tensor = Work { name: format!("{name}_f32"), line: format!("input {dimensions}"), threads: 1, goal };
    figures.extend(versus(opencv, &to_tensor, || {
        letterbox_into(&picture, &plan, &mut planar).unwrap();
        normalise(&planar, &mut tensor);
    }));
    figures
}

fn tensors(opencv: &mut Opencv) -> Vec<Figure> {
    let side = usize::try_from(SIDE_PX).unwrap();
    let planar = vec![7; 3 * side * side];
    let mut tensor = vec![0.0; planar.len()];
    let work = Work { name: "tensor_640".to_owned(), line: format!("tensor {SIDE_PX}"), threads: 1, goal: None };
    versus(opencv, &work, || normalise(&planar, &mut tensor))
}

/// A page of a megapixel from the file's bytes to planar pixels.
fn jpegs(opencv: &mut Opencv) -> Vec<Figure> {
    let pages = cache().and_then(|cache| std::fs::read_dir(cache.join("pages/png")).ok());
    let Some(page) = pages.into_iter().flatten().map(|page| page.unwrap().path()).min() else {
        println!("SKIPPED the JPEG: no pages (make pages)");
        return vec![];
    };
    let encoded = opencv.bytes(&format!("megapixel {}", page.display()));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("megapixel.jpg");
    std::fs::write(&file, &encoded).unwrap();
    let line = format!("jpeg {} {SIDE_PX}", file.display());
    let planar = prepared(&encoded);
    let theirs = opencv.bytes(&line);
    let levels = || planar.iter().zip(&theirs).map(|(ours, theirs)| ours.abs_diff(*theirs));
    let mean = levels().map(f64::from).sum::<f64>() / levels().map(|_| 1.0).sum::<f64>();
    assert!(planar.len() == theirs.len() && levels().max() <= Some(JPEG_LEVELS_MAX), "{:?} levels", levels().max());
    assert!(mean <= JPEG_MEAN_MAX, "{mean} levels on average");
    let mut figures = vec![];
    for (name, threads) in [("jpeg_1_megapixel", 1), ("jpeg_1_megapixel_all_cores", OPENCV_DEFAULT)] {
        let work = Work { name: name.to_owned(), line: line.clone(), threads, goal: Some(1.0) };
        figures.extend(versus(opencv, &work, || drop(prepared(&encoded))));
    }
    let decoded = sampled(|| drop(decode(&encoded, &DecodeLimits::default()).unwrap()));
    figures.push(Figure::reported("vision_jpeg_1_megapixel_decode", decoded * 1e3, "ms"));
    figures
}

/// What the server does with a body before the queue.
fn prepared(encoded: &[u8]) -> Vec<u8> {
    let picture = decode(encoded, &DecodeLimits::default()).unwrap();
    let plan = Letterbox::plan(picture.size(), Size::new(SIDE_PX, SIDE_PX)).unwrap();
    let mut planar = vec![0; plan.output_len()];
    letterbox_into(&picture, &plan, &mut planar).unwrap();
    planar
}

/// A piece of work that both sides do.
struct Work {
    name: String,
    /// As `tools/bench/opencv.py` reads it.
    line: String,
    /// OpenCV's.
    threads: usize,
    /// Least speedup.
    goal: Option<f64>,
}

/// OpenCV's time over ours, in turn, and our milliseconds.
fn versus(opencv: &mut Opencv, work: &Work, mut ours: impl FnMut()) -> Vec<Figure> {
    let (mut ratios, mut own_ms) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        let own = sampled(&mut ours);
        ratios.push(opencv.seconds(work.threads, &work.line) / own);
        own_ms.push(own * 1e3);
    }
    let id = format!("vision_{}_speedup", work.name);
    let figure = match work.goal {
        Some(goal) => Figure::at_least(id, median(&mut ratios), "x", goal),
        None => Figure::reported(id, median(&mut ratios), "x"),
    };
    let time = Figure::reported(format!("vision_{}", work.name), median(&mut own_ms), "ms");
    vec![figure.over(&ratios), time.over(&own_ms)]
}

/// Median seconds of [`REPEATS`] calls.
fn sampled(mut work: impl FnMut()) -> f64 {
    let once = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    median(&mut (0..REPEATS).map(once).collect::<Vec<_>>())
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// The picture that `tools/fixtures/fixtures.py` computes under the name `picture`.
fn synthetic(size: Size) -> Picture {
    let value = |x: u32, y: u32, channel: u32| (x * x * 7 + y * y * 13 + x * y * 3 + channel * 1009) >> 3;
    let pixel = |x, y| [0, 1, 2].map(|channel| value(x, y, channel).to_le_bytes()[0]);
    let rgb = (0..size.height_px).flat_map(|y| (0..size.width_px).flat_map(move |x| pixel(x, y))).collect();
    Picture::from_rgb(size, rgb).unwrap()
}

fn cache() -> Option<PathBuf> {
    std::env::var_os("YOLO_CACHE").map(PathBuf::from)
}

/// The other side: a Python process, ended with the bench.
struct Opencv {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Opencv {
    fn start() -> Option<Self> {
        let python = cache()?.join("venv/bin/python");
        python.exists().then(|| Self::spawn(&python))
    }

    fn spawn(python: &Path) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/bench/opencv.py");
        let piped = Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = piped.unwrap();
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self { process, input, output }
    }

    /// Median seconds of [`REPEATS`] of `work`.
    fn seconds(&mut self, threads: usize, work: &str) -> f64 {
        writeln!(self.input, "{threads} {REPEATS} {work}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().parse().unwrap()
    }

    /// What `work` gives.
    fn bytes(&mut self, work: &str) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bytes");
        self.seconds(1, &format!("save {} {work}", file.display()));
        std::fs::read(file).unwrap()
    }
}

impl Drop for Opencv {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
