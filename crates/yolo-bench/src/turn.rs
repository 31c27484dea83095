//! One contender's turn: start, first answer, answers, closed loop, memory, overload, end.

use std::fmt;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, ensure};
use yolo_loadgen::scrape::{Page, page};
use yolo_vision::Detection;

use crate::answers::agreement;
use crate::contender::Contender;
use crate::load::{self, Closed, Overload};
use crate::running::Running;
use crate::site::Site;

/// Ray takes some 15 s on two cores.
const START_MAX: Duration = Duration::from_secs(90);
/// Between two looks at a server that starts.
pub const LOOK: Duration = Duration::from_millis(10);
/// Length of the closed loop.
const CLOSED: Duration = Duration::from_secs(5);
/// Knobs of a server without a cache: the peers have none.
pub const UNCACHED: &str = r#"{"generation":1,"cacheBytes":0}"#;
/// Below this a contender does other work than the rest.
const AGREEMENT_MIN: f64 = 0.9;

/// What was measured in one turn.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// From the start of the first process to the first answer with detections.
    pub ready_s: f64,
    /// Objects in common with the ceiling over the objects of either.
    pub agreement: f64,
    /// Capacity.
    pub closed: Closed,
    /// Memory of all processes after the closed loop.
    pub pss_mb: f64,
    /// Cores that other work on the machine kept busy, during the closed loop or the overload, whichever had more.
    pub foreign_cores: f64,
    /// At twice the ceiling's rate.
    pub overload: Option<Overload>,
    /// Images that this project's server started on after their deadline.
    pub started_late: f64,
}

/// A service that answers.
pub struct Service {
    /// Its processes.
    pub running: Running,
    /// Where it answers.
    pub address: SocketAddr,
    /// Where this project's server shows its metrics.
    pub admin: SocketAddr,
    /// To the first answer.
    pub ready_s: f64,
    /// Holds `knobs.json`.
    _knobs: tempfile::TempDir,
}

impl Service {
    /// Starts a contender and waits for its first answer. `knobs` is for this project's server.
    ///
    /// # Errors
    /// If it ends or does not answer in time.
    pub fn start(site: &Site, contender: Contender, knobs: &str) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("knobs.json"), knobs)?;
        let (address, admin) = (free_address()?, free_address()?);
        let log = site.target.join(format!("bench/{}.log", contender.name()));
        let command = contender.command(site, address, (folder.path(), admin));
        let running = Running::start(command, &File::create(&log)?)?;
        let mut service = Self { running, address, admin, ready_s: 0.0, _knobs: folder };
        let picture = site.files()?.into_iter().next().context("no picture")?;
        load::runtime()?.block_on(async {
            let client = load::client(contender, address, 1)?;
            while !client.once(picture.clone().into()).await.is_ok_and(|(status, _)| status == 200) {
                let waited = service.running.started.elapsed();
                ensure!(!service.running.ended()? && waited < START_MAX, "no answer; see {}", log.display());
                tokio::time::sleep(LOOK).await;
            }
            anyhow::Ok(())
        })?;
        service.ready_s = service.running.started.elapsed().as_secs_f64();
        Ok(service)
    }
}

/// An address on loopback that nobody listens at.
///
/// # Errors
/// If the system has none.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Turn {
    /// Starts a contender, measures it and ends it. `overload` is the rate of the open loop, in pictures a second.
    ///
    /// # Errors
    /// If it does not serve, or finds other objects than `expected`.
    pub fn take(
        site: &Site,
        contender: Contender,
        expected: &[Vec<Detection>],
        overload: Option<f64>,
    ) -> anyhow::Result<Self> {
        let service = Service::start(site, contender, UNCACHED)?;
        let address = service.address;
        let agreement = agreement(contender, address, (site.files()?, expected))?;
        ensure!(agreement >= AGREEMENT_MIN, "finds other objects: {agreement:.2} in common");
        let watch = service.running.watch()?;
        let closed = load::closed(contender, address, (&site.pictures, CLOSED))?;
        let foreign_cores = watch.foreign_cores()?;
        let pss_mb = service.running.pss_mb()?;
        let watch = service.running.watch()?;
        let overload = overload.map(|rate| load::overload(contender, address, (&site.pictures, rate))).transpose()?;
        let foreign_cores = if overload.is_some() { foreign_cores.max(watch.foreign_cores()?) } else { foreign_cores };
        let started_late = if contender == Contender::Ours { late(service.admin)? } else { 0.0 };
        Ok(Self { ready_s: service.ready_s, agreement, closed, pss_mb, foreign_cores, overload, started_late })
    }
}

/// Images whose batch began after their deadline, which counts from the last byte of the request.
fn late(admin: SocketAddr) -> anyhow::Result<f64> {
    let metrics: Page = load::runtime()?.block_on(page(admin, "/metrics"))?;
    metrics.value("yolo_images_started_late_total", &[]).context("the server does not count late starts")
}

impl fmt::Display for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ready_s, agreement, closed, pss_mb, foreign_cores, overload, started_late: _ } = self;
        write!(
            f,
            "{:.1}/s, p99 {:.0} ms, {pss_mb:.0} MB, ready in {ready_s:.2} s, {agreement:.3} of objects in common, \
             {foreign_cores:.2} cores of foreign load",
            closed.rate, closed.p99_ms
        )?;
        if let Some(Overload { p99_ms, goodput, unanswered_ratio, refusal_ms: _ }) = overload {
            write!(f, "; overload: p99 {p99_ms:.0} ms, {goodput:.1}/s in time, {unanswered_ratio:.2} refused")?;
        }
        Ok(())
    }
}
