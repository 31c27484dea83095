//! A test binary's cluster ends with the test binary, however that ends.
//!
//! libtest has no hook for "all tests are done", and SIGKILL runs no code at all. So the test binary is started a
//! second time as a guard: it runs the one test that [`cluster_guard!`](crate::cluster_guard) defines, which waits
//! until the pipe from the first process closes and then stops the instance.

use std::{
    env,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

use super::{ClusterError, Instance, LocalCluster, error::At, identity::Identity};

/// Names the instance to the guard process.
const INSTANCE_VARIABLE: &str = "YOLO_CLUSTER_GUARD";

/// Name of the test that [`cluster_guard!`](crate::cluster_guard) defines, at the root of the test binary.
const GUARD_TEST: &str = "cluster_guard";

/// What the guard says once it watches.
const GREETING: &str = "guarding";

/// Starts the guard and makes it the owner of the instance. The child's standard input must stay open.
pub(crate) fn start(instance: &Instance) -> Result<Child, ClusterError> {
    let program = env::current_exe().at("find", "the test binary".as_ref())?;
    let log = instance.log("guard");
    let mut guard = Command::new(program)
        .args([GUARD_TEST, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSTANCE_VARIABLE, instance.name())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(&log).at("create", &log)?)
        .process_group(0)
        .spawn()
        .map_err(|source| ClusterError::Spawn { program: "the cluster guard".into(), source })?;
    let output = guard.stdout.take().ok_or(ClusterError::NoGuard)?;
    let watching = BufReader::new(output).lines().map_while(Result::ok).any(|line| line.ends_with(GREETING));
    let identity = i32::try_from(guard.id()).ok().and_then(Identity::of);
    match identity {
        Some(identity) if watching => instance.set_owner(identity)?,
        _ => return Err(ClusterError::NoGuard),
    }
    Ok(guard)
}

/// The guard's whole life; returns at once in a process that is not one. Called by `cluster_guard!()`.
///
/// # Errors
/// Whatever stopping the instance reports.
pub fn watch() -> Result<(), ClusterError> {
    let Ok(name) = env::var(INSTANCE_VARIABLE) else { return Ok(()) };
    let mut output = std::io::stdout();
    // The first process waits for this line, and afterwards never reads again: nothing else may be written here.
    let _ = writeln!(output, "{GREETING}").and_then(|()| output.flush());
    // Returns at the end of the pipe, that is when the first process has ended in whatever way.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    LocalCluster::down(&name)
}

/// Defines the test through which a test binary guards its cluster. Put it once at the root of the binary.
#[macro_export]
macro_rules! cluster_guard {
    () => {
        #[test]
        fn cluster_guard() {
            $crate::cluster::guard::watch().unwrap();
        }
    };
}
