//! Poisson arrivals in phases of constant rate, drawn from a seed: the same seed gives the same arrivals.

use std::time::Duration;

/// A stretch of time with one mean rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Phase {
    /// Mean arrivals a second; zero or less means none.
    pub rate_per_second: f64,
    /// How long it lasts.
    pub length: Duration,
}

/// One request to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Offset from the start of the schedule.
    pub at: Duration,
    /// Index of its phase.
    pub phase: usize,
    /// 0, 1, 2, … over the whole schedule.
    pub index: u64,
}

/// Iterator over the arrivals of some phases; see [`arrivals`].
#[derive(Debug, Clone)]
pub struct Arrivals {
    phases: Vec<Phase>,
    phase: usize,
    phase_start_s: f64,
    clock_s: f64,
    index: u64,
    random: Xorshift,
}

/// Draws the arrivals of `phases`, one after the other.
///
/// Gaps are exponential. A gap that crosses the edge of a phase is redrawn from the edge at the new rate, which
/// is exact because the exponential distribution has no memory.
pub fn arrivals(phases: &[Phase], seed: u64) -> Arrivals {
    let random = Xorshift::seeded(seed);
    Arrivals { phases: phases.to_vec(), phase: 0, phase_start_s: 0.0, clock_s: 0.0, index: 0, random }
}

impl Iterator for Arrivals {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        loop {
            let phase = self.phases.get(self.phase)?;
            let phase_end_s = self.phase_start_s + phase.length.as_secs_f64();
            if phase.rate_per_second > 0.0 {
                self.clock_s += self.random.exponential() / phase.rate_per_second;
                if self.clock_s < phase_end_s {
                    let arrival =
                        Arrival { at: Duration::from_secs_f64(self.clock_s), phase: self.phase, index: self.index };
                    self.index += 1;
                    return Some(arrival);
                }
            }
            self.phase += 1;
            self.phase_start_s = phase_end_s;
            self.clock_s = phase_end_s;
        }
    }
}

/// xorshift64* (Vigna 2016): small, fast, and good enough for gaps. Not for secrets.
#[derive(Debug, Clone)]
struct Xorshift(u64);

impl Xorshift {
    /// The seed goes through one splitmix64 step, so that 0, 1, 2 … give unrelated streams, none of them zero.
    fn seeded(seed: u64) -> Self {
        let z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Self((z ^ (z >> 31)).max(1))
    }

    fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Exponential with mean 1: `-ln(1 - u)`, u uniform in `[0, 1)` with 53 bits.
    fn exponential(&mut self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit the mantissa exactly")]
        let uniform = (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        -(1.0 - uniform).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn phase(rate_per_second: f64, length: Duration) -> Phase {
        Phase { rate_per_second, length }
    }

    #[test]
    fn the_same_seed_draws_the_same_arrivals_and_another_seed_others() {
        let phases = [phase(20.0, MINUTE)];
        let of = |seed| arrivals(&phases, seed).collect::<Vec<_>>();
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
    }

    #[test]
    fn each_phase_has_its_own_rate_and_stays_inside_its_edges() {
        let phases = [phase(20.0, 5 * MINUTE), phase(0.0, MINUTE), phase(60.0, 5 * MINUTE)];
        let drawn = arrivals(&phases, 1).collect::<Vec<_>>();
        let count = |phase| drawn.iter().filter(|a| a.phase == phase).count();
        // Poisson counts of mean 6000 and 18000: three standard deviations are 232 and 402.
        assert!(count(0).abs_diff(6000) <= 232, "{}", count(0));
        assert_eq!(count(1), 0);
        assert!(count(2).abs_diff(18_000) <= 402, "{}", count(2));
        assert!(drawn.iter().filter(|a| a.phase == 2).all(|a| a.at >= 6 * MINUTE && a.at < 11 * MINUTE));
        assert!(drawn.windows(2).all(|pair| pair[0].at <= pair[1].at && pair[0].index + 1 == pair[1].index));
    }

    #[test]
    fn counts_a_second_are_dispersed_as_poisson() {
        let mut counts = vec![0_u32; 600];
        for arrival in arrivals(&[phase(20.0, 10 * MINUTE)], 3) {
            counts[usize::try_from(arrival.at.as_secs()).unwrap()] += 1;
        }
        let mean = counts.iter().map(|&c| f64::from(c)).sum::<f64>() / 600.0;
        let variance = counts.iter().map(|&c| (f64::from(c) - mean).powi(2)).sum::<f64>() / 599.0;
        // Variance over mean of a Poisson count is 1; its standard error over 600 seconds is sqrt(2/599) = 0.058.
        assert!((variance / mean - 1.0).abs() < 0.2, "{}", variance / mean);
    }
}
