//! Which services replace their pods now: an upgrade of the operator that changes every pod's template rolls in waves.
//!
//! What a person changes in a service rolls at once, and counts. Only what changes with the operator (its version, the
//! default image) waits for a place, which is free again once all new pods are ready; their targets are not waited for.
//! A wave that does not finish keeps its places, so a bad version stops where it began, whoever leads: the Deployment
//! itself says that a wave brought its template. Services that serve nothing, those whose spec cannot be acted on, and
//! Deployments that a person has paused, hold nobody up.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use serde::Serialize;

use crate::build::TEMPLATE_ANNOTATION;
use crate::fleet::{SERVICE_LABEL, ServiceId};

/// Annotation on the Deployment: the hash of the pod template that a wave brought. Another template than the present
/// one says nothing any more.
const WAVE_ANNOTATION: &str = "yolo-operator.io/wave-template-hash";

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
    /// All pods are of the present template, and ready.
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
        if paused || !(under_way(deployment) || unseen(deployment)) {
            return Self::Complete;
        }
        let mut conditions = deployment.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let stuck = conditions.any(|condition| condition.type_ == "Progressing" && condition.status == "False");
        if stuck { Self::Stuck } else { Self::Rolling }
    }
}

/// Whether pods of an old template are still there, and go on going. Missing new pods alone are an ordinary scale-up;
/// where a rollout got stuck (in place, one pod that finds no room keeps all old ones), only fewer pods may get it
/// going.
pub fn rolling(deployment: &Deployment) -> bool {
    replaces(deployment) && Standing::of(deployment) != Standing::Stuck
}

/// Whether pods of an old template are still there.
fn replaces(deployment: &Deployment) -> bool {
    let status = deployment.status.as_ref();
    let pods = status.and_then(|status| status.replicas).unwrap_or(0);
    pods > status.and_then(|status| status.updated_replicas).unwrap_or(0)
}

/// Whether old pods are still there, or those that took their places are not ready for the first time. Back to an
/// earlier template, the word that says so is an old one.
fn under_way(deployment: &Deployment) -> bool {
    let begun = || !available_once(deployment) || (Template::of(deployment).by_wave && serves_nothing(deployment));
    replaces(deployment) || (in_place(deployment) && begun())
}

/// Whether old pods go before new ones are ready.
fn in_place(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    let fewer = strategy.and_then(|strategy| strategy.rolling_update.as_ref()?.max_unavailable.as_ref());
    fewer.is_some_and(|fewer| *fewer != IntOrString::Int(0))
}

/// Whether the Deployment's controller has seen all pods of the present template available together. What it says so
/// with stays when more are ordered later.
fn available_once(deployment: &Deployment) -> bool {
    let mut conditions = deployment.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let progress = conditions.find(|condition| condition.type_ == "Progressing");
    progress.is_none_or(|progress| progress.reason.as_deref() == Some("NewReplicaSetAvailable"))
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

/// Whether the Deployment takes a place: it rolls, or it stopped in a wave. What a person broke must not stop everybody
/// else; a broken wave must.
fn occupies(deployment: &Deployment) -> bool {
    match Standing::of(deployment) {
        Standing::Complete => false,
        // A new service that replaces none in place is none of the waves' business.
        Standing::Rolling => replaces(deployment) || unseen(deployment) || Template::of(deployment).by_wave,
        Standing::Stuck => Template::of(deployment).by_wave,
    }
}

/// Whether `live` has another pod template than `desired`, by the hash that both carry.
pub fn differs(live: &Deployment, desired: &Deployment) -> bool {
    live.annotations().get(TEMPLATE_ANNOTATION) != desired.annotations().get(TEMPLATE_ANNOTATION)
}

/// `desired` with the pod template that `live` has: everything else does not wait for a place.
fn held(desired: Deployment, live: &Deployment) -> Deployment {
    let mut held = desired;
    if let (Some(held), Some(live)) = (held.spec.as_mut(), live.spec.as_ref()) {
        held.template = live.template.clone();
    }
    for annotation in [TEMPLATE_ANNOTATION, WAVE_ANNOTATION] {
        let there = live.annotations().get(annotation).cloned();
        let annotations = held.annotations_mut();
        match there {
            Some(there) => annotations.insert(annotation.to_owned(), there),
            None => annotations.remove(annotation),
        };
    }
    held
}

/// The pod template of a Deployment, and whether a wave brought it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    hash: Option<String>,
    by_wave: bool,
}

