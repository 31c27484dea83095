//! What the rounds left in memory: per service the newest sample of each pod, and how much it is still worth.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};

use yolo_planner::observation::{NoData, Sample, Signal};
use yolo_planner::units::{Seconds, Timestamp};

use super::difference::difference;
use super::raw::RawSample;
use super::{INTERVAL, ReadError};
use crate::fleet::ServiceId;

/// A sample older than so many scrapes is stale.
const STALE_SCRAPES: f64 = 3.0;
/// A sample older than this is not even worth showing; ten times the longest usual scrape interval (60 s).
const FORGOTTEN_S: f64 = 600.0;
/// Spans of a pod's last samples that the interval is measured by: a missed round, or two, must not change the planner's
/// tick, for what it knows of seasons is counted in ticks.
const SPANS: usize = 5;
/// Readings further apart make no sample: the mean over an outage would hide what goes on now. Twice the longest usual
/// scrape interval (60 s).
const SPAN_MAX_S: f64 = 120.0;

/// The planner's identity of a pod: FNV-1a of its uid, so that it is the same after a restart of the operator.
pub fn pod_id(uid: &str) -> u64 {
    uid.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The latest [`Snapshot`] of every service. Cloning shares it; reading costs a lock that is held for a pointer's copy.
#[derive(Debug, Clone, Default)]
pub struct Snapshots {
    services: Arc<RwLock<HashMap<ServiceId, Arc<Snapshot>>>>,
}

impl Snapshots {
    /// The service's latest snapshot; absent until a round has seen a pod of it.
    pub fn of(&self, service: &ServiceId) -> Option<Arc<Snapshot>> {
        self.services.read().unwrap_or_else(PoisonError::into_inner).get(service).cloned()
    }

    pub(super) fn publish(&self, service: ServiceId, snapshot: Snapshot) {
        self.services.write().unwrap_or_else(PoisonError::into_inner).insert(service, Arc::new(snapshot));
    }

    pub(super) fn retain(&self, keep: impl Fn(&ServiceId) -> bool) {
        self.services.write().unwrap_or_else(PoisonError::into_inner).retain(|service, _| keep(service));
    }

    pub(super) fn clear(&self) {
        self.retain(|_| false);
    }
}

/// One service after one round.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// When the round ended.
    pub taken_at: Timestamp,
    /// Measured interval between a pod's readings, in whole seconds: the median of all pods' last spans, at least
    /// [`INTERVAL`].
    pub scrape: Seconds,
    pods: HashMap<String, Reading>,
}

/// One pod after one round.
#[derive(Debug, Clone, PartialEq)]
struct Reading {
    sample: Option<Arc<Sample>>,
    knobs_generation: Option<u64>,
    model_sha256: Option<String>,
    missing: NoData,
    trouble: Option<String>,
}

impl Snapshot {
    /// `pods`: uid, whether the pod is ready, and what is remembered of it.
    pub(super) fn new<'m>(taken_at: Timestamp, pods: impl Iterator<Item = (String, bool, &'m Memory)>) -> Self {
        let mut spans = Vec::new();
        let reading = |(uid, ready, memory): (String, bool, &Memory)| {
            spans.extend(&memory.spans);
            (uid, memory.reading(ready))
        };
        let pods = pods.map(reading).collect();
        Self { taken_at, scrape: median_s(spans), pods }
    }

    /// The pod's sample as of `now`: live up to three scrapes, then stale, and after ten minutes no data.
    pub fn signal(&self, uid: &str, now: Timestamp) -> Signal<Sample> {
        let Some(pod) = self.pods.get(uid) else { return Signal::NoData(NoData::NeverSeen) };
        let Some(sample) = &pod.sample else { return Signal::NoData(pod.missing) };
        let age_s = now.since(sample.until).max(0.0);
        let age = Seconds::try_from(age_s).unwrap_or_default();
        if age_s <= STALE_SCRAPES * self.scrape.get() {
            Signal::Live { value: Sample::clone(sample), age }
        } else if age_s <= FORGOTTEN_S {
            Signal::Stale { last: Sample::clone(sample), age }
        } else {
            Signal::NoData(pod.missing)
        }
    }

    /// Knobs generation that the pod last reported as applied; known from its first reading.
    pub fn knobs_generation(&self, uid: &str) -> Option<u64> {
        self.pods.get(uid)?.knobs_generation
    }

    /// Digest of the model that the pod last reported to run.
    pub fn model_sha256(&self, uid: &str) -> Option<&str> {
        self.pods.get(uid)?.model_sha256.as_deref()
    }

    /// Bytes in the pod's result cache, as it last reported; how warm it is.
    pub fn cache_bytes(&self, uid: &str) -> Option<u64> {
        self.pods.get(uid)?.sample.as_ref().map(|sample| sample.cache_bytes.get())
    }

    /// Why some ready pod could not be read in the last round, in words for a condition's message; the same one each time.
    pub fn trouble(&self) -> Option<&str> {
        let first = self.pods.iter().filter(|(_, pod)| pod.trouble.is_some()).min_by_key(|(uid, _)| *uid);
        first.and_then(|(_, pod)| pod.trouble.as_deref())
    }
}

