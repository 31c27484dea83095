//! The server's settings: command line flags, each also an environment variable `YOLO_<NAME>`.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Arg, ArgAction, Args, CommandFactory, FromArgMatches, Parser, ValueEnum};

use crate::limits::{BodyLimits, ConnectionLimits, DETECTIONS_MAX, PictureLimits};

/// What runs the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineKind {
    /// ONNX Runtime, loaded from `ORT_DYLIB_PATH`.
    Ort,
    /// A declared service curve `alpha + beta * batch`, for rehearsing control without the hardware.
    Emulated,
}

/// Execution provider of the `ort` engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Provider {
    /// Decided before loading: CUDA if a GPU is visible and this ONNX Runtime is built for it, else the CPU.
    Auto,
    /// ONNX Runtime's CPU provider.
    Cpu,
    /// NVIDIA CUDA; if it cannot be used, the server does not start: it is never replaced by the CPU.
    Cuda,
    /// NVIDIA `TensorRT`; strict as [`Self::Cuda`] is.
    #[value(name = "tensorrt")]
    TensorRt,
}

/// Arithmetic of the `ort` engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// The model's own; on `TensorRT` 16-bit floats, two to three times as fast.
    Auto,
    /// 32-bit floats.
    Fp32,
    /// 16-bit floats.
    Fp16,
}

/// How sessions share the CPU quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// One session a core, one thread each: most images a second.
    Throughput,
    /// One session over all cores: shortest lone request.
    Latency,
}

/// What the emulated engine pretends to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EmulatedDevice {
    /// One device: batches exclude each other, its busy share is the GPU figure.
    Gpu,
    /// Independent cores: sessions run side by side.
    Cpu,
}

