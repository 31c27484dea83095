//! What arrives: a rate for each second and the law of the gaps (control.md §10, "Traces").

use std::f64::consts::TAU;
use std::sync::Arc;

use crate::random::Random;

const HOUR_S: usize = 3600;
const DAY_S: usize = 24 * HOUR_S;
/// When `step` rises: not on a multiple of any scaler's period.
pub const STEP_AT_S: usize = 903;

/// How arrivals are spread at a given rate.
#[derive(Debug, Clone, PartialEq)]
pub enum Gaps {
    /// A Poisson process.
    Poisson,
    /// A renewal process with gamma gaps of this coefficient of variation.
    Gamma(f64),
    /// Exactly these moments, in rising order: what a real run offered.
    Recorded(Arc<[f64]>),
}

/// What arrives over time.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Images/s in each second.
    pub rates: Vec<f64>,
    /// How they are spread.
    pub gaps: Gaps,
}

/// A generator of traces.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A day with two humps and slow noise.
    Diurnal,
    /// Two triangles of 2 h.
    Ramp,
    /// A minute of eight times the rate in every half-hour.
    Spike,
    /// Two states that last exponential times.
    Mmpp,
    /// Once up by this factor.
    Step(u32),
    /// Constant, with gamma gaps of this coefficient of variation.
    Gamma(u32),
    /// A day with bursts as in the published counts of a microblog: steps of 2–5×, 12 a day.
    TwitterLike,
    /// Constant, Poisson.
    Constant,
}

impl Kind {
    /// As the report calls it.
    pub fn name(self) -> String {
        match self {
            Self::Diurnal => "diurnal".to_owned(),
            Self::Ramp => "ramp".to_owned(),
            Self::Spike => "spike".to_owned(),
            Self::Mmpp => "mmpp".to_owned(),
            Self::Step(factor) => format!("step-x{factor}"),
            Self::Gamma(cv) => format!("gamma-cv{cv}"),
            Self::TwitterLike => "twitter-like".to_owned(),
            Self::Constant => "constant".to_owned(),
        }
    }

    /// The trace of `seed` whose usual peak is `peak` images/s.
    pub fn trace(self, peak: f64, seed: u64) -> Trace {
        let mut random = Random::new(seed, 1);
        let rates = match self {
            Self::Diurnal => diurnal(peak, &mut random),
            Self::Ramp => (0..4 * HOUR_S).map(|s| peak * (0.1 + 0.9 * triangle(s as f64 / 7200.0))).collect(),
            Self::Spike => {
                let rate = |s: usize| if (900..960).contains(&(s % 1800)) { peak } else { peak / 8.0 };
                (0..4 * HOUR_S).map(rate).collect()
            }
            Self::Mmpp => mmpp(peak, &mut random),
            Self::Step(factor) => {
                let rate = |s: usize| peak / 4.0 * if s < STEP_AT_S { 1.0 } else { f64::from(factor) };
                (0..1800).map(rate).collect()
            }
            Self::Gamma(_) | Self::Constant => vec![peak / 4.0; HOUR_S],
            Self::TwitterLike => twitter_like(peak, &mut random),
        };
        let gaps = if let Self::Gamma(cv) = self { Gaps::Gamma(f64::from(cv)) } else { Gaps::Poisson };
        Trace { rates, gaps }
    }
}

/// 0 at whole numbers, 1 half-way between.
fn triangle(turns: f64) -> f64 {
    1.0 - 2.0 * (turns.fract() - 0.5).abs()
}

/// A sine of the day: `per_day` periods, zero at `hour`.
fn wave(second: usize, hour: f64, per_day: f64) -> f64 {
    libm::sin(TAU * (second as f64 / 3600.0 - hour) * per_day / 24.0)
}

/// Slow noise of standard deviation 6 %: x ← .998x + .004N each second.
fn drift(random: &mut Random) -> impl FnMut() -> f64 {
    let mut x = 0.0;
    move || {
        x = 0.998 * x + 0.004 * random.normal();
        1.0 + x
    }
}

fn diurnal(peak: f64, random: &mut Random) -> Vec<f64> {
    let mut noise = drift(random);
    let shape = |s| 1.0 + 0.35 * wave(s, 8.0, 1.0) + 0.12 * wave(s, 3.0, 2.0);
    (0..DAY_S).map(|s| (peak / 1.47 * shape(s) * noise()).max(0.0)).collect()
}

