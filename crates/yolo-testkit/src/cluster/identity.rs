//! A process as this project remembers it: its id **and** its start time, so that a reused id is never signalled.

use std::{
    fmt, fs,
    str::FromStr,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How often a dying process is looked at. The kernel offers no portable wait for a process that is not a child.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A process id with the start time of that process in clock ticks since boot (field 22 of `/proc/<pid>/stat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    pid: i32,
    started_ticks: u64,
}

impl Identity {
    /// The process that has this id now; `None` if there is none.
    pub fn of(pid: i32) -> Option<Self> {
        let (_, started_ticks) = state_of(pid)?;
        Some(Self { pid, started_ticks })
    }

    /// The process id.
    pub fn pid(self) -> i32 {
        self.pid
    }

    /// Whether this very process still runs. A zombie does not: it only waits for its parent.
    pub fn alive(self) -> bool {
        state_of(self.pid).is_some_and(|(state, started)| started == self.started_ticks && state != 'Z' && state != 'X')
    }

    /// Sends SIGKILL to this very process; nothing happens if it has ended.
    pub fn kill(self) {
        if self.alive() {
            // It may end between the look and the signal: that is what was wanted.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }

    /// Waits until the process has ended. Returns whether it did so within `limit`.
    pub fn wait_end(self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        true
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.started_ticks)
    }
}

impl FromStr for Identity {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (pid, started) = text.trim().split_once(' ').ok_or(())?;
        Ok(Self { pid: pid.parse().map_err(drop)?, started_ticks: started.parse().map_err(drop)? })
    }
}

/// State letter and start time of a process.
fn state_of(pid: i32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may itself hold spaces and parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_process_id_is_not_taken_for_the_same_process() {
        let mine = Identity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(mine.alive());
        assert!(!Identity { started_ticks: mine.started_ticks + 1, ..mine }.alive());
        assert_eq!(mine.to_string().parse(), Ok(mine));
    }
}
