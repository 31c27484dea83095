//! Predicted against measured p95 (control.md §11, G6): open-loop load at shares of the server's own saturation.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use yolo_loadgen::client::{Client, Limits, Target};
use yolo_loadgen::pictures::{Mode, Pictures};
use yolo_loadgen::record::Recording;
use yolo_loadgen::schedule::{Phase, arrivals};
use yolo_operator::build::KnobsDocument;
use yolo_planner::policy::{Accelerator, Knob, LatencyTarget, Routing};
use yolo_planner::units::{BatchSize, Ratio, Replicas, Seconds};
use yolo_planner::{Histogram, Knobs, Policy};
use yolo_testkit::figures::Figure;

use crate::pod::{self, Launch, Pod};
use crate::watch::Watch;

/// Largest error of the predicted p95, as a share of the measured one (G6).
const ERROR_MAX: f64 = 0.10;
/// Largest error of the identified time of the largest batch (G6).
const CURVE_ERROR_MAX: f64 = 0.05;
/// The emulated device: 12 + 4.4·b ms, twice as slow as the `gpu` of control.md, so that two cores carry five servers.
const ALPHA_MICROS: u32 = 12_000;
const BETA_MICROS: u32 = 4_400;
const BATCH: u32 = 16;
/// Not counted: connections open, the queue fills, and the planner's level is a mean over so long.
const LEVEL: Duration = Duration::from_secs(30);
/// More than ever wait close to saturation: who waits for a connection is not in the server's queue, which is predicted.
const CONNECTIONS: usize = 512;
/// Callers of the closed loop that finds the saturation: three batches wait.
const CALLERS: u64 = 64;
const SATURATE: Duration = Duration::from_secs(6);
/// A server that uses less than this in [`SETTLE_LOOK`] has ended its own timing of batches.
const IDLE_CORES: f64 = 0.05;
const SETTLE_LOOK: Duration = Duration::from_secs(1);

/// One server and how it is loaded.
struct Subject<'a> {
    name: &'a str,
    launch: Launch,
    batch: u32,
    accelerator: Accelerator,
    length: Duration,
    pictures: Arc<Pictures>,
}

/// What one utilisation came to.
struct Point {
    utilization: f64,
    measured_s: f64,
    server_s: f64,
    predicted_s: Vec<f64>,
    curve_s: Option<f64>,
    overhead: Histogram,
    overhead_s: f64,
    dispersion: f64,
    kappa: f64,
    foreign_cores: f64,
}

/// The emulated device, five servers at a time, each at a utilisation of its own.
pub async fn emulated(pictures: Arc<Pictures>) -> anyhow::Result<Vec<Figure>> {
    let launch = Launch::emulated(ALPHA_MICROS, BETA_MICROS, &[]);
    // Close to saturation a queue forgets in half a minute only.
    let length = Duration::from_secs(200);
    let subject = Subject { name: "emulated", launch, batch: BATCH, accelerator: Accelerator::Gpu, length, pictures };
    let mut pods = Vec::new();
    for index in 1..=5 {
        pods.push(started(&subject, index).await?);
    }
    let saturation = f64::from(BATCH) / declared_s();
    let loads = [0.3, 0.5, 0.7, 0.85, 0.95];
    let points = futures::future::try_join_all(
        pods.iter().zip(loads).map(|(pod, share)| point(&subject, (pod, &pods), (share, share * saturation))),
    )
    .await?;
    let mut figures: Vec<Figure> = points.iter().map(|point| compared(&subject, point)).collect();
    figures.extend(points.last().map(identified));
    Ok(figures)
}

/// The real model with two sessions, one utilisation after the other.
pub async fn real(model: &str, pictures: Arc<Pictures>) -> anyhow::Result<Vec<Figure>> {
    let flags = vec![format!("--model={model}"), "--sessions=2".to_owned(), "--provider=cpu".to_owned()];
    let launch = Launch { flags, ..Launch::default() };
    let length = Duration::from_secs(80);
    // On CPUs a batch buys nothing: this is what the operator sets.
    let subject = Subject { name: "ort", launch, batch: 1, accelerator: Accelerator::Cpu, length, pictures };
    let pod = started(&subject, 9).await?;
    let saturation = saturation(&pod, &subject.pictures).await?;
    let mut figures = vec![Figure::reported("ort_saturation", saturation, "img/s")];
    for share in [0.3, 0.5, 0.7, 0.85] {
        let point = point(&subject, (&pod, std::slice::from_ref(&pod)), (share, share * saturation)).await?;
        figures.push(compared(&subject, &point));
    }
    Ok(figures)
}

