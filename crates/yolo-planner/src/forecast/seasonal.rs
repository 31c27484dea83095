//! What came at this time before: the greatest rate one period ago, believed only where it has proved better than the
//! level (control.md §5, Seasonal).

use serde::{Deserialize, Serialize};

use super::series::Series;

/// Ticks kept one by one: an hour at 5 s and a horizon before it.
const TICKS_MAX: usize = 720 + super::HORIZON_TICKS_MAX;
/// Beyond an hour, maxima of two minutes for a day, and of a quarter of an hour for a week: a day of ticks would not fit
/// into the state, and a peak is a peak a minute early as well.
const MINUTE_S: f64 = 120.0;
const MINUTES_MAX: usize = 720 + 16;
const QUARTER_S: f64 = 900.0;
const QUARTERS_MAX: usize = 672 + 4;
/// Periods that are tried, seconds.
pub(crate) const PERIODS_S: [f64; 7] = [300.0, 600.0, 900.0, 1800.0, 3600.0, 86_400.0, 604_800.0];
/// What a tick leaves of earlier errors: a time constant of 667 ticks, about an hour.
const DECAY: f64 = 0.9985;
/// Squared log errors of the level, about their mean, that make a period worth looking at.
const LEVEL_ERROR_MIN: f64 = 1.0;
/// Scored ticks, decayed, from which errors count: neighbours share most of their horizon, so that fewer hold too few
/// independent ones to tell a season from luck.
const SCORED_MIN: f32 = 200.0;
/// Share of them that a period must stay below to be believed.
const ERROR_SHARE_MAX: f64 = 0.4;
/// Ticks of a period after the first for which it is only scored.
const PROBATION_TICKS: f64 = 720.0;
/// How far beyond the other forecasts a period may lead, unless the past peak covers it.
const LEAD_MAX: f64 = 4.0;
/// Rates below count as this one, or a logarithm would make a lull an endless error.
const RATE_MIN: f64 = 0.1;

/// Decayed log errors of one forecast: how many, their sum, and the sum of their squares.
///
/// control.md §5 sums the squares alone. About their mean they tell a season from noise: where a tick holds few
/// images, the greatest of seven is always above the level and near another greatest of seven, but such a constant factor
/// is the bound's to cover, and a forecast that only adds noise must not be believed for it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Errors {
    count: f32,
    sum: f32,
    squares: f32,
}

impl Errors {
    fn add(&mut self, error: f64) {
        self.count = decayed(self.count, 1.0);
        self.sum = decayed(self.sum, error);
        self.squares = decayed(self.squares, error * error);
    }

    /// Squared errors about their mean.
    fn scatter(self) -> f64 {
        let (count, sum) = (f64::from(self.count), f64::from(self.sum));
        (f64::from(self.squares) - sum * sum / count.max(1.0)).max(0.0)
    }
}

/// The errors of one period, and of the level in the same ticks.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Score {
    period: Errors,
    level: Errors,
}

/// Maxima of equal stretches of time.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Maxima {
    closed: Series,
    /// The stretch under way: its length so far, seconds, and its maximum.
    open_s: f64,
    open: f64,
}

impl Maxima {
    fn push(&mut self, rate: f64, tick_s: f64, (stretch_s, most): (f64, usize)) {
        let stretch_s = stretch(stretch_s, tick_s);
        self.open = self.open.max(rate);
        self.open_s += tick_s;
        if self.open_s >= stretch_s - 1e-6 {
            self.closed.push(self.open, most);
            (self.open_s, self.open) = (0.0, 0.0);
        }
    }

    /// The greatest rate between `from_s` and `to_s` seconds ago.
    fn greatest(&self, (from_s, to_s): (f64, f64), (stretch_s, tick_s): (f64, f64)) -> Option<f64> {
        let stretch_s = stretch(stretch_s, tick_s);
        self.closed.greatest(whole((to_s - self.open_s) / stretch_s)?, whole((from_s - self.open_s) / stretch_s)?)
    }
}

/// The past of the arrivals, and which periods of it have proved themselves.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Seasonal {
    ticks: Series,
    minutes: Maxima,
    quarters: Maxima,
    /// Length of all that was seen without a long gap, seconds.
    seen_s: f64,
    scores: [Score; PERIODS_S.len()],
}

