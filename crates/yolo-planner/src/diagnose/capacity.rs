//! Too few pods, too many of them, and loads that come in bursts.

use crate::explain::{Advice, AdviceId, BottleneckKind, Severity};
use crate::policy::Mode;
use crate::reason::pods;

use super::{Case, Finding, above, advice};

/// Share of the best possible rate below which pods are too many (control.md §9).
const UTILIZATION_MIN: f64 = 0.5;
/// Variance over mean of a second's arrivals from which they come in bursts (control.md §9).
const BURST_DISPERSION: f64 = 4.0;
/// Peak of the past over the mean from which they come in bursts (control.md §9).
const BURST_PEAK: f64 = 2.0;

/// A start that is as fast as pods with their image and model at hand reach, seconds.
const FAST_START_S: f64 = 10.0;

/// `CapacityShort`: what reaches the engines exceeds what the ready pods carry within the targets.
pub(super) fn capacity_short(case: Case) -> Option<Finding> {
    // Where no number of pods meets the target, capacity is not what is short.
    let needed = case.choice?.needed?;
    let carried = case.carried()?;
    if case.engine_rate <= carried || case.seen.ready == 0 {
        return None;
    }
    let message = format!(
        "{:.1} images/s reach the engines, {} ready carry {carried:.1}/s within the targets.",
        case.engine_rate,
        pods(case.seen.ready)
    );
    let evidence = vec![("images/s at the engines", case.engine_rate, carried)];
    let mut found = Finding::new(BottleneckKind::CapacityShort, above(case.engine_rate, carried), evidence);
    found.advice.push(more_pods(case, needed, &message)?);
    let better = case.best_batch().filter(|(size, _)| *size > case.batch());
    if let Some((size, rate)) = better.filter(|(_, rate)| *rate * case.pods() >= case.engine_rate) {
        let action = format!(
            "Allow batches of {size}: spec.scaling.batch.max from {} to {size}, in mode Auto.",
            case.knobs().max_batch_size.get()
        );
        let gain =
            format!("{rate:.1} images/s a pod instead of {:.1}, with the pods there are.", carried / case.pods());
        found.advice.push(advice(AdviceId::RaiseBatch, Severity::Warning, (message, action, gain)));
    }
    Some(found)
}

/// The advice that brings `needed` pods, by who keeps them from coming.
fn more_pods(case: Case, needed: u32, message: &str) -> Option<Advice> {
    let (now, knob) = (case.knobs().replicas.get(), case.policy.replicas);
    let each = case.model.pod(case.choice?.batch.get().min(case.model.times.largest()), needed)?.carried;
    let gain = format!("{:.1} images/s with {}, within the targets.", each * f64::from(needed), pods(needed));
    let max = knob.max.max(knob.min).get();
    let text = |action: String, gain: String| (message.to_owned(), action, gain);
    Some(if knob.mode != Mode::Auto {
        let action = format!(
            "Set spec.scaling.replicas.fixed from {now} to {needed}, or spec.scaling.replicas.mode to Auto with a max \
             of at least {needed}."
        );
        advice(AdviceId::AddReplicas, Severity::Critical, text(action, gain))
    } else if needed > max {
        let field = if knob.min == knob.max { "fixed" } else { "max" };
        let action = format!("Raise spec.scaling.replicas.{field} from {max} to {needed}.");
        advice(AdviceId::RaiseMaxReplicas, Severity::Critical, text(action, gain))
    } else {
        let more = needed.saturating_sub(case.seen.ready);
        let action = format!("Nothing: {} more ordered. Look at their events if they do not come.", pods(more));
        let gain = format!("{gain} A pod takes {:.0} s to start.", case.startup_s);
        advice(AdviceId::AddReplicas, Severity::Warning, text(action, gain))
    })
}

