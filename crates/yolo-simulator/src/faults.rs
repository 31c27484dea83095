//! Faults injected into the fleet: does the planner name what is broken? (control.md §9 and G9)
//!
//! How badly it is broken, how many pods there are and how much arrives are drawn by the seed, so that naming cannot be
//! fitted to one point.

use serde::Serialize;
use yolo_planner::explain::BottleneckKind;
use yolo_planner::policy::{Mode, Policy};
use yolo_planner::units::{BatchSize, Bytes};

use crate::fleet::{Routing, run};
use crate::pictures::Popularity;
use crate::policies::{Planner, policy};
use crate::random::Random;
use crate::sampling::{BASE_BYTES, IMAGE_BYTES};
use crate::service::Service;
use crate::trace::{Gaps, Trace};
use crate::world::World;

/// Length of a run, and from when on what is named counts.
const RUN_S: usize = 1200;
const JUDGED_FROM_S: f64 = 900.0;
/// Moment at which the device slows.
const SLOWED_AT_S: f64 = 600.0;
/// Decoding of a large picture on a slow core.
const DECODE_S: f64 = 0.02;
/// Time of one load of the model.
const RELOAD_S: f64 = 0.5;
/// Each fault draws from a stream of its own, after those of a run.
const FIRST_STREAM: u64 = 8;
/// Pods of a fleet, and their load as a share of what they can do where the fault asks for no other.
const PODS: (usize, usize) = (3, 6);
const LOAD: (f64, f64) = (0.45, 0.65);

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The CPU quota throttles.
    CpuThrottle,
    /// Decoding has one thread and keeps the device waiting.
    DecodeCap,
    /// Requests take long to come in.
    NetworkDelay,
    /// The device's clock fell.
    GpuClock,
    /// The memory limit is just above what is used.
    MemoryCap,
    /// Batches of one.
    BatchOfOne,
    /// The balancer is blind, though it is said to know the pods' loads.
    RandomRouting,
    /// The cache is far smaller than the pictures that repeat.
    SmallCache,
    /// Too few pods are allowed.
    FewReplicas,
    /// The model is loaded again and again.
    ModelReload,
    /// The balancer is blind, and many kept connections lead to one pod. Not of G9's ten.
    StickyConnections,
    /// Nothing is broken, and nothing should be named. Not of G9's ten.
    Nothing,
}

/// All of G9, and two more.
pub const FAULTS: [Fault; 12] = [
    Fault::CpuThrottle,
    Fault::DecodeCap,
    Fault::NetworkDelay,
    Fault::GpuClock,
    Fault::MemoryCap,
    Fault::BatchOfOne,
    Fault::RandomRouting,
    Fault::SmallCache,
    Fault::FewReplicas,
    Fault::ModelReload,
    Fault::StickyConnections,
    Fault::Nothing,
];

/// What was named under one fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Confusion {
    /// The fault.
    pub fault: String,
    /// Between which limits its severity was drawn.
    pub severity: String,
    /// Whether it is one of G9's ten.
    pub of_goal: bool,
    /// Runs in which it was named first for most of the judged time.
    pub right: usize,
    /// All runs.
    pub runs: usize,
    /// What was named in the others, at which severity.
    pub instead: Vec<String>,
}

/// How badly something is broken: drawn evenly between two limits.
struct Severity {
    from: f64,
    to: f64,
    of: &'static str,
}

/// One broken fleet.
struct Broken {
    world: World,
    policy: Policy,
    rate: f64,
}

