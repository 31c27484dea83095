//! Starting programs, watching that they live, running tools to their end.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::{ClusterError, Instance, error::At, identity::Identity};

/// Lines of a log that an error shows.
const LOG_TAIL_LINES: usize = 12;

/// Starts a process of the cluster: its output goes to its log file, its identity to its pid file.
///
/// It gets a process group of its own, so that Ctrl-C at a terminal reaches the program that stops the cluster and
/// not its parts in an order of the kernel's choice.
pub(crate) fn spawn(instance: &Instance, name: &str, command: &mut Command) -> Result<Child, ClusterError> {
    let log = instance.log(name);
    let output = File::create(&log).at("create", &log)?;
    let errors = output.try_clone().at("open", &log)?;
    let child = command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .process_group(0)
        .spawn()
        .map_err(|source| ClusterError::Spawn { program: name.to_owned(), source })?;
    let identity = i32::try_from(child.id()).ok().and_then(Identity::of);
    let ended = || unhealthy(instance, name, "ended", Duration::ZERO);
    instance.remember(name, identity.ok_or_else(ended)?)?;
    Ok(child)
}

/// Checks that processes of the cluster still run.
///
/// # Errors
/// [`ClusterError::Unhealthy`] for the first that has ended, with the end of its log.
pub(crate) fn require_alive(instance: &Instance, names: &[&str], limit: Duration) -> Result<(), ClusterError> {
    let dead = names.iter().find(|name| !instance.process(name).is_some_and(Identity::alive));
    dead.map_or(Ok(()), |name| Err(unhealthy(instance, name, "ended", limit)))
}

/// The error for a process that ended or did not become healthy within `limit`.
pub(crate) fn unhealthy(instance: &Instance, name: &str, state: &'static str, limit: Duration) -> ClusterError {
    let log = instance.log(name);
    let text = fs::read_to_string(&log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(LOG_TAIL_LINES)..).unwrap_or_default().join("\n");
    ClusterError::Unhealthy { process: name.to_owned(), state, limit, log, tail }
}

/// Runs a tool to its end and returns what it wrote to standard output.
///
/// # Errors
/// [`ClusterError::Command`] with the tool's own words if it fails.
pub(crate) fn run(command: &mut Command) -> Result<String, ClusterError> {
    let program = || format!("{command:?}").replace('"', "");
    let named = program();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ClusterError::Spawn { program: named.clone(), source })?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let errors = text(&output.stderr);
    let output_text = if errors.is_empty() { text(&output.stdout) } else { errors };
    Err(ClusterError::Command { program: named, status: output.status.to_string(), output: output_text })
}
