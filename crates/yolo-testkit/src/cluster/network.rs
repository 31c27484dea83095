//! The network namespace of an instance: a bridge for its pods, and no link to the host.

use std::{fs, os::unix::fs::MetadataExt, path::Path, process::Command};

use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
};

use super::{ClusterError, Instance, Tier, control_plane::NODE_ADDRESS, identity::Identity, process, stop};

/// The bridge that the pods are attached to.
pub(crate) const BRIDGE: &str = "br0";

/// Name of the file, in the instance's directory, on which its network namespace is mounted.
pub(crate) const NAMESPACE_FILE: &str = "network";

/// Prefix length of the pods' network, whose first address is [`NODE_ADDRESS`].
const PREFIX_LENGTH: u8 = 24;

/// Makes the namespace. Pods reach each other and the API server there, and nothing outside.
pub(crate) fn create(instance: &Instance) -> Result<(), ClusterError> {
    // Services need bridged packets to pass iptables. The module is built in or loaded already in many kernels, and
    // then modprobe may be missing or fail; whether it worked shows at the sysctl below.
    let _ = Command::new("modprobe").args(["-q", "br_netfilter"]).output();
    let _ = Command::new("modprobe").args(["-q", "overlay"]).output();
    // Not `ip netns add`, which leaves a mount of its own on /run/netns for ever.
    let namespace = instance.write(NAMESPACE_FILE, "")?;
    process::run(Command::new("unshare").arg(format!("--net={}", namespace.display())).arg("true"))?;
    let address = format!("{NODE_ADDRESS}/{PREFIX_LENGTH}");
    for arguments in [
        "link set lo up",
        &format!("link add {BRIDGE} type bridge"),
        &format!("addr add {address} dev {BRIDGE}"),
        &format!("link set {BRIDGE} up"),
        &format!("route add default via {NODE_ADDRESS} dev {BRIDGE}"),
    ] {
        process::run(instance.command_in(Tier::T3, "ip").args(arguments.split(' ')))?;
    }
    for setting in ["net.ipv4.ip_forward=1", "net.bridge.bridge-nf-call-iptables=1"] {
        process::run(instance.command_in(Tier::T3, "sysctl").args(["-qw", setting]))?;
    }
    Ok(())
}

/// Processes whose network namespace is the instance's.
pub(crate) fn members(instance: &Instance) -> Vec<Identity> {
    let Some(ours) = namespace_id(&instance.network_namespace()) else { return Vec::new() };
    let inside = |pid: &i32| namespace_id(Path::new(&format!("/proc/{pid}/ns/net"))) == Some(ours);
    stop::process_ids().filter(inside).filter_map(Identity::of).collect()
}

/// Removes the namespace, and with it the bridge and the links of the pods.
pub(crate) fn remove(instance: &Instance) -> Result<(), ClusterError> {
    match umount2(&instance.network_namespace(), MntFlags::MNT_DETACH) {
        // No such file, or only a file: the instance has no namespace (any more).
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL | Errno::EPERM) => Ok(()),
        Err(source) => Err(ClusterError::System { action: "unmount the cluster's network namespace", source }),
    }
}

/// Device and inode of a namespace file, which together identify the namespace.
fn namespace_id(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}
