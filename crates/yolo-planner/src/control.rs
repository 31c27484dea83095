//! From the cheapest setting to the next one: up at once, down only after a lower need has lasted.
//!
//! Holding a pod costs its price, taking one away too early costs a start-up: ski rental, so holding for as long as a
//! start-up takes is at most twice as dear as knowing the future (control.md §1, finding 9).

use serde::{Deserialize, Serialize};

use crate::choose::Choice;
use crate::decision::{HoldReason, Trigger};
use crate::observation::{Knobs, Observation, Phase};
use crate::pace::Counts;
use crate::policy::{Mode, OverloadPolicy, Policy};
use crate::units::{BatchSize, Bytes, Replicas, Seconds, Timestamp, whole_millis, whole_seconds};

/// Least hold before pods go, unless the policy says otherwise: the half minute that the level looks back. Beyond it a
/// start-up, which is what ski rental asks for. control.md §7 has twice both: on smooth load 2 % dearer, with as many bad
/// windows; pods that come back too soon double the hold anyway.
const HOLD_MIN_S: f64 = 30.0;
/// Between two steps down (control.md §7).
const DOWN_EVERY_S: f64 = 30.0;
/// Ticks that must be seen before pods of a new service go, and of a fleet that was there before (a new leader).
const COLD_TICKS: u32 = 12;
const COLD_TICKS_EXISTING: u32 = 60;
/// Age of a pod at the first look that makes a fleet an existing one.
const EXISTING_S: f64 = 60.0;
/// Changes of direction within an hour beyond which the hold is doubled.
const TURNS_MAX: usize = 6;
const HOUR_S: f64 = 3600.0;
/// Flaps: pods that came back within so long of going, no more than this share of the fleet (at least one). A burst is
/// larger, and a hold cannot know of it; a flap says that the hold is shorter than what it waits for.
const FLAP_S: f64 = 900.0;
const FLAP_SHARE: f64 = 0.15;
/// Doublings of the hold by flaps, up to eight times, and how long each counts: what a load that swings on and on has
/// taught is not forgotten within the hour.
const FLAPS_MAX: usize = 3;
const FLAPS_LAST_S: f64 = 3.0 * HOUR_S;
/// How soon pods must come back a second time to be kept, and for how long beyond their last need: what comes back
/// again and again within [`FLAP_S`] of going (a load that swings by a few percent, a pod's worth, every ten minutes)
/// no doubled hold outlasts. (Simulated, `diurnal` on CPUs, three seeds: kept from the first time on they cost 1.8 %,
/// from the second on 0.5 %.)
const RETURNS_S: f64 = 2.0 * FLAP_S;
const RETURNED_LAST_S: f64 = FLAP_S;
/// Needs remembered; neighbours are merged beyond that, towards more pods.
const NEEDS_MAX: usize = 64;
/// Share by which the deadline must move to be worth a change of the knobs document.
const DEADLINE_STEP: f64 = 0.1;

/// What steering remembers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Control {
    /// What the last call answered.
    pub(crate) previous: Option<Knobs>,
    /// Why it held; `None` after a change.
    pub(crate) held: Option<HoldReason>,
    /// Pods needed at (time), the newest last; an entry is dropped when a later one is at least as high.
    needs: Vec<(f64, u32)>,
    /// Since when needs are known without a gap.
    needs_since_s: Option<f64>,
    /// Pods wanted at (time), the newest last; an entry is dropped when a later one is at most as high.
    #[serde(default)]
    wanted: Vec<(f64, u32)>,
    last_down_s: Option<f64>,
    /// The numbers of pods that limits count from.
    #[serde(default)]
    counts: Counts,
    /// Times at which the direction changed within the last hour.
    turns: Vec<f64>,
    /// Times of flaps within [`FLAPS_LAST_S`].
    flaps: Vec<f64>,
    /// The pods that the last flap brought back.
    #[serde(default)]
    returned: Option<Returned>,
    /// Whether the last move was upwards.
    rising: Option<bool>,
    /// Since when a larger (or else a smaller) batch would do better than the present one.
    batch_better_since: Option<(bool, f64)>,
    /// Whether the last change of the batch was a rise, and times within [`FLAPS_LAST_S`] at which it turned.
    batch_rising: Option<bool>,
    batch_turns: Vec<f64>,
    /// Since when a smaller cache would do.
    cache_low_since_s: Option<f64>,
    /// The fleet is older than this state.
    existing: Option<bool>,
    /// When knobs were last changed.
    changed_s: Option<f64>,
    /// A scale-down did harm within the last hour: lower needs must last twice as long.
    pub(crate) careful: bool,
}