fn median_s(mut spans: Vec<Seconds>) -> Seconds {
    let shortest = Seconds::from(INTERVAL);
    spans.sort_by(|a, b| a.get().total_cmp(&b.get()));
    // Whole seconds: the planner's tick follows this and must not change with every millisecond of jitter. The lower one
    // of two in the middle: a missed round makes a span longer, nothing makes one shorter.
    let middle = spans.len().saturating_sub(1) / 2;
    let median = spans.get(middle).map_or(0.0, |span| span.get().round());
    Seconds::try_from(median.max(shortest.get())).unwrap_or(shortest)
}

/// What the sampler remembers of one pod between rounds.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The last good reading, which the next one is differenced with.
    raw: Option<RawSample>,
    sample: Option<Arc<Sample>>,
    /// Spans of the last samples, oldest first.
    spans: VecDeque<Seconds>,
    trouble: Option<ReadError>,
}

impl Memory {
    /// Takes a round's reading: a newer good one makes a sample; any failure only lets the last sample grow old.
    pub(super) fn take(&mut self, reading: Result<RawSample, ReadError>) {
        self.trouble = reading.and_then(|new| self.advance(new)).err();
        if matches!(self.trouble, Some(ReadError::CounterReset { .. })) {
            // What the old process did says nothing about the new one, its gauges least of all.
            self.sample = None;
        }
    }

    fn advance(&mut self, new: RawSample) -> Result<(), ReadError> {
        let before = match &self.raw {
            // The same scrape of a Prometheus again: a sample is made once.
            Some(old) if new.at_s <= old.at_s => return Ok(()),
            Some(old) if new.at_s - old.at_s <= SPAN_MAX_S => Some(old),
            // The first look (a counter needs two), or the first after an outage.
            Some(_) | None => None,
        };
        let sample = before.map(|old| difference(old, &new)).transpose();
        // Also after a refusal: the next reading of a restarted process is compared with this one.
        self.raw = Some(new);
        if let Some(sample) = sample? {
            if self.spans.len() >= SPANS {
                self.spans.pop_front();
            }
            self.spans.push_back(sample.span);
            self.sample = Some(Arc::new(sample));
        }
        Ok(())
    }

    /// Why the last reading failed; nothing if it did not.
    pub(super) const fn trouble(&self) -> Option<&ReadError> {
        self.trouble.as_ref()
    }

