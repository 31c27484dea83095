//! Results by content: a byte-bounded cache with single flight.
//!
//! Looked up before an image is decoded, so a hit costs a hash. Equal images that arrive together are run once: the
//! first becomes the leader, the others wait for its result, and if its client leaves before its batch begins the next one
//! leads. The leader asks the store that servers share, if there is one, before it runs the image.

mod ghosts;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use quick_cache::sync::{Cache, GuardResult, PlaceholderGuard};
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};
use serde::{Deserialize, Serialize};
use yolo_vision::{Detection, Masks, ModelInfo, Parameters, Size};

use crate::limits;
use crate::metrics::CacheMetrics;
use crate::store::results::SharedResults;
use ghosts::Ghosts;

pub use ghosts::GHOST_SIZES_BYTES;

/// Bumped when the same image and parameters may give another answer.
const SEMANTICS_VERSION: u8 = 1;
/// Book-keeping of an entry besides key and value, about.
const ENTRY_OVERHEAD_BYTES: usize = 128;
/// What an entry weighs, about: ten boxes. It decides how many of the entries that were evicted last are known again when
/// they come back, half as many as fit, each in some 90 bytes; without them, no new picture would ever displace one that was
/// popular once.
const ENTRY_BYTES_TYPICAL: u64 = 1 << 10;

/// Pause between two steps of eviction: who waits for the lock needs it to get its turn.
const EVICTION_PAUSE: Duration = Duration::from_micros(100);

/// Hash of everything that decides an answer.
pub type Key = [u8; 32];

/// What is remembered of an image.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The picture's size, after its orientation.
    pub size: Size,
    /// Found objects, best first.
    pub detections: Vec<Detection>,
}

/// What a detection takes at most while it is answered, without its name and form: itself, as JSON has it, and as text.
const DETECTION_ANSWERED_BYTES: usize = 640;
/// How much of what a form takes it takes then: a point has two numbers of 4 bytes, of 8 in JSON and 20 in text.
const FORM_ANSWERED_FACTOR: usize = 8;

impl Answer {
    /// Memory of what was found, in bytes.
    pub fn found_bytes(&self) -> usize {
        // Class names are shared with the model.
        self.detections.len() * size_of::<Detection>() + self.forms_bytes()
    }

    /// Of that, masks, outlines and keypoints.
    fn forms_bytes(&self) -> usize {
        self.detections.iter().map(Detection::heap_bytes).sum()
    }

    /// Most memory that masks take as text, beside themselves.
    pub fn masks_written_bytes(&self) -> usize {
        FORM_ANSWERED_FACTOR * self.forms_bytes()
    }

    /// Most memory that it takes while it is written, in bytes, [`Self::found_bytes`] included.
    pub fn answered_bytes(&self) -> usize {
        let each = |found: &Detection| {
            DETECTION_ANSWERED_BYTES + 2 * found.name.len() + FORM_ANSWERED_FACTOR * found.heap_bytes()
        };
        self.detections.iter().map(each).sum()
    }

    fn weight_bytes(&self) -> u64 {
        (self.found_bytes() + size_of::<Self>() + size_of::<Key>() + ENTRY_OVERHEAD_BYTES) as u64
    }
}