/// Pods that came back soon after they went.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Returned {
    pods: u32,
    /// Not for the first time.
    again: bool,
    /// When they came, and when as many were last needed.
    at_s: f64,
    needed_s: f64,
}

/// What a tick offers to steer by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tick {
    pub(crate) now: Timestamp,
    /// Pods needed if arrivals were higher by their noise and silent pods busy: what a scale-down must satisfy.
    pub(crate) need_to_shrink: u32,
    /// Whether the backlog, not the arrivals, made the need.
    pub(crate) backlog: bool,
    /// How long a pod ordered now takes to serve, seconds.
    pub(crate) startup_s: f64,
    pub(crate) ticks: u32,
    /// No pod may go, whatever the need: a rollout is under way, images wait, the curve is not known well enough, or the budget
    /// of bad minutes burns.
    /// (After any bad minute, as control.md §7 has it, one burst would hold its pods for five minutes of silence.)
    pub(crate) frozen: bool,
}

/// The next knobs, and whether the way to a cheaper setting is still barred.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) knobs: Knobs,
    pub(crate) trigger: Trigger,
    /// Why fewer pods (or a smaller cache) must wait, if they must.
    pub(crate) barred: Option<HoldReason>,
}

impl Control {
    /// How long a lower need must last, seconds.
    pub(crate) fn hold_s(&self, policy: &Policy, startup_s: f64) -> f64 {
        let hold_s = policy.stabilization.map_or_else(|| startup_s.max(HOLD_MIN_S), |hold| hold.get().min(86_400.0));
        let hold_s = if self.careful || self.turns.len() > TURNS_MAX { 2.0 * hold_s } else { hold_s };
        self.flaps.iter().fold(hold_s, |hold_s, _| 2.0 * hold_s)
    }

    /// Remembers a change of the knobs.
    pub(crate) fn changed(&mut self, from: &Knobs, to: &Knobs, now_s: f64) {
        self.changed_s = Some(now_s);
        self.batch_turns.retain(|at| now_s - at < FLAPS_LAST_S);
        if to.max_batch_size != from.max_batch_size {
            let rising = to.max_batch_size > from.max_batch_size;
            if self.batch_rising.is_some_and(|before| before != rising) && self.batch_turns.len() < FLAPS_MAX {
                self.batch_turns.push(now_s);
            }
            (self.batch_rising, self.batch_better_since) = (Some(rising), None);
        }
    }

    /// Whether a batch has been `better` than the one of `now`, which would do, too, for the whole hold; twice as long with
    /// each turn: curves of batches that are about as good cross in the noise of what else runs on the device.
    pub(crate) fn batch_stays_better(
        &mut self,
        (now, better): (BatchSize, BatchSize),
        (hold_s, now_s): (f64, f64),
    ) -> bool {
        if better == now {
            self.batch_better_since = None;
            return false;
        }
        let rising = better > now;
        let since = self.batch_better_since.filter(|(up, _)| *up == rising).map_or(now_s, |(_, since_s)| since_s);
        self.batch_better_since = Some((rising, since));
        now_s - since >= self.batch_turns.iter().fold(hold_s, |hold_s, _| 2.0 * hold_s)
    }

    /// Whether knobs were changed within the last `span_s` seconds.
    pub(crate) fn changed_within(&self, span_s: f64, now: Timestamp) -> bool {
        self.changed_s.is_some_and(|at_s| now.get() - at_s < span_s)
    }

    /// Forgets what a gap in the data makes worthless: a need that was not seen is not a low need.
    pub(crate) fn lose_sight(&mut self) {
        self.needs.clear();
        self.wanted.clear();
        self.needs_since_s = None;
        self.batch_better_since = None;
        self.cache_low_since_s = None;
    }

    /// Notes at the first look whether pods were there before this state.
    pub(crate) fn notice_fleet(&mut self, observation: &Observation, now: Timestamp) {
        if self.existing.is_none() && !observation.pods.is_empty() {
            let ready = |pod: &crate::observation::Pod| pod.phase == Phase::Ready;
            let old = |pod: &crate::observation::Pod| pod.ready.is_some_and(|at| now.since(at) > EXISTING_S);
            self.existing = Some(observation.pods.iter().any(|pod| ready(pod) && old(pod)));
        }
    }

