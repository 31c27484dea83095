//! Claiming an instance's name, and ending an instance completely.
//!
//! There is one way to stop, for a healthy cluster and for what is left of a killed one: SIGKILL to everything that is
//! ours. Nothing of a cluster is worth a farewell (etcd does not even sync), and a polite end can hang. What is ours is
//! known without names: the remembered processes, the members of our cgroups (containers), and the processes in our
//! network namespace (containerd's shims, which outlive containerd).

use std::{collections::HashSet, fs, io, time::Duration};

use super::{ClusterError, Instance, Tier, cgroups, identity::Identity, instance, network};

/// How long a process may take to vanish after SIGKILL. One in a disk wait can take seconds.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How often the lists of processes are read again, for those that were started meanwhile.
const ROUNDS_MAX: usize = 20;

/// Makes the instance's directory ours, after clearing what killed runs of it, and of guarded tests, have left.
///
/// # Errors
/// [`ClusterError::Owned`] if a running process owns it.
pub(crate) fn claim(instance: &Instance, tier: Tier) -> Result<(), ClusterError> {
    let _lock = instance::lock()?;
    if let Some(owner) = instance.owner().filter(|owner| owner.alive()) {
        return Err(ClusterError::Owned { instance: instance.name().to_owned(), owner: owner.pid() });
    }
    let orphaned = |other: &Instance| other.owner().is_some_and(|owner| !owner.alive());
    for orphan in Instance::all().into_iter().filter(orphaned) {
        stop(&orphan)?;
    }
    stop(instance)?;
    instance.create()?;
    instance.write("tier", format!("{tier:?}")).map(drop)
}

/// Ends the instance and removes its directory. The caller holds [`instance::lock`].
pub(crate) fn stop(instance: &Instance) -> Result<(), ClusterError> {
    halt(instance)?;
    instance.remove()
}

/// Ends the instance; its directory stays. Nothing happens if nothing is left of it.
pub(crate) fn halt(instance: &Instance) -> Result<(), ClusterError> {
    // The kubelet first: until it is gone it starts again what the rest of this function kills.
    if let Some(kubelet) = instance.process("kubelet") {
        end("kubelet", kubelet)?;
    }
    for _ in 0..ROUNDS_MAX {
        let remaining = instance.members();
        if remaining.is_empty() {
            break;
        }
        // All at once, then one after the other: the waits overlap.
        for (_, identity) in &remaining {
            identity.kill();
        }
        for (name, identity) in remaining {
            end(&name, identity)?;
        }
    }
    cgroups::remove(instance)?;
    network::remove(instance)
}

impl Instance {
    /// Every live process of the instance, with a name for people: its own, the containers', containerd's shims. The
    /// guard is not a part of the cluster.
    pub fn members(&self) -> Vec<(String, Identity)> {
        let named = |kind: &'static str| move |identity| (kind.to_owned(), identity);
        let mut all = self.processes();
        all.extend(cgroups::members(self).into_iter().map(named("a container's process")));
        all.extend(network::members(self).into_iter().map(named("a process in the network namespace")));
        all.retain(|(_, identity)| identity.alive());
        let mut seen = HashSet::new();
        all.retain(|(_, identity)| seen.insert(*identity));
        all
    }
}

fn end(name: &str, identity: Identity) -> Result<(), ClusterError> {
    identity.kill();
    if identity.wait_end(KILL_LIMIT) {
        return Ok(());
    }
    Err(ClusterError::Unstoppable { process: name.to_owned(), pid: identity.pid(), limit: KILL_LIMIT })
}

/// Process ids that are directories of `/proc`.
pub(crate) fn process_ids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// An absent thing is as good as a removed one.
pub(crate) fn absent_is_ok(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
