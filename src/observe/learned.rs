//! `status.learned` as the start of a new leader's state: a hint, checked value by value, outvoted by data.

use std::time::Duration;

use yolo_api::v1alpha1::YoloInferenceService;
use yolo_api::v1alpha1::status::{Learned as Stored, LearnedCurve as StoredCurve, SizeMean as StoredSize};
use yolo_planner::State;
use yolo_planner::state::{HitPoint, Learned, LearnedCurve, MemoryModel, SizeMean};
use yolo_planner::units::{BatchSize, Bytes, Ratio, Seconds, Timestamp};

/// Longest start that the planner itself learns; a longer one would keep pods for as long.
const STARTUP_MAX_S: f64 = 3600.0;
/// Time outside the engine beyond which no target could hold.
const OVERHEAD_MAX_S: f64 = 60.0;

/// The planner's state for an object of which nothing is remembered.
pub fn seed(service: &YoloInferenceService) -> State {
    let stored = service.status.as_ref().and_then(|status| status.learned.as_ref());
    stored.map_or_else(State::default, |stored| State::seeded(&learned(stored)))
}

fn learned(stored: &Stored) -> Learned {
    Learned {
        time: stored.time.as_ref().map_or_else(Timestamp::default, |time| {
            Timestamp::from(Duration::from_secs(u64::try_from(time.0.as_second()).unwrap_or(0)))
        }),
        curve: stored.curve.as_ref().map(curve),
        overhead: stored.overhead_seconds.filter(|value| *value <= OVERHEAD_MAX_S).and_then(seconds),
        cpu_per_image: stored.cpu_per_image_seconds.and_then(seconds),
        startup_warm: stored.startup_warm_seconds.filter(|value| *value <= STARTUP_MAX_S).and_then(seconds),
        startup_cold: stored.startup_cold_seconds.filter(|value| *value <= STARTUP_MAX_S).and_then(seconds),
        dispersion: stored.dispersion.and_then(ratio),
        hit_curve: stored
            .hit_curve
            .iter()
            .filter_map(|point| Some(HitPoint { bytes: bytes(point.bytes), ratio: ratio(point.ratio)? }))
            .collect(),
        memory: stored
            .memory
            .as_ref()
            .map(|model| MemoryModel { base: bytes(model.base_bytes), per_image: bytes(model.per_image_bytes) }),
        kappa: stored.kappa.and_then(ratio),
    }
}

fn curve(stored: &StoredCurve) -> LearnedCurve {
    LearnedCurve {
        alpha: seconds(stored.alpha_seconds).unwrap_or_default(),
        beta: seconds(stored.beta_seconds).unwrap_or_default(),
        uncertainty: seconds(stored.uncertainty_seconds).unwrap_or_default(),
        sizes: stored.sizes.iter().filter_map(size).collect(),
    }
}

fn size(stored: &StoredSize) -> Option<SizeMean> {
    Some(SizeMean {
        size: BatchSize::try_from(u32::try_from(stored.size).ok()?).ok()?,
        mean: seconds(stored.mean_seconds)?,
        deviation: seconds(stored.deviation_seconds)?,
        weight: Some(stored.weight).filter(|weight| weight.is_finite() && *weight >= 0.0)?,
    })
}

fn seconds(value: f64) -> Option<Seconds> {
    Seconds::try_from(value).ok()
}

fn ratio(value: f64) -> Option<Ratio> {
    Ratio::try_from(value).ok()
}

fn bytes(value: i64) -> Bytes {
    Bytes::new(u64::try_from(value).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_hint_is_dropped_and_a_sound_one_kept() {
        let hint = |overhead_s: f64, startup_s: f64| {
            learned(&Stored {
                overhead_seconds: Some(overhead_s),
                startup_warm_seconds: Some(startup_s),
                startup_cold_seconds: Some(startup_s),
                ..Stored::default()
            })
        };
        let absurd = hint(1e6, 1e9);
        assert_eq!((absurd.overhead, absurd.startup_warm, absurd.startup_cold), (None, None, None));
        let sound = hint(0.25, 90.0);
        assert_eq!((sound.overhead, sound.startup_warm), (Seconds::try_from(0.25).ok(), Some(Seconds::whole(90))));
    }
}
