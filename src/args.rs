//! The operator's settings: flags, each also an environment variable.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Arg, CommandFactory, FromArgMatches};
use reqwest::Url;
use serde::Serialize;
use yolo_api::v1alpha1::spec::ServiceType;

use crate::rollouts::Most;

/// Settings of the operator process.
#[derive(Debug, Clone, clap::Parser, Serialize)]
#[command(name = "yolo-operator", version, about)]
pub struct Config {
    /// Namespace of the leader-election lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub namespace: String,

    /// Name of that lease; installations that share the namespace need one each.
    #[arg(long, env = "YOLO_LEASE_NAME", default_value = "yolo-operator")]
    pub lease_name: String,

    /// Name of this replica in the lease; must be unique among the replicas.
    #[arg(long, env = "POD_NAME", default_value_t = default_identity())]
    pub identity: String,

    /// Serve only this namespace (default: all).
    #[arg(long, env = "YOLO_WATCH_NAMESPACE")]
    pub watch_namespace: Option<String>,

    /// Image of the inference server where a `YoloInferenceService` names none.
    #[arg(long, env = "YOLO_SERVER_IMAGE", default_value = "localhost/yolo-server:dev")]
    pub server_image: String,

    /// Image of the inference server with CUDA, where a `YoloInferenceService` for NVIDIA GPUs names none.
    #[arg(long, env = "YOLO_SERVER_CUDA_IMAGE")]
    pub server_cuda_image: Option<String>,

    /// Types of a Service that a `YoloInferenceService` may have beside `ClusterIP`: `NodePort`, `LoadBalancer`, or
    /// both with a comma between. They open a port of every node, or cost money.
    #[arg(long, env = "YOLO_SERVICE_TYPES", value_delimiter = ',', value_parser = service_type)]
    pub service_types: Vec<ServiceType>,

    /// How many services may replace their pods at the same time when the operator changes their template (an upgrade,
    /// another `--server-image`): a number, or a share of all services and at least one. The next one begins when all
    /// pods of one are ready, whether its targets hold or not. A changed service does not wait.
    #[arg(long, env = "YOLO_MAX_CONCURRENT_ROLLOUTS", default_value = "10%")]
    pub max_concurrent_rollouts: Most,

    /// Read pod metrics from this Prometheus instead of from the pods.
    #[arg(long, env = "YOLO_PROMETHEUS_URL")]
    pub prometheus_url: Option<String>,

    /// PEM file of the authorities that vouch for an https Prometheus, instead of the system's; read once a term.
    #[arg(long, env = "YOLO_PROMETHEUS_CA_FILE", requires = "prometheus_url")]
    pub prometheus_ca_file: Option<PathBuf>,

    /// File of the bearer token for that Prometheus; read at each query, because tokens rotate.
    #[arg(long, env = "YOLO_PROMETHEUS_TOKEN_FILE", requires = "prometheus_url")]
    pub prometheus_token_file: Option<PathBuf>,

    /// Address of the operator's own metrics.
    #[arg(long, env = "YOLO_METRICS_ADDRESS", default_value = "0.0.0.0:8080")]
    pub metrics_address: SocketAddr,

    /// Address of the operator's liveness and readiness.
    #[arg(long, env = "YOLO_HEALTH_ADDRESS", default_value = "0.0.0.0:8081")]
    pub health_address: SocketAddr,

    /// Log filter, such as `info` or `yolo_operator=debug`.
    #[arg(long, env = "YOLO_LOG", default_value = "info")]
    pub log: String,
}

impl Config {
    /// Reads flags and the environment, where a variable that is set to nothing counts as not set: many ways to set one
    /// cannot leave it out.
    ///
    /// # Errors
    /// What is wrong with the first flag or variable that is; also where help or the version is asked for.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let empty = |arg: &Arg| arg.get_env().is_some_and(|name| std::env::var_os(name).is_some_and(|v| v.is_empty()));
        let command = Self::command().mut_args(|arg| if empty(&arg) { arg.env(None) } else { arg });
        Self::from_arg_matches(&command.try_get_matches_from(arguments)?)
    }

    /// Every setting as it acts, for the log: as JSON, without a password that a URL may have.
    pub fn effective(&self) -> String {
        let prometheus_url = self.prometheus_url.as_deref().map(without_password);
        serde_json::to_string(&Self { prometheus_url, ..self.clone() }).unwrap_or_default()
    }
}

fn without_password(url: &str) -> String {
    let Ok(mut url) = Url::parse(url) else { return "(not a URL)".to_owned() };
    let _cannot_have_one = url.set_password(None);
    url.to_string()
}

fn service_type(text: &str) -> Result<ServiceType, &'static str> {
    let others = [ServiceType::NodePort, ServiceType::LoadBalancer];
    others.into_iter().find(|other| other.as_str() == text).ok_or("expected NodePort or LoadBalancer")
}

/// Unique enough outside a pod: two processes of one machine differ in their id.
fn default_identity() -> String {
    format!("yolo-operator-{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn settings_are_shown_as_they_act_and_passwords_are_not() {
        let flags = ["yolo-operator", "--prometheus-url=https://reader:secret@prometheus:9090"];
        let shown = Config::try_parse_from(flags).unwrap().effective();
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(shown["prometheus_url"], "https://reader@prometheus:9090/");
        assert_eq!((&shown["lease_name"], &shown["log"]), (&"yolo-operator".into(), &"info".into()));
    }

    #[test]
    fn variable_that_is_set_to_nothing_counts_as_not_set() {
        const NAMES: [&str; 4] = ["YOLO_SERVICE_TYPES", "YOLO_WATCH_NAMESPACE", "YOLO_SERVER_CUDA_IMAGE", "YOLO_LOG"];
        if NAMES.iter().any(|name| std::env::var_os(name).is_none()) {
            // Variables belong to the process: the same test once more, in one of its own.
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            again.args(["--exact", "args::tests::variable_that_is_set_to_nothing_counts_as_not_set"]);
            let ended = again.envs(NAMES.map(|name| (name, ""))).output().unwrap();
            let told = String::from_utf8_lossy(&ended.stdout);
            assert!(ended.status.success() && told.contains("1 passed"), "{told}");
            return;
        }
        let read = |flags: &[&str]| Config::read(["yolo-operator"].iter().chain(flags).map(Into::into));
        let config = read(&[]).unwrap();
        assert_eq!((config.service_types, config.watch_namespace, config.server_cuda_image), (Vec::new(), None, None));
        assert_eq!(config.log, "info");
        assert_eq!(read(&["--service-types=NodePort"]).unwrap().service_types, [ServiceType::NodePort]);
    }

    #[test]
    fn service_types_are_named_as_in_kubernetes() {
        let types = |flag: &str| Config::try_parse_from(["yolo-operator", flag]).map(|config| config.service_types);
        let both = types("--service-types=NodePort,LoadBalancer").unwrap();
        assert_eq!(both, [ServiceType::NodePort, ServiceType::LoadBalancer]);
        assert!(types("--service-types=ExternalName").is_err());
        assert_eq!(Config::try_parse_from(["yolo-operator"]).unwrap().service_types, []);
    }

    #[test]
    fn token_is_refused_where_no_prometheus_would_get_it() {
        let flags = |flags: &str| Config::try_parse_from(flags.split(' '));
        assert!(flags("yolo-operator --prometheus-token-file=token").is_err());
        let config = flags("yolo-operator --prometheus-url=https://prometheus --prometheus-token-file=token").unwrap();
        assert_eq!(config.prometheus_token_file, Some("token".into()));
    }
}
