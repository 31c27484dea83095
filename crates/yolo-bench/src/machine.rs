//! What `/proc` says about CPU time and memory.

use std::fs;

use anyhow::{Context, anyhow};

/// The kernel's unit of CPU time, fixed for user space on Linux.
const TICKS_PER_S: f64 = 100.0;

/// CPU seconds that the whole machine was busy: all but idle and waiting for disks.
///
/// # Errors
/// If `/proc/stat` cannot be read.
pub fn busy_s() -> anyhow::Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    // user nice system idle iowait irq softirq steal; guest time is part of user.
    let ticks: Vec<f64> = line.split_whitespace().skip(1).take(8).filter_map(|field| field.parse().ok()).collect();
    let [user, nice, system, _, _, irq, softirq, steal] = ticks.try_into().map_err(|_| anyhow!("{line}"))?;
    Ok((user + nice + system + irq + softirq + steal) / TICKS_PER_S)
}

/// CPU seconds of one process, user and system, its ended children included; 0 if it has gone.
pub fn process_s(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default().split_whitespace();
    // utime stime cutime cstime are fields 14 to 17; the state, after the name, is field 3.
    fields.skip(11).take(4).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_S
}

/// Proportional set size in bytes; 0 if the process has gone.
pub fn pss_bytes(pid: u32) -> f64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
    line.trim().strip_suffix("kB").and_then(|kb| kb.trim().parse::<f64>().ok()).unwrap_or(0.0) * 1_024.0
}

/// Processes whose environment holds `entry` (`NAME=value`): children inherit it, however they detach themselves.
///
/// # Errors
/// If `/proc` cannot be listed.
pub fn with_environment(entry: &str) -> anyhow::Result<Vec<u32>> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")? {
        let Some(pid) = process?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|one| one == entry.as_bytes()) {
            found.push(pid);
        }
    }
    Ok(found)
}
