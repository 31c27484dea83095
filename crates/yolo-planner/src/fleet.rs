//! A fleet, event by event, as the simulator of control.md §10 runs it: what the chain's answers are held against.
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts and ranks are far below 2^32"
)]

use std::collections::VecDeque;

/// A fleet of equal pods behind a balancer that sends each image to the pod with the fewest.
pub(crate) struct Fleet<'a> {
    /// Seconds of a batch of 1, 2, … images, at least `batch` long.
    pub(crate) times: &'a [f64],
    pub(crate) batch: usize,
    pub(crate) pods: usize,
}

#[derive(Clone, Default)]
struct Pod {
    waiting: VecDeque<f64>,
    running: Vec<f64>,
    until: f64,
}

/// xorshift64*: any generator will do, as long as runs repeat.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11;
        (bits as f64 + 0.5) / (1_u64 << 53) as f64
    }
}

impl Fleet<'_> {
    fn start(&self, pod: &mut Pod, now: f64) {
        let size = pod.waiting.len().min(self.batch);
        if size > 0 && pod.running.is_empty() {
            pod.running = pod.waiting.drain(..size).collect();
            pod.until = now + self.times[size - 1];
        }
    }

    /// The `q`-quantile of waiting and running of `images` Poisson arrivals at `rate` images/s, seconds.
    pub(crate) fn quantile(&self, rate: f64, images: usize, q: f64) -> f64 {
        let mut random = Random(0x9E37_79B9_7F4A_7C15);
        let mut pods = vec![Pod::default(); self.pods];
        let (mut arrival, mut arrived, mut latencies) = (0.0, 0, Vec::with_capacity(images));
        while latencies.len() < images {
            let running = pods.iter().enumerate().filter(|(_, pod)| !pod.running.is_empty());
            let next = running.min_by(|(_, a), (_, b)| a.until.total_cmp(&b.until)).map(|(at, pod)| (at, pod.until));
            if let Some((at, until)) = next.filter(|(_, until)| *until <= arrival) {
                let pod = &mut pods[at];
                latencies.extend(pod.running.drain(..).map(|came| until - came));
                self.start(pod, until);
                continue;
            }
            let start = arrived % self.pods;
            let least = (0..self.pods).map(|offset| (start + offset) % self.pods);
            let at = least.min_by_key(|at| pods[*at].waiting.len() + pods[*at].running.len()).unwrap();
            pods[at].waiting.push_back(arrival);
            self.start(&mut pods[at], arrival);
            arrival -= random.uniform().ln() / rate;
            arrived += 1;
        }
        // The first tenth is the way from an empty fleet to a busy one.
        let mut steady = latencies.split_off(images / 10);
        steady.sort_by(f64::total_cmp);
        steady[((steady.len() - 1) as f64 * q) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Server;
    use crate::choose::tests::scene;
    use crate::policy::{Accelerator, LatencyTarget};
    use crate::units::{Replicas, Seconds};

    fn line(alpha_ms: f64, beta_ms: f64) -> Vec<f64> {
        (1..=16).map(|n| (alpha_ms + beta_ms * f64::from(n)) / 1e3).collect()
    }

    /// control.md §1, finding 1: p95 within 4 %.
    #[test]
    fn the_chain_predicts_p95() {
        for (alpha, beta, batch) in [(6.0, 2.2, 16), (6.0, 2.2, 4), (10.0, 6.0, 8), (5.0, 28.0, 2)] {
            let times = line(alpha, beta);
            let server = Server::new(&times, batch, 1.0).unwrap();
            for share in [0.3, 0.5, 0.7, 0.85, 0.92] {
                let rate = share * server.saturation();
                let predicted = server.latencies(rate).unwrap().quantile(0.95);
                let fleet = Fleet { times: &times, batch: batch as usize, pods: 1 };
                let seen = fleet.quantile(rate, 300_000, 0.95);
                println!("{alpha}+{beta}b b={batch} ρ={share}: {:.2} ms, seen {:.2}", predicted * 1e3, seen * 1e3);
                assert!(
                    (predicted / seen - 1.0).abs() < 0.05,
                    "{alpha}+{beta}b b={batch} ρ={share}: {predicted} {seen}"
                );
            }
        }
    }

    /// Law 11: a feasible plan meets its targets at the planned rate, 5 % slack.
    #[test]
    fn a_feasible_choice_meets_its_targets() {
        let cases = [
            (Accelerator::Gpu, 6.0, 2.2, 120, [90.0, 330.0, 900.0, 2400.0]),
            (Accelerator::Gpu, 10.0, 6.0, 150, [40.0, 150.0, 500.0, 900.0]),
            (Accelerator::Cpu, 5.0, 28.0, 200, [10.0, 40.0, 120.0, 190.0]),
        ];
        for (accelerator, alpha, beta, api_ms, rates) in cases {
            for rate in rates {
                let mut scene = scene(accelerator, |size| (alpha + beta * size) / 1e3, rate);
                scene.policy.targets.api.as_mut().unwrap().threshold = Seconds::millis(api_ms);
                scene.policy.replicas.max = Replicas::new(100);
                let choice = scene.choice();
                assert_eq!(choice.infeasible, None);
                let (times, batch) = (line(alpha, beta), choice.batch.get() as usize);
                let fleet = Fleet { times: &times, batch, pods: choice.replicas as usize };
                let seen = fleet.quantile(rate, 200_000, 0.95);
                let limit_s = scene.policy.targets.api.map(LatencyTarget::limit_s).unwrap();
                println!(
                    "{alpha}+{beta}b {rate}/s: {} pods, b={batch}, {:.1} of {api_ms} ms",
                    choice.replicas,
                    seen * 1e3
                );
                assert!(seen <= 1.05 * limit_s, "{alpha}+{beta}b {rate}/s: {seen} of {limit_s}, {choice:?}");
            }
        }
    }
}