impl Template {
    /// That of `deployment`.
    pub fn of(deployment: &Deployment) -> Self {
        let hash = deployment.annotations().get(TEMPLATE_ANNOTATION);
        let by_wave = hash.is_some() && deployment.annotations().get(WAVE_ANNOTATION) == hash;
        Self { hash: hash.cloned(), by_wave }
    }
}

/// `desired`, whose template comes by a wave if `by_wave`.
fn brought(desired: Deployment, by_wave: bool) -> Deployment {
    let mut brought = desired;
    if let Some(hash) = brought.annotations().get(TEMPLATE_ANNOTATION).filter(|_| by_wave).cloned() {
        brought.annotations_mut().insert(WAVE_ANNOTATION.to_owned(), hash);
    }
    brought
}

/// What is there of a service whose Deployment is to be applied.
#[derive(Debug, Clone, Copy)]
pub struct Present<'a> {
    /// The Deployment that the store shows.
    pub live: &'a Deployment,
    /// The template that was last written, which the store may not show yet.
    pub written: Option<&'a Template>,
    /// A person has changed the service since.
    pub asked_anew: bool,
}

/// The places, and who has one.
#[derive(Debug, Default)]
pub struct Rollouts {
    places: Mutex<HashSet<ServiceId>>,
}

impl Rollouts {
    /// Begins anew: what rolls among `deployments`, or stopped in a wave, has a place.
    pub fn begin(&self, deployments: &[Arc<Deployment>]) {
        let places = deployments.iter().filter(|deployment| occupies(deployment)).filter_map(|deployment| {
            let name = deployment.labels().get(SERVICE_LABEL)?.clone();
            Some(ServiceId { namespace: deployment.namespace()?, name })
        });
        *self.lock() = places.collect();
    }

    /// `desired` as it may be applied now to the Deployment of `service`, where `most` may roll; and whether its new pod
    /// template waits.
    pub fn turn(
        &self,
        service: &ServiceId,
        desired: Deployment,
        present: Present<'_>,
        most: usize,
    ) -> (Deployment, bool) {
        let live = Template::of(present.live);
        let hash = desired.annotations().get(TEMPLATE_ANNOTATION);
        let known = present.written.into_iter().chain([&live]).find(|known| known.hash.as_ref() == hash);
        if let Some(known) = known {
            return (brought(desired, known.by_wave), false);
        }
        if present.asked_anew || serves_nothing(present.live) {
            return (desired, false);
        }
        let replaces = replaces(present.live);
        if self.admit(service, replaces, most) {
            (brought(desired, true), false)
        } else {
            (held(desired, present.live), true)
        }
    }

    /// Whether `service` may begin to replace its pods now: it `replaces` some already, or takes one of `most` places. A place
    /// without such pods entitles to nothing: a predecessor may have changed anything of the Deployment a moment ago.
    fn admit(&self, service: &ServiceId, replaces: bool, most: usize) -> bool {
        let mut places = self.lock();
        places.remove(service);
        let admitted = replaces || places.len() < most;
        if admitted {
            places.insert(service.clone());
        }
        admitted
    }

    /// `service` could not be applied, and its Deployment, if any, stands so: whatever place it had is free unless that
    /// takes one.
    pub fn failed(&self, service: &ServiceId, live: Option<&Deployment>) {
        if !live.is_some_and(occupies) {
            self.forget(service);
        }
    }

