//! What is there now: live objects and samples as the planner's `Observation`.
//!
//! Reads: memory only (stores, snapshots, what `apply` remembers). Writes: nothing. Does not: fail; what is missing is
//! `NoData` or the initial knobs.

mod learned;
mod replicas;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use yolo_api::v1alpha1::YoloInferenceServiceStatus;
use yolo_planner::observation::{NoData, Phase, Pod, Signal};
use yolo_planner::units::{BatchSize, Bytes, Replicas, Timestamp};
use yolo_planner::{Knobs, Observation, Policy, State};

pub use learned::seed;
pub use replicas::{Foreign, Ordered, Ownership};

use crate::build::{self, KnobsDocument};
use crate::context::Context;
use crate::fleet::{PodPhase, PodView};
use crate::live;
use crate::rollouts;
use crate::sampler::{Snapshot, pod_id};
use crate::schedules;
use crate::validate::Validated;

/// One look at a service.
#[derive(Debug, Clone)]
pub struct Seen {
    /// What the planner decides on.
    pub observation: Observation,
    /// The policy, with the measured scrape interval.
    pub policy: Policy,
    /// The pods.
    pub pods: Vec<PodView>,
    /// The latest samples; absent until a sampling round has seen a pod.
    pub snapshot: Option<Arc<Snapshot>>,
    /// The live Deployment.
    pub deployment: Option<Arc<Deployment>>,
    /// The live knobs.
    pub config_map: Option<Arc<ConfigMap>>,
    /// The newest knobs document known: the live one, or our own later write.
    pub knobs: Option<KnobsDocument>,
    /// Who sets the number of pods.
    pub ownership: Ownership,
    /// A person has changed the spec since the last status.
    pub asked_anew: bool,
    /// When this was.
    pub now: Timestamp,
}

impl Seen {
    /// Whether the Deployment is applied with a number of pods: with ours, and with the first one in any case, because the API
    /// server's own default is one pod. Whoever else sets it takes over from there.
    pub fn sets_replicas(&self) -> bool {
        self.ownership.ours() || self.deployment.is_none()
    }
}

/// Looks at the service of `spec`. `status` is a hint for when the live objects are gone; `state` knows how long a pod
/// takes to serve, which is how long before a peak it must be ordered.
pub fn observe(
    ctx: &Context,
    spec: &Validated,
    (status, state): (Option<&YoloInferenceServiceStatus>, &State),
) -> Seen {
    let now = ctx.clock.now();
    let kept = ctx.applied.of(&spec.id, &spec.uid).unwrap_or_default();
    let deployment = live::get(&ctx.live.deployments, &spec.id, &spec.id.name);
    let config_map = live::get(&ctx.live.config_maps, &spec.id, &build::config_map_name(&spec.id.name));
    let pods = ctx.live.fleet.of(&spec.id);
    let snapshot = ctx.snapshots.of(&spec.id);
    let knobs = newest(config_map.as_deref().and_then(build::read), kept.knobs);
    let ownership =
        replicas::judge(spec, deployment.as_deref(), kept.ordered.as_ref(), ctx.live.autoscalers.of(&spec.id), now);

    let mut current = knobs_now(&spec.policy, knobs.as_ref(), status);
    if let Some(replicas) = ownership.replicas() {
        current.replicas = replicas;
    }
    let generation = knobs.map_or(0, |knobs| knobs.generation);
    let observation = Observation {
        applied_pods: applied_pods(&pods, snapshot.as_deref(), generation),
        other_manager: ownership.contested(),
        rolling: deployment.as_deref().is_some_and(rollouts::rolling),
        pods: pods.iter().map(|view| pod(view, snapshot.as_deref(), now)).collect(),
        ..Observation::new(current)
    };
    let mut policy = spec.policy.clone();
    if let Some(snapshot) = &snapshot {
        policy.scrape = snapshot.scrape;
    }
    let ahead = Duration::try_from_secs_f64(state.horizon(&policy, now).get()).unwrap_or_default();
    policy.schedule_floor = schedules::floor(&spec.peaks, now, ahead);
    let asked_anew = asked_anew(spec.generation, kept.generation, status);
    Seen { observation, policy, pods, snapshot, deployment, config_map, knobs, ownership, asked_anew, now }
}

