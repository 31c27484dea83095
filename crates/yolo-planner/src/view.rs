//! What one call concludes from policy, observation and state, before anything is decided.

use crate::arrivals::backlog_rate;
use crate::capacity::{self, Model, PodRate};
use crate::choose::{self, Choice, Load, choose, pinned, rate, ratio};
use crate::decision::{Outcome, Trigger};
use crate::explain::{Capacity, Forecast};
use crate::forecast::horizon_s;
use crate::intake::Seen;
use crate::observation::{Knobs, Observation};
use crate::policy::{LatencyTarget, Margin, Mode, Policy};
use crate::raise::{self, Rates, raise};
use crate::reason::Facts;
use crate::state::State;
use crate::units::{Bytes, Rate, Ratio, Replicas, Seconds, Timestamp, real, whole_bytes};
use crate::window::Sums;

/// Answers from which the overhead's quantile is one.
const OVERHEAD_ANSWERS: u64 = 20;
/// Windows of overload after which most of a higher overhead is believed: by then it may well be one.
const OVERLOAD_WINDOWS: f64 = 10.0;
/// How many times what the present batch carries another one must carry to be worth a change that saves no pod: a size
/// counts as known from a doubt of 10 % on.
const ROOM_MIN: f64 = 1.1;
/// Longest queue wait that an overload adds to the backlog, seconds of arrivals (control.md §5).
const OVERLOAD_S: f64 = 0.5;

/// Everything that one call concludes from policy, observation and state.
pub(crate) struct View {
    pub(crate) seen: Seen,
    pub(crate) model: Model,
    pub(crate) forecast: Forecast,
    /// Share of the images that the cache surely answers.
    pub(crate) hit_ratio: f64,
    /// The cheapest setting of the knobs that may move.
    pub(crate) choice: Option<Choice>,
    /// What made it more pods than the planned arrivals need.
    pub(crate) raised: Option<Trigger>,
    /// The policy with the ranges that pins leave.
    pub(crate) bounds: Policy,
    /// The cheapest setting if all might.
    free: Option<Choice>,
    pub(crate) sums: Sums,
    pub(crate) startup_s: f64,
}

impl View {
    pub(crate) fn new(
        policy: &Policy,
        observation: &Observation,
        state: &mut State,
        seen: Seen,
        now: Timestamp,
    ) -> Self {
        let startup_s = state.startup.expected_s(now);
        let hit_ratio = surely_hit(policy, observation, state, &seen);
        capacity::refresh(policy, state, (&seen, hit_ratio), &observation.current);
        let model = Model::new(policy, state, &seen, hit_ratio);
        let forecast = forecast(policy, observation, state, (&model, &seen, startup_s));
        let load = Load { plan: forecast.plan.get(), hit_ratio };
        let current = &observation.current;
        let bounds = state.guard.narrow(policy, current, (raise::fallback(state, now.get()), now.get()));
        let level = forecast.level.get() * (1.0 - hit_ratio);
        let (planned, ready) = (choose::required_rate(policy, load), seen.ready);
        let rates = Rates { planned, level, ready, tasks: seen.tasks };
        let chosen = |policy: &Policy| {
            let choice = choose(policy, &model, state, current, load)?;
            Some(raise(policy, state, &model, (choice, rates, now.get())))
        };
        let free = chosen(&bounds).map(|(choice, _)| choice);
        let hold = (state.control.hold_s(policy, startup_s), now.get());
        let (choice, raised) = steady(&pinned(&bounds, current), current, chosen)
            .map(|(best, kept)| {
                let Some(kept) = kept else { return best };
                let batches = (kept.0.batch, if worth(&best.0, &kept.0) { best.0.batch } else { kept.0.batch });
                if state.control.batch_stays_better(batches, hold) { best } else { kept }
            })
            .unzip();
        let (sums, raised) = (state.window.sums(), raised.flatten());
        Self { seen, model, forecast, hit_ratio, choice, raised, bounds, free, sums, startup_s }
    }

    /// Images/s that reach the engines.
    pub(crate) fn engine_rate(&self) -> f64 {
        self.forecast.level.get() * (1.0 - self.hit_ratio)
    }

    /// A batch size as far as the curve reaches: larger batches have not formed.
    pub(crate) fn known(&self, batch: u32) -> u32 {
        batch.min(self.model.times.largest())
    }

