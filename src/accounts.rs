//! The service accounts that inference pods may have: those that somebody marked for it with a label.
//!
//! Reads: the reflector of the marked ones. Writes: nothing. Does not: know of any other account, so that one without the
//! label and one that does not exist are the same to it.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::reflector::Store;

use crate::call::{Target, WriteError};
use crate::live;
use crate::validate::Validated;

/// Marks a service account that inference pods of its namespace may have. Without it, whoever may write a service could have
/// any account of the namespace, which Kubernetes grants to those who may create pods.
pub const ALLOWED_SELECTOR: &str = "yolo-operator.io/allowed=true";

/// Whether the pods of `spec` may have the account that it names. `allowed` are those with the label.
///
/// # Errors
/// [`WriteError::AccountNotAllowed`] names the account and the label.
pub fn permitted(allowed: &Store<ServiceAccount>, spec: &Validated) -> Result<(), WriteError> {
    let Some(account) = &spec.workload.pod.service_account_name else { return Ok(()) };
    if live::get(allowed, &spec.id, account).is_some() {
        return Ok(());
    }
    Err(WriteError::AccountNotAllowed { target: Target::new("ServiceAccount", &spec.id.namespace, account) })
}

/// Keeps only what [`permitted`] asks for.
pub fn trim(account: &mut ServiceAccount) {
    let metadata = ObjectMeta {
        name: account.metadata.name.take(),
        namespace: account.metadata.namespace.take(),
        uid: account.metadata.uid.take(),
        resource_version: account.metadata.resource_version.take(),
        ..ObjectMeta::default()
    };
    *account = ServiceAccount { metadata, ..ServiceAccount::default() };
}

#[cfg(test)]
mod tests {
    use kube::runtime::{reflector, watcher};

    use super::*;
    use crate::validate::fixtures::{checked, smallest};

    #[test]
    fn account_is_one_with_the_label_of_the_services_own_namespace() {
        let (store, mut writer) = reflector::store();
        let judged = |name: &str| {
            let spec = format!("{{model: {{source: {{imagePath: /a}}}}, server: {{serviceAccountName: {name}}}}}");
            permitted(&store, &checked(&spec).unwrap()).map_err(|error| error.detail())
        };
        for (namespace, name) in [("kitchen", "cook"), ("cellar", "mouse")] {
            let text = format!("{{metadata: {{name: {name}, namespace: {namespace}}}, secrets: [{{name: token}}]}}");
            let mut account: ServiceAccount = serde_yaml_ng::from_str(&text).unwrap();
            trim(&mut account);
            assert_eq!(account.secrets, None);
            writer.apply_watcher_event(&watcher::Event::Apply(account));
        }
        assert_eq!(judged("cook"), Ok(()));
        let refused = judged("mouse").unwrap_err();
        assert!(refused.contains("kitchen/mouse") && refused.contains(ALLOWED_SELECTOR), "{refused}");
        assert!(permitted(&store, &smallest()).is_ok(), "the namespace's default one needs no label");
    }
}
