//! One instance of the cluster on disk: its directory, its pid files, its owner.
//!
//! Everything that an instance writes lies in one directory on `/dev/shm` (a tmpfs: etcd and containerd then cost no
//! disk writes), and everything that it creates elsewhere carries its name. So whoever finds the directory can stop
//! the instance completely, whatever became of the process that started it.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Command,
};

use super::{ClusterError, Tier, error::At, identity::Identity, network::NAMESPACE_FILE, stop::absent_is_ok};

/// Longest instance name: the path of a socket may have 107 bytes, and containerd's carries it.
const NAME_LENGTH_MAX: usize = 24;

/// A tmpfs on every Linux, open to every user.
const SHARED_MEMORY: &str = "/dev/shm";

/// Name and directory of one cluster.
#[derive(Debug, Clone)]
pub struct Instance {
    name: String,
    directory: PathBuf,
}

impl Instance {
    /// Names an instance. Nothing is created.
    ///
    /// # Errors
    /// [`ClusterError::Unavailable`] if the name is not 1 to 24 characters of `a-z`, `0-9` and `-`.
    pub fn new(name: &str) -> Result<Self, ClusterError> {
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > NAME_LENGTH_MAX || !name.chars().all(valid) {
            let rule = format!("1 to {NAME_LENGTH_MAX} characters of a-z, 0-9 and -");
            return Err(ClusterError::Unavailable(format!("instance name {name:?} is not {rule}")));
        }
        Ok(Self { name: name.to_owned(), directory: base_directory().join(name) })
    }

    /// Every instance that has a directory on this machine and belongs to this user.
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir(base_directory()).into_iter().flatten().flatten();
        entries.filter_map(|entry| Self::new(entry.file_name().to_str()?).ok()).collect()
    }

    /// The instance's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name of its cgroup.
    pub fn cgroup(&self) -> String {
        format!("yolo-{}", self.name)
    }

    /// Path of its network namespace.
    pub fn network_namespace(&self) -> PathBuf {
        self.path(NAMESPACE_FILE)
    }

    /// Path of something in its directory.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.directory.join(relative)
    }

    /// Its kubeconfig, with an administrator's rights.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("admin.kubeconfig")
    }

    /// Socket of its containerd.
    pub(crate) fn containerd_socket(&self) -> PathBuf {
        self.path("containerd.sock")
    }

    /// Log file of one of its processes.
    pub fn log(&self, process: &str) -> PathBuf {
        self.path("logs").join(format!("{process}.log"))
    }

    /// Whether the directory is there.
    pub fn exists(&self) -> bool {
        self.directory.is_dir()
    }

    /// Creates the directory tree. The caller holds [`lock`].
    pub(crate) fn create(&self) -> Result<(), ClusterError> {
        let base = base_directory();
        // 0700: the keys of the clusters lie below, and the place is open to everybody.
        DirBuilder::new().recursive(true).mode(0o700).create(&base).at("create", &base)?;
        for folder in ["pids", "logs", "pki"] {
            let folder = self.path(folder);
            fs::create_dir_all(&folder).at("create", &folder)?;
        }
        Ok(())
    }

    /// Removes the directory tree. The caller holds [`lock`].
    pub(crate) fn remove(&self) -> Result<(), ClusterError> {
        absent_is_ok(fs::remove_dir_all(&self.directory)).at("remove", &self.directory)?;
        // The last instance takes the common directory with it; while there are others this fails.
        let _ = fs::remove_dir(base_directory());
        Ok(())
    }

    /// Writes a file of the instance.
    pub(crate) fn write(&self, relative: &str, content: impl AsRef<[u8]>) -> Result<PathBuf, ClusterError> {
        let path = self.path(relative);
        fs::write(&path, content).at("write", &path)?;
        Ok(path)
    }

    /// Remembers a process of the instance.
    pub(crate) fn remember(&self, process: &str, identity: Identity) -> Result<(), ClusterError> {
        self.write(&format!("pids/{process}"), identity.to_string()).map(drop)
    }

    /// The remembered process of that name, running or not.
    pub(crate) fn process(&self, process: &str) -> Option<Identity> {
        fs::read_to_string(self.path("pids").join(process)).ok()?.parse().ok()
    }

    /// All remembered processes with their names.
    pub fn processes(&self) -> Vec<(String, Identity)> {
        let entries = fs::read_dir(self.path("pids")).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| self.process(&name).map(|identity| (name, identity))).collect()
    }

    /// Which tier was started; `None` if nothing was.
    pub(crate) fn tier(&self) -> Option<Tier> {
        match fs::read_to_string(self.path("tier")).ok()?.as_str() {
            "T1" => Some(Tier::T1),
            "T3" => Some(Tier::T3),
            _ => None,
        }
    }

    /// A command that runs in the instance's network namespace, where the tier has one.
    ///
    /// By `nsenter`, which replaces itself by the program, and not by `ip netns exec`, which mounts a new `/sys` and so
    /// hides the cgroups.
    pub(crate) fn command_in(&self, tier: Tier, program: impl AsRef<OsStr>) -> Command {
        if tier == Tier::T1 {
            return Command::new(program);
        }
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.network_namespace().display())).arg("--").arg(program);
        command
    }

    /// The process at whose end the instance stops by itself; `None` for one that stays until it is stopped.
    pub fn owner(&self) -> Option<Identity> {
        fs::read_to_string(self.path("owner")).ok()?.parse().ok()
    }

    /// Binds the life of the instance to a process.
    pub(crate) fn set_owner(&self, owner: Identity) -> Result<(), ClusterError> {
        self.write("owner", owner.to_string()).map(drop)
    }
}

/// Held while an instance is created or removed, so that two processes never do so at once. Dropping releases it.
pub(crate) fn lock() -> Result<File, ClusterError> {
    let shared = Path::new(SHARED_MEMORY);
    let file = File::open(shared).at("open", shared)?;
    file.lock().at("lock", shared)?;
    Ok(file)
}

/// Directory of all instances of this user.
fn base_directory() -> PathBuf {
    Path::new(SHARED_MEMORY).join(format!("yolo-cluster-{}", nix::unistd::geteuid()))
}
