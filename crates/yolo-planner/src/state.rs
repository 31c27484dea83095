//! What the planner remembers between calls, and the part of it that outlives a leader.

#[cfg(test)]
mod fullest;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::arrivals::Arrivals;
use crate::burn::Burn;
use crate::control::Control;
use crate::curve::Curve;
use crate::deadline::Feasibility;
use crate::diagnose::Diagnosis;
use crate::feedback::Feedback;
use crate::forecast::{self, Forecasts};
use crate::guard::Guard;
use crate::histogram::{self, Histogram};
use crate::hits::Hits;
use crate::intake::{Shape, Tally};
use crate::outcome::Open;
use crate::pod_model::{self, Cpu, Memory, Stages, Startup};
use crate::policy::Policy;
use crate::table::Table;
use crate::targets::Verdicts;
use crate::units::{BatchSize, Bytes, Ratio, Seconds, Timestamp, whole_millis};
use crate::window::Window;

/// Slots that remember which samples were taken. Pods that share a slot lose a sample now and then, no more.
const MARKS: usize = 128;

/// What was learned about a service; the operator keeps it in `status.learned` for the next leader.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Learned {
    /// When.
    pub time: Timestamp,
    /// Time of a batch.
    pub curve: Option<LearnedCurve>,
    /// Response time less queue and engine, at the API target's percentile.
    pub overhead: Option<Seconds>,
    /// CPU time an image, all stages.
    pub cpu_per_image: Option<Seconds>,
    /// From creation to ready, p90, where a node had room.
    pub startup_warm: Option<Seconds>,
    /// The same where a node had to come first.
    pub startup_cold: Option<Seconds>,
    /// Variance over mean of arrivals in a second, 1..=8.
    pub dispersion: Option<Ratio>,
    /// Hit ratio by cache size, rising.
    pub hit_curve: Vec<HitPoint>,
    /// Working set as a function of batch and cache.
    pub memory: Option<MemoryModel>,
    /// Correction of the capacity from measured latency; 1 is none.
    pub kappa: Option<Ratio>,
}

/// The service curve t(b) = alpha + beta·b, and the sizes as measured.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LearnedCurve {
    /// Time of a call without images.
    pub alpha: Seconds,
    /// Time an image adds.
    pub beta: Seconds,
    /// Standard deviation of a call's time about the line.
    pub uncertainty: Seconds,
    /// Measured sizes.
    pub sizes: Vec<SizeMean>,
}

/// One measured batch size.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SizeMean {
    /// Images a call.
    pub size: BatchSize,
    /// Mean time of a call.
    pub mean: Seconds,
    /// Standard deviation of a call's time.
    pub deviation: Seconds,
    /// Calls that the mean rests on, older ones counted less.
    pub weight: f64,
}

/// Hit ratio of one cache size.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HitPoint {
    /// Cache of a pod.
    pub bytes: Bytes,
    /// Share of the references that it answers.
    pub ratio: Ratio,
}

/// Working set = `base + per_image·b + 1.15·cache`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MemoryModel {
    /// Without images and cache.
    pub base: Bytes,
    /// What an image of a batch adds.
    pub per_image: Bytes,
}

/// Everything that one call hands to the next. Opaque; serialisable for tests and simulators, at most 16 KiB in a binary
/// format.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
// The derived functions are the state's own; the traits are implemented below, with edges of histograms shared.
#[serde(default, remote = "Self")]
pub struct State {
    /// Time of the last call.
    pub(crate) last: Option<Timestamp>,
    /// Start of the last series tick, seconds since the epoch.
    pub(crate) tick_at_s: Option<f64>,
    /// Time of the last tick.
    pub(crate) last_live: Option<Timestamp>,
    /// Since when too few pods are seen.
    pub(crate) blind_since: Option<Timestamp>,
    /// End of the newest sample taken, by slot of pods, milliseconds since the epoch.
    #[serde(with = "ages")]
    marks: Vec<u64>,
    pub(crate) tally: Tally,
    pub(crate) shape: Shape,
    pub(crate) arrivals: Arrivals,
    pub(crate) forecasts: Forecasts,
    pub(crate) curve: Curve,
    pub(crate) table: Table,
    pub(crate) hits: Hits,
    pub(crate) cpu: Cpu,
    pub(crate) stages: Stages,
    pub(crate) memory: Memory,
    pub(crate) startup: Startup,
    pub(crate) window: Window,
    /// Overhead quantile while the pods were not overloaded, seconds.
    pub(crate) overhead_s: Option<f64>,
    pub(crate) control: Control,
    pub(crate) feasibility: Feasibility,
    pub(crate) feedback: Feedback,
    pub(crate) burn: Burn,
    pub(crate) guard: Guard,
    pub(crate) verdicts: Verdicts,
    pub(crate) diagnosis: Diagnosis,
    /// The newest change, until its outcome is known.
    pub(crate) open: Option<Open>,
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut shared = self.clone();
        histogram::share_edges(shared.histograms());
        Self::serialize(&shared, serializer)
    }
}

