//! Figures of the container and the process that are read at each scrape.

use std::fmt;
use std::fs;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::process::Resource;

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
        counter(
            "process_cpu_seconds",
            "CPU time of the process",
            cgroup::process_cpu_stat().map_or(0.0, |cpu| cpu.usage_s),
        )?;
        let mut gauge = |name, help, value: f64| write(&mut encoder, (name, help), &ConstGauge::new(value));
        let start = self.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        gauge("process_start_time_seconds", "When the server started, since the epoch", start.as_secs_f64())?;
        let Process { open_files, threads, virtual_bytes } = Process::read();
        let files_max = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(0);
        gauge("process_open_fds", "Open file descriptors", from_count(open_files))?;
        gauge("process_max_fds", "Most file descriptors that may be open", from_count(files_max))?;
        gauge("process_threads", "Threads", from_count(threads))?;
        gauge("process_virtual_memory_bytes", "Virtual memory", from_count(virtual_bytes))?;
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

/// What `/proc` says of this process; 0 for what cannot be read.
struct Process {
    open_files: u64,
    threads: u64,
    virtual_bytes: u64,
}

impl Process {
    fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let number =
            |key| status.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok());
        Self {
            open_files: fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64),
            threads: number("Threads:").unwrap_or(0),
            virtual_bytes: number("VmSize:").unwrap_or(0) << 10, // in KiB there
        }
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