    /// Notes the number of pods. One that was ordered has been there since that order was last made, which the look at
    /// `last` did: a period is not to be longer by a tick.
    pub(crate) fn notice_replicas(
        &mut self,
        policy: &Policy,
        replicas: Replicas,
        (last, now): (Option<Timestamp>, Timestamp),
    ) {
        let ordered = self.previous.is_some_and(|previous| previous.replicas == replicas);
        let since = last.filter(|_| ordered).unwrap_or(now);
        self.counts.notice(policy, replicas.get(), (since.get(), now.get()));
    }

    /// The knobs after this tick; knobs that are not in Auto stay as observed.
    pub(crate) fn step(&mut self, policy: &Policy, observation: &Observation, choice: &Choice, tick: Tick) -> Step {
        let current = observation.current;
        let hold_s = self.hold_s(policy, tick.startup_s);
        let now_s = tick.now.get();
        self.need(now_s, tick.need_to_shrink, hold_s);
        self.still_needed(now_s, tick.need_to_shrink.max(choice.replicas));
        let cold = tick.ticks < if self.existing == Some(true) { COLD_TICKS_EXISTING } else { COLD_TICKS };
        let mut knobs = Knobs { max_batch_size: choice.batch, max_queue_delay_micros: 0, ..current };
        let (cache, cache_barred) = self.cache(policy, observation, choice.cache, (now_s, hold_s));
        knobs.cache_bytes = cache;
        let (replicas, replicas_barred) = self.replicas(policy, observation, choice, (tick, hold_s, cold));
        knobs.replicas = Replicas::new(replicas);
        let knobs = restrain(policy, &current, knobs);
        self.flap(current.replicas.get(), knobs.replicas.get(), now_s);
        self.turn(knobs.replicas.cmp(&current.replicas), now_s);
        Step {
            knobs,
            trigger: trigger(policy, choice, (&current, &knobs), tick),
            barred: replicas_barred.or(cache_barred),
        }
    }

    /// Remembers the need of this tick for `hold_s`.
    fn need(&mut self, now_s: f64, need: u32, hold_s: f64) {
        self.needs_since_s.get_or_insert(now_s);
        self.needs.retain(|(at, _)| *at >= now_s - hold_s);
        while self.needs.last().is_some_and(|(_, last)| *last <= need) {
            self.needs.pop();
        }
        let full = self.needs.len() >= NEEDS_MAX;
        match self.needs.last_mut() {
            Some((at, _)) if full => *at = now_s,
            _ => self.needs.push((now_s, need)),
        }
    }

    /// The fewest pods that were wanted at any time of the last `window`, now `wanted`; at its first look no more than the
    /// `current` ones, because what was wanted before is not known. Without a window: `wanted`.
    fn least_wanted(&mut self, (now_s, window): (f64, Option<Seconds>), current: u32, wanted: u32) -> u32 {
        let Some(window_s) = window.map(Seconds::get).filter(|window_s| *window_s > 0.0) else {
            self.wanted.clear();
            return wanted;
        };
        let wanted = if self.wanted.is_empty() { wanted.min(current) } else { wanted };
        self.wanted.retain(|(at, _)| *at >= now_s - window_s);
        while self.wanted.last().is_some_and(|(_, last)| *last >= wanted) {
            self.wanted.pop();
        }
        let full = self.wanted.len() >= NEEDS_MAX;
        match self.wanted.last_mut() {
            Some((at, _)) if full => *at = now_s,
            _ => self.wanted.push((now_s, wanted)),
        }
        self.wanted.first().map_or(wanted, |(_, least)| *least)
    }

    /// Remembers when the pods that came back were needed, and them no longer than flaps.
    fn still_needed(&mut self, now_s: f64, need: u32) {
        self.returned = self.returned.filter(|returned| now_s - returned.at_s < FLAPS_LAST_S);
        if let Some(returned) = self.returned.as_mut().filter(|returned| need >= returned.pods) {
            returned.needed_s = now_s;
        }
    }

    /// Pods that came back and may be needed again soon.
    fn kept(&self, now_s: f64) -> u32 {
        let kept = self.returned.filter(|returned| returned.again && now_s - returned.needed_s < RETURNED_LAST_S);
        kept.map_or(0, |returned| returned.pods)
    }

