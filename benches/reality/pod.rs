//! Real `yolo-server` processes on loopback addresses of their own, each as one pod of a service.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use yolo_loadgen::scrape;
use yolo_operator::build::KnobsDocument;
use yolo_operator::fleet::{PodPhase, PodView, ServiceId};
use yolo_operator::sampler::ADMIN_PORT;

/// From a process' start to its readiness; the real model loads in two seconds on an idle machine.
const START_MAX: Duration = Duration::from_secs(30);
/// Between two looks at a server that starts.
const LOOK: Duration = Duration::from_millis(50);
/// The kernel's unit of a process' CPU time, fixed for user space on Linux.
const TICKS_PER_S: f64 = 100.0;

/// What a server is started with.
#[derive(Debug, Clone, Default)]
pub struct Launch {
    /// Flags beside addresses and knobs.
    pub flags: Vec<String>,
    /// CPU quota in cores.
    pub cores: Option<f64>,
    /// Side of the emulated model's input; 0: the model's own.
    pub side_px: u32,
}

impl Launch {
    /// The emulated engine with these flags, `alpha + beta·b` in microseconds.
    pub fn emulated(alpha_micros: u32, beta_micros: u32, more: &[&str]) -> Self {
        let curve = [
            "--model=emulated.onnx".to_owned(),
            "--engine=emulated".to_owned(),
            format!("--emulated-alpha-micros={alpha_micros}"),
            format!("--emulated-beta-micros={beta_micros}"),
        ];
        let flags = curve.into_iter().chain(more.iter().map(|flag| (*flag).to_owned())).collect();
        Self { flags, side_px: 160, ..Self::default() }
    }
}

/// A server at work; it ends, and its cgroups go, with this value.
pub struct Pod {
    /// The pod as the operator sees it.
    pub view: PodView,
    launch: Launch,
    child: Child,
    groups: Vec<PathBuf>,
    folder: tempfile::TempDir,
}

impl Pod {
    /// Starts pod `number` of `service`, the bench's service number `index`, and waits until it is ready.
    pub async fn start(
        (index, service): (u8, &str),
        number: u8,
        (launch, knobs): (&Launch, &KnobsDocument),
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("knobs.json"), serde_json::to_vec(knobs)?)?;
        let groups = groups(launch, &format!("yolo-reality-{}-{index}-{number}", std::process::id()))?;
        let ip = IpAddr::V4(Ipv4Addr::new(127, 101, index, number));
        let created = jiff::Timestamp::now();
        let child = spawn(launch, (ip, &groups), folder.path())?;
        let service = ServiceId { namespace: "reality".to_owned(), name: service.to_owned() };
        let view = PodView {
            uid: format!("uid-{index}-{number}"),
            namespace: service.namespace.clone(),
            name: format!("{}-{number}", service.name),
            service,
            ip: Some(ip),
            phase: PodPhase::Ready,
            created,
            ready_since: None,
            class: 0,
            node: None,
            knobs_annotation: None,
            deletion_cost: None,
            oom_killed: None,
            termination: None,
            restarts: 0,
            waiting: None,
        };
        let mut pod = Self { view, launch: launch.clone(), child, groups, folder };
        pod.until_ready(ip).await?;
        pod.view.ready_since = Some(jiff::Timestamp::now());
        Ok(pod)
    }

    /// Where its API is.
    pub fn api(&self) -> SocketAddr {
        SocketAddr::new(self.view.ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), 8080)
    }

    /// CPU seconds of the process.
    pub fn cpu_s(&self) -> f64 {
        cpu_s(self.child.id())
    }

    /// Kills the process and starts it again as the kubelet does: the same pod, one more restart.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.end();
        let ip = self.api().ip();
        self.child = spawn(&self.launch, (ip, &self.groups), self.folder.path())?;
        self.view.restarts += 1;
        self.until_ready(ip).await
    }

    /// Sets the memory limit so that the present use is `share` of it; returns the limit in bytes.
    pub fn limit_memory(&self, share: f64) -> anyhow::Result<u64> {
        let group = self.groups.iter().find(|group| group.starts_with("/sys/fs/cgroup/memory"));
        let group = group.ok_or_else(|| anyhow::anyhow!("no memory cgroup"))?;
        let used: f64 = fs::read_to_string(group.join("memory.usage_in_bytes"))?.trim().parse()?;
        // Pages of files that nobody reads are no use: the kernel takes them back first.
        let stat = fs::read_to_string(group.join("memory.stat"))?;
        let idle = stat.lines().find_map(|line| line.strip_prefix("total_inactive_file ")).unwrap_or("0");
        let text = format!("{:.0}", (used - idle.parse::<f64>()?) / share);
        fs::write(group.join("memory.limit_in_bytes"), &text)?;
        Ok(text.parse()?)
    }

    async fn until_ready(&mut self, ip: IpAddr) -> anyhow::Result<()> {
        let started = Instant::now();
        while scrape::page(SocketAddr::new(ip, ADMIN_PORT), "/readyz").await.is_err() {
            anyhow::ensure!(self.child.try_wait()?.is_none(), "{}: the server ended", self.view.name);
            anyhow::ensure!(started.elapsed() < START_MAX, "{}: not ready", self.view.name);
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.end();
        for group in &self.groups {
            let _ = fs::remove_dir(group);
        }
    }
}

