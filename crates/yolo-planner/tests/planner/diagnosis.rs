//! What is injected must be what is named: every bottleneck of control.md §9 from samples of a queueing fleet.

use std::fmt::Write as _;

use crate::faulty::{Fleet, Setup};
use crate::golden::golden;
use crate::support::seconds;
use yolo_planner::explain::AdviceId;
use yolo_planner::explain::BottleneckKind::{self, *};
use yolo_planner::policy::{Accelerator, Knob, Mode, Routing};
use yolo_planner::units::{Bytes, Replicas};
use yolo_planner::{Decision, State, plan};

/// Ticks of 10 s before the fault, and with it: three whole windows and what is left of the one that it began in.
const HEALTHY_TICKS: u32 = 8;
const FAULTY_TICKS: u32 = 25;
/// Variants of each fault.
const VARIANTS: u64 = 20;

/// One way to break a service.
struct Fault {
    name: &'static str,
    device: Accelerator,
    /// What it is called; the first is the best answer.
    expected: BottleneckKind,
    /// Breaks a healthy service; the second argument draws uniformly from a range.
    inject: fn(&mut Setup, &mut dyn FnMut(f64, f64) -> f64),
}

const fn cpu(
    name: &'static str,
    expected: BottleneckKind,
    inject: fn(&mut Setup, &mut dyn FnMut(f64, f64) -> f64),
) -> Fault {
    Fault { name, device: Accelerator::Cpu, expected, inject }
}

const fn gpu(
    name: &'static str,
    expected: BottleneckKind,
    inject: fn(&mut Setup, &mut dyn FnMut(f64, f64) -> f64),
) -> Fault {
    Fault { name, device: Accelerator::Gpu, expected, inject }
}

/// Pictures that repeat: half of them within 64 MiB.
fn repeating(bytes: f64) -> f64 {
    (0.5 * (bytes / 67_108_864.0).powf(0.25)).min(0.6)
}

/// The ten of G9 (control.md §11), and nothing at all.
static G9: [Fault; 11] = [
    cpu("nothing", None, |_, _| {}),
    cpu("CPU throttle", CpuPreprocess, |setup, draw| {
        setup.throttled = draw(0.15, 0.6);
        setup.slowed = draw(1.1, 1.5);
    }),
    gpu("decode cap", CpuPreprocess, |setup, draw| {
        setup.decoders = 1;
        (setup.policy.replicas.min, setup.policy.replicas.max) = (Replicas::new(3), Replicas::new(3));
        setup.decode_s = draw(0.95, 1.2) * 3.0 / setup.rate;
    }),
    cpu("network delay", NetworkUpload, |setup, draw| setup.read_s = draw(0.060, 0.4)),
    gpu("GPU clock", DeviceSlowed, |setup, draw| setup.slowed = draw(1.2, 2.0)),
    cpu("memory cap", MemoryPressure, |setup, draw| setup.rss_mib = draw(1850.0, 2040.0)),
    gpu("b=1", SmallBatches, |setup, _| {
        setup.policy.batch = Knob { mode: Mode::Auto, min: crate::support::batch(1), max: crate::support::batch(1) };
    }),
    cpu("random routing", Imbalance, |setup, draw| {
        setup.policy.routing = Routing::Random;
        (setup.sessions, setup.cores) = (1, 1);
        // Either each request goes to any pod, or connections stick, and one pod has more of them.
        setup.first_share = if draw(0.0, 1.0) < 0.5 { 1.0 } else { draw(1.6, 2.5) };
    }),
    cpu("small cache", CacheTooSmall, |setup, _| {
        setup.hits = repeating;
        setup.policy.cache.max = Bytes::mebi(1);
    }),
    cpu("few replicas", CapacityShort, |setup, draw| {
        setup.policy.replicas.min = Replicas::new(1);
        setup.policy.replicas.max = Replicas::new(1);
        setup.rate = draw(1.3, 2.0) * 2.0 / (setup.alpha_s + setup.beta_s);
    }),
    cpu("model reload", ModelReload, |setup, draw| setup.loads = draw(0.2, 1.0)),
];

