//! What the planner learned, for `status.learned`: the next leader's head start.

use yolo_api::v1alpha1::status::{HitPoint, Learned, LearnedCurve, MemoryModel, SizeMean};
use yolo_planner::State;
use yolo_planner::state;
use yolo_planner::units::Timestamp;

use super::Kept;
use super::text::{time, two_digits};
use crate::limits;

/// What was learned, if it is time to write it down: first when the service curve is known, then every
/// [`limits::LEARNED_REFRESH`].
pub fn due(state: &State, kept: Option<&Kept>, now: Timestamp) -> Option<Learned> {
    let written = kept.and_then(|kept| kept.learned);
    if written.is_some_and(|written| now.since(written) < limits::LEARNED_REFRESH.as_secs_f64()) {
        return None;
    }
    let learned = state.learned();
    learned.curve.is_some().then(|| document(&learned, now))
}

fn document(learned: &state::Learned, now: Timestamp) -> Learned {
    Learned {
        time: Some(time(now)),
        curve: learned.curve.as_ref().map(curve),
        overhead_seconds: learned.overhead.map(|value| digits(value.get())),
        cpu_per_image_seconds: learned.cpu_per_image.map(|value| digits(value.get())),
        startup_warm_seconds: learned.startup_warm.map(|value| digits(value.get())),
        startup_cold_seconds: learned.startup_cold.map(|value| digits(value.get())),
        dispersion: learned.dispersion.map(|value| digits(value.get())),
        hit_curve: learned
            .hit_curve
            .iter()
            .map(|point| HitPoint { bytes: signed(point.bytes.get()), ratio: digits(point.ratio.get()) })
            .collect(),
        memory: learned.memory.as_ref().map(|model| MemoryModel {
            base_bytes: signed(model.base.get()),
            per_image_bytes: signed(model.per_image.get()),
        }),
        kappa: learned.kappa.map(|value| digits(value.get())),
    }
}

fn curve(curve: &state::LearnedCurve) -> LearnedCurve {
    LearnedCurve {
        alpha_seconds: digits(curve.alpha.get()),
        beta_seconds: digits(curve.beta.get()),
        uncertainty_seconds: digits(curve.uncertainty.get()),
        sizes: curve
            .sizes
            .iter()
            .map(|size| SizeMean {
                size: i32::try_from(size.size.get()).unwrap_or(i32::MAX),
                mean_seconds: digits(size.mean.get()),
                deviation_seconds: digits(size.deviation.get()),
                weight: two_digits(size.weight),
            })
            .collect(),
    }
}

/// Three digits more than people are shown: a head start should not begin with a rounding error of 5 %.
fn digits(value: f64) -> f64 {
    if value == 0.0 {
        return 0.0;
    }
    let scale = 10_f64.powf(4.0 - value.abs().log10().floor());
    (value * scale).round() / scale
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
