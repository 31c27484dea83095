//! What passes outside the engine: decoding, preparing, and the CPU that all of it needs.

use crate::explain::{AdviceId, BottleneckKind, Severity};
use crate::policy::Accelerator;
use crate::reason::millis;

use super::{Case, Finding, above, advice};

/// Share of throttled CPU periods from which the quota hurts (control.md §9).
pub(super) const THROTTLED_MAX: f64 = 0.05;
/// Share of the decoders' time from which they are short, with their wait's share of the response time (control.md §9).
const DECODERS_MAX: f64 = 0.85;
const DECODE_WAIT_MAX: f64 = 0.3;
/// Share of its cores that a pod is to use (control.md §9).
const CORES_USED: f64 = 0.75;
/// GPU busy share below which it starves (control.md §9).
const STARVED_DUTY: f64 = 0.6;
/// Pictures that wait for a decoder in a mean pod: decoders are many, so that a fifth of a picture is a queue.
const STARVED_QUEUE_MIN: f64 = 0.2;
/// CPU used, as a share of the quota, below which more sessions would find cores (control.md §9).
const CPU_IDLE: f64 = 0.7;
/// Images that wait in a mean pod for a queue to count as one: gauges catch a waiting image now and then anywhere.
const QUEUE_MIN: f64 = 0.3;
/// Sessions busy less than this are not what images wait for.
const ENGINE_IDLE: f64 = 0.7;
/// Share of the API threshold that overhead may take (control.md §9).
const OVERHEAD_MAX: f64 = 0.25;
/// Times as many cores as there are, beyond which more of them would not shorten what one picture needs.
const MORE_CORES_MAX: f64 = 4.0;

/// `CpuPreprocess`: the kernel throttles the pods, or images wait for decoders that have no time left.
pub(super) fn cpu_preprocess(case: Case) -> Option<Finding> {
    let minute = case.minute;
    let (throttled, busy) = (minute.throttled(), minute.decoders_busy());
    // Of an answer that comes late anyway only the part that the target grants counts.
    let granted_s = case.latency_s.min(case.api_s().unwrap_or(f64::INFINITY)).max(1e-9);
    let wait = minute.decode_wait_s() / granted_s;
    let decoders_short = busy > DECODERS_MAX && wait > DECODE_WAIT_MAX;
    if throttled <= THROTTLED_MAX && !decoders_short {
        return None;
    }
    let by_quota = throttled > THROTTLED_MAX;
    let cores = minute.cores();
    // What an image costs: all of the pod's CPU where the quota is short, else what its decoders do.
    let prepare_s = minute.prepare_each_s();
    let whole_s = minute.cpu_s / minute.images.max(minute.decoded).max(1.0);
    let each_s = if by_quota { whole_s.max(prepare_s) } else { prepare_s };
    let offered = minute.rate(minute.arrivals);
    let wanted = (offered * each_s / CORES_USED).ceil().max((cores + 0.25).ceil()).clamp(1.0, 1024.0);
    let mut evidence = vec![
        ("throttled CPU periods, share", throttled, THROTTLED_MAX),
        ("decoders' busy share", busy, DECODERS_MAX),
        ("wait for a decoder over the response time (at most its target)", wait, DECODE_WAIT_MAX),
    ];
    if !by_quota {
        evidence.rotate_left(1);
    }
    let excess = if by_quota { above(throttled, THROTTLED_MAX) } else { above(wait, DECODE_WAIT_MAX) };
    let mut found = Finding::new(BottleneckKind::CpuPreprocess, excess, evidence);
    // Engines that idle are not what is short, however many images arrive.
    found.relief = if minute.busy() < ENGINE_IDLE { f64::INFINITY } else { wanted / cores.max(0.1) };
    let message = if by_quota {
        format!(
            "The kernel throttles the pods in {:.0} % of the CPU periods: an image costs {} of CPU time.",
            throttled * 1e2,
            millis(each_s)
        )
    } else {
        format!(
            "Decoding and preparing a picture takes {} and the decoders are {:.0} % busy: pictures wait for them.",
            millis(prepare_s),
            busy * 1e2
        )
    };
    let from = if cores > 0.0 { format!(" from {cores:.1}") } else { String::new() };
    let action = format!("Raise spec.server.resources.cpu{from} to {wanted:.0}.");
    let carried = |cores: f64| cores * CORES_USED / each_s.max(1e-9);
    let had = if by_quota { cores } else { minute.decoder_s / minute.pod_s.max(1e-9) };
    let gain = format!("CPU for {:.1} images/s a pod instead of {:.1}.", carried(wanted), carried(had));
    found.advice.push(advice(AdviceId::RaiseCpu, Severity::Warning, (message, action, gain)));
    Some(found)
}

