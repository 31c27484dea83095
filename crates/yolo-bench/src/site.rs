//! Where things lie on this machine, and the pictures.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, ensure};
use yolo_loadgen::pictures::Pictures;

/// Paths and pictures of one run.
pub struct Site {
    /// The cache of `make model pages`.
    pub cache: PathBuf,
    /// The model that everybody serves.
    pub model: PathBuf,
    /// Side of its input.
    pub side_px: u32,
    /// JPEG files, by name.
    pub pages: PathBuf,
    /// The same files in memory.
    pub pictures: Pictures,
    /// The optimised server, built beside this program.
    pub server: PathBuf,
    /// Sources of the peers' services.
    pub peers: PathBuf,
    /// For what the contenders print, and for figures.
    pub target: PathBuf,
}

impl Site {
    /// Looks everything up.
    ///
    /// # Errors
    /// If something is missing; the message names the target that makes it.
    pub fn find(side_px: u32) -> anyhow::Result<Self> {
        let cache = std::env::var_os("YOLO_CACHE").map(PathBuf::from).context("YOLO_CACHE is set by make")?;
        let root =
            Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("crates/ lies in the repository")?;
        let program = std::env::current_exe()?;
        let server = program.with_file_name("yolo-server");
        let model = cache.join(format!("models/page-layout-{side_px}.onnx"));
        for needed in [&server, &model] {
            ensure!(needed.exists(), "{} is missing: make bench-peers makes it", needed.display());
        }
        let pages = cache.join("pages/jpeg");
        let run = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
        let pictures = Pictures::read(&pages, run)?;
        let target = root.join("target");
        for folder in ["bench", "figures"] {
            std::fs::create_dir_all(target.join(folder))?;
        }
        Ok(Self { model, side_px, pages, pictures, server, peers: root.join("benches/peers"), target, cache })
    }

    /// The JPEG files' bytes, in the order of their names.
    pub fn files(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(&self.pages)? {
            paths.push(entry?.path());
        }
        paths.sort();
        paths.iter().map(|path| std::fs::read(path).with_context(|| path.display().to_string())).collect()
    }
}
