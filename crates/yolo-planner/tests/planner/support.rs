//! A toy fleet: pods with a queue, random routing, a cache that repeats hit, and samples as a server would export.
//!
//! Time goes in steps of 10 ms; a pod serves batches of min(queue, cap) for t(b). Enough to close the loop; the
//! exact simulator is another crate.

use yolo_planner::histogram::Histogram;
use yolo_planner::observation::{
    BatchCount, CacheCounts, CurvePoint, GhostSize, Ghosts, GpuLoad, Knobs, Observation, PerSecond, Phase, Pod, Sample,
    Signal,
};
use yolo_planner::policy::Policy;
use yolo_planner::units::{BatchSize, Bytes, Cores, Count, Ratio, Replicas, Seconds, SecondsSquared, Timestamp};

const STEP_S: f64 = 0.01;
/// Over which a neighbour's work on a shared core comes and goes.
const NOISE_S: f64 = 20.0;
const EDGES_MS: [u32; 24] =
    [1, 5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100, 115, 130, 150, 175, 200, 260, 350, 500, 1000, 5000];

pub fn seconds(value: f64) -> Seconds {
    Seconds::try_from(value).unwrap()
}

pub fn at(value: f64) -> Timestamp {
    Timestamp::try_from(value).unwrap()
}

pub fn batch(value: u32) -> BatchSize {
    BatchSize::try_from(value).unwrap()
}

/// Latencies as a histogram with the contract's kind of edges.
pub fn histogram(latencies: &[f64]) -> Histogram {
    let edges: Vec<Seconds> = EDGES_MS.iter().map(|ms| Seconds::millis(*ms)).collect();
    let below = |edge: f64| latencies.iter().filter(|latency| **latency <= edge).count() as u64;
    let mut cumulative: Vec<u64> = edges.iter().map(|edge| below(edge.get())).collect();
    cumulative.push(latencies.len() as u64);
    Histogram::from_cumulative(edges, &cumulative).unwrap()
}

/// What a pod of the toy fleet is made of.
#[derive(Clone, Copy)]
pub struct Kind {
    pub alpha_s: f64,
    pub beta_s: f64,
    /// CPU quota and CPU seconds an image; zero on a GPU.
    pub quota: u32,
    pub cpu_s: f64,
    pub startup_s: f64,
    pub overhead_s: f64,
}

/// A page-layout model of 320 pixels on one core: batching gains nothing, the CPU quota binds.
pub const CPU: Kind = Kind { alpha_s: 0.0, beta_s: 0.016, quota: 1, cpu_s: 0.022, startup_s: 8.0, overhead_s: 0.008 };
/// A GPU-like curve on which batching gains a factor of eight.
pub const GPU: Kind = Kind { alpha_s: 0.030, beta_s: 0.002, quota: 0, cpu_s: 0.0, startup_s: 8.0, overhead_s: 0.004 };

#[derive(Default)]
struct Live {
    id: u64,
    created: f64,
    ready: Option<f64>,
    queue: Vec<f64>,
    busy_until: f64,
    sample: Sample,
    api: Vec<f64>,
    inference: Vec<f64>,
    bins: Vec<u64>,
}

/// The fleet and its clock.
pub struct Fleet {
    pub now: f64,
    pub knobs: Knobs,
    /// Share of the images that were seen before.
    pub repeats: f64,
    pub reachable: bool,
    /// Share of the CPU periods in which the kernel throttles the pods.
    pub throttled: f64,
    /// Standard deviation of the factor by which neighbours slow every call, whatever its size; it changes over
    /// [`NOISE_S`].
    pub noise: f64,
    slowed: f64,
    pub kind: Kind,
    pods: Vec<Live>,
    next_id: u64,
    seed: u64,
}

impl Fleet {
    pub fn new(kind: Kind, policy: &Policy) -> Self {
        let knobs = Knobs::initial(policy);
        let mut fleet = Self {
            now: 1_700_000_000.0,
            knobs,
            repeats: 0.0,
            reachable: true,
            throttled: 0.0,
            noise: 0.0,
            slowed: 0.0,
            kind,
            pods: Vec::new(),
            next_id: 0,
            seed: 1,
        };
        fleet.scale();
        fleet
    }

