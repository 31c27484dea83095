//! The operator program under measurement: started, asked for its own metrics, stopped.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use kube::config::Kubeconfig;
use rustix::process::{Pid, Signal, kill_process};
use yolo_testkit::cluster::{LocalCluster, wait_for};

/// The operator's user: the audit log tells its calls from this bench's.
pub const USER: &str = "bench-operator";
/// Longest that anything in this bench may take.
const PATIENCE: Duration = Duration::from_mins(30);
/// The kernel's unit of a process' CPU time, fixed for user space on Linux.
const TICKS_PER_S: f64 = 100.0;

/// How the operator is started.
pub struct Program {
    path: PathBuf,
    kubeconfig: tempfile::NamedTempFile,
}

impl Program {
    /// `path`: of the program.
    pub fn new(cluster: &LocalCluster, path: PathBuf) -> anyhow::Result<Self> {
        let mut config = Kubeconfig::read_from(cluster.kubeconfig())?;
        for user in config.auth_infos.iter_mut().filter_map(|user| user.auth_info.as_mut()) {
            user.impersonate = Some(USER.to_owned());
            user.impersonate_groups = Some(vec!["system:masters".to_owned()]);
        }
        let kubeconfig = tempfile::NamedTempFile::new()?;
        std::fs::write(&kubeconfig, serde_yaml_ng::to_string(&config)?)?;
        Ok(Self { path, kubeconfig })
    }

    pub async fn start(&self) -> anyhow::Result<Operator> {
        let address = |port| SocketAddr::from((Ipv4Addr::new(127, 101, 1, 1), port));
        let metrics = address(8080);
        let process = Command::new(&self.path)
            .args([
                "--namespace=sample",
                "--identity=bench",
                "--log=error",
                "--server-image=localhost/yolo-server:bench",
            ])
            .arg(format!("--metrics-address={metrics}"))
            .arg(format!("--health-address={}", address(8081)))
            .env("KUBECONFIG", self.kubeconfig.path())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("failed to start {}", self.path.display()))?;
        let operator = Operator { process, metrics };
        operator.until("the operator to lead", |page| page.sum("yolo_operator_leader", "") > 0.0).await?;
        Ok(operator)
    }
}

/// A running operator; killed when dropped.
pub struct Operator {
    process: Child,
    metrics: SocketAddr,
}

impl Operator {
    /// Waits until its page of metrics is as `is` says.
    pub async fn until(&self, what: &str, is: impl Fn(&Page) -> bool) -> anyhow::Result<()> {
        let url = format!("http://{}/metrics", self.metrics);
        let look = async || {
            let text = reqwest::get(&url).await.ok()?.text().await.ok()?;
            is(&Page(text)).then_some(())
        };
        wait_for(what, PATIENCE, look).await.map_err(Into::into)
    }

    /// Ends it in order.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.process), Signal::TERM)?;
        let status = wait_for("the operator's end", PATIENCE, async || self.process.try_wait().ok().flatten()).await?;
        ensure!(status.success(), "the operator ended with {status}");
        Ok(())
    }

    /// Resident memory in MB.
    pub fn resident_mb(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024.0 / 1e6)
    }

    /// CPU seconds so far, user and system.
    pub fn cpu_s(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let fields = stat.rsplit_once(')').context("no program name")?.1.split_whitespace();
        // utime and stime, the 14th and the 15th of proc_pid_stat(5); the first two are before the parenthesis.
        let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        Ok(ticks / TICKS_PER_S)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The operator's own metrics at one moment.
pub struct Page(String);

impl Page {
    /// Sum of the series of `family` whose labels contain `label`.
    pub fn sum(&self, family: &str, label: &str) -> f64 {
        let series = self.0.lines().filter(|line| line.starts_with(family) && line.contains(label));
        series.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// Objects of `kinds` applied since the start.
    pub fn applied(&self, kinds: &[&str]) -> f64 {
        let of = |kind: &&str| self.sum("yolo_operator_api_writes_total", &format!(r#"kind="{kind}",outcome="ok""#));
        kinds.iter().map(of).sum()
    }
}