    /// A pod that is not `ready` has no trouble: it cannot be read yet, and nobody need act on that.
    fn reading(&self, ready: bool) -> Reading {
        Reading {
            sample: self.sample.clone(),
            knobs_generation: self.raw.as_ref().and_then(RawSample::knobs_generation),
            model_sha256: self.raw.as_ref().and_then(RawSample::model_sha256).map(ToOwned::to_owned),
            missing: match &self.trouble {
                None => NoData::NeverSeen,
                Some(ReadError::CounterReset { .. }) => NoData::CounterReset,
                Some(ReadError::NotANumber { .. } | ReadError::Malformed { .. } | ReadError::Missing { .. }) => {
                    NoData::NotANumber
                }
                Some(_) => NoData::Unreachable,
            },
            trouble: self.trouble.as_ref().filter(|_| ready).map(ReadError::chain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::exposition::parse;
    use crate::sampler::raw::tests::page;

    fn reading(value: f64, at_s: f64) -> Result<RawSample, ReadError> {
        parse(&page(value), at_s)
    }

    fn down() -> Result<RawSample, ReadError> {
        Err(ReadError::Status(503))
    }

    fn signal(memory: &Memory, now_s: f64) -> Signal<Sample> {
        let now = Timestamp::try_from(now_s).unwrap();
        Snapshot::new(now, [("u1".to_owned(), true, memory)].into_iter()).signal("u1", now)
    }

    #[test]
    fn first_look_is_no_data_and_the_second_a_sample() {
        let mut memory = Memory::default();
        assert_eq!(signal(&memory, 0.0), Signal::NoData(NoData::NeverSeen));
        memory.take(reading(1.0, 100.0));
        assert_eq!(signal(&memory, 100.0), Signal::NoData(NoData::NeverSeen));
        memory.take(reading(3.0, 105.0));
        assert_eq!(signal(&memory, 106.0).live().unwrap().model_loads, 2);
    }

    #[test]
    fn outage_makes_a_sample_stale_then_forgotten_and_never_zero() {
        let mut memory = Memory::default();
        memory.take(reading(1.0, 100.0));
        memory.take(reading(3.0, 105.0));
        memory.take(down());
        assert_eq!(signal(&memory, 120.0).live().unwrap().model_loads, 2, "three scrapes are waited for");
        let Signal::Stale { last, age } = signal(&memory, 121.0) else { panic!("not stale") };
        assert_eq!((last.model_loads, age), (2, Seconds::whole(16)));
        assert_eq!(signal(&memory, 706.0), Signal::NoData(NoData::Unreachable));
        // Back after the outage: one look, then a sample of what goes on now.
        memory.take(reading(900.0, 800.0));
        assert_eq!(signal(&memory, 800.0), Signal::NoData(NoData::NeverSeen));
        memory.take(reading(901.0, 805.0));
        assert_eq!(signal(&memory, 805.0).live().unwrap().model_loads, 1);
    }

    #[test]
    fn restart_drops_the_sample_and_the_next_interval_is_whole() {
        let mut memory = Memory::default();
        memory.take(reading(50.0, 100.0));
        memory.take(reading(60.0, 105.0));
        memory.take(reading(1.0, 110.0));
        assert_eq!(signal(&memory, 110.0), Signal::NoData(NoData::CounterReset));
        memory.take(reading(4.0, 115.0));
        assert_eq!(signal(&memory, 115.0).live().unwrap().model_loads, 3);
    }

    #[test]
    fn scrape_read_twice_makes_one_sample() {
        let mut memory = Memory::default();
        memory.take(reading(1.0, 100.0));
        memory.take(reading(3.0, 115.0));
        let once = signal(&memory, 116.0);
        memory.take(reading(3.0, 115.0));
        assert_eq!(signal(&memory, 116.0), once);
        assert_eq!(
            Snapshot::new(Timestamp::ZERO, [("u1".to_owned(), true, &memory)].into_iter()).scrape,
            Seconds::whole(15)
        );
        assert!(signal(&memory, 159.0).live().is_some(), "three scrapes of 15 s");
    }

    #[test]
    fn missed_round_does_not_change_the_measured_interval() {
        let scrape = |times: &[f64]| {
            let mut memory = Memory::default();
            for at_s in times {
                memory.take(reading(*at_s, *at_s));
            }
            Snapshot::new(Timestamp::ZERO, [("u1".to_owned(), true, &memory)].into_iter()).scrape
        };
        assert_eq!(scrape(&[100.0, 105.0, 115.0]), Seconds::whole(5), "of the second span on");
        assert_eq!(scrape(&[100.0, 105.0, 110.0, 115.0, 125.0, 135.0]), Seconds::whole(5), "two missed");
        let slower = [100.0, 105.0, 110.0, 115.0, 120.0, 125.0, 140.0, 155.0, 170.0];
        assert_eq!(scrape(&slower), Seconds::whole(15), "a new interval is one after three spans");
    }

    #[test]
    fn digest_is_known_from_the_first_look_and_only_if_it_is_one() {
        let of = |label: &str| {
            let page =
                page(1.0).replace("yolo_model_info{sha256=\"0\"}", &format!("yolo_model_info{{sha256=\"{label}\"}}"));
            let mut memory = Memory::default();
            memory.take(parse(&page, 100.0));
            let snapshot = Snapshot::new(Timestamp::ZERO, [("u1".to_owned(), true, &memory)].into_iter());
            snapshot.model_sha256("u1").map(ToOwned::to_owned)
        };
        let digest = "ab".repeat(32);
        assert_eq!(of(&digest), Some(digest));
        assert_eq!(of("latest"), None);
    }

    #[test]
    fn not_a_number_keeps_the_last_sample_and_says_so() {
        let mut memory = Memory::default();
        memory.take(parse(&page(1.0).replace("yolo_queue_depth 1", "yolo_queue_depth NaN"), 100.0));
        assert_eq!(signal(&memory, 100.0), Signal::NoData(NoData::NotANumber));
        let snapshot = Snapshot::new(Timestamp::ZERO, [("u1".to_owned(), true, &memory)].into_iter());
        assert_eq!(snapshot.trouble(), Some("yolo_queue_depth is NaN, infinite or negative"));
        let starting = Snapshot::new(Timestamp::ZERO, [("u1".to_owned(), false, &memory)].into_iter());
        assert_eq!(starting.trouble(), None, "a pod that starts is not in trouble");
    }
}
