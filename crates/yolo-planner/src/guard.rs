//! What keeps the planner from doing harm with a model that is wrong: pins on knobs, back-off from changes that made it
//! worse, and an estimate that needs no model (control.md §7 and §8).

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::decision::{Record, RecordVerdict};
use crate::histogram::Quantile;
use crate::intake::Seen;
use crate::observation::{Knobs, Observation, Phase};
use crate::policy::{Knob, LatencyTarget, Mode, Policy};
use crate::units::{BatchSize, Bytes, Replicas, Timestamp, real};
use crate::window::Sums;

/// First length of a pin, and the length that doubling ends at.
const PIN_S: f64 = 3600.0;
const PIN_MAX_S: f64 = 8.0 * 3600.0;
/// For so long a scale-down that was undone makes the hold twice as long, and the model goes unused after two changes in
/// a row that made it worse.
const CAREFUL_S: f64 = 3600.0;
/// Changes for the worse, one after the other, that end the trust in the model.
const WORSE_MAX: u32 = 2;
/// Working set over the memory limit from which the kernel's kill is near.
const RSS_MAX: f64 = 0.9;
/// Between two steps down of the memory that a pod may use: a working set does not fall at once.
const MEMORY_EVERY_S: f64 = 300.0;
/// Pods that report other knobs than the current ones for so long run others (an unreadable document, a stuck mount); where
/// they are read rarely, for so many intervals.
const UNAPPLIED_S: f64 = 30.0;
const UNAPPLIED_SCRAPES: f64 = 3.0;
/// Answers from which a batch's quantile is one.
const ANSWERS_MIN: u64 = 20;

/// A knob kept at a value, or below it, for a while.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Pin<T> {
    value: T,
    /// Also lower values are allowed.
    ceiling: bool,
    until_s: f64,
}

impl<T: Copy + Ord> Pin<T> {
    const fn held(value: T) -> Self {
        Self { value, ceiling: false, until_s: f64::INFINITY }
    }

    /// Not above `value`, nor above what `old` still forbids.
    fn lowered(old: Option<Self>, value: T, until_s: f64, now_s: f64) -> Self {
        let live = old.filter(|old| old.ceiling && now_s < old.until_s);
        let (least, last_s) = live.map_or((value, until_s), |old| (old.value.min(value), old.until_s.max(until_s)));
        Self { value: least, ceiling: true, until_s: last_s }
    }

    /// At `value`, unless `old` still forbids it: what was killed for memory is no good value to return to.
    fn returned(old: Option<Self>, value: T, until_s: f64, now_s: f64) -> Self {
        match old {
            Some(old) if old.ceiling && now_s < old.until_s => Self::lowered(Some(old), value, until_s, now_s),
            _ => Self { value, ceiling: false, until_s },
        }
    }

    /// Whether a change for the worse is kept undone.
    fn returns(self, now_s: f64) -> bool {
        !self.ceiling && now_s < self.until_s
    }

    /// The range that the pin leaves of `knob`.
    fn narrow(pin: Option<Self>, knob: &mut Knob<T>, now_s: f64) {
        let Some(pin) = pin.filter(|pin| knob.mode == Mode::Auto && now_s < pin.until_s) else { return };
        let value = knob.clamp(pin.value);
        knob.max = value;
        if !pin.ceiling {
            knob.min = value;
        }
    }
}

/// What the guards remember.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Guard {
    batch: Option<Pin<BatchSize>>,
    cache: Option<Pin<Bytes>>,
    /// Pods that a scale-down for the worse left too few of.
    floor: Option<(u32, f64)>,
    /// Length of the next pin of a back-off.
    pin_s: f64,
    /// Batch and cache of the last change whose prediction held.
    confirmed: Option<Knobs>,
    worse_running: u32,
    careful_until_s: f64,
    distrust_until_s: f64,
    /// Knobs before the last change of batch or cache, and when that was.
    before: Option<(Knobs, f64)>,
    /// Batch before it was last raised, and when that was; none once it has gone back.
    #[serde(default)]
    raised: Option<(BatchSize, f64)>,
    unapplied_from_s: Option<f64>,
    /// Newest kill for memory that was answered.
    oom: Option<Timestamp>,
    /// When the memory that a pod may use was last lowered.
    memory_at_s: f64,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            batch: None,
            cache: None,
            floor: None,
            pin_s: PIN_S,
            confirmed: None,
            worse_running: 0,
            careful_until_s: 0.0,
            distrust_until_s: 0.0,
            before: None,
            raised: None,
            unapplied_from_s: None,
            oom: None,
            memory_at_s: 0.0,
        }
    }
}

