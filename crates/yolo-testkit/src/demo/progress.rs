//! Lines for the person who watches: what is being done, and how long it took.

use std::time::Instant;

/// The demo's clock for its own steps.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
}

impl Progress {
    /// Starts the clock.
    pub fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// Since the start, in seconds.
    pub fn elapsed_s(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Does one step between two lines.
    ///
    /// # Errors
    /// The step's own, with its name.
    pub fn step<T>(&self, name: &str, step: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let begun = Instant::now();
        self.say(&format!("{name} ..."));
        let done = step().map_err(|failure| failure.context(format!("step \"{name}\" failed")))?;
        self.say(&format!("{name}: done in {:.1} s", begun.elapsed().as_secs_f64()));
        Ok(done)
    }

    /// Prints one line with the time since the start.
    pub fn say(&self, line: &str) {
        println!("[{:6.1} s] {line}", self.elapsed_s());
    }
}
