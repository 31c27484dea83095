//! Before the first write: whether an object under one of our names is somebody else's.
//!
//! Server-side apply adopts. A stranger's `ConfigMap` would get our fields and our owner reference, and the garbage collector
//! would delete it with the service. The stores hold only what has our label, so a name that they do not show is looked up.

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::objects::FIELD_MANAGER;
use crate::call::{Access, Target, WriteError};

/// Finds out whether the service with `owner_uid` may have the object `desired`, which its store shows as `live`.
///
/// # Errors
/// [`WriteError::NameTaken`] if it is somebody else's; any other if the API server could not be asked.
pub async fn free<K>(access: Access<'_>, desired: &K, live: Option<&K>, owner_uid: &str) -> Result<(), WriteError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + k8s_openapi::Resource,
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let (namespace, name) = (desired.namespace().unwrap_or_default(), desired.name_any());
    let target = Target::new(<K as k8s_openapi::Resource>::KIND, &namespace, &name);
    let there = if let Some(live) = live {
        stranger(live.meta(), owner_uid)
    } else {
        let api: Api<K> = Api::namespaced(access.client.clone(), &namespace);
        let found = access.read(&target, api.get_metadata_opt(&name)).await?;
        found.and_then(|found| stranger(&found.metadata, owner_uid))
    };
    there.map_or(Ok(()), |holder| Err(WriteError::NameTaken { target, holder }))
}

/// Who has the object instead of the service with `owner_uid`, in words.
fn stranger(meta: &ObjectMeta, owner_uid: &str) -> Option<String> {
    let controller = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    // What `kubectl delete --cascade=orphan` has left is taken up again: we made it.
    let made = || meta.managed_fields.iter().flatten().any(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER));
    match controller {
        Some(owner) if owner.uid == owner_uid => None,
        Some(owner) => Some(format!("it belongs to {} {}", owner.kind, owner.name)),
        None if made() => None,
        None => Some("the operator did not make it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(meta: &str) -> Option<String> {
        stranger(&serde_yaml_ng::from_str(meta).unwrap(), "u1")
    }

    #[test]
    fn own_and_orphaned_objects_are_ours_and_all_others_are_not() {
        let owner = |uid: &str| {
            format!(
                "{{ownerReferences: [{{apiVersion: v1, kind: YoloInferenceService, name: fork, uid: {uid}, controller: true}}]}}"
            )
        };
        assert_eq!(taken(&owner("u1")), None);
        let before = taken(&owner("u0")).unwrap();
        assert!(before.contains("YoloInferenceService fork"), "an earlier service of the name: {before}");
        assert_eq!(taken("{managedFields: [{manager: yolo-operator, operation: Apply}]}"), None, "orphaned");
        assert!(taken("{managedFields: [{manager: kubectl, operation: Update}]}").is_some());
        let labelled = "{labels: {app.kubernetes.io/managed-by: yolo-operator, yolo-operator.io/service: fork}}";
        assert!(taken(labelled).is_some(), "a label is no proof");
    }
}