async fn started(subject: &Subject<'_>, index: u8) -> anyhow::Result<Pod> {
    let (policy, knobs) = asked(subject)?;
    let document = KnobsDocument::new(&policy, &knobs).numbered(1);
    let pod = Pod::start((index, subject.name), 1, (&subject.launch, &document)).await?;
    let mut used = pod.cpu_s();
    loop {
        tokio::time::sleep(SETTLE_LOOK).await;
        let now = pod.cpu_s();
        if now - used <= IDLE_CORES * SETTLE_LOOK.as_secs_f64() {
            return Ok(pod);
        }
        used = now;
    }
}

/// One pod, one batch size, targets that ask for no other.
fn asked(subject: &Subject) -> anyhow::Result<(Policy, Knobs)> {
    let (one, batch) = (Replicas::new(1), BatchSize::try_from(subject.batch)?);
    let mut policy = Policy {
        replicas: Knob::auto(one, one),
        batch: Knob::auto(batch, batch),
        cache: Knob::auto(yolo_planner::units::Bytes::default(), yolo_planner::units::Bytes::default()),
        accelerator: subject.accelerator,
        routing: Routing::LeastOutstanding,
        ..Policy::default()
    };
    let loose = LatencyTarget { threshold: Seconds::whole(2), quantile: Ratio::percent(95) };
    (policy.targets.api, policy.targets.inference) = (Some(loose), Some(loose));
    // Nothing is dropped, or the slowest answers would be missing from what is measured.
    policy.overload.queue_timeout = Seconds::whole(10);
    let knobs = Knobs::initial(&policy);
    Ok((policy, knobs))
}

fn client(pod: &Pod) -> anyhow::Result<Client> {
    let address = pod.api();
    let target = Target { address, host: address.to_string(), path: "/predict".to_owned() };
    let limits = Limits { connections: CONNECTIONS, ..Limits::default() };
    Ok(Client::new(target, limits, &[], Instant::now())?)
}

/// Answers a second with [`CALLERS`] in flight; the first half of the time is not counted.
async fn saturation(pod: &Pod, pictures: &Pictures) -> anyhow::Result<f64> {
    let client = client(pod)?;
    let from = client.epoch().elapsed() + SATURATE / 2;
    let recording = client.run_closed((CALLERS, SATURATE), (pictures, Mode::Distinct)).await;
    let counted = recording
        .outcomes()
        .iter()
        .filter(|outcome| outcome.ending.is_success() && (from..from + SATURATE / 2).contains(&outcome.ended));
    Ok(f64::from(u32::try_from(counted.count())?) / (SATURATE / 2).as_secs_f64())
}

async fn point(
    subject: &Subject<'_>,
    (pod, all): (&Pod, &[Pod]),
    (utilization, rate_per_second): (f64, f64),
) -> anyhow::Result<Point> {
    let busy_s = || pod::machine_s() - all.iter().map(Pod::cpu_s).sum::<f64>() - pod::cpu_s(std::process::id());
    let (policy, knobs) = asked(subject)?;
    let mut watch = Watch::start(policy, knobs, vec![pod.view.clone()])?;
    let (client, foreign_s) = (client(pod)?, busy_s());
    let phase = Phase { rate_per_second, length: subject.length };
    // The same arrivals in every run of this bench.
    let seed = (utilization * 1e2).round();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a percentage")]
    let schedule = arrivals(&[phase], seed as u64);
    // A task of its own: planning must not delay what is sent.
    let (sender, pictures) = (client.clone(), subject.pictures.clone());
    let mut load = AbortOnDropHandle::new(tokio::spawn(async move {
        sender.run(schedule, (&pictures, Mode::Distinct), std::future::pending()).await
    }));
    let mut point = Point {
        utilization,
        measured_s: 0.0,
        server_s: 0.0,
        predicted_s: Vec::new(),
        curve_s: None,
        overhead: Histogram::default(),
        overhead_s: 0.0,
        dispersion: 1.0,
        kappa: 1.0,
        foreign_cores: 0.0,
    };
    let (started, mut api) = (Instant::now(), Histogram::default());
    let recording = loop {
        tokio::select! {
            recording = &mut load => break recording?,
            round = watch.round() => {
                let round = round?;
                if started.elapsed() < LEVEL {
                    continue;
                }
                let sample = round.seen.pods.first().and_then(|pod| pod.sample.live());
                if let Some(sample) = sample {
                    api.add(&sample.api);
                    point.overhead.add(&sample.overhead);
                }
                point.learn(&round, watch.state().learned(), subject.batch);
            }
        }
    };
    point.foreign_cores = (busy_s() - foreign_s) / started.elapsed().as_secs_f64();
    point.measured_s = p95_s(&client, &recording, subject.length)?;
    point.server_s = api.quantile(0.95).map_or(0.0, |quantile| quantile.seconds().get());
    Ok(point)
}

