//! The nudge: an annotation on each pod that makes its kubelet look at the mounted knobs at once (design.md section 5).
//!
//! Reads: the fleet and what each pod reports as applied. Writes: one annotation of pods that have another generation.
//! Does not: fail a reconcile. A lost nudge costs time only: the next round repeats it, and the kubelet syncs by itself.

use std::collections::HashMap;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use yolo_planner::units::Timestamp;

use super::objects::FIELD_MANAGER;
use crate::call::{Access, Category, Target, WriteError};
use crate::fleet::{KNOBS_GENERATION_ANNOTATION, PodPhase, PodView};
use crate::limits;

/// A pod as the nudge sees it.
#[derive(Debug, Clone)]
pub struct Nudged {
    /// The pod.
    pub pod: PodView,
    /// The generation that the pod last reported, and when it was read.
    pub reported: Option<(u64, Timestamp)>,
}

/// The last nudge of each pod (by uid): kept from one reconcile to the next.
pub type Nudges = HashMap<String, Nudge>;

/// One nudge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Nudge {
    generation: u64,
    /// 0 is the first nudge, n the n-th re-nudge.
    attempt: u32,
    sent: Timestamp,
}

/// Which pods to nudge now, and how.
///
/// A pod is nudged when its annotation names another generation; again, with `17.1` and so on, when a reading taken more
/// than [`limits::RENUDGE_AFTER`] later still shows another generation. Dying pods are left alone.
pub fn due(pods: &[Nudged], generation: u64, nudges: &Nudges, now: Timestamp) -> Vec<(PodView, Nudge)> {
    let live = pods.iter().filter(|seen| seen.pod.phase != PodPhase::Draining);
    live.filter_map(|seen| {
        let first = Nudge { generation, attempt: 0, sent: now };
        let annotated = seen.pod.knobs_annotation.as_deref().and_then(parse);
        match nudges.get(&seen.pod.uid).filter(|nudge| nudge.generation == generation) {
            // The store may not show our own nudge yet: what was sent counts.
            // A pod that started from the new file needs none.
            None if seen.reported.is_some_and(|(reported, _)| reported == generation) => None,
            None if annotated.is_none_or(|(annotated, _)| annotated != generation) => Some((seen.pod.clone(), first)),
            None => None,
            Some(last) => again(seen, *last, now).map(|nudge| (seen.pod.clone(), nudge)),
        }
    })
    .collect()
}

fn again(seen: &Nudged, last: Nudge, now: Timestamp) -> Option<Nudge> {
    let (reported, read) = seen.reported?;
    let waited = read.since(last.sent) > limits::RENUDGE_AFTER.as_secs_f64();
    let deaf = seen.pod.phase == PodPhase::Ready && reported != last.generation && waited;
    (deaf && last.attempt < limits::RENUDGES_MAX).then_some(Nudge { attempt: last.attempt + 1, sent: now, ..last })
}

/// `17.2` as generation and attempt.
fn parse(annotation: &str) -> Option<(u64, u32)> {
    let (generation, attempt) = annotation.split_once('.').unwrap_or((annotation, "0"));
    Some((generation.parse().ok()?, attempt.parse().ok()?))
}

fn value(nudge: Nudge) -> String {
    match nudge.attempt {
        0 => nudge.generation.to_string(),
        attempt => format!("{}.{attempt}", nudge.generation),
    }
}

/// Nudges the pods, a bounded number at a time. Returns the nudges that arrived.
pub async fn nudge(access: Access<'_>, due: Vec<(PodView, Nudge)>) -> Vec<(String, Nudge)> {
    stream::iter(due)
        .map(|(pod, nudge)| async move {
            match one(access, &pod, nudge).await {
                Ok(()) => Some((pod.uid, nudge)),
                Err(error) => {
                    // 404 and 409: the pod is gone, or is another one of the same name.
                    if !matches!(error.category(), Category::Missing | Category::Conflict) {
                        tracing::warn!(
                            pod = pod.name,
                            error = error.detail(),
                            "A nudge failed; the next round repeats it."
                        );
                    }
                    None
                }
            }
        })
        .buffer_unordered(limits::NUDGES_IN_FLIGHT)
        .filter_map(std::future::ready)
        .collect()
        .await
}

