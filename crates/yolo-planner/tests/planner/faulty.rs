//! A fleet to which one thing happens: a queue by events, with decoders before the engine, and samples of every figure
//! that a diagnosis reads.

use crate::support::{at, batch, histogram, seconds};
use yolo_planner::observation::{
    Applied, BatchCount, CurvePoint, GhostSize, Ghosts, GpuLoad, Knobs, NoData, Observation, PerSecond, Phase, Pod,
    Sample, Signal, Stage,
};
use yolo_planner::policy::{Accelerator, Policy, Routing};
use yolo_planner::units::{Bytes, Cores, Count, Ratio, SecondsSquared};

/// Longest wait for a decoder or the engine; what would wait longer is shed, as the server's deadline has it.
const WAIT_MAX_S: f64 = 1.0;
/// When a fleet starts to be looked at.
const START_S: f64 = 1_700_000_000.0;
/// Jitter of a batch's time (control.md §10).
const JITTER: f64 = 0.03;

/// A service, and what is wrong with it.
#[derive(Clone)]
pub struct Setup {
    pub policy: Policy,
    pub rate: f64,
    /// Rate of every fifth second over the mean; 1 is steady.
    pub burst: f64,
    pub alpha_s: f64,
    pub beta_s: f64,
    /// What a slowed device multiplies that by, for all pods or for the first one.
    pub slowed: f64,
    pub first_slowed: f64,
    pub sessions: u32,
    pub decoders: u32,
    pub decode_s: f64,
    /// Outside queue, engine and decoding.
    pub overhead_s: f64,
    pub read_s: f64,
    pub hash_s: f64,
    /// Hit ratio by cache size.
    pub hits: fn(f64) -> f64,
    pub rss_mib: f64,
    pub cores: u32,
    pub cpu_s: f64,
    pub throttled: f64,
    pub loads: f64,
    /// How much more the first pod gets than the others, by connections that stick to it.
    pub first_share: f64,
    pub delay_s: f64,
    pub reachable: bool,
    /// From creation to ready.
    pub startup_s: f64,
    /// Share of a GPU's multiprocessors at work, where somebody measures it.
    pub sm_active: Option<f64>,
}

struct Live {
    id: u64,
    /// When each decoder and each session is free.
    decoders: Vec<f64>,
    sessions: Vec<f64>,
    /// (arrived, decoded), by `decoded`.
    queue: Vec<(f64, f64)>,
    /// (until, images) of running batches.
    running: Vec<(f64, usize)>,
    sample: Sample,
    api: Vec<f64>,
    overhead: Vec<f64>,
    inference: Vec<f64>,
    reads: Vec<f64>,
    bins: Vec<u64>,
}

pub struct Fleet {
    pub now: f64,
    pub knobs: Knobs,
    pods: Vec<Live>,
    started: u64,
    seed: u64,
    loads: f64,
}

impl Fleet {
    pub fn new(setup: &Setup, seed: u64) -> Self {
        let mut fleet = Self {
            now: START_S,
            knobs: Knobs::initial(&setup.policy),
            pods: Vec::new(),
            started: 0,
            seed: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            loads: 0.0,
        };
        fleet.scale(setup);
        fleet
    }

    /// Uniform in 0..1, xorshift64*.
    pub fn random(&mut self) -> f64 {
        self.seed ^= self.seed >> 12;
        self.seed ^= self.seed << 25;
        self.seed ^= self.seed >> 27;
        (self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.random()).sum::<f64>() - 6.0
    }

    /// Pods come at once and go at once; what a start-up does is another test's matter.
    pub fn scale(&mut self, setup: &Setup) {
        self.pods.truncate(self.knobs.replicas.get() as usize);
        while self.pods.len() < self.knobs.replicas.get() as usize {
            self.started += 1;
            self.pods.push(Live {
                id: self.started,
                decoders: vec![0.0; setup.decoders as usize],
                sessions: vec![0.0; setup.sessions as usize],
                queue: Vec::new(),
                running: Vec::new(),
                sample: Sample::default(),
                api: Vec::new(),
                overhead: Vec::new(),
                inference: Vec::new(),
                reads: Vec::new(),
                bins: Vec::new(),
            });
        }
        for pod in &mut self.pods {
            pod.decoders.resize(setup.decoders as usize, 0.0);
            pod.sessions.resize(setup.sessions as usize, 0.0);
        }
    }

