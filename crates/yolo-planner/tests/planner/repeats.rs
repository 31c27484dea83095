//! Pictures that repeat by chance: what the cache answers of constant arrivals moves about its mean.

use crate::guards::policy;
use crate::plain::{Plain, Random};
use crate::support::{batch, histogram, seconds};
use yolo_planner::Decision;
use yolo_planner::observation::{BatchCount, CacheCounts, Observation, Sample, Signal};
use yolo_planner::policy::{Accelerator, Knob};
use yolo_planner::units::{Bytes, Replicas, SecondsSquared};

/// Time of an image, seconds.
const IMAGE_S: f64 = 0.016;
/// What a response takes beside queue and engine, seconds.
const OVERHEAD_S: f64 = 0.004;

/// A fleet with a warm cache that answers each image with the same probability; arrivals are even.
struct Repeating {
    fleet: Plain,
    random: Random,
}

impl Repeating {
    fn new(replicas_max: u32, seed: u64) -> Self {
        let mut policy = policy(Accelerator::Cpu);
        policy.replicas = Knob::auto(Replicas::new(1), Replicas::new(replicas_max));
        policy.batch = Knob::auto(batch(1), batch(1));
        policy.cache = Knob::auto(Bytes::mebi(64), Bytes::mebi(64));
        let mut fleet = Plain::new(policy, IMAGE_S, seed);
        fleet.even = Some(0.0);
        Self { fleet, random: Random(seed) }
    }

    /// Of a pod's images each was seen before with probability `repeats`.
    fn answer(&mut self, sample: &mut Sample, repeats: f64) {
        let hits = (0..sample.arrivals).filter(|_| self.random.next() < repeats).count();
        let misses = sample.arrivals as usize - hits;
        let time_s = misses as f64 * IMAGE_S;
        let mut latencies = vec![OVERHEAD_S; hits];
        latencies.extend(vec![OVERHEAD_S + IMAGE_S; misses]);
        sample.cache = CacheCounts { hits: hits as u64, misses: misses as u64, evictions: 0 };
        sample.batches = vec![BatchCount {
            size: batch(1),
            count: misses as u64,
            seconds: seconds(time_s),
            seconds_squared: SecondsSquared::try_from(time_s * IMAGE_S).unwrap(),
        }];
        sample.api = histogram(&latencies);
        sample.overhead = histogram(&vec![OVERHEAD_S; latencies.len()]);
        sample.inference = histogram(&vec![IMAGE_S; misses]);
    }

    fn run(&mut self, rate: f64, repeats: f64, ticks: u32) -> Vec<Decision> {
        (0..ticks)
            .map(|_| {
                let mut seen: Observation = self.fleet.look(rate);
                for pod in &mut seen.pods {
                    let Signal::Live { value, .. } = &mut pod.sample else { continue };
                    self.answer(value, repeats);
                }
                self.fleet.decide(&seen)
            })
            .collect()
    }
}

#[test]
fn chance_in_what_repeats_moves_no_pods_to_and_fro() {
    // About what one pod and two carry.
    for rate in [80_u32, 82, 84, 168, 170, 172] {
        let mut service = Repeating::new(12, u64::from(rate));
        service.run(f64::from(rate), 0.4, 120);
        let decisions = service.run(f64::from(rate), 0.4, 720);
        let moved = decisions.windows(2).filter(|two| two[0].desired.replicas != two[1].desired.replicas).count();
        assert!(moved < 2, "at {rate}/s within an hour: {moved}");
    }
}
