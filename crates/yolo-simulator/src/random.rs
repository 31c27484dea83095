//! Seeded randomness: xorshift64\* (Vigna, arXiv 1402.6246) and the laws that the simulator draws from.

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Stream number `stream` of `seed`: streams of one seed are unrelated, so that a scaler that causes more draws in
    /// one place does not move the arrivals of another.
    pub const fn new(seed: u64, stream: u64) -> Self {
        // SplitMix64's finaliser (Steele et al. 2014): neighbouring seeds must not make alike streams.
        let mut mixed =
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(stream.wrapping_mul(0xd1b5_4a32_d192_ed03));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // The all-zero state is the only one that xorshift never leaves.
        Self(if mixed == 0 { 0x9e37_79b9_7f4a_7c15 } else { mixed })
    }

    /// 64 random bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in (0, 1]: never 0, so that its logarithm is finite.
    pub const fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / 9_007_199_254_740_992.0
    }

    /// Uniform in `low..high`.
    pub const fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in `0..n`; 0 for `n` = 0.
    pub const fn below(&mut self, n: usize) -> usize {
        (((self.bits() >> 32) * n as u64) >> 32) as usize
    }

    /// Exponential of mean 1.
    pub fn exponential(&mut self) -> f64 {
        -libm::log(self.unit())
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = libm::sqrt(2.0 * self.exponential());
        radius * libm::cos(std::f64::consts::TAU * self.unit())
    }

    /// Gamma of the given shape and scale 1 (Marsaglia and Tsang 2000; below shape 1 boosted by a power).
    pub fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            return self.gamma(shape + 1.0) * libm::pow(self.unit(), 1.0 / shape);
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / libm::sqrt(9.0 * d);
        loop {
            let x = self.normal();
            let v = 1.0 + c * x;
            let cube = v * v * v;
            if v > 0.0 && libm::log(self.unit()) < 0.5 * x * x + d - d * cube + d * libm::log(cube) {
                return d * cube;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(mut draw: impl FnMut() -> f64) -> (f64, f64) {
        let n = 200_000;
        let (mut sum, mut squares) = (0.0, 0.0);
        for _ in 0..n {
            let x = draw();
            sum += x;
            squares += x * x;
        }
        let mean = sum / f64::from(n);
        (mean, squares / f64::from(n) - mean * mean)
    }

    #[test]
    fn laws_have_their_moments() {
        let mut random = Random::new(1, 0);
        let close = |(mean, variance): (f64, f64), (m, v): (f64, f64)| {
            assert!(
                (mean - m).abs() < 0.02 * m.max(1.0) && (variance - v).abs() < 0.05 * v,
                "{mean} {variance} / {m} {v}"
            );
        };
        close(moments(|| random.unit()), (0.5, 1.0 / 12.0));
        close(moments(|| random.exponential()), (1.0, 1.0));
        close(moments(|| random.normal()), (0.0, 1.0));
        close(moments(|| random.gamma(4.0)), (4.0, 4.0));
        close(moments(|| random.gamma(0.25)), (0.25, 0.25));
    }

    #[test]
    fn streams_repeat_and_differ() {
        let draw = |seed, stream| Random::new(seed, stream).bits();
        assert_eq!(draw(7, 1), draw(7, 1));
        assert_ne!(draw(7, 1), draw(7, 2));
        assert_ne!(draw(7, 1), draw(8, 1));
    }

    #[test]
    fn below_stays_below_and_reaches_every_number() {
        let mut random = Random::new(3, 0);
        let mut seen = [0; 5];
        for _ in 0..1000 {
            seen[random.below(5)] += 1;
        }
        assert!(seen.iter().all(|count| *count > 120), "{seen:?}");
        assert_eq!(random.below(0), 0);
    }
}