    /// Runs `span_s` whole seconds.
    pub fn run(&mut self, setup: &Setup, span_s: u32) {
        let calm = (5.0 - setup.burst) / 4.0;
        for second in 0..span_s {
            for pod in &mut self.pods {
                pod.bins.push(0);
            }
            let rate = setup.rate * if second % 5 == 0 { setup.burst } else { calm.max(0.0) };
            let (start, mut offset) = (self.now + f64::from(second), 0.0);
            loop {
                offset += -(1.0 - self.random()).ln() / rate.max(1e-9);
                if offset >= 1.0 {
                    break;
                }
                self.arrive(setup, start + offset);
            }
        }
        self.now += f64::from(span_s);
        for index in 0..self.pods.len() {
            self.serve(setup, index, self.now);
        }
        for pod in &mut self.pods {
            (pod.sample.until, pod.sample.span) = (at(self.now), seconds(f64::from(span_s)));
        }
    }

    fn arrive(&mut self, setup: &Setup, now: f64) {
        for index in 0..self.pods.len() {
            self.serve(setup, index, now);
        }
        let index = self.route(setup);
        let fate = self.random();
        let read = setup.read_s * (0.5 + self.random());
        let size = self.knobs.cache_bytes.get() as f64;
        let decode_s = setup.decode_s * (1.0 + 0.2 * self.normal()).max(0.2);
        let pod = &mut self.pods[index];
        pod.sample.arrivals += 1;
        if let Some(bin) = pod.bins.last_mut() {
            *bin += 1;
        }
        pod.reads.push(read);
        pod.sample.body_bytes = Bytes::new(pod.sample.body_bytes.get() + 200_000);
        ghosts(&mut pod.sample.ghosts, setup, fate);
        if size > 0.0 {
            pod.sample.stages.hash = passed(pod.sample.stages.hash, setup.hash_s);
            if fate < (setup.hits)(size) {
                pod.sample.cache.hits += 1;
                pod.sample.done += 1;
                pod.api.push(setup.overhead_s);
                pod.overhead.push(setup.overhead_s);
                return;
            }
            pod.sample.cache.misses += 1;
        }
        let free = pod.decoders.iter_mut().min_by(|a, b| a.total_cmp(b)).unwrap();
        if *free > now + WAIT_MAX_S {
            pod.sample.shed += 1;
            return;
        }
        let decoded = free.max(now) + decode_s;
        *free = decoded;
        pod.sample.stages.decode = passed(pod.sample.stages.decode, decode_s);
        let place = pod.queue.partition_point(|(_, other)| *other <= decoded);
        pod.queue.insert(place, (now, decoded));
    }

    fn route(&mut self, setup: &Setup) -> usize {
        let pods = self.pods.len();
        if setup.first_share > 1.0 {
            let place = self.random() * (pods as f64 - 1.0 + setup.first_share);
            return if place < setup.first_share {
                0
            } else {
                (1 + (place - setup.first_share) as usize).min(pods - 1)
            };
        }
        let start = ((self.random() * pods as f64) as usize).min(pods - 1);
        if setup.policy.routing == Routing::Random {
            return start;
        }
        let waiting = |index: usize| {
            let pod = &self.pods[index];
            pod.queue.len() + pod.running.iter().map(|(_, images)| images).sum::<usize>()
        };
        (0..pods).map(|step| (start + step) % pods).min_by_key(|index| waiting(*index)).unwrap_or(start)
    }

