//! What will arrive until a pod ordered now serves: the level, or the greatest of the forecasts that have proved
//! themselves, times a factor that covers their past errors (control.md §5).

mod bound;
mod seasonal;
mod series;
mod trend;

use serde::{Deserialize, Serialize};

pub(crate) use bound::Bound;
use seasonal::Seasonal;
use series::Series;

use crate::arrivals::Arrivals;
use crate::explain::Expert;
use crate::policy::{Experts, Policy, Routing};

/// Longest horizon that forecasts are scored at: four minutes at ticks of 5 s, beyond the start of a pod whose node has
/// to come first.
pub(crate) const HORIZON_TICKS_MAX: usize = 48;
/// Behind a cluster IP connections must be recycled before a new pod gets its share (control.md §5).
const RECYCLED_S: f64 = 15.0;
/// Ticks without a look up to which the arrivals are taken to have stayed as they are; a caller may come each 30 s while
/// nothing happens. Beyond, nothing is known of the time between.
pub(crate) const GAP_TICKS_MAX: u32 = 6;
/// Rates below say nothing about how well they were forecast, images/s.
const RATE_MIN: f64 = 0.1;

/// The forecasts, scored tick by tick.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Forecasts {
    pub(crate) bound: Bound,
    seasonal: Seasonal,
    /// Level and forecast of the last ticks, until what they were about has come.
    levels: Series,
    expected: Series,
    /// Length of the ticks that all of this counts in, seconds.
    tick_s: f64,
    newest: Newest,
}

/// The forecast of the last tick.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Newest {
    /// Images/s.
    pub(crate) rate: f64,
    pub(crate) expert: Expert,
}

/// A tick, or several of the same rate since the last look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// Images/s.
    pub(crate) rate: f64,
    pub(crate) ticks: u32,
    pub(crate) tick_s: f64,
    pub(crate) horizon_s: f64,
    pub(crate) experts: Experts,
    /// The target's window, and the share of its images that may be refused: 0 where too many wait instead.
    pub(crate) window_s: f64,
    pub(crate) let_go: f64,
}

/// How far ahead pods are ordered: until one ordered at the next tick serves, seconds.
pub(crate) fn horizon_s(policy: &Policy, startup_s: f64) -> f64 {
    let recycled_s = if policy.routing == Routing::Random { RECYCLED_S } else { 0.0 };
    startup_s + policy.tick_s() + recycled_s
}

impl Forecasts {
    /// The forecast until the horizon.
    pub(crate) const fn newest(&self) -> Newest {
        self.newest
    }

    /// Appends a tick, scores what was forecast of it, and forecasts anew.
    ///
    /// `arrivals` already hold the tick.
    pub(crate) fn tick(&mut self, arrivals: &Arrivals, step: Step) {
        if step.ticks > GAP_TICKS_MAX || (step.tick_s - self.tick_s).abs() > 1e-6 {
            // What lies before a gap, or was counted in other ticks, has no known distance from now.
            self.seasonal = Seasonal::default();
            self.levels.clear();
            self.expected.clear();
            self.tick_s = step.tick_s;
        }
        let horizon = horizon_ticks(step);
        // After a gap nothing is known of the ticks in it.
        let ticks = if step.ticks > GAP_TICKS_MAX { 1 } else { step.ticks.max(1) };
        for _ in 0..ticks {
            self.seasonal.push(step.rate, step.tick_s);
            self.judge(horizon, step);
            self.newest = self.forecast(arrivals, horizon, step);
            self.levels.push(arrivals.level(step.tick_s), HORIZON_TICKS_MAX + 1);
            self.expected.push(self.newest.rate, HORIZON_TICKS_MAX + 1);
        }
    }

    /// Compares what was forecast a horizon ago with what came since.
    fn judge(&mut self, horizon: usize, step: Step) {
        // The series end with the last tick, so that a horizon before this one is one step less far back.
        let ago = horizon.saturating_sub(1);
        if let Some((level, came)) = self.levels.back(ago).zip(self.seasonal.realised(horizon)) {
            self.seasonal.score(level, came, (horizon, step.tick_s));
        }
        let forecast = self.expected.back(ago).filter(|rate| *rate >= RATE_MIN);
        if let Some((forecast, came)) = forecast.zip(self.seasonal.realised_pairs(horizon)) {
            let window = whole_ticks(step.window_s, step.tick_s);
            self.bound.add(bound::needed(&came, window, step.let_go) / forecast);
        }
    }

