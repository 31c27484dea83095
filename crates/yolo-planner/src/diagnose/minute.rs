//! What a diagnosis rests on: sums over windows of 60 s, and what can only be seen by comparing pods with each other.

use serde::{Deserialize, Serialize};

use crate::histogram::Histogram;
use crate::observation::{Observation, Phase, Pod, Sample, Stages};
use crate::units::{Timestamp, real};

use super::device::{Baseline, IMBALANCE_MIN, Suspects};

/// Length of a window (control.md §9).
pub(super) const WINDOW_S: f64 = 60.0;
/// No pod does more in a sample than this; a greater figure is a broken source and must not reach a sentence.
const FIGURE_MAX: f64 = 1e12;
/// What the next window keeps of how unequal pods were: gauges of a few pods, read a dozen times, scatter too much.
const UNEQUAL_KEPT: f64 = 0.7;
/// Windows running for which unequal shares excuse a missed target: who can balance otherwise has had the time.
const EXCUSED_WINDOWS_MAX: u32 = 30;
/// Images in flight in a mean pod below which they are too few to be shared.
const INFLIGHT_MIN: f64 = 0.5;
/// Pods whose samples are shorter than this share of the longest one came in between: their counts do not compare.
const WHOLE_SAMPLE: f64 = 0.9;

/// Sums over one window, of all pods that serve.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Minute {
    /// Samples behind the sums, and their pod-seconds.
    pub(super) samples: f64,
    pub(super) pod_s: f64,
    pub(super) arrivals: f64,
    pub(super) shed: f64,
    pub(super) requests: f64,
    pub(super) body_bytes: f64,
    pub(super) read: Histogram,
    /// The engine: its calls, their images, their time, and the time that its sessions had.
    pub(super) calls: f64,
    pub(super) images: f64,
    pub(super) engine_s: f64,
    pub(super) session_s: f64,
    /// Seconds·delay and seconds·sessions, for their means.
    pub(super) delay_s: f64,
    /// Images that wait for the engine and for a decoder, summed over the samples.
    pub(super) queued: f64,
    pub(super) decode_queued: f64,
    /// Decoding and preparing: images, time, and the time that the decoders had.
    pub(super) decoded: f64,
    pub(super) prepare_s: f64,
    pub(super) decoder_s: f64,
    /// Hashing: lookups and time; answering without the cache: time of all other stages of an image.
    pub(super) hashed: f64,
    pub(super) hash_s: f64,
    pub(super) postprocess_s: f64,
    pub(super) hits: f64,
    pub(super) lookups: f64,
    pub(super) cpu_s: f64,
    pub(super) quota_s: f64,
    pub(super) cpu_periods: f64,
    pub(super) cpu_throttled: f64,
    pub(super) model_loads: f64,
    pub(super) load_s: f64,
    /// Pods that became ready in the window.
    pub(super) starts: f64,
    /// Largest working set, bytes.
    pub(super) rss: f64,
    /// Largest cache of a pod, bytes.
    pub(super) cache: f64,
    /// GPU busy and multiprocessors active, summed over pod-seconds, and those.
    pub(super) duty_s: f64,
    pub(super) duty_pod_s: f64,
    pub(super) sm_s: f64,
    pub(super) sm_pod_s: f64,
    /// Between-pod variance beyond that of a fair split, and squared means: of arrivals and of images in flight.
    arrivals_excess: f64,
    arrivals_square: f64,
    inflight_excess: f64,
    inflight_square: f64,
    /// Two pods were.
    compared: bool,
    /// Calls, seconds and squared seconds by batch size.
    pub(super) sizes: Vec<(u32, f64, f64, f64)>,
}

