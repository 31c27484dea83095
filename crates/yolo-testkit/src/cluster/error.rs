//! What can go wrong while a cluster starts, works or stops.

use std::{io, path::PathBuf, time::Duration};

/// A failure of the local cluster. The text names the program and its log, so that nobody has to search for it.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The machine lacks something that the cluster needs (root, a binary, Linux); a test is skipped for this.
    #[error("{0}")]
    Unavailable(String),
    /// A file or directory could not be used.
    #[error("failed to {action} {}", path.display())]
    File {
        /// Verb: "create", "read", "write", "remove".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A program could not be started at all.
    #[error("failed to run {program}")]
    Spawn {
        /// The program's name.
        program: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A program ran and reported failure.
    #[error("{program} failed with {status}: {output}")]
    Command {
        /// The program with its arguments.
        program: String,
        /// Exit status in words.
        status: String,
        /// What it wrote to standard error, or else to standard output.
        output: String,
    },
    /// A process of the cluster ended, or did not become healthy in time.
    #[error("{process}: {state} within {limit:?}; the end of {}:\n{tail}", log.display())]
    Unhealthy {
        /// The process's name, as in its pid and log file.
        process: String,
        /// "ended" or "did not become healthy".
        state: &'static str,
        /// How long it was given.
        limit: Duration,
        /// Its log file.
        log: PathBuf,
        /// Last lines of the log.
        tail: String,
    },
    /// Another live process owns this instance.
    #[error("cluster instance {instance} is owned by the running process {owner}")]
    Owned {
        /// The instance's name.
        instance: String,
        /// Process id of the owner.
        owner: i32,
    },
    /// Some process of the cluster survived SIGKILL.
    #[error("{process} (process {pid}) is still running {limit:?} after SIGKILL")]
    Unstoppable {
        /// The process's name.
        process: String,
        /// Its process id.
        pid: i32,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The guard process, which stops the cluster when the test process ends, did not start.
    #[error("the cluster guard did not start: does this test binary contain `yolo_testkit::cluster_guard!()`?")]
    NoGuard,
    /// A certificate could not be made.
    #[error("failed to make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// The cluster's kubeconfig could not be read.
    #[error("failed to read the cluster's kubeconfig")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The API server refused a call or could not be reached.
    #[error("a call to the cluster's API server failed")]
    Api(#[source] Box<kube::Error>),
    /// A system call failed.
    #[error("failed to {action}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// The error number.
        #[source]
        source: nix::Error,
    },
    /// An awaited condition did not hold in time.
    #[error("waited {limit:?} in vain for: {what}")]
    Timeout {
        /// The condition, in words.
        what: String,
        /// How long it was waited for.
        limit: Duration,
    },
}

impl ClusterError {
    /// The failure and its causes in one line, as a person reads it.
    pub fn with_causes(&self) -> String {
        let causes = std::iter::successors(Some(self as &dyn std::error::Error), |error| error.source());
        causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }
}

impl From<kube::Error> for ClusterError {
    fn from(source: kube::Error) -> Self {
        Self::Api(Box::new(source))
    }
}

/// Adds to an I/O error what was done to which path.
pub(crate) trait At<T> {
    /// Turns `io::Error` into [`ClusterError::File`].
    fn at(self, action: &'static str, path: &std::path::Path) -> Result<T, ClusterError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &std::path::Path) -> Result<T, ClusterError> {
        self.map_err(|source| ClusterError::File { action, path: path.to_owned(), source })
    }
}