    fn random(&mut self) -> f64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn time(&self, size: usize) -> f64 {
        (self.kind.alpha_s + self.kind.beta_s * size as f64) * (1.0 + self.noise * self.slowed).max(0.5)
    }

    /// The next value of an autoregressive process of deviation 1 (AR(1), an Ornstein-Uhlenbeck process looked at).
    fn wander(&mut self) {
        if self.noise > 0.0 {
            let kept = 1.0 - STEP_S / NOISE_S;
            let normal = (0..12).map(|_| self.random()).sum::<f64>() - 6.0;
            self.slowed = kept * self.slowed + (1.0 - kept * kept).sqrt() * normal;
        }
    }

    /// Pods come and go as the knobs say; the newest goes first.
    pub fn scale(&mut self) {
        let wanted = self.knobs.replicas.get() as usize;
        self.pods.truncate(wanted.max(1));
        while self.pods.len() < wanted {
            self.next_id += 1;
            self.pods.push(Live { id: self.next_id, created: self.now, bins: vec![0; 5], ..Live::default() });
        }
    }

    /// Runs `span_s` seconds at `rate` images/s.
    pub fn run(&mut self, rate: f64, span_s: f64) {
        let steps = (span_s / STEP_S).round() as u32;
        for step in 0..steps {
            self.now += STEP_S;
            self.wander();
            for pod in &mut self.pods {
                if pod.ready.is_none() && self.now - pod.created >= self.kind.startup_s {
                    pod.ready = Some(self.now);
                }
            }
            let mut left = rate * STEP_S;
            while left > 0.0 {
                if self.random() < left.min(1.0) {
                    self.arrive((f64::from(step) * STEP_S) as usize);
                }
                left -= 1.0;
            }
            self.serve();
        }
        let end = at(self.now);
        for pod in self.pods.iter_mut().filter(|pod| pod.ready.is_some()) {
            pod.sample.until = end;
            pod.sample.span = seconds((self.now - pod.ready.unwrap()).min(span_s).max(0.2));
        }
    }

    fn arrive(&mut self, second: usize) {
        let ready: Vec<usize> = (0..self.pods.len()).filter(|i| self.pods[*i].ready.is_some()).collect();
        if ready.is_empty() {
            return;
        }
        let index = ready[(self.random() * ready.len() as f64) as usize];
        let repeated = self.random() < self.repeats;
        let (now, overhead_s, cached) = (self.now, self.kind.overhead_s, self.knobs.cache_bytes >= Bytes::mebi(1));
        let pod = &mut self.pods[index];
        pod.sample.arrivals += 1;
        pod.bins[second.min(4)] += 1;
        pod.sample.ghosts.refs += 1;
        pod.sample.ghosts.expected = Count::try_from(pod.sample.ghosts.expected.get() + 1.0).unwrap();
        if pod.sample.ghosts.sizes.is_empty() {
            pod.sample.ghosts.sizes = [Bytes::new(65_536), Bytes::mebi(1), Bytes::mebi(16), Bytes::mebi(256)]
                .map(|bytes| GhostSize { bytes, hits: 0 })
                .to_vec();
        }
        for size in &mut pod.sample.ghosts.sizes {
            size.hits += u64::from(repeated && size.bytes >= Bytes::mebi(1));
        }
        if repeated && cached {
            pod.sample.cache.hits += 1;
            pod.sample.done += 1;
            pod.api.push(overhead_s);
        } else {
            pod.sample.cache.misses += u64::from(cached);
            pod.queue.push(now);
        }
    }