impl Guard {
    /// Looks at what a call has seen; places pins.
    pub(crate) fn look(
        &mut self,
        policy: &Policy,
        observation: &Observation,
        (seen, sums): (&Seen, &Sums),
        now: Timestamp,
    ) {
        let now_s = now.get();
        self.applied(policy, observation, now_s);
        self.memory(policy, observation, seen, now);
        self.slow_batch(policy, &observation.current, sums, now_s);
    }

    /// From when on ready pods are taken to run other knobs than the live ones. A pod that cannot be read says nothing of its
    /// knobs.
    fn applied(&mut self, policy: &Policy, observation: &Observation, now_s: f64) {
        let told =
            observation.pods.iter().filter(|pod| pod.phase == Phase::Ready && pod.sample.live().is_some()).count();
        if usize::try_from(observation.applied_pods).is_ok_and(|applied| applied < told) {
            let patience_s = UNAPPLIED_S.max(UNAPPLIED_SCRAPES * policy.scrape.get());
            self.unapplied_from_s.get_or_insert(now_s + patience_s);
        } else {
            self.unapplied_from_s = None;
        }
    }

    /// A pod that was killed for memory, or is about to be: the cache goes first, then the batch.
    ///
    /// A working set counts as it is now: the window's peak was answered when it was seen.
    fn memory(&mut self, policy: &Policy, observation: &Observation, seen: &Seen, now: Timestamp) {
        let kills = observation.pods.iter().filter_map(|pod| pod.oom_killed).filter(|at| *at <= now);
        let newest = kills.reduce(|newest, at| if at > newest { at } else { newest });
        if self.oom.is_none()
            && let Some(killed) = newest.filter(|at| now.since(*at) < PIN_S)
        {
            // An earlier leader has answered it: what that has left stays as long as it would have held it.
            let (current, until_s) = (observation.current, killed.get() + PIN_S);
            self.cache = Some(Pin::lowered(self.cache, current.cache_bytes, until_s, now.get()));
            self.batch = Some(Pin::lowered(self.batch, current.max_batch_size, until_s, now.get()));
        }
        let known = *self.oom.get_or_insert(now);
        let newest = newest.filter(|at| *at > known).unwrap_or(known);
        let limit = real(policy.memory_limit.get());
        let full = limit > 0.0 && real(seen.rss.get()) > RSS_MAX * limit;
        let waited = now.get() - self.memory_at_s >= MEMORY_EVERY_S;
        if newest <= known && !(full && waited) {
            return;
        }
        (self.oom, self.memory_at_s) = (Some(newest), now.get());
        let (current, until_s) = (observation.current, now.get() + PIN_S);
        if policy.cache.mode == Mode::Auto && current.cache_bytes > policy.cache.min {
            let value = Bytes::new(current.cache_bytes.get() / 2).max(policy.cache.min);
            self.cache = Some(Pin::lowered(self.cache, value, until_s, now.get()));
        } else {
            let value = BatchSize::try_from(current.max_batch_size.get() / 2).unwrap_or(BatchSize::ONE);
            self.batch = Some(Pin::lowered(self.batch, value, until_s, now.get()));
        }
    }

    /// A batch that was raised and is too slow goes back, whatever its estimate says.
    fn slow_batch(&mut self, policy: &Policy, current: &Knobs, sums: &Sums, now_s: f64) {
        let Some((before, at_s)) = self.raised.filter(|(before, _)| *before < current.max_batch_size) else { return };
        let Some(target) = policy.targets.inference else { return };
        let whole_window = now_s - at_s >= policy.window_s() && now_s - at_s < PIN_S;
        let measured = sums.inference.quantile(target.at()).filter(|_| sums.inference.count() >= ANSWERS_MIN);
        let slow = measured.map(Quantile::seconds).is_some_and(|value| value.get() > target.limit_s());
        if whole_window && slow {
            self.batch = Some(Pin::lowered(self.batch, before, now_s + PIN_S, now_s));
            self.raised = None;
        }
    }

    /// Remembers what a change of the knobs leaves.
    pub(crate) fn changed(&mut self, from: Knobs, to: &Knobs, now_s: f64) {
        if resized(&from, to) {
            self.before = Some((from, now_s));
        }
        if to.cache_bytes < from.cache_bytes {
            self.memory_at_s = now_s;
        }
        // A change of the cache alone leaves the raise on trial.
        match to.max_batch_size.cmp(&from.max_batch_size) {
            Ordering::Greater => self.raised = Some((from.max_batch_size, now_s)),
            Ordering::Less => self.raised = None,
            Ordering::Equal => {}
        }
    }

