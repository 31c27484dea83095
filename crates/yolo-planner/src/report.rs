//! The explanation of a decision, as data.

use crate::choose::{self, rate, ratio};
use crate::conditions;
use crate::decision::{Action, Decision, HoldReason};
use crate::diagnose::{self, Case};
use crate::explain::{Capacity, TargetName, TargetRow, Verdict};
use crate::explain::{Condition, ConditionReason, Conditions, Explanation, Forecast, Load, Tristate};
use crate::observation::{Knobs, Observation};
use crate::policy::Policy;
use crate::raise;
use crate::reason;
use crate::relax;
use crate::state::State;
use crate::targets::{self, Evidence};
use crate::units::{Bytes, Timestamp};
use crate::view::{self, View};

/// Explains `action` and `desired`; notes in `state` since when each verdict holds.
pub(crate) fn explain(
    policy: &Policy,
    observation: &Observation,
    state: &mut State,
    (view, action, desired, now): (&View, Action, Knobs, Timestamp),
) -> Explanation {
    let current = observation.current;
    let choice = view.choice.as_ref();
    let pinned = choose::pinned(policy, &current);
    let metrics_available = conditions::metrics_available(&view.seen, state);
    let metrics = metrics_available.status == Tristate::True;
    let relaxations = choice.map_or_else(Vec::new, |choice| {
        relax::relaxations(&pinned, &view.model, state, choice, view::required_rate(policy, view))
    });
    let conflict = choice.and_then(|choice| relax::conflict(policy, &view.model, choice));
    let targets = rows(policy, observation, state, (view, metrics, now));
    let targets_met = state.verdicts.targets_met(policy, &targets, (!metrics).then_some(metrics_available.reason), now);
    let (missed, lone) = (|row: &TargetRow| row.verdict == Verdict::Missed, view.lone_is_slow(policy));
    let (bottlenecks, advice) = if metrics {
        let found = diagnose::find(Case {
            policy,
            observation,
            state,
            seen: &view.seen,
            minute: &state.diagnosis.watch.last(),
            model: &view.model,
            choice,
            engine_rate: view.engine_rate(),
            hit_ratio: view.hit_ratio,
            level: view.forecast.level.get(),
            latency_s: view.sums.api.mean().unwrap_or(0.0),
            overhead_s: view.sums.overhead.mean().unwrap_or(0.0),
            late: targets.iter().any(|row| missed(row) && row.name == TargetName::ApiLatency),
            startup_s: view.startup_s,
            now,
        });
        let missed = targets.iter().any(missed);
        state.diagnosis.judge(found, view.seen.minute_ended, missed)
    } else {
        diagnose::blind()
    };
    Explanation {
        reason: sentence(view.facts(policy, state), action, (&current, &desired)),
        load: load(policy, observation, view),
        forecast: view.forecast,
        capacity: view::capacity(state, view, observation, &desired),
        constraints: choice.map(|choice| choice.constraints.clone()).unwrap_or_default(),
        best3: choose::best3(
            policy,
            &view.model,
            state,
            (&current, &desired),
            (view.forecast.plan.get(), view.startup_s / state.control.hold_s(policy, view.startup_s).max(1.0)),
        ),
        targets_summary: targets::summary(&targets),
        conditions: Conditions {
            targets_met,
            targets_feasible: conditions::targets_feasible(&pinned, (choice, lone), &relaxations, conflict.as_ref()),
            metrics_available,
            scaling_active: conditions::scaling_active(policy, observation),
            scaling_limited: conditions::scaling_limited(
                &pinned,
                &view.seen,
                choice,
                raise::fallback(state, now.get()),
            ),
        },
        relaxations,
        conflict,
        targets,
        bottlenecks,
        advice,
    }
}

fn sentence(facts: Option<reason::Facts>, action: Action, (current, desired): (&Knobs, &Knobs)) -> String {
    match action {
        Action::Change { trigger } => reason::change(facts, trigger, current, desired),
        Action::Hold { reason } => reason::hold(reason, facts, current),
    }
}

fn rows(
    policy: &Policy,
    observation: &Observation,
    state: &mut State,
    (view, metrics, now): (&View, bool, Timestamp),
) -> Vec<TargetRow> {
    let current = observation.current;
    let batch = current.max_batch_size.get();
    let q = policy.targets.inference.map_or(0.95, crate::policy::LatencyTarget::at);
    let ready = view.pod_now(batch).map(|pod| pod.carried * f64::from(view.seen.ready));
    let fewest = view.choice.as_ref().map_or_else(|| policy.replicas.min.get(), |choice| choice.replicas);
    let evidence = Evidence {
        sums: metrics.then_some(&view.sums),
        inference_s: view.model.times.upper(view.known(batch), q),
        // Only where nothing was measured: a figure of the chain is not free.
        api_s: (view.sums.api.count() == 0).then(|| view::expected_api_s(policy, state, view, &current)).flatten(),
        ready_rate: ready,
        max_rate: view::reachable_rate(&choose::pinned(policy, &current), view),
        level: view.forecast.level.get(),
        at_floor: current.replicas.get() <= fewest,
    };
    state.verdicts.rows(policy, &evidence, now)
}

fn load(policy: &Policy, observation: &Observation, view: &View) -> Load {
    let sums = &view.sums;
    let shed = sums.shed / sums.arrivals.max(1.0);
    let cached = observation.current.cache_bytes > Bytes::default();
    Load {
        images_per_second: view.forecast.level,
        shed_per_second: rate(view.forecast.level.get() * shed.min(1.0)),
        hit_ratio: cached.then(|| ratio(sums.hits / sums.lookups.max(1.0))),
        p95: sums.api.quantile(policy.quantile()).map(crate::histogram::Quantile::seconds),
    }
}

/// The answer to time that does not advance: nothing moves, nothing is remembered.
pub(crate) fn backwards(policy: &Policy, observation: &Observation, state: &State) -> Decision {
    let current = observation.current;
    let hands_off = policy.paused || observation.other_manager;
    let desired = if hands_off { current } else { crate::control::restrain(policy, &current, current) };
    let reason = reason::hold(HoldReason::NonFinite, None, &current);
    let unknown = |reason_| Condition { status: Tristate::Unknown, reason: reason_, message: reason.clone() };
    let conditions = Conditions {
        targets_met: unknown(ConditionReason::NoData),
        targets_feasible: unknown(ConditionReason::NoData),
        metrics_available: unknown(ConditionReason::NoData),
        scaling_active: conditions::scaling_active(policy, observation),
        scaling_limited: unknown(ConditionReason::NoData),
    };
    let explanation = Explanation {
        reason: reason.clone(),
        load: Load::default(),
        forecast: Forecast::default(),
        capacity: Capacity::default(),
        constraints: Vec::new(),
        best3: Vec::new(),
        relaxations: Vec::new(),
        conflict: None,
        targets: Vec::new(),
        targets_summary: "0/0".to_owned(),
        bottlenecks: Vec::new(),
        advice: Vec::new(),
        conditions,
    };
    Decision {
        action: Action::Hold { reason: HoldReason::NonFinite },
        desired,
        recommended: desired,
        state: state.clone(),
        record: None,
        judged: Vec::new(),
        explanation,
    }
}
