//! What a pod costs besides the engine: CPU time an image, memory, and the time to start.

use serde::{Deserialize, Serialize};

use crate::observation::{self, Phase, Pod, Sample, Stage};
use crate::state::{Learned, MemoryModel};
use crate::units::{Bytes, Seconds, Timestamp, real, whole_bytes};

/// What one tick leaves of the weight of earlier CPU readings: a time constant of 20 ticks (100 s).
const CPU_DECAY: f64 = 0.95;
/// Images from which CPU time an image counts as known.
const CPU_IMAGES_MIN: f64 = 30.0;
/// Share of answers from the cache up to which CPU time is all the engine's path: a hit costs a hash, not a decode.
const CPU_HITS_MAX: f64 = 0.2;
/// A pod that uses more is not idle: it starts, or times batches.
const IDLE_CORES_MAX: f64 = 0.05;
/// More decoders than that are a broken source.
const DECODERS_MAX: u32 = 1024;
/// Start-ups remembered; p90 of 20 is the second slowest.
const STARTS_MAX: usize = 20;
/// Pods remembered as waiting for their first start, as those that were found waiting. Of more, the others are not taken for
/// stuck: how many there are is the cluster's, and so no limit of the state.
const WAITING_MAX: usize = 64;
/// A pod is seen for the first time before it is so old: looks are at most 30 s apart, and its own events make one.
const YOUNG_S: f64 = 60.0;
/// Until one was seen (control.md §3).
const START_WARM_S: f64 = 30.0;
const START_COLD_S: f64 = 180.0;
/// An unschedulable pod makes starts count as cold for an hour: nodes come and go on that scale.
const COLD_FOR_S: f64 = 3600.0;
/// Bytes that a cached byte costs: allocator slack and keys (control.md §3).
pub(crate) const CACHE_FACTOR: f64 = 1.15;
/// Step towards a lower working set; a higher one counts at once.
const MEMORY_DOWN: f64 = 0.05;
/// After so long, the longest pin, half of what a batch size that does not run needed beyond smaller ones is believed: one that
/// was too large once is not run again, so that nothing else would ever say that it fits now.
const MEMORY_LASTS_S: f64 = 8.0 * 3600.0;

/// CPU time an image, all stages, less what a pod uses when idle.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Cpu {
    seconds: f64,
    images: f64,
    /// Cores that an idle pod uses; the least seen.
    idle_cores: Option<f64>,
    prior_s: Option<f64>,
}

impl Cpu {
    /// Adds one pod's sample, of which `engine_images` went through the engine.
    pub(crate) fn add(&mut self, sample: &Sample, engine_images: f64) {
        let (cpu_s, span_s) = (sample.cpu_seconds.get(), sample.span.get());
        if cpu_s <= 0.0 || sample.model_loads > 0 {
            return;
        }
        if sample.arrivals == 0 && sample.inflight == 0 && engine_images <= 0.0 {
            let cores = (cpu_s / span_s).min(IDLE_CORES_MAX);
            self.idle_cores = Some(self.idle_cores.map_or(cores, |idle| idle.min(cores)));
        } else if real(sample.cache.hits) <= CPU_HITS_MAX * engine_images {
            let busy_s = cpu_s - self.idle_cores.unwrap_or(0.0) * span_s;
            self.seconds += busy_s.max(0.0);
            self.images += engine_images;
        }
    }

    pub(crate) fn tick(&mut self) {
        // Without new images nothing is forgotten below the least that counts.
        if self.images > 2.0 * CPU_IMAGES_MIN {
            self.seconds *= CPU_DECAY;
            self.images *= CPU_DECAY;
        }
    }

    /// CPU seconds an image, if known.
    pub(crate) fn per_image_s(&self) -> Option<f64> {
        if self.images >= CPU_IMAGES_MIN { Some(self.seconds / self.images) } else { self.prior_s }
    }
}

/// Seconds of one stage, and the images that passed it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Passes {
    seconds: f64,
    images: f64,
}

impl Passes {
    fn add(&mut self, stage: Stage) {
        self.seconds += stage.seconds.get();
        self.images += real(stage.count);
    }

    fn tick(&mut self) {
        // As with CPU time: without new images nothing is forgotten below the least that counts.
        if self.images > 2.0 * CPU_IMAGES_MIN {
            self.seconds *= CPU_DECAY;
            self.images *= CPU_DECAY;
        }
    }

