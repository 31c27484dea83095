//! Images, charts, namespaces and services, with the programs that a user would type: kubectl and helm.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::scenario::ServiceScript;
use super::site::Site;

/// Namespace of the operator.
pub const OPERATOR_NAMESPACE: &str = "yolo-operator-system";
/// Namespace of the services.
pub const SERVICES_NAMESPACE: &str = "yolo-demo";

/// Time that a pod may take to become ready on a machine that is busy with its start.
const READY_TIMEOUT: &str = "--timeout=180s";

/// What is installed.
#[derive(Debug, Clone)]
pub struct Release {
    /// Root of the repository.
    pub repository: PathBuf,
    /// Image archives to load into the local cluster's node.
    pub images: Vec<PathBuf>,
    /// `key=value` for helm's `--set`, such as the images' names.
    pub values: Vec<String>,
}

impl Release {
    /// What `make image` has built in this repository, under the names that it gives.
    pub fn local(repository: PathBuf) -> Self {
        let folder = repository.join("target/images");
        let images = ["yolo-operator", "yolo-server"].map(|name| folder.join(format!("{name}.tar")));
        let values = ["image", "serverImage"]
            .into_iter()
            .zip(["yolo-operator", "yolo-server"])
            .flat_map(|(key, name)| [format!("{key}.repository=localhost/{name}"), format!("{key}.tag=dev")]);
        Self { repository, values: values.collect(), images: images.into() }
    }
}

/// Runs a program and returns its standard output.
///
/// # Errors
/// With the program's arguments and its own words, if it cannot be run or fails.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("failed to run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Loads the image archives; a named cluster pulls its images itself.
///
/// # Errors
/// [`crate::cluster::ClusterError`] with containerd's words.
pub fn images(site: &Site, release: &Release) -> anyhow::Result<()> {
    if let Site::Local(cluster) = site {
        for image in &release.images {
            cluster.load_image(image)?;
        }
    }
    Ok(())
}

/// Creates both namespaces, which refuse every pod that is not `restricted`.
///
/// # Errors
/// With kubectl's words.
pub fn namespaces(site: &Site) -> anyhow::Result<()> {
    let documents = [OPERATOR_NAMESPACE, SERVICES_NAMESPACE].map(|name| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels:\n    \
             pod-security.kubernetes.io/enforce: restricted\n"
        )
    });
    let mut kubectl = site.kubectl().args(["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    kubectl.stdin.take().context("kubectl has no standard input")?.write_all(documents.join("---\n").as_bytes())?;
    let status = kubectl.wait()?;
    if status.success() { Ok(()) } else { bail!("kubectl apply of the namespaces failed with {status}") }
}

/// Installs both charts with helm and waits for the operator's pods.
///
/// # Errors
/// With helm's words.
pub fn operator(site: &Site, release: &Release) -> anyhow::Result<()> {
    let charts = release.repository.join("charts");
    let install = |name: &str| {
        let mut helm = site.helm();
        helm.args(["upgrade", "--install", name]).arg(charts.join(name));
        helm.args(["--namespace", OPERATOR_NAMESPACE, "--wait", "--timeout", "3m"]);
        helm
    };
    run(&mut install("yolo-operator-crds"))?;
    let mut helm = install("yolo-operator");
    for value in &release.values {
        helm.args(["--set", value]);
    }
    run(&mut helm)?;
    Ok(())
}

/// Applies the services anew and waits until they are ready. What an earlier run left of them goes first, so that
/// nothing learned then is taken for learned now.
///
/// # Errors
/// With kubectl's words.
pub fn services(site: &Site, repository: &Path, scripts: &[ServiceScript]) -> anyhow::Result<()> {
    let kubectl = |verb: &str, script: &ServiceScript| {
        let mut kubectl = site.kubectl();
        kubectl.args([verb, "--namespace", SERVICES_NAMESPACE, "-f"]).arg(repository.join(script.manifest));
        kubectl
    };
    for script in scripts {
        run(kubectl("delete", script).args(["--ignore-not-found", "--cascade=foreground", READY_TIMEOUT]))?;
    }
    for script in scripts {
        run(&mut kubectl("apply", script))?;
    }
    for script in scripts {
        run(kubectl("wait", script).args(["--for=condition=Ready", READY_TIMEOUT]))?;
    }
    Ok(())
}
