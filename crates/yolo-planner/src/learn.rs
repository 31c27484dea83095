//! What a tick teaches about forecast and model: whether pods were short, and whether latency is as expected.

use crate::burn::MINUTE_S;
use crate::capacity::{self, Model};
use crate::feedback::{self, Measured};
use crate::intake::Seen;
use crate::observation::{Observation, Signal};
use crate::policy::{Margin, Policy};
use crate::state::State;
use crate::units::{Timestamp, real};
use crate::view::View;

/// Share of the ready pods' best rate, and batches waiting at each of them, beyond which pods are short (control.md §5).
const SHORT_SHARE: f64 = 0.99;
const SHORT_BATCHES: f64 = 2.0;

/// Moves the level of the forecasts' bound: pods were short if more came than they can serve, or too many waited, or some
/// were refused (control.md §5, miss); and while the budget burns, half of the errors that were allowed are.
///
/// Where what would be late is refused, pods were short in the minutes that the target calls bad, which is what the budget
/// counts: a refused image here and there is no miss, and a burst of half a minute spoils one minute or two.
pub(crate) fn adapt_bound(
    policy: &Policy,
    observation: &Observation,
    state: &mut State,
    (seen, now): (&Seen, Timestamp),
) {
    let minute = state.burn.advance(policy, now);
    let burning = minute == Some(true) && state.burn.burning(policy);
    if policy.margin != Margin::Adaptive {
        return;
    }
    if burning {
        state.forecasts.bound.tighten();
    }
    let budget = policy.targets.budget.get();
    if capacity::sheds(policy) {
        if let Some(bad) = minute {
            state.forecasts.bound.adapt(bad, budget, MINUTE_S / policy.tick_s());
        }
        return;
    }
    if !seen.ticked {
        return;
    }
    let model = Model::new(policy, state, seen, 0.0);
    let batch = observation.current.max_batch_size.get();
    let Some(pod) = model.pod_regardless_of_latency(batch.min(model.times.largest())) else { return };
    let (ready, missed) = (f64::from(seen.ready), state.window.sums().missed());
    let short = state.arrivals.pair() * missed > SHORT_SHARE * ready * pod.saturation;
    let waiting = seen.queued > SHORT_BATCHES * f64::from(batch) * seen.workers * ready;
    state.forecasts.bound.adapt(short || waiting || seen.shed > 0.0, budget, 1.0);
}

/// Compares the window's latency with what the model says of it, where the two can be compared.
pub(crate) fn correct_model(
    policy: &Policy,
    observation: &Observation,
    state: &mut State,
    (view, now): (&View, Timestamp),
) {
    if !view.seen.ticked || !state.feedback.due(now.get()) || !comparable(policy, observation, state, (view, now)) {
        return;
    }
    if let Some(measured) = measure(policy, observation, state, (view, now)) {
        state.feedback.learn(policy, measured);
    }
}

/// Whether the window holds one fleet in one state, seen whole.
fn comparable(policy: &Policy, observation: &Observation, state: &State, (view, now): (&View, Timestamp)) -> bool {
    let (seen, sums) = (&view.seen, &view.sums);
    let settled_s = view.startup_s + policy.window_s();
    let whole = seen.sampled == seen.ready && seen.ready == observation.current.replicas.get() && !observation.rolling;
    if !whole || state.control.changed_within(settled_s, now) || sums.short_of_cpu() || sums.pod_s <= 0.0 {
        return false;
    }
    let per_pod_s = real(1) / sums.pod_s;
    let latency_s = sums.api.mean().unwrap_or(0.0);
    let ready = f64::from(seen.ready);
    let little =
        feedback::consistent(sums.inflight_s * per_pod_s * ready, sums.arrivals * per_pod_s * ready, latency_s);
    let entered = match &observation.entry {
        Signal::Live { value, .. } if value.span.get() > 0.0 => {
            feedback::same_arrivals(view.forecast.level.get(), real(value.arrivals) / value.span.get())
        }
        _ => true,
    };
    // The quantile of a window half quiet and half busy is the busy half's, its rate is of neither.
    let steady = feedback::same_arrivals(sums.arrivals * per_pod_s * ready, view.forecast.level.get());
    little && entered && steady
}

fn measure(
    policy: &Policy,
    observation: &Observation,
    state: &State,
    (view, now): (&View, Timestamp),
) -> Option<Measured> {
    let sums = &view.sums;
    let overhead_s = state.overhead_s.unwrap_or(0.0);
    // Hits answer at once: the slow answers are a larger share of those that waited for the engine.
    let slow = ((1.0 - policy.quantile()) / sums.missed().max(1e-3)).min(0.5);
    let rate = sums.arrivals / sums.pod_s * f64::from(view.seen.ready) * sums.missed();
    let batch = view.known(observation.current.max_batch_size.get());
    let delay_s = real(observation.current.max_queue_delay_micros) / 1e6;
    let waits_s = |rate: f64| Some(view.model.latencies(batch, view.seen.ready, rate, delay_s)?.quantile(1.0 - slow));
    let saturation = view.model.pod_regardless_of_latency(batch)?.saturation * f64::from(view.seen.ready);
    let expected_s = waits_s(rate)?;
    // Beyond saturation there is no steady latency; a figure far above says as much.
    let probe_s = waits_s(rate * feedback::probe()).unwrap_or(2.0 * expected_s);
    Some(Measured {
        now_s: now.get(),
        // Where nobody asked nothing contradicts.
        latency_s: sums.api.quantile(policy.quantile()).map_or(expected_s + overhead_s, |value| value.seconds().get()),
        expected_s: expected_s + overhead_s,
        overhead_s,
        probe_s,
        utilization: rate / saturation.max(1e-9),
        answers: sums.api.count(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observation::{Knobs, Sample};
    use crate::policy::{Overload, OverloadPolicy};

    /// The bound's level after a minute of 100 answers in time, but for so many that were refused.
    fn level(refused: u64) -> f64 {
        let overload = Overload { policy: OverloadPolicy::Shed, ..Overload::default() };
        let policy = Policy { overload, ..Policy::default() };
        let (mut state, observation) = (State::default(), Observation::new(Knobs::initial(&policy)));
        let edges = vec![crate::units::Seconds::millis(10)];
        let answered = 100 - refused;
        let api = crate::Histogram::from_cumulative(edges, &[answered, answered]).unwrap();
        let seen = Seen::default();
        for second in 0..=12 {
            if second == 1 {
                state.burn.add(&policy, &Sample { shed: refused, api: api.clone(), ..Sample::default() });
            }
            adapt_bound(&policy, &observation, &mut state, (&seen, Timestamp::whole(5 * second)));
        }
        state.forecasts.bound.level()
    }

    #[test]
    fn pods_that_shed_were_short_in_the_minutes_that_the_target_calls_bad() {
        let start = State::default().forecasts.bound.level();
        assert!((level(5) - start - 12.0 * 0.004 * 0.01).abs() < 1e-9, "5 % may be refused");
        assert!((start - level(6) - 12.0 * 0.004 * 0.99).abs() < 1e-9, "{}", level(6));
    }
}
