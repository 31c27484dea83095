//! What the container may use and has used: cgroup v2, else v1, else the process itself.
//!
//! In the root cgroup (a process outside any container) the files speak of the whole machine, so there the process's
//! own figures are used and no limit is known.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

/// CPU use since start, and throttling by the quota.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CpuStat {
    /// CPU time in seconds.
    pub usage_s: f64,
    /// Quota periods that passed.
    pub periods: u64,
    /// Quota periods in which the container was stopped.
    pub throttled_periods: u64,
    /// Time for which it was stopped, in seconds.
    pub throttled_s: f64,
}

/// Memory use and limit in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryStat {
    /// Use less inactive file pages: what counts towards an out-of-memory kill.
    pub working_set_bytes: u64,
    /// The limit, if one is set.
    pub limit_bytes: Option<u64>,
}

/// One controller's folder and the version that its files speak.
struct Controller {
    folder: PathBuf,
    unified: bool,
}

impl Controller {
    /// The controller's folder for this process; `None` in the root cgroup.
    fn find(name: &str) -> Option<Self> {
        let membership = fs::read_to_string("/proc/self/cgroup").ok()?;
        find_in(&membership, name, Path::new("/sys/fs/cgroup"))
    }

    fn text(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.folder.join(file)).ok()
    }

    fn number(&self, file: &str) -> Option<u64> {
        self.text(file)?.trim().parse().ok()
    }

    /// A value of a `key value` file.
    fn entry(&self, file: &str, key: &str) -> Option<u64> {
        self.text(file)?.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
    }
}

/// `membership` is the content of `/proc/self/cgroup`: lines `id:controllers:path`, id 0 for v2.
fn find_in(membership: &str, name: &str, mount: &Path) -> Option<Controller> {
    let mut unified = None;
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        if controllers.split(',').any(|controller| controller == name) {
            // In v1 `/` is the machine; a container's path is shown from the host even where only its own folder
            // is mounted, so the mount itself is the second guess.
            let own = mount.join(name).join(path.trim_start_matches('/'));
            let folder = if own.is_dir() { own } else { mount.join(name) };
            return (path != "/" && folder.is_dir()).then_some(Controller { folder, unified: false });
        }
        if id == "0" {
            unified = Some(mount.join(path.trim_start_matches('/')));
        }
    }
    // The root of v2 has no `<controller>.max`: then nothing is limited or counted for us alone.
    let limit_file = format!("{name}.max");
    unified.filter(|folder| folder.join(limit_file).exists()).map(|folder| Controller { folder, unified: true })
}

/// CPU quota in cores, if one is set.
pub fn cpu_quota_cores() -> Option<f64> {
    let cpu = Controller::find("cpu")?;
    let (quota, period) = if cpu.unified {
        let limit = cpu.text("cpu.max")?;
        let (quota, period) = limit.trim().split_once(' ')?;
        (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?)
    } else {
        // -1 (none) is no u64.
        (float(cpu.number("cpu.cfs_quota_us")?), float(cpu.number("cpu.cfs_period_us")?))
    };
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

/// Cores to size sessions and threads by.
///
/// The quota, else the request (`request_millicores`), each at most the affinity; the machine's count only if neither
/// is known, because threads beyond the quota spend their time throttled.
pub fn usable_cores(request_millicores: Option<u64>) -> f64 {
    let affinity = float(thread::available_parallelism().map_or(1, |count| count.get() as u64));
    let allowed = cpu_quota_cores().or_else(|| request_millicores.map(|millicores| float(millicores) / 1_000.0));
    allowed.map_or(affinity, |cores| cores.min(affinity))
}

/// CPU use of the container, else of the process.
pub fn cpu_stat() -> CpuStat {
    container_cpu_stat().or_else(process_cpu_stat).unwrap_or_default()
}

fn container_cpu_stat() -> Option<CpuStat> {
    let cpu = Controller::find("cpu")?;
    let entry = |key| cpu.entry("cpu.stat", key);
    let (usage_s, throttled_s) = if cpu.unified {
        (float(entry("usage_usec")?) / 1e6, float(entry("throttled_usec").unwrap_or(0)) / 1e6)
    } else {
        let account = Controller::find("cpuacct")?;
        (float(account.number("cpuacct.usage")?) / 1e9, float(entry("throttled_time").unwrap_or(0)) / 1e9)
    };
    let (periods, throttled_periods) = (entry("nr_periods").unwrap_or(0), entry("nr_throttled").unwrap_or(0));
    Some(CpuStat { usage_s, periods, throttled_periods, throttled_s })
}

/// CPU use of the process alone.
pub fn process_cpu_stat() -> Option<CpuStat> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The command name may hold spaces; the fields after its closing parenthesis do not. utime and stime are the
    // 14th and 15th of all, in clock ticks.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    let usage_s = float(ticks) / float(rustix::param::clock_ticks_per_second());
    Some(CpuStat { usage_s, ..CpuStat::default() })
}