    /// The spec of `service` cannot be acted on, and its Deployment, if any, stands so: nothing but a person changes it
    /// from here on, and nobody waits for that. Pods that are being replaced still count.
    pub fn refused(&self, service: &ServiceId, live: Option<&Deployment>) {
        if live.map_or(Standing::Complete, Standing::of) != Standing::Rolling {
            self.forget(service);
        }
    }

    /// The Deployment of `service`, whose template is the desired one, stands so.
    pub fn stands(&self, service: &ServiceId, live: &Deployment) {
        if occupies(live) {
            self.lock().insert(service.clone());
        } else {
            self.forget(service);
        }
    }

    /// Forgets a service that is gone.
    pub fn forget(&self, service: &ServiceId) {
        self.lock().remove(service);
    }

    /// A panic elsewhere cannot leave a half-written entry here.
    fn lock(&self) -> MutexGuard<'_, HashSet<ServiceId>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

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

    /// A Deployment of the service `name` with this template, brought by a wave or not, of three pods of which
    /// `updated` are of that template.
    fn live(name: &str, (hash, by_wave): (&str, bool), (updated, stuck): (u32, bool)) -> Deployment {
        let wave = if by_wave { hash } else { "earlier" };
        deployment(&format!(
            "{{metadata: {{namespace: kitchen, name: {name}, generation: 2, \
             labels: {{yolo-operator.io/service: {name}}}, \
             annotations: {{yolo-operator.io/template-hash: {hash}, yolo-operator.io/wave-template-hash: {wave}}}}}, \
             spec: {{replicas: 3, selector: {{}}, template: {{}}}}, status: {{observedGeneration: 2, replicas: 4, \
             updatedReplicas: {updated}, availableReplicas: 3, conditions: [{{type: Progressing, status: '{}'}}]}}}}",
            if stuck { "False" } else { "True" },
        ))
    }

    /// What `build` makes.
    fn desired(hash: &str) -> Deployment {
        deployment(&format!(
            "{{metadata: {{annotations: {{yolo-operator.io/template-hash: {hash}}}}}, \
             spec: {{replicas: 3, selector: {{}}, template: {{metadata: {{labels: {{of: {hash}}}}}}}}}}}"
        ))
    }

    #[test]
    fn next_one_rolls_when_one_is_complete_and_a_broken_wave_stops() {
        let rollouts = Rollouts::default();
        let [fork, knife, spoon] = ["fork", "knife", "spoon"].map(service);
        assert!(rollouts.admit(&fork, false, 1));
        assert!(rollouts.admit(&fork, false, 1), "its own place is not in its way");
        assert!(!rollouts.admit(&knife, false, 1));
        rollouts.stands(&fork, &live("fork", ("new", true), (1, false)));
        rollouts.stands(&fork, &live("fork", ("new", true), (1, true)));
        assert!(!rollouts.admit(&knife, false, 1), "a broken wave stops");
        rollouts.stands(&fork, &live("fork", ("new", true), (4, false)));
        assert!(rollouts.admit(&knife, false, 1));
        rollouts.forget(&knife);
        // A person's own rollout counts, but broken it stops nobody.
        rollouts.stands(&spoon, &live("spoon", ("new", false), (1, false)));
        assert!(!rollouts.admit(&fork, false, 1));
        rollouts.stands(&spoon, &live("spoon", ("new", false), (1, true)));
        assert!(rollouts.admit(&fork, false, 1));
    }

    #[test]
    fn successor_counts_what_rolls_already_and_what_a_wave_broke() {
        let rollouts = Rollouts::default();
        let all = [
            live("fork", ("new", true), (1, false)),
            live("knife", ("new", true), (4, false)),
            live("ladle", ("new", true), (1, true)),
            live("spoon", ("new", false), (1, true)),
        ];
        rollouts.begin(&all.map(Arc::new));
        assert!(!rollouts.admit(&service("knife"), false, 2), "fork rolls, and ladle stopped in a wave");
        assert!(rollouts.admit(&service("knife"), false, 3));
        assert!(rollouts.admit(&service("ladle"), true, 1), "what mends it need not wait");
    }

