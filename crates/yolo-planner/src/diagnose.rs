//! What limits the service, and what would help by how much (the part of control.md §9 that one window can tell).

use crate::capacity::{Binding, Model};
use crate::choose::{Choice, HITS_GAIN_MIN, memory_max};
use crate::explain::{Advice, AdviceId, Bottleneck, BottleneckKind, Evidence, Relaxation, Severity};
use crate::intake::Seen;
use crate::observation::Knobs;
use crate::policy::Policy;
use crate::reason::{bytes, millis};
use crate::state::State;
use crate::units::{Bytes, Ratio, real, whole_bytes};
use crate::window::{Sums, THROTTLED_MAX};

/// Bytes of a MiB.
const MIB: f64 = 1_048_576.0;
/// Share of the API threshold that overhead may take.
const OVERHEAD_MAX: f64 = 0.25;
/// Share of the inference threshold from which one image alone is too slow.
const INFERENCE_MAX: f64 = 0.9;
/// Share of the best possible rate below which pods are too many.
const UTILIZATION_MIN: f64 = 0.5;

/// What a diagnosis looks at.
#[derive(Clone, Copy)]
pub(crate) struct Case<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) state: &'a State,
    pub(crate) seen: &'a Seen,
    pub(crate) current: &'a Knobs,
    pub(crate) sums: &'a Sums,
    pub(crate) model: &'a Model,
    pub(crate) choice: Option<&'a Choice>,
    pub(crate) relaxations: &'a [Relaxation],
    /// Images/s that reach the engines.
    pub(crate) engine_rate: f64,
    pub(crate) metrics: bool,
}

/// One finding: a bottleneck and its advice.
type Finding = (Bottleneck, Option<Advice>);

/// The first two findings, in the order of the table of control.md §9.
pub(crate) fn diagnose(case: Case) -> (Vec<Bottleneck>, Vec<Advice>) {
    if !case.metrics {
        let action = "Make the pods' /metrics reachable for the operator, or name a Prometheus.";
        let advice = advice(AdviceId::FixMetrics, Severity::Critical, "No usable metrics.", action, "Scaling resumes.");
        return (vec![bottleneck(BottleneckKind::NoMetrics, Vec::new())], vec![advice]);
    }
    let checks: [fn(Case) -> Option<Finding>; 7] = [
        capacity_short,
        cpu_quota,
        inference_too_slow,
        api_overhead,
        memory_pressure,
        cache_too_small,
        over_provisioned,
    ];
    let found: Vec<Finding> = checks.iter().filter_map(|check| check(case)).take(2).collect();
    if found.is_empty() {
        return (vec![bottleneck(BottleneckKind::None, Vec::new())], Vec::new());
    }
    let (bottlenecks, advice): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    (bottlenecks, advice.into_iter().flatten().collect())
}

/// `evidence`: name, value, limit. The confidence is how far the first one is beyond its limit.
fn bottleneck(kind: BottleneckKind, evidence: Vec<(&str, f64, f64)>) -> Bottleneck {
    let confidence = evidence.first().map_or(1.0, |(_, value, limit)| {
        let (value, limit) = (value.abs(), limit.abs());
        let beyond = if value > limit { value / limit.max(1e-9) } else { limit / value.max(1e-9) };
        (0.5 * beyond).clamp(0.5, 1.0)
    });
    let evidence = evidence.into_iter().map(|(name, value, limit)| Evidence { name: name.to_owned(), value, limit });
    Bottleneck { kind, confidence: Ratio::try_from(confidence).unwrap_or_default(), evidence: evidence.collect() }
}

fn advice(id: AdviceId, severity: Severity, message: &str, action: &str, predicted: &str) -> Advice {
    let [message, action, predicted] = [message, action, predicted].map(str::to_owned);
    Advice { id, severity, message, action, predicted }
}

fn capacity_short(case: Case) -> Option<Finding> {
    // Where no number of pods meets the target, capacity is not what is short.
    let choice = case.choice.filter(|choice| choice.needed.is_some())?;
    let carried =
        case.model.pod(case.current.max_batch_size.get().min(case.model.times.largest()), case.seen.ready)?.carried
            * f64::from(case.seen.ready);
    let found = bottleneck(
        BottleneckKind::CapacityShort,
        vec![("arrivals at the engines, images/s", case.engine_rate, carried)],
    );
    if case.engine_rate <= carried {
        return None;
    }
    let message =
        format!("{:.1} images/s arrive, the ready pods carry {carried:.1}/s within the targets.", case.engine_rate);
    let max = case.policy.replicas.max.get();
    let help = match choice.needed {
        Some(needed) if needed > max => advice(
            AdviceId::RaiseMaxReplicas,
            Severity::Critical,
            &message,
            &format!("Raise spec.scaling.replicas.max from {max} to {needed}."),
            &case.relaxations.iter().map(|r| r.sentence.clone()).collect::<Vec<_>>().join("; "),
        ),
        _ => advice(
            AdviceId::AddReplicas,
            Severity::Warning,
            &message,
            &format!("{} pods are needed; the planner orders them unless its knobs are off.", choice.replicas),
            &format!("{:.1} images/s with {} pods.", choice.pod.carried * f64::from(choice.replicas), choice.replicas),
        ),
    };
    Some((found, Some(help)))
}

