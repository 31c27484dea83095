//! Which services replace their pods now: an upgrade of the operator that changes every pod's template rolls in waves.
//!
//! What a person changes in a service rolls at once, and counts. Only what changes with the operator (its version, the default
//! image) waits for a place. A wave that does not finish keeps its places, so a bad version stops where it began. Services
//! that serve nothing, and Deployments that a person has paused, hold nobody up.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use serde::Serialize;

use crate::build::TEMPLATE_ANNOTATION;
use crate::fleet::{SERVICE_LABEL, ServiceId};

/// How many services may replace their pods at the same time: a number, or a share of all services and at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Most {
    /// So many.
    Services(NonZeroUsize),
    /// So many of a hundred, rounded down.
    Percent(u8),
}

impl Most {
    /// The number where there are `services`.
    pub fn of(self, services: usize) -> usize {
        match self {
            Self::Services(most) => most.get(),
            Self::Percent(share) => (services.saturating_mul(share.into()) / 100).max(1),
        }
    }
}

impl FromStr for Most {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "is neither a number of services, such as 5, nor a share of them, such as 10%";
        match text.strip_suffix('%') {
            Some(share) => share.parse().ok().filter(|share| (1..=100).contains(share)).map(Self::Percent).ok_or(wrong),
            None => text.parse().map(Self::Services).map_err(|_number| wrong),
        }
    }
}

/// Where the replacement of a Deployment's pods stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// All pods are of the present template, and ready: the Deployment takes no old pod away before.
    Complete,
    /// Pods of an older one are there, or its controller has not looked yet.
    Rolling,
    /// For longer than the Deployment's progress deadline.
    Stuck,
}

impl Standing {
    /// Of `deployment`.
    pub fn of(deployment: &Deployment) -> Self {
        // A paused one replaces no pods, for as long as a person wants.
        let paused = deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false);
        if paused || !(rolling(deployment) || unseen(deployment)) {
            return Self::Complete;
        }
        let mut conditions = deployment.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let stuck = conditions.any(|condition| condition.type_ == "Progressing" && condition.status == "False");
        if stuck { Self::Stuck } else { Self::Rolling }
    }
}

/// Pods of an old template are still there. Missing new pods alone are an ordinary scale-up.
pub fn rolling(deployment: &Deployment) -> bool {
    let status = deployment.status.as_ref();
    let pods = status.and_then(|status| status.replicas).unwrap_or(0);
    pods > status.and_then(|status| status.updated_replicas).unwrap_or(0)
}

/// Its controller has looked at it before, but not since it was last changed.
pub fn unseen(deployment: &Deployment) -> bool {
    let looked = deployment.status.as_ref().and_then(|status| status.observed_generation);
    looked.is_some_and(|looked| Some(looked) < deployment.metadata.generation)
}

/// Whether no pod serves, though some should: a new template can make nothing worse, and says nothing about the others.
pub fn serves_nothing(live: &Deployment) -> bool {
    let wanted = live.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let available = live.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0);
    wanted > 0 && available == 0
}

/// Whether `live` has another pod template than `desired`, by the hash that both carry.
pub fn differs(live: &Deployment, desired: &Deployment) -> bool {
    live.annotations().get(TEMPLATE_ANNOTATION) != desired.annotations().get(TEMPLATE_ANNOTATION)
}

/// `desired` with the pod template that `live` has: everything else does not wait for a place.
pub fn held(desired: Deployment, live: &Deployment) -> Deployment {
    let mut held = desired;
    if let (Some(held), Some(live)) = (held.spec.as_mut(), live.spec.as_ref()) {
        held.template = live.template.clone();
    }
    let hash = live.annotations().get(TEMPLATE_ANNOTATION).cloned();
    let annotations = held.annotations_mut();
    match hash {
        Some(hash) => annotations.insert(TEMPLATE_ANNOTATION.to_owned(), hash),
        None => annotations.remove(TEMPLATE_ANNOTATION),
    };
    held
}

