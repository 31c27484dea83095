//! Devices and pods that are slower than they were, or than their neighbours; and loads that are shared unequally.

use serde::{Deserialize, Serialize};

use crate::explain::{AdviceId, BottleneckKind, Severity};
use crate::observation::{Pod, Sample};
use crate::policy::{Accelerator, Routing};
use crate::units::real;

use super::minute::Minute;
use super::{Case, Finding, above, advice};

/// A batch that takes this much longer than it did is a slower device (control.md §9).
const SLOWED_MIN: f64 = 1.1;
/// The same on CPU cores, whose clock and caches other work shares: busier sessions alone make a call a quarter longer.
const SLOWED_MIN_CPU: f64 = 1.3;
/// Above this ratio the baseline learns no more, so that a slow device does not become the measure.
const HEALTHY_MAX: f64 = 1.05;
/// Part of the way that the baseline moves in a window: quick towards faster calls, so slow towards slower ones that
/// a device which loses a clock step a window is still seen.
const GAIN_FASTER: f64 = 0.5;
const GAIN_SLOWER: f64 = 0.02;
/// Sessions on CPU busier by this than the baseline's explain slower calls.
const BUSIER: f64 = 0.15;
/// Calls of a size in a window from which it counts: the mean's error is then a tenth of the jitter's 3 to 30 %.
const CALLS_MIN: f64 = 30.0;
/// A pod whose calls take this much longer than the median pod's is a straggler (control.md §9).
const STRAGGLER_MIN: f64 = 1.3;
/// Share of a window's looks in which it must be one: a pod that starts or shares a core for a moment is none.
const STRAGGLER_LOOKS: f64 = 0.6;
/// Calls of a pod in a look that make it comparable, and pods that make a median.
const LOOK_CALLS_MIN: f64 = 5.0;
const PODS_MIN: usize = 3;
/// Suspects remembered: more stragglers than these are no stragglers.
const SUSPECTS_MAX: usize = 8;
/// Variation between pods from which their load is unequal (control.md §9).
pub(super) const IMBALANCE_MIN: f64 = 0.3;
/// Share of the pods that better balancing must save to be worth a word.
const IMBALANCE_GAIN_MIN: f64 = 0.05;

/// How long a batch of each size takes when all is well.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Baseline {
    class: Option<u32>,
    /// (size, mean seconds of a call).
    sizes: Vec<(u32, f64)>,
    /// Share of the sessions' time in which calls ran meanwhile.
    busy: f64,
    /// Time of the last closed window's calls over that of the baseline, and the error of it; 1 while unknown.
    pub(super) ratio: f64,
    pub(super) error: f64,
    /// How much busier the sessions were in that window.
    busier: f64,
}

impl Baseline {
    /// Another model, image or device has another curve.
    pub(super) fn notice_class(&mut self, class: u32) {
        if self.class != Some(class) {
            *self = Self { class: Some(class), ratio: 1.0, ..Self::default() };
        }
    }

    /// Compares a closed window with the baseline, then learns from it if all is well.
    pub(super) fn compare(&mut self, minute: &Minute) {
        let known = |size: u32| self.sizes.iter().find(|(known, _)| *known == size).map(|(_, mean)| *mean);
        let (mut seconds, mut expected, mut variance) = (0.0, 0.0, 0.0);
        for &(size, calls, time_s, squared) in minute.sizes.iter().filter(|(_, calls, ..)| *calls >= CALLS_MIN) {
            if let Some(mean) = known(size) {
                seconds += time_s;
                expected += calls * mean;
                variance += (squared - time_s * time_s / calls).max(0.0);
            }
        }
        (self.ratio, self.error) =
            if expected > 0.0 { (seconds / expected, variance.sqrt() / expected) } else { (1.0, 0.0) };
        self.busier = minute.busy() - self.busy;
        self.learn(minute);
    }