impl<'de> Deserialize<'de> for State {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut state = Self::deserialize(deserializer)?;
        histogram::restore_edges(state.histograms());
        Ok(state)
    }
}

impl State {
    fn histograms(&mut self) -> Vec<&mut Histogram> {
        let mut all = self.window.histograms();
        all.extend(self.diagnosis.watch.histograms());
        all
    }

    /// The state of a new leader that knows what the last one learned.
    pub fn seeded(learned: &Learned) -> Self {
        let (cpu, memory, startup) = pod_model::seeded(learned);
        Self {
            arrivals: Arrivals::seeded(learned.dispersion.map_or(0.0, Ratio::get)),
            curve: learned.curve.as_ref().map(Curve::seeded).unwrap_or_default(),
            hits: Hits::seeded(&learned.hit_curve),
            cpu,
            memory,
            startup,
            overhead_s: learned.overhead.map(Seconds::get),
            feedback: learned.kappa.map_or_else(Feedback::default, |kappa| Feedback::seeded(kappa.get())),
            ..Self::default()
        }
    }

    /// How far ahead pods are ordered at `now`: until one ordered at the next tick serves its share.
    pub fn horizon(&self, policy: &Policy, now: Timestamp) -> Seconds {
        Seconds::try_from(forecast::horizon_s(policy, self.startup.expected_s(now))).unwrap_or_default()
    }

    /// The id of the decision whose outcome is still awaited.
    pub fn awaited(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.record.id)
    }

    /// What was learned so far.
    pub fn learned(&self) -> Learned {
        let mut learned = Learned {
            time: self.last.unwrap_or_default(),
            curve: self.curve.learned(),
            overhead: self.overhead_s.and_then(|value| Seconds::try_from(value).ok()),
            dispersion: Ratio::try_from(self.arrivals.dispersion()).ok(),
            hit_curve: self.hits.learned(),
            kappa: Ratio::try_from(self.kappa()).ok(),
            ..Learned::default()
        };
        pod_model::learn(&mut learned, &self.cpu, &self.memory, &self.startup);
        learned
    }

    /// Forgets what was judged of another model, device or size of pod. What is learned by class of pods (the curve, the
    /// memory) stays until pods of the new class serve.
    pub(crate) fn forget_revision(&mut self) {
        self.feedback = Feedback::default();
        self.guard = Guard::default();
        self.burn = Burn::default();
    }

    /// Correction of the capacity from measured latency (control.md §7); 1 is none.
    pub(crate) const fn kappa(&self) -> f64 {
        self.feedback.kappa()
    }

    /// Whether a pod's sample that ends at `until` was not taken yet.
    pub(crate) fn is_new(&self, pod: u64, until: Timestamp) -> bool {
        self.marks.get(slot(pod)).is_none_or(|mark| whole_millis(until.get()) > *mark)
    }

    /// Remembers that a pod's sample up to `until` was taken.
    pub(crate) fn mark(&mut self, pod: u64, until: Timestamp) {
        self.marks.resize(MARKS, 0);
        if let Some(mark) = self.marks.get_mut(slot(pod)) {
            *mark = whole_millis(until.get()).max(*mark);
        }
    }
}

/// Times as the newest one and how much older each is: a few digits instead of thirteen.
mod ages {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(times: &[u64], serializer: S) -> Result<S::Ok, S::Error> {
        let newest = times.iter().copied().max().unwrap_or(0);
        let ages: Vec<u64> = times.iter().map(|time| newest - time).collect();
        (newest, ages).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
        let (newest, ages) = <(u64, Vec<u64>)>::deserialize(deserializer)?;
        Ok(ages.into_iter().map(|age| newest.saturating_sub(age)).collect())
    }
}

fn slot(pod: u64) -> usize {
    usize::try_from(pod % MARKS as u64).unwrap_or(0)
}