/// The places, and who has one.
#[derive(Debug, Default)]
pub struct Rollouts {
    /// True: taken by a wave. False: it rolls for another reason.
    places: Mutex<HashMap<ServiceId, bool>>,
}

impl Rollouts {
    /// Begins anew: what rolls among `deployments` has a place.
    pub fn begin(&self, deployments: &[Arc<Deployment>]) {
        let rolling = deployments.iter().filter(|deployment| Standing::of(deployment) == Standing::Rolling);
        let places = rolling.filter_map(|deployment| {
            let name = deployment.labels().get(SERVICE_LABEL)?.clone();
            Some((ServiceId { namespace: deployment.namespace()?, name }, false))
        });
        *self.lock() = places.collect();
    }

    /// Whether `service` may replace its pods now: it has a place, or takes one of `most`.
    pub fn admit(&self, service: &ServiceId, most: usize) -> bool {
        let mut places = self.lock();
        if !places.contains_key(service) && places.len() >= most {
            return false;
        }
        places.insert(service.clone(), true);
        true
    }

    /// `service` could not be applied, and its Deployment, if any, stands so: whatever place it had is free unless pods are
    /// being replaced.
    pub fn failed(&self, service: &ServiceId, live: Option<&Deployment>) {
        if live.map_or(Standing::Complete, Standing::of) == Standing::Complete {
            self.forget(service);
        }
    }

    /// `service`, whose template is the desired one, stands so.
    pub fn stands(&self, service: &ServiceId, standing: Standing) {
        let mut places = self.lock();
        let wave = places.get(service).copied();
        match (standing, wave) {
            // What a person broke must not stop everybody else; a broken wave must.
            (Standing::Complete, _) | (Standing::Stuck, None | Some(false)) => drop(places.remove(service)),
            (Standing::Rolling, None) => drop(places.insert(service.clone(), false)),
            (Standing::Rolling, Some(_)) | (Standing::Stuck, Some(true)) => {}
        }
    }

    /// Forgets a service that is gone.
    pub fn forget(&self, service: &ServiceId) {
        self.lock().remove(service);
    }