    fn learn(&mut self, minute: &Minute) {
        let explained = self.busier > BUSIER;
        for &(size, calls, time_s, _) in minute.sizes.iter().filter(|(_, calls, ..)| *calls >= CALLS_MIN) {
            let mean = time_s / calls;
            match self.sizes.iter_mut().find(|(known, _)| *known == size) {
                Some((_, known)) if mean < *known => *known += GAIN_FASTER * (mean - *known),
                Some((_, known)) if self.ratio < HEALTHY_MAX => *known += GAIN_SLOWER * (mean - *known),
                Some(_) => {}
                // A size that was never seen before, on a device that may be slow now.
                None => self.sizes.push((size, mean / self.ratio.max(1.0))),
            }
        }
        if self.busy <= 0.0 || !explained {
            self.busy = self.busy.max(minute.busy());
        }
    }
}

/// Pods whose calls took longer than the median pod's.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Suspects {
    looks: f64,
    /// (pod, looks in which it was slow, sum of its ratios in those).
    pods: Vec<(u64, f64, f64)>,
}

impl Suspects {
    /// Compares pods that were looked at together.
    pub(super) fn look(&mut self, fresh: &[(&Pod, &Sample)]) {
        // What a call of each size takes in this look, over all pods.
        let mut sizes: Vec<(u32, f64, f64)> = Vec::new();
        for batch in fresh.iter().flat_map(|(_, sample)| &sample.batches) {
            let (size, count, seconds) = (batch.size.get(), real(batch.count), batch.seconds.get());
            match sizes.iter_mut().find(|(known, ..)| *known == size) {
                Some(known) => (known.1, known.2) = (known.1 + count, known.2 + seconds),
                None => sizes.push((size, count, seconds)),
            }
        }
        let usual = |size: u32| {
            sizes.iter().find(|(known, ..)| *known == size).map_or(0.0, |(_, count, seconds)| seconds / count.max(1e-9))
        };
        let ratio = |sample: &Sample| {
            let (calls, seconds, expected) = sample.batches.iter().fold((0.0, 0.0, 0.0), |sums, batch| {
                let count = real(batch.count);
                (sums.0 + count, sums.1 + batch.seconds.get(), sums.2 + count * usual(batch.size.get()))
            });
            (calls >= LOOK_CALLS_MIN && expected > 0.0).then(|| seconds / expected)
        };
        let ratios: Vec<(u64, f64)> = fresh.iter().filter_map(|(pod, sample)| Some((pod.id, ratio(sample)?))).collect();
        let mut sorted: Vec<f64> = ratios.iter().map(|(_, ratio)| *ratio).collect();
        sorted.sort_by(f64::total_cmp);
        let Some(&median) = sorted.get((sorted.len().max(1) - 1) / 2).filter(|_| sorted.len() >= PODS_MIN) else {
            return;
        };
        self.looks += 1.0;
        for (pod, ratio) in ratios {
            let slower = ratio / median.max(1e-9);
            if slower > STRAGGLER_MIN {
                self.suspect(pod, slower.min(1e6));
            }
        }
    }

    fn suspect(&mut self, pod: u64, slower: f64) {
        let room = self.pods.len() < SUSPECTS_MAX;
        match self.pods.iter_mut().find(|(known, ..)| *known == pod) {
            Some(known) => (known.1, known.2) = (known.1 + 1.0, known.2 + slower),
            None if room => self.pods.push((pod, 1.0, slower)),
            None => {}
        }
    }