/// `GpuStarved`: pictures wait to be prepared while the GPU is less than 60 % busy with half-empty batches.
pub(super) fn gpu_starved(case: Case) -> Option<Finding> {
    let minute = case.minute;
    let (waiting, duty, mean) = (minute.a_pod(minute.decode_queued), minute.duty(), minute.mean_batch());
    let cap = f64::from(case.knobs().max_batch_size.get());
    let starved = waiting >= STARVED_QUEUE_MIN && duty < STARVED_DUTY && mean < cap / 2.0;
    if case.policy.accelerator != Accelerator::Gpu || !starved {
        return None;
    }
    let each_s = minute.prepare_each_s();
    let decoders = (minute.decoder_s / minute.pod_s.max(1e-9)).max(1.0);
    let can = decoders / each_s.max(1e-9);
    let gpu = case.pod(case.batch())?.saturation;
    // Enough decoders that the GPU is what is short.
    let wanted = (gpu * each_s).ceil().min(1024.0).max(decoders + 1.0);
    let reached = (wanted / each_s.max(1e-9)).min(gpu);
    let message = format!(
        "The GPU is {:.0} % busy while {waiting:.1} pictures a pod wait to be prepared: {decoders:.0} decoders do \
         {can:.1} images/s, the GPU could do {gpu:.1}/s. More GPUs would not help.",
        duty * 1e2
    );
    let evidence = vec![
        ("GPU busy share", duty, STARVED_DUTY),
        ("pictures that wait to be prepared, a pod", waiting, STARVED_QUEUE_MIN),
        ("mean batch", mean, cap / 2.0),
    ];
    let mut found = Finding::new(BottleneckKind::GpuStarved, above(STARVED_DUTY, duty), evidence);
    found.relief = f64::INFINITY;
    let gain = format!("{reached:.1} images/s a pod instead of {can:.1}.");
    let cpu = format!("Raise spec.server.resources.cpu to {wanted:.0}: a decoder a core.");
    found.advice.push(advice(AdviceId::RaiseCpu, Severity::Warning, (message.clone(), cpu, gain.clone())));
    let more = format!("Run more decoders a pod: {wanted:.0} instead of {decoders:.0}.");
    found.advice.push(advice(AdviceId::RaiseConcurrency, Severity::Info, (message, more, gain)));
    Some(found)
}

/// `ConcurrencyLimited`: images wait for sessions while cores idle.
pub(super) fn concurrency_limited(case: Case) -> Option<Finding> {
    let minute = case.minute;
    let (waiting, cores) = (minute.a_pod(minute.queued), minute.cores());
    let used = minute.cpu_s / minute.quota_s.max(1e-9);
    let sessions = minute.session_s / minute.pod_s.max(1e-9);
    let limited = waiting >= QUEUE_MIN && cores >= sessions + 0.5 && used < CPU_IDLE && minute.busy() >= ENGINE_IDLE;
    if case.policy.accelerator != Accelerator::Cpu || !limited {
        return None;
    }
    let message = format!(
        "{waiting:.1} images a pod wait for {sessions:.0} sessions, while only {:.0} % of {cores:.1} cores are used.",
        used * 1e2
    );
    let evidence = vec![
        ("CPU used, share of the quota", used, CPU_IDLE),
        ("sessions a pod", sessions, cores),
        ("images that wait for a session, a pod", waiting, QUEUE_MIN),
    ];
    let mut found = Finding::new(BottleneckKind::ConcurrencyLimited, above(CPU_IDLE, used), evidence);
    found.relief = cores / sessions.max(1.0);
    let rate = case.pod(case.batch())?.saturation;
    let more = (
        message.clone(),
        format!(
            "Run a session a core: spec.accelerator.cpu.profile Throughput, {cores:.0} sessions instead of \
             {sessions:.0}."
        ),
        format!("Up to {:.1} images/s a pod instead of {rate:.1}.", rate * cores / sessions.max(1.0)),
    );
    let tasks = (
        message,
        "Send what need not be answered at once as tasks: spec.tasks.enabled true, POST /predict/async.".to_owned(),
        format!("{waiting:.1} images a pod leave the queue of those that are waited for."),
    );
    found.advice.push(advice(AdviceId::RaiseConcurrency, Severity::Warning, more));
    found.advice.push(advice(AdviceId::UseAsync, Severity::Info, tasks));
    Some(found)
}

/// `ApiOverhead`: more than a quarter of the API threshold passes outside queue and engine.
pub(super) fn api_overhead(case: Case) -> Option<Finding> {
    let (limit_s, overhead_s) = (case.api_s()? * OVERHEAD_MAX, case.state.overhead_s?);
    if overhead_s <= limit_s {
        return None;
    }
    let spared_s = overhead_s - limit_s;
    let message = format!(
        "{} pass outside queue and engine at the target's percentile: decoding, preparing, answering; {} are usual.",
        millis(overhead_s),
        millis(limit_s)
    );
    let mut roomier = case.model.clone();
    roomier.budget_s = case.model.budget_s.map(|budget_s| budget_s + spared_s);
    let (batch, pods) = (case.batch(), case.seen.ready);
    let carried = |model: &crate::capacity::Model| model.pod(batch, pods).map_or(0.0, |pod| pod.carried);
    let (before, after) = (carried(case.model), carried(&roomier));
    let gain = if after > 1.01 * before {
        format!("{after:.1} images/s a pod instead of {before:.1}, with {} less overhead.", millis(spared_s))
    } else {
        format!("{} less of a response; the pods carry as much as before.", millis(spared_s))
    };
    let evidence = vec![("overhead, seconds", overhead_s, limit_s)];
    let mut found = Finding::new(BottleneckKind::ApiOverhead, above(overhead_s, limit_s), evidence);
    let cores = case.minute.cores();
    let wanted = (cores * (overhead_s / limit_s).min(MORE_CORES_MAX)).ceil().clamp(1.0, 1024.0);
    let from = if cores > 0.0 { format!(" from {cores:.1}") } else { String::new() };
    let cpu = format!("Raise spec.server.resources.cpu{from} to {wanted:.0}, or let clients send smaller pictures.");
    found.advice.push(advice(AdviceId::RaiseCpu, Severity::Warning, (message.clone(), cpu, gain.clone())));
    let tasks = "Send what need not be answered at once as tasks: spec.tasks.enabled true, POST /predict/async.";
    found.advice.push(advice(AdviceId::UseAsync, Severity::Info, (message, tasks.to_owned(), gain)));
    Some(found)
}