    /// Lets the pod's engine start what it can before `now`.
    fn serve(&mut self, setup: &Setup, index: usize, now: f64) {
        let cap = self.knobs.max_batch_size.get() as usize;
        loop {
            let pod = &self.pods[index];
            let Some(&(_, first)) = pod.queue.first() else { break };
            let (session, free) = pod.sessions.iter().copied().enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
            let start = free.max(first + setup.delay_s);
            if start >= now {
                break;
            }
            let size = pod.queue.iter().take(cap).filter(|(_, decoded)| *decoded <= start).count().max(1);
            let slowed = setup.slowed * if index == 0 { setup.first_slowed } else { 1.0 };
            let jitter = (1.0 + JITTER * self.normal()).max(0.5);
            let time = (setup.alpha_s + setup.beta_s * size as f64) * slowed * jitter;
            self.finish(setup, index, (session, start, time, size));
        }
        self.pods[index].running.retain(|(until, _)| *until > now);
    }

    fn finish(&mut self, setup: &Setup, index: usize, (session, start, time, size): (usize, f64, f64, usize)) {
        let pod = &mut self.pods[index];
        let mut served = 0;
        for (arrived, decoded) in pod.queue.drain(..size) {
            if start - decoded > WAIT_MAX_S {
                pod.sample.shed += 1;
                continue;
            }
            served += 1;
            let own = decoded - arrived + setup.overhead_s;
            pod.api.push(start + time - arrived + setup.overhead_s);
            pod.overhead.push(own);
            pod.inference.push(time);
        }
        if served == 0 {
            return;
        }
        pod.sessions[session] = start + time;
        pod.running.push((start + time, served));
        let sample = &mut pod.sample;
        sample.done += served as u64;
        sample.cpu_seconds = seconds(sample.cpu_seconds.get() + setup.cpu_s * served as f64);
        let place = sample.batches.iter().position(|known| known.size.get() as usize == served);
        let place = place.unwrap_or_else(|| {
            sample.batches.push(BatchCount { size: batch(served as u32), ..BatchCount::default() });
            sample.batches.len() - 1
        });
        let calls = &mut sample.batches[place];
        calls.count += 1;
        calls.seconds = seconds(calls.seconds.get() + time);
        calls.seconds_squared = SecondsSquared::try_from(calls.seconds_squared.get() + time * time).unwrap();
    }

    /// What an operator would see now; counters start again.
    pub fn observe(&mut self, setup: &Setup) -> Observation {
        let mut observation = Observation::new(self.knobs);
        for index in 0..self.pods.len() {
            let sample = self.sample(setup, index);
            let signal = if setup.reachable {
                Signal::Live { value: sample, age: seconds(0.0) }
            } else {
                Signal::NoData(NoData::Unreachable)
            };
            observation.pods.push(Pod {
                id: self.pods[index].id,
                class: 0,
                phase: Phase::Ready,
                created: at(START_S - 5.0 - setup.startup_s),
                ready: Some(at(START_S - 5.0)),
                oom_killed: None,
                sample: signal,
            });
        }
        observation.applied_pods = self.pods.len() as u32;
        observation
    }

