//! The result cache: what a larger one would answer, and whether the present one is worth its hashing.

use crate::choose::HITS_GAIN_MIN;
use crate::explain::{AdviceId, BottleneckKind, Severity};
use crate::policy::Mode;
use crate::reason::{bytes, millis};
use crate::units::{Bytes, real, whole_bytes};

use super::{Case, Finding, above, advice};

/// Lookups in a window from which a hit ratio is one: ±3 points at one in ten.
const LOOKUPS_MIN: f64 = 300.0;

/// Hit ratio of a cache of `size`, on a logarithmic scale between the sizes that the servers simulate.
fn hits(curve: &[(Bytes, f64)], size: f64) -> f64 {
    let mut below = (0.0_f64, 0.0);
    for &(bytes, ratio) in curve {
        let bytes = real(bytes.get());
        if bytes >= size {
            let way = libm::log(size.max(1.0) / below.0.max(1.0)) / libm::log(bytes / below.0.max(1.0)).max(1e-9);
            return below.1 + (ratio - below.1) * way.clamp(0.0, 1.0);
        }
        below = (bytes, ratio);
    }
    below.1
}

/// `CacheTooSmall`: a cache of twice the largest that is allowed would answer 2 % more of the images, and be worth it.
pub(super) fn too_small(case: Case) -> Option<Finding> {
    let curve = case.state.hits.curve();
    let knob = case.policy.cache;
    let now = case.knobs().cache_bytes;
    // What the planner may still enlarge by itself is no bottleneck.
    let allowed = if knob.mode == Mode::Auto { knob.max.max(now) } else { now };
    let (least, _) = *curve.first()?;
    let twice = (2.0 * real(allowed.get())).max(real(least.get()));
    let (had, doubled) = (hits(&curve, real(allowed.get())), hits(&curve, twice));
    if doubled - had <= HITS_GAIN_MIN {
        return None;
    }
    // The size from which doubling gains no more.
    let wanted = curve.iter().copied().filter(|(size, _)| *size > allowed);
    let (wanted, best) = wanted.fold((whole_bytes(twice), doubled), |(size, ratio), (larger, better)| {
        if better - ratio > HITS_GAIN_MIN { (larger, better) } else { (size, ratio) }
    });
    let each = case.pod(case.batch())?.carried;
    let pods = case.level * (best - had) / each.max(1e-9);
    let gib = real(Bytes::mebi(1024).get());
    let price = case.policy.cost.cache_gib.get() * real(wanted.get().saturating_sub(allowed.get())) / gib * case.pods();
    if pods * case.policy.cost.pod.get() <= price {
        return None;
    }
    let message = format!(
        "Pictures repeat: a cache of {} a pod would answer {:.0} % of them, one of {} answers {:.0} %.",
        bytes(wanted),
        best * 1e2,
        bytes(allowed),
        had * 1e2
    );
    let (id, action) = if allowed == Bytes::default() {
        (AdviceId::EnableCache, "Enable the cache:")
    } else {
        (AdviceId::EnlargeCache, "Enlarge the cache:")
    };
    let mode = if knob.mode == Mode::Auto { "" } else { ", with spec.scaling.cache.mode Auto" };
    let action =
        format!("{action} spec.scaling.cache.max from {} to {}{mode}.", bytes(knob.max.max(allowed)), bytes(wanted));
    let gain = format!("{:.1} images/s less for the engines: {pods:.1} pods.", case.level * (best - had));
    let evidence = vec![
        ("hit ratio of a cache twice as large, less the present one's", doubled - had, HITS_GAIN_MIN),
        ("hit ratio", had, best),
        ("sampled references", case.state.hits.references().get(), 0.0),
    ];
    let mut found = Finding::new(BottleneckKind::CacheTooSmall, above(doubled - had, HITS_GAIN_MIN), evidence);
    found.relief = (1.0 - case.hit_ratio) / (1.0 - best).max(0.01);
    found.advice.push(advice(id, Severity::Info, (message, action, gain)));
    Some(found)
}

/// `CacheUseless`: hashing every picture costs more time than the few hits save.
pub(super) fn useless(case: Case) -> Option<Finding> {
    let minute = case.minute;
    if minute.lookups < LOOKUPS_MIN || minute.cache <= 0.0 {
        return None;
    }
    let ratio = minute.hits / minute.lookups;
    let hash_s = minute.hash_s / minute.hashed.max(1.0);
    let saved_s = minute.prepare_each_s() + (minute.engine_s + minute.postprocess_s) / minute.images.max(1.0);
    let limit = hash_s / saved_s.max(1e-9);
    if ratio >= limit {
        return None;
    }
    let message = format!(
        "{:.1} % of the pictures repeat; hashing each takes {}, a hit saves {}.",
        ratio * 1e2,
        millis(hash_s),
        millis(saved_s)
    );
    let action = format!("Disable the cache: spec.scaling.cache.max from {} to 0.", bytes(case.policy.cache.max));
    let gain = format!(
        "{} less of each image, and {} a pod.",
        millis(hash_s - ratio * saved_s),
        bytes(whole_bytes(minute.cache))
    );
    let evidence = vec![("hit ratio", ratio, limit)];
    let mut found = Finding::new(BottleneckKind::CacheUseless, above(limit, ratio.max(1e-3)), evidence);
    found.advice.push(advice(AdviceId::DisableCache, Severity::Info, (message, action, gain)));
    Some(found)
}