async fn one(access: Access<'_>, pod: &PodView, nudge: Nudge) -> Result<(), WriteError> {
    annotate(access, pod, json!({KNOBS_GENERATION_ANNOTATION: value(nudge)})).await
}

/// Sets annotations of a pod; one that is `null` is removed.
///
/// # Errors
/// [`WriteError`] of the one write.
pub async fn annotate(access: Access<'_>, pod: &PodView, annotations: Value) -> Result<(), WriteError> {
    let api: Api<Pod> = Api::namespaced(access.client.clone(), &pod.namespace);
    // The uid is a precondition: the API server answers 409 for another pod of this name.
    let patch = json!({"metadata": {"uid": pod.uid, "annotations": annotations}});
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let target = Target::new("Pod", &pod.namespace, &pod.name);
    access.write(&target, api.patch_metadata(&pod.name, &params, &Patch::Merge(&patch))).await.map(|_pod| ())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::fleet::ServiceId;

    pub(in super::super) fn pod(uid: &str, annotation: Option<&str>, phase: PodPhase) -> PodView {
        PodView {
            uid: uid.to_owned(),
            namespace: "kitchen".to_owned(),
            name: uid.to_owned(),
            service: ServiceId { namespace: "kitchen".to_owned(), name: "fork".to_owned() },
            ip: None,
            phase,
            created: jiff::Timestamp::UNIX_EPOCH,
            ready_since: None,
            class: 0,
            node: None,
            knobs_annotation: annotation.map(ToOwned::to_owned),
            deletion_cost: None,
            oom_killed: None,
            termination: None,
            restarts: 0,
            waiting: None,
        }
    }

    fn at(seconds: u32) -> Timestamp {
        Timestamp::whole(seconds)
    }

    fn values(due: &[(PodView, Nudge)]) -> Vec<(&str, String)> {
        due.iter().map(|(pod, nudge)| (pod.uid.as_str(), value(*nudge))).collect()
    }

    #[test]
    fn only_pods_with_another_generation_are_nudged() {
        let pods = [
            ("new", None, PodPhase::Ready),
            ("old", Some("16.2"), PodPhase::Ready),
            ("done", Some("17"), PodPhase::Ready),
            ("dying", Some("16"), PodPhase::Draining),
        ];
        let pods = pods.map(|(uid, annotation, phase)| Nudged { pod: pod(uid, annotation, phase), reported: None });
        let due = due(&pods, 17, &Nudges::new(), at(100));
        assert_eq!(values(&due), [("new", "17".to_owned()), ("old", "17".to_owned())]);
    }

    #[test]
    fn deaf_pod_is_nudged_again_after_a_reading_that_is_late_enough_and_at_most_three_times() {
        let mut nudges = Nudges::new();
        let mut seen = Nudged { pod: pod("deaf", Some("17"), PodPhase::Ready), reported: Some((16, at(101))) };
        nudges.insert("deaf".to_owned(), Nudge { generation: 17, attempt: 0, sent: at(100) });
        assert!(due(&[seen.clone()], 17, &nudges, at(101)).is_empty(), "1 s is too soon");
        for (attempt, now_s) in [(1, 105), (2, 110), (3, 115)] {
            seen.reported = Some((16, at(now_s)));
            let again = due(&[seen.clone()], 17, &nudges, at(now_s));
            assert_eq!(values(&again), [("deaf", format!("17.{attempt}"))]);
            nudges.extend(again.into_iter().map(|(pod, nudge)| (pod.uid, nudge)));
        }
        seen.reported = Some((16, at(120)));
        assert!(due(&[seen.clone()], 17, &nudges, at(120)).is_empty(), "the kubelet's own sync must do");
        seen.reported = Some((17, at(120)));
        assert!(due(&[seen], 18, &nudges, at(121)).len() == 1, "a new generation starts afresh");
    }
}