/// Cgroups (v1) with the limits that `launch` asks for.
fn groups(launch: &Launch, name: &str) -> anyhow::Result<Vec<PathBuf>> {
    // A memory cgroup each, or a server would report what everybody uses.
    let controllers: &[&str] = if launch.cores.is_some() { &["cpu", "cpuacct", "memory"] } else { &["memory"] };
    let mut groups = Vec::new();
    for controller in controllers {
        let group = Path::new("/sys/fs/cgroup").join(controller).join(name);
        fs::create_dir(&group).with_context(|| format!("{}: this bench wants root and cgroup v1", group.display()))?;
        groups.push(group);
    }
    if let (Some(cores), Some(group)) = (launch.cores, groups.first()) {
        // The period is the kernel's default, 100 ms.
        fs::write(group.join("cpu.cfs_quota_us"), format!("{:.0}", cores * 1e5))?;
    }
    Ok(groups)
}

/// A shell puts itself into the groups and then becomes the server, so that no moment of it is outside.
fn spawn(launch: &Launch, (ip, groups): (IpAddr, &[PathBuf]), folder: &Path) -> anyhow::Result<Child> {
    let join: Vec<String> =
        groups.iter().map(|group| format!("echo $$ > {}/cgroup.procs && ", group.display())).collect();
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/release/yolo-server");
    anyhow::ensure!(server.exists(), "{} is missing: make release builds it", server.display());
    let at = |port: u16| SocketAddr::new(ip, port).to_string();
    let child = Command::new("sh")
        .arg("-c")
        .arg(join.concat() + "exec \"$@\"")
        .args(["sh".as_ref(), server.as_os_str()])
        .args(&launch.flags)
        .args((launch.side_px > 0).then(|| format!("--imgsz={}", launch.side_px)))
        .args(["--api-address", &at(8080), "--grpc-address", &at(8001), "--admin-address", &at(ADMIN_PORT)])
        .arg("--knobs-dir")
        .arg(folder)
        .arg("--termination-log")
        .arg(folder.join("termination.log"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(folder.join("server.log"))?)
        .spawn()?;
    Ok(child)
}

/// CPU seconds of a process, user and system; 0 if it has gone.
pub fn cpu_s(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default().split_whitespace();
    // utime and stime are fields 14 and 15; the state, after the name, is field 3.
    fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_S
}

/// CPU seconds that the whole machine was busy: all but idle and waiting for disks.
pub fn machine_s() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8);
    // user nice system idle iowait irq softirq steal.
    let busy = fields.enumerate().filter(|(at, _)| !matches!(at, 3 | 4));
    busy.filter_map(|(_, field)| field.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_S
}
