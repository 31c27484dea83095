//! The normal distribution, as far as margins need it.

/// The standard normal quantile Φ⁻¹(p), error below 4.5e-4; `p` is moved into 0.0001..=0.9999.
///
/// Source: Abramowitz & Stegun, Handbook of Mathematical Functions, 26.2.23.
pub(crate) fn quantile(p: f64) -> f64 {
    let p = p.clamp(1e-4, 1.0 - 1e-4);
    let tail = p.min(1.0 - p);
    let t = (-2.0 * libm::log(tail)).sqrt();
    let z =
        t - (2.515_517 + t * (0.802_853 + t * 0.010_328)) / (1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308)));
    if p < 0.5 { -z } else { z }
}

/// The standard normal distribution function Φ(z) = erfc(-z/√2)/2.
pub(crate) fn below(z: f64) -> f64 {
    0.5 * libm::erfc(-z * std::f64::consts::FRAC_1_SQRT_2)
}

#[cfg(test)]
mod tests {
    #[test]
    fn probabilities_are_those_of_the_tables() {
        for (z, p) in [(0.0, 0.5), (1.644_854, 0.95), (-2.326_348, 0.01)] {
            assert!((super::below(z) - p).abs() < 1e-6, "{z}");
        }
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (p, z) in [(0.5, 0.0), (0.95, 1.644_854), (0.99, 2.326_348), (0.05, -1.644_854)] {
            assert!((super::quantile(p) - z).abs() < 5e-4, "{p}");
        }
    }
}