impl Seasonal {
    /// Appends a tick.
    pub(crate) fn push(&mut self, rate: f64, tick_s: f64) {
        self.ticks.push(rate, TICKS_MAX);
        self.minutes.push(rate, tick_s, (MINUTE_S, MINUTES_MAX));
        self.quarters.push(rate, tick_s, (QUARTER_S, QUARTERS_MAX));
        self.seen_s = (self.seen_s + tick_s).min(1e9);
    }

    /// The greatest rate of the last `horizon` ticks.
    pub(crate) fn realised(&self, horizon: usize) -> Option<f64> {
        self.ticks.greatest(0, horizon.checked_sub(1)?)
    }

    /// The means of two ticks that ended within the last `horizon` ticks, the newest first.
    pub(crate) fn realised_pairs(&self, horizon: usize) -> Option<Vec<f64>> {
        let pairs = (0..horizon).map(|at| Some(f64::midpoint(self.ticks.back(at)?, self.ticks.back(at + 1)?)));
        pairs.collect()
    }

    /// Scores each period by what it said `horizon` ticks ago, when the level was `level`: `realised` came since.
    pub(crate) fn score(&mut self, level: f64, realised: f64, (horizon, tick_s): (usize, f64)) {
        for (index, period_s) in PERIODS_S.into_iter().enumerate() {
            let Some(past) = self.past(period_s, horizon, (horizon, tick_s)) else { continue };
            let error = |forecast: f64| libm::log(realised.max(RATE_MIN) / forecast.max(RATE_MIN));
            if let Some(score) = self.scores.get_mut(index) {
                score.period.add(error(past.max(level)));
                score.level.add(error(level));
            }
        }
    }

    /// What the best-proved period says of the next `horizon` ticks, images/s, if one has proved itself.
    ///
    /// `others`: what the other forecasts say; `peak`: the past peak.
    pub(crate) fn forecast(&self, (others, peak): (f64, f64), (horizon, tick_s): (usize, f64)) -> Option<f64> {
        let admitted = PERIODS_S.into_iter().zip(&self.scores).filter(|(period_s, score)| {
            let probation_s = period_s.min(PROBATION_TICKS * tick_s);
            self.seen_s > period_s + probation_s
                && score.level.count >= SCORED_MIN
                && score.level.scatter() > LEVEL_ERROR_MIN
                && score.period.scatter() < ERROR_SHARE_MAX * score.level.scatter()
        });
        let most = (LEAD_MAX * others).max(peak);
        let said = admitted.filter_map(|(period_s, _)| self.past(period_s, 0, (horizon, tick_s)));
        said.max_by(f64::total_cmp).map(|rate| rate.min(most))
    }

    /// The greatest rate within a horizon from one period ago, as seen `ago` ticks ago.
    fn past(&self, period_s: f64, ago: usize, (horizon, tick_s): (usize, f64)) -> Option<f64> {
        let start = whole(period_s / tick_s)?.checked_add(ago)?;
        if start < TICKS_MAX {
            return self.ticks.greatest(start.saturating_sub(horizon), start);
        }
        let seconds = |count: usize| crate::units::real(count as u64) * tick_s;
        let (from_s, horizon_s) = (period_s + seconds(ago), seconds(horizon));
        let minutes = self.minutes.greatest((from_s, from_s - horizon_s), (MINUTE_S, tick_s));
        minutes.or_else(|| self.quarters.greatest((from_s, from_s - horizon_s), (QUARTER_S, tick_s)))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "an error's seventh digit decides nothing")]
fn decayed(sum: f32, error: f64) -> f32 {
    (f64::from(sum) * DECAY + error).clamp(-1e9, 1e9) as f32
}

/// A stretch of whole ticks.
fn stretch(least_s: f64, tick_s: f64) -> f64 {
    (least_s / tick_s - 1e-9).ceil() * tick_s
}