    fn sample(&mut self, setup: &Setup, index: usize) -> Sample {
        let noise = 1.0 + 0.02 * self.normal();
        self.loads += setup.loads * self.random() * 2.0;
        let loads = self.loads.floor();
        self.loads -= loads;
        let (now, knobs) = (self.now, self.knobs);
        let pod = &mut self.pods[index];
        let mut sample = std::mem::take(&mut pod.sample);
        let take = |values: &mut Vec<f64>| histogram(&std::mem::take(values));
        (sample.api, sample.overhead) = (take(&mut pod.api), take(&mut pod.overhead));
        (sample.inference, sample.read) = (take(&mut pod.inference), take(&mut pod.reads));
        let bins = std::mem::take(&mut pod.bins);
        sample.per_second =
            PerSecond { n: bins.len() as u64, sum: bins.iter().sum(), sum_sq: bins.iter().map(|bin| bin * bin).sum() };
        let running: usize = pod.running.iter().map(|(_, images)| images).sum();
        let decoding = pod.queue.iter().filter(|(_, decoded)| *decoded > now).count();
        sample.queued = (pod.queue.len() - decoding) as u64;
        sample.inflight = (pod.queue.len() + running) as u64;
        let in_decoders = pod.decoders.iter().filter(|free| **free > now).count();
        sample.stages.decode.queued = decoding.saturating_sub(in_decoders) as u32;
        sample.stages.decode.workers = setup.decoders;
        sample.workers = setup.sessions;
        sample.rss = Bytes::new((setup.rss_mib * noise * 1_048_576.0) as u64);
        sample.cpu_quota = Cores::whole(setup.cores);
        sample.cpu_periods = (sample.span.get() * 10.0) as u64;
        sample.cpu_throttled = (sample.cpu_periods as f64 * (setup.throttled * noise).min(1.0)) as u64;
        sample.applied = Applied {
            batch: knobs.max_batch_size,
            delay: seconds(setup.delay_s),
            cache: knobs.cache_bytes,
            generation: 1,
        };
        sample.model_loads = loads as u64;
        sample.load_seconds = seconds(loads * 0.8);
        let busy = sample.batches.iter().map(|calls| calls.seconds.get()).sum::<f64>() / sample.span.get().max(0.1);
        let ratio = |share: f64| Ratio::try_from(share).unwrap();
        sample.gpu = (setup.policy.accelerator == Accelerator::Gpu)
            .then(|| GpuLoad { duty: ratio(busy.min(1.0)), sm_active: setup.sm_active.map(ratio) });
        sample.curve = [1, 2, 4, 8, 16]
            .map(|size| {
                let time = seconds(setup.alpha_s + setup.beta_s * f64::from(size));
                CurvePoint { size: batch(size), mean: time, p95: time }
            })
            .to_vec();
        sample
    }
}

fn passed(stage: Stage, time_s: f64) -> Stage {
    Stage { seconds: seconds(stage.seconds.get() + time_s), count: stage.count + 1, ..stage }
}

fn ghosts(ghosts: &mut Ghosts, setup: &Setup, fate: f64) {
    ghosts.refs += 1;
    ghosts.expected = Count::try_from(ghosts.expected.get() + 1.0).unwrap();
    if ghosts.sizes.is_empty() {
        ghosts.sizes = (0..8).map(|power| GhostSize { bytes: Bytes::new(65_536 << (2 * power)), hits: 0 }).collect();
    }
    for size in &mut ghosts.sizes {
        size.hits += u64::from(fate < (setup.hits)(size.bytes.get() as f64));
    }
}

impl Setup {
    /// A healthy service on the device, at a load that several pods carry, balanced well.
    pub fn healthy(accelerator: Accelerator, mut uniform: impl FnMut(f64, f64) -> f64) -> Self {
        let gpu = accelerator == Accelerator::Gpu;
        let mut policy = Policy { accelerator, routing: Routing::LeastOutstanding, ..Policy::default() };
        (policy.tick, policy.scrape) = (seconds(10.0), seconds(10.0));
        policy.replicas.max = yolo_planner::units::Replicas::new(12);
        policy.cache.max = Bytes::default();
        let alpha_s = if gpu { uniform(0.008, 0.020) } else { uniform(0.002, 0.006) };
        let beta_s = if gpu { uniform(0.002, 0.004) } else { uniform(0.020, 0.035) };
        Self {
            policy,
            rate: if gpu { uniform(150.0, 300.0) } else { uniform(90.0, 160.0) },
            burst: 1.0,
            alpha_s,
            beta_s,
            slowed: 1.0,
            first_slowed: 1.0,
            sessions: if gpu { 1 } else { 2 },
            decoders: 2,
            decode_s: uniform(0.002, 0.006),
            overhead_s: uniform(0.002, 0.006),
            read_s: uniform(0.001, 0.010),
            hash_s: 0.0002,
            hits: |_| 0.0,
            rss_mib: uniform(300.0, 1200.0),
            cores: 2,
            cpu_s: if gpu { 0.005 } else { 0.8 * (alpha_s + beta_s) },
            throttled: uniform(0.0, 0.02),
            loads: 0.0,
            first_share: 1.0,
            delay_s: 0.0,
            reachable: true,
            startup_s: 20.0,
            sm_active: None,
        }
    }
}
