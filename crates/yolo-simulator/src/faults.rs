//! Faults injected into the fleet: does the planner name what is broken? (control.md §9 and G9)

use serde::Serialize;
use yolo_planner::explain::BottleneckKind;
use yolo_planner::policy::{Mode, Policy};
use yolo_planner::units::{BatchSize, Bytes, Replicas};

use crate::fleet::{Routing, run};
use crate::pictures::Popularity;
use crate::policies::{Planner, policy};
use crate::random::Random;
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
/// Loads vary by as much from seed to seed.
const SPREAD: f64 = 0.05;

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
    /// The balancer is blind, and connections stick.
    RandomRouting,
    /// The cache is far smaller than the pictures that repeat.
    SmallCache,
    /// Too few pods are allowed.
    FewReplicas,
    /// The model is loaded again and again.
    ModelReload,
}

/// All of G9.
pub const FAULTS: [Fault; 10] = [
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
];

/// What was named under one fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Confusion {
    /// The fault.
    pub fault: String,
    /// Runs in which it was named first for most of the judged time.
    pub right: usize,
    /// All runs.
    pub runs: usize,
    /// What was named in the others.
    pub instead: Vec<String>,
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
            Self::RandomRouting => &[BottleneckKind::Imbalance],
            Self::SmallCache => &[BottleneckKind::CacheTooSmall],
            Self::FewReplicas => &[BottleneckKind::CapacityShort],
            Self::ModelReload => &[BottleneckKind::ModelReload],
        }
    }

    /// A fleet with this fault.
    fn inject(self) -> Broken {
        let gpu = || World::new(Service::GPU, 3);
        let mut world = match self {
            Self::CpuThrottle | Self::RandomRouting => World::new(Service::CPU, 4),
            _ => gpu(),
        };
        let saturation = world.service.saturation_tuned() * f64::from(world.initial.replicas.get());
        let mut rate = 0.6 * saturation;
        match self {
            Self::CpuThrottle => {
                world.faults.quota_cores = 1.0;
                world.faults.throttled_share = 0.3;
            }
            Self::DecodeCap => {
                world.faults.prepare = Some((1, DECODE_S));
                rate = 0.95 * 3.0 / DECODE_S;
            }
            Self::NetworkDelay => world.faults.read_s = 0.12,
            Self::GpuClock => {
                world.faults.slowed = Some((SLOWED_AT_S, 1.4));
                rate = 0.4 * saturation;
            }
            Self::MemoryCap => world.faults.memory_limit = 480 << 20,
            Self::BatchOfOne => {
                world.initial.max_batch_size = BatchSize::ONE;
                rate = 0.97 * 3.0 * world.service.saturation(1);
            }
            Self::RandomRouting => {
                world.routing = Routing::Random;
                world.faults.sticky_share = 0.25;
                rate = 0.55 * saturation;
            }
            Self::SmallCache => {
                world.pictures =
                    Some(Popularity { keys: 20_000, exponent: 0.9, new_share: 0.02, entry_bytes: 8 << 10 });
                world.initial.cache_bytes = Bytes::mebi(4);
            }
            Self::FewReplicas => rate = 1.3 * saturation,
            Self::ModelReload => world.faults.reloads = (0.4, 0.5),
        }
        let mut policy = policy(&world);
        // The fault must stay: what would mend it is only recommended.
        if world.faults.memory_limit > 0 {
            policy.memory_limit = Bytes::new(world.faults.memory_limit);
        }
        policy.replicas.mode = Mode::Recommend;
        policy.cache.mode = Mode::Recommend;
        if self == Self::FewReplicas {
            policy.replicas.max = Replicas::new(3);
        }
        if self == Self::BatchOfOne {
            policy.batch.mode = Mode::Recommend;
        }
        Broken { world, policy, rate }
    }

    /// What is named first for most of the judged time of a run.
    pub fn named(self, seed: u64) -> Option<BottleneckKind> {
        let Broken { world, policy, rate } = self.inject();
        let mut random = Random::new(seed, 8);
        let rate = rate * (1.0 + SPREAD * random.between(-1.0, 1.0));
        let trace = Trace { rates: vec![rate; RUN_S], gaps: Gaps::Poisson };
        let outcome = run(&world, &trace, seed, &mut Planner::new(policy));
        let mut votes: Vec<(Option<BottleneckKind>, usize)> = Vec::new();
        for (_, kind) in outcome.blames.iter().filter(|(at_s, _)| *at_s >= JUDGED_FROM_S) {
            match votes.iter_mut().find(|(named, _)| named == kind) {
                Some((_, count)) => *count += 1,
                None => votes.push((*kind, 1)),
            }
        }
        votes.into_iter().max_by_key(|(_, count)| *count).and_then(|(kind, _)| kind)
    }
}

/// All faults over `seeds`.
pub fn confuse(seeds: u64) -> Vec<Confusion> {
    let confusion = |fault: Fault| {
        let named: Vec<_> = (1..=seeds).map(|seed| fault.named(seed)).collect();
        let right = |kind: &Option<BottleneckKind>| kind.is_some_and(|kind| fault.expected().contains(&kind));
        let wrong = named.iter().filter(|kind| !right(kind));
        Confusion {
            fault: format!("{fault:?}"),
            right: named.iter().filter(|kind| right(kind)).count(),
            runs: named.len(),
            instead: wrong.map(|kind| kind.map_or("nothing".to_owned(), |kind| format!("{kind:?}"))).collect(),
        }
    };
    FAULTS.into_iter().map(confusion).collect()
}
