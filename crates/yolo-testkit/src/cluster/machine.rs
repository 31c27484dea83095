//! What the machine must offer: Linux, the binaries of `make cluster-binaries`, and for a node also root.

use std::path::{Path, PathBuf};

use super::{ClusterError, Tier};

/// The one list of versions, shared with `tools/cluster/build`.
const VERSIONS: &str = include_str!("../../../../tools/cluster/versions");

/// Debian programs that a node needs besides the built binaries.
const NODE_PROGRAMS: [&str; 8] = ["containerd", "ctr", "runc", "iptables", "conntrack", "ip", "nsenter", "unshare"];

/// Binaries of the cache that each tier runs.
const CONTROL_PLANE_BINARIES: [&str; 2] = ["etcd", "kube-apiserver"];
const NODE_BINARIES: [&str; 5] = ["kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "coredns"];

/// Where the programs of the cluster are.
#[derive(Debug, Clone)]
pub struct Machine {
    binaries: PathBuf,
    images: PathBuf,
}

impl Machine {
    /// Looks at the machine.
    ///
    /// # Errors
    /// [`ClusterError::Unavailable`] with one sentence that names what is missing and how to get it.
    pub fn check(tier: Tier) -> Result<Self, ClusterError> {
        let unavailable = |why: String| Err(ClusterError::Unavailable(why));
        if !cfg!(target_os = "linux") {
            return unavailable("a local cluster needs Linux".into());
        }
        let cache = cache_dir();
        let machine =
            Self { binaries: cache.join("cluster").join(version("KUBERNETES_VERSION")), images: cache.join("images") };
        let node: &[&str] = if tier == Tier::T3 { &NODE_BINARIES } else { &[] };
        for binary in CONTROL_PLANE_BINARIES.iter().chain(node) {
            if !machine.binary(binary).is_file() {
                return unavailable(format!("{binary} is not built (run `make cluster-binaries`)"));
            }
        }
        if tier == Tier::T3 {
            if !nix::unistd::geteuid().is_root() {
                return unavailable("a node needs root".into());
            }
            if let Some(missing) = NODE_PROGRAMS.iter().find(|program| find_program(program).is_none()) {
                return unavailable(format!("{missing} is not installed (run `make cluster-binaries`)"));
            }
            if !machine.sandbox_image().is_file() {
                return unavailable("the sandbox image is not built (run `make cluster-binaries`)".into());
            }
        }
        Ok(machine)
    }

    /// Path of a binary in the cache.
    pub fn binary(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    /// Archive of the image that holds every pod's namespaces, and busybox for tests.
    pub fn sandbox_image(&self) -> PathBuf {
        self.images.join("busybox.tar")
    }
}

/// The Kubernetes version that is started, as `1.35.4`.
pub fn kubernetes_version() -> &'static str {
    version("KUBERNETES_VERSION")
}

/// `$YOLO_CACHE`, or `yolo-operator` in the user's cache directory.
fn cache_dir() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("YOLO_CACHE").unwrap_or_else(|| {
        let user_cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        user_cache.unwrap_or_else(|| "/var/cache".into()).join("yolo-operator")
    })
}

fn version(key: &str) -> &'static str {
    let pairs = VERSIONS.lines().filter_map(|line| line.split_once('='));
    pairs.into_iter().find_map(|(name, value)| (name == key).then_some(value)).unwrap_or_default()
}

/// Looks a program up in `PATH` and where Debian keeps the programs of an administrator.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let administrator = ["/usr/sbin", "/sbin"].map(|folder| Path::new(folder).to_owned());
    std::env::split_paths(&path).chain(administrator).map(|folder| folder.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_shared_list() {
        assert_eq!(version("KUBERNETES_VERSION").split('.').count(), 3);
        assert_eq!(version("NO_SUCH_VERSION"), "");
    }
}