impl Fault {
    /// What names it.
    const fn expected(self) -> &'static [BottleneckKind] {
        match self {
            Self::CpuThrottle => &[BottleneckKind::CpuPreprocess],
            // The stage that is short and the device that starves of it are one thing seen from two sides.
            Self::DecodeCap => &[BottleneckKind::CpuPreprocess, BottleneckKind::GpuStarved],
            Self::NetworkDelay => &[BottleneckKind::NetworkUpload],
            Self::GpuClock => &[BottleneckKind::DeviceSlowed],
            Self::MemoryCap => &[BottleneckKind::MemoryPressure],
            Self::BatchOfOne => &[BottleneckKind::SmallBatches],
            Self::RandomRouting | Self::StickyConnections => &[BottleneckKind::Imbalance],
            Self::SmallCache => &[BottleneckKind::CacheTooSmall],
            Self::FewReplicas => &[BottleneckKind::CapacityShort],
            Self::ModelReload => &[BottleneckKind::ModelReload],
            Self::Nothing => &[BottleneckKind::None],
        }
    }

    /// From where it is felt to where it is grave.
    const fn severity(self) -> Severity {
        let (from, to, of) = match self {
            Self::CpuThrottle => (0.1, 0.5, "of the CPU periods throttled"),
            Self::DecodeCap => (0.88, 0.97, "of the one decoder's time used"),
            Self::NetworkDelay => (0.06, 0.3, "s to read a body"),
            Self::GpuClock => (1.2, 1.8, "× the time of a batch"),
            Self::MemoryCap => (0.87, 0.97, "of the memory limit used"),
            Self::BatchOfOne => (0.95, 1.15, "× the rate that batches of one can do"),
            Self::RandomRouting => (0.5, 0.85, "of the pods' best rate arrives"),
            Self::SmallCache => (1.0, 16.0, "MiB for 160 MiB of answers"),
            Self::FewReplicas => (1.15, 2.0, "× what the pods can do"),
            Self::ModelReload => (0.2, 1.0, "loads a second and pod"),
            Self::StickyConnections => (0.2, 0.4, "of the requests go to one pod"),
            Self::Nothing => (LOAD.0, LOAD.1, "of the pods' best rate arrives"),
        };
        Severity { from, to, of }
    }

    /// A fleet with this fault of `severity`.
    fn inject(self, severity: f64, random: &mut Random) -> Broken {
        let service = match self {
            Self::CpuThrottle | Self::RandomRouting | Self::StickyConnections => Service::CPU,
            _ => Service::GPU,
        };
        let pods = PODS.0 + random.below(PODS.1 - PODS.0 + 1);
        let mut world = World::new(service, pods as u32);
        let (saturation, pods) = (world.service.saturation_tuned() * pods as f64, pods as f64);
        let mut rate = saturation * random.between(LOAD.0, LOAD.1);
        match self {
            Self::CpuThrottle => {
                world.faults.quota_cores = 1.0;
                world.faults.throttled_share = severity;
            }
            Self::DecodeCap => {
                world.faults.prepare = Some((1, DECODE_S));
                rate = severity * pods / DECODE_S;
            }
            Self::NetworkDelay => world.faults.read_s = severity,
            Self::GpuClock => world.faults.slowed = Some((SLOWED_AT_S, severity)),
            Self::MemoryCap => {
                let used = BASE_BYTES + IMAGE_BYTES * u64::from(world.service.batch);
                world.faults.memory_limit = (used as f64 / severity) as u64;
            }
            Self::BatchOfOne => {
                world.initial.max_batch_size = BatchSize::ONE;
                rate = severity * pods * world.service.saturation(1);
            }
            Self::SmallCache => {
                world.pictures =
                    Some(Popularity { keys: 20_000, exponent: 0.9, new_share: 0.02, entry_bytes: 8 << 10 });
                world.initial.cache_bytes = Bytes::new((severity * f64::from(1 << 20)) as u64);
            }
            Self::RandomRouting | Self::FewReplicas | Self::Nothing => rate = severity * saturation,
            Self::ModelReload => world.faults.reloads = (severity, RELOAD_S),
            Self::StickyConnections => world.faults.sticky_share = severity,
        }
        let policy = self.policy(&world);
        // What the policy says of the balancer is from before it broke.
        if matches!(self, Self::RandomRouting | Self::StickyConnections) {
            world.routing = Routing::Random;
        }
        Broken { world, policy, rate }
    }

    /// The fault must stay: what would mend it is only recommended.
    fn policy(self, world: &World) -> Policy {
        let mut policy = policy(world);
        if world.faults.memory_limit > 0 {
            policy.memory_limit = Bytes::new(world.faults.memory_limit);
        }
        policy.replicas.mode = Mode::Recommend;
        policy.cache.mode = Mode::Recommend;
        if self == Self::FewReplicas {
            policy.replicas.max = world.initial.replicas;
        }
        if matches!(self, Self::BatchOfOne | Self::MemoryCap) {
            policy.batch.mode = Mode::Recommend;
        }
        policy
    }

    /// The severity of a run, and what is named first for most of its judged time.
    pub fn named(self, seed: u64) -> (f64, Option<BottleneckKind>) {
        let mut random = Random::new(seed, FIRST_STREAM + self as u64);
        let Severity { from, to, .. } = self.severity();
        let severity = random.between(from, to);
        let Broken { world, policy, rate } = self.inject(severity, &mut random);
        let trace = Trace { rates: vec![rate; RUN_S], gaps: Gaps::Poisson };
        let outcome = run(&world, &trace, seed, &mut Planner::new(policy));
        let mut votes: Vec<(Option<BottleneckKind>, usize)> = Vec::new();
        for (_, kind) in outcome.blames.iter().filter(|(at_s, _)| *at_s >= JUDGED_FROM_S) {
            match votes.iter_mut().find(|(named, _)| named == kind) {
                Some((_, count)) => *count += 1,
                None => votes.push((*kind, 1)),
            }
        }
        (severity, votes.into_iter().max_by_key(|(_, count)| *count).and_then(|(kind, _)| kind))
    }

    /// Over `seeds`.
    fn confuse(self, seeds: u64) -> Confusion {
        let named: Vec<_> = (1..=seeds).map(|seed| self.named(seed)).collect();
        let right = |kind: Option<BottleneckKind>| kind.is_some_and(|kind| self.expected().contains(&kind));
        let wrong = named.iter().filter(|(_, kind)| !right(*kind));
        let instead = |(severity, kind): &(f64, Option<BottleneckKind>)| {
            format!("{} at {severity:.2}", kind.map_or("nothing".to_owned(), |kind| format!("{kind:?}")))
        };
        let Severity { from, to, of } = self.severity();
        Confusion {
            fault: format!("{self:?}"),
            severity: format!("{from} to {to} {of}"),
            of_goal: !matches!(self, Self::StickyConnections | Self::Nothing),
            right: named.iter().filter(|(_, kind)| right(*kind)).count(),
            runs: named.len(),
            instead: wrong.map(instead).collect(),
        }
    }
}

/// All faults over `seeds`, side by side.
pub fn confuse(seeds: u64) -> Vec<Confusion> {
    std::thread::scope(|scope| {
        let running = FAULTS.map(|fault| scope.spawn(move || fault.confuse(seeds)));
        let joined = running.map(|fault| fault.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.into()
    })
}
