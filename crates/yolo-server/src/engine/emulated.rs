//! A declared service curve instead of a model: a batch of `b` takes `alpha + beta * b`, with a little seeded jitter.
//!
//! For rehearsing control without the hardware. Answers say so. Only the model's run is emulated: decoding, queue,
//! batching, suppression and everything else are real.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use yolo_vision::{ModelError, ModelInfo, OutputView, Size, TensorShape};

use super::{BatchOutput, Engine, EngineError, EngineInput, LoadError, LoadedModel, Memory, Sessions};
use crate::args::{Config, EmulatedDevice};
use crate::limits;

/// Provider name in answers and metrics.
pub const PROVIDER: &str = "emulated";
/// Side of the pretended model's input where the configuration names none.
const SIDE_PX_DEFAULT: u32 = 640;
/// Rows of the output tensor; unused ones score 0.
const ROWS: usize = 8;
/// Columns: x1, y1, x2, y2, score, class.
const COLUMNS: usize = 6;
/// One image's share of it.
const SHAPE: [usize; 2] = [ROWS, COLUMNS];
/// Largest deviation from the declared curve, as a share: about that of a GPU at fixed clocks.
const JITTER: f64 = 0.02;

/// Describes the pretended model; nothing is read from disk.
///
/// # Errors
/// [`LoadError::Unsupported`] if the input side is no multiple of 32.
pub fn load(config: &Config) -> Result<LoadedModel, LoadError> {
    let name = super::ort::stem(&config.model);
    let (info, sizes) = describe().and_then(|info| super::sized(info, &config.imgsz)).map_err(|error| {
        LoadError::Unsupported { file: config.model.display().to_string(), detail: error.to_string() }
    })?;
    let device = Arc::new(Device {
        exclusive: config.emulated_device == EmulatedDevice::Gpu,
        lock: Mutex::new(()),
        busy_micros: AtomicU64::new(0),
    });
    let curve = Curve {
        alpha: Duration::from_micros(config.emulated_alpha_micros),
        beta: Duration::from_micros(config.emulated_beta_micros),
    };
    let sessions = Arc::new(EmulatedSessions { size: info.size(), curve, device });
    let sha256 = digest(&config.model);
    Ok(LoadedModel {
        info,
        sizes,
        name,
        sha256,
        provider: PROVIDER,
        precision: "fp32",
        batch_max: limits::BATCH_MAX,
        batches_fixed: false,
        letterboxes: false,
        sessions,
    })
}

/// There is no file to hash: the name stands in for it, so that cache keys of two names differ.
pub fn digest(model: &Path) -> String {
    blake3::hash(model.as_os_str().as_encoded_bytes()).to_hex().to_string()
}

fn describe() -> Result<ModelInfo, ModelError> {
    let metadata = BTreeMap::from([
        ("task".to_owned(), "detect".to_owned()),
        ("imgsz".to_owned(), format!("[{SIDE_PX_DEFAULT}, {SIDE_PX_DEFAULT}]")),
        ("names".to_owned(), "{0: 'emulated-a', 1: 'emulated-b'}".to_owned()),
        ("end2end".to_owned(), "True".to_owned()),
    ]);
    let rows = i64::try_from(ROWS).unwrap_or(i64::MAX);
    let columns = i64::try_from(COLUMNS).unwrap_or(i64::MAX);
    ModelInfo::parse(
        &metadata,
        &[TensorShape::new("images", &[-1, 3, -1, -1])],
        &[TensorShape::new("output0", &[-1, rows, columns])],
    )
}

#[derive(Debug, Clone, Copy)]
struct Curve {
    alpha: Duration,
    beta: Duration,
}

#[derive(Debug)]
struct Device {
    exclusive: bool,
    lock: Mutex<()>,
    busy_micros: AtomicU64,
}

impl Device {
    /// Occupies the device for `time`; a GPU waits until it is free.
    fn occupy(&self, time: Duration) {
        let _turn = self.exclusive.then(|| self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        let start = Instant::now();
        thread::sleep(time);
        let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.busy_micros.fetch_add(micros, Ordering::Relaxed);
    }
}

struct EmulatedSessions {
    /// What the curve is declared for.
    size: Size,
    curve: Curve,
    device: Arc<Device>,
}

impl Sessions for EmulatedSessions {
    fn open(&self) -> Result<Box<dyn Engine>, EngineError> {
        let Self { size, curve, device } = self;
        Ok(Box::new(EmulatedEngine { size: *size, curve: *curve, device: Arc::clone(device), runs: 0 }))
    }

