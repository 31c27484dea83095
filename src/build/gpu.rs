//! What NVIDIA GPUs add to a pod: the resource that gives it some, flags, and a folder for what is built on them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, PersistentVolumeClaimVolumeSource, ResourceRequirements, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::deployment::flag;
use crate::validate::Gpus;

/// Name of the volume.
const VOLUME: &str = "engines";
/// Built engines and the profile of the first run; the root file system is read-only.
const DIRECTORY: &str = "/var/lib/yolo/engines";
/// On the pod's own disk. An engine holds the weights, less than 2 GiB, and there is one for each batch size that runs.
const SIZE_LIMIT: &str = "16Gi";

/// The server's flags.
pub(super) fn flags(gpus: &Gpus) -> [String; 4] {
    [
        flag("engine", "ort"),
        flag("provider", gpus.provider),
        flag("precision", gpus.precision),
        flag("engine-cache-dir", DIRECTORY),
    ]
}

/// `resources` with the GPUs. Kubernetes gives out whole ones only, and asks for equal requests and limits.
pub(super) fn resources(gpus: &Gpus, resources: ResourceRequirements) -> ResourceRequirements {
    let with = |amounts: Option<BTreeMap<String, Quantity>>| {
        let mut amounts = amounts.unwrap_or_default();
        amounts.insert(gpus.resource.clone(), Quantity(gpus.count.to_string()));
        Some(amounts)
    };
    let ResourceRequirements { requests, limits, claims } = resources;
    ResourceRequirements { requests: with(requests), limits: with(limits), claims }
}

/// Where engines are kept.
pub(super) fn volume(gpus: &Gpus) -> Volume {
    let claim = gpus.cache_claim.as_ref();
    Volume {
        name: VOLUME.to_owned(),
        persistent_volume_claim: claim
            .map(|claim| PersistentVolumeClaimVolumeSource { claim_name: claim.clone(), read_only: None }),
        empty_dir: claim
            .is_none()
            .then(|| EmptyDirVolumeSource { size_limit: Some(Quantity(SIZE_LIMIT.to_owned())), medium: None }),
        ..Volume::default()
    }
}

/// Where the server has it.
pub(super) fn mount() -> VolumeMount {
    VolumeMount { name: VOLUME.to_owned(), mount_path: DIRECTORY.to_owned(), ..VolumeMount::default() }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use k8s_openapi::api::core::v1::PodSpec;
    use yolo_server::args::{Config, EngineKind, Precision, Provider};

    use crate::build::deployment;
    use crate::validate::Validated;
    use crate::validate::fixtures::{checked, smallest};

    fn on(nvidia: &str) -> Validated {
        let digest = "0123456789abcdef".repeat(4);
        let model = format!("{{source: {{uri: 's3://models/a.onnx'}}, sha256: {digest}}}");
        let server = "{image: 'cuda:1', runtimeClassName: nvidia}";
        checked(&format!("{{model: {model}, accelerator: {{nvidia: {{{nvidia}}}}}, server: {server}}}")).unwrap()
    }

    fn pod(spec: &Validated) -> PodSpec {
        deployment::deployment(spec, None).spec.unwrap().template.spec.unwrap()
    }

    fn server(spec: &Validated) -> Config {
        let flags = pod(spec).containers[0].args.clone().unwrap();
        Config::try_parse_from(std::iter::once("yolo-server".to_owned()).chain(flags)).unwrap()
    }

    #[test]
    fn pod_asks_for_its_gpus_and_the_fetch_of_its_model_for_none() {
        for (nvidia, resource, count) in [
            ("", "nvidia.com/gpu", "1"),
            ("count: 2", "nvidia.com/gpu", "2"),
            ("resourceName: nvidia.com/mig-1g.10gb", "nvidia.com/mig-1g.10gb", "1"),
        ] {
            let pod = pod(&on(nvidia));
            let resources = pod.containers[0].resources.clone().unwrap();
            assert_eq!(resources.limits.as_ref().unwrap()[resource].0, count);
            assert_eq!(resources.requests, resources.limits);
            let fetch = pod.init_containers.unwrap().remove(0).resources.unwrap();
            assert!(!fetch.limits.unwrap().contains_key(resource), "it computes nothing");
            assert_eq!(pod.runtime_class_name.as_deref(), Some("nvidia"));
        }
    }

    #[test]
    fn server_is_told_a_provider_that_does_not_fall_back() {
        for (nvidia, provider, precision) in [
            ("", Provider::Cuda, Precision::Auto),
            ("provider: Cuda, precision: Fp32", Provider::Cuda, Precision::Fp32),
            ("provider: TensorRt, precision: Fp16", Provider::TensorRt, Precision::Fp16),
        ] {
            let config = server(&on(nvidia));
            assert_eq!((config.engine, config.provider, config.precision), (EngineKind::Ort, provider, precision));
        }
    }

    #[test]
    fn engines_are_built_into_a_folder_that_can_be_written_and_may_outlive_the_pod() {
        let folder = |spec: &Validated| {
            let (pod, folder) = (pod(spec), server(spec).gpu.engine_cache_dir);
            let mounts = pod.containers[0].volume_mounts.clone().unwrap();
            let mount = mounts.into_iter().find(|mount| folder.starts_with(&mount.mount_path)).unwrap();
            assert_eq!(mount.read_only, None);
            let volume = pod.volumes.unwrap().into_iter().find(|volume| volume.name == mount.name).unwrap();
            (volume, pod.security_context.unwrap().fs_group)
        };
        let (own, group) = folder(&on(""));
        assert!(own.empty_dir.unwrap().size_limit.is_some() && group.is_none());
        let (own, _) = folder(&on("engineCache: {emptyDir: {}}"));
        assert!(own.empty_dir.is_some());
        let (claim, group) = folder(&on("engineCache: {persistentVolumeClaim: {claimName: engines}}"));
        assert_eq!(claim.persistent_volume_claim.unwrap().claim_name, "engines");
        assert_eq!(group, Some(65532), "a new claim is root's");
        let names: Vec<_> = pod(&smallest()).volumes.unwrap().into_iter().map(|volume| volume.name).collect();
        assert_eq!(names, ["knobs"]);
    }

    #[test]
    fn another_gpu_is_another_class_of_pod() {
        let class = |nvidia: &str| deployment::template_hash(&deployment::deployment(&on(nvidia), None));
        assert_ne!(class(""), class("resourceName: nvidia.com/mig-1g.10gb"));
    }
}
