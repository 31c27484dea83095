//! Who sets the number of pods: us, or somebody else (design.md section 4, last lines).
//!
//! The first foreign write is reverted, with an Event. A second one within ten minutes means that another autoscaler is
//! at work: hands off, until the object's spec changes. One that says so itself, a `HorizontalPodAutoscaler` on the
//! Deployment, needs no such proof: hands off for as long as it is there.

use k8s_openapi::api::apps::v1::Deployment;
use yolo_planner::policy::Mode;
use yolo_planner::units::{Replicas, Timestamp};

use crate::apply::{FIELD_MANAGER, RELEASED_MANAGER};
use crate::limits;
use crate::validate::Validated;

/// The number of pods as we last wrote it.
#[derive(Debug, Clone, PartialEq)]
pub struct Ordered {
    /// Pods.
    pub replicas: Replicas,
    /// `metadata.generation` of the Deployment after the write.
    pub generation: i64,
    /// The last foreign write that was reverted, or that ended in hands off.
    pub foreign: Option<Foreign>,
}

/// A write by somebody else.
#[derive(Debug, Clone, PartialEq)]
pub struct Foreign {
    /// Its field manager.
    pub manager: String,
    /// When it was seen.
    pub seen: Timestamp,
    /// Of our object, not of the Deployment; set once the hands are off.
    pub hands_off_generation: Option<i64>,
}

/// Who sets the number of pods.
#[derive(Debug, Clone, PartialEq)]
pub enum Ownership {
    /// We do.
    Ours {
        /// As the Deployment has it, or as we last wrote it; absent before the first.
        replicas: Option<Replicas>,
        /// A write by somebody else that the next apply reverts, or has reverted before.
        foreign: Option<Foreign>,
        /// `foreign` is new.
        reverting: bool,
    },
    /// Not us, by the object's own mode, or while it is paused.
    Released {
        /// As the Deployment has it.
        replicas: Option<Replicas>,
    },
    /// A `HorizontalPodAutoscaler`.
    Autoscaled {
        /// As the Deployment has it.
        replicas: Option<Replicas>,
        /// Its name.
        autoscaler: String,
    },
    /// Somebody else, again and again.
    Foreign {
        /// As the Deployment has it.
        replicas: Option<Replicas>,
        /// Who.
        by: Foreign,
    },
}

impl Ownership {
    /// The present number of pods.
    pub fn replicas(&self) -> Option<Replicas> {
        match self {
            Self::Ours { replicas, .. }
            | Self::Released { replicas }
            | Self::Autoscaled { replicas, .. }
            | Self::Foreign { replicas, .. } => *replicas,
        }
    }

    /// Whether the next apply writes the number of pods.
    pub fn ours(&self) -> bool {
        matches!(self, Self::Ours { .. })
    }

    /// Whether somebody else sets the number of pods against the object's own mode.
    pub fn contested(&self) -> bool {
        matches!(self, Self::Autoscaled { .. } | Self::Foreign { .. })
    }
}

/// Decides who owns the number of pods of `live`, given our last write and the autoscaler that scales it, if one does.
pub fn judge(
    spec: &Validated,
    live: Option<&Deployment>,
    ordered: Option<&Ordered>,
    autoscaler: Option<String>,
    now: Timestamp,
) -> Ownership {
    let replicas = live.and_then(count);
    if spec.policy.replicas.mode != Mode::Auto || spec.policy.paused {
        return Ownership::Released { replicas };
    }
    if let Some(autoscaler) = autoscaler {
        return Ownership::Autoscaled { replicas, autoscaler };
    }
    let Some(ordered) = ordered else { return Ownership::Ours { replicas, foreign: None, reverting: false } };
    let before = ordered.foreign.clone();
    if let Some(by) = before.clone().filter(|by| by.hands_off_generation == Some(spec.generation)) {
        return Ownership::Foreign { replicas, by };
    }
    let ours = Ownership::Ours { replicas: Some(ordered.replicas), foreign: before.clone(), reverting: false };
    // An older generation is our own write that the watch has not shown yet; the same number is nobody's concern.
    let newer = live.and_then(|live| live.metadata.generation).is_some_and(|seen| seen > ordered.generation);
    let Some(manager) = live.filter(|_| newer && replicas != Some(ordered.replicas)).and_then(manager) else {
        return ours;
    };
    let window_s = limits::FOREIGN_WRITE_WINDOW.as_secs_f64();
    if before.is_some_and(|before| now.since(before.seen) < window_s) {
        let by = Foreign { manager, seen: now, hands_off_generation: Some(spec.generation) };
        return Ownership::Foreign { replicas, by };
    }
    let foreign = Foreign { manager, seen: now, hands_off_generation: None };
    Ownership::Ours { replicas: Some(ordered.replicas), foreign: Some(foreign), reverting: true }
}