    /// The slowest pod of those that were slow in most looks, and how many times the median pod's time it takes.
    pub(super) fn worst(&self) -> Option<(u64, f64)> {
        let slow = self.pods.iter().filter(|(_, looks, _)| *looks >= STRAGGLER_LOOKS * self.looks);
        slow.map(|(pod, looks, sum)| (*pod, sum / looks)).max_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// `DeviceSlowed`: t(b) up by more than 10 % at equal b.
pub(super) fn device_slowed(case: Case) -> Option<Finding> {
    let baseline = &case.state.diagnosis.watch.baseline;
    let cpu = case.policy.accelerator == Accelerator::Cpu;
    let limit = if cpu { SLOWED_MIN_CPU } else { SLOWED_MIN };
    // Throttled, or merely busier, sessions on CPU are slower without any fault of the device.
    let explained = cpu && (baseline.busier > BUSIER || case.minute.throttled() > super::cpu::THROTTLED_MAX);
    // One pod that lags behind the others is a straggler, and lifts the mean of all.
    let lags = case.state.diagnosis.watch.suspects.worst().is_some();
    if baseline.ratio <= limit || explained || lags {
        return None;
    }
    let slower = (baseline.ratio - 1.0) * 1e2;
    let message = format!("A batch takes {slower:.0} % longer than it did at the same size.");
    let action = "Look at the nodes' devices: temperature, power cap and clock (nvidia-smi -q -d CLOCK,POWER), or what \
                  else runs there.";
    let pods = f64::from(case.seen.ready);
    let gain = format!(
        "{:.0} % more images/s a pod, {:.1} of {pods:.0} pods' worth.",
        slower,
        pods * (1.0 - 1.0 / baseline.ratio)
    );
    let excess = above(baseline.ratio, limit);
    let figures = vec![("time of a batch over its usual time", baseline.ratio, limit)];
    let mut found = Finding::new(BottleneckKind::DeviceSlowed, excess, figures);
    found.error = baseline.error;
    found.relief = baseline.ratio;
    found.advice.push(advice(AdviceId::CheckDevice, Severity::Warning, (message, action.to_owned(), gain)));
    Some(found)
}

/// `Straggler`: one pod's t(b) is more than 1.3 times the median.
pub(super) fn straggler(case: Case) -> Option<Finding> {
    let (pod, slower) = case.state.diagnosis.watch.suspects.worst()?;
    let message = format!("One pod takes {slower:.1} times as long for a batch as the median pod.");
    let action = "Delete that pod, so that it starts on another node; cordon the node if the next one is slow too.";
    let gain = format!("{:.1} pods' worth of images/s.", 1.0 - 1.0 / slower.max(1.0));
    let figures = vec![("time of a batch over the median pod's", slower, STRAGGLER_MIN)];
    let mut found = Finding::new(BottleneckKind::Straggler, above(slower, STRAGGLER_MIN), figures);
    found.pods = vec![pod];
    found.advice.push(advice(AdviceId::EjectPod, Severity::Warning, (message, action.to_owned(), gain)));
    Some(found)
}

/// `Imbalance`: pods' loads vary by more than 30 % beyond chance, and better balancing would save pods or keep the target.
pub(super) fn imbalance(case: Case) -> Option<Finding> {
    let variation = case.minute.imbalance();
    let pods = case.seen.ready;
    if variation <= IMBALANCE_MIN || pods < 2 {
        return None;
    }
    let batch = case.batch();
    let share = |routing: Routing| case.with_routing(routing).pod(batch, pods).map(|pod| pod.share);
    let (alone, pooled) = (share(Routing::Random)?, share(Routing::LeastOutstanding)?);
    let saved = 1.0 - alone / pooled.max(1e-9);
    if saved < IMBALANCE_GAIN_MIN && !case.late {
        return None;
    }
    let message = format!(
        "The pods' loads vary by {:.0} % of their mean beyond chance: some queue while others wait for work.",
        variation * 1e2
    );
    let action = if case.policy.routing == Routing::LeastOutstanding {
        "spec.service.routing says LeastOutstanding, but pods do not get their loads so: look at what balances in front \
         of them."
    } else {
        "Balance by least outstanding requests in front of the pods (a gateway or a mesh), and set \
         spec.service.routing to LeastOutstanding."
    };
    let gain = format!(
        "{:.1} of {pods} pods' worth: one pod of {pods} may then run at {:.0} % instead of {:.0} % of its best rate.",
        saved * f64::from(pods),
        pooled * 1e2,
        alone * 1e2
    );
    let figures = vec![("variation of the pods' loads beyond chance", variation, IMBALANCE_MIN)];
    let mut found = Finding::new(BottleneckKind::Imbalance, above(variation, IMBALANCE_MIN), figures);
    found.relief = pooled / alone.max(1e-9);
    found.advice.push(advice(AdviceId::UseLeastOutstanding, Severity::Info, (message, action.to_owned(), gain)));
    Some(found)
}
