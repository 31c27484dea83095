//! A straight line through the last ticks, damped: arrivals that rise now rise a little further (control.md §5, Trend).
//!
//! Off unless the policy asks for it: on recorded traffic it costs 4–5 % more pods for 0.2–0.3 points fewer bad windows.

use crate::arrivals::Arrivals;
use crate::units::real;

/// Standard deviations of a counted slope that make it one.
const SIGNIFICANT: f64 = 3.0;
/// Share of the slope that is left after each tick: an undamped line overshoots every peak.
const DAMPING: f64 = 0.85;
/// Furthest that the line may lead, times the level.
const LEAD_MAX: f64 = 2.5;

/// The rate a horizon ahead, images/s; `None` where the slope may be noise or falls.
pub(super) fn forecast(arrivals: &Arrivals, level: f64, (horizon_s, tick_s): (f64, f64)) -> Option<f64> {
    let rates = arrivals.ticks_kept();
    if !arrivals.full() {
        return None;
    }
    let count = real(u64::try_from(rates.len()).ok()?);
    let middle = (count - 1.0) / 2.0;
    let mean = rates.iter().sum::<f64>() / count;
    let (mut moments, mut spread) = (0.0, 0.0);
    for (at, rate) in (0_u32..).zip(rates) {
        let offset = (f64::from(at) - middle) * tick_s;
        moments += offset * (rate - mean);
        spread += offset * offset;
    }
    let slope = moments / spread;
    // A count's variance is its mean times the dispersion; a tick's rate is a count over the tick's length.
    let deviation = (arrivals.dispersion() * mean / (tick_s * spread)).sqrt();
    let ahead = DAMPING * (1.0 - libm::pow(DAMPING, horizon_s / tick_s)) / (1.0 - DAMPING);
    (slope > SIGNIFICANT * deviation).then(|| (level + slope * tick_s * ahead).min(LEAD_MAX * level))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rising(from: f64, step: f64) -> Arrivals {
        let mut arrivals = Arrivals::default();
        for tick in 0..6 {
            arrivals.tick(from + step * f64::from(tick), 1, 5.0);
        }
        arrivals
    }

    #[test]
    fn a_clear_rise_goes_on_damped() {
        // 20/s a tick; seven ticks ahead the damped steps sum to 0.85·(1 - 0.85⁷)/0.15 = 3.85.
        let found = forecast(&rising(100.0, 20.0), 200.0, (35.0, 5.0)).unwrap();
        assert!((found - (200.0 + 20.0 * 3.85)).abs() < 0.5, "{found}");
    }

    #[test]
    fn noise_and_falls_have_no_trend() {
        assert_eq!(forecast(&rising(100.0, 1.0), 105.0, (35.0, 5.0)), None, "2.6 deviations");
        assert_eq!(forecast(&rising(100.0, -15.0), 25.0, (35.0, 5.0)), None);
    }

    #[test]
    fn a_trend_leads_by_at_most_two_and_a_half() {
        let found = forecast(&rising(10.0, 100.0), 60.0, (180.0, 5.0)).unwrap();
        assert!((found - 150.0).abs() < 1e-9, "{found}");
    }
}
