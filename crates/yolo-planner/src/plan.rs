//! The decision, top to bottom: `take -> model -> choose -> gate -> step -> explain`. Nothing here fails: what cannot
//! be decided is a [`HoldReason`].

use crate::arrivals::backlog_rate;
use crate::choose::Choice;
use crate::control::{self, Tick};
use crate::decision::{Action, Decision, HoldReason, Record, Trigger};
use crate::explain::ConstraintKind;
use crate::intake::{self, COVERAGE_MIN};
use crate::learn;
use crate::observation::{Knobs, Observation};
use crate::outcome::{self, Open};
use crate::policy::{Mode, Policy};
use crate::reason;
use crate::report;
use crate::state::State;
use crate::units::{Replicas, Timestamp, whole_seconds_since_epoch};
use crate::view::{View, learn_overhead};

/// One pod in so many must report for its rate to stand for the others': of fewer, chance would order pods.
const TELLING: u32 = 3;
/// Blind for longer than this, the past peak is assumed (control.md §2).
const BLIND_S: f64 = 120.0;

/// Decides the knobs of one service.
///
/// `observation` is one look at it, `state` what the last call returned (or [`State::default`], or
/// [`State::seeded`]), `now` the time of the look. The caller applies [`Decision::desired`] and hands
/// [`Decision::state`] to the next call.
///
/// # Guarantees
/// Total and deterministic: whatever the inputs hold, the answer is a decision, the same for the same inputs and for
/// any order of pods. Knobs in Auto lie within their ranges; others are as observed. Without usable samples replicas
/// never fall.
///
/// # Assumptions
/// Between ticks (`policy.tick`, at least the scrape interval) the previous knobs are repeated. Time that does not
/// advance is answered with [`HoldReason::NonFinite`] and the unchanged state.
pub fn plan(policy: &Policy, observation: &Observation, state: &State, now: Timestamp) -> Decision {
    if state.last.is_some_and(|last| now <= last) {
        return report::backwards(policy, observation, state);
    }
    let mut next = state.clone();
    next.last = Some(now);
    if next.verdicts.revised(policy) {
        next.forget_revision();
    }
    next.verdicts.notice_policy(policy, observation.rolling, now);
    next.control.notice_fleet(observation, now);
    next.control.notice_replicas(policy, observation.current.replicas, (state.last, now));
    let seen = intake::take(policy, observation, &mut next, now);
    learn_overhead(policy, observation, &mut next, &seen);
    learn::adapt_bound(policy, observation, &mut next, (&seen, now));
    let sums = next.window.sums();
    next.guard.look(policy, observation, (&seen, &sums), now);
    next.control.careful = next.guard.careful(now.get());
    let view = View::new(policy, observation, &mut next, seen, now);
    learn::correct_model(policy, observation, &mut next, (&view, now));
    let (action, desired) = decide(policy, observation, &mut next, &view, now);
    let (record, judged) = keep_record(policy, observation, &mut next, (&view, action, desired, now));
    let explanation = report::explain(policy, observation, &mut next, (&view, action, desired, now));
    next.control.previous = Some(desired);
    next.control.held = match action {
        Action::Hold { reason } => Some(reason),
        Action::Change { .. } => None,
    };
    let recommended = view.recommended(policy, observation, desired);
    Decision { action, desired, recommended, state: next, record, judged, explanation }
}

/// Whether something keeps the planner from steering at all.
fn gate(policy: &Policy, observation: &Observation, state: &State, view: &View) -> Option<HoldReason> {
    let modes = [policy.replicas.mode, policy.batch.mode, policy.cache.mode];
    let reason = if policy.paused {
        HoldReason::Paused
    } else if observation.other_manager {
        HoldReason::OtherManager
    } else if !modes.contains(&Mode::Auto) {
        if modes.contains(&Mode::Recommend) { HoldReason::ModeRecommend } else { HoldReason::ModeOff }
    } else if state.last_live.is_none() {
        HoldReason::NoData
    } else if view.seen.sampled == 0 || view.seen.coverage() < COVERAGE_MIN {
        HoldReason::Stale
    } else if view.choice.is_none() {
        HoldReason::CurveUnknown
    } else {
        return None;
    };
    Some(reason)
}