/// A count of steps, rounded down; `None` for what is none.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in 0..1e9 by the check")]
fn whole(value: f64) -> Option<usize> {
    (0.0..1e9).contains(&value).then_some(value as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK_S: f64 = 5.0;
    const HORIZON: usize = 7;

    /// Plays `rate` by tick and returns the forecast at each.
    fn play(ticks: u32, rate: impl Fn(u32) -> f64) -> Vec<Option<f64>> {
        let (mut seasonal, mut levels, mut said) = (Seasonal::default(), Series::default(), Vec::new());
        for tick in 0..ticks {
            seasonal.push(rate(tick), TICK_S);
            let now = (tick.saturating_sub(5)..=tick).map(&rate).sum::<f64>() / f64::from(tick.min(5) + 1);
            if let Some((level, realised)) = levels.back(HORIZON - 1).zip(seasonal.realised(HORIZON)) {
                seasonal.score(level, realised, (HORIZON, TICK_S));
            }
            levels.push(now, 100);
            said.push(seasonal.forecast((now, 1000.0), (HORIZON, TICK_S)));
        }
        said
    }

    /// A minute of 100/s every ten minutes, else 10/s.
    fn spikes(tick: u32) -> f64 {
        if tick % 120 < 12 { 100.0 } else { 10.0 }
    }

    fn scores(period: f32, level: f32) -> [Score; PERIODS_S.len()] {
        let errors = |squares: f32| Errors { count: SCORED_MIN, sum: 0.0, squares };
        [Score { period: errors(period), level: errors(level) }; PERIODS_S.len()]
    }

    #[test]
    fn a_spike_that_repeats_is_seen_a_horizon_ahead() {
        let said = play(720, spikes);
        assert_eq!(said[200], None, "one period and a probation first");
        let before = said[600 - 5].unwrap();
        assert!((before / 100.0 - 1.0).abs() < 0.01, "25 s before the spike: {before}");
        let after = said[600 + 30].unwrap();
        assert!(after < 11.0, "and it is over when it is over: {after}");
    }

    /// Ticks uniform in 50..100/s: a season is seen by luck, if at all.
    #[test]
    fn noise_has_no_season() {
        let mut believed = 0;
        for start in 0..8_u64 {
            let mut seed = start;
            let noise: Vec<f64> = (0..1500)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    50.0 + 50.0 * crate::units::real(seed >> 11) / crate::units::real(1 << 53)
                })
                .collect();
            believed += play(1500, |tick| noise[tick as usize]).iter().filter(|said| said.is_some()).count();
        }
        assert!(believed < 8 * 1500 / 50, "{believed} of 12 000 ticks");
    }

    #[test]
    fn steady_arrivals_need_no_season() {
        assert!(play(1500, |_| 80.0).iter().all(Option::is_none));
    }

    #[test]
    fn a_lead_ends_at_four_times_the_level_or_the_past_peak() {
        let mut seasonal = Seasonal::default();
        for tick in 0..600 {
            seasonal.push(spikes(tick), TICK_S);
        }
        seasonal.scores = scores(0.1, 2.0);
        let said = |others: f64, peak: f64| seasonal.forecast((others, peak), (HORIZON, TICK_S)).unwrap();
        assert!((said(10.0, 20.0) - 40.0).abs() < 1e-9);
        assert!((said(10.0, 70.0) - 70.0).abs() < 1e-9);
        assert!((said(30.0, 20.0) / 100.0 - 1.0).abs() < 0.01);
    }

    #[test]
    fn a_period_that_errs_more_than_four_tenths_of_the_level_is_not_believed() {
        let mut seasonal = Seasonal::default();
        for tick in 0..600 {
            seasonal.push(spikes(tick), TICK_S);
        }
        let mut said = |period: f32, level: f32| {
            seasonal.scores = scores(period, level);
            seasonal.forecast((10.0, 1000.0), (HORIZON, TICK_S)).is_some()
        };
        assert!(said(0.79, 2.0));
        assert!(!said(0.81, 2.0));
        assert!(!said(0.0, 0.9), "a level that does not err needs no help");
    }

    #[test]
    fn a_day_is_remembered_by_minutes_and_a_week_by_quarters() {
        let mut seasonal = Seasonal::default();
        let day = 17_280;
        for tick in 0..7 * day + 200 {
            let noon = tick % day == 8_640;
            seasonal.push(
                if noon && tick < day {
                    500.0
                } else if noon {
                    90.0
                } else {
                    10.0
                },
                TICK_S,
            );
        }
        // 200 ticks past midnight of the eighth day; noon is 8 440 ticks ahead.
        for _ in 0..8_440 - 4 {
            seasonal.push(10.0, TICK_S);
        }
        let past = |period_s: f64| seasonal.past(period_s, 0, (HORIZON, TICK_S)).unwrap();
        assert!((past(86_400.0) / 90.0 - 1.0).abs() < 0.01, "yesterday's noon: {}", past(86_400.0));
        assert!((past(604_800.0) / 500.0 - 1.0).abs() < 0.01, "last week's: {}", past(604_800.0));
        let text = serde_json::to_string(&seasonal).unwrap();
        assert!(text.len() < 7_000, "{}", text.len());
    }
}
