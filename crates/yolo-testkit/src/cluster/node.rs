//! The node: containerd, the kubelet, kube-proxy and `CoreDNS`.

use std::{
    fs,
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::{Api, Client};
use serde_json::json;

use super::{
    ClusterError, Instance, Machine, Tier, cgroups, control_plane::NODE_ADDRESS, error::At, network::BRIDGE, process,
};

/// Name of the only node.
const NODE_NAME: &str = "node-1";

/// Processes that must live for the node to become ready.
pub(crate) const PROCESSES: [&str; 5] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "containerd", "kubelet"];

/// Name that `tools/cluster/build` gives to the image of the pods' sandboxes; it is busybox, so tests use it too.
pub const SANDBOX_IMAGE: &str = "localhost/busybox:static";

/// How long containerd may take to open its socket; measured 0.2 s.
const CONTAINERD_LIMIT: Duration = Duration::from_secs(30);
const CONTAINERD_POLL: Duration = Duration::from_millis(20);

/// Starts containerd (its arguments) in a mount namespace of its own, of which the mounts vanish with its processes.
///
/// `/run` and `/var/log` are covered there, because containerd's shims, CNI and the kubelet write to fixed places in
/// them. The covered kernel settings are those that a kubelet changes for the whole machine; it finds its wishes
/// fulfilled in the copies.
const ENTER: &str = r#"
set -e
mount --make-rshared /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
settings=$1
shift
mkdir -p "$settings"
while read -r path value; do
    [ -e "/proc/sys/$path" ] || continue
    copy="$settings/$(echo "$path" | tr / .)"
    echo "$value" >"$copy"
    mount --bind "$copy" "/proc/sys/$path"
done <<END
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
END
exec "$@"
"#;

/// A node about to start.
pub(crate) struct Node<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) instance: &'a Instance,
}

