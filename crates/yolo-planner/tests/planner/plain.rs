//! A fleet without queues: what pods would report if each image took its time and none waited. Fast enough for hours of
//! ticks and thousands of schedules.

use crate::support::{at, batch, histogram, seconds};
use yolo_planner::observation::{BatchCount, Knobs, Observation, PerSecond, Phase, Pod, Sample, Signal};
use yolo_planner::policy::Policy;
use yolo_planner::units::{Bytes, Seconds, SecondsSquared};
use yolo_planner::{Decision, State, plan};

pub const START_S: f64 = 1_700_000_000.0;
const TICK_S: f64 = 5.0;

/// Deterministic numbers in 0..1.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() * n as f64) as u64
    }

    /// A Poisson count: exact below a mean of 30, by the normal law above.
    pub fn poisson(&mut self, mean: f64) -> u64 {
        if mean > 30.0 {
            let normal = (0..12).map(|_| self.next()).sum::<f64>() - 6.0;
            return (mean + normal * mean.sqrt()).round().max(0.0) as u64;
        }
        let (mut count, mut product, limit) = (0, self.next(), (-mean).exp());
        while product > limit {
            product *= self.next();
            count += 1;
        }
        count
    }
}

/// The fleet: as many pods as the knobs say, all ready, batches of one.
#[derive(Clone)]
pub struct Plain {
    pub policy: Policy,
    pub knobs: Knobs,
    pub state: State,
    pub now_s: f64,
    pub each_s: f64,
    pub random: Random,
    /// Arrivals come evenly, not by chance; what is left of the last image.
    pub even: Option<f64>,
}

impl Plain {
    pub fn new(policy: Policy, each_s: f64, seed: u64) -> Self {
        let knobs = Knobs::initial(&policy);
        Self { policy, knobs, state: State::default(), now_s: START_S, each_s, random: Random(seed), even: None }
    }

    /// Arrivals of which a second has `mean`.
    fn second(&mut self, mean: f64) -> u64 {
        let Some(left) = self.even else { return self.random.poisson(mean) };
        let count = (left + mean).floor();
        self.even = Some(left + mean - count);
        count as u64
    }

    /// What one pod reports of `images` images.
    pub fn sample(&mut self, mean: f64) -> Sample {
        let bins: Vec<u64> = (0..5).map(|_| self.second(mean / TICK_S)).collect();
        let images: u64 = bins.iter().sum();
        let time_s = images as f64 * self.each_s;
        let latencies = vec![self.each_s + 0.004; images.min(40) as usize];
        Sample {
            until: at(self.now_s),
            span: Seconds::whole(5),
            arrivals: images,
            done: images,
            batches: vec![BatchCount {
                size: batch(1),
                count: images,
                seconds: seconds(time_s),
                seconds_squared: SecondsSquared::try_from(time_s * self.each_s).unwrap(),
            }],
            per_second: PerSecond { n: 5, sum: images, sum_sq: bins.iter().map(|bin| bin * bin).sum() },
            api: histogram(&latencies),
            inference: histogram(&latencies),
            overhead: histogram(&vec![0.004; latencies.len()]),
            rss: Bytes::mebi(150),
            workers: 1,
            ..Sample::default()
        }
    }

    /// The next look, five seconds later, at `rate` images/s.
    pub fn look(&mut self, rate: f64) -> Observation {
        self.now_s += TICK_S;
        let mut seen = Observation::new(self.knobs);
        let pods = self.knobs.replicas.get();
        for id in 0..pods {
            let value = self.sample(rate * TICK_S / f64::from(pods));
            seen.pods.push(Pod {
                id: u64::from(id),
                class: 0,
                phase: Phase::Ready,
                created: at(START_S - 30.0),
                ready: Some(at(START_S - 20.0)),
                oom_killed: None,
                sample: Signal::Live { value, age: Seconds::ZERO },
            });
        }
        seen.applied_pods = pods;
        seen
    }

    /// Decides on `seen` and applies the answer.
    pub fn decide(&mut self, seen: &Observation) -> Decision {
        let decision = plan(&self.policy, seen, &self.state, at(self.now_s));
        self.state = decision.state.clone();
        self.knobs = decision.desired;
        decision
    }

    /// Ticks at `rate` images/s; the last decision.
    pub fn run(&mut self, rate: impl Fn(u32) -> f64, ticks: u32) -> Vec<Decision> {
        (0..ticks)
            .map(|tick| {
                let seen = self.look(rate(tick));
                self.decide(&seen)
            })
            .collect()
    }
}
