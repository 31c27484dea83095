//! What is wrong with how the service is run: model loads, uploads, memory.

use crate::choose::{MEMORY_SHARE, memory_max};
use crate::explain::{AdviceId, BottleneckKind, Severity};
use crate::reason::{bytes, millis};
use crate::units::{Bytes, real, whole_bytes};

use super::{Case, Finding, above, advice};

/// Bytes of a MiB.
const MIB: f64 = 1_048_576.0;
/// Share of the API threshold that an upload may take (control.md §9).
const READ_MAX: f64 = 0.25;
/// Reads from which their percentile is one.
const READS_MIN: u64 = 20;
/// Share of the memory from which it is short (control.md §9).
const MEMORY_USED_MAX: f64 = 0.85;
/// How long an out-of-memory kill is shown, seconds: until a person has had the time to look.
const KILL_SHOWN_S: f64 = 3600.0;
/// Share of the memory that an enlarged limit leaves in use.
const MEMORY_ROOMY: f64 = 0.7;

/// `ModelReload`: the model is loaded more often than pods start.
pub(super) fn model_reload(case: Case) -> Option<Finding> {
    let minute = case.minute;
    if minute.model_loads <= minute.starts {
        return None;
    }
    let extra = minute.model_loads - minute.starts;
    let each_s = minute.load_s / minute.model_loads.max(1.0);
    // Seconds that requests spend on loads beyond those of starting pods.
    let spent_s = extra * each_s / minute.requests.max(1.0);
    let message = format!(
        "The model was loaded {:.0} times within a minute in which {:.0} pods started; a load takes {}.",
        minute.model_loads,
        minute.starts,
        millis(each_s)
    );
    let action = "Load the model once, when the process starts, and keep it; if pods restart, their events say why.";
    let gain = format!("{} less of a request on average.", millis(spent_s));
    let evidence = vec![("model loads a minute", minute.model_loads, minute.starts)];
    let excess = above(minute.model_loads + 1.0, minute.starts + 1.0);
    let mut found = Finding::new(BottleneckKind::ModelReload, excess, evidence);
    found.advice.push(advice(AdviceId::LoadModelOnce, Severity::Critical, (message, action.to_owned(), gain)));
    Some(found)
}

/// `NetworkUpload`: reading a request takes more than a quarter of the API threshold.
pub(super) fn network_upload(case: Case) -> Option<Finding> {
    let (minute, limit_s) = (case.minute, case.api_s()? * READ_MAX);
    if minute.read.count() < READS_MIN {
        return None;
    }
    let q = case.policy.quantile();
    let read_s = minute.read.quantile(q)?.seconds().get();
    if read_s <= limit_s {
        return None;
    }
    let share = limit_s / read_s;
    let body = minute.body_bytes / real(minute.read.count()).max(1.0);
    let kib = |bytes: f64| format!("{:.0} KiB", (bytes / 1024.0).max(1.0));
    let message = format!(
        "Requests take {} to arrive (p{:.0}), {} on average: the clients' network, not the pods, is slow.",
        millis(read_s),
        q * 1e2,
        kib(body)
    );
    let action = format!(
        "Resize pictures to the model's input before sending them, or compress them more: to {} at most.",
        kib(body * share)
    );
    let gain =
        format!("{:.0} % of the bytes: {} to arrive instead of {}.", share * 1e2, millis(limit_s), millis(read_s));
    let evidence = vec![("time to read a request, seconds", read_s, limit_s)];
    let mut found = Finding::new(BottleneckKind::NetworkUpload, above(read_s, limit_s), evidence);
    found.advice.push(advice(AdviceId::ResizeAtClient, Severity::Warning, (message, action, gain)));
    Some(found)
}

/// `MemoryPressure`: a pod uses more than 85 % of its memory, or was killed for it.
pub(super) fn memory_pressure(case: Case) -> Option<Finding> {
    let limit = memory_max(case.policy)? / MEMORY_SHARE;
    let killed = |pod: &crate::observation::Pod| pod.oom_killed.is_some_and(|at| case.now.since(at) < KILL_SHOWN_S);
    let killed: Vec<u64> = case.observation.pods.iter().filter(|pod| killed(pod)).map(|pod| pod.id).collect();
    let used = case.minute.rss;
    if used <= MEMORY_USED_MAX * limit && killed.is_empty() {
        return None;
    }
    let wanted = (used / MEMORY_ROOMY / MIB / 128.0).ceil().max((limit / MIB / 128.0).floor() + 1.0) * 128.0;
    let size = |value: f64| bytes(whole_bytes(value));
    let message = if killed.is_empty() {
        format!("A pod uses {} of {}.", size(used), size(limit))
    } else {
        format!("A pod was killed for memory; {} are allowed.", size(limit))
    };
    let mut evidence = vec![("working set, MiB", used / MIB, MEMORY_USED_MAX * limit / MIB)];
    if !killed.is_empty() {
        evidence.insert(0, ("pods killed for memory within an hour", real(killed.len() as u64), 0.0));
    }
    let mut found = Finding::new(BottleneckKind::MemoryPressure, above(used, MEMORY_USED_MAX * limit), evidence);
    found.at_once = !killed.is_empty();
    found.pods = killed;
    let below = case.policy.targets.memory.is_some_and(|target| real(target.get()) <= limit);
    let field = if below && case.policy.memory_limit.get() > case.policy.targets.memory.map_or(0, Bytes::get) {
        "spec.targets.memoryPerWorker"
    } else {
        "spec.server.resources.memory (and spec.targets.memoryPerWorker)"
    };
    let raise = (
        message.clone(),
        format!("Raise {field} from {} to {wanted:.0} MiB.", size(limit)),
        format!("{:.0} % of the memory in use instead of {:.0} %.", used / wanted / MIB * 1e2, used / limit * 1e2),
    );
    found.advice.push(advice(AdviceId::RaiseMemory, Severity::Critical, raise));
    let over = used - MEMORY_ROOMY * limit;
    smaller(case, &mut found, (&message, over));
    Some(found)
}

/// What frees memory without more of it: a smaller cache, then smaller batches. `over`: bytes to free.
fn smaller(case: Case, found: &mut Finding, (message, over): (&str, f64)) {
    let cache = case.minute.cache;
    if cache >= MIB {
        let left = (cache - over).max(0.0);
        let text = (
            message.to_owned(),
            format!("Lower spec.scaling.cache.max from {} to {}.", bytes(whole_bytes(cache)), bytes(whole_bytes(left))),
            format!("{} less a pod.", bytes(whole_bytes(cache - left))),
        );
        found.advice.push(advice(AdviceId::ShrinkCache, Severity::Warning, text));
    }
    let now = case.knobs().max_batch_size.get();
    let per_image = case.state.memory.model().map_or(0.0, |(_, per_image)| per_image);
    let fewer = (over / per_image.max(1.0)).ceil().min(f64::from(now) - 1.0);
    if per_image >= MIB && now > 1 {
        let text = (
            message.to_owned(),
            format!("Lower spec.scaling.batch.max from {now} to {:.0}.", f64::from(now) - fewer),
            format!("{} less a pod.", bytes(whole_bytes(fewer * per_image))),
        );
        found.advice.push(advice(AdviceId::LowerBatch, Severity::Info, text));
    }
}