fn mmpp(peak: f64, random: &mut Random) -> Vec<f64> {
    let mut rates = Vec::with_capacity(12 * HOUR_S);
    let mut high = true;
    while rates.len() < 12 * HOUR_S {
        let (rate, mean_s) = if high { (peak, 120.0) } else { (peak / 4.0, 480.0) };
        let seconds = (mean_s * random.exponential()).round() as usize;
        rates.extend(std::iter::repeat_n(rate, seconds));
        high = !high;
    }
    rates.truncate(12 * HOUR_S);
    rates
}

/// One burst: a factor that rises, holds and falls.
struct Burst {
    at_s: f64,
    factor: f64,
    rise_s: f64,
    hold_s: f64,
}

const BURST_FALL_S: f64 = 180.0;

impl Burst {
    fn draw(at_s: f64, random: &mut Random) -> Self {
        let hold_s = libm::exp(libm::log(470.0) + 0.8 * random.normal()).clamp(60.0, 1200.0);
        Self { at_s, factor: random.between(2.0, 5.0), rise_s: random.between(22.0, 60.0), hold_s }
    }

    fn at(&self, second: f64) -> f64 {
        let since = second - self.at_s;
        let until_end = self.rise_s + self.hold_s + BURST_FALL_S - since;
        let share = (since / self.rise_s).min(until_end / BURST_FALL_S).clamp(0.0, 1.0);
        1.0 + (self.factor - 1.0) * share
    }
}

fn twitter_like(peak: f64, random: &mut Random) -> Vec<f64> {
    let mut bursts = Vec::new();
    for half_hour in 1..48_u32 {
        if random.unit() <= 0.21 {
            let at_s = f64::from(half_hour) * 1800.0 + random.between(-120.0, 120.0);
            bursts.push(Burst::draw(at_s, random));
        }
    }
    let mut at_s = 0.0;
    loop {
        at_s += 3600.0 / 0.11 * random.exponential();
        if at_s >= DAY_S as f64 {
            break;
        }
        bursts.push(Burst::draw(at_s, random));
    }
    let mut noise = drift(random);
    let rate = |s: usize| {
        let burst: f64 = bursts.iter().map(|burst| burst.at(s as f64)).product();
        (peak / 5.5 * (1.0 + 0.15 * wave(s, 8.0, 1.0)) * noise() * burst.min(5.0)).max(0.0)
    };
    (0..DAY_S).map(rate).collect()
}

impl Trace {
    /// The arrivals at `moments` (seconds, rising) as they were, over `seconds`.
    pub fn recorded(moments: &[f64], seconds: usize) -> Self {
        let mut rates = vec![0.0; seconds];
        for moment in moments {
            if let Some(rate) = rates.get_mut(*moment as usize) {
                *rate += 1.0;
            }
        }
        Self { rates, gaps: Gaps::Recorded(moments.into()) }
    }

    /// Greatest mean over three seconds, images/s.
    pub fn peak(&self) -> f64 {
        self.rates.windows(3).map(|three| three.iter().sum::<f64>() / 3.0).fold(0.0, f64::max)
    }

    /// Images that arrive on average.
    pub fn images(&self) -> f64 {
        self.rates.iter().sum()
    }
}

/// Draws the moments of arrival, the same for every scaler.
#[derive(Debug, Clone)]
pub struct Arrivals {
    random: Random,
    gaps: Gaps,
    /// What is left of the present gap, in mean gaps: time-changed by the rate, so that a rate that is constant within
    /// a second is followed exactly.
    left: f64,
    /// Recorded moments that were handed out.
    replayed: usize,
}

impl Arrivals {
    /// The arrivals of `seed`.
    pub fn new(gaps: Gaps, seed: u64) -> Self {
        let mut arrivals = Self { random: Random::new(seed, 2), gaps, left: 0.0, replayed: 0 };
        arrivals.left = arrivals.gap();
        arrivals
    }

    fn gap(&mut self) -> f64 {
        match self.gaps {
            Gaps::Poisson => self.random.exponential(),
            Gaps::Gamma(cv) => {
                let shape = 1.0 / (cv * cv);
                self.random.gamma(shape) / shape
            }
            // Never asked for: the moments are handed out as they are.
            Gaps::Recorded(_) => f64::INFINITY,
        }
    }

