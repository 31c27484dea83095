//! What tasks and a shared store add to a pod: flags, the store's address as a file, and the way there.

use k8s_openapi::api::core::v1::{KeyToPath, SecretVolumeSource, Volume, VolumeMount};
use k8s_openapi::api::networking::v1::NetworkPolicyEgressRule;

use super::deployment::flag;
use super::network_policy::port;
use crate::validate::{SharedStore, Workload};

/// Ports that Redis and Valkey listen on, plain and with TLS. The operator never reads the address; where it names another
/// port, a `NetworkPolicy` of the user's own adds it.
const PORTS: [i32; 2] = [6379, 6380];
/// Name of the volume.
const VOLUME: &str = "store";
const DIRECTORY: &str = "/etc/yolo/store";
const FILE: &str = "url";

/// The server's flags for both.
pub fn flags(workload: &Workload) -> Vec<String> {
    let tasks = workload.tasks_ttl_s.map(|ttl_s| ["--tasks".to_owned(), flag("tasks-ttl-seconds", ttl_s)]);
    let store = workload
        .store
        .as_ref()
        .map(|store| [flag("redis-url-file", format!("{DIRECTORY}/{FILE}")), flag("redis-scope", &store.scope)]);
    tasks.into_iter().chain(store).flatten().collect()
}

/// The Secret's key as a file; nothing else of the Secret.
pub fn volume(store: &SharedStore) -> Volume {
    Volume {
        name: VOLUME.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(store.secret.clone()),
            items: Some(vec![KeyToPath { key: store.key.clone(), path: FILE.to_owned(), mode: None }]),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// Where it is mounted.
pub fn mount() -> VolumeMount {
    VolumeMount {
        name: VOLUME.to_owned(),
        mount_path: DIRECTORY.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}

/// The way there: the operator does not know where the store is, only that there is one.
pub fn egress(workload: &Workload) -> Option<NetworkPolicyEgressRule> {
    let ports = PORTS.map(|number| port("TCP", number)).to_vec();
    workload.store.as_ref().map(|_| NetworkPolicyEgressRule { to: None, ports: Some(ports) })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    use yolo_server::Config;

    use crate::build::{deployment, network_policy};
    use crate::validate::Validated;
    use crate::validate::fixtures::{checked, smallest};

    fn with_store() -> Validated {
        let spec = "{model: {source: {imagePath: /e}}, tasks: {enabled: true, ttl: 90s}, \
                     sharedStore: {redis: {urlSecretRef: {name: redis, key: address}}}}";
        checked(spec).unwrap()
    }

    #[test]
    fn tasks_and_the_store_reach_the_server_and_the_secret_only_as_a_file() {
        let pod = |spec: &Validated| deployment::deployment(spec, None).spec.unwrap().template.spec.unwrap();
        let server = |spec: &Validated| {
            let flags = pod(spec).containers[0].args.clone().unwrap();
            Config::try_parse_from(std::iter::once("yolo-server".to_owned()).chain(flags)).unwrap()
        };
        let config = server(&with_store());
        assert_eq!((config.tasks, config.tasks_ttl_seconds), (true, 90));
        assert_eq!(config.redis_scope, "kitchen/fork", "services that share a Redis do not share tasks");
        let (file, pod) = (config.redis_url_file.unwrap(), pod(&with_store()));
        let mounts = pod.containers[0].volume_mounts.clone().unwrap();
        let mount = mounts.iter().find(|mount| file.starts_with(&mount.mount_path)).unwrap();
        let volumes = pod.volumes.unwrap();
        let secret = volumes.iter().find(|volume| volume.name == mount.name).unwrap().secret.clone().unwrap();
        let item = secret.items.unwrap().pop().unwrap();
        assert_eq!((secret.secret_name.as_deref(), item.key.as_str()), (Some("redis"), "address"));
        assert!(file.ends_with(item.path));
        let without = server(&smallest());
        assert_eq!((without.tasks, without.redis_url_file), (false, None));
    }

    #[test]
    fn pods_reach_a_store_only_where_one_is_named() {
        let reaches = |spec: &Validated, number: i32| {
            let rules = network_policy::network_policy(spec, "yolo").spec.unwrap().egress.unwrap();
            let mut ports = rules.into_iter().flat_map(|rule| rule.ports.unwrap());
            ports.any(|port| port.port == Some(IntOrString::Int(number)))
        };
        assert!(reaches(&with_store(), 6379) && reaches(&with_store(), 6380));
        assert!(!reaches(&smallest(), 6379) && reaches(&smallest(), 53));
    }
}
