//! `make demo`: two services from `kubectl apply` to `TargetsMet=True` under load, on a real cluster.
//!
//! [`run`] is the whole story, top to bottom. [`scenario`] holds what is done and expected, with every rate and
//! duration; [`drive`] does it; [`report`] judges what was seen. A test runs the same steps with another scenario.

pub mod drive;
pub mod install;
pub mod knobs;
pub mod observe;
pub mod page;
pub mod plot;
pub mod pods;
pub mod progress;
pub mod report;
pub mod scenario;
pub mod served;
pub mod site;
pub mod status;
pub mod timeline;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;

use crate::figures;
use drive::{Driven, Stage};
use install::{Release, SERVICES_NAMESPACE};
use progress::Progress;
use scenario::{EMULATED_GPU, PAGE_LAYOUT, PHASES, ServiceScript};
use site::Site;

/// Name of the demo's local cluster.
pub const CLUSTER: &str = "demo";

/// The real model first: its page is the one that is drawn.
const SERVICES: &[ServiceScript] = &[PAGE_LAYOUT, EMULATED_GPU];

/// Where the demo takes things from and puts them.
#[derive(Debug, Clone)]
pub struct Options {
    /// The user's kube context; `None` builds a cluster.
    pub context: Option<String>,
    /// What is installed.
    pub release: Release,
    /// Folder of models and pictures.
    pub cache: PathBuf,
    /// Folder of the page, the plot and the description.
    pub output: PathBuf,
    /// Folder of the figures.
    pub figures: PathBuf,
}

/// Runs the demo; true if every promise held.
///
/// # Errors
/// If a step cannot be done at all; its name is in the error.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let Options { context, release, cache, output, figures: _ } = options;
    let progress = Arc::new(Progress::start());
    let site = progress.step("cluster", || match context {
        Some(name) => Site::context(name),
        None => Site::local(CLUSTER),
    })?;
    let site = Arc::new(site);
    progress.step("images", || install::images(&site, release))?;
    progress.step("namespaces, Pod Security restricted", || install::namespaces(&site))?;
    progress.step("operator, by helm", || install::operator(&site, release))?;
    progress.step("services applied and ready", || install::services(&site, &release.repository, SERVICES))?;

    let stage = Stage {
        site: site.clone(),
        progress: progress.clone(),
        cache: cache.clone(),
        services: SERVICES,
        phases: &PHASES,
    };
    let driven = site.block_on(async |client| drive::drive(client, &stage).await)??;

    std::fs::create_dir_all(output).with_context(|| format!("failed to create {}", output.display()))?;
    let boxes = write_page(options, &driven)?;
    plot::timeline(&output.join("timeline.svg"), &driven.spans, &driven.tracks)?;
    let description = install::run(site.kubectl().args(["describe", "yis", "--namespace", SERVICES_NAMESPACE]))?;
    std::fs::write(output.join("describe.txt"), description)?;
    progress.say(&format!("written to {}: page.svg ({boxes} boxes), timeline.svg, describe.txt", output.display()));

    let checks = report::checks(&driven, &PHASES);
    let held = checks.iter().all(|check| check.met);
    let mut all = report::figures(&driven);
    all.push(figures::Figure::reported("wall_time", progress.elapsed_s(), "s"));
    all.extend(checks);
    figures::write(&options.figures, "demo", "make demo", &mut all)?;
    println!("\n{}", figures::table(&all));
    Ok(held)
}

fn write_page(options: &Options, driven: &Driven) -> anyhow::Result<usize> {
    let (jpeg, answer) = driven.pages.first().context("a demo without services")?;
    let (svg, boxes) = page::annotate(jpeg, answer)?;
    std::fs::write(options.output.join("page.svg"), svg)?;
    Ok(boxes)
}