    /// Whether one image alone takes longer than the inference target allows.
    pub(crate) fn lone_is_slow(&self, policy: &Policy) -> bool {
        let limit_s = policy.targets.inference.map_or(f64::INFINITY, LatencyTarget::limit_s);
        choose::upper_s(policy, &self.model, 1).is_some_and(|upper_s| upper_s > limit_s)
    }

    /// What one of the ready pods carries with batches up to `batch`.
    pub(crate) fn pod_now(&self, batch: u32) -> Option<PodRate> {
        self.model.pod(self.known(batch), self.seen.ready)
    }

    /// Whether more arrives than the ready pods, set to `current`, carry within the targets, or some was refused.
    pub(crate) fn overloaded(&self, current: &Knobs) -> bool {
        let carried = self.pod_now(current.max_batch_size.get()).map(|pod| pod.carried * f64::from(self.seen.ready));
        self.seen.shed > 0.0 || carried.is_some_and(|carried| self.engine_rate() > carried)
    }

    /// The knobs as they would be if all were in Auto: as desired where they are.
    pub(crate) fn recommended(&self, policy: &Policy, observation: &Observation, desired: Knobs) -> Knobs {
        let mut knobs = desired;
        let Some(free) = &self.free else { return knobs };
        let hands_off = policy.paused || observation.other_manager;
        if hands_off || policy.replicas.mode != Mode::Auto {
            knobs.replicas = Replicas::new(free.replicas);
        }
        if hands_off || policy.batch.mode != Mode::Auto {
            knobs.max_batch_size = free.batch;
        }
        if hands_off || policy.cache.mode != Mode::Auto {
            knobs.cache_bytes = free.cache;
        }
        knobs
    }

    pub(crate) fn facts<'a>(&'a self, policy: &'a Policy, state: &State) -> Option<Facts<'a>> {
        let hold_s = state.control.hold_s(policy, self.startup_s);
        let now_s = state.last.unwrap_or_default().get();
        let unbalanced = |choice: &Choice| {
            let shares = (self.known(choice.batch.get()), self.engine_rate(), self.seen.ready);
            choice.needed.is_some()
                && state.burn.burning(policy)
                && raise::imbalance_explains(state, &self.model, shares)
        };
        self.choice.as_ref().map(|choice| Facts {
            unbalanced: unbalanced(choice),
            policy,
            model: &self.model,
            choice,
            forecast: &self.forecast,
            hit_ratio: self.hit_ratio,
            hold_s: state.control.patience_s(hold_s, choice.replicas, now_s),
            seen: &self.seen,
            peak: state.arrivals.peak(),
            startup_s: self.startup_s,
            ticks: state.arrivals.ticks,
        })
    }

    /// What the model expects of a change `from` some knobs `to` others at the arrivals of now.
    ///
    /// What is measured afterwards are all answers, hits among them: the `q`-quantile of those is a lower one of what waits for
    /// the engine, 1 - (1 - q)/(1 - h), and where hits alone are as many none waits (control.md §4, composition).
    pub(crate) fn expect(&self, state: &State, (from, to): (&Knobs, &Knobs)) -> Outcome {
        let (batch, pods) = (self.known(to.max_batch_size.get()), to.replicas.get());
        let hits = self.expected_hits(state, from.cache_bytes, to.cache_bytes);
        let rate = self.forecast.level.get() * (1.0 - hits);
        let overhead_s = state.overhead_s.unwrap_or(0.0);
        let latencies = self.model.latencies(batch, pods, rate, delay_s(to));
        let latency = |q: f64| {
            let slow = (1.0 - q) / (1.0 - hits).max(1e-9);
            let engine_s = if slow < 1.0 { latencies.as_ref()?.quantile(1.0 - slow) } else { 0.0 };
            Seconds::try_from(engine_s + overhead_s).ok()
        };
        let (capacity, utilization) = self.load_of(to, rate);
        Outcome {
            p50: latency(0.5),
            p95: latency(0.95),
            capacity,
            rss: state.memory.bytes(batch, to.cache_bytes).map_or_else(Bytes::default, whole_bytes),
            utilization,
            hit_ratio: ratio(hits),
        }
    }

    /// What pods set to `knobs` carry, and the share of their saturation rate that `rate` images/s at the engines are.
    fn load_of(&self, knobs: &Knobs, rate: f64) -> (Rate, Ratio) {
        let pods = knobs.replicas.get();
        let pod = self.model.pod(self.known(knobs.max_batch_size.get()), pods);
        let fleet = |each: f64| each * f64::from(pods);
        let utilization = pod.map_or(0.0, |pod| rate / fleet(pod.saturation).max(1e-9));
        (choose::rate(pod.map_or(0.0, |pod| fleet(pod.carried))), ratio(utilization))
    }

