//! Whole sequences, decision by decision, against committed files. `UPDATE_GOLDEN=1` writes them anew; the diff is then
//! what a reviewer reads.

use std::fmt::Write as _;

use crate::support::{Fleet, Kind};
use yolo_planner::explain::TargetRow;
use yolo_planner::observation::{NoData, Observation, Phase as PodPhase, Signal};
use yolo_planner::policy::{Accelerator, Knob, Mode, Policy, Targets};
use yolo_planner::units::{Bytes, Replicas, Seconds};
use yolo_planner::{Decision, State, plan};

const CPU: Kind = Kind { alpha_s: 0.0, beta_s: 0.016, quota: 1, cpu_s: 0.022, startup_s: 8.0, overhead_s: 0.008 };
const GPU: Kind = Kind { alpha_s: 0.030, beta_s: 0.002, quota: 0, cpu_s: 0.0, startup_s: 8.0, overhead_s: 0.004 };
/// One image takes longer than the inference threshold.
const SLOW: Kind = Kind { alpha_s: 0.0, beta_s: 0.150, quota: 0, cpu_s: 0.0, startup_s: 8.0, overhead_s: 0.008 };

/// What happens to the fleet during some ticks.
#[derive(Clone, Copy)]
struct Phase {
    ticks: u32,
    rate: f64,
    repeats: f64,
    reachable: bool,
    /// A new operator starts with what the last one learned.
    restart: bool,
    /// What else is so, at each look.
    twist: fn(&mut Policy, &mut Observation),
}

const fn load(ticks: u32, rate: f64) -> Phase {
    Phase { ticks, rate, repeats: 0.0, reachable: true, restart: false, twist: |_, _| {} }
}

const fn twisted(ticks: u32, rate: f64, twist: fn(&mut Policy, &mut Observation)) -> Phase {
    Phase { twist, ..load(ticks, rate) }
}

fn policy(accelerator: Accelerator, max: u32) -> Policy {
    let thirty = Seconds::whole(30);
    Policy {
        targets: Targets { window: thirty, ..Targets::default() },
        stabilization: Some(thirty),
        replicas: Knob::auto(Replicas::new(1), Replicas::new(max)),
        accelerator,
        ..Policy::default()
    }
}

/// Plays the phases and renders one line a tick, and a block where something changed.
fn play(kind: Kind, policy: &Policy, phases: &[Phase]) -> String {
    let (mut fleet, mut state, mut text) = (Fleet::new(kind, policy), State::default(), String::new());
    let (mut tick, mut limits) = (0, Vec::new());
    for phase in phases {
        (fleet.repeats, fleet.reachable) = (phase.repeats, phase.reachable);
        if phase.restart {
            state = State::seeded(&state.learned());
            writeln!(text, "       another operator starts").unwrap();
        }
        for _ in 0..phase.ticks {
            tick += 1;
            fleet.run(phase.rate, 5.0);
            let (mut policy, mut observation) = (policy.clone(), fleet.observe());
            (phase.twist)(&mut policy, &mut observation);
            let decision = plan(&policy, &observation, &state, crate::support::at(fleet.now));
            render(&mut text, tick * 5, phase.rate, &decision);
            limiting(&mut text, &decision, &mut limits);
            state = decision.state.clone();
            fleet.apply(decision.desired);
        }
    }
    text
}

/// The bottlenecks with their evidence and advice, and what the conditions say, where any of them changed.
fn limiting(text: &mut String, decision: &Decision, before: &mut Vec<String>) {
    let why = &decision.explanation;
    let conditions = &why.conditions;
    let all = [&conditions.targets_feasible, &conditions.scaling_active, &conditions.scaling_limited];
    let kinds = why.bottlenecks.iter().map(|found| format!("{:?}", found.kind));
    let now: Vec<String> = kinds.chain(all.map(|condition| format!("{:?}", condition.reason))).collect();
    if now == *before {
        return;
    }
    writeln!(text, "       {}", why.reason).unwrap();
    for condition in
        all.into_iter().filter(|condition| before.iter().all(|old| *old != format!("{:?}", condition.reason)))
    {
        writeln!(text, "         {:?} {:?}: {}", condition.status, condition.reason, condition.message).unwrap();
    }
    for found in &why.bottlenecks {
        write!(text, "         {:?} ({:.2})", found.kind, found.confidence.get()).unwrap();
        for evidence in &found.evidence {
            write!(text, ", {} {:.3} against {:.3}", evidence.name, evidence.value, evidence.limit).unwrap();
        }
        writeln!(text).unwrap();
    }
    for advice in &why.advice {
        writeln!(text, "         {:?}: {} {} {}", advice.id, advice.message, advice.action, advice.predicted).unwrap();
    }
    *before = now;
}

fn render(text: &mut String, second: u32, rate: f64, decision: &Decision) {
    let (knobs, why) = (decision.desired, &decision.explanation);
    let conditions = &why.conditions;
    writeln!(
        text,
        "{second:>4} s {rate:>5.1}/s  level {:>5.1} plan {:>5.1}  pods {} batch {:>2} cache {:>8}  targets {} met {:?} feasible {:?} metrics {:?}  {:?}",
        why.forecast.level.get(),
        why.forecast.plan.get(),
        knobs.replicas.get(),
        knobs.max_batch_size.get(),
        knobs.cache_bytes.get(),
        why.targets_summary,
        conditions.targets_met.status,
        conditions.targets_feasible.status,
        conditions.metrics_available.status,
        decision.action,
    )
    .unwrap();
    if decision.record.is_some() {
        writeln!(text, "       {}", why.reason).unwrap();
        for row in &why.targets {
            writeln!(text, "         {}", line(row)).unwrap();
        }
    }
    for judged in &decision.judged {
        let p95 = |outcome: Option<yolo_planner::decision::Outcome>| {
            outcome.and_then(|outcome| outcome.p95).map_or(0.0, |p95| p95.get() * 1e3)
        };
        let (expected, came) = (p95(Some(judged.predicted)), p95(judged.actual));
        writeln!(text, "       judged {:?}: p95 {expected:.0} ms expected, {came:.0} ms came", judged.verdict.unwrap())
            .unwrap();
    }
}