    /// How long a need of `replicas` pods must have lasted for more to go, seconds.
    pub(crate) fn patience_s(&self, hold_s: f64, replicas: u32, now_s: f64) -> f64 {
        if self.kept(now_s) > replicas { hold_s.max(RETURNED_LAST_S) } else { hold_s }
    }

    /// Pods after this tick: more at once, or once the need has been higher for the policy's window; fewer once it has been
    /// lower for the whole hold.
    fn replicas(
        &mut self,
        policy: &Policy,
        observation: &Observation,
        choice: &Choice,
        (tick, hold_s, cold): (Tick, f64, bool),
    ) -> (u32, Option<HoldReason>) {
        let now_s = tick.now.get();
        let current = observation.current.replicas.get();
        let lasting_up = self.least_wanted((now_s, policy.stabilization_up), current, choice.replicas);
        if choice.replicas > current {
            // A schedule's peak is no need that might pass.
            let wanted = lasting_up.max(policy.schedule_floor.get()).min(choice.replicas);
            let allowed = self.limit_up(policy, current, wanted, now_s);
            return (allowed, (allowed <= current).then_some(HoldReason::Stabilizing));
        }
        let lasting = self.needs.first().map_or(current, |(_, need)| *need).max(choice.replicas).max(self.kept(now_s));
        if tick.need_to_shrink.max(choice.replicas) >= current {
            return (current, None);
        }
        let covered = self.needs_since_s.is_some_and(|since| now_s - since >= hold_s);
        let fewest = self.limit_down(policy, current, now_s);
        if cold {
            return (current, Some(HoldReason::ColdStart));
        }
        if lasting >= current || !covered || fewest >= current || tick.frozen {
            let damped = self.turns.len() > TURNS_MAX;
            return (current, Some(if damped { HoldReason::FlapDamped } else { HoldReason::Stabilizing }));
        }
        self.last_down_s = Some(now_s);
        (lasting.max(fewest), None)
    }

    /// As many of the `wanted` pods as may come now, and all of the `current` ones.
    pub(crate) fn limit_up(&self, policy: &Policy, current: u32, wanted: u32, now_s: f64) -> u32 {
        let most = policy.paces_up.as_ref().map_or(u32::MAX, |paces| self.counts.most(paces, current, now_s));
        wanted.min(most).max(current)
    }

    /// The fewest pods that may be left now.
    fn limit_down(&self, policy: &Policy, current: u32, now_s: f64) -> u32 {
        if let Some(paces) = &policy.paces_down {
            return self.counts.fewest(paces, current, now_s);
        }
        if self.last_down_s.is_some_and(|last| now_s - last < DOWN_EVERY_S) {
            return current;
        }
        let share = policy.max_down.get().clamp(0.0, 1.0) * f64::from(current);
        current.saturating_sub(crate::units::ceil_u32(share.floor()).max(1))
    }

    /// The cache after this tick: larger at once, smaller once that has been enough for the whole hold.
    fn cache(
        &mut self,
        policy: &Policy,
        observation: &Observation,
        wanted: Bytes,
        (now_s, hold_s): (f64, f64),
    ) -> (Bytes, Option<HoldReason>) {
        let now = policy.cache.clamp(observation.current.cache_bytes);
        if wanted >= now {
            self.cache_low_since_s = None;
            return (wanted, None);
        }
        let since_s = *self.cache_low_since_s.get_or_insert(now_s);
        if now_s - since_s < hold_s || observation.rolling {
            return (now, Some(HoldReason::Stabilizing));
        }
        self.cache_low_since_s = None;
        (wanted, None)
    }

    /// Counts pods that come back soon after they went.
    fn flap(&mut self, before: u32, after: u32, now_s: f64) {
        self.flaps.retain(|at| now_s - at < FLAPS_LAST_S);
        let few = f64::from(after.saturating_sub(before)) <= (FLAP_SHARE * f64::from(before)).max(1.0);
        if after <= before || !few {
            return;
        }
        if self.rising == Some(false) && self.last_down_s.is_some_and(|last| now_s - last < FLAP_S) {
            let again = |before: Returned| before.pods >= after && now_s - before.at_s < RETURNS_S;
            let again = self.returned.is_some_and(again);
            self.returned = Some(Returned { pods: after, again, at_s: now_s, needed_s: now_s });
            if self.flaps.len() < FLAPS_MAX {
                self.flaps.push(now_s);
            }
        } else if let Some(returned) = self.returned.as_mut().filter(|returned| now_s - returned.at_s < FLAP_S) {
            // A swing of several pods brings them back one by one.
            (returned.pods, returned.needed_s) = (returned.pods.max(after), now_s);
        }
    }

