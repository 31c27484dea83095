//! Makes the live objects as desired, by server-side apply, in an order that a stop at any point leaves harmless.
//!
//! Reads: live objects from memory, and by name what is not in memory. Writes: the service's child objects, and annotations of
//! its pods: the nudge, and which of them leave first. Does not: delete anything; the garbage collector does, by owner reference.

mod contest;
mod covers;
mod leave;
mod names;
mod nudge;
mod objects;
mod release;

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use yolo_planner::units::{Replicas, Timestamp};

pub use nudge::Nudges;
pub use objects::{FIELD_MANAGER, HASH_ANNOTATION};
pub use release::RELEASED_MANAGER;

use crate::accounts;
use crate::build::{self, Desired, KnobsDocument};
use crate::call::{Access, WriteError};
use crate::context::Context;
use crate::leader::LeaderToken;
use crate::limits;
use crate::live;
use crate::observe::{Foreign, Ordered, Ownership, Seen};
use crate::rollouts::{self, Present, Template};
use crate::validate::Validated;
use contest::{Contest, Contests};
use nudge::Nudged;
use objects::{Receipts, Writer};

/// What `apply` remembers of a service between two reconciles.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// The newest knobs document written.
    pub knobs: Option<KnobsDocument>,
    /// The number of pods as last written.
    pub ordered: Option<Ordered>,
    /// That of the spec which was last applied whole.
    pub generation: Option<i64>,
    /// The pod template as last written.
    template: Option<Template>,
    receipts: Receipts,
    contests: Contests,
    nudges: Nudges,
}

/// Evidence that everything desired is in place; the status is made from this.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The numbered document in force.
    pub knobs: KnobsDocument,
    /// Hash of the pod template.
    pub template: String,
    /// Objects written.
    pub sent: u32,
    /// The Deployment's controller has not looked at it as it is now.
    pub unseen: bool,
    /// Its new pod template waits for other services' rollouts.
    pub waits: bool,
    /// Who keeps changing what; a sentence for people.
    pub contested: Option<String>,
}

impl Applied {
    /// When to look again if nothing wakes the service.
    pub fn looks_again(&self) -> Duration {
        match self {
            Self { waits: true, .. } => limits::ROLLOUT_LOOK,
            Self { contested: Some(_), .. } => limits::REWRITE_REST,
            _ => limits::REQUEUE,
        }
    }
}

/// Applies `desired`, what `build` made of `spec` and the plan of `seen`.
///
/// # Errors
/// The first [`WriteError`]; what was written before it stays, and the next reconcile goes on from there.
///
/// # Cancellation
/// Any prefix of the writes converges at the next reconcile, of this process or a successor.
pub async fn apply(
    ctx: &Context,
    leader: &LeaderToken,
    spec: &Validated,
    seen: &Seen,
    desired: Desired,
) -> Result<Applied, WriteError> {
    let Desired { knobs, deployment, service, budget, network_policy } = desired; // no `..`
    let mut kept = ctx.applied.of(&spec.id, &spec.uid).unwrap_or_default();
    let access = Access { client: &ctx.client, leader, metrics: &ctx.metrics };
    let (id, name, live) = (&spec.id, spec.id.name.as_str(), &ctx.live);
    let outcome = async {
        // Before the first write: not one pod more runs as an account that nobody marked for it, and none as another one.
        accounts::permitted(&live.accounts, spec)?;
        let knobs = numbered(knobs, seen.knobs, reported(seen));
        let config_map = build::config_map(spec, &knobs);
        let live_policy = live::get(&live.network_policies, id, name);
        let (live_service, live_budget) = (live::get(&live.services, id, name), live::get(&live.budgets, id, name));
        // All names before the first write: half of a service beside a stranger's object helps nobody.
        let names_free = async {
            futures::try_join!(
                names::free(access, &config_map, seen.config_map.as_deref(), &spec.uid),
                names::free(access, &network_policy, live_policy.as_deref(), &spec.uid),
                names::free(access, &service, live_service.as_deref(), &spec.uid),
                names::free(access, &budget, live_budget.as_deref(), &spec.uid),
                names::free(access, &deployment, seen.deployment.as_deref(), &spec.uid),
            )
        };
        Box::pin(names_free).await?; // large, and idle from the second time on
        let (receipts, contests) = (&mut kept.receipts, &mut kept.contests);
        let mut writer = Writer { access, owner_uid: &spec.uid, receipts, contests, now: seen.now, sent: 0 };
        // Knobs before the Deployment: a pod whose volume names a missing ConfigMap hangs in ContainerCreating.
        let unnumbered = build::config_map(spec, &knobs.numbered(0));
        writer.apply_numbered(&config_map, Some(&unnumbered), seen.config_map.as_deref()).await?;
        // While it rests, the document in force is not ours, and no number is used up.
        let knobs = if rests(writer.contests, "ConfigMap", seen.now) { seen.knobs.unwrap_or(knobs) } else { knobs };
        kept.knobs = Some(knobs);
        // The network policy before the pods that it protects.
        writer.apply(&network_policy, live_policy.as_deref()).await?;
        writer.apply(&service, live_service.as_deref()).await?;
        writer.apply(&budget, live_budget.as_deref()).await?;
        // The count is handed over before the Deployment is applied without it: a field that its only owner stops
        // applying falls back to its default, which is one pod.
        if let Some(live) = seen.deployment.as_deref().filter(|_| !seen.ownership.ours()) {
            release::release(access, live).await?;
        }
        if let Some(kept) = fewer(seen.deployment.as_deref(), &deployment) {
            // Before the order: its controller may act on it at once.
            leave::mark(access, &seen.pods, kept, seen.snapshot.as_deref()).await;
        }
        let (deployment, waits) = in_turn(ctx, spec, (seen, kept.template.as_ref()), deployment);
        let written = writer.apply(&deployment, seen.deployment.as_deref()).await?;
        kept.template = Some(Template::of(&deployment));
        let sent = writer.sent;
        let present = written.as_ref().or(seen.deployment.as_deref());
        remember_order(&mut kept, seen, present);
        nudge_pods(access, seen, knobs.generation, &mut kept.nudges).await;
        let contested = kept.contests.values().find_map(Contest::told).map(ToOwned::to_owned);
        // Not while the store still has it as it was before our own write.
        if let Some(present) = present.filter(|present| !waits && !rollouts::differs(present, &deployment)) {
            ctx.rollouts.stands(id, present);
        }
        kept.generation = Some(spec.generation);
        let (template, unseen) = (build::template_hash(&deployment), present.is_some_and(rollouts::unseen));
        Ok(Applied { knobs, template, sent, unseen, waits, contested })
    };
    let outcome = outcome.await;
    if outcome.is_err() {
        ctx.rollouts.failed(id, seen.deployment.as_deref());
    }
    // Kept after a failure too: what was written is written.
    ctx.applied.keep(&spec.id, &spec.uid, kept);
    outcome
}