fn cpu_quota(case: Case) -> Option<Finding> {
    let throttled = case.sums.throttled();
    let binds = case.choice.is_some_and(|choice| choice.pod.binding == Binding::CpuQuota && choice.replicas > 1);
    if throttled <= THROTTLED_MAX && !binds {
        return None;
    }
    let cost_s = case.state.cpu.per_image_s().unwrap_or(0.0);
    let mut evidence = vec![("throttled CPU periods, share", throttled, THROTTLED_MAX)];
    if let Some(choice) = case.choice.filter(|_| binds) {
        evidence.insert(0, ("images/s a pod without the quota", choice.pod.saturation, choice.pod.carried));
    }
    let message =
        format!("The CPU quota of {:.1} cores limits a pod: an image costs {}.", case.seen.quota_cores, millis(cost_s));
    let action = format!(
        "Raise spec.server.resources cpu from {0:.1} to {1:.1}.",
        case.seen.quota_cores,
        2.0 * case.seen.quota_cores
    );
    let help =
        advice(AdviceId::RaiseCpu, Severity::Info, &message, &action, "About twice the images/s a pod, half the pods.");
    Some((bottleneck(BottleneckKind::CpuPreprocess, evidence), Some(help)))
}

fn inference_too_slow(case: Case) -> Option<Finding> {
    let target = case.policy.targets.inference?;
    let upper = case.model.times.upper(1, target.at())?;
    if upper <= INFERENCE_MAX * target.limit_s() {
        return None;
    }
    let evidence = vec![("one image in the engine, seconds", upper, target.limit_s())];
    let message = format!(
        "One image alone takes up to {}, {} are allowed; more pods do not help.",
        millis(upper),
        millis(target.limit_s())
    );
    let action = "Use a smaller model or image size, faster hardware, or a looser target.";
    let half = "Half the image side: about a quarter of the time.";
    let help = advice(AdviceId::SmallerInput, Severity::Critical, &message, action, half);
    Some((bottleneck(BottleneckKind::InferenceTooSlow, evidence), Some(help)))
}

fn api_overhead(case: Case) -> Option<Finding> {
    let target = case.policy.targets.api?;
    let overhead_s = case.state.overhead_s?;
    if overhead_s <= OVERHEAD_MAX * target.limit_s() {
        return None;
    }
    let evidence = vec![("overhead, seconds", overhead_s, OVERHEAD_MAX * target.limit_s())];
    let message =
        format!("{} of the {} allowed pass outside queue and engine.", millis(overhead_s), millis(target.limit_s()));
    let action = "Give the pods more CPU, or send smaller pictures.";
    let help = advice(
        AdviceId::RaiseCpu,
        Severity::Warning,
        &message,
        action,
        "Each millisecond less leaves one more to the queue.",
    );
    Some((bottleneck(BottleneckKind::ApiOverhead, evidence), Some(help)))
}

fn memory_pressure(case: Case) -> Option<Finding> {
    let limit = memory_max(case.policy)?;
    let used = real(case.sums.rss.get());
    if used <= limit {
        return None;
    }
    let message = format!(
        "A pod uses {} of the {} that batch and cache may fill.",
        bytes(case.sums.rss),
        bytes(whole_bytes(limit))
    );
    let help = advice(
        AdviceId::RaiseMemory,
        Severity::Warning,
        &message,
        "Raise spec.server.resources memory, or lower the cache's or the batch's maximum.",
        &format!("{} a pod leave a tenth free.", bytes(whole_bytes(used / crate::choose::MEMORY_SHARE))),
    );
    Some((bottleneck(BottleneckKind::MemoryPressure, vec![("working set, MiB", used / MIB, limit / MIB)]), Some(help)))
}

fn cache_too_small(case: Case) -> Option<Finding> {
    let curve = case.state.hits.curve();
    let ratio = |limit: Bytes| {
        curve.iter().filter(|(size, _)| *size <= limit).map(|(_, ratio)| *ratio).next_back().unwrap_or(0.0)
    };
    let max = case.policy.cache.max.max(case.current.cache_bytes);
    let (beyond, best) = curve.iter().copied().find(|(size, best)| *size > max && best - ratio(max) > HITS_GAIN_MIN)?;
    let evidence = vec![
        ("hit ratio of the larger cache", best, ratio(max)),
        ("sampled references", case.state.hits.references().get(), 0.0),
    ];
    let id = if max == Bytes::default() { AdviceId::EnableCache } else { AdviceId::EnlargeCache };
    let message = format!("A cache of {} would answer {:.0} % of the images.", bytes(beyond), best * 1e2);
    let action = format!("Raise spec.scaling.cache.max from {} to {}.", bytes(max), bytes(beyond));
    let gain = format!("{:.1} images/s less for the engines.", case.engine_rate * (best - ratio(max)));
    Some((
        bottleneck(BottleneckKind::CacheTooSmall, evidence),
        Some(advice(id, Severity::Info, &message, &action, &gain)),
    ))
}

fn over_provisioned(case: Case) -> Option<Finding> {
    let choice = case.choice?;
    let min = case.policy.replicas.min.get();
    let used = case.engine_rate / (choice.pod.saturation * f64::from(case.seen.ready).max(1.0)).max(1e-9);
    let needed =
        choice.needed.filter(|needed| *needed < min && case.current.replicas.get() == min && used < UTILIZATION_MIN)?;
    let evidence = vec![("image rate over the best possible rate", used, UTILIZATION_MIN)];
    let message = format!("{} pods would carry the load; replicas.min holds {min}.", needed.max(1));
    let action = format!("Lower spec.scaling.replicas.min to {}.", needed.max(1));
    let gain = format!("{} pods less.", min - needed.max(1));
    (needed.max(1) < min).then(|| {
        let help = advice(AdviceId::LowerMinReplicas, Severity::Info, &message, &action, &gain);
        (bottleneck(BottleneckKind::OverProvisioned, evidence), Some(help))
    })
}