    /// Share of the images that a cache of `bytes` answers: as measured where it stays, else as the ghosts see it. Unlike
    /// what pods may be ordered on, neither capped nor halved by pods whose cache is cold: a window later it is not.
    fn expected_hits(&self, state: &State, now: Bytes, bytes: Bytes) -> f64 {
        if bytes == now {
            return if now == Bytes::default() { 0.0 } else { state.hits.measured() };
        }
        self.choice.as_ref().filter(|choice| choice.cache == bytes).map_or(0.0, |choice| choice.cache_hits)
    }

    /// What is measured now.
    pub(crate) fn measure(&self, current: &Knobs) -> Outcome {
        let quantile = |q: f64| self.sums.api.quantile(q).map(crate::histogram::Quantile::seconds);
        let hit_ratio = ratio(1.0 - self.sums.missed());
        let (capacity, utilization) = self.load_of(current, self.forecast.level.get() * self.sums.missed());
        Outcome { p50: quantile(0.5), p95: quantile(0.95), capacity, rss: self.sums.rss, utilization, hit_ratio }
    }
}

/// A choice, and what made it more pods than the planned arrivals need.
type Chosen = (Choice, Option<Trigger>);

/// The cheapest setting, and the one with the present batch if that would do, too.
fn steady(
    policy: &Policy,
    current: &Knobs,
    chosen: impl Fn(&Policy) -> Option<Chosen>,
) -> Option<(Chosen, Option<Chosen>)> {
    let best = chosen(policy)?;
    let batch = policy.batch.clamp(current.max_batch_size);
    if best.0.batch == batch {
        return Some((best.clone(), Some(best)));
    }
    let mut kept = policy.clone();
    (kept.batch.min, kept.batch.max) = (batch, batch);
    let pods = |choice: &Choice| choice.needed.unwrap_or(u32::MAX);
    let does = |kept: &Choice| {
        let reached =
            kept.infeasible.is_none() || (kept.infeasible == best.0.infeasible && pods(kept) <= pods(&best.0));
        reached && kept.replicas <= best.0.replicas.max(current.replicas.get())
    };
    let kept = chosen(&kept).filter(|(kept, _)| does(kept));
    Some((best, kept))
}

/// Whether another batch than the present one, which does, too, is worth a change: fewer pods, surely more room, or with
/// as many pods a smaller batch, which answers sooner (control.md §6, J and its ties).
fn worth(best: &Choice, kept: &Choice) -> bool {
    let roomier = best.pod.carried > ROOM_MIN * kept.pod.carried;
    best.replicas < kept.replicas || (best.replicas == kept.replicas && (best.batch < kept.batch || roomier))
}

/// Learns the overhead. In overload it holds waits that capacity explains, not overhead: a lower figure is believed at
/// once, a higher one so slowly that a busy minute does not make targets look out of reach, and never beyond the target.
pub(crate) fn learn_overhead(policy: &Policy, observation: &Observation, state: &mut State, seen: &Seen) {
    let sums = state.window.sums();
    let measured = sums.overhead.quantile(policy.quantile()).filter(|_| sums.overhead.count() >= OVERHEAD_ANSWERS);
    let Some(measured_s) = measured.map(|value| value.seconds().get()).filter(|_| seen.ticked) else { return };
    let model = Model::new(policy, state, seen, 0.0);
    let batch = observation.current.max_batch_size.get().min(model.times.largest());
    let carried = model.planned_at_most(batch).map_or(f64::MAX, |each| each * f64::from(seen.ready));
    let overloaded = state.arrivals.level(policy.tick_s()) * sums.missed() > carried || sums.short_of_cpu();
    let known_s = state.overhead_s.unwrap_or(0.0);
    let learned_s = if overloaded && measured_s > known_s {
        let limit_s = policy.targets.api.map_or(f64::INFINITY, LatencyTarget::limit_s);
        let gain = policy.tick_s() / (OVERLOAD_WINDOWS * policy.window_s());
        known_s + gain.min(1.0) * (measured_s.min(limit_s) - known_s).max(0.0)
    } else {
        measured_s
    };
    state.overhead_s = Some(learned_s);
}