/// The action and the knobs.
fn decide(
    policy: &Policy,
    observation: &Observation,
    state: &mut State,
    view: &View,
    now: Timestamp,
) -> (Action, Knobs) {
    let current = observation.current;
    let (proposed, reason, trigger) = match (gate(policy, observation, state, view), &view.choice) {
        (Some(HoldReason::Paused), _) => return (Action::Hold { reason: HoldReason::Paused }, current),
        (Some(HoldReason::OtherManager), _) => return (Action::Hold { reason: HoldReason::OtherManager }, current),
        (Some(HoldReason::Stale), choice) => {
            state.control.lose_sight();
            (blind(policy, state, (view, choice.as_ref()), current, now), HoldReason::Stale, Trigger::Blind)
        }
        (Some(reason), _) => (previous(policy, state, current, now), reason, Trigger::Policy),
        (None, Some(choice)) if view.seen.ticked => {
            let tick = tick(policy, observation, state, (view, choice, now));
            let step = state.control.step(&view.bounds, observation, choice, tick);
            let more = step.knobs.replicas > current.replicas;
            let trigger = view.raised.filter(|_| more).unwrap_or(step.trigger);
            (step.knobs, settled(observation, view, step.barred), trigger)
        }
        (None, _) => (
            state.control.previous.unwrap_or(current),
            state.control.held.unwrap_or(HoldReason::Settled),
            Trigger::Policy,
        ),
    };
    let mut desired = control::restrain(policy, &current, proposed);
    let spare_s = policy
        .targets
        .api
        .and(view.model.budget_s)
        .zip(view.model.times.upper(view.known(desired.max_batch_size.get()), policy.quantile()));
    let found = view.choice.as_ref().map(|choice| choice.infeasible.is_none());
    let feasible = state.feasibility.take(found, now.get());
    let wait_s = spare_s.filter(|_| feasible).map(|(budget_s, batch_s)| budget_s - batch_s);
    desired.deadline_millis = control::deadline_millis(policy, &current, wait_s);
    if desired == current {
        return (Action::Hold { reason }, desired);
    }
    let repeated = state.control.previous == Some(desired);
    (if repeated { Action::Hold { reason: HoldReason::Pending } } else { Action::Change { trigger } }, desired)
}

/// What the last call answered; without one, what is there. Replicas never below what is there, for this is not a
/// decision to shrink, nor below what a schedule asks for, which no metric has to confirm; as fast as pods may come.
fn previous(policy: &Policy, state: &State, current: Knobs, now: Timestamp) -> Knobs {
    let previous = state.control.previous.unwrap_or(current);
    let floor = policy.schedule_floor.min(policy.replicas.max);
    let wanted = previous.replicas.max(floor);
    let allowed = state.control.limit_up(policy, current.replicas.get(), wanted.get(), now.get());
    Knobs { replicas: Replicas::new(allowed), ..previous }
}

/// Knobs without sight: as they are, or more. Pods that report tell of those that do not, for requests are balanced: as
/// many as the whole would need at their rate. After [`BLIND_S`] without any, enough pods for the past peak.
fn blind(
    policy: &Policy,
    state: &mut State,
    (view, choice): (&View, Option<&Choice>),
    current: Knobs,
    now: Timestamp,
) -> Knobs {
    let held = previous(policy, state, current, now);
    let long = state.last_live.is_some_and(|last| now.since(last) >= BLIND_S);
    let Some(choice) = choice else { return held };
    let telling = view.seen.sampled > 0 && view.seen.sampled.saturating_mul(TELLING) >= view.seen.ready;
    let wanted = if telling && view.seen.ticked {
        choice.replicas
    } else if long {
        view.model.pods_for(view.known(choice.batch.get()), state.arrivals.peak()).unwrap_or(0)
    } else {
        0
    };
    let wanted = state.control.limit_up(policy, current.replicas.get(), wanted, now.get());
    let replicas = policy.replicas.clamp(held.replicas.max(Replicas::new(wanted)));
    Knobs { replicas, ..held }
}

