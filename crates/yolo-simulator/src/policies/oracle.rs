//! The clairvoyant: knows the arrivals, and starts pods just in time (control.md §10, "Oracle").

use yolo_planner::policy::Accelerator;

use crate::scaler::{Look, Order, Scaler};
use crate::service::Service;
use crate::trace::{Arrivals, Trace};

/// Pods by second.
#[derive(Debug, Clone)]
pub struct Clairvoyant {
    pods: Vec<u32>,
}

/// Most pods that a clairvoyant thinks of.
const PODS_MAX: u32 = 100_000;

/// Share of the pods' best rate that can be used within the target, by their number.
fn pool(accelerator: Accelerator, pods: u32) -> f64 {
    match (accelerator, pods) {
        (Accelerator::Gpu, 0..=1) => 0.96,
        (Accelerator::Gpu, 2..=3) => 0.98,
        (Accelerator::Gpu, _) => 0.99,
        (Accelerator::Cpu, 0..=1) => 0.70,
        (Accelerator::Cpu, 2) => 0.82,
        (Accelerator::Cpu, 3..=4) => 0.90,
        (Accelerator::Cpu, 5..=8) => 0.95,
        (Accelerator::Cpu, _) => 0.97,
    }
}

/// Least pods that carry `rate`.
fn least(service: &Service, rate: f64) -> u32 {
    let each = service.saturation_tuned();
    let enough = |pods: &u32| f64::from(*pods) * each * pool(service.accelerator, *pods) >= rate;
    (1..PODS_MAX).find(enough).unwrap_or(PODS_MAX)
}

/// The images that arrive in each second of a run: the same draws as the fleet's.
pub fn arrivals_by_second(trace: &Trace, seed: u64) -> Vec<u32> {
    let mut arrivals = Arrivals::new(trace.gaps.clone(), seed);
    let count = |(second, rate): (usize, &f64)| {
        let (mut from_s, until_s) = (second as f64, (second + 1) as f64);
        let mut count = 0;
        while let Some(at_s) = arrivals.next(from_s, until_s, *rate) {
            from_s = at_s;
            count += 1;
        }
        count
    };
    trace.rates.iter().enumerate().map(count).collect()
}

impl Clairvoyant {
    /// The pods that `arrivals` need, each started `startup_s` and a second early, and kept over gaps that are too
    /// short to start anew.
    pub fn new(service: &Service, startup_s: f64, arrivals: &[u32]) -> Self {
        let needs = |second: usize| {
            let from = second.saturating_sub(1);
            let around = arrivals.get(from..(second + 2).min(arrivals.len())).unwrap_or(&[]);
            let mean = around.iter().map(|n| f64::from(*n)).sum::<f64>() / (around.len() as f64).max(1.0);
            least(service, mean)
        };
        let needs: Vec<u32> = (0..arrivals.len()).map(needs).collect();
        let early = startup_s as usize + 1;
        let mut pods = vec![0; needs.len()];
        for level in 1..=needs.iter().copied().max().unwrap_or(0) {
            for (from, until) in spans(&needs, level, early) {
                let held = pods.iter_mut().take(until).skip(from.saturating_sub(early));
                held.for_each(|second| *second += 1);
            }
        }
        Self { pods }
    }

    /// Pods ordered at the start.
    pub fn first(&self) -> u32 {
        self.pods.first().copied().unwrap_or(1)
    }

    /// Pods, second by second.
    pub fn pods(&self) -> &[u32] {
        &self.pods
    }

    /// Seconds of pods from `from_s` on.
    pub fn pod_seconds(&self, from_s: f64) -> f64 {
        self.pods.iter().skip(from_s as usize).map(|pods| f64::from(*pods)).sum()
    }
}

/// Spans in which at least `level` pods are needed; those nearer than a start-up are joined.
fn spans(needs: &[u32], level: u32, startup: usize) -> Vec<(usize, usize)> {
    let mut spans: Vec<(usize, usize)> = Vec::new();
    for (second, _) in needs.iter().enumerate().filter(|(_, need)| **need >= level) {
        match spans.last_mut() {
            Some((_, until)) if second - *until < startup => *until = second + 1,
            _ => spans.push((second, second + 1)),
        }
    }
    spans
}

impl Scaler for Clairvoyant {
    fn period_s(&self) -> u32 {
        1
    }

    fn decide(&mut self, look: &Look<'_>) -> Order {
        let pods = self.pods.get(look.now_s as usize).or_else(|| self.pods.last()).copied();
        Order::pods(look, pods.unwrap_or(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_follow_the_pool() {
        assert_eq!(least(&Service::GPU, 370.0), 1);
        assert_eq!(least(&Service::GPU, 380.0), 2);
        assert_eq!(least(&Service::GPU, 4.0 * 388.0 * 0.99), 4);
        assert_eq!(least(&Service::CPU, 25.0), 2, "one pod of CPU sessions carries .7 of its best rate");
    }

    #[test]
    fn pods_start_early_and_short_gaps_are_bridged() {
        let mut arrivals = vec![100; 1000];
        arrivals[500..520].fill(700);
        arrivals[535..540].fill(700);
        let oracle = Clairvoyant::new(&Service::GPU, 30.0, &arrivals);
        let two: Vec<usize> = (0..1000).filter(|second| oracle.pods[*second] == 2).collect();
        assert_eq!((two.first(), two.last(), two.len()), (Some(&469), Some(&539), 71));
        assert!((oracle.pod_seconds(0.0) - 1071.0).abs() < 1e-9);
    }

    #[test]
    fn the_arrivals_are_the_fleets() {
        let trace = Trace { rates: vec![50.0; 200], gaps: crate::trace::Gaps::Poisson };
        let counts = arrivals_by_second(&trace, 4);
        let world = crate::world::World::new(Service::GPU, 2);
        let run = crate::fleet::run(&world, &trace, 4, &mut super::super::StaticPeak(2));
        assert!(run.ledger.seconds.iter().map(|second| second.arrivals).eq(counts));
    }
}