impl Node<'_> {
    /// Starts all processes of the node; the API server must answer already. [`is_ready`] tells when it is usable.
    pub(crate) fn start(&self) -> Result<Vec<Child>, ClusterError> {
        cgroups::create(self.instance)?;
        let containerd = self.containerd()?;
        self.await_containerd()?;
        // Before the kubelet, which would otherwise try to pull the image of its first sandbox.
        load_image(self.instance, &self.machine.sandbox_image())?;
        let pid = containerd.id();
        Ok(vec![containerd, self.kubelet(pid)?, self.kube_proxy(pid)?, self.coredns()?])
    }

    fn path(&self, relative: &str) -> String {
        self.instance.path(relative).display().to_string()
    }

    fn containerd(&self) -> Result<Child, ClusterError> {
        self.write_cni()?;
        let config = format!(
            r#"
version = 2
root = "{root}"
state = "{state}"

[grpc]
address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "{opt}"

[plugins."io.containerd.grpc.v1.cri"]
# Without it every pod hangs in ContainerCreating where this process may not lower an OOM score
# ("can't get final child's PID from pipe").
restrict_oom_score_adj = true
disable_apparmor = true
tolerate_missing_hugetlb_controller = true
sandbox_image = "{SANDBOX_IMAGE}"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{cni}"
"#,
            root = self.path("containerd/root"),
            state = self.path("containerd/state"),
            socket = self.instance.containerd_socket().display(),
            opt = self.path("containerd/opt"),
            cni = self.path("cni"),
        );
        let config = self.instance.write("containerd.toml", config)?;
        let mut command = self.instance.command_in(Tier::T3, "unshare");
        command
            .args(["--mount", "--", "sh", "-c", ENTER, "enter"])
            .arg(self.instance.path("settings"))
            .arg("containerd")
            .arg("--config")
            .arg(config);
        process::spawn(self.instance, "containerd", &mut command)
    }

    fn write_cni(&self) -> Result<(), ClusterError> {
        let folder = self.instance.path("cni");
        fs::create_dir_all(&folder).at("create", &folder)?;
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "yolo",
            "plugins": [
                {
                    "type": "bridge", "bridge": BRIDGE, "isGateway": true, "hairpinMode": true, "ipMasq": false,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": self.path("cni-addresses"),
                        "ranges": [[{"subnet": "10.244.0.0/24", "rangeStart": "10.244.0.10", "gateway": NODE_ADDRESS}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        self.instance.write("cni/10-yolo.conflist", config.to_string()).map(drop)
    }

    fn await_containerd(&self) -> Result<(), ClusterError> {
        let deadline = Instant::now() + CONTAINERD_LIMIT;
        while process::run(&mut containerd_client(self.instance, &["version"])).is_err() {
            process::require_alive(self.instance, &["containerd"], CONTAINERD_LIMIT)?;
            if Instant::now() >= deadline {
                return Err(process::unhealthy(
                    self.instance,
                    "containerd",
                    "did not become healthy",
                    CONTAINERD_LIMIT,
                ));
            }
            std::thread::sleep(CONTAINERD_POLL);
        }
        Ok(())
    }

    fn kubelet(&self, containerd: u32) -> Result<Child, ClusterError> {
        // Pods resolve Service names at CoreDNS and nothing else; the host's file may name servers out of reach.
        let resolv_conf = self.instance.write("resolv.conf", "")?;
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": format!("unix://{}", self.instance.containerd_socket().display()),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.instance.cgroup()),
            "failCgroupV1": false,
            "enforceNodeAllocatable": ["pods"],
            "failSwapOn": false,
            // A developer's machine is often nearly full, and evicting pods for that would be a riddle in a test.
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%",
                "imagefs.available": "1%"},
            // Images come by import only: what is collected would not come back.
            "imageGCHighThresholdPercent": 100,
            // A pod with half a core that uses its 50 ms of the usual 100 ms period at once stands still for the other
            // 50 ms, which is most of a latency target. Slices of a tenth keep the limit and shorten the stand-still.
            "cpuCFSQuotaPeriod": "10ms",
            "featureGates": {"CustomCPUCFSQuotaPeriod": true},
            "clusterDNS": [NODE_ADDRESS],
            "clusterDomain": "cluster.local",
            "resolvConf": resolv_conf,
            "volumePluginDir": self.instance.path("volume-plugins"),
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": self.instance.path("pki/ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
        });
        let config = self.instance.write("kubelet.yaml", config.to_string())?;
        let mut command = self.beside(containerd, "kubelet");
        command
            .arg(format!("--config={}", config.display()))
            .arg(format!("--kubeconfig={}", self.path("kubelet.kubeconfig")))
            .arg(format!("--root-dir={}", self.path("kubelet")))
            .arg(format!("--cert-dir={}", self.path("kubelet-pki")))
            .args([format!("--hostname-override={NODE_NAME}"), format!("--node-ip={NODE_ADDRESS}")]);
        process::spawn(self.instance, "kubelet", &mut command)
    }

    fn kube_proxy(&self, containerd: u32) -> Result<Child, ClusterError> {
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "hostnameOverride": NODE_NAME,
            "clusterCIDR": "10.244.0.0/16",
            "clientConnection": {"kubeconfig": self.instance.path("kube-proxy.kubeconfig")},
            // Zero leaves the machine's own values alone; they are not ours to change.
            "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        });
        let config = self.instance.write("kube-proxy.yaml", config.to_string())?;
        let mut command = self.beside(containerd, "kube-proxy");
        command.arg(format!("--config={}", config.display()));
        process::spawn(self.instance, "kube-proxy", &mut command)
    }

    /// `CoreDNS` as a process of the node, not as pods: one component less to wait for.
    fn coredns(&self) -> Result<Child, ClusterError> {
        let config = format!(
            ".:53 {{\n  bind {NODE_ADDRESS}\n  errors\n  kubernetes cluster.local {{\n    kubeconfig {}\n  }}\n}}\n",
            self.instance.kubeconfig().display()
        );
        let config = self.instance.write("Corefile", config)?;
        let mut command = self.instance.command_in(Tier::T3, self.machine.binary("coredns"));
        command.arg("-conf").arg(config);
        process::spawn(self.instance, "coredns", &mut command)
    }

    /// A command in the mount and network namespaces of containerd, where the mounts of pods are.
    fn beside(&self, containerd: u32, binary: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &containerd.to_string(), "--mount", "--net", "--"]).arg(self.machine.binary(binary));
        command
    }
}

/// Whether the node reports `Ready`.
pub(crate) async fn is_ready(client: &Client) -> bool {
    let node = Api::<NodeObject>::all(client.clone()).get_opt(NODE_NAME).await.ok().flatten();
    let conditions = node.and_then(|node| node.status?.conditions).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Loads an image archive into containerd, under the name in the archive, for the kubelet to use.
pub(crate) fn load_image(instance: &Instance, archive: &Path) -> Result<(), ClusterError> {
    let mut command = containerd_client(instance, &["--namespace", "k8s.io", "images", "import"]);
    process::run(command.arg(archive)).map(drop)
}

/// containerd's own client. The socket lies on a mount that both mount namespaces see.
fn containerd_client(instance: &Instance, arguments: &[&str]) -> Command {
    let mut command = Command::new("ctr");
    command.arg("--address").arg(instance.containerd_socket()).args(arguments);
    command
}
