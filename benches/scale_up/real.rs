//! The real run: load on a deployed service, and everything that was seen of it as a [`Course`].

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::join;
use kube::Client;
use tokio::time::{Instant, sleep_until};
use yolo_loadgen::pictures::Mode;
use yolo_loadgen::record::Recording;
use yolo_loadgen::schedule::Phase;
use yolo_simulator::course::Course;
use yolo_simulator::fleet::Answer;
use yolo_simulator::trace::Trace;
use yolo_testkit::demo::drive::Stage;
use yolo_testkit::demo::install::SERVICES_NAMESPACE;
use yolo_testkit::demo::observe::Observer;
use yolo_testkit::demo::pods::Pods;
use yolo_testkit::demo::scenario::{PROBE, PROBE_RATE_PER_SECOND};
use yolo_testkit::demo::served::Served;
use yolo_testkit::demo::timeline::Look;

use crate::watch::{Life, Seen, Watch};
use crate::{CALM, HIGH, LOW_AGAIN, STEP};

/// Draws the arrivals.
const SEED: u64 = 1;
/// The load begins at a multiple of this after the epoch, so that windows of the whole run begin with the step.
const ALIGNED_S: u64 = 5;
/// The first seconds of the load, which open connections, do not count towards a request's cost.
const WARM: Duration = Duration::from_secs(20);

/// The real run; seconds count from its epoch.
pub struct Real {
    /// What happened.
    pub course: Course,
    /// When each request was due, rising.
    pub moments: Vec<f64>,
    /// Length of the run.
    pub seconds: usize,
    /// The step, from..until.
    pub high: (usize, usize),
    /// From an order during the step to the readiness of each of its pods.
    pub startups_s: Vec<f64>,
    /// Mean of what a request took besides engine and queue, before the step.
    pub overhead_s: f64,
    /// CPU time of an image, before the step.
    pub cpu_s: f64,
}

impl Real {
    /// The arrivals as they were.
    pub fn trace(&self) -> Trace {
        Trace::recorded(&self.moments, self.seconds)
    }

    /// Mean start-up.
    pub fn startup_s(&self) -> f64 {
        self.startups_s.iter().sum::<f64>() / self.startups_s.len() as f64
    }
}

/// Offers the load and watches.
///
/// # Errors
/// If the service cannot be reached, its pods say nothing, or no pod was started by the step.
pub async fn drive(client: Client, stage: &Stage) -> anyhow::Result<Real> {
    let &script = stage.services.first().context("no service")?;
    let epoch = Instant::now();
    let watch = Watch::start(&client, script.name, epoch);
    let mut served = Served::open(&client, stage, script, epoch).await?;
    served.answer().await?;
    // Waits until the pod has timed its batches.
    let best = served.capacity(PROBE, PROBE_RATE_PER_SECOND).await?;
    let observer = Observer::start(&client, &stage.site, &stage.progress, (&[script.name], epoch));

    let from_s = (epoch.elapsed().as_secs() / ALIGNED_S + 1) * ALIGNED_S;
    let from = epoch + Duration::from_secs(from_s);
    sleep_until(from).await;
    let calm = script.calm_rate_max;
    let line = format!("load {calm}/s, then {}/s; a pod carries {best:.1}/s at its first batch limit", calm * STEP);
    stage.progress.say(&line);
    let phase = |rate_per_second, length| Phase { rate_per_second, length };
    let phases = [phase(calm, CALM), phase(calm * STEP, HIGH), phase(calm, LOW_AGAIN)];
    let pods = Pods::new(client.clone(), stage.site.clone(), (SERVICES_NAMESPACE, script.name));
    let load = served.offer((&phases, SEED), Mode::Distinct, std::future::pending());
    let (costs, ()) = join!(costs(&pods, from), load);
    let (overhead_s, cpu_s) = costs?;

    let second = |after: Duration| usize::try_from(from_s + after.as_secs());
    let (seconds, high) = (second(CALM + HIGH + LOW_AGAIN)?, (second(CALM)?, second(CALM + HIGH)?));
    let track = served.into_track(observer.seen(script.name).looks);
    let (seen, course) = (watch.seen(), course(&watch.seen(), (&track.recording, &track.looks), seconds));
    let startups_s = startups(&seen, high);
    ensure!(!startups_s.is_empty(), "the step started no pod");
    let mut moments: Vec<f64> = track.recording.outcomes().iter().map(|o| o.scheduled.as_secs_f64()).collect();
    moments.sort_by(f64::total_cmp);
    Ok(Real { course, moments, seconds, high, startups_s, overhead_s, cpu_s })
}

/// Mean overhead and CPU seconds of a request between the first seconds of the load and the step.
async fn costs(pods: &Pods, from: Instant) -> anyhow::Result<(f64, f64)> {
    const SERIES: [&str; 4] = [
        "yolo_request_overhead_seconds_sum",
        "yolo_request_overhead_seconds_count",
        "yolo_cpu_usage_seconds_total",
        "yolo_arrivals_total",
    ];
    let read = async |at: Instant| -> anyhow::Result<BTreeMap<String, [f64; 4]>> {
        sleep_until(at).await;
        let mut values = BTreeMap::new();
        for pod in pods.ready().await? {
            let page = pod.page().await.with_context(|| format!("{} shows no metrics", pod.name))?;
            values.insert(pod.name, SERIES.map(|series| page.sum(series, &[])));
        }
        Ok(values)
    };
    let (before, after) = (read(from + WARM).await?, read(from + CALM).await?);
    let mut sums = [0.0; 4];
    for (name, values) in &after {
        let Some(first) = before.get(name) else { continue };
        for ((sum, value), first) in sums.iter_mut().zip(values).zip(first) {
            *sum += value - first;
        }
    }
    let [overhead_s, answered, cpu_s, arrived] = sums;
    ensure!(answered > 0.0 && arrived > 0.0, "no request was answered before the step");
    Ok((overhead_s / answered, cpu_s / arrived))
}

fn course(seen: &Seen, (recording, looks): (&Recording, &[Look]), seconds: usize) -> Course {
    let ends = || (1..).take(seconds).map(Duration::from_secs);
    let count = |is: &dyn Fn(&Life, Duration) -> bool| -> Vec<u32> {
        ends().map(|end| seen.pods.values().map(|life| u32::from(is(life, end))).sum()).collect()
    };
    let batch = |end: Duration| {
        let look = looks.iter().rev().find(|look| look.at <= end && !look.pods.is_empty());
        look.map_or(0, |look| look.batch() as u32)
    };
    let answers = recording.outcomes().iter().map(|outcome| Answer {
        at_s: outcome.ended.as_secs_f64(),
        latency_s: outcome.ending.is_success().then(|| outcome.latency().as_secs_f64()),
    });
    Course {
        orders: seen.orders.clone(),
        pods: count(&|life, at| life.is_replica(at)),
        ready: count(&|life, at| life.is_ready(at)),
        batch: ends().map(batch).collect(),
        answers: answers.collect(),
    }
}

/// From the last order before it to the readiness of each pod that was created in these seconds.
fn startups(seen: &Seen, (from, until): (usize, usize)) -> Vec<f64> {
    let span = from as f64..until as f64;
    let started = seen.pods.values().filter(|life| span.contains(&life.created.as_secs_f64()));
    let startup = |life: &Life| {
        let ordered_s = seen.orders.iter().rev().find(|order| order.0 <= life.created.as_secs_f64())?.0;
        Some(life.ready?.as_secs_f64() - ordered_s)
    };
    started.filter_map(startup).collect()
}
