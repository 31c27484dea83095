//! The part of the demo that runs inside the cluster's network: probe, phases, forced knob changes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::join_all;
use futures::join;
use kube::Client;
use tokio::sync::watch;
use tokio::time::Instant;

use super::install::{self, SERVICES_NAMESPACE};
use super::observe::{Observer, Seen};
use super::progress::Progress;
use super::scenario::{CALM_SHARE, PROBE, PROBE_RATE_PER_SECOND, PhaseScript, ServiceScript};
use super::served::Served;
use super::site::Site;
use super::status::Status;
use super::timeline::{Span, Track};
use crate::cluster::wait_for;

/// Between two looks at whether a phase may end.
const PHASE_LOOK_EVERY: Duration = Duration::from_secs(1);
/// Changes of the knobs that the p95 of their delay needs; what the operator did not do by itself is forced.
const KNOB_CHANGES_LEAST: usize = 5;
/// A forced change takes a reconcile and the application on all pods.
const FORCED_CHANGE_LIMIT: Duration = Duration::from_secs(20);

/// Where and what to drive.
#[derive(Clone)]
pub struct Stage {
    /// The cluster.
    pub site: Arc<Site>,
    /// Where lines go.
    pub progress: Arc<Progress>,
    /// Folder of models and pictures.
    pub cache: PathBuf,
    /// The services, ready already.
    pub services: &'static [ServiceScript],
    /// The phases, in their order.
    pub phases: &'static [PhaseScript],
}

/// One service at the end of one phase.
#[derive(Debug, Clone)]
pub struct PhaseEnd {
    /// The phase.
    pub phase: &'static str,
    /// The service.
    pub service: &'static str,
    /// Whether `TargetsMet` was True.
    pub met: bool,
    /// Rows that were not met.
    pub missed: Vec<String>,
}

/// Everything that was seen.
pub struct Driven {
    /// The start with its probe, then the phases as they were.
    pub spans: Vec<Span>,
    /// A verdict for each phase and service.
    pub ends: Vec<PhaseEnd>,
    /// A track for each service.
    pub tracks: Vec<Track>,
    /// What was seen of each service, in the order of the stage's services.
    pub seen: Vec<(&'static str, Seen)>,
    /// A page and the answer to it (JSON), for each service.
    pub pages: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Drives load through all phases of `stage`.
///
/// # Errors
/// If a service cannot be reached or its pods say nothing; a missed target is not an error but in the result.
pub async fn drive(client: Client, stage: &Stage) -> anyhow::Result<Driven> {
    let epoch = Instant::now();
    let mut services = Vec::new();
    for &script in stage.services {
        services.push(Served::open(&client, stage, script, epoch).await?);
    }
    let mut pages = Vec::new();
    for service in &services {
        pages.push(service.answer().await?);
    }
    let names: Vec<_> = stage.services.iter().map(|script| script.name).collect();
    let observer = Observer::start(&client, &stage.site, &stage.progress, (&names, epoch));
    for service in &mut services {
        let capacity = service.capacity(PROBE, PROBE_RATE_PER_SECOND).await?;
        service.calm_rate = (CALM_SHARE * capacity).min(service.script.calm_rate_max);
        let Served { script, calm_rate, .. } = service;
        let line = format!("{}: one pod carries {capacity:.1} images/s; calm is {calm_rate:.1}/s", script.name);
        stage.progress.say(&line);
    }
    let mut spans = vec![Span { name: "start", from: Duration::ZERO, until: epoch.elapsed() }];
    let mut ends = Vec::new();
    for (index, phase) in stage.phases.iter().enumerate() {
        let from = epoch.elapsed();
        ends.extend(run_phase(stage, &observer, &mut services, (phase, u64::try_from(index)?)).await);
        spans.push(Span { name: phase.name, from, until: epoch.elapsed() });
    }
    force_knob_changes(stage, &observer).await?;
    let seen: Vec<_> = names.iter().map(|&name| (name, observer.seen(name))).collect();
    let tracks = services.into_iter().zip(&seen).map(|(service, (_, seen))| service.into_track(seen.looks.clone()));
    Ok(Driven { spans, ends, tracks: tracks.collect(), seen, pages })
}

/// Loads all services at once until the phase's end, then reads the verdicts.
async fn run_phase(
    stage: &Stage,
    observer: &Observer,
    services: &mut [Served],
    (phase, seed): (&PhaseScript, u64),
) -> Vec<PhaseEnd> {
    let PhaseScript { name, least, most, .. } = phase;
    stage.progress.say(&format!("phase {name:?}: {} s to {} s", least.as_secs(), most.as_secs()));
    let (stop, stopped) = watch::channel(false);
    let loads = join_all(services.iter_mut().map(|service| service.load(phase, seed, stopped.clone())));
    let ending = async {
        await_phase_end(stage, observer, phase).await;
        let ends = stage.services.iter().map(|script| {
            let status = observer.seen(script.name).status;
            PhaseEnd { phase: phase.name, service: script.name, met: status.is_met(), missed: status.missed }
        });
        let ends: Vec<_> = ends.collect();
        // The receivers live in `loads`, which this is joined with.
        stop.send_replace(true);
        ends
    };
    let (_loaded, ends) = join!(loads, ending);
    for PhaseEnd { service, met, missed, .. } in &ends {
        let verdict =
            if *met { "TargetsMet=True".to_owned() } else { format!("targets NOT met: {}", missed.join(", ")) };
        stage.progress.say(&format!("phase {name:?} ends, {service}: {verdict}"));
    }
    ends
}

/// Waits until `least` has passed and everything expected has happened, at most until `most`.
async fn await_phase_end(stage: &Stage, observer: &Observer, phase: &PhaseScript) {
    let started = Instant::now();
    while started.elapsed() < phase.most {
        tokio::time::sleep(PHASE_LOOK_EVERY).await;
        // The condition turns only after a whole window, so right after a change it still tells of what was before.
        let holds = |status: Status| status.is_met() && status.missed.is_empty();
        let settled = stage.services.iter().all(|script| holds(observer.seen(script.name).status));
        let moved = || {
            let mut expected = phase.expected.iter().filter(|e| stage.services.iter().any(|s| s.name == e.service));
            expected.all(|e| e.change.find(&observer.seen(e.service).status).is_some())
        };
        if started.elapsed() >= phase.least && settled && moved() {
            return;
        }
    }
}

/// Changes a setting that only the knobs document carries, until enough changes have been measured.
async fn force_knob_changes(stage: &Stage, observer: &Observer) -> anyhow::Result<()> {
    let measured = || -> usize { stage.services.iter().map(|s| observer.seen(s.name).knob_changes.len()).sum() };
    let script = stage.services.last().context("a demo without services")?;
    for change in 0..KNOB_CHANGES_LEAST {
        let before = measured();
        if before >= KNOB_CHANGES_LEAST {
            break;
        }
        let patch = format!(r#"{{"spec":{{"overload":{{"queueTimeout":"{}ms"}}}}}}"#, 1_100 + 100 * change);
        let mut kubectl = stage.site.kubectl();
        kubectl.args([
            "patch",
            "yis",
            script.name,
            "--namespace",
            SERVICES_NAMESPACE,
            "--type=merge",
            "--patch",
            &patch,
        ]);
        tokio::task::spawn_blocking(move || install::run(&mut kubectl)).await??;
        wait_for("a forced knob change on all pods", FORCED_CHANGE_LIMIT, async || (measured() > before).then_some(()))
            .await?;
    }
    ensure!(measured() > 0, "no knob change was measured");
    Ok(())
}