/// Memory use and limit of the container, else of the process.
pub fn memory_stat() -> MemoryStat {
    container_memory_stat().unwrap_or_else(|| MemoryStat { working_set_bytes: resident_bytes(), limit_bytes: None })
}

fn container_memory_stat() -> Option<MemoryStat> {
    let memory = Controller::find("memory")?;
    let (usage, limit, inactive) = if memory.unified {
        // "max" is no number: no limit.
        (memory.number("memory.current")?, memory.number("memory.max"), memory.entry("memory.stat", "inactive_file"))
    } else {
        let limit = memory.number("memory.limit_in_bytes").filter(|limit| *limit < V1_UNLIMITED);
        (memory.number("memory.usage_in_bytes")?, limit, memory.entry("memory.stat", "total_inactive_file"))
    };
    Some(MemoryStat { working_set_bytes: usage.saturating_sub(inactive.unwrap_or(0)), limit_bytes: limit })
}

/// v1 shows "no limit" as the largest multiple of a page below 2^63.
const V1_UNLIMITED: u64 = 1 << 62;

/// Resident memory of the process.
pub fn resident_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

#[expect(clippy::cast_precision_loss, reason = "bytes and nanoseconds below 2^53 in any life of a server")]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_folder_counts_only_below_the_root() {
        let mount = tempfile::tempdir().unwrap();
        let pod = mount.path().join("kubepods/pod1");
        fs::create_dir_all(&pod).unwrap();
        assert!(find_in("0::/kubepods/pod1", "cpu", mount.path()).is_none(), "no cpu.max: the root");
        fs::write(pod.join("cpu.max"), "50000 100000\n").unwrap();
        let found = find_in("0::/kubepods/pod1", "cpu", mount.path()).unwrap();
        assert!(found.unified);
        assert_eq!(found.folder, pod);
    }

    #[test]
    fn a_v1_container_sees_its_own_folder_at_the_mount() {
        let mount = tempfile::tempdir().unwrap();
        fs::create_dir_all(mount.path().join("cpu")).unwrap();
        fs::write(mount.path().join("cpu/cpu.stat"), "nr_periods 12\nnr_throttled 3\n").unwrap();
        let found = find_in("4:cpu:/kubepods/pod1\n0::/", "cpu", mount.path()).unwrap();
        assert!(!found.unified);
        assert_eq!(
            (found.entry("cpu.stat", "nr_periods"), found.entry("cpu.stat", "nr_throttled")),
            (Some(12), Some(3))
        );
        assert!(find_in("4:cpu:/\n0::/", "cpu", mount.path()).is_none(), "the machine's root");
    }

    #[test]
    fn the_process_has_used_memory_and_time() {
        assert!(resident_bytes() > 1 << 20);
        assert!(process_cpu_stat().is_some());
        assert!(usable_cores(Some(500)) <= 0.5);
    }
}