/// Settings of one server.
///
/// [`Config::new`] gives the defaults of the flags, so tests start servers without a command line.
#[derive(Debug, Clone, Parser)]
#[command(name = "yolo-server", version, about = "Inference server for YOLO models")]
pub struct Config {
    /// ONNX file, read again at SIGHUP; with the emulated engine only its stem is used, as the model's name.
    #[arg(long, env = "YOLO_MODEL")]
    pub model: PathBuf,
    /// Expected SHA-256 of the model file, 64 hexadecimal digits.
    #[arg(long, env = "YOLO_MODEL_SHA256")]
    pub model_sha256: Option<String>,
    /// Directory that holds `knobs.json`; without it the built-in knobs stay.
    #[arg(long, env = "YOLO_KNOBS_DIR")]
    pub knobs_dir: Option<PathBuf>,
    /// What runs the model.
    #[arg(long, env = "YOLO_ENGINE", value_enum, default_value = "ort")]
    pub engine: EngineKind,
    /// Execution provider of the `ort` engine.
    #[arg(long, env = "YOLO_PROVIDER", value_enum, default_value = "auto")]
    pub provider: Provider,
    /// Arithmetic of the `ort` engine.
    #[arg(long, env = "YOLO_PRECISION", value_enum, default_value = "auto")]
    pub precision: Precision,
    /// Sides of the square model input, in pixels, separated by commas, for models whose input is dynamic: requests choose
    /// among them with `imgsz`, and the first one is the default. At most 8. Without it the model's own.
    #[arg(long, env = "YOLO_IMGSZ", value_delimiter = ',')]
    pub imgsz: Vec<u32>,
    /// How sessions share the CPU quota.
    #[arg(long, env = "YOLO_PROFILE", value_enum, default_value = "throughput")]
    pub profile: Profile,
    /// Number of sessions; default by profile and CPU quota.
    #[arg(long, env = "YOLO_SESSIONS")]
    pub sessions: Option<usize>,
    /// Default confidence threshold, 0..=1.
    #[arg(long, env = "YOLO_CONF", default_value_t = 0.25, value_parser = share::<f32>)]
    pub conf: f32,
    /// Default `IoU` threshold of the non-maximum suppression, 0..=1.
    #[arg(long, env = "YOLO_IOU", default_value_t = 0.7, value_parser = share::<f64>)]
    pub iou: f64,
    /// Default largest number of detections an image, 1..=3000.
    #[arg(long, env = "YOLO_MAX_DET", default_value_t = 300, value_parser = detections)]
    pub max_det: usize,
    /// Emulated engine: fixed time of a batch, in microseconds.
    #[arg(long, env = "YOLO_EMULATED_ALPHA_MICROS", default_value_t = 6_000)]
    pub emulated_alpha_micros: u64,
    /// Emulated engine: time of each image of a batch, in microseconds.
    #[arg(long, env = "YOLO_EMULATED_BETA_MICROS", default_value_t = 2_200)]
    pub emulated_beta_micros: u64,
    /// Emulated engine: what it pretends to be.
    #[arg(long, env = "YOLO_EMULATED_DEVICE", value_enum, default_value = "gpu")]
    pub emulated_device: EmulatedDevice,
    /// Offer the asynchronous API: `/predict/async` and `/tasks/{id}`.
    #[arg(long, env = "YOLO_TASKS")]
    pub tasks: bool,
    /// Seconds for which a task's result is kept after its end.
    #[arg(long, env = "YOLO_TASKS_TTL_SECONDS", default_value_t = 3_600)]
    pub tasks_ttl_seconds: u64,
    /// Seconds without a sign of life after which a task in the shared store is taken over from its server.
    #[arg(long, env = "YOLO_TASKS_RECLAIM_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub tasks_reclaim_seconds: u64,
    /// File with the URL of a Redis or Valkey that shares results and tasks among servers; it may hold a password.
    #[arg(long, env = "YOLO_REDIS_URL_FILE")]
    pub redis_url_file: Option<PathBuf>,
    /// Names the servers that share: part of every key, so that services can use one Redis.
    #[arg(long, env = "YOLO_REDIS_SCOPE", default_value = "default")]
    pub redis_scope: String,
    /// Collector of OpenTelemetry traces over gRPC, such as `http://collector:4317` or `https://`; without it
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` decides, and without that there are no traces.
    #[arg(long, env = "YOLO_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Seconds after SIGTERM during which new connections are still served, while endpoints propagate.
    #[arg(long, env = "YOLO_DRAIN_PROPAGATION_SECONDS", default_value_t = 5)]
    pub drain_propagation_seconds: u64,
    /// Seconds after SIGTERM at which everything unfinished is refused.
    #[arg(long, env = "YOLO_DRAIN_BUDGET_SECONDS", default_value_t = 25)]
    pub drain_budget_seconds: u64,
    /// Address of the API.
    #[arg(long, env = "YOLO_API_ADDRESS", default_value_t = any(8080))]
    pub api_address: SocketAddr,
    /// Address of the Open Inference Protocol over gRPC.
    #[arg(long, env = "YOLO_GRPC_ADDRESS", default_value_t = any(8001))]
    pub grpc_address: SocketAddr,
    /// Address of `/metrics`, `/livez`, `/readyz`, `/startupz`, `/log` and `/reload`.
    #[arg(long, env = "YOLO_ADMIN_ADDRESS", default_value_t = any(8081))]
    pub admin_address: SocketAddr,
    /// Where the reason is written when the model cannot be served.
    #[arg(long, env = "YOLO_TERMINATION_LOG", default_value = "/dev/termination-log")]
    pub termination_log: PathBuf,
    /// CPU request in millicores (downward API, divisor `1m`): sizes the sessions where no CPU limit is set.
    #[arg(long, env = "YOLO_CPU_REQUEST")]
    pub cpu_request: Option<u64>,
    /// How GPUs are used.
    #[command(flatten)]
    pub gpu: GpuSettings,
    /// Bounds of request bodies.
    #[command(flatten)]
    pub bodies: BodyLimits,
    /// Bounds of one picture.
    #[command(flatten)]
    pub pictures: PictureLimits,
    /// Bounds of the API's connections.
    #[command(flatten)]
    pub connections: ConnectionLimits,
}

/// How GPUs are used.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "GPU")]
pub struct GpuSettings {
    /// Folder for built `TensorRT` engines and the start-up profile; on a volume, engines outlive the pod.
    #[arg(long, env = "YOLO_ENGINE_CACHE_DIR", default_value = Self::ENGINE_CACHE_DIR)]
    pub engine_cache_dir: PathBuf,
    /// Device memory that each session's arena may take, in MiB; default: nine tenths of what is free at start.
    #[arg(long, env = "YOLO_GPU_MEMORY_MIB")]
    pub gpu_memory_mib: Option<u64>,
    /// Record the launches of a batch once and replay them; a model that does not suit it runs without.
    #[arg(long, env = "YOLO_CUDA_GRAPHS", default_value_t = true, action = ArgAction::Set)]
    pub cuda_graphs: bool,
}

impl GpuSettings {
    const ENGINE_CACHE_DIR: &str = "/tmp/yolo-server";
}

impl Default for GpuSettings {
    fn default() -> Self {
        Self { engine_cache_dir: Self::ENGINE_CACHE_DIR.into(), gpu_memory_mib: None, cuda_graphs: true }
    }
}

/// A threshold as requests may give it too.
fn share<T: FromStr + PartialOrd + From<u8>>(text: &str) -> Result<T, &'static str> {
    let number = text.parse().ok().filter(|number| (T::from(0)..=T::from(1)).contains(number));
    number.ok_or("expected a number within 0..=1")
}

/// A number of detections as requests may give it too.
fn detections(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=DETECTIONS_MAX).contains(number));
    number.ok_or_else(|| format!("expected a whole number within 1..={DETECTIONS_MAX}"))
}

const fn any(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}

impl Config {
    /// The defaults of the flags for a model file.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            model_sha256: None,
            knobs_dir: None,
            engine: EngineKind::Ort,
            provider: Provider::Auto,
            precision: Precision::Auto,
            imgsz: Vec::new(),
            profile: Profile::Throughput,
            sessions: None,
            conf: 0.25,
            iou: 0.7,
            max_det: 300,
            emulated_alpha_micros: 6_000,
            emulated_beta_micros: 2_200,
            emulated_device: EmulatedDevice::Gpu,
            tasks: false,
            tasks_ttl_seconds: 3_600,
            tasks_reclaim_seconds: 60,
            redis_url_file: None,
            redis_scope: "default".to_owned(),
            otlp_endpoint: None,
            drain_propagation_seconds: 5,
            drain_budget_seconds: 25,
            api_address: any(8080),
            grpc_address: any(8001),
            admin_address: any(8081),
            termination_log: PathBuf::from("/dev/termination-log"),
            cpu_request: None,
            gpu: GpuSettings::default(),
            bodies: BodyLimits::DEFAULT,
            pictures: PictureLimits::DEFAULT,
            connections: ConnectionLimits::DEFAULT,
        }
    }

    /// Reads flags and the environment, where a variable that is set to nothing counts as not set: many ways to set one
    /// cannot leave it out.
    ///
    /// # Errors
    /// What is wrong with the first flag or variable that is; also where help or the version is asked for.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let empty = |arg: &Arg| arg.get_env().is_some_and(|name| std::env::var_os(name).is_some_and(|v| v.is_empty()));
        let command = Self::command().mut_args(|arg| if empty(&arg) { arg.env(None) } else { arg });
        Self::from_arg_matches(&command.try_get_matches_from(arguments)?)
    }

    /// Time for which a task's result is kept.
    pub const fn tasks_ttl(&self) -> Duration {
        Duration::from_secs(self.tasks_ttl_seconds)
    }

    /// Time without a sign of life after which a task is taken over.
    pub const fn tasks_reclaim(&self) -> Duration {
        Duration::from_secs(self.tasks_reclaim_seconds)
    }

    /// Time after SIGTERM during which new connections are still served.
    pub fn drain_propagation(&self) -> Duration {
        Duration::from_secs(self.drain_propagation_seconds)
    }

    /// Time after SIGTERM at which everything unfinished is refused; never shorter than the propagation.
    pub fn drain_budget(&self) -> Duration {
        Duration::from_secs(self.drain_budget_seconds.max(self.drain_propagation_seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_equals_the_defaults_of_the_flags() {
        let parsed = Config::try_parse_from(["yolo-server", "--model", "m.onnx"]).unwrap();
        assert_eq!(format!("{parsed:?}"), format!("{:?}", Config::new("m.onnx")));
    }

    #[test]
    fn variable_that_is_set_to_nothing_counts_as_not_set() {
        const NAMES: [&str; 6] =
            ["YOLO_MODEL", "YOLO_MODEL_SHA256", "YOLO_IMGSZ", "YOLO_TASKS", "YOLO_CUDA_GRAPHS", "YOLO_API_ADDRESS"];
        if NAMES.iter().any(|name| std::env::var_os(name).is_none()) {
            // Variables belong to the process: the same test once more, in one of its own.
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            again.args(["--exact", "args::tests::variable_that_is_set_to_nothing_counts_as_not_set"]);
            let ended = again.envs(NAMES.map(|name| (name, ""))).output().unwrap();
            let told = String::from_utf8_lossy(&ended.stdout);
            assert!(ended.status.success() && told.contains("1 passed"), "{told}");
            return;
        }
        let read = |flags: &[&str]| Config::read(["yolo-server"].iter().chain(flags).map(Into::into));
        let config = read(&["--model=m.onnx"]).unwrap();
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::new("m.onnx")));
        assert!(read(&[]).is_err(), "no model is named");
        assert_eq!(read(&["--model=m.onnx", "--imgsz=320"]).unwrap().imgsz, [320]);
    }

    #[test]
    fn what_no_request_may_ask_for_is_no_default_either() {
        let parse = |flag: &str| Config::try_parse_from(["yolo-server", "--model", "m.onnx", flag]);
        for flag in ["--conf=7", "--conf=NaN", "--iou=-0.1", "--iou=x", "--max-det=0", "--max-det=3001"] {
            assert!(parse(flag).is_err(), "{flag}");
        }
        for flag in ["--conf=0", "--iou=1", "--max-det=3000"] {
            assert!(parse(flag).is_ok(), "{flag}");
        }
    }
}
