//! Before a scale-down: which pods should leave, told to the `ReplicaSet`'s controller by an annotation.
//!
//! That controller takes pods that are not ready first, by itself; among ready ones it takes the lowest deletion cost. Marked
//! are only those that are about to leave: a mark on every pod would have to be written again with every change of its cache.

use std::cmp::Reverse;

use futures::{StreamExt, stream};
use serde_json::json;

use super::nudge;
use crate::call::Access;
use crate::fleet::{DELETION_COST_ANNOTATION, PodPhase, PodView};
use crate::limits;
use crate::sampler::Snapshot;

/// The pods whose mark has to change before only `kept` are left, each with its cost (none: no mark).
///
/// The coldest cache leaves first, `warmth` being the bytes in it; of equally cold pods the youngest.
pub fn due(pods: &[PodView], kept: usize, warmth: impl Fn(&PodView) -> u64) -> Vec<(PodView, Option<String>)> {
    let living = pods.iter().filter(|pod| pod.phase != PodPhase::Draining).count();
    let mut ready: Vec<&PodView> = pods.iter().filter(|pod| pod.phase == PodPhase::Ready).collect();
    ready.sort_by_key(|pod| (warmth(pod), Reverse(pod.ready_since), &pod.name));
    // Those that are not ready go first.
    let leaving = living.saturating_sub(kept).saturating_sub(living - ready.len());
    let marks = ready.into_iter().enumerate().map(|(place, pod)| {
        // Below 0, the cost of a pod without a mark: -3, -2, -1.
        let cost = leaving.checked_sub(place).filter(|left| *left > 0).map(|left| format!("-{left}"));
        (pod.clone(), cost)
    });
    marks.filter(|(pod, cost)| pod.deletion_cost != *cost).collect()
}

/// Marks the pods of which only `kept` are to be left. A lost mark costs a warm cache, no more, so it is only logged.
pub async fn mark(access: Access<'_>, pods: &[PodView], kept: usize, snapshot: Option<&Snapshot>) {
    let warmth = |pod: &PodView| snapshot.and_then(|snapshot| snapshot.cache_bytes(&pod.uid)).unwrap_or(0);
    stream::iter(due(pods, kept, warmth))
        .map(|(pod, cost)| async move {
            let annotation = json!({ DELETION_COST_ANNOTATION: cost });
            if let Err(error) = nudge::annotate(access, &pod, annotation).await {
                tracing::warn!(pod = pod.name, error = error.detail(), "A pod could not be marked to leave.");
            }
        })
        .buffer_unordered(limits::NUDGES_IN_FLIGHT)
        .collect::<()>()
        .await;
}

#[cfg(test)]
mod tests {
    use super::super::nudge::tests::pod;
    use super::*;

    fn ready(name: &str, since_s: i64, cost: Option<&str>) -> PodView {
        PodView {
            ready_since: Some(jiff::Timestamp::from_second(since_s).unwrap()),
            deletion_cost: cost.map(ToOwned::to_owned),
            ..pod(name, None, PodPhase::Ready)
        }
    }

    fn marks(pods: &[PodView], kept: usize) -> Vec<(String, String)> {
        let warmth = |pod: &PodView| if pod.name == "warm" { 1000 } else { 0 };
        let due = due(pods, kept, warmth).into_iter();
        due.map(|(pod, cost)| (pod.name, cost.unwrap_or_else(|| "none".to_owned()))).collect()
    }

    fn told(names: &[(&str, &str)]) -> Vec<(String, String)> {
        names.iter().map(|(name, cost)| ((*name).to_owned(), (*cost).to_owned())).collect()
    }

    #[test]
    fn coldest_then_youngest_leave_first_and_nobody_else_is_marked() {
        let pods = [ready("old", 10, None), ready("warm", 30, None), ready("young", 20, None)];
        assert_eq!(marks(&pods, 1), told(&[("young", "-2"), ("old", "-1")]));
        assert_eq!(marks(&pods, 3), []);
    }

    #[test]
    fn pods_that_do_not_serve_leave_before_any_marked_one() {
        let pods = [ready("old", 10, None), ready("young", 20, None), pod("starting", None, PodPhase::Pending)];
        assert_eq!(marks(&pods, 2), []);
        assert_eq!(marks(&pods, 1), told(&[("young", "-1")]));
        let dying = [ready("old", 10, None), ready("young", 20, None), pod("dying", None, PodPhase::Draining)];
        assert_eq!(marks(&dying, 2), [], "it has left already");
    }

    #[test]
    fn mark_of_an_earlier_scale_down_is_corrected_and_a_right_one_not_written_again() {
        let pods = [ready("old", 10, Some("-1")), ready("young", 20, Some("-1"))];
        assert_eq!(marks(&pods, 1), told(&[("old", "none")]));
    }
}
