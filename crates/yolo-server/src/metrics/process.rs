//! Figures of the container that are read at each scrape.

use std::fmt;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::cgroup;

/// Reads CPU and memory of the cgroup when scraped, so that nothing runs between scrapes. Names are whole.
#[derive(Debug)]
pub struct ProcessCollector {
    /// Tells readers of counters that they began anew.
    start: SystemTime,
}

impl Default for ProcessCollector {
    fn default() -> Self {
        Self { start: SystemTime::now() }
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let cpu = cgroup::cpu_stat();
        let memory = cgroup::memory_stat();
        let mut counter = |name, help, value: f64| write(&mut encoder, (name, help), &ConstCounter::new(value));
        counter("yolo_cpu_usage_seconds", "CPU time used", cpu.usage_s)?;
        counter("yolo_cpu_periods", "CPU quota periods", from_count(cpu.periods))?;
        counter("yolo_cpu_throttled_periods", "CPU quota periods with throttling", from_count(cpu.throttled_periods))?;
        counter("yolo_cpu_throttled_seconds", "Time throttled by the CPU quota", cpu.throttled_s)?;
        let mut gauge = |name, help, value: f64| write(&mut encoder, (name, help), &ConstGauge::new(value));
        let start = self.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        gauge("process_start_time_seconds", "When the server started, since the epoch", start.as_secs_f64())?;
        gauge("process_resident_memory_bytes", "Resident memory", from_count(cgroup::resident_bytes()))?;
        gauge("yolo_cpu_quota_cores", "CPU quota, 0 if there is none", cgroup::cpu_quota_cores().unwrap_or(0.0))?;
        gauge(
            "yolo_memory_working_set_bytes",
            "Memory use less inactive file pages",
            from_count(memory.working_set_bytes),
        )?;
        gauge(
            "yolo_memory_limit_bytes",
            "Memory limit, 0 if there is none",
            from_count(memory.limit_bytes.unwrap_or(0)),
        )
    }
}

fn write(
    encoder: &mut DescriptorEncoder,
    (name, help): (&str, &str),
    metric: &impl EncodeMetric,
) -> Result<(), fmt::Error> {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

#[expect(clippy::cast_precision_loss, reason = "bytes and periods below 2^53 in any life of a server")]
fn from_count(count: u64) -> f64 {
    count as f64
}
