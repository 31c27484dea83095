//! What a pod does: the time of a batch, its sessions, what a request costs besides the engine.

use yolo_planner::policy::Accelerator;

/// Standard deviation of a batch's time over its mean (control.md §10).
pub const JITTER: f64 = 0.03;

/// One kind of pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// As the report calls it.
    pub name: &'static str,
    /// Time of a batch without images.
    pub alpha_s: f64,
    /// Time that an image adds.
    pub beta_s: f64,
    /// Batches that run at the same time.
    pub sessions: u32,
    /// What the sessions run on.
    pub accelerator: Accelerator,
    /// Batch cap that the other autoscalers get; the planner chooses its own.
    pub batch: u32,
    /// Mean of what a request takes besides queue and engine; its law is lognormal with a third of that as deviation.
    pub overhead_s: f64,
    /// CPU time that an image costs outside the engine.
    pub cpu_s: f64,
}

impl Service {
    /// A GPU that gains much by batching (control.md, "Simulated"): 388 images/s at batches of 16.
    pub const GPU: Self = Self {
        name: "gpu",
        alpha_s: 0.006,
        beta_s: 0.0022,
        sessions: 1,
        accelerator: Accelerator::Gpu,
        batch: 16,
        overhead_s: 0.003,
        cpu_s: 0.002,
    };
    /// A slower device: 151 images/s.
    pub const SLOW: Self = Self { name: "slow", alpha_s: 0.010, beta_s: 0.006, ..Self::GPU };
    /// One session on CPU cores, where batching gains little: 33 images/s at batches of 2.
    pub const CPU: Self = Self {
        name: "cpu",
        alpha_s: 0.005,
        beta_s: 0.028,
        sessions: 1,
        accelerator: Accelerator::Cpu,
        batch: 2,
        overhead_s: 0.003,
        cpu_s: 0.002,
    };

    /// Mean time of a batch of `images`.
    pub fn batch_s(&self, images: u32) -> f64 {
        self.alpha_s + self.beta_s * f64::from(images)
    }

    /// Images/s of a pod that never idles, with batches of `images`.
    pub fn saturation(&self, images: u32) -> f64 {
        f64::from(self.sessions * images) / self.batch_s(images)
    }

    /// The same with the batch cap of the other autoscalers.
    pub fn saturation_tuned(&self) -> f64 {
        self.saturation(self.batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_saturate_where_the_specification_says() {
        assert!((Service::GPU.saturation_tuned() - 388.3).abs() < 0.1);
        assert!((Service::SLOW.saturation_tuned() - 150.9).abs() < 0.1);
        assert!((Service::CPU.saturation_tuned() - 32.8).abs() < 0.1);
    }
}