    fn each_s(&self) -> Option<f64> {
        (self.images >= CPU_IMAGES_MIN && self.seconds > 0.0).then(|| self.seconds / self.images)
    }
}

/// What the stages around the engine take an image.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Stages {
    hash: Passes,
    decode: Passes,
    inference: Passes,
    /// Threads that decode, of the last pod seen.
    decoders: u32,
}

impl Stages {
    /// Adds one pod's sample.
    pub(crate) fn add(&mut self, stages: &observation::Stages) {
        self.hash.add(stages.hash);
        self.decode.add(stages.decode);
        self.inference.add(stages.inference);
        if stages.decode.workers > 0 {
            self.decoders = stages.decode.workers.min(DECODERS_MAX);
        }
    }

    pub(crate) fn tick(&mut self) {
        for passes in [&mut self.hash, &mut self.decode, &mut self.inference] {
            passes.tick();
        }
    }

    /// Images/s that a pod's decoders pass when they never idle.
    pub(crate) fn decode_rate(&self) -> Option<f64> {
        let each_s = self.decode.each_s().filter(|_| self.decoders > 0)?;
        Some(f64::from(self.decoders) / each_s)
    }

    /// Hit ratio up to which looking an image up costs more than its hits save: the time of a hash over that of decoding
    /// and running (control.md §6).
    pub(crate) fn lookup_share(&self) -> f64 {
        let saved_s = self.decode.each_s().unwrap_or(0.0) + self.inference.each_s().unwrap_or(0.0);
        self.hash.each_s().filter(|_| saved_s > 0.0).map_or(0.0, |hash_s| (hash_s / saved_s).min(1.0))
    }
}

/// What pods needed whose largest batch was this one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct WorkingSet {
    batch: u32,
    /// Without the cache.
    bytes: f64,
    /// When it was last seen, seconds since the epoch.
    at_s: f64,
}

/// Working set = base + `per_image`·b + 1.15·cache, from the smallest and the largest batch that ran.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    least: Option<WorkingSet>,
    most: Option<WorkingSet>,
    /// Class of the pods that this is of.
    class: Option<u32>,
}

impl Memory {
    /// Starts anew for pods of another class: another image, model or limit.
    pub(crate) fn succeed(&mut self, class: u32) {
        if self.class.is_some_and(|known| known != class) {
            *self = Self::default();
        }
        self.class = Some(class);
    }

    /// Adds the sample of a pod of `class` whose largest batch was `batch`.
    pub(crate) fn add(&mut self, class: u32, sample: &Sample, batch: u32) {
        if sample.rss == Bytes::default() || batch == 0 || self.class.is_some_and(|known| known != class) {
            return;
        }
        let at_s = sample.until.get();
        // Halved, not forgotten: larger batches come back step by step, and one too large is known again before the next step.
        if let (Some(least), Some(most)) = (self.least, &mut self.most)
            && at_s - most.at_s >= MEMORY_LASTS_S
        {
            most.bytes = least.bytes + 0.5 * (most.bytes - least.bytes).max(0.0);
            most.at_s = at_s;
        }
        self.least = self.least.filter(|least| at_s - least.at_s < MEMORY_LASTS_S);
        let bytes = (real(sample.rss.get()) - CACHE_FACTOR * real(sample.cache_bytes.get())).max(0.0);
        let seen = WorkingSet { batch, bytes, at_s };
        if self.least.is_none_or(|least| batch <= least.batch) {
            self.least = Some(merge(self.least, seen));
        }
        if self.most.is_none_or(|most| batch >= most.batch) {
            self.most = Some(merge(self.most, seen));
        }
    }

    /// Base and bytes an image of a batch adds; `None` until a pod was seen.
    pub(crate) fn model(&self) -> Option<(f64, f64)> {
        let (least, most) = (self.least?, self.most?);
        let images = f64::from(most.batch.saturating_sub(least.batch).max(1));
        let per_image = ((most.bytes - least.bytes) / images).max(0.0);
        Some(((least.bytes - per_image * f64::from(least.batch)).max(0.0), per_image))
    }

    /// Working set with batches of `batch` and a full cache of `cache` bytes.
    pub(crate) fn bytes(&self, batch: u32, cache: Bytes) -> Option<f64> {
        let (base, per_image) = self.model()?;
        Some(base + per_image * f64::from(batch) + CACHE_FACTOR * real(cache.get()))
    }
}