    /// Answers the verdict on an earlier change. `hold_s`: how long a lower need must last.
    pub(crate) fn judged(&mut self, policy: &Policy, record: &Record, hold_s: f64, now_s: f64) {
        match record.verdict {
            Some(RecordVerdict::Confirmed | RecordVerdict::Better) => {
                self.confirmed = Some(record.to);
                self.worse_running = 0;
                // That the way back did well says nothing of the next attempt.
                let back = self.batch.is_some_and(|pin| pin.returns(now_s))
                    || self.cache.is_some_and(|pin| pin.returns(now_s));
                if resized(&record.from, &record.to) && !back {
                    self.pin_s = PIN_S;
                }
            }
            Some(RecordVerdict::Worse) if harmful(policy, record) => self.back_off(record, hold_s, now_s),
            Some(RecordVerdict::Worse | RecordVerdict::Superseded | RecordVerdict::Unmeasured) | None => {}
        }
    }

    fn back_off(&mut self, record: &Record, hold_s: f64, now_s: f64) {
        let (from, to) = (record.from, record.to);
        let until_s = now_s + self.pin_s;
        if resized(&from, &to) {
            let good = self.confirmed.unwrap_or(from);
            self.batch = Some(Pin::returned(self.batch, good.max_batch_size, until_s, now_s));
            self.cache = Some(Pin::returned(self.cache, good.cache_bytes, until_s, now_s));
            self.pin_s = (2.0 * self.pin_s).min(PIN_MAX_S);
        }
        if to.replicas < from.replicas {
            self.floor = Some((from.replicas.get(), now_s + 2.0 * hold_s));
            self.careful_until_s = now_s + CAREFUL_S;
        }
        self.worse_running += 1;
        if self.worse_running >= WORSE_MAX {
            self.distrust_until_s = now_s + CAREFUL_S;
            self.worse_running = 0;
        }
    }

    /// The policy with the ranges that the pins leave. `fallback`: no model says which batch is better.
    pub(crate) fn narrow(&self, policy: &Policy, current: &Knobs, (fallback, now_s): (bool, f64)) -> Policy {
        let mut narrowed = policy.clone();
        Pin::narrow(self.batch, &mut narrowed.batch, now_s);
        Pin::narrow(self.cache, &mut narrowed.cache, now_s);
        // Nobody knows what another document would do to pods that did not take this one.
        let unapplied = self.unapplied(now_s);
        if fallback || unapplied {
            Pin::narrow(Some(Pin::held(current.max_batch_size)), &mut narrowed.batch, now_s);
        }
        if unapplied {
            Pin::narrow(Some(Pin::held(current.cache_bytes)), &mut narrowed.cache, now_s);
        }
        narrowed
    }

    /// Whether pods have run other knobs than the live ones for long.
    pub(crate) fn unapplied(&self, now_s: f64) -> bool {
        self.unapplied_from_s.is_some_and(|from_s| now_s >= from_s)
    }

    /// The other batch that pods may run while not all have applied the present one.
    pub(crate) fn other_batch(&self, now_s: f64) -> Option<BatchSize> {
        self.before.filter(|_| self.unapplied(now_s)).map(|(knobs, _)| knobs.max_batch_size)
    }

    /// Least number of pods after a scale-down for the worse.
    pub(crate) fn floor(&self, now_s: f64) -> Option<Replicas> {
        self.floor.filter(|(_, until_s)| now_s < *until_s).map(|(pods, _)| Replicas::new(pods))
    }

    /// Whether lower needs must last twice as long.
    pub(crate) fn careful(&self, now_s: f64) -> bool {
        now_s < self.careful_until_s
    }

    /// Whether the model has been wrong twice in a row.
    pub(crate) fn distrusts(&self, now_s: f64) -> bool {
        now_s < self.distrust_until_s
    }
}

/// Whether batch or cache differ.
fn resized(from: &Knobs, to: &Knobs) -> bool {
    (from.max_batch_size, from.cache_bytes) != (to.max_batch_size, to.cache_bytes)
}

