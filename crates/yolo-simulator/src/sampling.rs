//! Pods' counters as the planner's `Observation`: what the operator's sampler and `observe` make of them
//! (`src/sampler.rs`, `src/sampler/snapshot.rs`, `src/observe.rs` of the root package).
//!
//! A pod is read from shortly before it serves; two readings make a sample; a failed reading lets the last sample grow
//! old. Counters here are increases since the last reading, which comes to the same as differences.

use yolo_planner::histogram::Histogram;
use yolo_planner::observation::{
    Applied, BatchCount, CacheCounts, CurvePoint, GhostSize, Ghosts, GpuLoad, NoData, PerSecond, Phase, Pod as SeenPod,
    Sample, Signal, Stage, Stages,
};
use yolo_planner::policy::Accelerator;
use yolo_planner::units::{BatchSize, Bytes, Cores, Count, Ratio, Seconds, SecondsSquared, Timestamp};
use yolo_planner::{Knobs, Observation};

use crate::cache::GHOST_BYTES;
use crate::fleet::{Buckets, Counters, LATENCY_EDGES_S, Life, Pod};
use crate::random::Random;
use crate::world::World;

/// Start of a run, seconds since 1970: a midnight, so that hours of a trace are hours of a day.
const EPOCH_S: f64 = 1_800_057_600.0;
/// A pod answers `/metrics` this long before it is ready.
const ANSWERS_BEFORE_S: f64 = 5.0;
/// A sample older than so many scrapes is stale.
pub const STALE_SCRAPES: f64 = 3.0;
/// A sample older than this is not shown.
pub const FORGOTTEN_S: f64 = 600.0;
/// Readings further apart make no sample.
pub const SPAN_MAX_S: f64 = 120.0;
/// Working set without images and cache.
pub const BASE_BYTES: u64 = 300 << 20;
/// What an image of a batch adds.
pub const IMAGE_BYTES: u64 = 8 << 20;
/// Memory limit without a fault (the resource's default).
const MEMORY_LIMIT_BYTES: u64 = 2 << 30;
/// CPU that an idle pod uses, cores.
const IDLE_CORES: f64 = 0.01;
/// Scheduler periods a second.
const PERIODS_PER_S: f64 = 10.0;
/// Time to hash a picture.
const HASH_S: f64 = 1e-4;
/// Sizes that the server times at idle, and the gain below which it stops (control.md §3).
const TIMED: [u32; 6] = [1, 2, 4, 8, 16, 32];
const TIMED_GAIN: f64 = 0.03;
const TIMED_LIMIT_S: f64 = 0.1;
/// 95 % quantile of a batch's time over its mean at 3 % jitter.
const TIMED_P95: f64 = 1.05;
/// Share of the CPU time outside the engine that decoding takes, and preprocessing.
const DECODE_SHARE: f64 = 0.6;
const PREPROCESS_SHARE: f64 = 0.2;

/// What is remembered of one pod.
#[derive(Debug, Clone, Default)]
struct Memory {
    sample: Option<Sample>,
    unreachable: bool,
}

/// The operator's sampler.
#[derive(Debug)]
pub struct Sampler {
    world: World,
    memory: Vec<Memory>,
    curve: Vec<CurvePoint>,
    random: Random,
}

impl Sampler {
    /// A sampler that has read nothing yet.
    pub fn new(world: &World, seed: u64) -> Self {
        Self { curve: timed(world), world: world.clone(), memory: Vec::new(), random: Random::new(seed, 6) }
    }

    /// Whether the next pod will be one that cannot be read.
    pub fn is_silent(&mut self) -> bool {
        let share = self.world.metrics.silent_share;
        share > 0.0 && self.random.unit() <= share
    }

    /// One round.
    pub fn read(&mut self, pods: &mut [Pod], now_s: f64) {
        let blind = self.world.metrics.blind_s.is_some_and(|(from, until)| (from..until).contains(&now_s));
        self.memory.resize(pods.len(), Memory::default());
        for (pod, memory) in pods.iter_mut().zip(&mut self.memory) {
            if pod.life == Life::Ended {
                memory.sample = None;
                continue;
            }
            if now_s < pod.ready_s - ANSWERS_BEFORE_S {
                continue;
            }
            memory.unreachable = blind || pod.silent;
            if memory.unreachable {
                continue;
            }
            let span_s = pod.read_s.map(|read_s| now_s - read_s).filter(|span_s| *span_s <= SPAN_MAX_S);
            if let Some(span_s) = span_s {
                memory.sample = Some(sample(&self.world, pod, &self.curve, (now_s, span_s)));
            }
            pod.counters = Counters { bin: pod.counters.bin, ..Counters::default() };
            pod.cache_read = pod.cache.as_ref().map(|cache| cache.counters).unwrap_or_default();
            pod.read_s = Some(now_s);
        }
    }