/// A larger figure of the same batch counts at once, a smaller one slowly; another batch replaces it.
fn merge(old: Option<WorkingSet>, seen: WorkingSet) -> WorkingSet {
    match old {
        Some(old) if old.batch == seen.batch && seen.bytes < old.bytes => {
            WorkingSet { bytes: old.bytes + MEMORY_DOWN * (seen.bytes - old.bytes), ..seen }
        }
        _ => seen,
    }
}

/// From creation to ready, of pods that found room at once and of those that waited for a node.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Startup {
    warm_s: Vec<f64>,
    cold_s: Vec<f64>,
    /// Newest start that was counted.
    counted: Timestamp,
    /// When a pod was last unschedulable.
    unschedulable: Option<Timestamp>,
    /// Pods that were seen young and not ready yet. Others that become ready have been so before: a failed probe, a restart.
    starting: Vec<u64>,
    /// Pods that were not ready, and old, when this planner first looked: nobody knows whether they have been.
    unknown: Vec<u64>,
}

impl Startup {
    /// Counts each pod that became ready since the last look, once.
    pub(crate) fn add(&mut self, pods: &[Pod], now: Timestamp) {
        if pods.iter().any(|pod| pod.phase == Phase::Unschedulable) {
            self.unschedulable = Some(now);
        }
        let mut newest = self.counted;
        let young = |pod: &Pod| now.since(pod.created) < YOUNG_S;
        let first_look = self.counted == Timestamp::ZERO;
        let (mut still, mut unknown) = (Vec::new(), Vec::new());
        for pod in pods {
            let first = young(pod) || self.starting.contains(&pod.id);
            if first && pod.ready.is_none() {
                still.push(pod.id);
            } else if pod.ready.is_none() && (first_look || self.unknown.contains(&pod.id)) {
                unknown.push(pod.id);
            }
            let Some(ready) = pod.ready.filter(|ready| *ready > self.counted && *ready <= now) else { continue };
            newest = if ready > newest { ready } else { newest };
            if !first {
                continue;
            }
            let cold = self.unschedulable.is_some_and(|at| at >= pod.created && at <= ready);
            let starts = if cold { &mut self.cold_s } else { &mut self.warm_s };
            // A clock that disagrees by more than this is no start-up time.
            starts.push(ready.since(pod.created).clamp(0.0, COLD_FOR_S));
            if starts.len() > STARTS_MAX {
                starts.remove(0);
            }
        }
        (self.counted, self.starting, self.unknown) = (newest, few(still), few(unknown));
    }

    /// Whether `pod`, which is not ready, was never seen ready: no node has room for it, it was young when first seen, or this
    /// planner has not seen it otherwise.
    pub(crate) fn never_ready(&self, pod: &Pod) -> bool {
        pod.phase == Phase::Unschedulable || self.starting.contains(&pod.id) || self.unknown.contains(&pod.id)
    }

    /// How long a pod ordered now takes to serve, seconds.
    pub(crate) fn expected_s(&self, now: Timestamp) -> f64 {
        if self.unschedulable.is_some_and(|at| now.since(at) < COLD_FOR_S) {
            slow(&self.cold_s).unwrap_or(START_COLD_S)
        } else {
            slow(&self.warm_s).unwrap_or(START_WARM_S)
        }
    }
}

/// At most [`WAITING_MAX`] of the pods, whatever their order.
fn few(mut ids: Vec<u64>) -> Vec<u64> {
    ids.sort_unstable();
    ids.dedup();
    ids.truncate(WAITING_MAX);
    ids
}

/// The 90th percentile.
fn slow(starts: &[f64]) -> Option<f64> {
    let mut sorted = starts.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(((sorted.len() * 9).div_ceil(10)).saturating_sub(1)).copied()
}

/// The three models as an earlier leader left them.
pub(crate) fn seeded(learned: &Learned) -> (Cpu, Memory, Startup) {
    let cpu = Cpu { prior_s: learned.cpu_per_image.map(Seconds::get), ..Cpu::default() };
    let memory = learned.memory.map_or_else(Memory::default, |model| {
        let (base, per_image) = (real(model.base.get()), real(model.per_image.get()));
        let at_s = learned.time.get();
        let at = |batch: u32| Some(WorkingSet { batch, bytes: base + per_image * f64::from(batch), at_s });
        Memory { least: at(1), most: at(2), class: None }
    });
    let one = |start: Option<Seconds>| start.map(Seconds::get).into_iter().collect();
    let startup =
        Startup { warm_s: one(learned.startup_warm), cold_s: one(learned.startup_cold), ..Startup::default() };
    (cpu, memory, startup)
}

