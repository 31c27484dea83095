//! Which pod a request goes to.

use crate::random::Random;

/// A balancer's rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// Any pod: a cluster IP.
    Random,
    /// In turn.
    RoundRobin,
    /// The less loaded of two random pods (drawn with replacement).
    P2c,
    /// The least loaded pod; among equals the first from a random one.
    LeastOutstanding,
    /// One queue for all pods.
    Central,
}

impl Routing {
    /// The seat that gets the next request; `loads` are the images in each pod, not empty.
    pub fn pick(self, loads: &[u32], turn: &mut usize, random: &mut Random) -> usize {
        match self {
            Self::Random => random.below(loads.len()),
            Self::RoundRobin => {
                *turn = (*turn + 1) % loads.len();
                *turn
            }
            Self::P2c => {
                let (a, b) = (random.below(loads.len()), random.below(loads.len()));
                if loads[b] < loads[a] { b } else { a }
            }
            Self::LeastOutstanding | Self::Central => least(loads, random.below(loads.len())),
        }
    }
}

/// The first of the least loaded, from `start` on.
fn least(loads: &[u32], start: usize) -> usize {
    let (head, tail) = loads.split_at(start);
    let mut best = (u32::MAX, 0);
    for (offset, load) in tail.iter().enumerate() {
        if *load < best.0 {
            best = (*load, start + offset);
        }
    }
    for (seat, load) in head.iter().enumerate() {
        if *load < best.0 {
            best = (*load, seat);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_loaded_wins_and_ties_rotate() {
        assert_eq!(least(&[3, 1, 1], 0), 1);
        assert_eq!(least(&[3, 1, 1], 2), 2);
        assert_eq!(least(&[0, 1, 1], 2), 0);
    }

    #[test]
    fn every_rule_stays_within_the_seats() {
        let mut random = Random::new(1, 0);
        let mut turn = 7;
        let rules = [Routing::Random, Routing::RoundRobin, Routing::P2c, Routing::LeastOutstanding, Routing::Central];
        for rule in rules {
            for _ in 0..100 {
                assert!(rule.pick(&[1, 2, 0], &mut turn, &mut random) < 3);
            }
        }
        let mut seats = Vec::new();
        for _ in 0..3 {
            seats.push(Routing::RoundRobin.pick(&[0, 0, 0], &mut turn, &mut random));
        }
        seats.sort_unstable();
        assert_eq!(seats, [0, 1, 2]);
    }
}
