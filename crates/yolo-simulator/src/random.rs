//! Seeded randomness: xorshift64\* (Vigna, arXiv 1402.6246) and the laws that the simulator draws from.
//!
//! **Bounds:** a layer's number has eight bits, and there are 257 layers' ends.
#![expect(clippy::indexing_slicing, reason = "see Bounds")]

use std::sync::LazyLock;

/// Layers of the exponential's ziggurat, where its tail begins, and the area of a layer (Marsaglia and Tsang 2000).
const LAYERS: usize = 256;
const TAIL: f64 = 7.697_117_470_131_05;
const AREA: f64 = 0.003_949_659_822_581_557;

/// Right ends of the layers and the density there, from the widest to the top.
static ZIGGURAT: LazyLock<[(f64, f64); LAYERS + 1]> = LazyLock::new(|| {
    let mut layers = [(0.0, 1.0); LAYERS + 1];
    let mut x = TAIL;
    layers[0] = (AREA / libm::exp(-TAIL), 0.0);
    for layer in &mut layers[1..LAYERS] {
        *layer = (x, libm::exp(-x));
        x = -libm::log(libm::exp(-x) + AREA / x);
    }
    layers
});

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

    /// Exponential of mean 1, by the ziggurat: it is drawn once a request, and a logarithm would cost a fifth of a run.
    pub fn exponential(&mut self) -> f64 {
        let ziggurat = &*ZIGGURAT;
        loop {
            let layer = (self.bits() >> 56) as usize;
            let ((right, density), (inner, inner_density)) = (ziggurat[layer], ziggurat[layer + 1]);
            let x = self.unit() * right;
            if x < inner {
                return x;
            }
            if layer == 0 {
                // Beyond the tail's beginning an exponential is an exponential again.
                return TAIL - libm::log(self.unit());
            }
            if density + self.unit() * (inner_density - density) < libm::exp(-x) {
                return x;
            }
        }
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
        let beyond = |limit: f64, random: &mut Random| (0..200_000).filter(|_| random.exponential() > limit).count();
        for limit in [0.1, 1.0, 3.0, 8.0] {
            let (seen, expected) = (beyond(limit, &mut random) as f64, 200_000.0 * f64::exp(-limit));
            assert!((seen - expected).abs() < 4.0 * expected.sqrt() + 1.0, "{limit}: {seen} {expected}");
        }
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