    #[test]
    fn what_was_changed_without_new_pods_rolls_no_sooner_under_a_successor() {
        let rollouts = Rollouts::default();
        let unseen = |name: &str| Deployment {
            metadata: ObjectMeta { generation: Some(3), ..live(name, ("old", false), (4, false)).metadata },
            ..live(name, ("old", false), (4, false))
        };
        rollouts.begin(&[unseen("fork"), unseen("knife"), live("ladle", ("new", true), (1, true))].map(Arc::new));
        for name in ["fork", "knife"] {
            let present = Present { live: &unseen(name), written: None, asked_anew: false };
            assert!(rollouts.turn(&service(name), desired("new"), present, 1).1, "{name}");
        }
        rollouts.forget(&service("ladle"));
        let present = Present { live: &unseen("fork"), written: None, asked_anew: false };
        assert!(!rollouts.turn(&service("fork"), desired("new"), present, 1).1, "nobody rolls");
    }

    #[test]
    fn template_that_comes_by_a_wave_says_so_and_a_persons_does_not() {
        let rollouts = Rollouts::default();
        let [fork, knife] = ["fork", "knife"].map(service);
        let old = live("fork", ("old", true), (4, false));
        let shown = Present { live: &old, written: None, asked_anew: false };
        let by_wave = |deployment: &Deployment| Template::of(deployment).by_wave;

        let (wave, waits) = rollouts.turn(&fork, desired("new"), shown, 1);
        assert!(by_wave(&wave) && !waits);
        // The store still shows the old template: what was written stays as it is.
        let written = Template::of(&wave);
        let again = rollouts.turn(&fork, desired("new"), Present { written: Some(&written), ..shown }, 1);
        assert_eq!(again, (wave.clone(), false));
        let after = live("fork", ("new", true), (1, false));
        let successor = Rollouts::default().turn(&fork, desired("new"), Present { live: &after, ..shown }, 1);
        assert_eq!(successor, (wave, false), "a new leader has nothing to write");

        let (waiting, waits) = rollouts.turn(&knife, desired("new"), shown, 1);
        assert!(waits);
        assert_eq!(Template::of(&waiting), Template::of(&old), "it stays as it is until it is its turn");
        let (own, waits) = rollouts.turn(&knife, desired("new"), Present { asked_anew: true, ..shown }, 1);
        assert!(!by_wave(&own) && !waits);
        let written = Template::of(&own);
        let stale = Present { written: Some(&written), ..shown };
        assert_eq!(rollouts.turn(&knife, desired("new"), stale, 1), (own, false), "it has no need of a place");
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
    fn replacement_in_place_is_complete_once_all_new_pods_have_been_ready() {
        let standing = |fewer: i32, progress: &str| {
            Standing::of(&deployment(&format!(
                "{{metadata: {{generation: 2}}, \
                 spec: {{strategy: {{rollingUpdate: {{maxUnavailable: {fewer}}}}}, selector: {{}}, template: {{}}}}, \
                 status: {{observedGeneration: 2, replicas: 3, updatedReplicas: 3, availableReplicas: 2, \
                 conditions: [{{type: Progressing, {progress}}}]}}}}"
            )))
        };
        assert_eq!(standing(1, "status: 'True', reason: ReplicaSetUpdated"), Standing::Rolling);
        assert_eq!(standing(1, "status: 'False', reason: ProgressDeadlineExceeded"), Standing::Stuck);
        assert_eq!(standing(1, "status: 'True', reason: NewReplicaSetAvailable"), Standing::Complete, "a scale-up");
        assert_eq!(standing(0, "status: 'True', reason: ReplicaSetUpdated"), Standing::Complete, "old ones go last");
    }

    /// A Deployment that replaces in place, by a wave or not.
    fn in_place_now(by_wave: bool, status: &str) -> Deployment {
        let wave = if by_wave { "new" } else { "earlier" };
        deployment(&format!(
            "{{metadata: {{generation: 2, annotations: {{yolo-operator.io/template-hash: new, \
             yolo-operator.io/wave-template-hash: {wave}}}}}, spec: {{replicas: 1, strategy: {{rollingUpdate: \
             {{maxUnavailable: 1}}}}, selector: {{}}, template: {{}}}}, status: {{observedGeneration: 2, {status}}}}}"
        ))
    }

    #[test]
    fn single_pod_that_went_back_to_an_earlier_template_in_place_is_not_there_yet() {
        let back = |available: i32| {
            let status = format!(
                "replicas: 1, updatedReplicas: 1, availableReplicas: {available}, \
                 conditions: [{{type: Progressing, status: 'True', reason: NewReplicaSetAvailable}}]"
            );
            Standing::of(&in_place_now(true, &status))
        };
        assert_eq!((back(0), back(1)), (Standing::Rolling, Standing::Complete));
    }

    #[test]
    fn new_service_that_would_replace_in_place_takes_no_place() {
        let new = "replicas: 1, updatedReplicas: 1, conditions: [{type: Progressing, status: 'True', \
                   reason: ReplicaSetUpdated}]";
        assert!(!occupies(&in_place_now(false, new)) && occupies(&in_place_now(true, new)));
        assert!(!rolling(&in_place_now(true, new)), "no old pod holds the number of pods up");
    }

    #[test]
    fn rollout_that_is_stuck_holds_the_number_of_pods_up_no_longer() {
        let kept = |progresses: &str| {
            rolling(&in_place_now(
                false,
                &format!(
                    "replicas: 5, updatedReplicas: 1, conditions: [{{type: Progressing, status: '{progresses}'}}]"
                ),
            ))
        };
        assert!(kept("True") && !kept("False"), "fewer pods may be what gets it going");
    }

    #[test]
    fn who_serves_nothing_waits_for_nobody_and_a_failed_service_gives_its_place_back() {
        let serving = |replicas: i32, available: &str| {
            deployment(&format!(
                "{{spec: {{replicas: {replicas}, selector: {{}}, template: {{}}}}, status: {{{available}}}}}"
            ))
        };
        assert!(serves_nothing(&serving(2, "replicas: 2")));
        assert!(!serves_nothing(&serving(2, "replicas: 2, availableReplicas: 1")));
        assert!(!serves_nothing(&serving(0, "")), "nothing is asked of it");
        let rollouts = Rollouts::default();
        let [fork, knife] = ["fork", "knife"].map(service);
        assert!(rollouts.admit(&fork, false, 1));
        rollouts.failed(&fork, Some(&serving(2, "replicas: 2, updatedReplicas: 1")));
        assert!(!rollouts.admit(&knife, false, 1), "its pods are being replaced");
        rollouts.failed(&fork, Some(&serving(2, "replicas: 2, updatedReplicas: 2")));
        assert!(rollouts.admit(&knife, false, 1));
        rollouts.failed(&knife, None);
        assert!(rollouts.admit(&fork, false, 1));
        rollouts.failed(&fork, Some(&live("fork", ("new", false), (1, true))));
        assert!(rollouts.admit(&knife, false, 1), "what a person broke stops nobody");
    }

    #[test]
    fn who_can_not_be_acted_on_gives_its_place_back_once_no_pods_are_replaced() {
        let rollouts = Rollouts::default();
        let [fork, knife] = ["fork", "knife"].map(service);
        assert!(rollouts.admit(&fork, false, 1));
        rollouts.refused(&fork, Some(&live("fork", ("new", true), (1, false))));
        assert!(!rollouts.admit(&knife, false, 1), "its pods are being replaced");
        rollouts.refused(&fork, Some(&live("fork", ("new", true), (1, true))));
        assert!(rollouts.admit(&knife, false, 1), "only a person moves it now");
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