    /// The fleet as the planner is shown it. `applied_pods`: serving pods that run the ordered knobs.
    pub fn observe(&self, pods: &[Pod], (knobs, applied_pods): (&Knobs, u32), now_s: f64) -> Observation {
        let mut observation = Observation::new(*knobs);
        observation.applied_pods = applied_pods;
        for (index, pod) in pods.iter().enumerate() {
            let phase = match pod.life {
                Life::Starting => Phase::Pending,
                Life::Ready => Phase::Ready,
                Life::Draining => Phase::Draining,
                Life::Ended => continue,
            };
            observation.pods.push(SeenPod {
                id: index as u64,
                class: 0,
                phase,
                created: timestamp(pod.created_s),
                ready: (pod.life != Life::Starting).then(|| timestamp(pod.ready_s)),
                oom_killed: None,
                sample: self.memory.get(index).map_or(Signal::NoData(NoData::NeverSeen), |m| self.signal(m, now_s)),
            });
        }
        observation
    }

    fn signal(&self, memory: &Memory, now_s: f64) -> Signal<Sample> {
        let missing = if memory.unreachable { NoData::Unreachable } else { NoData::NeverSeen };
        let Some(sample) = &memory.sample else { return Signal::NoData(missing) };
        let age_s = timestamp(now_s).since(sample.until);
        let age = seconds(age_s);
        if age_s <= STALE_SCRAPES * f64::from(self.world.metrics.scrape_s) {
            Signal::Live { value: sample.clone(), age }
        } else if age_s <= FORGOTTEN_S {
            Signal::Stale { last: sample.clone(), age }
        } else {
            Signal::NoData(missing)
        }
    }
}

/// A moment of a run as the planner counts time.
pub fn timestamp(at_s: f64) -> Timestamp {
    Timestamp::try_from(EPOCH_S + at_s).unwrap_or_default()
}

fn seconds(value: f64) -> Seconds {
    Seconds::try_from(value.max(0.0)).unwrap_or_default()
}

/// What the server times at idle when it starts.
fn timed(world: &World) -> Vec<CurvePoint> {
    let mut curve = Vec::new();
    let (mut best, mut poor) = (f64::INFINITY, 0);
    for size in TIMED {
        let mean_s = world.service.batch_s(size);
        let each_s = mean_s / f64::from(size);
        poor += u32::from(each_s > best * (1.0 - TIMED_GAIN));
        best = best.min(each_s);
        let size = BatchSize::try_from(size).unwrap_or_default();
        curve.push(CurvePoint { size, mean: seconds(mean_s), p95: seconds(mean_s * TIMED_P95) });
        if poor >= 2 || mean_s > TIMED_LIMIT_S {
            break;
        }
    }
    curve
}

/// The sample of a reading at `now_s` that ends a span.
fn sample(world: &World, pod: &Pod, curve: &[CurvePoint], (now_s, span_s): (f64, f64)) -> Sample {
    let counters = &pod.counters;
    let service = &world.service;
    let (busy_s, images) = counters
        .batches
        .iter()
        .zip(0_u64..)
        .fold((0.0, 0), |(busy_s, images), (calls, size)| (busy_s + calls.seconds, images + calls.count * size));
    let engine_cpu_s = if service.accelerator == Accelerator::Cpu { busy_s } else { 0.0 };
    let cpu_s = images as f64 * service.cpu_s + engine_cpu_s + counters.prepared.1 + IDLE_CORES * span_s;
    let faults = &world.faults;
    let loads = counters.loads + (faults.reloads.0 * span_s).round() as u64;
    let periods = if faults.quota_cores > 0.0 { span_s * PERIODS_PER_S } else { 0.0 };
    let limit = if faults.memory_limit > 0 { faults.memory_limit } else { MEMORY_LIMIT_BYTES };
    Sample {
        until: timestamp(now_s),
        span: seconds(span_s),
        arrivals: counters.arrivals,
        per_second: PerSecond { n: counters.bins.0, sum: counters.bins.1, sum_sq: counters.bins.2 },
        done: counters.done,
        shed: counters.shed,
        batches: batches(counters),
        inference: histogram(&counters.inference),
        api: histogram(&counters.api),
        overhead: histogram(&counters.overhead),
        read: one_latency(faults.read_s, counters.arrivals),
        stages: stages(world, pod, images),
        model_loads: loads,
        load_seconds: seconds(faults.reloads.0 * faults.reloads.1 * span_s),
        cpu_seconds: seconds(cpu_s),
        cpu_periods: periods as u64,
        cpu_throttled: (periods * faults.throttled_share) as u64,
        inflight: u64::from(pod.inflight()),
        queued: pod.queue.len() as u64,
        memory_limit: Bytes::new(limit),
        cpu_quota: Cores::try_from(faults.quota_cores).unwrap_or_default(),
        workers: service.sessions,
        curve: curve.to_vec(),
        gpu: (service.accelerator == Accelerator::Gpu).then(|| GpuLoad {
            duty: Ratio::try_from((busy_s / span_s / f64::from(service.sessions)).min(1.0)).unwrap_or_default(),
            sm_active: None,
        }),
        ..cached(pod)
    }
}