/// The key of an image: model and its input's size, canonical parameters, content.
pub fn key((model_sha256, input): (&str, Size), parameters: &Parameters, content: &[u8; 32]) -> Key {
    let Parameters { confidence, iou, detections_max, classes, agnostic, masks, normalize: _ } = parameters;
    // `normalize` acts on the JSON only: both forms share an entry.
    let mut hasher = blake3::Hasher::new();
    let masks = match masks {
        Masks::Polygon => 0,
        Masks::Rle => 1,
        Masks::None => 2,
    };
    hasher.update(&[SEMANTICS_VERSION, u8::from(*agnostic), u8::from(classes.is_some()), masks]);
    hasher.update(model_sha256.as_bytes());
    hasher.update(content);
    hasher.update(&input.width_px.to_le_bytes());
    hasher.update(&input.height_px.to_le_bytes());
    hasher.update(&confidence.to_bits().to_le_bytes());
    hasher.update(&iou.to_bits().to_le_bytes());
    hasher.update(&(*detections_max as u64).to_le_bytes());
    let mut classes = classes.clone().unwrap_or_default();
    classes.sort_unstable();
    classes.dedup();
    for class in classes {
        hasher.update(&class.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

#[derive(Debug, Clone)]
struct Entry {
    answer: Arc<Answer>,
    stored: Instant,
}

#[derive(Debug, Clone)]
struct Bytes;

impl Weighter<Key, Entry> for Bytes {
    fn weight(&self, _: &Key, entry: &Entry) -> u64 {
        entry.answer.weight_bytes()
    }
}

#[derive(Debug, Clone)]
struct CountEvictions(Counter);

impl Lifecycle<Key, Entry> for CountEvictions {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), _: Key, _: Entry) {
        self.0.inc();
    }
}

type Store = Cache<Key, Entry, Bytes, DefaultHashBuilder, CountEvictions>;

/// The result cache of one server.
#[derive(Debug)]
pub struct ResultCache {
    /// Its capacity is that of the cache; while that is off, the last one, never 0: it scales with its capacity what it
    /// knows of evicted entries, and nothing times anything stays nothing.
    store: Store,
    off: AtomicBool,
    ttl: Mutex<Duration>,
    ghosts: Ghosts,
    /// What other servers found.
    shared: OnceLock<SharedResults>,
    metrics: CacheMetrics,
}

/// A lookup's part among those of equal images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flight {
    /// It runs the image if nobody does, and others wait for it.
    Lead,
    /// It waits for others, but none for it: nobody is in a hurry for its image, and whoever waited would have to be
    /// as patient.
    Follow,
}

/// What a lookup found.
pub enum Lookup<'a> {
    /// The answer was there.
    Hit(Arc<Answer>),
    /// Another request worked on it; this is its answer.
    Coalesced(Arc<Answer>),
    /// Another server found it.
    SharedHit(Arc<Answer>),
    /// The caller runs the image and hands in the answer.
    Miss(Leader<'a>),
}

impl ResultCache {
    /// A cache of `capacity_bytes`; 0 is off.
    pub fn new(capacity_bytes: u64, ttl: Duration, metrics: CacheMetrics) -> Self {
        // One shard: the bound holds for the whole, and a large answer fits as long as it fits the cache. At a few
        // thousand lookups a second its lock is free. Made as large as one may become, and then as it is to be: there its
        // evicted entries are counted most finely.
        let entries = entries_typical(limits::CACHE_BYTES_MAX);
        let options = OptionsBuilder::new()
            .shards(1)
            .weight_capacity(limits::CACHE_BYTES_MAX)
            .estimated_items_capacity(entries)
            .build();
        let (weight, hasher) = (limits::CACHE_BYTES_MAX, DefaultHashBuilder::default());
        let lifecycle = CountEvictions(metrics.evictions.clone());
        let store = match options {
            Ok(options) => Cache::with_options(options, Bytes, hasher, lifecycle),
            // Every option is given above, so this does not happen; the cache would only have more shards.
            Err(_) => Cache::with(entries, weight, Bytes, hasher, lifecycle),
        };
        let (off, ghosts) = (AtomicBool::new(true), Ghosts::new(metrics.clone()));
        let cache = Self { store, off, ttl: Mutex::new(ttl), ghosts, shared: OnceLock::new(), metrics };
        cache.set(capacity_bytes, ttl);
        cache
    }

    /// Asks the shared store too, from now on; only the first one given counts.
    pub fn share(&self, shared: SharedResults) {
        let _ = self.shared.set(shared);
    }

