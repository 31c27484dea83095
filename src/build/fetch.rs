//! The init container that fetches a model: the server's own image, and the only container that sees the credentials.

use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, EnvFromSource, EnvVar, EnvVarSource, SecretEnvSource, SecretKeySelector, Volume,
    VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::deployment::{MODEL_DIRECTORY, flag, own_environment, resources, restricted};
use crate::fleet::FETCH_CONTAINER;
use crate::validate::Workload;

/// An ONNX file is a protocol-buffer message, which has less than 2 GiB.
const MODEL_SIZE_LIMIT: &str = "2Gi";
/// The key of a `kubernetes.io/dockerconfigjson` Secret.
const DOCKER_CONFIG_KEY: &str = ".dockerconfigjson";

/// Builds the container.
pub(super) fn container(workload: &Workload, uri: &str, credentials: Option<&str>) -> Container {
    let model = &workload.model;
    let mut flags = vec!["fetch".to_owned(), flag("uri", uri), flag("to", &model.path)];
    flags.extend(model.sha256.as_ref().map(|digest| flag("sha256", digest)));
    let mut environment: Vec<_> = own_environment(workload).collect();
    // The key is no name of a variable, so that "all keys as variables" leaves it out on older clusters.
    if let Some(secret) = credentials.filter(|_| uri.starts_with("oci://")) {
        environment.push(docker_config(secret));
    }
    Container {
        name: FETCH_CONTAINER.to_owned(),
        image: Some(workload.image.clone()),
        args: Some(flags),
        env: Some(environment).filter(|all| !all.is_empty()),
        env_from: credentials.map(|secret| {
            vec![EnvFromSource {
                secret_ref: Some(SecretEnvSource { name: secret.to_owned(), optional: None }),
                ..EnvFromSource::default()
            }]
        }),
        // The pod asks for the larger of both containers: equal, so that fetching never costs a larger node.
        resources: Some(resources(workload)),
        security_context: Some(restricted()),
        volume_mounts: Some(vec![VolumeMount {
            name: "model".to_owned(),
            mount_path: MODEL_DIRECTORY.to_owned(),
            ..VolumeMount::default()
        }]),
        ..Container::default()
    }
}

/// The folder that both containers share. It outlives restarts of a container, so that a cut transfer goes on.
pub(super) fn volume() -> Volume {
    Volume {
        name: "model".to_owned(),
        empty_dir: Some(EmptyDirVolumeSource { size_limit: Some(Quantity(MODEL_SIZE_LIMIT.to_owned())), medium: None }),
        ..Volume::default()
    }
}

fn docker_config(secret: &str) -> EnvVar {
    EnvVar {
        name: "OCI_DOCKER_CONFIG".to_owned(),
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: secret.to_owned(),
                key: DOCKER_CONFIG_KEY.to_owned(),
                optional: Some(true),
            }),
            ..EnvVarSource::default()
        }),
        value: None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::deployment::{deployment, template_hash};
    use crate::validate::Validated;
    use crate::validate::fixtures::checked;
    use clap::Parser;
    use k8s_openapi::api::core::v1::{Container, PodSpec};
    use yolo_server::args::Config;
    use yolo_server::fetch::Fetch;

    fn service(uri: &str) -> Validated {
        let digest = "0123456789abcdef".repeat(4);
        let model = format!("source: {{uri: '{uri}'}}, sha256: {digest}, credentialsSecretName: models-read");
        let env = "server: {env: [{name: AWS_REGION, value: eu-central-1}]}";
        checked(&format!("{{model: {{{model}}}, {env}}}")).unwrap()
    }

    fn pod(spec: &Validated) -> PodSpec {
        deployment(spec, None).spec.unwrap().template.spec.unwrap()
    }

    fn fetching(spec: &Validated) -> Container {
        pod(spec).init_containers.unwrap().remove(0)
    }

    #[test]
    fn model_is_fetched_to_where_the_server_reads_it() {
        let spec = service("s3://models/detect/a.onnx");
        let words = |container: Container| std::iter::once("yolo-server".to_owned()).chain(container.args.unwrap());
        let args = words(fetching(&spec));
        let fetch = Fetch::try_parse_from(args.filter(|word| word != "fetch")).unwrap();
        let server = Config::try_parse_from(words(pod(&spec).containers.remove(0))).unwrap();
        assert_eq!(fetch.to, server.model);
        assert_eq!((fetch.uri.as_str(), fetch.sha256), ("s3://models/detect/a.onnx", server.model_sha256));
        let mounts = |container: &Container| {
            let all = container.volume_mounts.clone().unwrap();
            all.into_iter().find(|mount| mount.name == "model").unwrap()
        };
        let pod = pod(&spec);
        assert_eq!(mounts(&pod.containers[0]).read_only, Some(true));
        assert_eq!(mounts(&pod.init_containers.unwrap()[0]).read_only, None);
    }

    #[test]
    fn credentials_are_seen_by_the_fetch_alone() {
        for (uri, docker) in [("s3://models/a.onnx", false), ("oci://registry.example.com/a:1", true)] {
            let spec = service(uri);
            let fetch = fetching(&spec);
            assert_eq!(fetch.env_from.unwrap()[0].secret_ref.as_ref().unwrap().name, "models-read");
            let env = fetch.env.unwrap();
            assert!(env.iter().any(|variable| variable.name == "AWS_REGION"), "what is no secret is the service's own");
            assert_eq!(env.iter().any(|variable| variable.name == "OCI_DOCKER_CONFIG"), docker);
            assert_eq!(pod(&spec).containers[0].env_from, None);
        }
    }

    #[test]
    fn fetch_is_as_restricted_as_the_server_and_asks_for_no_more() {
        let spec = service("s3://models/a.onnx");
        let (fetch, server) = (fetching(&spec), pod(&spec).containers.remove(0));
        assert_eq!(fetch.security_context, server.security_context);
        assert_eq!(fetch.resources, server.resources);
        assert_eq!(fetch.image, server.image);
    }

    #[test]
    fn another_model_is_another_class_of_pod() {
        let class = |uri: &str| template_hash(&deployment(&service(uri), None));
        assert_ne!(class("s3://models/a.onnx"), class("s3://other/a.onnx"));
    }
}