impl Minute {
    /// Adds one pod's sample.
    pub(super) fn add(&mut self, sample: &Sample) {
        let span_s = sample.span.get();
        self.samples += 1.0;
        self.pod_s += span_s;
        self.arrivals += real(sample.arrivals);
        self.shed += real(sample.shed);
        self.requests += real(sample.api.count());
        self.body_bytes += bounded(real(sample.body_bytes.get()));
        self.read.add(&sample.read);
        self.session_s += f64::from(sample.workers.clamp(1, 1024)) * span_s;
        self.delay_s += sample.applied.delay.get().min(1.0) * span_s;
        self.queued += real(sample.queued);
        self.hits += real(sample.cache.hits);
        self.lookups += real(sample.cache.hits) + real(sample.cache.misses);
        self.cpu_s += sample.cpu_seconds.get();
        self.quota_s += sample.cpu_quota.get() * span_s;
        self.cpu_periods += real(sample.cpu_periods);
        self.cpu_throttled += real(sample.cpu_throttled);
        self.model_loads += bounded(real(sample.model_loads));
        self.load_s += bounded(sample.load_seconds.get());
        self.rss = self.rss.max(real(sample.rss.get()));
        self.cache = self.cache.max(real(sample.applied.cache.get().max(sample.cache_bytes.get())));
        self.stages(&sample.stages, span_s);
        for batch in &sample.batches {
            self.batch(batch.size.get(), (real(batch.count), batch.seconds.get(), batch.seconds_squared.get()));
        }
        if let Some(gpu) = sample.gpu {
            self.duty_s += gpu.duty.get().min(1.0) * span_s;
            self.duty_pod_s += span_s;
            if let Some(active) = gpu.sm_active {
                self.sm_s += active.get().min(1.0) * span_s;
                self.sm_pod_s += span_s;
            }
        }
    }

    fn stages(&mut self, stages: &Stages, span_s: f64) {
        let decode = stages.decode;
        self.decode_queued += f64::from(decode.queued);
        self.decoded += bounded(real(decode.count));
        self.prepare_s += bounded(decode.seconds.get() + stages.preprocess.seconds.get());
        self.decoder_s += f64::from(decode.workers.min(1024)) * span_s;
        self.hashed += bounded(real(stages.hash.count));
        self.hash_s += bounded(stages.hash.seconds.get());
        self.postprocess_s += bounded(stages.postprocess.seconds.get());
    }

    fn batch(&mut self, size: u32, (count, seconds, squared): (f64, f64, f64)) {
        self.calls += count;
        self.images += count * f64::from(size);
        self.engine_s += seconds;
        let at = self.sizes.partition_point(|(known, ..)| *known < size);
        match self.sizes.get_mut(at) {
            Some(known) if known.0 == size => {
                known.1 += count;
                known.2 += seconds;
                known.3 += squared;
            }
            _ => self.sizes.insert(at, (size, count, seconds, squared)),
        }
    }

    /// Compares pods that were looked at together.
    fn compare(&mut self, fresh: &[(&Pod, &Sample)]) {
        let longest_s = fresh.iter().map(|(_, sample)| sample.span.get()).fold(0.0, f64::max);
        let whole = || fresh.iter().map(|(_, sample)| *sample).filter(|s| s.span.get() >= WHOLE_SAMPLE * longest_s);
        let arrivals: Vec<f64> =
            whole().map(|sample| real(sample.arrivals) * longest_s / sample.span.get().max(1e-9)).collect();
        if let Some((mean, variance)) = moments(&arrivals) {
            self.compared = true;
            // A fair coin for each image makes a variance of the mean: that much is nobody's fault.
            self.arrivals_excess += variance - mean;
            self.arrivals_square += mean * mean;
        }
        let inflight: Vec<f64> = whole().map(|sample| real(sample.inflight)).collect();
        if let Some((mean, variance)) = moments(&inflight).filter(|(mean, _)| *mean >= INFLIGHT_MIN) {
            let (calls, images) =
                whole().flat_map(|sample| &sample.batches).fold((0.0, 0.0), |(calls, images), batch| {
                    (calls + real(batch.count), images + real(batch.count) * f64::from(batch.size.get()))
                });
            let alone = calls / f64::max(images, 1.0);
            self.inflight_excess += variance - fair_variance(mean, alone.min(1.0));
            self.inflight_square += mean * mean;
        }
    }