fn batches(counters: &Counters) -> Vec<BatchCount> {
    let ran = counters.batches.iter().zip(0_u32..).filter(|(calls, _)| calls.count > 0);
    let batch = |(calls, size): (&crate::fleet::Calls, u32)| BatchCount {
        size: BatchSize::try_from(size).unwrap_or_default(),
        count: calls.count,
        seconds: seconds(calls.seconds),
        seconds_squared: SecondsSquared::try_from(calls.squared).unwrap_or_default(),
    };
    ran.map(batch).collect()
}

/// What a pod says of its cache, its knobs and its memory.
fn cached(pod: &Pod) -> Sample {
    let knobs = pod.knobs;
    let mut sample = Sample {
        applied: Applied {
            batch: knobs.max_batch_size,
            delay: seconds(knobs.max_queue_delay_micros as f64 * 1e-6),
            cache: knobs.cache_bytes,
            generation: 0,
        },
        b_eff: knobs.max_batch_size,
        ..Sample::default()
    };
    let mut rss = BASE_BYTES + IMAGE_BYTES * u64::from(knobs.max_batch_size.get());
    if let Some(cache) = &pod.cache {
        let (now, before) = (&cache.counters, &pod.cache_read);
        rss += cache.bytes() * 115 / 100;
        sample.cache_bytes = Bytes::new(cache.bytes());
        sample.cache = CacheCounts {
            hits: now.hits - before.hits,
            misses: now.misses - before.misses,
            evictions: now.evictions - before.evictions,
        };
        let sizes = GHOST_BYTES.iter().zip(now.ghost_hits.iter().zip(&before.ghost_hits));
        sample.ghosts = Ghosts {
            refs: now.ghost_refs - before.ghost_refs,
            expected: Count::try_from(now.ghost_expected - before.ghost_expected).unwrap_or_default(),
            sizes: sizes
                .map(|(bytes, (now, before))| GhostSize { bytes: Bytes::new(*bytes), hits: now - before })
                .collect(),
        };
    }
    sample.rss = Bytes::new(rss);
    sample
}

fn stages(world: &World, pod: &Pod, images: u64) -> Stages {
    let counters = &pod.counters;
    let cpu_s = world.service.cpu_s * images as f64;
    let stage = |total_s: f64, count: u64, workers: u32, queued: usize| Stage {
        seconds: seconds(total_s),
        count,
        workers,
        queued: queued as u32,
    };
    let decode = if let Some((workers, _)) = world.faults.prepare {
        let waiting = pod.preparing.saturating_sub(workers) as usize;
        stage(counters.prepared.1, counters.prepared.0, workers, waiting)
    } else {
        stage(cpu_s * DECODE_SHARE, images, 2, 0)
    };
    let hashed = if pod.cache.is_some() { counters.arrivals } else { 0 };
    Stages {
        read: stage(world.faults.read_s * counters.arrivals as f64, counters.arrivals, 0, 0),
        hash: stage(HASH_S * hashed as f64, hashed, 0, 0),
        decode,
        preprocess: stage(cpu_s * PREPROCESS_SHARE, images, 0, 0),
        inference: stage(counters.inference_s, images, world.service.sessions, pod.queue.len()),
        postprocess: stage(cpu_s * PREPROCESS_SHARE, images, 0, 0),
        encode: stage(0.0, images, 0, 0),
    }
}

fn edges() -> Vec<Seconds> {
    LATENCY_EDGES_S.iter().map(|edge| seconds(*edge)).collect()
}

fn histogram(counts: &Buckets) -> Histogram {
    let mut sum = 0;
    let cumulative: Vec<u64> = counts
        .iter()
        .map(|count| {
            sum += count;
            sum
        })
        .collect();
    Histogram::from_cumulative(edges(), &cumulative).unwrap_or_default()
}

/// `count` equal latencies.
fn one_latency(latency_s: f64, count: u64) -> Histogram {
    let cumulative = LATENCY_EDGES_S.iter().map(|edge| if latency_s <= *edge { count } else { 0 });
    let cumulative: Vec<u64> = cumulative.chain([count]).collect();
    Histogram::from_cumulative(edges(), &cumulative).unwrap_or_default()
}