/// Whether a change for the worse did harm. p95 beyond its prediction but within the target is the model's error,
/// which the feedback corrects: undoing a cheaper setting that meets every target would only cost.
fn harmful(policy: &Policy, record: &Record) -> bool {
    let limit_s = policy.targets.api.map_or(0.0, LatencyTarget::limit_s);
    record.actual.and_then(|actual| actual.p95).is_some_and(|p95| p95.get() > limit_s)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::Histogram;
    use crate::observation::{NoData, Pod, Sample, Signal};
    use crate::units::Seconds;

    fn knobs(batch: u32, cache_mebi: u32) -> Knobs {
        let max_batch_size = BatchSize::try_from(batch).unwrap();
        Knobs { max_batch_size, cache_bytes: Bytes::mebi(cache_mebi), ..Knobs::initial(&Policy::default()) }
    }

    /// The largest batch allowed after `changes` of (batch, cache) at their times, when batches have taken 150 ms of 100.
    fn largest_after(changes: &[(u32, u32, u32)], now_s: f64) -> u32 {
        let (policy, mut guard, mut current) = (Policy::default(), Guard::default(), knobs(4, 0));
        for (at_s, batch, cache) in changes {
            let next = knobs(*batch, *cache);
            guard.changed(current, &next, f64::from(*at_s));
            current = next;
        }
        let inference = Histogram::from_cumulative(vec![Seconds::millis(150)], &[20, 20]).unwrap();
        guard.slow_batch(&policy, &current, &Sums { inference, ..Sums::default() }, now_s);
        guard.narrow(&policy, &current, (false, now_s)).batch.max.get()
    }

    #[test]
    fn only_pods_that_tell_can_be_without_the_knobs_and_are_waited_for_as_long_as_they_are_read() {
        let pod = |id, sample| Pod {
            id,
            class: 0,
            phase: Phase::Ready,
            created: Timestamp::ZERO,
            ready: Some(Timestamp::ZERO),
            oom_killed: None,
            sample,
        };
        let told = Signal::Live { value: Sample::default(), age: Seconds::ZERO };
        let silent = Signal::NoData(NoData::Unreachable);
        let unapplied = |others: &Signal<Sample>, scrape_s, after_s: u32| {
            let pods = vec![pod(1, told.clone()), pod(2, others.clone())];
            let seen = Observation { pods, applied_pods: 1, ..Observation::new(knobs(4, 0)) };
            let policy = Policy { scrape: Seconds::whole(scrape_s), ..Policy::default() };
            let mut guard = Guard::default();
            guard.applied(&policy, &seen, 1000.0);
            guard.applied(&policy, &seen, 1000.0 + f64::from(after_s));
            guard.unapplied(1000.0 + f64::from(after_s))
        };
        assert!(unapplied(&told, 5, 30) && !unapplied(&told, 5, 29));
        assert!(unapplied(&told, 30, 90) && !unapplied(&told, 30, 89), "its next reading tells");
        assert!(!unapplied(&silent, 5, 3600), "it says nothing of its knobs");
    }

    #[test]
    fn one_peak_of_the_working_set_takes_half_of_the_cache_once() {
        let policy = Policy { memory_limit: Bytes::mebi(1000), ..Policy::default() };
        let (mut guard, mut cache_mebi) = (Guard::default(), 64);
        let mut look = |rss_mebi: u32, second: u32| {
            // The window holds the peak for as long as it lasts.
            let (mut seen, sums) = (Seen::default(), Sums { rss: Bytes::mebi(950), ..Sums::default() });
            (seen.sampled, seen.rss) = (1, Bytes::mebi(rss_mebi));
            let observation = Observation::new(knobs(4, cache_mebi));
            guard.look(&policy, &observation, (&seen, &sums), Timestamp::whole(second));
            let narrowed = guard.narrow(&policy, &observation.current, (false, f64::from(second)));
            let after = narrowed.cache.clamp(observation.current.cache_bytes);
            guard.changed(observation.current, &Knobs { cache_bytes: after, ..observation.current }, f64::from(second));
            cache_mebi = u32::try_from(after.get() >> 20).unwrap();
            cache_mebi
        };
        assert_eq!(look(950, 1000), 32);
        assert_eq!(look(950, 1005), 32, "a working set does not fall at once");
        assert_eq!(look(700, 1400), 32, "the peak was answered");
        assert_eq!(look(950, 1800), 16, "another one");
    }

    #[test]
    fn a_raised_batch_is_on_trial_whatever_the_cache_does() {
        assert_eq!(largest_after(&[(1000, 8, 0)], 1061.0), 4);
        assert_eq!(largest_after(&[(1000, 8, 0), (1010, 8, 64)], 1061.0), 4);
        assert_eq!(largest_after(&[(1000, 8, 0)], 1059.0), 16, "not a whole window");
        assert_eq!(largest_after(&[(1000, 8, 0)], 4601.0), 16, "an hour later it is something else");
        assert_eq!(largest_after(&[(1000, 8, 0), (1010, 2, 0)], 1061.0), 16, "it went back by itself");
    }

    #[test]
    fn ceilings_meet_at_the_lower_one_and_the_later_end() {
        let low = Pin::lowered(None, 4, 100.0, 0.0);
        let still = Pin::lowered(Some(low), 8, 200.0, 50.0);
        assert_eq!((still.value, still.ceiling, still.until_s), (4, true, 200.0));
        let new = Pin::lowered(Some(low), 8, 200.0, 150.0);
        assert_eq!(new.value, 8, "the old one had ended");
    }

    #[test]
    fn a_way_back_does_not_lead_above_a_ceiling() {
        let killed = Pin::lowered(None, 4, 100.0, 0.0);
        let back = Pin::returned(Some(killed), 16, 3600.0, 50.0);
        assert_eq!((back.value, back.ceiling), (4, true));
        let free = Pin::returned(Some(killed), 16, 3600.0, 150.0);
        assert_eq!((free.value, free.ceiling), (16, false));
    }
}