    /// How unequal the pods' shares are beyond chance: standard deviation over mean, of what arrives or of what waits.
    pub(super) fn imbalance(&self) -> f64 {
        self.imbalance_of_arrivals().max(variation(self.inflight_excess, self.inflight_square))
    }

    fn imbalance_of_arrivals(&self) -> f64 {
        variation(self.arrivals_excess, self.arrivals_square)
    }

    /// Mean of a sum over samples: a gauge's mean a pod.
    pub(super) fn a_pod(&self, sum: f64) -> f64 {
        sum / self.samples.max(1.0)
    }

    /// Images a second and pod.
    pub(super) fn rate(&self, count: f64) -> f64 {
        count / self.pod_s.max(1e-9)
    }

    /// Share of the sessions' time in which a batch ran.
    pub(super) fn busy(&self) -> f64 {
        (self.engine_s / self.session_s.max(1e-9)).min(1.0)
    }

    /// GPU busy share as the device says it, else as the engine's calls do.
    pub(super) fn duty(&self) -> f64 {
        if self.duty_pod_s > 0.0 { self.duty_s / self.duty_pod_s } else { self.busy() }
    }

    /// Share of the CPU periods in which the kernel throttled the pods.
    pub(super) fn throttled(&self) -> f64 {
        self.cpu_throttled / self.cpu_periods.max(1.0)
    }

    /// Cores a pod may use; 0: no quota.
    pub(super) fn cores(&self) -> f64 {
        self.quota_s / self.pod_s.max(1e-9)
    }

    /// Share of the decoders' time in which they work.
    pub(super) fn decoders_busy(&self) -> f64 {
        if self.decoder_s > 0.0 { self.prepare_s / self.decoder_s } else { 0.0 }
    }

    /// Seconds to decode and prepare an image.
    pub(super) fn prepare_each_s(&self) -> f64 {
        self.prepare_s / self.decoded.max(1.0)
    }

    /// Seconds that an image waits for a decoder: those that wait over those that pass (Little's law).
    pub(super) fn decode_wait_s(&self) -> f64 {
        self.a_pod(self.decode_queued) / self.rate(self.decoded).max(1e-9)
    }

    /// Images of a mean batch.
    pub(super) fn mean_batch(&self) -> f64 {
        self.images / self.calls.max(1.0)
    }
}

/// Variance of the images in flight in pods that share them well, `mean` each.
///
/// Images that leave one by one can be kept within one of each other: the least variance that whole numbers of that mean
/// have. Those that leave as a batch cannot; they vary as if each came by chance. `alone`: calls an image.
fn fair_variance(mean: f64, alone: f64) -> f64 {
    let part = mean - mean.floor();
    alone * part * (1.0 - part) + (1.0 - alone) * mean
}

/// Standard deviation over mean.
fn variation(excess: f64, square: f64) -> f64 {
    (excess.max(0.0) / square.max(1e-9)).sqrt()
}

/// Mean and unbiased variance; `None` for fewer than two.
fn moments(values: &[f64]) -> Option<(f64, f64)> {
    let n = f64::from(u32::try_from(values.len()).ok().filter(|n| *n >= 2)?);
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    Some((mean, squares / (n - 1.0)))
}

fn bounded(value: f64) -> f64 {
    value.min(FIGURE_MAX)
}

/// The running window, the last closed one, and what lasts longer than a window.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Watch {
    /// Number of the running window.
    number: Option<f64>,
    running: Minute,
    /// When the newest pod that was counted as started became ready.
    started: Timestamp,
    running_suspects: Suspects,
    closed: Option<Minute>,
    /// Closed windows running in which the pods' shares of the arrivals were unequal.
    unequal_windows: u32,
    pub(super) suspects: Suspects,
    pub(super) baseline: Baseline,
}

