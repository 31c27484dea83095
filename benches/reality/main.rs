//! The planner's model against the real server (control.md §10 "Calibrate", §11 G6): predicted and measured p95, the
//! identified curve, and the bottleneck named for faults made with real means.
//!
//! Real `yolo-server` processes under open-loop load, read by the operator's own sampler, planned on by the planner.
//! Arguments name the parts to run (`emulated`, `real`, `faults`; none: all). Prints tables, adds to
//! `reality.json` in the folder that `YOLO_FIGURES` names. Wants a machine that does nothing else; the figures say how
//! busy it was.

mod faults;
mod latency;
mod pod;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use yolo_loadgen::pictures::Pictures;
use yolo_testkit::figures;

fn main() -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> anyhow::Result<()> {
    let parts: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|one| one == part);
    let cache = std::env::var_os("YOLO_CACHE").map(PathBuf::from).context("YOLO_CACHE is set by make")?;
    let run = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
    let pages = Arc::new(Pictures::read(&cache.join("pages/jpeg"), run)?);
    let thumbnails = Arc::new(Pictures::read(&cache.join("pages/thumbnails"), run)?);
    let mut all = Vec::new();
    if wanted("emulated") {
        all.extend(latency::emulated(thumbnails.clone()).await?);
    }
    if wanted("real") {
        let model = cache.join("models/page-layout-320.onnx");
        all.extend(latency::real(&model.display().to_string(), pages.clone()).await?);
    }
    if wanted("faults") {
        all.extend(faults::diagnose(pages, thumbnails).await?);
    }
    print!("{}", figures::table(&all));
    figures::add("reality", "make bench-reality", &mut all)
}
