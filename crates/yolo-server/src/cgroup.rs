//! What the container may use and has used: cgroup v2, else v1, else the process itself.
//!
//! In the root cgroup (a process outside any container) the files speak of the whole machine, so there the process's
//! own figures are used and no limit is known.

use std::fs;
use std::path::{Path, PathBuf};

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
    // The root of v2 has no `<controller>.max`: then nothing is limited or counted for us alone. A path may be the host's
    // here too.
    let limit_file = format!("{name}.max");
    let limited = |folder: &PathBuf| folder.join(&limit_file).exists();
    let folder = unified.and_then(|own| [own, mount.to_owned()].into_iter().find(limited));
    folder.map(|folder| Controller { folder, unified: true })
}

/// CPU quota in cores, if one is set.
pub fn cpu_quota_cores() -> Option<f64> {
    quota_cores(&Controller::find("cpu")?)
}

fn quota_cores(cpu: &Controller) -> Option<f64> {
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
    // `std::thread::available_parallelism` would round the quota down.
    let affinity = rustix::thread::sched_getaffinity(None).map_or(1.0, |cores| f64::from(cores.count()));
    let allowed = cpu_quota_cores().or_else(|| request_millicores.map(|millicores| float(millicores) / 1_000.0));
    allowed.map_or(affinity, |cores| cores.min(affinity))
}

/// CPU use of the container, else of the process.
pub fn cpu_stat() -> CpuStat {
    container_cpu_stat().or_else(process_cpu_stat).unwrap_or_default()
}

fn container_cpu_stat() -> Option<CpuStat> {
    cpu_stat_of(&Controller::find("cpu")?, || Controller::find("cpuacct"))
}

fn cpu_stat_of(cpu: &Controller, account: impl FnOnce() -> Option<Controller>) -> Option<CpuStat> {
    let entry = |key| cpu.entry("cpu.stat", key);
    let (usage_s, throttled_s) = if cpu.unified {
        (float(entry("usage_usec")?) / 1e6, float(entry("throttled_usec").unwrap_or(0)) / 1e6)
    } else {
        (float(account()?.number("cpuacct.usage")?) / 1e9, float(entry("throttled_time").unwrap_or(0)) / 1e9)
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
    memory_stat_of(&Controller::find("memory")?)
}

fn memory_stat_of(memory: &Controller) -> Option<MemoryStat> {
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

    /// A folder with these files, of the version that says `unified`.
    fn controller(unified: bool, files: &[(&str, &str)]) -> (tempfile::TempDir, Controller) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let controller = Controller { folder: folder.path().to_owned(), unified };
        (folder, controller)
    }

    #[test]
    fn a_v2_container_whose_path_is_the_hosts_sees_its_own_folder_at_the_mount() {
        let (mount, _) = controller(true, &[("memory.max", "max\n")]);
        let found = find_in("0::/kubepods/pod1", "memory", mount.path()).unwrap();
        assert_eq!((found.folder.as_path(), found.unified), (mount.path(), true));
    }

    #[test]
    fn a_quota_is_its_share_of_the_period() {
        for (unified, files, cores) in [
            (true, &[("cpu.max", "150000 100000\n")][..], Some(1.5)),
            (true, &[("cpu.max", "max 100000\n")], None),
            (true, &[], None),
            (false, &[("cpu.cfs_quota_us", "25000\n"), ("cpu.cfs_period_us", "50000\n")], Some(0.5)),
            (false, &[("cpu.cfs_quota_us", "-1\n"), ("cpu.cfs_period_us", "100000\n")], None),
        ] {
            assert_eq!(quota_cores(&controller(unified, files).1), cores, "{files:?}");
        }
    }

    #[test]
    fn cpu_time_is_in_seconds_in_both_versions() {
        let periods = "nr_periods 12\nnr_throttled 3\n";
        let expected = CpuStat { usage_s: 2.5, periods: 12, throttled_periods: 3, throttled_s: 0.25 };
        let stat = format!("usage_usec 2500000\n{periods}throttled_usec 250000\n");
        let (_folder, cpu) = controller(true, &[("cpu.stat", &stat)]);
        assert_eq!(cpu_stat_of(&cpu, || None), Some(expected));
        let stat = format!("{periods}throttled_time 250000000\n");
        let (_folder, cpu) = controller(false, &[("cpu.stat", &stat)]);
        let (_other, account) = controller(false, &[("cpuacct.usage", "2500000000\n")]);
        assert_eq!(cpu_stat_of(&cpu, || Some(account)), Some(expected));
    }

    #[test]
    fn memory_is_what_counts_towards_a_kill_and_no_limit_is_none() {
        let stat = "anon 5\ninactive_file 30\ntotal_inactive_file 40\n";
        for (unified, files, working_set_bytes, limit_bytes) in [
            (true, [("memory.current", "100\n"), ("memory.max", "500\n"), ("memory.stat", stat)], 70, Some(500)),
            (true, [("memory.current", "100\n"), ("memory.max", "max\n"), ("memory.stat", stat)], 70, None),
            (
                false,
                [("memory.usage_in_bytes", "100\n"), ("memory.limit_in_bytes", "500\n"), ("memory.stat", stat)],
                60,
                Some(500),
            ),
            (
                false,
                [
                    ("memory.usage_in_bytes", "100\n"),
                    ("memory.limit_in_bytes", "9223372036854771712\n"),
                    ("memory.stat", stat),
                ],
                60,
                None,
            ),
        ] {
            let (_folder, memory) = controller(unified, &files);
            assert_eq!(memory_stat_of(&memory), Some(MemoryStat { working_set_bytes, limit_bytes }), "{files:?}");
        }
    }

    #[test]
    fn the_process_has_used_memory_and_time() {
        assert!(resident_bytes() > 1 << 20);
        assert!(process_cpu_stat().is_some());
        assert!(usable_cores(Some(500)) <= 0.5);
    }
}
