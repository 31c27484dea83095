//! The engine's batches: too small, too large, or too slow even for one image.

use crate::explain::{AdviceId, BottleneckKind, Severity};
use crate::policy::{Accelerator, LatencyTarget};
use crate::reason::millis;

use super::{AS_GOOD, Case, Finding, above, advice};

/// Share of the response time that queue and engine must take for batches to matter (control.md §9).
const ENGINE_SHARE_MIN: f64 = 0.6;
/// Share of the sessions' time in which a batch runs from which the engine is what is short. The table asks for 95 % of
/// a fleet that nobody scales; the planner keeps pods between this and their ceiling, whatever their batches.
const BUSY_MIN: f64 = 0.5;
/// Image rate over the best possible rate that larger batches must leave free (control.md §9).
const UTILIZATION_MAX: f64 = 0.6;
/// More that a pod must carry with larger batches.
const GAIN_MIN: f64 = 1.1;
/// Share of the multiprocessors at work below which one model alone cannot fill the GPU (control.md §9).
const SM_ACTIVE_MIN: f64 = 0.5;
/// Share of the inference threshold from which one image alone is too slow (control.md §9).
const INFERENCE_MAX: f64 = 0.9;

/// `SmallBatches`: the engine is what is short, and larger batches, which are not allowed, would carry more.
pub(super) fn small_batches(case: Case) -> Option<Finding> {
    let minute = case.minute;
    let (now, busy) = (case.knobs().max_batch_size.get(), minute.busy());
    if case.engine_share() <= ENGINE_SHARE_MIN || busy < BUSY_MIN {
        return None;
    }
    if case.model.times.largest() <= now {
        return untimed(case);
    }
    let (better, rate) = case.best_batch().filter(|(size, _)| *size > now)?;
    let (had, best) = (case.batch_rate()?, case.pod(better)?.saturation);
    let gain = rate / had.max(1e-9);
    let used = case.engine_rate / (best * case.pods().max(1.0)).max(1e-9);
    if gain < GAIN_MIN || used >= UTILIZATION_MAX.max(busy) {
        return None;
    }
    let message = format!(
        "Batches of up to {now} keep the engine {:.0} % busy for {:.0} % of the rate that batches of {better} allow.",
        busy * 1e2,
        used * 1e2
    );
    let evidence = vec![
        ("images/s a pod with the best batch over the present one's", gain, GAIN_MIN),
        ("engine busy, share of the time", busy, BUSY_MIN),
        ("queue and engine, share of the response time", case.engine_share(), ENGINE_SHARE_MIN),
        ("image rate over the best possible rate", used, UTILIZATION_MAX),
    ];
    let mut found = Finding::new(BottleneckKind::SmallBatches, above(gain, GAIN_MIN), evidence);
    found.relief = gain;
    let action = raise_batch(case, better);
    let predicted = format!("{rate:.1} images/s a pod instead of {had:.1}, {gain:.2} times as many.");
    found.advice.push(advice(AdviceId::RaiseBatch, Severity::Warning, (message, action, predicted)));
    found.advice.extend(half_empty_gpu(case));
    Some(found)
}

/// How a person allows batches of `size`: the range, or the mode.
fn raise_batch(case: Case, size: u32) -> String {
    let max = case.policy.batch.max.get();
    if size > max {
        format!("Raise spec.scaling.batch.max from {max} to {size}.")
    } else {
        format!("Set spec.scaling.batch.mode to Auto, or spec.scaling.batch.min to {size}.")
    }
}

/// A GPU that only ever runs the largest batch allowed: what larger ones would bring nobody has timed.
fn untimed(case: Case) -> Option<Finding> {
    let now = case.knobs().max_batch_size.get();
    let full = case.minute.mean_batch() / f64::from(now);
    let larger = (now * 4).min(32);
    let limited = case.policy.accelerator == Accelerator::Gpu && now == case.policy.batch.max.get() && now < larger;
    if !limited || full < 0.9 || case.minute.a_pod(case.minute.queued) < 0.5 {
        return None;
    }
    let message = format!("Nearly every batch is as large as allowed, {now}, and images wait.");
    let evidence = vec![("mean batch over the largest allowed", full, 0.9)];
    let mut found = Finding::new(BottleneckKind::SmallBatches, above(full, 0.9), evidence);
    let predicted = format!("Not known yet: the servers time batches of up to {larger} as soon as they are allowed.");
    found.advice.push(advice(AdviceId::RaiseBatch, Severity::Info, (message, raise_batch(case, larger), predicted)));
    Some(found)
}

/// What else helps where one model alone leaves most of the GPU idle.
fn half_empty_gpu(case: Case) -> Vec<crate::explain::Advice> {
    let active = case.minute.sm_s / case.minute.sm_pod_s.max(1e-9);
    if case.minute.sm_pod_s <= 0.0 || active >= SM_ACTIVE_MIN {
        return Vec::new();
    }
    let message = format!("The model keeps {:.0} % of the GPU's multiprocessors at work.", active * 1e2);
    let halves = (
        message.clone(),
        "Use half precision: spec.accelerator.nvidia.precision Fp16.".to_owned(),
        "Up to half the time of a batch where it is bound by memory or arithmetic.".to_owned(),
    );
    let share = (
        message,
        "Share each GPU between pods (MIG or time-slicing: another resourceName).".to_owned(),
        format!("{:.1} pods a GPU.", 1.0 / active.max(0.01)),
    );
    vec![advice(AdviceId::LowerPrecision, Severity::Info, halves), advice(AdviceId::ShareGpu, Severity::Info, share)]
}

