//! Pixels to the model's numbers.

use fearless_simd::{Level, dispatch};

/// Writes `pixels` (u8, any shape) to `tensor` (f32 in 0..=1, same shape), bit-equal to `numpy`'s `u8 / 255` in f32.
///
/// True division: multiplying by 1/255 differs in the last bit. The shorter of the two decides how much is written.
pub fn normalise(pixels: &[u8], tensor: &mut [f32]) {
    // Compiled for the best SIMD level of the machine, where the loop vectorises.
    dispatch!(Level::new(), _simd => {
        for (value, &pixel) in tensor.iter_mut().zip(pixels) {
            *value = f32::from(pixel) / 255.0;
        }
    });
}
