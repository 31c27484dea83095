//! What would make the targets feasible: per limit the least change that alone does.

use crate::capacity::Model;
use crate::choose::{Choice, MEMORY_SHARE};
use crate::explain::{ConstraintKind, Relaxation};
use crate::policy::{LatencyTarget, Policy};
use crate::state::State;

/// The relaxations of an infeasible choice; empty for a feasible one.
///
/// `rate`: images/s that the pods must carry.
pub(crate) fn relaxations(
    policy: &Policy,
    model: &Model,
    state: &State,
    choice: &Choice,
    rate: f64,
) -> Vec<Relaxation> {
    let Some(kind) = choice.infeasible else { return Vec::new() };
    let batch = choice.batch.get();
    let max = policy.replicas.max.max(policy.replicas.min).get();
    let inference = policy.targets.inference.and_then(|target| model.times.upper(batch, target.at()));
    let api = policy.targets.api.and_then(|target| {
        let used_s = target.limit_s() - model.budget_s?;
        // 1 ms above the model's figure, which is the threshold's own resolution.
        Some(used_s + model.limit_for(batch, max, rate).or_else(|| model.times.mean(batch))? + 1e-3)
    });
    let relaxation = |kind, value: f64, sentence| Some(Relaxation { kind, value, sentence });
    let pods = match kind {
        ConstraintKind::Throughput => {
            policy.targets.throughput.and_then(|target| model.pods_for(batch, target.rate.get()))
        }
        _ => choice.needed,
    };
    let found = match kind {
        ConstraintKind::InferenceLatency => {
            [inference.and_then(|s| relaxation(kind, s, format!("inference ≥ {:.0} ms", (s * 1e3).ceil()))), None]
        }
        ConstraintKind::Memory => [
            state.memory.bytes(batch, choice.cache).and_then(|bytes| {
                let needed = bytes / MEMORY_SHARE;
                relaxation(kind, needed, format!("memory ≥ {:.0} MiB", (needed / 1_048_576.0).ceil()))
            }),
            None,
        ],
        ConstraintKind::ApiLatency => {
            [api.and_then(|s| relaxation(kind, s, format!("api ≥ {:.0} ms", (s * 1e3).ceil()))), None]
        }
        _ => [
            pods.and_then(|n| relaxation(ConstraintKind::ReplicasMax, f64::from(n), format!("replicas.max ≥ {n}"))),
            api.filter(|s| *s > policy.targets.api.map_or(0.0, LatencyTarget::limit_s)).and_then(|s| {
                let carried = model.pod_regardless_of_latency(batch)?.carried * f64::from(max) >= rate;
                let fits = carried && model.limit_for(batch, max, rate).is_some();
                fits.then(|| relaxation(ConstraintKind::ApiLatency, s, format!("api ≥ {:.0} ms", (s * 1e3).ceil())))?
            }),
        ],
    };
    found.into_iter().flatten().collect()
}