/// The kinds that the ten do not show.
static OTHERS: [Fault; 10] = [
    cpu("no metrics", NoMetrics, |setup, _| setup.reachable = false),
    gpu("idle GPU", GpuStarved, |setup, _| {
        (setup.policy.replicas.min, setup.policy.replicas.max) = (Replicas::new(3), Replicas::new(3));
        (setup.rate, setup.decoders, setup.decode_s) = (60.0, 1, 0.82 * 3.0 / 60.0);
        setup.policy.batch.min = crate::support::batch(8);
        setup.policy.targets.api.as_mut().unwrap().threshold = seconds(1.0);
    }),
    cpu("one session", ConcurrencyLimited, |setup, _| {
        (setup.cores, setup.sessions) = (4, 1);
        setup.policy.replicas.max = Replicas::new(2);
        setup.policy.replicas.min = Replicas::new(2);
        setup.rate = 1.8 / (setup.alpha_s + setup.beta_s);
    }),
    cpu("batches that wait", BatchTooLarge, |setup, _| setup.delay_s = 0.020),
    cpu("slow model", InferenceTooSlow, |setup, _| {
        setup.beta_s = 0.160;
        setup.rate = 10.0;
    }),
    cpu("slow API", ApiOverhead, |setup, _| setup.overhead_s = 0.090),
    gpu("slow pod", Straggler, |setup, _| {
        (setup.policy.replicas.min, setup.policy.replicas.max) = (Replicas::new(4), Replicas::new(4));
        setup.first_slowed = 1.8;
    }),
    cpu("nothing repeats", CacheUseless, |setup, _| {
        setup.hash_s = 0.004;
        setup.policy.cache = Knob { mode: Mode::Auto, min: Bytes::mebi(16), max: Bytes::mebi(64) };
    }),
    cpu("bursts", Bursty, |setup, _| {
        (setup.rate, setup.burst) = (32.0, 5.0);
        setup.policy.replicas.max = Replicas::new(1);
    }),
    cpu("many pods", OverProvisioned, |setup, _| {
        (setup.policy.replicas.min, setup.rate) = (Replicas::new(8), 20.0);
    }),
];

/// Plays a healthy time and then the fault, the planner steering all the while; the last decision.
fn play(fault: &Fault, seed: u64) -> Decision {
    let mut chance = seed.wrapping_mul(0x5851_f42d_4c95_7f2d) | 1;
    let mut draw = |low: f64, high: f64| {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        low + (high - low) * (chance >> 11) as f64 / (1_u64 << 53) as f64
    };
    let mut setup = Setup::healthy(fault.device, &mut draw);
    let mut fleet = Fleet::new(&setup, seed);
    let mut state = State::default();
    let mut last = Option::None;
    for tick in 0..HEALTHY_TICKS + FAULTY_TICKS {
        if tick == HEALTHY_TICKS {
            (fault.inject)(&mut setup, &mut draw);
        }
        fleet.run(&setup, 10);
        let decision = plan(&setup.policy, &fleet.observe(&setup), &state, crate::support::at(fleet.now));
        state = decision.state.clone();
        fleet.knobs = decision.desired;
        fleet.scale(&setup);
        last = Some(decision);
    }
    last.unwrap()
}

fn first(decision: &Decision) -> BottleneckKind {
    decision.explanation.bottlenecks.first().map_or(None, |bottleneck| bottleneck.kind)
}