/// `BatchTooLarge`: a smaller batch carries more, or it alone keeps the inference target; or batches wait to fill
/// although nothing else needs the device.
pub(super) fn batch_too_large(case: Case) -> Option<Finding> {
    let delay_s = case.minute.delay_s / case.minute.pod_s.max(1e-9);
    let smaller = smaller_batch(case);
    if smaller.is_none() && delay_s <= 0.0 {
        return None;
    }
    let mut found = smaller.unwrap_or_else(|| Finding::new(BottleneckKind::BatchTooLarge, 0.0, Vec::new()));
    if delay_s > 0.0 {
        found.evidence.push(("wait for a batch to fill, seconds", delay_s, 0.0));
        let message = format!("Images wait up to {} for a batch to fill.", millis(delay_s));
        let action = "Set spec.scaling.batch.mode to Auto: the planner then runs without that wait.";
        let gain = format!(
            "Up to {} less for an image that finds the engine idle, {:.0} % of the time; no capacity lost.",
            millis(delay_s),
            (1.0 - case.minute.busy()) * 1e2
        );
        found.excess = found.excess.max(above(delay_s, 1e-3));
        found.advice.push(advice(AdviceId::DropQueueDelay, Severity::Info, (message, action.to_owned(), gain)));
    }
    Some(found)
}

/// A smaller batch than the present one, as far as that one is too large.
fn smaller_batch(case: Case) -> Option<Finding> {
    let now = case.batch();
    let (better, rate) = case.best_batch().filter(|(better, _)| *better < now)?;
    let had = case.batch_rate()?;
    let target = case.policy.targets.inference.filter(|_| case.quick(better) && !case.quick(now));
    let slow = target.and_then(|target| Some((case.model.times.upper(now, target.at())?, target.limit_s())));
    if slow.is_none() && had >= AS_GOOD * rate {
        return None;
    }
    let q = case.policy.quantile();
    let latency = |size: u32| Some(case.model.latencies(size, case.seen.ready, case.engine_rate, 0.0)?.quantile(q));
    let faster = latency(now)
        .zip(latency(better))
        .map_or_else(String::new, |(from, to)| format!(" p{:.0} {} instead of {}.", q * 1e2, millis(to), millis(from)));
    let (message, excess, figure) = match slow {
        Some((slow_s, limit_s)) => (
            format!(
                "Batches of {now} take up to {}, {} are allowed; those of {better} keep the target.",
                millis(slow_s),
                millis(limit_s)
            ),
            above(slow_s, limit_s),
            ("a batch in the engine, seconds", slow_s, limit_s),
        ),
        None => (
            format!("Batches of {better} carry more than those of {now} within the targets."),
            above(rate, had),
            ("images/s a pod over those with the best batch", had / rate.max(1e-9), AS_GOOD),
        ),
    };
    let mut found = Finding::new(BottleneckKind::BatchTooLarge, excess, vec![figure]);
    found.relief = rate / had.max(1e-9);
    let min = case.policy.batch.min.get();
    let action = if min > better {
        format!("Lower spec.scaling.batch.min from {min} to {better}.")
    } else {
        format!("Set spec.scaling.batch.mode to Auto, or spec.scaling.batch.max to {better}.")
    };
    let gain = format!("{rate:.1} images/s a pod instead of {had:.1}.{faster}");
    found.advice.push(advice(AdviceId::LowerBatch, Severity::Warning, (message, action, gain)));
    Some(found)
}

/// `InferenceTooSlow`: one image alone takes more than 90 % of the inference threshold.
pub(super) fn inference_too_slow(case: Case) -> Option<Finding> {
    let target = case.policy.targets.inference?;
    let (limit_s, upper_s) = (target.limit_s(), case.model.times.upper(1, target.at())?);
    if upper_s <= INFERENCE_MAX * limit_s {
        return None;
    }
    Some(too_slow(target, upper_s))
}

fn too_slow(target: LatencyTarget, upper_s: f64) -> Finding {
    let limit_s = target.limit_s();
    let share = (INFERENCE_MAX * limit_s / upper_s.max(1e-9)).min(1.0);
    let message = format!(
        "One image alone takes up to {}, {} are allowed; more pods do not help.",
        millis(upper_s),
        millis(limit_s)
    );
    let severity = if upper_s > limit_s { Severity::Critical } else { Severity::Warning };
    let evidence = vec![("one image in the engine, seconds", upper_s, INFERENCE_MAX * limit_s)];
    let mut found = Finding::new(BottleneckKind::InferenceTooSlow, above(upper_s, INFERENCE_MAX * limit_s), evidence);
    let reached = format!("{} an image, 90 % of what is allowed.", millis(upper_s * share));
    // A convolution's work grows with the picture's area, so the side may be the root of the share.
    let remedies = [
        (
            AdviceId::SmallerInput,
            format!(
                "Use {:.0} % of the image side (spec.model.imageSize) with a model exported for it.",
                share.sqrt() * 1e2
            ),
        ),
        (AdviceId::SmallerModel, format!("Use a model with at most {:.0} % of the computation.", share * 1e2)),
        (
            AdviceId::FasterHardware,
            format!("Use a device, or cores a session, {:.1} times as fast.", 1.0 / share.max(1e-9)),
        ),
    ];
    for (id, action) in remedies {
        found.advice.push(advice(id, severity, (message.clone(), action, reached.clone())));
    }
    let looser_s = upper_s / INFERENCE_MAX;
    let relax = (
        message,
        format!(
            "Raise spec.targets.inferenceLatency.threshold from {} to at least {:.0} ms.",
            millis(limit_s),
            (looser_s * 1e3).ceil()
        ),
        "The target can then be met with the hardware there is.".to_owned(),
    );
    found.advice.push(advice(AdviceId::RelaxTarget, Severity::Info, relax));
    found
}