    /// Looks an image up, waiting for a request that is working on it. `model`'s digest is in the key; what comes from the
    /// shared store gets its class names.
    ///
    /// Cancellation: safe at any point. Ghosts count the lookup whether or not the cache is on.
    pub async fn lookup(&self, key: Key, flight: Flight, model: &ModelInfo) -> Lookup<'_> {
        let ttl = self.ttl();
        let sampled = self.ghosts.refer(&key, ttl);
        if self.off() {
            self.metrics.requests.of("bypass").inc();
            return Lookup::Miss(Leader { cache: self, key, sampled, duty: Duty::Forget });
        }
        let expired = self.store.remove_if(&key, |entry| entry.stored.elapsed() >= ttl);
        if expired.is_some() {
            self.metrics.expired.inc();
        }
        if let Some(entry) = self.store.get(&key) {
            self.metrics.requests.of("hit").inc();
            self.remember(sampled, key, &entry.answer);
            return Lookup::Hit(entry.answer);
        }
        match self.store.get_value_or_guard_async(&key).await {
            Ok(entry) => {
                self.metrics.requests.of("coalesced").inc();
                self.remember(sampled, key, &entry.answer);
                Lookup::Coalesced(entry.answer)
            }
            Err(guard) => {
                let duty = match flight {
                    Flight::Lead => Duty::Lead(guard),
                    Flight::Follow => {
                        drop(guard); // whoever waits already leads
                        Duty::Keep
                    }
                };
                let leader = Leader { cache: self, key, sampled, duty };
                let shared = match self.shared.get() {
                    Some(shared) => shared.get(&key, ttl, model).await,
                    None => None,
                };
                let Some((answer, age)) = shared else {
                    self.metrics.requests.of("miss").inc();
                    return Lookup::Miss(leader);
                };
                self.metrics.requests.of("shared_hit").inc();
                let answer = Arc::new(answer);
                leader.hand_in(Arc::clone(&answer), age);
                Lookup::SharedHit(answer)
            }
        }
    }

    /// A lookup that a request asked to skip: it is run, and its answer is not kept.
    pub fn bypass(&self, key: Key) -> Leader<'_> {
        self.metrics.requests.of("bypass").inc();
        Leader { cache: self, key, sampled: false, duty: Duty::Forget }
    }

    fn remember(&self, sampled: bool, key: Key, answer: &Answer) {
        if sampled {
            self.ghosts.store(key, answer.weight_bytes());
        }
    }

    /// Applies a new capacity and age to entries already there too. Made smaller, it evicts step by step, so that no lookup
    /// waits for all of it; that takes up to a second.
    pub fn set(&self, capacity_bytes: u64, ttl: Duration) {
        *self.ttl.lock().unwrap_or_else(PoisonError::into_inner) = ttl;
        if capacity_bytes == 0 {
            self.off.store(true, Ordering::Release);
            // One by one, so that no lookup waits. What is handed in meanwhile, is taken out by whoever did it.
            for (key, _) in self.store.iter() {
                self.evict(&key);
            }
            return;
        }
        if self.store.capacity() != capacity_bytes {
            for (step, capacity) in capacities(self.store.weight(), capacity_bytes).enumerate() {
                if step > 0 {
                    std::thread::sleep(EVICTION_PAUSE);
                }
                self.store.set_capacity(capacity);
            }
        }
        self.off.store(false, Ordering::Release);
    }

    /// Takes out what there is no room for any more.
    fn evict(&self, key: &Key) {
        // Not what somebody is about to hand in.
        if self.store.remove_if(key, |_| true).is_some() {
            self.metrics.evictions.inc();
        }
    }

    fn off(&self) -> bool {
        self.off.load(Ordering::Acquire)
    }

    fn ttl(&self) -> Duration {
        *self.ttl.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.store.weight()
    }

    /// Answers held.
    pub fn entries(&self) -> usize {
        self.store.len()
    }

    /// Bound of the bytes.
    pub fn capacity_bytes(&self) -> u64 {
        if self.off() { 0 } else { self.store.capacity() }
    }
}

/// Entries that fit `bytes`, about.
fn entries_typical(bytes: u64) -> usize {
    usize::try_from(bytes / ENTRY_BYTES_TYPICAL).unwrap_or(usize::MAX)
}

/// Capacities of a cache of `weight` bytes on its way to `wanted`.
fn capacities(weight: u64, wanted: u64) -> impl Iterator<Item = u64> {
    let next = move |from: u64| from.saturating_sub(limits::CACHE_EVICTED_BYTES_MAX).max(wanted);
    std::iter::successors(Some(next(weight)), move |last| (*last != wanted).then(|| next(*last)))
}

/// What becomes of an answer.
enum Duty<'a> {
    /// Others wait for it.
    Lead(PlaceholderGuard<'a, Key, Entry, Bytes, DefaultHashBuilder, CountEvictions>),
    /// It is kept, if nobody else runs the image.
    Keep,
    /// Nothing.
    Forget,
}