    /// Counts a change of direction.
    fn turn(&mut self, moved: std::cmp::Ordering, now_s: f64) {
        self.turns.retain(|at| now_s - at < HOUR_S);
        if moved.is_ne() {
            let rising = moved.is_gt();
            if self.rising.is_some_and(|before| before != rising) && self.turns.len() <= TURNS_MAX {
                self.turns.push(now_s);
            }
            self.rising = Some(rising);
        }
    }
}

/// Knobs moved into their ranges; those that are not in Auto as observed. The TTL is no knob: what a person set holds in
/// every mode.
pub(crate) fn restrain(policy: &Policy, current: &Knobs, mut knobs: Knobs) -> Knobs {
    if policy.replicas.mode == Mode::Auto {
        knobs.replicas = policy.replicas.clamp(knobs.replicas);
    } else {
        knobs.replicas = current.replicas;
    }
    if policy.batch.mode == Mode::Auto {
        knobs.max_batch_size = policy.batch.clamp(knobs.max_batch_size);
    } else {
        knobs.max_batch_size = current.max_batch_size;
        knobs.max_queue_delay_micros = current.max_queue_delay_micros;
    }
    if policy.cache.mode == Mode::Auto {
        knobs.cache_bytes = policy.cache.clamp(knobs.cache_bytes);
    } else {
        knobs.cache_bytes = current.cache_bytes;
    }
    knobs.cache_ttl_seconds = whole_seconds(policy.cache_ttl);
    knobs
}

/// Longest wait before a batch starts. Shedding refuses what would miss the target anyway; while the targets cannot be
/// met it falls back to the queue's time-out, or nothing would be served (design.md §3, Overload).
///
/// `wait_s`: what the API target leaves for waiting. The present deadline stays while the new one is within 10 %.
pub(crate) fn deadline_millis(policy: &Policy, current: &Knobs, wait_s: Option<f64>) -> u64 {
    let timeout_s = policy.overload.queue_timeout.get().min(86_400.0);
    let deadline_s = match policy.overload.policy {
        OverloadPolicy::Queue => timeout_s,
        OverloadPolicy::Shed => wait_s.filter(|wait| *wait > 0.0).unwrap_or(timeout_s),
    };
    let wanted = whole_millis(deadline_s);
    let near = current.deadline_millis.abs_diff(wanted);
    let shed = policy.overload.policy == OverloadPolicy::Shed;
    if shed && crate::units::real(near) <= DEADLINE_STEP * crate::units::real(wanted) {
        current.deadline_millis
    } else {
        wanted
    }
}

fn trigger(policy: &Policy, choice: &Choice, (current, next): (&Knobs, &Knobs), tick: Tick) -> Trigger {
    let outside = policy.replicas.clamp(current.replicas) != current.replicas
        || policy.batch.clamp(current.max_batch_size) != current.max_batch_size
        || policy.cache.clamp(current.cache_bytes) != current.cache_bytes;
    // Where pods may only come slowly, it takes several changes.
    let of_schedule = next.replicas == policy.schedule_floor
        || next.replicas < policy.schedule_floor && choice.needed.is_none_or(|needed| needed < next.replicas.get());
    if outside {
        Trigger::Policy
    } else if next.replicas == current.replicas {
        Trigger::Model
    } else if next.replicas > current.replicas && of_schedule {
        Trigger::Schedule
    } else if next.replicas > current.replicas && tick.backlog {
        Trigger::Backlog
    } else {
        Trigger::Load
    }
}

#[cfg(test)]
impl Control {
    /// Every list as long as it can be.
    pub(crate) fn fill(&mut self, now_s: f64) {
        let most = u32::try_from(NEEDS_MAX).unwrap();
        self.needs = (1..=most).map(|age| (now_s - f64::from(age) / 3.0, 5000 + age)).collect();
        self.wanted.clone_from(&self.needs);
        (self.turns, self.flaps) = (vec![now_s; TURNS_MAX + 1], vec![now_s; FLAPS_MAX]);
        (self.batch_turns, self.batch_better_since) = (vec![now_s; FLAPS_MAX], Some((true, now_s)));
        self.batch_rising = Some(true);
        (self.last_down_s, self.counts, self.cache_low_since_s) = (Some(now_s), Counts::full(now_s), Some(now_s));
    }
}
