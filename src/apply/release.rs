//! Leaving Auto: the present number of pods is handed to another field manager first, so that nothing drops to 1.

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::objects::FIELD_MANAGER;
use crate::call::{Access, Target, WriteError};

/// Owns the number of pods after we let go of it; anybody may take it from there.
pub const RELEASED_MANAGER: &str = "yolo-operator-released";

/// Hands over `spec.replicas` of `live`, if we are its owner.
///
/// # Errors
/// [`WriteError`] of the one write.
pub async fn release(access: Access<'_>, live: &Deployment) -> Result<(), WriteError> {
    let Some(replicas) = live.spec.as_ref().and_then(|spec| spec.replicas).filter(|_| ours(live)) else {
        return Ok(());
    };
    let (namespace, name) = (live.namespace().unwrap_or_default(), live.name_any());
    let patch = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas},
    });
    let api: Api<Deployment> = Api::namespaced(access.client.clone(), &namespace);
    let target = Target::new("Deployment", &namespace, &name);
    // Without force: the same value from a second manager is no conflict, and another value means that we lost it anyway.
    let (params, patch) = (PatchParams::apply(RELEASED_MANAGER), Patch::Apply(&patch));
    access.write(&target, api.patch(&name, &params, &patch)).await.map(|_deployment| ())
}

fn ours(live: &Deployment) -> bool {
    let mut entries = live.metadata.managed_fields.iter().flatten();
    entries.any(|entry| {
        entry.manager.as_deref() == Some(FIELD_MANAGER)
            && entry.fields_v1.as_ref().is_some_and(|fields| fields.0.pointer("/f:spec/f:replicas").is_some())
    })
}
