//! How fast the cache answers while the workers have other pictures to do.

use std::time::Duration;

use anyhow::{anyhow, ensure};
use yolo_loadgen::pictures::{Mode, Pictures};
use yolo_loadgen::record::Recording;
use yolo_loadgen::schedule::{Phase, arrivals};
use yolo_loadgen::scrape::page;

use crate::contender::{Contender, WORKERS};
use crate::load;
use crate::site::Site;
use crate::turn::Service;

const LENGTH: Duration = Duration::from_secs(15);
/// Known pictures a second.
const HIT_RATE: f64 = 60.0;
/// Share of the capacity that new pictures take.
const MISS_SHARE: f64 = 0.2;
/// The goal is one of servers that are not busy.
const UTILISATION_MAX: f64 = 0.3;
const CONNECTIONS: usize = 8;

/// Latency of known pictures.
#[derive(Debug, Clone, Copy)]
pub struct Hits {
    /// 99th percentile, from the start of sending to the last byte.
    pub p99_ms: f64,
    /// Answers behind it.
    pub count: usize,
    /// Share of time that the workers were busy with new pictures.
    pub utilisation: f64,
    /// Cores that other work on the machine kept busy.
    pub foreign_cores: f64,
}

/// Sends known and new pictures side by side, from a thread each.
///
/// From the start of sending, not from the scheduled time: the client's timer has a grain of 1 ms, as long as the goal.
///
/// # Errors
/// If the server does not serve, a picture was refused, a known one was not a hit, or the workers were busier than the
/// goal allows.
pub fn measure(site: &Site, capacity: f64) -> anyhow::Result<Hits> {
    let service = Service::start(site, Contender::Ours, r#"{"generation":1}"#)?;
    let metrics =
        || load::runtime()?.block_on(async { Ok::<_, anyhow::Error>(page(service.admin, "/metrics").await?) });
    load::runtime()?.block_on(async {
        let client = load::client(Contender::Ours, service.address, 1)?;
        for file in site.files()? {
            client.once(file.into()).await?;
        }
        anyhow::Ok(())
    })?;
    let before = metrics()?;
    let watch = service.running.watch()?;
    let send = |rate: f64, mode: Mode| send(&service, &site.pictures, (rate, mode));
    let (known, new) = std::thread::scope(|scope| {
        let new = scope.spawn(|| send(MISS_SHARE * capacity, Mode::Distinct));
        let known = send(HIT_RATE, Mode::Repeated)?;
        anyhow::Ok((known, new.join().map_err(|_| anyhow!("the other client panicked"))??))
    })?;
    let foreign_cores = watch.foreign_cores()?;
    let after = metrics()?;
    let grown = |name: &str, labels: &[(&str, &str)]| after.sum(name, labels) - before.sum(name, labels);
    let refused = |of: &Recording| of.outcomes().iter().filter(|outcome| !outcome.ending.is_success()).count();
    let refused = [refused(&known), refused(&new)];
    ensure!(refused == [0, 0], "refused: {} known and {} new pictures", refused[0], refused[1]);
    let exchanges = known.outcomes().iter().map(|outcome| outcome.ended.saturating_sub(outcome.started));
    let latencies: Vec<_> = exchanges.collect();
    let (count, hits) = (latencies.len(), grown("yolo_cache_requests_total", &[("result", "hit")]));
    #[expect(clippy::cast_precision_loss, reason = "some hundred requests")]
    let (workers, known) = (WORKERS as f64, count as f64);
    ensure!(hits >= known, "{hits} hits of {known} known pictures");
    ensure!(!new.outcomes().is_empty(), "no new picture was sent");
    let utilisation = grown("yolo_worker_busy_seconds_total", &[]) / (workers * LENGTH.as_secs_f64());
    ensure!(utilisation < UTILISATION_MAX, "the workers were busy {utilisation:.2} of the time");
    Ok(Hits { p99_ms: load::p99_ms(latencies)?, count, utilisation, foreign_cores })
}

fn send(service: &Service, pictures: &Pictures, (rate_per_second, mode): (f64, Mode)) -> anyhow::Result<Recording> {
    load::runtime()?.block_on(async {
        let client = load::client(Contender::Ours, service.address, CONNECTIONS)?;
        let schedule = arrivals(&[Phase { rate_per_second, length: LENGTH }], 1);
        Ok(client.run(schedule, (pictures, mode), std::future::pending()).await)
    })
}