/// What the next leader should know of the three.
pub(crate) fn learn(learned: &mut Learned, cpu: &Cpu, memory: &Memory, startup: &Startup) {
    let seconds = |value: f64| Seconds::try_from(value).ok();
    learned.cpu_per_image = cpu.per_image_s().and_then(seconds);
    learned.startup_warm = slow(&startup.warm_s).and_then(seconds);
    learned.startup_cold = slow(&startup.cold_s).and_then(seconds);
    learned.memory = memory
        .model()
        .map(|(base, per_image)| MemoryModel { base: whole_bytes(base), per_image: whole_bytes(per_image) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observation::{NoData, Signal};

    fn pod(created: u32, ready: u32, phase: Phase) -> Pod {
        let ready = (ready > 0).then(|| Timestamp::whole(ready));
        let sample = Signal::NoData(NoData::NeverSeen);
        Pod { id: 1, class: 0, phase, created: Timestamp::whole(created), ready, oom_killed: None, sample }
    }

    #[test]
    fn a_start_that_waited_for_a_node_is_counted_apart() {
        let mut startup = Startup::default();
        startup.add(&[pod(100, 110, Phase::Ready)], Timestamp::whole(111));
        startup.add(&[pod(100, 110, Phase::Ready)], Timestamp::whole(116));
        assert!((startup.expected_s(Timestamp::whole(116)) - 10.0).abs() < 1e-9);
        startup.add(&[pod(120, 0, Phase::Unschedulable)], Timestamp::whole(121));
        assert!((startup.expected_s(Timestamp::whole(122)) - START_COLD_S).abs() < 1e-9);
        startup.add(&[pod(120, 210, Phase::Ready)], Timestamp::whole(211));
        assert!((startup.expected_s(Timestamp::whole(212)) - 90.0).abs() < 1e-9);
        assert!((startup.expected_s(Timestamp::whole(5000)) - 10.0).abs() < 1e-9);
    }

    #[test]
    fn pods_that_wait_are_remembered_up_to_a_bound_whatever_their_order() {
        let look = |created| -> Vec<Pod> {
            (0..10_000).map(|id| Pod { id: u64::MAX - id, ..pod(created, 0, Phase::Pending) }).collect()
        };
        let remembered = |pods: &[Pod]| {
            let mut startup = Startup::default();
            startup.add(pods, Timestamp::whole(5000));
            startup
        };
        for created in [4999, 100] {
            let mut pods = look(created);
            let startup = remembered(&pods);
            assert_eq!(startup.starting.len() + startup.unknown.len(), WAITING_MAX);
            pods.reverse();
            assert_eq!(remembered(&pods), startup);
        }
    }

    #[test]
    fn pod_that_a_new_planner_finds_waiting_has_never_been_ready_as_far_as_it_knows() {
        let named = |id, pod: Pod| Pod { id, ..pod };
        let look = |ready| [named(1, pod(100, 110, Phase::Ready)), named(2, pod(100, ready, Phase::Pending))];
        let mut startup = Startup::default();
        for second in [5000, 5005] {
            startup.add(&look(0), Timestamp::whole(second));
            assert!(startup.never_ready(&look(0)[1]), "it waits since long before");
        }
        startup.add(&look(5010), Timestamp::whole(5011));
        startup.add(&look(0), Timestamp::whole(5016));
        assert!(!startup.never_ready(&look(0)[1]), "it has been ready since");
        assert!(
            (startup.expected_s(Timestamp::whole(5016)) - START_WARM_S).abs() < 1e-9,
            "that was no start of 82 min"
        );
    }

    #[test]
    fn pod_that_is_ready_again_or_was_long_before_has_not_started() {
        let mut startup = Startup::default();
        startup.add(&[pod(100, 0, Phase::Pending)], Timestamp::whole(101));
        startup.add(&[pod(100, 190, Phase::Ready)], Timestamp::whole(191));
        startup.add(&[pod(100, 0, Phase::Pending)], Timestamp::whole(1_800));
        startup.add(&[pod(100, 1_900, Phase::Ready)], Timestamp::whole(1_901));
        assert!((startup.expected_s(Timestamp::whole(1_901)) - 90.0).abs() < 1e-9, "a probe failed for a moment");
        let mut successor = Startup::default();
        successor.add(&[pod(100, 1_900, Phase::Ready)], Timestamp::whole(9_000));
        assert!(
            (successor.expected_s(Timestamp::whole(9_000)) - START_WARM_S).abs() < 1e-9,
            "nothing was seen to start"
        );
    }

    #[test]
    fn decoders_and_lookups_are_timed() {
        let mut stages = Stages::default();
        assert!(stages.decode_rate().is_none() && stages.lookup_share() <= 0.0, "nothing is known");
        let stage = |millis, workers| Stage { seconds: Seconds::millis(millis), count: 100, workers, queued: 0 };
        let (hash, decode, inference) = (stage(100, 0), stage(800, 2), stage(1200, 1));
        stages.add(&observation::Stages { hash, decode, inference, ..observation::Stages::default() });
        stages.tick();
        assert!((stages.decode_rate().unwrap() - 250.0).abs() < 1e-9, "two decoders of 8 ms an image");
        assert!((stages.lookup_share() - 0.05).abs() < 1e-9, "1 ms for 20 ms saved");
    }

    #[test]
    fn memory_separates_batch_and_cache() {
        let mut memory = Memory::default();
        let sample =
            |rss, cache| Sample { rss: Bytes::mebi(rss), cache_bytes: Bytes::mebi(cache), ..Sample::default() };
        memory.add(7, &sample(215, 100), 1);
        memory.add(7, &sample(160, 0), 4);
        let mib = memory.bytes(8, Bytes::mebi(20)).unwrap() / real(Bytes::mebi(1).get());
        assert!((mib - (80.0 + 20.0 * 8.0 + 23.0)).abs() < 1.0, "{mib}");
    }

    #[test]
    fn what_a_large_batch_once_needed_is_not_held_against_it_for_ever() {
        let add = |memory: &mut Memory, class, batch, rss, at_s| {
            let (rss, until) = (Bytes::mebi(rss), Timestamp::whole(at_s));
            memory.add(class, &Sample { until, rss, ..Sample::default() }, batch);
        };
        let mebi = |memory: &Memory| memory.bytes(16, Bytes::default()).unwrap() / real(Bytes::mebi(1).get());
        let mut memory = Memory::default();
        memory.succeed(7);
        add(&mut memory, 7, 4, 600, 1000);
        add(&mut memory, 7, 16, 1800, 1005);
        for hour in 1..8 {
            add(&mut memory, 7, 4, 600, 1005 + 3600 * hour - 1);
        }
        assert!((mebi(&memory) - 1800.0).abs() < 1.0, "within eight hours it is known");
        let mut tried = memory.clone();
        add(&mut tried, 7, 4, 600, 1005 + 3600 * 8);
        assert!((mebi(&tried) - 1200.0).abs() < 1.0, "then half of what it adds: {}", mebi(&tried));
        for hour in 9..=16 {
            add(&mut tried, 7, 4, 600, 1005 + 3600 * hour);
        }
        assert!((mebi(&tried) - 900.0).abs() < 1.0, "and half of that: {}", mebi(&tried));
        memory.succeed(8);
        add(&mut memory, 7, 16, 1800, 30_000);
        add(&mut memory, 8, 4, 300, 30_000);
        assert!((mebi(&memory) - 300.0).abs() < 1.0, "another model, and old pods that serve still: {}", mebi(&memory));
    }

    #[test]
    fn idle_cpu_and_cache_hits_do_not_count_as_an_images_cost() {
        let mut cpu = Cpu::default();
        let sample = |cpu_ms, arrivals| Sample {
            cpu_seconds: Seconds::millis(cpu_ms),
            span: Seconds::whole(5),
            arrivals,
            ..Sample::default()
        };
        cpu.add(&sample(5000, 0), 0.0);
        cpu.add(&sample(100, 0), 0.0);
        cpu.add(&sample(100 + 2000, 100), 100.0);
        assert!((cpu.per_image_s().unwrap() - 0.020).abs() < 1e-9);
        let mut hits = sample(900, 100);
        hits.cache.hits = 90;
        cpu.add(&hits, 10.0);
        assert!((cpu.per_image_s().unwrap() - 0.020).abs() < 1e-9);
    }
}
