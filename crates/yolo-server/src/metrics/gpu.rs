//! Series of the GPUs. They exist only where there are GPUs: a missing figure is absent, not 0.

use prometheus_client::metrics::family::Family;

use super::{FloatGauge, Registrar};

/// A figure of each GPU.
#[derive(Debug, Clone)]
pub struct ByGpu(Family<[(&'static str, String); 1], FloatGauge>);

impl ByGpu {
    fn new(register: &mut Registrar<'_>, name: &str, help: &str) -> Self {
        Self(register.metric(name, help, Family::default()))
    }

    /// Sets the figure of a GPU; `None` if it has none.
    pub fn set(&self, gpu: &str, value: Option<f64>) {
        let labels = [("gpu", gpu.to_owned())];
        if let Some(value) = value {
            self.0.get_or_create_owned(&labels).set(value);
        } else {
            self.0.remove(&labels);
        }
    }
}

/// The GPUs that this server uses.
#[derive(Debug, Clone)]
pub struct GpuMetrics {
    /// Share of the time in which any kernel ran.
    pub utilization: ByGpu,
    /// Share of the streaming multiprocessors at work.
    pub sm_activity: ByGpu,
    /// Memory in use by all processes, in bytes.
    pub memory_used: ByGpu,
    /// Memory there is, in bytes.
    pub memory_total: ByGpu,
    /// Power drawn, in watts.
    pub power: ByGpu,
}

impl GpuMetrics {
    pub(super) fn new(register: &mut Registrar<'_>) -> Self {
        let mut by_gpu = |name, help| ByGpu::new(register, name, help);
        Self {
            utilization: by_gpu("gpu_utilization_ratio", "Busy share of the device over the last seconds"),
            sm_activity: by_gpu("gpu_sm_activity_ratio", "Share of the multiprocessors at work since the last scrape"),
            memory_used: by_gpu("gpu_memory_used_bytes", "Device memory in use, by whomever"),
            memory_total: by_gpu("gpu_memory_total_bytes", "Device memory"),
            power: by_gpu("gpu_power_watts", "Power drawn by the device"),
        }
    }
}