/// `Bursty`: images are refused, and they come in bursts.
pub(super) fn bursty(case: Case) -> Option<Finding> {
    let (dispersion, peak) = (case.state.arrivals.dispersion(), case.state.arrivals.peak());
    let mean = case.minute.arrivals / super::minute::WINDOW_S;
    let by_second = dispersion > BURST_DISPERSION;
    if case.minute.shed <= 0.0 || !(by_second || peak > BURST_PEAK * mean) {
        return None;
    }
    let (batch, startup_s) = (case.batch(), case.startup_s);
    let carry = |rate: f64| case.model.pods_for(batch, rate * (1.0 - case.hit_ratio));
    let (of_peak, of_mean) = (carry(peak)?, carry(mean)?.max(1));
    let message = format!(
        "{:.0} images a minute are refused: arrivals come in bursts, up to {peak:.1}/s against {mean:.1}/s on average.",
        case.minute.shed
    );
    let mut evidence = vec![
        ("peak of the arrivals over their mean", peak / mean.max(1e-9), BURST_PEAK),
        ("variance over mean of a second's arrivals", dispersion, BURST_DISPERSION),
        ("images refused in a minute", case.minute.shed, 0.0),
    ];
    if by_second {
        evidence.swap(0, 1);
    }
    let excess = above(dispersion, BURST_DISPERSION).max(above(peak, BURST_PEAK * mean));
    let mut found = Finding::new(BottleneckKind::Bursty, excess, evidence);
    let queue = (
        message.clone(),
        "Send what need not be answered at once as tasks: spec.tasks.enabled true, POST /predict/async.".to_owned(),
        format!("{} for the mean instead of {of_peak} for the peak.", pods(of_mean)),
    );
    let start = (
        message.clone(),
        "Make pods start faster: the image on the nodes beforehand, the model on a claim or in the image.".to_owned(),
        format!(
            "Images are refused for {FAST_START_S:.0} s of a burst instead of {startup_s:.0} s, until new pods are ready."
        ),
    );
    let min = case.policy.replicas.min.get();
    let stand_by = (
        message,
        format!("Raise spec.scaling.replicas.min from {min} to {of_peak}, or name the peak in spec.scaling.schedules."),
        format!("No image refused at {peak:.1}/s, for {} more pods held.", of_peak.saturating_sub(min)),
    );
    found.advice.push(advice(AdviceId::UseAsync, Severity::Warning, queue));
    if startup_s > FAST_START_S {
        found.advice.push(advice(AdviceId::FasterStart, Severity::Info, start));
    }
    if of_peak > min {
        found.advice.push(advice(AdviceId::RaiseMinReplicas, Severity::Info, stand_by));
    }
    Some(found)
}

/// `OverProvisioned`: pods are less than half used, and only `replicas.min` holds them.
pub(super) fn over_provisioned(case: Case) -> Option<Finding> {
    let min = case.policy.replicas.min.get();
    let best = case.best_batch().and_then(|(size, _)| case.pod(size))?.saturation;
    let used = case.engine_rate / (best * case.pods().max(1.0)).max(1e-9);
    let needed = case.choice?.needed?.max(1);
    if needed >= min || case.knobs().replicas.get() != min || used >= UTILIZATION_MIN {
        return None;
    }
    let field = if case.policy.replicas.max.get() <= min { "fixed" } else { "min" };
    let message = format!("{} would carry the load; spec.scaling.replicas.{field} holds {min}.", pods(needed));
    let evidence = vec![("image rate over the best possible rate", used, UTILIZATION_MIN)];
    let mut found = Finding::new(BottleneckKind::OverProvisioned, above(UTILIZATION_MIN, used), evidence);
    let lower = (
        message.clone(),
        format!("Lower spec.scaling.replicas.{field} from {min} to {needed}."),
        format!("{} of {min} pods less.", min - needed),
    );
    found.advice.push(advice(AdviceId::LowerMinReplicas, Severity::Info, lower));
    if case.policy.accelerator == crate::policy::Accelerator::Gpu {
        let share = (
            message,
            "Share each GPU between services (MIG or time-slicing: another resourceName).".to_owned(),
            format!("{:.0} % of each GPU for others.", (1.0 - used) * 1e2),
        );
        found.advice.push(advice(AdviceId::ShareGpu, Severity::Info, share));
    }
    Some(found)
}