    /// A panic elsewhere cannot leave a half-written entry here.
    fn lock(&self) -> MutexGuard<'_, HashMap<ServiceId, bool>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> ServiceId {
        ServiceId { namespace: "kitchen".to_owned(), name: name.to_owned() }
    }

    fn deployment(text: &str) -> Deployment {
        serde_yaml_ng::from_str(text).unwrap()
    }

    #[test]
    fn share_is_of_all_services_and_at_least_one() {
        let most = |text: &str| text.parse::<Most>().map(|most| most.of(1234));
        assert_eq!((most("10%"), most("100%"), most("5")), (Ok(123), Ok(1234), Ok(5)));
        assert_eq!("10%".parse::<Most>().unwrap().of(3), 1);
        assert_eq!("10%".parse::<Most>().unwrap().of(0), 1);
        for wrong in ["0", "0%", "101%", "-1", "", "%", "some"] {
            assert!(most(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn next_one_rolls_when_one_is_complete_and_a_broken_wave_stops() {
        let rollouts = Rollouts::default();
        let [fork, knife, spoon] = ["fork", "knife", "spoon"].map(service);
        assert!(rollouts.admit(&fork, 1));
        assert!(rollouts.admit(&fork, 1), "it has its place");
        assert!(!rollouts.admit(&knife, 1));
        rollouts.stands(&fork, Standing::Rolling);
        rollouts.stands(&fork, Standing::Stuck);
        assert!(!rollouts.admit(&knife, 1), "a broken wave stops");
        rollouts.stands(&fork, Standing::Complete);
        assert!(rollouts.admit(&knife, 1));
        rollouts.forget(&knife);
        // A person's own rollout counts, but broken it stops nobody.
        rollouts.stands(&spoon, Standing::Rolling);
        assert!(!rollouts.admit(&fork, 1));
        rollouts.stands(&spoon, Standing::Stuck);
        assert!(rollouts.admit(&fork, 1));
    }

    #[test]
    fn successor_counts_what_rolls_already() {
        let rollouts = Rollouts::default();
        let rolls = "{metadata: {namespace: kitchen, name: fork, generation: 2, labels: {yolo-operator.io/service: fork}}, \
                     status: {observedGeneration: 2, replicas: 3, updatedReplicas: 1}}";
        let stands = rolls.replace("fork", "knife").replace("updatedReplicas: 1", "updatedReplicas: 3");
        rollouts.begin(&[Arc::new(deployment(rolls)), Arc::new(deployment(&stands))]);
        assert!(!rollouts.admit(&service("knife"), 1));
        assert!(rollouts.admit(&service("knife"), 2));
    }

    #[test]
    fn standing_is_told_by_the_deployments_controller() {
        let standing = |status: &str| {
            Standing::of(&deployment(&format!(
                "{{metadata: {{generation: 2}}, status: {{observedGeneration: {status}}}}}"
            )))
        };
        assert_eq!(standing("2, replicas: 3, updatedReplicas: 3"), Standing::Complete);
        assert_eq!(standing("1, replicas: 3, updatedReplicas: 3"), Standing::Rolling, "not looked at yet");
        assert_eq!(standing("2, replicas: 4, updatedReplicas: 1"), Standing::Rolling);
        let late = "2, replicas: 4, updatedReplicas: 1, conditions: [{type: Progressing, status: 'False'}]";
        assert_eq!(standing(late), Standing::Stuck);
        let paused = deployment(
            "{metadata: {generation: 2}, spec: {paused: true, selector: {}, template: {}}, \
             status: {observedGeneration: 2, replicas: 4, updatedReplicas: 1}}",
        );
        assert_eq!(Standing::of(&paused), Standing::Complete, "it may stay so for ever");
    }

    #[test]
    fn who_serves_nothing_waits_for_nobody_and_a_failed_service_gives_its_place_back() {
        let live = |replicas: i32, available: &str| {
            deployment(&format!(
                "{{spec: {{replicas: {replicas}, selector: {{}}, template: {{}}}}, status: {{{available}}}}}"
            ))
        };
        assert!(serves_nothing(&live(2, "replicas: 2")));
        assert!(!serves_nothing(&live(2, "replicas: 2, availableReplicas: 1")));
        assert!(!serves_nothing(&live(0, "")), "nothing is asked of it");
        let rollouts = Rollouts::default();
        let [fork, knife] = ["fork", "knife"].map(service);
        assert!(rollouts.admit(&fork, 1));
        rollouts.failed(&fork, Some(&live(2, "replicas: 2, updatedReplicas: 1")));
        assert!(!rollouts.admit(&knife, 1), "its pods are being replaced");
        rollouts.failed(&fork, Some(&live(2, "replicas: 2, updatedReplicas: 2")));
        assert!(rollouts.admit(&knife, 1));
        rollouts.failed(&knife, None);
        assert!(rollouts.admit(&fork, 1));
    }

    #[test]
    fn held_deployment_keeps_its_pods_and_takes_the_rest() {
        let object = |hash: &str, replicas: i32, image: &str| {
            deployment(&format!(
                "{{metadata: {{annotations: {{yolo-operator.io/template-hash: {hash}}}}}, spec: {{replicas: {replicas}, \
                 selector: {{}}, template: {{spec: {{containers: [{{name: server, image: '{image}'}}]}}}}}}}}"
            ))
        };
        let (live, desired) = (object("old", 1, "s:1"), object("new", 3, "s:2"));
        assert!(differs(&live, &desired));
        let held = held(desired, &live);
        assert_eq!(held, object("old", 3, "s:1"));
        assert!(!differs(&live, &held));
    }
}
