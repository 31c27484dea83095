//! The cgroups under which the kubelet puts its pods, so that their CPU and memory limits are enforced.
//!
//! Version 1 (one tree a controller, also the hybrid layout) and version 2 (one tree) are both served; nothing is
//! remounted or converted.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{ClusterError, Instance, error::At, identity::Identity, stop::absent_is_ok};

const ROOT: &str = "/sys/fs/cgroup";

/// Trees of version 1 that the kubelet insists on.
const CONTROLLERS_V1: [&str; 9] =
    ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd"];

/// Controllers that version 2 must hand down to our tree.
const CONTROLLERS_V2: &str = "+cpu +cpuset +memory +pids";

/// A cgroup stays busy for a moment after its last process has ended.
const REMOVE_LIMIT: Duration = Duration::from_secs(5);
const REMOVE_POLL: Duration = Duration::from_millis(20);

/// Creates the instance's cgroup in every tree.
pub(crate) fn create(instance: &Instance) -> Result<(), ClusterError> {
    for tree in needed(instance) {
        fs::create_dir_all(&tree).at("create", &tree)?;
    }
    if unified() {
        for folder in [PathBuf::from(ROOT), Path::new(ROOT).join(instance.cgroup())] {
            let control = folder.join("cgroup.subtree_control");
            fs::write(&control, CONTROLLERS_V2).at("write", &control)?;
        }
        return Ok(());
    }
    // A new cpuset is empty, and a process cannot be moved into an empty one.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let parent = Path::new(ROOT).join("cpuset").join(file);
        let ours = Path::new(ROOT).join("cpuset").join(instance.cgroup()).join(file);
        let value = fs::read_to_string(&parent).at("read", &parent)?;
        fs::write(&ours, value.trim()).at("write", &ours)?;
    }
    Ok(())
}

/// Processes in the instance's cgroups.
pub(crate) fn members(instance: &Instance) -> Vec<Identity> {
    let lists = present(instance).into_iter().filter_map(|folder| fs::read_to_string(folder.join("cgroup.procs")).ok());
    lists.flat_map(|list| list.lines().filter_map(|pid| Identity::of(pid.parse().ok()?)).collect::<Vec<_>>()).collect()
}

/// Removes the instance's cgroups, bottom-up.
pub(crate) fn remove(instance: &Instance) -> Result<(), ClusterError> {
    let deadline = Instant::now() + REMOVE_LIMIT;
    for folder in present(instance) {
        while let Err(source) = absent_is_ok(fs::remove_dir(&folder)) {
            if Instant::now() >= deadline {
                return Err(source).at("remove", &folder);
            }
            thread::sleep(REMOVE_POLL);
        }
    }
    Ok(())
}

fn unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").is_file()
}

/// The cgroups that the kubelet needs to find.
fn needed(instance: &Instance) -> Vec<PathBuf> {
    let name = instance.cgroup();
    if unified() {
        return vec![Path::new(ROOT).join(name)];
    }
    CONTROLLERS_V1.iter().map(|controller| Path::new(ROOT).join(controller).join(&name)).collect()
}

/// The instance's cgroups wherever they are: in the hybrid layout runc adds one to the tree of version 2.
fn present(instance: &Instance) -> Vec<PathBuf> {
    let trees = fs::read_dir(ROOT).into_iter().flatten().flatten().map(|tree| tree.path());
    let ours = trees.chain([PathBuf::from(ROOT)]).map(|tree| tree.join(instance.cgroup()));
    ours.flat_map(|cgroup| descendants(&cgroup)).collect()
}

/// A cgroup and all below it, children before parents; empty if it does not exist.
fn descendants(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let children = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut all: Vec<_> = children.flat_map(|child| descendants(&child.path())).collect();
    all.push(folder.to_owned());
    all
}