impl Watch {
    /// Adds one look at the fleet. `fresh`: pods with their new samples, in order of their ids. Returns whether a
    /// window has ended with it.
    pub(crate) fn look(&mut self, fresh: &[(&Pod, &Sample)], observation: &Observation, now: Timestamp) -> bool {
        let number = (now.get() / WINDOW_S).floor();
        let ended = self.number.is_some_and(|running| number > running) && self.running.samples > 0.0;
        if ended {
            self.close();
        }
        self.number = Some(number);
        self.count_starts(&observation.pods, now);
        for (_, sample) in fresh {
            self.running.add(sample);
        }
        // Who leaves, or has just come in a rollout, gets less than the others, and not for want of balance.
        let ready: Vec<_> = fresh.iter().filter(|(pod, _)| pod.phase == Phase::Ready).copied().collect();
        if !observation.rolling {
            self.running.compare(&ready);
        }
        self.running_suspects.look(fresh);
        if let Some((pod, _)) = fresh.last() {
            self.baseline.notice_class(pod.class);
        }
        ended
    }

    /// The last closed window; before there is one, an empty one, in which no test holds.
    pub(crate) fn last(&self) -> Minute {
        self.closed.clone().unwrap_or_default()
    }

    /// What arrives at a busy pod, a standard deviation above the mean pod, over what arrives at that; `None` where the
    /// pods' shares are about as equal as chance leaves them, or have been unequal for [`EXCUSED_WINDOWS_MAX`].
    ///
    /// What waits is no share: it is unequal beside a slow pod, too.
    pub(crate) fn unequal(&self) -> Option<f64> {
        let minute = self.closed.as_ref().filter(|_| (1..=EXCUSED_WINDOWS_MAX).contains(&self.unequal_windows))?;
        Some(1.0 + minute.imbalance_of_arrivals())
    }

    /// Those of both windows.
    pub(crate) fn histograms(&mut self) -> impl Iterator<Item = &mut Histogram> {
        self.closed.iter_mut().chain([&mut self.running]).map(|minute| &mut minute.read)
    }

    fn count_starts(&mut self, pods: &[Pod], now: Timestamp) {
        let since = self.started;
        for ready in pods.iter().filter_map(|pod| pod.ready).filter(|ready| *ready > since && *ready <= now) {
            self.running.starts += 1.0;
            self.started = if ready > self.started { ready } else { self.started };
        }
    }

