//! etcd and the API server, and for a node also the controller manager and the scheduler.

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command},
    time::Duration,
};

use super::{ClusterError, Instance, Machine, Tier, error::At, process};

/// Cluster-internal addresses of Services; `10.96.0.1` in the API server's certificate is the first of them.
const SERVICE_RANGE: &str = "10.96.0.0/16";

/// The node's address, which is the bridge's, and so the API server's for pods.
pub(crate) const NODE_ADDRESS: &str = "10.244.0.1";

/// Every request is recorded once, without bodies: tests count writes and check who did what.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
";

/// How long etcd and the API server together may take. Measured 4 s idle; eight parallel builds were seen to take 40 s.
pub(crate) const START_LIMIT: Duration = Duration::from_mins(2);

/// The ports of one control plane on 127.0.0.1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    etcd_client: u16,
    etcd_peer: u16,
    api: u16,
}

impl Ports {
    /// In a network namespace of our own the usual ports are free; elsewhere the kernel names three free ones.
    pub(crate) fn choose(tier: Tier) -> Result<Self, ClusterError> {
        if tier == Tier::T3 {
            return Ok(Self { etcd_client: 2379, etcd_peer: 2380, api: 6443 });
        }
        // All three are held before the first is let go, so that they differ.
        let listeners = [free_port()?, free_port()?, free_port()?];
        let [etcd_client, etcd_peer, api] = listeners.map(|(port, _listener)| port);
        Ok(Self { etcd_client, etcd_peer, api })
    }

    /// Address of the API server for programs of this machine.
    pub(crate) fn server(self) -> String {
        format!("https://127.0.0.1:{}", self.api)
    }
}

fn free_port() -> Result<(u16, TcpListener), ClusterError> {
    let path = PathBuf::from("127.0.0.1:0");
    let listener = TcpListener::bind(("127.0.0.1", 0)).at("bind", &path)?;
    Ok((listener.local_addr().at("bind", &path)?.port(), listener))
}

/// A control plane about to start: where its programs, files and ports are.
pub(crate) struct ControlPlane<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) instance: &'a Instance,
    pub(crate) tier: Tier,
    pub(crate) ports: Ports,
}

impl ControlPlane<'_> {
    /// Starts etcd and the API server. The API server waits for etcd by itself.
    pub(crate) fn start(&self) -> Result<Vec<Child>, ClusterError> {
        self.instance.write("audit-policy.yaml", AUDIT_POLICY)?;
        Ok(vec![self.etcd()?, self.api_server()?])
    }

    /// Starts the controller manager and the scheduler; the API server must answer already, for they give up on it.
    pub(crate) fn start_controllers(&self) -> Result<Vec<Child>, ClusterError> {
        Ok(vec![self.controller_manager()?, self.scheduler()?])
    }

    fn command(&self, binary: &str) -> Command {
        self.instance.command_in(self.tier, self.machine.binary(binary))
    }

    fn pki(&self, file: &str) -> String {
        self.instance.path("pki").join(file).display().to_string()
    }

    fn etcd(&self) -> Result<Child, ClusterError> {
        let client = format!("http://127.0.0.1:{}", self.ports.etcd_client);
        let peer = format!("http://127.0.0.1:{}", self.ports.etcd_peer);
        let mut command = self.command("etcd");
        command
            .arg("--data-dir")
            .arg(self.instance.path("etcd"))
            .arg("--unsafe-no-fsync=true")
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .arg(format!("--initial-cluster=default={peer}"));
        process::spawn(self.instance, "etcd", &mut command)
    }

    fn api_server(&self) -> Result<Child, ClusterError> {
        let mut command = self.command("kube-apiserver");
        command
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.ports.etcd_client))
            .arg(format!("--secure-port={}", self.ports.api))
            .arg(format!("--tls-cert-file={}", self.pki("apiserver.crt")))
            .arg(format!("--tls-private-key-file={}", self.pki("apiserver.key")))
            .arg(format!("--client-ca-file={}", self.pki("ca.crt")))
            .arg(format!("--service-account-key-file={}", self.pki("service-accounts.pub")))
            .arg(format!("--service-account-signing-key-file={}", self.pki("service-accounts.key")))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-cluster-ip-range={SERVICE_RANGE}"))
            .args(["--authorization-mode=Node,RBAC", "--allow-privileged=true"])
            .arg(format!("--audit-policy-file={}", self.instance.path("audit-policy.yaml").display()))
            .arg(format!("--audit-log-path={}", self.instance.path("audit.log").display()));
        match self.tier {
            // No controller manager makes service accounts here, and without them this plugin refuses every pod.
            Tier::T1 => command
                .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
                .args(["--endpoint-reconciler-type=none", "--disable-admission-plugins=ServiceAccount"]),
            Tier::T3 => command
                .args(["--bind-address=0.0.0.0", &format!("--advertise-address={NODE_ADDRESS}")])
                .arg(format!("--kubelet-client-certificate={}", self.pki("apiserver-kubelet.crt")))
                .arg(format!("--kubelet-client-key={}", self.pki("apiserver-kubelet.key")))
                .args(["--kubelet-preferred-address-types=InternalIP", "--enable-admission-plugins=NodeRestriction"]),
        };
        process::spawn(self.instance, "kube-apiserver", &mut command)
    }

    fn controller_manager(&self) -> Result<Child, ClusterError> {
        let mut command = self.command("kube-controller-manager");
        command
            .arg(self.kubeconfig("kube-controller-manager"))
            .args(["--use-service-account-credentials=true", "--leader-elect=false", "--bind-address=127.0.0.1"])
            .arg(format!("--root-ca-file={}", self.pki("ca.crt")))
            .arg(format!("--cluster-signing-cert-file={}", self.pki("ca.crt")))
            .arg(format!("--cluster-signing-key-file={}", self.pki("ca.key")))
            .arg(format!("--service-account-private-key-file={}", self.pki("service-accounts.key")));
        process::spawn(self.instance, "kube-controller-manager", &mut command)
    }

    fn scheduler(&self) -> Result<Child, ClusterError> {
        let mut command = self.command("kube-scheduler");
        command.arg(self.kubeconfig("kube-scheduler")).args(["--leader-elect=false", "--bind-address=127.0.0.1"]);
        process::spawn(self.instance, "kube-scheduler", &mut command)
    }

    fn kubeconfig(&self, client: &str) -> String {
        format!("--kubeconfig={}", self.instance.path(&format!("{client}.kubeconfig")).display())
    }
}
