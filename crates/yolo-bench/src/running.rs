//! A contender's processes, from start to end.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::machine;

/// Every process of a contender inherits it.
const MARK: &str = "YOLO_BENCH_RUN";
/// For an orderly end, in which Triton gives its shared memory back; what is left then is killed.
const END_MAX: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

/// A started service; its processes end with this value.
pub struct Running {
    child: Child,
    mark: String,
    /// When it was started.
    pub started: Instant,
}

impl Running {
    /// Starts `command`; what it prints goes to `log`.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn start(mut command: Command, log: &File) -> anyhow::Result<Self> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let value = format!("{}-{}", std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        command.env(MARK, &value).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
        let started = Instant::now();
        Ok(Self { child: command.spawn()?, mark: format!("{MARK}={value}"), started })
    }

    /// Whether its first process has ended.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Proportional memory of all its processes, in MB (10^6 bytes).
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn pss_mb(&self) -> anyhow::Result<f64> {
        Ok(machine::with_environment(&self.mark)?.into_iter().map(machine::pss_bytes).sum::<f64>() / 1e6)
    }

    /// CPU seconds of all its living processes.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn cpu_s(&self) -> anyhow::Result<f64> {
        Ok(machine::with_environment(&self.mark)?.into_iter().map(machine::process_s).sum())
    }

    /// Begins to watch for other work on the machine.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn watch(&self) -> anyhow::Result<Watch<'_>> {
        Ok(Watch { running: self, start: Instant::now(), foreign_s: foreign_s(self)? })
    }

    fn signal(&self, signal: Signal) -> usize {
        let pids = machine::with_environment(&self.mark).unwrap_or_default();
        for pid in pids.iter().filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?)) {
            // It may have ended by itself meanwhile.
            let _ = kill_process(pid, signal);
        }
        pids.len()
    }
}

/// Watches what keeps the machine busy beside a service and this program.
pub struct Watch<'a> {
    running: &'a Running,
    start: Instant,
    foreign_s: f64,
}

impl Watch<'_> {
    /// Cores that neither the service nor this program kept busy since then: other work on the machine.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn foreign_cores(self) -> anyhow::Result<f64> {
        Ok((foreign_s(self.running)? - self.foreign_s) / self.start.elapsed().as_secs_f64())
    }
}

fn foreign_s(running: &Running) -> anyhow::Result<f64> {
    Ok(machine::busy_s()? - running.cpu_s()? - machine::process_s(std::process::id()))
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let asked = Instant::now();
        while asked.elapsed() < END_MAX && !self.ended().unwrap_or(true) {
            std::thread::sleep(LOOK);
        }
        // Until none is left: one may be starting another while we look.
        while asked.elapsed() < 2 * END_MAX && self.signal(Signal::KILL) > 0 {
            let _ = self.child.try_wait(); // a dead child still counts until it is waited for
            std::thread::sleep(LOOK);
        }
    }
}
