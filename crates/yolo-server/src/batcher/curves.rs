//! A [`Curve`] for each input size that is served, and how much of the load each size is.

use std::time::Duration;

use yolo_vision::Size;

use super::curve::Curve;

/// Weight of the newest batch in the sizes' shares of the load.
const NEWEST_WEIGHT: f64 = 0.05;

/// An input size.
#[derive(Debug)]
struct OfSize {
    size: Size,
    curve: Curve,
    /// Of the images run lately, those of this size: 0..=1.
    share: f64,
}

/// Learned times of batches, by input size and batch size.
#[derive(Debug)]
pub(super) struct Curves {
    first: OfSize,
    others: Vec<OfSize>,
}

impl Curves {
    /// `unknown` for the size `first`, which all load is expected to have, and for every other one in `sizes`.
    pub(super) fn new(unknown: &Curve, first: Size, sizes: &[Size]) -> Self {
        let of_size = |size, share| OfSize { size, curve: unknown.clone(), share };
        let others = sizes.iter().filter(|size| **size != first).map(|size| of_size(*size, 0.0)).collect();
        Self { first: of_size(first, 1.0), others }
    }

    /// The default size's.
    pub(super) const fn first(&self) -> &Curve {
        &self.first.curve
    }

    /// A size's; of one that is not served the default's.
    pub(super) fn of(&self, size: Size) -> &Curve {
        let other = self.others.iter().find(|other| other.size == size);
        &other.unwrap_or(&self.first).curve
    }

    /// A size's, if it is served.
    fn of_mut(&mut self, size: Size) -> Option<&mut Curve> {
        let mut sizes = std::iter::once(&mut self.first).chain(&mut self.others);
        sizes.find(|known| known.size == size).map(|known| &mut known.curve)
    }

    /// Takes the engine time of a batch.
    pub(super) fn record(&mut self, size: Size, images: usize, time: Duration) {
        if let Some(curve) = self.of_mut(size) {
            curve.record(images, time);
        }
    }

    /// The engine failed to run a batch of `images` of the size, not for one of them. Returns whether such batches are
    /// given up by this.
    pub(super) fn failed(&mut self, size: Size, images: usize) -> bool {
        self.of_mut(size).is_some_and(|curve| curve.failed(images))
    }

    /// The engine cannot run a batch of `images` of the size.
    pub(super) fn bound(&mut self, size: Size, images: usize) {
        if let Some(curve) = self.of_mut(size) {
            curve.bound(images);
        }
    }

    /// Makes what was given up unknown, so that it is tried again.
    pub(super) fn retry(&mut self) {
        for known in std::iter::once(&mut self.first).chain(&mut self.others) {
            known.curve.retry();
        }
    }

    /// Counts a batch of requests' images as load.
    pub(super) fn loaded(&mut self, size: Size) {
        for known in std::iter::once(&mut self.first).chain(&mut self.others) {
            let newest = if known.size == size { 1.0 } else { 0.0 };
            known.share += NEWEST_WEIGHT * (newest - known.share);
        }
    }

    /// Mean of `time` over the load: what a batch takes whose size is not known yet.
    pub(super) fn of_load(&self, time: impl Fn(&Curve) -> Duration) -> Duration {
        if self.others.is_empty() {
            return time(&self.first.curve);
        }
        let sizes = std::iter::once(&self.first).chain(&self.others);
        sizes.map(|size| time(&size.curve).mul_f64(size.share)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Size = Size::new(320, 320);
    const LARGE: Size = Size::new(640, 640);

    #[test]
    fn each_size_has_its_own_times_and_the_load_decides_the_mean() {
        let mut curves = Curves::new(&Curve::new(8, false), SMALL, &[SMALL, LARGE]);
        let (small, large) = (Duration::from_millis(10), Duration::from_millis(40));
        curves.record(SMALL, 1, small);
        curves.record(LARGE, 1, large);
        assert_eq!((curves.of(SMALL).mean(1), curves.of(LARGE).mean(1)), (small, large));
        let mean = |curves: &Curves| curves.of_load(|curve| curve.mean(1));
        assert_eq!(mean(&curves), small, "nothing of the other size was asked for");
        for _ in 0..200 {
            curves.loaded(LARGE);
        }
        assert!(mean(&curves).abs_diff(large) < Duration::from_millis(1), "{:?}", mean(&curves));
        for _ in 0..5 {
            curves.loaded(SMALL);
        }
        assert!(mean(&curves) < Duration::from_millis(35) && mean(&curves) > small);
    }
}