fn tick(
    policy: &Policy,
    observation: &Observation,
    state: &State,
    (view, choice, now): (&View, &Choice, Timestamp),
) -> Tick {
    let carried = |rate: f64| {
        let pods = view.model.pods_for(view.known(choice.batch.get()), rate).unwrap_or(choice.replicas);
        policy.replicas.clamp(Replicas::new(pods)).get().max(policy.schedule_floor.get().min(policy.replicas.max.get()))
    };
    let silent = f64::from(view.seen.ready - view.seen.live) * choice.pod.saturation;
    let plan = view.forecast.plan.get() * (1.0 - view.hit_ratio);
    // "More pods do not help" is not to be believed of pods that are short of CPU: none goes on its strength.
    let misled = choice.infeasible == Some(ConstraintKind::ApiLatency) && view.sums.short_of_cpu();
    let kept = if misled { view.seen.ready } else { 0 };
    let without_backlog = plan - backlog_rate(view.forecast.backlog) * (1.0 - view.hit_ratio);
    let lasting = carried(state.arrivals.margin(policy.tick_s()) * without_backlog + silent);
    let backlog = carried(without_backlog) < choice.replicas && view.raised.is_none();
    // Where requests find their pods at random, some wait at any moment: only more than the target endures is a queue.
    let waits_s = view.forecast.backlog / (choice.pod.saturation * f64::from(view.seen.ready)).max(1e-9);
    let unsure = plan > 0.0 && !state.curve.sure_of_any(view.known(choice.batch.get()));
    let endured_s = policy.targets.api.map_or(policy.overload.queue_timeout, |target| target.threshold).get();
    Tick {
        now,
        // A backlog is worked off once: it is no need that a lower one must outlast.
        need_to_shrink: if backlog { lasting } else { lasting.max(choice.replicas) }.max(kept),
        backlog,
        startup_s: view.startup_s,
        ticks: state.arrivals.ticks,
        frozen: observation.rolling
            || unsure
            || waits_s > endured_s
            || (choice.needed.is_some() && state.burn.burning(policy)),
    }
}

/// Why a tick without a change is one.
fn settled(observation: &Observation, view: &View, barred: Option<HoldReason>) -> HoldReason {
    let coming = view.seen.ready < observation.current.replicas.get();
    barred.unwrap_or(if coming { HoldReason::Pending } else { HoldReason::Settled })
}

/// Opens a record for a change; closes the one before when its outcome is known.
fn keep_record(
    policy: &Policy,
    observation: &Observation,
    state: &mut State,
    (view, action, desired, now): (&View, Action, Knobs, Timestamp),
) -> (Option<Record>, Vec<Record>) {
    let level = view.forecast.level.get();
    let changed = matches!(action, Action::Change { .. });
    let actual = view.measure(&observation.current);
    // A window that begins before the new pods serve would measure the load, not the change.
    let after_s = view.startup_s + policy.window_s();
    let mut open = state.open.take();
    let judged = outcome::close(&mut open, actual, level, (changed, policy.revision), (now, after_s));
    let hold_s = state.control.hold_s(policy, view.startup_s);
    for record in &judged {
        state.guard.judged(policy, record, hold_s, now.get());
    }
    let Action::Change { trigger } = action else {
        state.open = open;
        return (None, judged);
    };
    let from = observation.current;
    state.control.changed(&from, &desired, now.get());
    state.guard.changed(from, &desired, now.get());
    let record = Record {
        id: whole_seconds_since_epoch(now),
        time: now,
        trigger,
        from,
        to: desired,
        reason: reason::change(view.facts(policy, state), trigger, &from, &desired),
        constraints: view.choice.as_ref().map(|choice| choice.constraints.clone()).unwrap_or_default(),
        predicted: view.expect(state, (&from, &desired)),
        actual: None,
        verdict: None,
    };
    state.open =
        Some(Open { record: record.clone(), level, overloaded: view.overloaded(&from), revision: policy.revision });
    (Some(record), judged)
}