#[test]
fn injected_faults_are_named() {
    let mut table = String::new();
    let (mut right, mut all) = (0, 0);
    let rows: Vec<Vec<BottleneckKind>> = std::thread::scope(|scope| {
        let run = |fault: &'static Fault| move || (0..VARIANTS).map(|seed| first(&play(fault, seed + 1))).collect();
        let rows: Vec<_> = G9.iter().map(|fault| scope.spawn(run(fault))).collect();
        rows.into_iter().map(|row| row.join().unwrap()).collect()
    });
    for (fault, found) in G9.iter().zip(rows) {
        let mut kinds: Vec<(BottleneckKind, u64)> = Vec::new();
        for kind in found {
            all += 1;
            right += u64::from(kind == fault.expected);
            match kinds.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, count)) => *count += 1,
                Option::None => kinds.push((kind, 1)),
            }
        }
        writeln!(table, "{:>16} -> {kinds:?}", fault.name).unwrap();
    }
    println!("{table}top-1: {right} of {all}");
    assert!(right * 100 >= all * 95, "{right} of {all} named right:\n{table}");
}

/// What a person reads for each kind.
#[test]
fn every_bottleneck_is_explained() {
    let (mut text, mut wrong) = (String::new(), Vec::new());
    for fault in G9.iter().chain(&OTHERS) {
        let decision = play(fault, 7);
        let why = &decision.explanation;
        writeln!(text, "{}: {}", fault.name, why.reason).unwrap();
        for found in &why.bottlenecks {
            writeln!(text, "  {:?} ({:.2})", found.kind, found.confidence.get()).unwrap();
            for evidence in &found.evidence {
                writeln!(text, "    {} {:.3} against {:.3}", evidence.name, evidence.value, evidence.limit).unwrap();
            }
        }
        for advice in &why.advice {
            writeln!(text, "  {:?} {:?}: {}", advice.severity, advice.id, advice.message).unwrap();
            writeln!(text, "    {} -> {}", advice.action, advice.predicted).unwrap();
        }
        if first(&decision) != fault.expected {
            wrong.push((fault.name, first(&decision)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}\n{text}");
    golden("bottlenecks", &text);
}

/// Advice of control.md §9 that none of the faults above call for.
static ADVISED: [(Fault, AdviceId); 5] = [
    (
        gpu("b=1 on a large GPU", SmallBatches, |setup, _| {
            setup.policy.batch =
                Knob { mode: Mode::Auto, min: crate::support::batch(1), max: crate::support::batch(1) };
            setup.sm_active = Some(0.2);
        }),
        AdviceId::LowerPrecision,
    ),
    (
        cpu("batches of 8 at least, too slow for the target", BatchTooLarge, |setup, _| {
            (setup.alpha_s, setup.beta_s, setup.policy.batch.min) = (0.004, 0.025, crate::support::batch(8));
        }),
        AdviceId::LowerBatch,
    ),
    (cpu("no cache", CacheTooSmall, |setup, _| setup.hits = repeating), AdviceId::EnableCache),
    (
        cpu("large cache, small pod", MemoryPressure, |setup, _| {
            setup.hits = repeating;
            setup.rss_mib = 1950.0;
            setup.policy.cache = Knob { mode: Mode::Auto, min: Bytes::mebi(64), max: Bytes::mebi(64) };
        }),
        AdviceId::ShrinkCache,
    ),
    (
        cpu("one pod a client", Imbalance, |setup, _| {
            (setup.sessions, setup.cores, setup.first_share) = (1, 1, 2.2);
            setup.policy.routing = Routing::Random;
        }),
        AdviceId::UseLeastOutstanding,
    ),
];

#[test]
fn each_advice_is_given_where_it_helps() {
    for (fault, wanted) in &ADVISED {
        let decision = play(fault, 3);
        let why = &decision.explanation;
        assert!(
            why.bottlenecks.iter().any(|found| found.kind == fault.expected),
            "{}: {:?}",
            fault.name,
            why.bottlenecks
        );
        let given: Vec<AdviceId> = why.advice.iter().map(|advice| advice.id).collect();
        assert!(given.contains(wanted), "{}: {given:?}", fault.name);
    }
}