/// Whether the object of `kind` stays as somebody else has it.
fn rests(contests: &Contests, kind: &str, now: Timestamp) -> bool {
    contests.get(kind).is_some_and(|contest| contest.rests(now))
}

/// The document with its number: that of `now` if the content is the same, else one more than any that was ever seen or
/// `reported`, so that a ConfigMap restored from a backup never repeats a number that a pod already knows.
fn numbered(knobs: KnobsDocument, now: Option<KnobsDocument>, reported: Option<u64>) -> KnobsDocument {
    if let Some(now) = now.filter(|now| knobs.numbered(now.generation) == *now) {
        return now;
    }
    let highest = reported.max(now.map(|now| now.generation)).unwrap_or(0);
    knobs.numbered(highest.saturating_add(1))
}

/// The highest generation that any pod reports.
fn reported(seen: &Seen) -> Option<u64> {
    seen.pods.iter().filter_map(|pod| seen.snapshot.as_ref()?.knobs_generation(&pod.uid)).max()
}

/// Remembers the number of pods as the API server now has it, and who else wrote it.
fn remember_order(kept: &mut Kept, seen: &Seen, live: Option<&Deployment>) {
    // While it rests from a contest, the count in it may be somebody else's.
    if rests(&kept.contests, "Deployment", seen.now) {
        return;
    }
    let foreign: Option<Foreign> = match &seen.ownership {
        Ownership::Ours { foreign, .. } => foreign.clone(),
        Ownership::Foreign { by, .. } => Some(by.clone()),
        Ownership::Autoscaled { .. } | Ownership::Released { .. } => None,
    };
    let Some(live) = live else { return };
    let replicas = live.spec.as_ref().and_then(|spec| spec.replicas).and_then(|count| u32::try_from(count).ok());
    let (Some(replicas), Some(generation)) = (replicas, live.metadata.generation) else { return };
    // A store that lags behind our last write must not take it back.
    if kept.ordered.as_ref().is_none_or(|ordered| ordered.generation <= generation) {
        kept.ordered = Some(Ordered { replicas: Replicas::new(replicas), generation, foreign });
    }
}

/// The number of pods that `desired` leaves of those that `live` asks for, if it is smaller.
fn fewer(live: Option<&Deployment>, desired: &Deployment) -> Option<usize> {
    let count = |deployment: &Deployment| deployment.spec.as_ref()?.replicas;
    let (now, next) = (count(live?)?, count(desired)?);
    usize::try_from(next).ok().filter(|_| next < now)
}

/// `deployment` as it may be applied now: its pod template may have to wait for a place among the rollouts; and whether it
/// does.
fn in_turn(
    ctx: &Context,
    spec: &Validated,
    (seen, written): (&Seen, Option<&Template>),
    deployment: Deployment,
) -> (Deployment, bool) {
    let Some(live) = seen.deployment.as_deref() else { return (deployment, false) };
    let most = ctx.defaults.rollouts_most.of(ctx.live.deployments.len());
    ctx.rollouts.turn(&spec.id, deployment, Present { live, written, asked_anew: seen.asked_anew }, most)
}