    fn close(&mut self) {
        let mut minute = std::mem::take(&mut self.running);
        let unequal = minute.compared && minute.imbalance_of_arrivals() > IMBALANCE_MIN;
        self.unequal_windows = if unequal { self.unequal_windows.saturating_add(1) } else { 0 };
        // Without two pods to compare, what was says nothing of those that come.
        let kept = if minute.compared { UNEQUAL_KEPT } else { 0.0 };
        for (next, last) in [
            (&mut self.running.arrivals_excess, minute.arrivals_excess),
            (&mut self.running.arrivals_square, minute.arrivals_square),
            (&mut self.running.inflight_excess, minute.inflight_excess),
            (&mut self.running.inflight_square, minute.inflight_square),
        ] {
            *next = kept * last;
        }
        self.suspects = std::mem::take(&mut self.running_suspects);
        self.baseline.compare(&minute);
        // Nothing else reads them, and they are most of the state.
        minute.sizes.clear();
        self.closed = Some(minute);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observation::{Knobs, NoData, Signal};
    use crate::policy::Policy;
    use crate::units::Seconds;

    fn pod() -> Pod {
        Pod {
            id: 1,
            class: 0,
            phase: Phase::Ready,
            created: Timestamp::ZERO,
            ready: None,
            oom_killed: None,
            sample: Signal::NoData(NoData::NeverSeen),
        }
    }

    fn imbalance(shares: &[u64]) -> f64 {
        let sample = |arrivals: u64| Sample { arrivals, span: Seconds::whole(5), ..Sample::default() };
        let samples: Vec<Sample> = shares.iter().map(|share| sample(*share)).collect();
        let pod = pod();
        let fresh: Vec<_> = samples.iter().map(|sample| (&pod, sample)).collect();
        let mut minute = Minute::default();
        minute.compare(&fresh);
        minute.imbalance()
    }

    #[test]
    fn chance_is_no_imbalance_but_unequal_shares_are() {
        assert!(imbalance(&[95, 105, 88, 112]) < 0.1, "100 ± 10 is what a fair coin does");
        assert!(imbalance(&[100, 100, 100, 250]) > 0.4);
        assert!(imbalance(&[100]) <= 0.0, "one pod has the whole");
    }

    #[test]
    fn a_window_ends_once_and_hands_over_its_sums() {
        let mut watch = Watch::default();
        let pod = pod();
        let sample = Sample { arrivals: 10, span: Seconds::whole(5), ..Sample::default() };
        let nothing = nothing();
        let ends: Vec<u32> =
            (1..=36).filter(|tick| watch.look(&[(&pod, &sample)], &nothing, Timestamp::whole(tick * 5))).collect();
        assert_eq!(ends, [12, 24, 36]);
        assert!((watch.closed.unwrap().arrivals - 120.0).abs() < 1e-9);
    }

    fn nothing() -> Observation {
        Observation::new(Knobs::initial(&Policy::default()))
    }

    /// Looks for whole windows, of which the first is number `from`, at pods with these arrivals each.
    fn watch_windows(watch: &mut Watch, (from, count): (u32, u32), (pods, rolling): (&[(Phase, u64)], bool)) {
        let pods: Vec<(Pod, Sample)> = pods
            .iter()
            .map(|(phase, arrivals)| {
                let sample = Sample { arrivals: *arrivals, span: Seconds::whole(5), ..Sample::default() };
                (Pod { phase: *phase, ..pod() }, sample)
            })
            .collect();
        let fresh: Vec<_> = pods.iter().map(|(pod, sample)| (pod, sample)).collect();
        let observation = Observation { rolling, ..nothing() };
        for look in 12 * from..12 * (from + count) {
            watch.look(&fresh, &observation, Timestamp::whole(5 * look));
        }
    }

    #[test]
    fn unequal_shares_are_those_of_pods_that_stay_and_excuse_for_half_an_hour() {
        let (ready, leaving) = (Phase::Ready, Phase::Draining);
        let unequal = [(ready, 300), (ready, 100)];
        let then = |pods: &[(Phase, u64)], rolling: bool| {
            let mut watch = Watch::default();
            watch_windows(&mut watch, (1, 3), (&unequal, false));
            assert!(watch.unequal().is_some_and(|busy| (1.5..2.0).contains(&busy)), "{:?}", watch.unequal());
            // A window is closed by the first look of the next.
            watch_windows(&mut watch, (4, 2), (pods, rolling));
            watch.unequal().is_some()
        };
        assert!(then(&unequal, false));
        assert!(!then(&[(ready, 400)], false), "one pod has nobody to share with");
        assert!(!then(&[(ready, 100), (leaving, 100)], false));
        assert!(!then(&unequal, true), "a rollout is no time to compare");
        let mut watch = Watch::default();
        watch_windows(&mut watch, (1, 3), (&[(ready, 100), (ready, 100), (leaving, 0)], false));
        assert_eq!(watch.unequal(), None);
        let mut watch = Watch::default();
        watch_windows(&mut watch, (1, 31), (&unequal, false));
        assert!(watch.unequal().is_some());
        watch_windows(&mut watch, (32, 1), (&unequal, false));
        assert_eq!(watch.unequal(), None, "nobody balances otherwise");
    }
}
