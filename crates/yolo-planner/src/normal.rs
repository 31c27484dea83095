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

#[cfg(test)]
mod tests {
    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (p, z) in [(0.5, 0.0), (0.95, 1.644_854), (0.99, 2.326_348), (0.05, -1.644_854)] {
            assert!((super::quantile(p) - z).abs() < 5e-4, "{p}");
        }
    }
}
