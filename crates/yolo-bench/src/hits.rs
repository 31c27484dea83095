//! How fast the cache answers while the workers have other pictures to do.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{anyhow, ensure};
use yolo_loadgen::pictures::{Mode, Pictures};
use yolo_loadgen::record::Recording;
use yolo_loadgen::schedule::{Phase, arrivals};
use yolo_loadgen::scrape::page;

use crate::contender::{Contender, WORKERS};
use crate::load;
use crate::running::Running;
use crate::site::Site;
use crate::turn::{LOOK, Service, free_address};

const LENGTH: Duration = Duration::from_secs(15);
/// Known pictures a second.
const HIT_RATE: f64 = 60.0;
/// Share of the capacity that new pictures take.
const MISS_SHARE: f64 = 0.2;
/// The goal is one of servers that are not busy.
const UTILISATION_MAX: f64 = 0.3;
const CONNECTIONS: usize = 8;
/// The goal, as a bound of `yolo_http_request_duration_seconds`.
const WITHIN_S: &str = "0.001";
const NGINX_START_MAX: Duration = Duration::from_secs(5);

/// Latency of known pictures.
#[derive(Debug, Clone, Copy)]
pub struct Hits {
    /// Share that the server answered within a millisecond, from a request's last byte to its answer's, as targets count.
    pub within: f64,
    /// 99th percentile as the client sees it, from the start of sending to the last byte.
    pub p99_ms: f64,
    /// The same of the same pictures beside the same load, when a server gets them that throws them away unseen.
    pub discarded_p99_ms: f64,
    /// Answers behind each.
    pub count: usize,
    /// Share of time that the workers were busy with new pictures.
    pub utilisation: f64,
    /// Cores that other work on the machine kept busy.
    pub foreign_cores: f64,
}

/// Sends known and new pictures side by side, from a thread each; then once more, the known ones to nginx, which answers
/// what it has not looked at: what the client sees of that is the machine's, whose cores wake for every request.
///
/// From the start of sending, not from the scheduled time: the client's timer has a grain of 1 ms, as long as the goal.
///
/// # Errors
/// If a server does not serve, a picture was refused, a known one was not a hit, or the workers were busier than the
/// goal allows.
pub fn measure(site: &Site, capacity: f64) -> anyhow::Result<Hits> {
    let service = Service::start(site, Contender::Ours, r#"{"generation":1}"#)?;
    load::runtime()?.block_on(async {
        let client = load::client(Contender::Ours, service.address, 1)?;
        for file in site.files()? {
            client.once(file.into()).await?;
        }
        anyhow::Ok(())
    })?;
    let ours = beside_new(site, &service, (service.address, capacity))?;
    let folder = tempfile::tempdir()?;
    let (address, _nginx) = discarding(site, folder.path())?;
    let discarded = beside_new(site, &service, (address, capacity))?;
    let count = ours.latencies.len();
    #[expect(clippy::cast_precision_loss, reason = "some hundred requests")]
    let known = count as f64;
    ensure!(ours.hits >= known, "{} hits of {known} known pictures", ours.hits);
    Ok(Hits {
        within: ours.within / known,
        p99_ms: load::p99_ms(ours.latencies)?,
        discarded_p99_ms: load::p99_ms(discarded.latencies)?,
        count,
        utilisation: ours.utilisation.max(discarded.utilisation),
        foreign_cores: ours.foreign_cores.max(discarded.foreign_cores),
    })
}

/// What came of known pictures that one server was sent while ours had new ones.
struct Known {
    latencies: Vec<Duration>,
    /// Of our server's answers, those from its cache.
    hits: f64,
    /// And those within the goal; no new picture is done as fast.
    within: f64,
    utilisation: f64,
    foreign_cores: f64,
}

fn beside_new(site: &Site, ours: &Service, (known_at, capacity): (SocketAddr, f64)) -> anyhow::Result<Known> {
    let metrics = || load::runtime()?.block_on(async { Ok::<_, anyhow::Error>(page(ours.admin, "/metrics").await?) });
    let before = metrics()?;
    let watch = ours.running.watch()?;
    let (known, new) = std::thread::scope(|scope| {
        let (rate, new) = (MISS_SHARE * capacity, Mode::Distinct);
        let new = scope.spawn(move || send(ours.address, &site.pictures, (rate, new)));
        let known = send(known_at, &site.pictures, (HIT_RATE, Mode::Repeated))?;
        anyhow::Ok((known, new.join().map_err(|_| anyhow!("the other client panicked"))??))
    })?;
    let foreign_cores = watch.foreign_cores()?;
    let after = metrics()?;
    let grown = |name: &str, labels: &[(&str, &str)]| after.sum(name, labels) - before.sum(name, labels);
    let refused = |of: &Recording| of.outcomes().iter().filter(|outcome| !outcome.ending.is_success()).count();
    let refused = [refused(&known), refused(&new)];
    ensure!(refused == [0, 0], "refused: {} known and {} new pictures", refused[0], refused[1]);
    ensure!(!new.outcomes().is_empty(), "no new picture was sent");
    #[expect(clippy::cast_precision_loss, reason = "a few workers")]
    let utilisation = grown("yolo_worker_busy_seconds_total", &[]) / (WORKERS as f64 * LENGTH.as_secs_f64());
    ensure!(utilisation < UTILISATION_MAX, "the workers were busy {utilisation:.2} of the time");
    let exchanges = known.outcomes().iter().map(|outcome| outcome.ended.saturating_sub(outcome.started));
    Ok(Known {
        latencies: exchanges.collect(),
        hits: grown("yolo_cache_requests_total", &[("result", "hit")]),
        within: grown("yolo_http_request_duration_seconds_bucket", &[("outcome", "ok"), ("le", WITHIN_S)]),
        utilisation,
        foreign_cores,
    })
}

fn send(address: SocketAddr, pictures: &Pictures, (rate_per_second, mode): (f64, Mode)) -> anyhow::Result<Recording> {
    load::runtime()?.block_on(async {
        let client = load::client(Contender::Ours, address, CONNECTIONS)?;
        let schedule = arrivals(&[Phase { rate_per_second, length: LENGTH }], 1);
        Ok(client.run(schedule, (pictures, mode), std::future::pending()).await)
    })
}

/// An nginx that throws away what it gets; it ends with the second value.
fn discarding(site: &Site, folder: &Path) -> anyhow::Result<(SocketAddr, Running)> {
    let (address, at, file) = (free_address()?, folder.display(), folder.join("nginx.conf"));
    std::fs::write(
        &file,
        format!(
            "daemon off; worker_processes {WORKERS}; pid {at}/pid; error_log {at}/error.log; events {{}}
             http {{
                 access_log off; client_body_temp_path {at}; keepalive_requests 1000000;
                 server {{ listen {address}; location / {{ return 200 ok; }} }}
             }}"
        ),
    )?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&file).arg("-e").arg(folder.join("error.log"));
    let nginx = Running::start(command, &File::create(site.target.join("bench/nginx.log"))?)?;
    while TcpStream::connect(address).is_err() {
        ensure!(nginx.started.elapsed() < NGINX_START_MAX, "nginx does not listen: is it installed (make packages)?");
        std::thread::sleep(LOOK);
    }
    Ok((address, nginx))
}