/// Whether the spec of this `generation` is another one than was last `applied`. A successor knows that from the status
/// alone, which is a hint: it also tells of specs that failed, and a wrong one lets a rollout go sooner or later, no
/// more.
fn asked_anew(generation: i64, applied: Option<i64>, status: Option<&YoloInferenceServiceStatus>) -> bool {
    applied.or_else(|| status.and_then(|status| status.observed_generation)) != Some(generation)
}

/// The live document, unless our own write is newer and the watch has not shown it yet.
fn newest(live: Option<KnobsDocument>, written: Option<KnobsDocument>) -> Option<KnobsDocument> {
    match (live, written) {
        (Some(live), Some(written)) if written.generation > live.generation => Some(written),
        (Some(live), _) => Some(live),
        (None, written) => written,
    }
}

/// The live knobs; else those that the status last ordered, upwards only: a lost object must not take capacity away.
fn knobs_now(policy: &Policy, live: Option<&KnobsDocument>, status: Option<&YoloInferenceServiceStatus>) -> Knobs {
    let mut knobs = Knobs::initial(policy);
    let ordered = status.and_then(|status| status.knobs.as_ref()).and_then(|knobs| knobs.desired.as_ref());
    if let Some(ordered) = ordered {
        knobs.replicas = knobs.replicas.max(Replicas::new(ordered.replicas.try_into().unwrap_or(0)));
    }
    match (live, ordered) {
        (Some(live), _) => {
            knobs.max_batch_size = BatchSize::try_from(live.max_batch_size).unwrap_or(knobs.max_batch_size);
            knobs.cache_bytes = Bytes::new(live.cache_bytes);
            knobs.max_queue_delay_micros = live.max_queue_delay_micros;
            knobs.cache_ttl_seconds = live.cache_ttl_seconds;
            knobs.deadline_millis = live.deadline_millis;
        }
        (None, Some(ordered)) => {
            let batch = u32::try_from(ordered.batch).ok().and_then(|batch| BatchSize::try_from(batch).ok());
            knobs.max_batch_size = knobs.max_batch_size.max(batch.unwrap_or(BatchSize::ONE));
            knobs.cache_bytes = knobs.cache_bytes.max(Bytes::new(ordered.cache_bytes.try_into().unwrap_or(0)));
        }
        (None, None) => {}
    }
    knobs
}

fn applied_pods(pods: &[PodView], snapshot: Option<&Snapshot>, generation: u64) -> u32 {
    let ready = pods.iter().filter(|pod| pod.phase == PodPhase::Ready);
    let applied = ready.filter(|pod| snapshot.and_then(|s| s.knobs_generation(&pod.uid)) == Some(generation));
    applied.count().try_into().unwrap_or(u32::MAX)
}

/// One pod with its sample, for the planner.
pub fn pod(view: &PodView, snapshot: Option<&Snapshot>, now: Timestamp) -> Pod {
    Pod {
        id: pod_id(&view.uid),
        class: view.class,
        phase: match view.phase {
            PodPhase::Pending => Phase::Pending,
            PodPhase::Unschedulable => Phase::Unschedulable,
            PodPhase::Ready => Phase::Ready,
            PodPhase::Draining => Phase::Draining,
        },
        created: timestamp(view.created),
        ready: view.ready_since.map(timestamp),
        oom_killed: view.oom_killed.map(timestamp),
        sample: snapshot.map_or(Signal::NoData(NoData::NeverSeen), |snapshot| snapshot.signal(&view.uid, now)),
    }
}

/// Times before 1970 do not occur; they become 1970.
fn timestamp(time: jiff::Timestamp) -> Timestamp {
    Timestamp::from(Duration::from_millis(u64::try_from(time.as_millisecond()).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_is_asked_anew_until_it_was_applied_whole_whatever_the_status_says() {
        let told = |generation| YoloInferenceServiceStatus { observed_generation: generation, ..Default::default() };
        assert!(asked_anew(4, None, None), "a new service");
        assert!(asked_anew(4, None, Some(&told(Some(3)))), "changed while nobody led");
        assert!(!asked_anew(4, None, Some(&told(Some(4)))), "a new leader of an old service");
        assert!(asked_anew(4, Some(3), Some(&told(Some(4)))), "told of, but failed before it was applied");
        assert!(!asked_anew(4, Some(4), Some(&told(Some(3)))), "applied, and not told of yet");
    }
}