impl Point {
    fn learn(&mut self, round: &crate::watch::Round, learned: yolo_planner::Learned, batch: u32) {
        self.kappa = round.decision.explanation.capacity.kappa.get();
        if let Some(record) = &round.expected {
            self.predicted_s.extend(record.predicted.p95.map(Seconds::get));
        }
        self.dispersion = learned.dispersion.map_or(1.0, Ratio::get);
        self.overhead_s = learned.overhead.map_or(0.0, Seconds::get);
        if let Some(curve) = learned.curve {
            let own = curve.sizes.iter().find(|size| size.size.get() == batch).map(|size| size.mean.get());
            self.curve_s = own.or_else(|| Some(curve.alpha.get() + curve.beta.get() * f64::from(batch)));
        }
    }

    fn predicted(&self) -> f64 {
        let mut sorted = self.predicted_s.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// 95th percentile of what clients waited, of the requests scheduled after [`LEVEL`].
fn p95_s(client: &Client, recording: &Recording, length: Duration) -> anyhow::Result<f64> {
    let first = recording.outcomes().iter().map(|outcome| outcome.scheduled).min();
    let from = first.unwrap_or_else(|| client.epoch().elapsed());
    let summary = recording.summary(from + LEVEL, from + length);
    let p95_ms = summary.latency_ms_p95.ok_or_else(|| anyhow::anyhow!("no answer"))?;
    anyhow::ensure!(summary.success_ratio > 0.999, "refused or failed: {:?}", summary.endings);
    Ok(p95_ms / 1e3)
}

fn compared(subject: &Subject, point: &Point) -> Figure {
    let predicted_s = point.predicted();
    let error = (predicted_s / point.measured_s - 1.0).abs();
    let id = format!("{}_p95_error_at_{:.0}", subject.name, point.utilization * 1e2);
    // A prediction that is not there is a miss, not a NaN in the file.
    let error = if error.is_finite() { error } else { 1.0 };
    Figure::at_most(id, error, "ratio", ERROR_MAX).noted(format!(
        "predicted {:.1} ms, clients {:.1}, server {:.1}; overhead in it {:.1} ms, {:.1} on average; \
         dispersion {:.2}, kappa {:.2}; foreign CPU {:.2} cores",
        predicted_s * 1e3,
        point.measured_s * 1e3,
        point.server_s * 1e3,
        point.overhead_s * 1e3,
        point.overhead.mean().unwrap_or(0.0) * 1e3,
        point.dispersion,
        point.kappa,
        point.foreign_cores
    ))
}

/// What the emulated device takes for the largest batch, seconds.
fn declared_s() -> f64 {
    f64::from(ALPHA_MICROS + BETA_MICROS * BATCH) / 1e6
}

/// What of the curve was identified, against what the emulated device declares.
fn identified(point: &Point) -> Figure {
    let (declared_s, curve_s) = (declared_s(), point.curve_s.unwrap_or(0.0));
    Figure::at_most("emulated_largest_batch_error", (curve_s / declared_s - 1.0).abs(), "ratio", CURVE_ERROR_MAX)
        .noted(format!("{:.2} ms, declared {:.2} ms", curve_s * 1e3, declared_s * 1e3))
}