fn count(deployment: &Deployment) -> Option<Replicas> {
    let replicas = deployment.spec.as_ref()?.replicas?;
    u32::try_from(replicas).ok().map(Replicas::new)
}

/// The other field manager that owns `spec.replicas`, if there is one.
fn manager(deployment: &Deployment) -> Option<String> {
    let entries = deployment.metadata.managed_fields.iter().flatten();
    let foreign = entries.filter(|entry| {
        entry.fields_v1.as_ref().is_some_and(|fields| fields.0.pointer("/f:spec/f:replicas").is_some())
            && !matches!(entry.manager.as_deref(), Some(FIELD_MANAGER | RELEASED_MANAGER))
    });
    foreign.max_by_key(|entry| entry.time.as_ref().map(|time| time.0)).and_then(|entry| entry.manager.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::fixtures::{checked, smallest};

    fn live(replicas: i32, generation: i64, manager: &str) -> Deployment {
        let text = format!(
            "{{metadata: {{generation: {generation}, managedFields: [{{manager: {manager}, fieldsType: FieldsV1, \
             fieldsV1: {{'f:spec': {{'f:replicas': {{}}}}}}}}]}}, spec: {{replicas: {replicas}, selector: {{}}, template: {{}}}}}}"
        );
        serde_yaml_ng::from_str(&text).unwrap()
    }

    fn ordered(foreign: Option<Foreign>) -> Ordered {
        Ordered { replicas: Replicas::new(2), generation: 5, foreign }
    }

    #[test]
    fn first_foreign_write_is_reverted_and_a_second_one_soon_after_ends_it() {
        let (spec, now) = (smallest(), Timestamp::whole(1000));
        let theirs = live(7, 6, "kubectl");
        let first = judge(&spec, Some(&theirs), Some(&ordered(None)), None, now);
        let Ownership::Ours { replicas, foreign: Some(by), reverting: true } = first else { panic!("{first:?}") };
        assert_eq!((replicas, by.manager.as_str()), (Some(Replicas::new(2)), "kubectl"));

        let soon = judge(&spec, Some(&theirs), Some(&ordered(Some(by.clone()))), None, Timestamp::whole(1599));
        assert!(matches!(soon, Ownership::Foreign { replicas: Some(r), .. } if r == Replicas::new(7)), "{soon:?}");
        let later = judge(&spec, Some(&theirs), Some(&ordered(Some(by))), None, Timestamp::whole(1601));
        assert!(matches!(later, Ownership::Ours { reverting: true, .. }), "{later:?}");
    }

    #[test]
    fn hands_stay_off_until_the_spec_changes() {
        let by = Foreign { manager: "hpa".into(), seen: Timestamp::whole(1000), hands_off_generation: Some(3) };
        let quiet = live(2, 5, "hpa");
        let kept = ordered(Some(by));
        assert!(!judge(&smallest(), Some(&quiet), Some(&kept), None, Timestamp::whole(9000)).ours());
        let mut changed = smallest();
        changed.generation = 4;
        assert!(judge(&changed, Some(&quiet), Some(&kept), None, Timestamp::whole(9000)).ours());
    }

    #[test]
    fn our_own_write_that_the_watch_has_not_shown_is_not_foreign() {
        let seen = judge(&smallest(), Some(&live(1, 4, "kubectl")), Some(&ordered(None)), None, Timestamp::whole(1));
        assert_eq!(seen, Ownership::Ours { replicas: Some(Replicas::new(2)), foreign: None, reverting: false });
        let off = checked("{model: {source: {imagePath: /a}}, scaling: {replicas: {mode: Off}}}").unwrap();
        assert!(!judge(&off, Some(&live(1, 4, "kubectl")), None, None, Timestamp::whole(1)).ours());
    }

    #[test]
    fn count_that_is_set_while_paused_is_nobodys_concern() {
        let paused = checked("{model: {source: {imagePath: /a}}, paused: true}").unwrap();
        let seen = judge(&paused, Some(&live(7, 6, "kubectl")), Some(&ordered(None)), None, Timestamp::whole(1));
        assert_eq!(seen, Ownership::Released { replicas: Some(Replicas::new(7)) });
    }
}