/// The duty to run an image that nobody else runs. Dropped without an answer, the next waiting request leads.
pub struct Leader<'a> {
    cache: &'a ResultCache,
    key: Key,
    sampled: bool,
    duty: Duty<'a>,
}

impl Leader<'_> {
    /// What the request's answer says about the cache: `miss`, or `bypass` if nothing will be kept.
    pub const fn label(&self) -> &'static str {
        if self.forgets() { "bypass" } else { "miss" }
    }

    const fn forgets(&self) -> bool {
        matches!(self.duty, Duty::Forget)
    }

    /// Hands in the answer: to the cache, and to everybody who waits for it.
    pub fn complete(self, answer: Arc<Answer>) {
        if let Some(shared) = self.cache.shared.get().filter(|_| !self.forgets()) {
            shared.put(&self.key, Arc::clone(&answer), self.cache.ttl());
        }
        self.hand_in(answer, Duration::ZERO);
    }

    fn hand_in(self, answer: Arc<Answer>, age: Duration) {
        self.cache.remember(self.sampled, self.key, &answer);
        let guard = match self.duty {
            Duty::Lead(guard) => guard,
            Duty::Keep => match self.cache.store.get_value_or_guard(&self.key, Some(Duration::ZERO)) {
                GuardResult::Guard(guard) => guard,
                GuardResult::Value(_) | GuardResult::Timeout => return,
            },
            Duty::Forget => return,
        };
        let now = Instant::now();
        // Refused only if the entry was replaced meanwhile: that answer is as good.
        let _ = guard.insert(Entry { answer, stored: now.checked_sub(age).unwrap_or(now) });
        if self.cache.off() {
            self.cache.evict(&self.key); // turned off since the lookup
        }
    }
}

#[cfg(test)]
mod tests {
    use yolo_vision::{BoxXyxyPx, Form, Keypoint, Rle, RotatedBoxPx};

    use super::*;
    use crate::args::Config;
    use crate::engine::emulated;
    use crate::metrics::Metrics;

    const HOUR: Duration = Duration::from_hours(1);

    fn cache(capacity_bytes: u64, ttl: Duration) -> (ResultCache, CacheMetrics) {
        let metrics = Metrics::new().cache;
        (ResultCache::new(capacity_bytes, ttl, metrics.clone()), metrics)
    }

    fn answer() -> Arc<Answer> {
        Arc::new(Answer { size: Size::new(1, 1), detections: Vec::new() })
    }

    fn model() -> ModelInfo {
        emulated::load(&Config::new("pretended.onnx")).unwrap().info
    }

    fn numbered(number: u64) -> Key {
        *blake3::hash(&number.to_le_bytes()).as_bytes()
    }

    async fn put(cache: &ResultCache, number: u64) {
        match cache.lookup(numbered(number), Flight::Lead, &model()).await {
            Lookup::Miss(leader) => leader.complete(answer()),
            _ => panic!("key {number} was there"),
        }
    }

    #[test]
    fn an_answer_takes_no_more_than_is_held_for_it() {
        let longest = 12_345.679_f32;
        let point = Keypoint { x: longest, y: longest, visible: Some(0.123_456_79) };
        let rle = Rle { size: Size::new(16_384, 3_000), counts: vec![49_152_000; 1_000] };
        let turned =
            RotatedBoxPx { centre_x: longest, centre_y: longest, width: longest, height: longest, angle_rad: longest };
        let forms = [
            Form::Box,
            Form::Polygon(vec![[longest; 2]; 1_000]),
            Form::Rle(rle),
            Form::Keypoints(vec![point; 17]),
            Form::Rotated(turned),
        ];
        let bounds = BoxXyxyPx { x1: longest, y1: longest, x2: longest, y2: longest };
        for form in forms {
            let name = "a class whose name is long: ".repeat(20).into();
            let found = Detection { name, class: u32::MAX, confidence: 0.123_456_79, bounds, form };
            let json = found.to_json(None);
            let numbers = serde_json::to_value(&json).unwrap().to_string().matches([',', '[']).count();
            let taken = size_of::<Detection>() + found.heap_bytes() // itself
                + size_of_val(&json) + 8 * numbers // as JSON has it
                + serde_json::to_string(&json).unwrap().len();
            let held = Answer { size: Size::new(1, 1), detections: vec![found] }.answered_bytes();
            assert!(taken <= held, "{taken} of {held} bytes: {json:?}");
        }
    }