    fn serve(&mut self) {
        let cap = self.knobs.max_batch_size.get() as usize;
        let (now, kind) = (self.now, self.kind);
        for index in 0..self.pods.len() {
            let size = self.pods[index].queue.len().min(cap);
            let mut start = self.pods[index].busy_until.max(now - STEP_S);
            if size == 0 || start > now {
                continue;
            }
            let time = self.time(size);
            let pod = &mut self.pods[index];
            start = start.max(pod.queue[0]);
            pod.busy_until = start + time;
            for arrived in pod.queue.drain(..size) {
                pod.api.push(start + time - arrived + kind.overhead_s);
                pod.inference.push(time);
            }
            pod.sample.done += size as u64;
            let cpu = pod.sample.cpu_seconds.get() + kind.cpu_s * size as f64;
            pod.sample.cpu_seconds = seconds(cpu);
            let at = pod.sample.batches.iter().position(|batch| batch.size.get() as usize == size);
            let at = at.unwrap_or_else(|| {
                pod.sample.batches.push(BatchCount { size: batch(size as u32), ..BatchCount::default() });
                pod.sample.batches.len() - 1
            });
            let calls = &mut pod.sample.batches[at];
            calls.count += 1;
            calls.seconds = seconds(calls.seconds.get() + time);
            calls.seconds_squared = SecondsSquared::try_from(calls.seconds_squared.get() + time * time).unwrap();
        }
    }

    /// What a server times at idle: sizes up to 16, until one gains less than 3 % twice.
    fn idle_curve(&self) -> Vec<CurvePoint> {
        let (mut points, mut best, mut misses) = (Vec::new(), f64::INFINITY, 0);
        for size in [1, 2, 4, 8, 16] {
            let time = self.time(size);
            misses += u32::from(time / size as f64 > 0.97 * best);
            best = best.min(time / size as f64);
            points.push(CurvePoint { size: batch(size as u32), mean: seconds(time), p95: seconds(time) });
            if misses == 2 {
                break;
            }
        }
        points
    }

    /// What an operator would see now; counters start again.
    pub fn observe(&mut self) -> Observation {
        let mut observation = Observation::new(self.knobs);
        let curve = self.idle_curve();
        for live in &mut self.pods {
            let mut sample = std::mem::take(&mut live.sample);
            let (api, inference) = (std::mem::take(&mut live.api), std::mem::take(&mut live.inference));
            let bins = std::mem::replace(&mut live.bins, vec![0; 5]);
            sample.per_second = PerSecond {
                n: bins.len() as u64,
                sum: bins.iter().sum(),
                sum_sq: bins.iter().map(|bin| bin * bin).sum(),
            };
            sample.overhead = histogram(&vec![self.kind.overhead_s; api.len()]);
            sample.api = histogram(&api);
            sample.inference = histogram(&inference);
            sample.queued = live.queue.len() as u64;
            sample.inflight = sample.queued + u64::from(live.busy_until > self.now);
            sample.rss = Bytes::mebi(150);
            sample.workers = 1;
            (sample.cpu_periods, sample.cpu_throttled) = (50, (50.0 * self.throttled) as u64);
            sample.cpu_quota = Cores::whole(self.kind.quota);
            let busy = inference.iter().sum::<f64>() / sample.span.get().max(0.1);
            sample.gpu = (self.kind.quota == 0)
                .then(|| GpuLoad { duty: Ratio::try_from(busy.min(1.0)).unwrap(), sm_active: None });
            sample.curve = curve.clone();
            if sample.cache == CacheCounts::default() && sample.arrivals == 0 {
                sample.ghosts = Ghosts::default();
            }
            let ready = live.ready.map(at);
            let signal = match (ready, self.reachable) {
                (Some(_), true) => Signal::Live { value: sample, age: Seconds::ZERO },
                _ => Signal::NoData(yolo_planner::observation::NoData::Unreachable),
            };
            observation.pods.push(Pod {
                id: live.id,
                class: 0,
                phase: if ready.is_some() { Phase::Ready } else { Phase::Pending },
                created: at(live.created),
                ready,
                oom_killed: None,
                sample: signal,
            });
        }
        observation.applied_pods = observation.pods.len() as u32;
        observation
    }

    /// Applies a decision, as the operator would.
    pub fn apply(&mut self, knobs: Knobs) {
        self.knobs = knobs;
        self.scale();
    }

    pub fn replicas(&self) -> Replicas {
        self.knobs.replicas
    }
}