fn line(row: &TargetRow) -> String {
    format!("{:?} {:?} {:?}: {:.3?} against {:.3}", row.name, row.verdict, row.reason, row.observed, row.threshold)
}

/// Compares with `tests/golden/<name>.txt`, or writes it.
pub fn golden(name: &str, found: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    let first = expected.lines().zip(found.lines()).position(|(old, new)| old != new);
    let at = first.unwrap_or_else(|| expected.lines().count().min(found.lines().count()));
    assert!(
        expected == found,
        "{} differs from line {} on; UPDATE_GOLDEN=1 writes it anew\n- {}\n+ {}",
        path.display(),
        at + 1,
        expected.lines().nth(at).unwrap_or_default(),
        found.lines().nth(at).unwrap_or_default(),
    );
}

#[test]
fn step_up_threefold_and_down_again() {
    golden("step", &play(CPU, &policy(Accelerator::Cpu, 6), &[load(20, 20.0), load(20, 60.0), load(24, 20.0)]));
}

#[test]
fn metrics_outage_holds() {
    let outage = Phase { reachable: false, ..load(30, 60.0) };
    golden("outage", &play(CPU, &policy(Accelerator::Cpu, 6), &[load(24, 60.0), outage, load(12, 60.0)]));
}

#[test]
fn gpu_batch_rises_before_replicas() {
    golden("gpu_batch", &play(GPU, &policy(Accelerator::Gpu, 6), &[load(20, 60.0), load(20, 180.0)]));
}

#[test]
fn repeated_pictures_raise_the_cache() {
    let repeated = Phase { repeats: 0.95, ..load(30, 60.0) };
    golden("repeats", &play(CPU, &policy(Accelerator::Cpu, 6), &[load(20, 60.0), repeated, load(30, 60.0)]));
}

#[test]
fn too_few_pods_allowed_is_infeasible() {
    golden("replicas_max", &play(CPU, &policy(Accelerator::Cpu, 2), &[load(16, 20.0), load(20, 120.0)]));
}

#[test]
fn too_slow_a_model_is_infeasible_and_does_not_take_all_pods() {
    golden("too_slow", &play(SLOW, &policy(Accelerator::Gpu, 10), &[load(24, 4.0)]));
}

#[test]
fn zero_traffic_goes_to_the_minimum() {
    golden("zero", &play(CPU, &policy(Accelerator::Cpu, 6), &[load(24, 100.0), load(40, 0.0)]));
}

#[test]
fn a_new_operator_knows_what_the_last_one_learned_and_takes_no_pod_away_at_first() {
    let restart = Phase { restart: true, ..load(70, 20.0) };
    golden("restart", &play(CPU, &policy(Accelerator::Cpu, 6), &[load(20, 100.0), restart]));
}

#[test]
fn a_kill_for_memory_shrinks_the_cache_first() {
    let killed = twisted(24, 60.0, |_, observation| {
        let first = &mut observation.pods[0];
        first.oom_killed = Some(crate::support::at(1_700_000_121.0));
    });
    let mut policy = policy(Accelerator::Cpu, 6);
    policy.cache = Knob::auto(Bytes::default(), Bytes::mebi(64));
    golden("oom", &play(CPU, &policy, &[Phase { repeats: 0.5, ..load(24, 60.0) }, killed]));
}

#[test]
fn a_rollout_takes_no_pod_away() {
    let rolling = twisted(24, 20.0, |_, observation| {
        observation.rolling = true;
        for pod in observation.pods.iter_mut().skip(1) {
            pod.class = 1;
        }
    });
    golden("rollout", &play(CPU, &policy(Accelerator::Cpu, 6), &[load(24, 100.0), rolling, load(24, 20.0)]));
}

#[test]
fn pods_without_a_node_are_told() {
    let full = twisted(60, 100.0, |_, observation| {
        for pod in observation.pods.iter_mut().skip(2) {
            (pod.phase, pod.ready) = (PodPhase::Unschedulable, None);
            pod.sample = Signal::NoData(NoData::NeverSeen);
        }
    });
    golden("unschedulable", &play(CPU, &policy(Accelerator::Cpu, 6), &[load(16, 20.0), full]));
}

#[test]
fn hands_off_where_somebody_else_steers_or_nobody_is_to() {
    let phases = [
        load(16, 20.0),
        twisted(8, 100.0, |_, observation| observation.other_manager = true),
        twisted(8, 100.0, |policy, _| policy.paused = true),
        twisted(8, 100.0, |policy, _| {
            (policy.replicas.mode, policy.batch.mode, policy.cache.mode) =
                (Mode::Recommend, Mode::Recommend, Mode::Off);
        }),
        twisted(8, 100.0, |policy, _| {
            (policy.replicas.mode, policy.batch.mode, policy.cache.mode) = (Mode::Off, Mode::Off, Mode::Off);
        }),
        load(16, 100.0),
    ];
    golden("hands_off", &play(CPU, &policy(Accelerator::Cpu, 6), &phases));
}

#[test]
fn latency_against_utilisation_is_a_conflict_of_targets() {
    let mut policy = policy(Accelerator::Gpu, 6);
    policy.targets.api.as_mut().unwrap().threshold = Seconds::millis(60);
    golden("conflict", &play(GPU, &policy, &[load(24, 40.0)]));
}
