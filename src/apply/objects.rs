//! Server-side apply of one child object.
//!
//! Guarantees: nothing is sent if the live object already has every field as desired. `force` only on objects that our
//! owner reference marks: a stranger's object of the same name ends in a conflict instead of being taken over. What somebody
//! else keeps changing is put back ever more rarely ([`Contest`]).

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::NamespaceResourceScope;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use yolo_planner::units::Timestamp;

use super::contest::{Contest, Contests};
use super::covers::covers;
use crate::call::{Access, Target, WriteError};

/// Our field manager.
pub const FIELD_MANAGER: &str = "yolo-operator";
/// Annotation with the hash of the object as last applied: tells that a field has been *removed* from the desired object.
pub const HASH_ANNOTATION: &str = "yolo-operator.io/applied-hash";

/// What was last applied of each kind, and the version that it became. It settles the rare object that the API server
/// stores in another form than it was sent in, and which [`covers`] would therefore apply again and again.
pub type Receipts = HashMap<&'static str, Receipt>;

/// One applied object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    hash: String,
    /// Of what was asked for: equal for two documents that differ in nothing but the number of the write.
    content: String,
    version: String,
    uid: Option<String>,
    resource_version: Option<u64>,
}

impl Receipt {
    fn of<K: Resource>((hash, content): (&str, &str), object: &K) -> Self {
        let meta = object.meta();
        let resource_version = meta.resource_version.as_deref().and_then(|version| version.parse().ok());
        let (hash, content) = (hash.to_owned(), content.to_owned());
        Self { hash, content, version: version(object), uid: meta.uid.clone(), resource_version }
    }

    /// The store has not shown our own write yet: it has an older version of the same object.
    fn outlives(&self, live: &Self) -> bool {
        self.uid == live.uid && live.resource_version < self.resource_version
    }
}

/// Writes the child objects of one service.
pub struct Writer<'a> {
    /// What it takes to write.
    pub access: Access<'a>,
    /// The uid of the owning service.
    pub owner_uid: &'a str,
    /// Kept from one reconcile to the next.
    pub receipts: &'a mut Receipts,
    /// Kept as well.
    pub contests: &'a mut Contests,
    /// Now.
    pub now: Timestamp,
    /// Writes sent so far.
    pub sent: u32,
}

impl Writer<'_> {
    /// Makes the object `desired`, unless `live` is so already. Returns the object if it was written.
    ///
    /// # Errors
    /// [`WriteError`] names the object.
    pub async fn apply<K>(&mut self, desired: &K, live: Option<&K>) -> Result<Option<K>, WriteError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + k8s_openapi::Resource,
        K: Clone + Serialize + DeserializeOwned + std::fmt::Debug,
    {
        self.apply_numbered(desired, None, live).await
    }

    /// As [`Self::apply`], of an object that has another number at each write: `content` is `desired` without one, and
    /// tells whether the same is asked for as before.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub async fn apply_numbered<K>(
        &mut self,
        desired: &K,
        content: Option<&K>,
        live: Option<&K>,
    ) -> Result<Option<K>, WriteError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + k8s_openapi::Resource,
        K: Clone + Serialize + DeserializeOwned + std::fmt::Debug,
    {
        let name = desired.name_any();
        let namespace = desired.namespace().unwrap_or_default();
        let target = Target::new(<K as k8s_openapi::Resource>::KIND, &namespace, &name);
        let serialise = |source| WriteError::Serialise { target: target.clone(), source };
        let content = content.map(|content| document(content).map(|(_, hash)| hash)).transpose().map_err(serialise)?;
        let (document, hash) = document(desired).map_err(serialise)?;
        let hashes = (hash.as_str(), content.as_deref().unwrap_or(&hash));
        let (last, shown) = (self.receipts.get(target.kind), live.map(|live| Receipt::of(hashes, live)));
        let same = last.filter(|last| last.content == hashes.1);
        if let (Some(live), Some(shown)) = (live, &shown) {
            let sent = last.filter(|last| last.hash == hash);
            let known = sent.is_some_and(|last| last.version == shown.version || last.outlives(shown));
            if known || covers(&serde_json::to_value(live).map_err(serialise)?, &document) {
                let over = self.contests.get(target.kind).is_some_and(|contest| contest.rested(self.now));
                if over {
                    self.contests.remove(target.kind);
                }
                return Ok(None);
            }
            let rests =
                self.contests.get_mut(target.kind).filter(|contest| same.is_some() && !contest.rested(self.now));
            if let Some(contest) = rests {
                contest.tell(&target, live.meta());
                return Ok(None);
            }
        }
        let mut params = PatchParams::apply(FIELD_MANAGER);
        params.force = live.is_some_and(|live| owned(live, self.owner_uid));
        let api: Api<K> = Api::namespaced(self.access.client.clone(), &namespace);
        let applied = self.access.write(&target, api.patch(&name, &params, &Patch::Apply(&document))).await?;
        self.sent += 1;
        tracing::debug!(%target, hash, "Applied.");
        let receipt = Receipt::of(hashes, &applied);
        let before = self.contests.remove(target.kind);
        // The same content as before, and it did change something: somebody else had.
        if same.is_some() && shown.is_some_and(|shown| shown.resource_version != receipt.resource_version) {
            self.contests.insert(target.kind, Contest::after(before, self.now));
        }
        self.receipts.insert(target.kind, receipt);
        Ok(Some(applied))
    }
}

/// The object as it is sent: with the hash of itself as an annotation.
fn document<K: Serialize>(desired: &K) -> Result<(Value, String), serde_json::Error> {
    let mut document = serde_json::to_value(desired)?;
    // Maps of serde_json are sorted, so that equal objects have equal texts. The hash is compared within one version of
    // this program only; another version at most applies once more.
    let mut hasher = DefaultHasher::new();
    document.to_string().hash(&mut hasher);
    let hash = format!("{:016x}", hasher.finish());
    if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) {
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(HASH_ANNOTATION.to_owned(), Value::String(hash.clone()));
        }
    }
    Ok((document, hash))
}

/// Changes with the spec where the API server counts generations, else with anything.
fn version<K: Resource>(object: &K) -> String {
    let meta = object.meta();
    meta.generation
        .map_or_else(|| meta.resource_version.clone().unwrap_or_default(), |generation| generation.to_string())
}

/// Whether the service with `owner_uid` owns the object.
pub fn owned<K: Resource>(object: &K, owner_uid: &str) -> bool {
    object.meta().owner_references.iter().flatten().any(|owner| owner.uid == owner_uid)
}
