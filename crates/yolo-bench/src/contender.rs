//! Who is measured, and how each is started and asked.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use yolo_loadgen::envelope::Envelope;

use crate::site::Site;

/// Sessions, processes or replicas of everybody.
pub const WORKERS: usize = 2;

/// A server that detects objects in pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Contender {
    /// This project's server.
    Ours,
    /// `FastAPI` and Ultralytics, as the common tutorial has them.
    Fastapi,
    /// `LitServe`.
    Litserve,
    /// mosec.
    Mosec,
    /// `BentoML`.
    Bentoml,
    /// Ray Serve.
    Ray,
    /// Triton through pytriton.
    Triton,
}

impl Contender {
    /// All but [`Self::Ours`].
    pub const PEERS: [Self; 6] = [Self::Fastapi, Self::Litserve, Self::Mosec, Self::Bentoml, Self::Ray, Self::Triton];

    /// Short and lower case: in file names and figures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "yolo-server",
            Self::Fastapi => "fastapi",
            Self::Litserve => "litserve",
            Self::Mosec => "mosec",
            Self::Bentoml => "bentoml",
            Self::Ray => "ray",
            Self::Triton => "triton",
        }
    }

    /// Path and form of a request, as the peer's own examples have them.
    pub const fn request(self) -> (&'static str, Envelope) {
        match self {
            Self::Ours | Self::Fastapi | Self::Litserve | Self::Bentoml => ("/predict", Envelope::Form("file")),
            Self::Mosec | Self::Ray => ("/predict", Envelope::Raw),
            Self::Triton => ("/v2/models/page-layout/infer", Envelope::Tensor("image")),
        }
    }

    /// Whether it can be measured here; says so if not.
    pub fn installed(self, site: &Site) -> bool {
        let installed = self == Self::Ours || self.environment(site).join("requirements.txt").exists();
        if !installed {
            println!("SKIPPED {}: not installed (tools/bench/peers {})", self.name(), self.name());
        }
        installed
    }

    /// The command that serves at `address`, which is on loopback. `knobs` and `admin` are for this project's server.
    pub fn command(self, site: &Site, address: SocketAddr, (knobs, admin): (&Path, SocketAddr)) -> Command {
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        if self == Self::Ours {
            let mut command = Command::new(&site.server);
            command.arg("--model").arg(&site.model).args(["--sessions", &WORKERS.to_string()]);
            command.args(["--api-address", &address.to_string(), "--admin-address", &admin.to_string()]);
            command.args(["--grpc-address", "127.0.0.1:0"]);
            command.arg("--knobs-dir").arg(knobs).arg("--termination-log").arg(knobs.join("termination"));
            return command;
        }
        let programs = self.environment(site).join("bin");
        let program = if self == Self::Bentoml { "bentoml" } else { "python" };
        let mut command = Command::new(programs.join(program));
        match self {
            Self::Bentoml => command.args(["serve", "serve_bentoml:Detect", "--host", &ip, "--port", &port]),
            Self::Mosec => command.args(["serve_mosec.py", "--address", &ip, "--port", &port]),
            _ => command.arg(format!("serve_{}.py", self.name())),
        };
        command.current_dir(&site.peers).env("YOLO_MODEL", &site.model).env("YOLO_PORT", port);
        command.env("YOLO_SIDE_PX", site.side_px.to_string());
        // Set on some machines for old builds of OpenBLAS; they would slow numpy down.
        command.env_remove("OPENBLAS_CORETYPE").env_remove("OPENBLAS_L2_SIZE");
        command
    }

    fn environment(self, site: &Site) -> PathBuf {
        site.cache.join("peers").join(self.name())
    }
}
