//! `HorizontalPodAutoscaler`s that other people made: where one sets the number of our pods, we leave it alone.
//!
//! Reads: the autoscaler reflector. Writes: nothing. Does not: judge one that scales the `YoloInferenceService` itself;
//! that sets `scaling.replicas.fixed`, as `kubectl scale` does, and is nobody's conflict.

use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::runtime::reflector::Store;

use crate::fleet::ServiceId;

/// Every autoscaler that the operator can see, from the reflector's memory.
#[derive(Clone)]
pub struct Autoscalers {
    store: Store<HorizontalPodAutoscaler>,
}

impl Autoscalers {
    /// Reads from `store`, which the watch fills.
    pub fn new(store: Store<HorizontalPodAutoscaler>) -> Self {
        Self { store }
    }

    /// The name of the one that scales the Deployment of `service`; the first by name where there are several.
    pub fn of(&self, service: &ServiceId) -> Option<String> {
        let all = self.store.state();
        all.iter().filter(|scaler| target(scaler).as_ref() == Some(service)).map(|scaler| scaler.name_any()).min()
    }
}

/// The service whose Deployment `scaler` scales: a Deployment has the name of its service.
pub fn target(scaler: &HorizontalPodAutoscaler) -> Option<ServiceId> {
    let target = &scaler.spec.as_ref()?.scale_target_ref;
    let apps = target.api_version.as_deref().is_none_or(|version| version.starts_with("apps/"));
    (apps && target.kind == "Deployment")
        .then(|| Some(ServiceId { namespace: scaler.namespace()?, name: target.name.clone() }))?
}

/// Keeps only what [`target`] reads: a cluster may have thousands of them, and none is ours.
pub fn trim(scaler: &mut HorizontalPodAutoscaler) {
    scaler.metadata = ObjectMeta {
        name: scaler.metadata.name.take(),
        namespace: scaler.metadata.namespace.take(),
        uid: scaler.metadata.uid.take(),
        resource_version: scaler.metadata.resource_version.take(),
        ..ObjectMeta::default()
    };
    scaler.spec = scaler.spec.take().map(|spec| HorizontalPodAutoscalerSpec {
        scale_target_ref: spec.scale_target_ref,
        ..HorizontalPodAutoscalerSpec::default()
    });
    scaler.status = None;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaler(reference: &str) -> HorizontalPodAutoscaler {
        let text = format!(
            "{{metadata: {{name: h, namespace: kitchen}}, spec: {{maxReplicas: 9, scaleTargetRef: {reference}}}}}"
        );
        let mut scaler = serde_yaml_ng::from_str(&text).unwrap();
        trim(&mut scaler);
        scaler
    }

    #[test]
    fn only_an_autoscaler_of_a_deployment_is_one_of_a_service() {
        let fork = ServiceId { namespace: "kitchen".to_owned(), name: "fork".to_owned() };
        assert_eq!(target(&scaler("{apiVersion: apps/v1, kind: Deployment, name: fork}")), Some(fork));
        assert_eq!(target(&scaler("{apiVersion: apps/v1, kind: StatefulSet, name: fork}")), None);
        let own = "{apiVersion: yolo-operator.io/v1alpha1, kind: YoloInferenceService, name: fork}";
        assert_eq!(target(&scaler(own)), None);
    }
}
