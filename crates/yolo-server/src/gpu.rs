//! NVIDIA GPUs as the driver's management library (NVML) sees them; it is loaded at run time and may be missing.

use std::ffi::OsStr;
use std::sync::{Mutex, OnceLock, PoisonError};

use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::gpm::{GpmSample, gpm_metrics_get};
use nvml_wrapper::{Device, Nvml};

use crate::metrics::GpuMetrics;

/// The name that container runtimes mount; the one without a version is for compilers.
const LIBRARY: &str = "libnvidia-ml.so.1";
/// Restricts the GPUs that CUDA uses, and so the ones that are of interest here.
const CHOSEN: &str = "CUDA_VISIBLE_DEVICES";

/// The GPUs that this process may use, in CUDA's order.
#[derive(Debug, Default)]
pub struct Gpus(Vec<Gpu>);

#[derive(Debug)]
struct Gpu {
    device: Device<'static>,
    /// The last sample of the performance counters: activity is what happened between two.
    sample: Mutex<Option<GpmSample<'static>>>,
}

impl Gpus {
    /// Asks the driver; none if there is no driver.
    pub fn visible() -> Self {
        let devices = nvml().map(devices).unwrap_or_default();
        let uuids: Vec<_> = devices.iter().map(|device| device.uuid().unwrap_or_default()).collect();
        let chosen = visible(std::env::var(CHOSEN).ok().as_deref(), &uuids);
        let mut devices: Vec<_> = devices.into_iter().map(Some).collect();
        let take = |index: usize| devices.get_mut(index)?.take();
        Self(chosen.into_iter().filter_map(take).map(|device| Gpu { device, sample: Mutex::new(None) }).collect())
    }

    /// How many there are.
    pub const fn count(&self) -> usize {
        self.0.len()
    }

    /// Free memory of the fullest one, in bytes.
    pub fn memory_bytes_free(&self) -> Option<u64> {
        self.0.iter().filter_map(|gpu| Some(gpu.device.memory_info().ok()?.free)).min()
    }

    /// Publishes the figures of each, as far as its chip has them.
    pub fn publish(&self, metrics: &GpuMetrics) {
        for (index, gpu) in self.0.iter().enumerate() {
            let (name, device) = (index.to_string(), &gpu.device);
            let memory = device.memory_info().ok();
            let utilization = device.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0);
            metrics.utilization.set(&name, utilization);
            metrics.sm_activity.set(&name, gpu.sm_activity());
            metrics.memory_used.set(&name, memory.as_ref().map(|memory| bytes(memory.used)));
            metrics.memory_total.set(&name, memory.as_ref().map(|memory| bytes(memory.total)));
            // In milliwatts.
            metrics.power.set(&name, device.power_usage().ok().map(|power| f64::from(power) / 1_000.0));
        }
    }
}

impl Gpu {
    /// Share of the streaming multiprocessors that were at work since the last call; `None` at the first, and on chips
    /// before Hopper.
    fn sm_activity(&self) -> Option<f64> {
        self.device.gpm_support().ok().filter(|supported| *supported)?;
        let sample = self.device.gpm_sample().ok()?;
        let mut last = self.sample.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.replace(sample)?;
        let metrics = gpm_metrics_get(nvml()?, &before, last.as_ref()?, &[GpmMetricId::SmUtil]).ok()?;
        Some(metrics.into_iter().next()?.ok()?.value / 100.0)
    }
}

/// Loaded once a process; it is never unloaded.
fn nvml() -> Option<&'static Nvml> {
    static NVML: OnceLock<Option<Nvml>> = OnceLock::new();
    let load = || match Nvml::builder().lib_path(OsStr::new(LIBRARY)).init() {
        Ok(nvml) => Some(nvml),
        Err(error) => {
            tracing::debug!(%error, "No NVIDIA driver.");
            None
        }
    };
    NVML.get_or_init(load).as_ref()
}

/// Every GPU, but its slices if it is divided (MIG): then nobody can use the whole.
fn devices(nvml: &'static Nvml) -> Vec<Device<'static>> {
    let whole = (0..nvml.device_count().unwrap_or(0)).filter_map(|index| nvml.device_by_index(index).ok());
    let divided = |device: Device<'static>| {
        let most = device.mig_device_count().unwrap_or(0);
        let slices: Vec<_> = (0..most).filter_map(|index| device.mig_device_by_index(index).ok()).collect();
        if slices.is_empty() { vec![device] } else { slices }
    };
    whole.flat_map(divided).collect()
}

/// Which of the GPUs with these `uuids` CUDA uses: all unless some are `chosen`, by number or by the beginning of the
/// UUID, in that order and up to the first that does not exist. Of slices a process sees one: the first, if it comes first.
///
/// Sources: CUDA C++ Programming Guide, "CUDA Environment Variables"; Multi-Instance GPU User Guide, "CUDA Device
/// Enumeration".
fn visible(chosen: Option<&str>, uuids: &[String]) -> Vec<usize> {
    let slice = |index: &usize| uuids.get(*index).is_some_and(|uuid| uuid.starts_with("MIG-"));
    let mut chosen = chosen_of(chosen, uuids);
    match chosen.first() {
        Some(first) if slice(first) => chosen.truncate(1),
        _ => chosen.retain(|index| !slice(index)),
    }
    chosen
}

fn chosen_of(chosen: Option<&str>, uuids: &[String]) -> Vec<usize> {
    let Some(chosen) = chosen else { return (0..uuids.len()).collect() };
    let find = |name: &str| match name.parse::<usize>() {
        Ok(index) => Some(index).filter(|index| *index < uuids.len()),
        Err(_) => uuids.iter().position(|uuid| !name.is_empty() && uuid.starts_with(name)),
    };
    chosen.split(',').map_while(|name| find(name.trim())).collect()
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn bytes(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_chosen_as_cuda_chooses_them() {
        let uuids = ["GPU-1a2b", "GPU-1a3c", "MIG-77"].map(ToOwned::to_owned);
        for (chosen, expected) in [
            (None, vec![0, 1]),
            (Some(""), vec![]),
            (Some("-1"), vec![]),
            (Some("1"), vec![1]),
            (Some("1, 0"), vec![1, 0]),
            (Some("0,3,1"), vec![0]),
            (Some("GPU-1a3,MIG-77"), vec![1]),
            (Some("MIG-77,GPU-1a3"), vec![2]),
            (Some("GPU-9,0"), vec![]),
        ] {
            assert_eq!(visible(chosen, &uuids), expected, "{chosen:?}");
        }
        assert_eq!(visible(None, &["MIG-1", "MIG-2"].map(ToOwned::to_owned)), [0]);
    }
}