/// Share of the arrivals that the cache surely answers: what is measured, but no more than the policy trusts, and
/// nothing on pods whose cache is still cold (control.md §6, h̃).
fn surely_hit(policy: &Policy, observation: &Observation, state: &State, seen: &Seen) -> f64 {
    if observation.rolling || observation.current.cache_bytes == Bytes::default() {
        return 0.0;
    }
    let warm = f64::from(seen.warm) / f64::from(seen.ready).max(1.0);
    (state.hits.measured() * warm).min(policy.cache_credit.get()).clamp(0.0, 0.99)
}

/// Arrivals now, and the rate that pods are ordered for.
fn forecast(
    policy: &Policy,
    observation: &Observation,
    state: &State,
    (model, seen, startup_s): (&Model, &Seen, f64),
) -> Forecast {
    let tick_s = policy.tick_s();
    let level = state.arrivals.level(tick_s);
    let batch = observation.current.max_batch_size.get();
    let ready = f64::from(seen.ready);
    let running = f64::from(batch) * seen.workers * ready;
    let saturation =
        model.pod_regardless_of_latency(batch.min(model.times.largest())).map(|pod| pod.saturation * ready);
    // What the cache answers waits for no engine.
    let engine = level * (1.0 - state.hits.measured());
    let excess = saturation.map_or(0.0, |most| (engine - most).max(0.0));
    // What waits because ordered pods do not come would order more that do not come either (control.md §8).
    let counted = if seen.stuck > 0 { 0.0 } else { 1.0 };
    let backlog = counted * ((seen.queued - running).max(0.0) + (excess * startup_s).min(OVERLOAD_S * engine));
    let (newest, bound) = (state.forecasts.newest(), &state.forecasts.bound);
    let factor = if policy.margin == Margin::None { 1.0 } else { bound.factor() };
    let plan = state.arrivals.plan(level, newest.rate.max(level), factor);
    Forecast {
        level: rate(level),
        expert: newest.expert,
        q: ratio(factor),
        a: ratio(bound.level()),
        backlog,
        plan: rate(plan + backlog_rate(backlog)),
        horizon: Seconds::try_from(horizon_s(policy, startup_s)).unwrap_or_default(),
    }
}

/// What the pods can carry, as the explanation shows it.
pub(crate) fn capacity(state: &State, view: &View, observation: &Observation, desired: &Knobs) -> Capacity {
    let Some(pod) = view.model.pod(view.known(desired.max_batch_size.get()), desired.replicas.get()) else {
        return Capacity { kappa: ratio(state.kappa()), ..Capacity::default() };
    };
    let ready = view.pod_now(observation.current.max_batch_size.get());
    Capacity {
        mu_sat: rate(pod.saturation),
        mu_star: rate(pod.carried),
        f_c: ratio(pod.share),
        kappa: ratio(state.kappa()),
        ready: rate(ready.map_or(0.0, |pod| pod.carried) * f64::from(view.seen.ready)),
        desired: rate(pod.carried * f64::from(desired.replicas.get())),
    }
}

/// The API target's figure for the present knobs: overhead, waiting and running, seconds.
pub(crate) fn expected_api_s(policy: &Policy, state: &State, view: &View, current: &Knobs) -> Option<f64> {
    let q = policy.targets.api.map(LatencyTarget::at)?;
    let (batch, pods) = (view.known(current.max_batch_size.get()), current.replicas.get().max(1));
    let latencies = view.model.latencies(batch, pods, view.engine_rate(), delay_s(current))?;
    Some(latencies.quantile(q) + state.overhead_s.unwrap_or(0.0))
}

/// How long the first image of a batch waits for others, seconds.
fn delay_s(knobs: &Knobs) -> f64 {
    real(knobs.max_queue_delay_micros) / 1e6
}

/// Images/s that the most pods would carry with the chosen batch.
///
/// `policy`: with the knobs that the planner does not move fixed.
pub(crate) fn reachable_rate(policy: &Policy, view: &View) -> Option<f64> {
    let max = policy.replicas.max.max(policy.replicas.min).get();
    let batch = view.known(view.choice.as_ref()?.batch.get());
    view.model.pod(batch, max).map(|pod| pod.carried * f64::from(max))
}

/// Images/s that the pods must carry, as a relaxation must know it.
pub(crate) fn required_rate(policy: &Policy, view: &View) -> f64 {
    choose::required_rate(policy, Load { plan: view.forecast.plan.get(), hit_ratio: view.hit_ratio })
}
