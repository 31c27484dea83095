//! The targets' window: what was measured over the last one, in seven slots of a sixth of it.

use serde::{Deserialize, Serialize};

use crate::histogram::Histogram;
use crate::observation::Sample;
use crate::units::{Bytes, real};

/// Slots of a whole window: fine enough that a past spike leaves within 1/6 of the window, few enough to keep
/// [`crate::State`] small.
const SLOTS: usize = 6;
/// Share of throttled CPU periods from which the quota hurts.
pub(crate) const THROTTLED_MAX: f64 = 0.05;
/// Share of the decoders' time from which images queue for them: a wait of 0.7/(1 - 0.7), about two decodes, in M/M/1.
const DECODE_BUSY: f64 = 0.7;

/// Sums over some time.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Sums {
    pub(crate) start_s: f64,
    /// Pod-seconds behind the sums.
    pub(crate) pod_s: f64,
    pub(crate) arrivals: f64,
    /// Images in a pod, summed over pod-seconds.
    pub(crate) inflight_s: f64,
    pub(crate) done: f64,
    pub(crate) shed: f64,
    pub(crate) errors: f64,
    pub(crate) hits: f64,
    pub(crate) lookups: f64,
    pub(crate) cpu_periods: f64,
    pub(crate) cpu_throttled: f64,
    /// Time that workers spent decoding, and the time that they had.
    pub(crate) decode_s: f64,
    pub(crate) decode_worker_s: f64,
    /// Largest working set of a pod.
    pub(crate) rss: Bytes,
    /// GPU busy share summed over pod-seconds, and those.
    pub(crate) duty_s: f64,
    pub(crate) duty_pod_s: f64,
    pub(crate) inference: Histogram,
    pub(crate) api: Histogram,
    pub(crate) overhead: Histogram,
}

impl Sums {
    fn add_sample(&mut self, sample: &Sample) {
        let span_s = sample.span.get();
        self.pod_s += span_s;
        self.arrivals += real(sample.arrivals);
        self.inflight_s += real(sample.inflight) * span_s;
        self.done += real(sample.done);
        self.shed += real(sample.shed);
        self.errors += real(sample.errors);
        self.hits += real(sample.cache.hits);
        self.lookups += real(sample.cache.hits) + real(sample.cache.misses);
        self.cpu_periods += real(sample.cpu_periods);
        self.cpu_throttled += real(sample.cpu_throttled);
        self.decode_s += sample.stages.decode.seconds.get();
        self.decode_worker_s += f64::from(sample.stages.decode.workers) * span_s;
        self.rss = self.rss.max(sample.rss);
        if let Some(gpu) = sample.gpu {
            self.duty_s += gpu.duty.get().min(1.0) * span_s;
            self.duty_pod_s += span_s;
        }
        self.inference.add(&sample.inference);
        self.api.add(&sample.api);
        self.overhead.add(&sample.overhead);
    }

    fn add_sums(&mut self, other: &Self) {
        self.pod_s += other.pod_s;
        self.arrivals += other.arrivals;
        self.inflight_s += other.inflight_s;
        self.done += other.done;
        self.shed += other.shed;
        self.errors += other.errors;
        self.hits += other.hits;
        self.lookups += other.lookups;
        self.cpu_periods += other.cpu_periods;
        self.cpu_throttled += other.cpu_throttled;
        self.decode_s += other.decode_s;
        self.decode_worker_s += other.decode_worker_s;
        self.rss = self.rss.max(other.rss);
        self.duty_s += other.duty_s;
        self.duty_pod_s += other.duty_pod_s;
        self.inference.add(&other.inference);
        self.api.add(&other.api);
        self.overhead.add(&other.overhead);
    }

    /// Share of the CPU periods that the kernel throttled, 0..=1.
    pub(crate) fn throttled(&self) -> f64 {
        self.cpu_throttled / self.cpu_periods.max(1.0)
    }

    /// Whether images wait for the pods' CPU: what they then spend outside queue and engine is no property of theirs.
    pub(crate) fn short_of_cpu(&self) -> bool {
        self.throttled() > THROTTLED_MAX || self.decode_s > DECODE_BUSY * self.decode_worker_s.max(1e-9)
    }

    /// Share of the images that the cache did not answer, 0..=1.
    pub(crate) fn missed(&self) -> f64 {
        1.0 - (self.hits / self.lookups.max(1.0)).min(1.0)
    }
}

/// The window's slots, oldest first.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Window {
    slots: Vec<Sums>,
}

impl Window {
    /// Moves on to `now_s`: opens a slot when the newest is full, drops what lies before the window.
    pub(crate) fn advance(&mut self, now_s: f64, window_s: f64) {
        let slot_s = window_s / real(SLOTS as u64);
        self.slots.retain(|slot| slot.start_s + slot_s > now_s - window_s && slot.start_s <= now_s);
        if self.slots.last().is_none_or(|slot| slot.start_s + slot_s <= now_s) {
            self.slots.push(Sums { start_s: now_s, ..Sums::default() });
        }
        // A window that became shorter leaves more slots than it needs.
        while self.slots.len() > SLOTS + 1 {
            self.slots.remove(0);
        }
    }

    /// Adds one pod's sample to the newest slot.
    pub(crate) fn add(&mut self, sample: &Sample) {
        if let Some(slot) = self.slots.last_mut() {
            slot.add_sample(sample);
        }
    }

    /// Those of all slots, equal kinds side by side.
    pub(crate) fn histograms(&mut self) -> Vec<&mut Histogram> {
        let (mut all, mut api, mut overhead) = (Vec::new(), Vec::new(), Vec::new());
        for slot in &mut self.slots {
            all.push(&mut slot.inference);
            api.push(&mut slot.api);
            overhead.push(&mut slot.overhead);
        }
        all.extend(api);
        all.extend(overhead);
        all
    }

    /// All slots together.
    pub(crate) fn sums(&self) -> Sums {
        let mut sums = Sums { start_s: self.slots.first().map_or(0.0, |slot| slot.start_s), ..Sums::default() };
        for slot in &self.slots {
            sums.add_sums(slot);
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_forgets_what_lies_before_it() {
        let mut window = Window::default();
        for tick in 0..100_u32 {
            window.advance(f64::from(tick) * 5.0, 60.0);
            window.add(&Sample { arrivals: 10, ..Sample::default() });
        }
        let arrivals = window.sums().arrivals;
        assert!((120.0..=140.0).contains(&arrivals), "12 to 14 ticks of 10: {arrivals}");
        window.advance(10_000.0, 60.0);
        assert!(window.sums().arrivals <= 0.0);
    }
}