    #[tokio::test]
    async fn equal_images_are_run_once_and_a_lost_leader_is_replaced() {
        let (cache, metrics) = cache(1 << 20, HOUR);
        let cache = Arc::new(cache);
        let Lookup::Miss(leader) = cache.lookup(numbered(1), Flight::Lead, &model()).await else {
            panic!("an empty cache")
        };
        let follower = || {
            let cache = Arc::clone(&cache);
            tokio::spawn(async move {
                match cache.lookup(numbered(1), Flight::Lead, &model()).await {
                    Lookup::Hit(_) => "hit",
                    Lookup::Coalesced(_) => "coalesced",
                    Lookup::SharedHit(_) => "shared_hit",
                    Lookup::Miss(leader) => {
                        leader.complete(answer());
                        "led"
                    }
                }
            })
        };
        let followers = [follower(), follower(), follower()];
        tokio::task::yield_now().await; // all three wait now
        drop(leader);
        let mut outcomes = Vec::new();
        for follower in followers {
            outcomes.push(follower.await.unwrap());
        }
        outcomes.sort_unstable();
        assert_eq!(outcomes, ["coalesced", "coalesced", "led"]);
        assert!(matches!(cache.lookup(numbered(1), Flight::Lead, &model()).await, Lookup::Hit(_)));
        assert_eq!(metrics.requests.of("coalesced").get(), 2);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_follower_and_its_answer_is_kept() {
        let (cache, _) = cache(1 << 20, HOUR);
        let Lookup::Miss(follower) = cache.lookup(numbered(1), Flight::Follow, &model()).await else {
            panic!("an empty cache")
        };
        let model = model();
        let request = tokio::time::timeout(HOUR, cache.lookup(numbered(1), Flight::Lead, &model));
        let request = futures::FutureExt::now_or_never(request).expect("it waits");
        let Ok(Lookup::Miss(leader)) = request else { panic!("nothing is kept yet") };
        follower.complete(answer()); // left to the leader
        let second = futures::FutureExt::now_or_never(cache.lookup(numbered(1), Flight::Follow, &model));
        assert!(second.is_none(), "a follower waits for a leader");
        leader.complete(answer());
        assert!(matches!(cache.lookup(numbered(1), Flight::Follow, &model).await, Lookup::Hit(_)));
        let Lookup::Miss(follower) = cache.lookup(numbered(2), Flight::Follow, &model).await else {
            panic!("another image")
        };
        follower.complete(answer());
        assert!(matches!(cache.lookup(numbered(2), Flight::Lead, &model).await, Lookup::Hit(_)));
    }

    #[tokio::test]
    async fn the_bytes_stay_within_the_capacity_and_a_smaller_one_evicts() {
        let one = answer().weight_bytes();
        let (cache, metrics) = cache(10 * one, HOUR);
        for number in 0..100 {
            put(&cache, number).await;
        }
        assert!(cache.entries() <= 10 && cache.entries() > 4, "{}", cache.entries());
        assert!(cache.bytes() <= 10 * one);
        cache.set(2 * one, HOUR);
        assert!(cache.bytes() <= 2 * one, "{}", cache.bytes());
        assert!(metrics.evictions.get() >= 90);
        cache.set(0, HOUR);
        assert_eq!(cache.entries(), 0);
        put(&cache, 1).await;
        put(&cache, 1).await; // off: never found
    }

    #[test]
    fn a_smaller_capacity_is_reached_in_steps_and_a_larger_one_at_once() {
        let one = limits::CACHE_EVICTED_BYTES_MAX;
        let of = |weight, wanted| capacities(weight, wanted).collect::<Vec<_>>();
        assert_eq!(of(3 * one + 1, 0), [2 * one + 1, one + 1, 1, 0]);
        assert_eq!(of(3 * one, one), [2 * one, one]);
        assert_eq!(of(7, 7), [7]);
        assert_eq!(of(3 * one, 9 * one), [9 * one], "nothing is evicted");
        assert_eq!(of(0, 0), [0]);
    }

    /// Hits of lookups of `numbers`, of which each answer that was not there is put.
    async fn hits(cache: &ResultCache, numbers: impl IntoIterator<Item = u64>) -> usize {
        let (model, mut hits) = (model(), 0);
        for number in numbers {
            match cache.lookup(numbered(number), Flight::Lead, &model).await {
                Lookup::Hit(_) => hits += 1,
                Lookup::Miss(leader) => leader.complete(answer()),
                _ => panic!("nobody else asks"),
            }
        }
        hits
    }

    #[tokio::test]
    async fn new_favourites_displace_old_ones_as_well_after_the_cache_was_off() {
        // Each as large as ten boxes, about: 1 000 entries of 2 000 places for small ones.
        let capacity = 1_000 * ENTRY_BYTES_TYPICAL;
        let (always, _) = cache(capacity, HOUR);
        let (at_first, _) = cache(0, HOUR);
        let (between, _) = cache(capacity, HOUR);
        put(&between, 1).await;
        at_first.set(capacity, HOUR);
        for _ in 0..20 {
            between.set(0, HOUR);
            assert_eq!((between.entries(), between.capacity_bytes()), (0, 0));
            between.set(capacity, HOUR);
        }
        let fit = usize::try_from(capacity / answer().weight_bytes()).unwrap() as u64;
        // The new ones come again after more others than a cache without a memory of evictions holds on trial.
        let favourites = 1_000_000..1_000_000 + fit / 12;
        let mut of = Vec::new();
        for cache in [&always, &at_first, &between] {
            hits(cache, (0..fit).chain(0..fit)).await;
            hits(cache, favourites.clone().chain(favourites.clone())).await;
            of.push(hits(cache, favourites.clone()).await);
        }
        assert!(of[0] > favourites.clone().count() * 9 / 10, "{of:?}");
        assert!(of.iter().all(|hits| *hits == of[0]), "{of:?}");
    }

    #[tokio::test]
    async fn what_is_handed_in_after_the_cache_was_turned_off_is_not_kept() {
        let (cache, metrics) = cache(1 << 20, HOUR);
        let Lookup::Miss(leader) = cache.lookup(numbered(1), Flight::Lead, &model()).await else {
            panic!("an empty cache")
        };
        cache.set(0, HOUR);
        leader.complete(answer());
        assert_eq!((cache.entries(), cache.bytes(), metrics.evictions.get()), (0, 0, 1));
    }

    #[tokio::test]
    async fn a_shorter_age_counts_for_old_entries_too() {
        let (cache, metrics) = cache(1 << 20, HOUR);
        put(&cache, 7).await;
        cache.set(1 << 20, Duration::ZERO);
        assert!(matches!(cache.lookup(numbered(7), Flight::Lead, &model()).await, Lookup::Miss(_)));
        assert_eq!(metrics.expired.get(), 1);
    }

    #[test]
    fn the_key_depends_on_what_decides_the_answer_and_on_nothing_else() {
        const SIZE: Size = Size::new(640, 640);
        let standard = Parameters::default();
        let of = |parameters: &Parameters| key(("model", SIZE), parameters, &[7; 32]);
        let classes = |classes: &[u32]| Parameters { classes: Some(classes.to_vec()), ..Parameters::default() };
        assert_eq!(of(&classes(&[2, 0, 2])), of(&classes(&[0, 2])));
        assert_eq!(of(&standard), of(&Parameters { normalize: true, ..standard.clone() }));
        let others = [
            Parameters { confidence: 0.3, ..standard.clone() },
            Parameters { iou: 0.5, ..standard.clone() },
            Parameters { detections_max: 10, ..standard.clone() },
            Parameters { agnostic: true, ..standard.clone() },
            Parameters { masks: Masks::Rle, ..standard.clone() },
            classes(&[]),
        ];
        for other in &others {
            assert_ne!(of(other), of(&standard), "{other:?}");
        }
        assert_ne!(key(("model", Size::new(320, 320)), &standard, &[7; 32]), of(&standard));
        assert_ne!(key(("other", SIZE), &standard, &[7; 32]), of(&standard));
        assert_ne!(key(("model", SIZE), &standard, &[8; 32]), of(&standard));
    }
}