async fn nudge_pods(access: Access<'_>, seen: &Seen, generation: u64, nudges: &mut Nudges) {
    let pods: Vec<Nudged> = seen
        .pods
        .iter()
        .map(|pod| {
            let reported = seen.snapshot.as_ref().and_then(|s| Some((s.knobs_generation(&pod.uid)?, s.taken_at)));
            Nudged { pod: pod.clone(), reported }
        })
        .collect();
    nudges.retain(|uid, _| pods.iter().any(|seen| seen.pod.uid == *uid));
    let due = nudge::due(&pods, generation, nudges, seen.now);
    nudges.extend(nudge::nudge(access, due).await);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Target;
    use crate::validate::fixtures::smallest;
    use yolo_planner::{Knobs, Observation};

    fn seen(ownership: Ownership) -> Seen {
        let policy = smallest().policy;
        Seen {
            observation: Observation::new(Knobs::initial(&policy)),
            policy,
            pods: Vec::new(),
            snapshot: None,
            deployment: None,
            config_map: None,
            knobs: None,
            ownership,
            asked_anew: false,
            now: Timestamp::whole(1000),
        }
    }

    fn ours(foreign: Option<Foreign>) -> Ownership {
        Ownership::Ours { replicas: None, foreign, reverting: false }
    }

    fn deployment(replicas: i32, generation: i64) -> Deployment {
        let spec = format!("{{replicas: {replicas}, selector: {{}}, template: {{}}}}");
        serde_yaml_ng::from_str(&format!("{{metadata: {{generation: {generation}}}, spec: {spec}}}")).unwrap()
    }

    #[test]
    fn order_is_what_the_api_server_has_and_an_older_store_does_not_take_it_back() {
        let mut kept = Kept::default();
        let ordered = |kept: &Kept| kept.ordered.as_ref().map(|ordered| (ordered.replicas.get(), ordered.generation));
        remember_order(&mut kept, &seen(ours(None)), None);
        assert_eq!(ordered(&kept), None, "it is not there yet");
        remember_order(&mut kept, &seen(ours(None)), Some(&deployment(2, 5)));
        assert_eq!(ordered(&kept), Some((2, 5)));
        remember_order(&mut kept, &seen(ours(None)), Some(&deployment(7, 4)));
        assert_eq!(ordered(&kept), Some((2, 5)), "the store lags behind");
        remember_order(&mut kept, &seen(ours(None)), Some(&deployment(3, 6)));
        assert_eq!(ordered(&kept), Some((3, 6)));
    }

    #[test]
    fn order_names_the_foreign_writer_until_the_count_is_nobodys_concern() {
        let mut kept = Kept::default();
        let by = Foreign { manager: "kubectl".to_owned(), seen: Timestamp::whole(900), hands_off_generation: None };
        let foreign = |kept: &Kept| kept.ordered.as_ref().unwrap().foreign.clone();
        let replicas = Some(Replicas::new(2));
        for (ownership, expected) in [
            (ours(Some(by.clone())), Some(by.clone())),
            (Ownership::Foreign { replicas, by: by.clone() }, Some(by.clone())),
            (Ownership::Released { replicas }, None),
            (Ownership::Autoscaled { replicas, autoscaler: "hpa".to_owned() }, None),
        ] {
            remember_order(&mut kept, &seen(ownership.clone()), Some(&deployment(2, 5)));
            assert_eq!(foreign(&kept), expected, "{ownership:?}");
        }
    }

    #[test]
    fn count_of_a_deployment_that_rests_from_a_contest_is_not_taken_for_ours() {
        let mut kept = Kept::default();
        let now = Timestamp::whole(1000);
        remember_order(&mut kept, &seen(ours(None)), Some(&deployment(2, 5)));
        let mut contest = Contest::after(None, now);
        contest.tell(&Target::new("Deployment", "kitchen", "fork"), &deployment(7, 6).metadata);
        kept.contests.insert("Deployment", contest);
        remember_order(&mut kept, &seen(ours(None)), Some(&deployment(7, 6)));
        assert_eq!(kept.ordered.as_ref().unwrap().replicas, Replicas::new(2));
        kept.contests.clear();
        remember_order(&mut kept, &seen(ours(None)), Some(&deployment(7, 6)));
        assert_eq!(kept.ordered.unwrap().replicas, Replicas::new(7));
    }

    #[test]
    fn number_changes_with_the_content_only_and_never_comes_twice() {
        let policy = smallest().policy;
        let one = KnobsDocument::new(&policy, &Knobs::initial(&policy));
        let other = KnobsDocument { max_batch_size: one.max_batch_size + 1, ..one };
        assert_eq!(numbered(one, None, None).generation, 1);
        assert_eq!(numbered(one, Some(one.numbered(7)), Some(9)).generation, 7);
        assert_eq!(numbered(other, Some(one.numbered(7)), None).generation, 8);
        assert_eq!(numbered(other, Some(one.numbered(7)), Some(12)).generation, 13, "restored from a backup");
        assert_eq!(numbered(one, None, Some(12)).generation, 13, "deleted");
    }
}