    fn device_busy(&self) -> Option<Duration> {
        self.device.exclusive.then(|| Duration::from_micros(self.device.busy_micros.load(Ordering::Relaxed)))
    }
}

struct EmulatedEngine {
    size: Size,
    curve: Curve,
    device: Arc<Device>,
    runs: u64,
}

impl Engine for EmulatedEngine {
    fn run(&mut self, inputs: &[&EngineInput], _: Memory) -> Result<Box<dyn BatchOutput + '_>, EngineError> {
        // An image's time grows with its pixels, a batch's does not.
        let images: f64 = inputs.iter().map(|input| pixels(input.size) / pixels(self.size)).sum();
        self.runs += 1;
        let seed = blake3::hash(&self.runs.to_le_bytes());
        let [byte, ..] = *seed.as_bytes();
        let jitter = 1.0 + JITTER * (f64::from(byte) / 127.5 - 1.0);
        self.device.occupy((self.curve.alpha + self.curve.beta.mul_f64(images)).mul_f64(jitter));
        let rows = inputs.iter().flat_map(|input| rows_of(&input.content, input.size.width_px)).collect();
        Ok(Box::new(EmulatedOutput { rows }))
    }
}

#[expect(clippy::cast_precision_loss, reason = "less than 2^52")]
fn pixels(size: Size) -> f64 {
    size.pixels() as f64
}

struct EmulatedOutput {
    rows: Vec<f32>,
}

impl BatchOutput for EmulatedOutput {
    fn image(&self, index: usize) -> Option<Vec<OutputView<'_>>> {
        let values = self.rows.get(index * ROWS * COLUMNS..(index + 1) * ROWS * COLUMNS)?;
        Some(vec![OutputView { shape: &SHAPE, values }])
    }
}

/// `[ROWS, COLUMNS]`: one to eight boxes, the same for the same file.
fn rows_of(content: &[u8; 32], side_px: u32) -> Vec<f32> {
    let count = usize::from(content[0]) % ROWS + 1;
    let scale = f32::from(u16::try_from(side_px).unwrap_or(u16::MAX)) / 512.0;
    let mut rows = vec![0.0; ROWS * COLUMNS];
    let found = rows.chunks_exact_mut(COLUMNS).zip(content.chunks_exact(4)).take(count).enumerate();
    for (rank, (row, bytes)) in found {
        let [x, y, width, height] = [0, 1, 2, 3].map(|i| bytes.get(i).copied().map_or(0.0, f32::from) * scale);
        let score = 0.95 - 0.05 * f32::from(u8::try_from(rank).unwrap_or(u8::MAX));
        let class = if rank % 2 == 0 { 0.0 } else { 1.0 };
        row.copy_from_slice(&[x, y, x + width + 1.0, y + height + 1.0, score, class]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(content: u8) -> EngineInput {
        EngineInput {
            pixels: Vec::new().into(),
            size: Size::new(640, 640),
            content: *blake3::hash(&[content]).as_bytes(),
        }
    }

    fn timed(model: &LoadedModel, inputs: &[&EngineInput]) -> Duration {
        let mut engine = model.sessions.open().unwrap();
        let start = Instant::now();
        engine.run(inputs, Memory::Keep).unwrap();
        start.elapsed()
    }

    #[test]
    fn a_batch_takes_the_declared_time_and_at_most_the_jitter_less() {
        let mut config = Config::new("pretended.onnx");
        (config.emulated_alpha_micros, config.emulated_beta_micros) = (20_000, 5_000);
        let model = load(&config).unwrap();
        let picture = input(1);
        for size in [1_u32, 4] {
            let declared = Duration::from_micros(20_000 + 5_000 * u64::from(size));
            let took = timed(&model, &vec![&picture; size as usize]);
            assert!(took >= declared.mul_f64(1.0 - JITTER), "{took:?} for a batch of {size}");
        }
        assert!(model.sessions.device_busy().unwrap() >= Duration::from_millis(55).mul_f64(1.0 - JITTER));
    }

    #[test]
    fn detections_depend_on_the_file_alone() {
        let model = load(&Config::new("pretended.onnx")).unwrap();
        let mut engine = model.sessions.open().unwrap();
        let (first, second) = (input(1), input(2));
        let output = engine.run(&[&first, &second, &first], Memory::Keep).unwrap();
        let values = |index| output.image(index).unwrap()[0].values.to_vec();
        assert_eq!(values(0), values(2));
        assert_ne!(values(0), values(1));
        assert!(output.image(3).is_none());
    }
}