    /// The next arrival if one comes before `until_s`, counting from `from_s` at `rate`.
    pub fn next(&mut self, from_s: f64, until_s: f64, rate: f64) -> Option<f64> {
        if let Gaps::Recorded(moments) = &self.gaps {
            let at_s = moments.get(self.replayed).copied().filter(|at_s| *at_s < until_s)?;
            self.replayed += 1;
            return Some(at_s.max(from_s));
        }
        let at_s = from_s + self.left / rate;
        if at_s < until_s {
            self.left = self.gap();
            return Some(at_s);
        }
        self.left -= (until_s - from_s) * rate;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_have_their_length_mean_and_peak() {
        let diurnal = Kind::Diurnal.trace(4000.0, 1);
        assert_eq!(diurnal.rates.len(), DAY_S);
        assert!((diurnal.images() / DAY_S as f64 - 2721.0).abs() < 60.0);
        assert!((3600.0..4800.0).contains(&diurnal.peak()), "{}", diurnal.peak());
        let ramp = Kind::Ramp.trace(100.0, 1);
        assert_eq!((ramp.rates[0], ramp.rates[3600], ramp.rates[7200]), (10.0, 100.0, 10.0));
        let spike = Kind::Spike.trace(800.0, 1);
        assert_eq!(
            (spike.rates[899], spike.rates[900], spike.rates[959], spike.rates[960]),
            (100.0, 800.0, 800.0, 100.0)
        );
        let step = Kind::Step(4).trace(4000.0, 1);
        assert_eq!((step.rates[902], step.rates[903]), (1000.0, 4000.0));
        let states = Kind::Mmpp.trace(400.0, 2).rates;
        assert!(states.iter().all(|rate| (rate - 100.0).abs() < 1e-9 || (rate - 400.0).abs() < 1e-9));
    }

    #[test]
    fn bursts_come_about_twelve_a_day_and_stay_below_five_times() {
        let mut total = 0;
        for seed in 0..10 {
            let rates = Kind::TwitterLike.trace(5500.0, seed).rates;
            assert!(rates.iter().all(|rate| *rate < 1000.0 * 5.0 * 1.5));
            let busy: Vec<bool> = rates.iter().map(|rate| *rate > 1700.0).collect();
            total += busy.windows(2).filter(|pair| !pair[0] && pair[1]).count();
        }
        assert!((80..=200).contains(&total), "{total} in ten days");
    }

    #[test]
    fn seeds_repeat_and_differ() {
        assert_eq!(Kind::Mmpp.trace(1.0, 3), Kind::Mmpp.trace(1.0, 3));
        assert_ne!(Kind::Mmpp.trace(1.0, 3), Kind::Mmpp.trace(1.0, 4));
    }

    #[test]
    fn recorded_arrivals_come_when_they_came() {
        let moments = [0.25, 0.25, 1.5, 3.75];
        let trace = Trace::recorded(&moments, 4);
        assert_eq!(trace.rates, [2.0, 1.0, 0.0, 1.0]);
        let mut arrivals = Arrivals::new(trace.gaps.clone(), 1);
        let mut replayed = Vec::new();
        for (second, rate) in (0..4).zip(trace.rates) {
            let (mut from_s, until_s) = (f64::from(second), f64::from(second + 1));
            while let Some(at_s) = arrivals.next(from_s, until_s, rate) {
                replayed.push(at_s);
                from_s = at_s;
            }
        }
        assert_eq!(replayed, moments);
    }

    #[test]
    fn gaps_have_their_rate_and_variation() {
        for (gaps, cv) in [(Gaps::Poisson, 1.0), (Gaps::Gamma(4.0), 4.0)] {
            let mut arrivals = Arrivals::new(gaps.clone(), 9);
            let mut times = Vec::new();
            for second in 0..2000 {
                let (mut from, until) = (f64::from(second), f64::from(second + 1));
                while let Some(at) = arrivals.next(from, until, 100.0) {
                    times.push(at);
                    from = at;
                }
            }
            let spread: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let mean = spread.iter().sum::<f64>() / spread.len() as f64;
            let variance = spread.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / spread.len() as f64;
            assert!((mean - 0.01).abs() < 0.0005, "{mean}");
            assert!((variance.sqrt() / mean - cv).abs() < 0.1 * cv, "{}", variance.sqrt() / mean);
        }
    }
}