    fn forecast(&self, arrivals: &Arrivals, horizon: usize, step: Step) -> Newest {
        let level = arrivals.level(step.tick_s);
        let mut newest = Newest { rate: level, expert: Expert::Level };
        if step.experts.trend {
            let rate = trend::forecast(arrivals, level, (step.horizon_s, step.tick_s));
            newest = newest.or_more(rate, Expert::Trend);
        }
        if step.experts.seasonal {
            let rate = self.seasonal.forecast((newest.rate, arrivals.peak()), (horizon, step.tick_s));
            newest = newest.or_more(rate, Expert::Seasonal);
        }
        newest
    }
}

impl Newest {
    fn or_more(self, rate: Option<f64>, expert: Expert) -> Self {
        rate.filter(|rate| *rate > self.rate).map_or(self, |rate| Self { rate, expert })
    }
}

/// The horizon in whole ticks, at least one.
fn horizon_ticks(step: Step) -> usize {
    whole_ticks(step.horizon_s, step.tick_s).min(HORIZON_TICKS_MAX)
}

/// A time in whole ticks, at least one.
fn whole_ticks(time_s: f64, tick_s: f64) -> usize {
    usize::try_from(crate::units::ceil_u32(time_s / tick_s.max(1e-3)).max(1)).unwrap_or(usize::MAX)
}

#[cfg(test)]
impl Forecasts {
    /// As after eight days: every series as long as it can be.
    pub(crate) fn fill(&mut self) {
        for tick in 0..8 * 17_280 {
            let rate = 12_345.678 + f64::from(tick % 1000);
            self.seasonal.push(rate, 5.0);
            if tick < 1000 {
                self.bound.add(1.0 + f64::from(tick) / 1000.0);
                self.levels.push(rate, HORIZON_TICKS_MAX + 1);
                self.expected.push(rate, HORIZON_TICKS_MAX + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Step = Step {
        rate: 10.0,
        ticks: 1,
        tick_s: 5.0,
        horizon_s: 35.0,
        experts: Experts { trend: false, seasonal: true },
        window_s: 60.0,
        let_go: 0.0,
    };

    fn play(rates: impl Iterator<Item = f64>) -> (Forecasts, Vec<Newest>) {
        let (mut forecasts, mut arrivals, mut said) = (Forecasts::default(), Arrivals::default(), Vec::new());
        for rate in rates {
            arrivals.tick(rate, 1, 5.0);
            forecasts.tick(&arrivals, Step { rate, ..STEP });
            said.push(forecasts.newest());
        }
        (forecasts, said)
    }

    #[test]
    fn the_bound_covers_what_came_within_the_horizon() {
        // 100/s, and 130/s in the last tick of every seven: each horizon holds one, two ticks of it mean 115/s.
        let (forecasts, _) = play((0..600).map(|tick| if tick % 7 == 6 { 130.0 } else { 100.0 }));
        let factor = forecasts.bound.factor();
        assert!((1.08..1.18).contains(&factor), "115 over a level of 100 to 105: {factor}");
    }

    #[test]
    fn a_season_leads_and_says_so() {
        let (_, said) = play((0..720).map(|tick| if tick % 120 < 12 { 100.0 } else { 10.0 }));
        assert_eq!(said[595].expert, Expert::Seasonal);
        assert_eq!(said[660].expert, Expert::Level);
    }

    #[test]
    fn a_gap_forgets_what_has_no_distance_any_more() {
        let (mut forecasts, _) = play((0..720).map(|tick| if tick % 120 < 12 { 100.0 } else { 10.0 }));
        let mut arrivals = Arrivals::default();
        arrivals.tick(10.0, 7, 5.0);
        let step = Step { ticks: 7, ..STEP };
        forecasts.tick(&arrivals, step);
        assert_eq!(forecasts.newest(), Newest { rate: 10.0, expert: Expert::Level });
        assert!((forecasts.bound.factor() - 1.15).abs() > 1e-9, "errors stay errors");
    }

    #[test]
    fn a_cluster_ip_needs_a_longer_horizon() {
        let horizon = |routing| horizon_s(&Policy { routing, ..Policy::default() }, 30.0);
        assert!((horizon(Routing::LeastOutstanding) - 35.0).abs() < 1e-9);
        assert!((horizon(Routing::Random) - 50.0).abs() < 1e-9);
    }
}
