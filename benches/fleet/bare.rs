//! The bare client: server-side apply of the same objects, by nobody who looks, compares or reports.

use std::time::Instant;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client, Resource};
use serde_json::{Value, json};

use crate::services::namespace;

/// Services under way at once: as many as the operator's reconciles, and four times as many.
const IN_FLIGHT: [usize; 2] = [8, 32];

/// The objects of one service.
pub struct Sample(Vec<(ApiResource, Value)>);

impl Sample {
    /// Reads the objects of the service `name` and leaves out what only the API server writes.
    pub async fn read(client: &Client, namespace: &str, name: &str) -> anyhow::Result<Self> {
        let resources = [
            (resource::<ConfigMap>(), format!("{name}-knobs")),
            (resource::<NetworkPolicy>(), name.to_owned()),
            (resource::<Service>(), name.to_owned()),
            (resource::<PodDisruptionBudget>(), name.to_owned()),
            (resource::<Deployment>(), name.to_owned()),
        ];
        let mut objects = Vec::new();
        for (resource, name) in resources {
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
            let object = api.get(&name).await.with_context(|| format!("{} {name}", resource.kind))?;
            let mut document = serde_json::to_value(&object.data)?;
            let fields = document.as_object_mut().context("an object")?;
            fields.remove("status");
            if let Some(spec) = fields.get_mut("spec").and_then(Value::as_object_mut) {
                spec.retain(|field, _| !field.starts_with("clusterIP"));
            }
            let (labels, annotations) = (object.metadata.labels, object.metadata.annotations);
            fields.insert("metadata".to_owned(), json!({"labels": labels, "annotations": annotations}));
            fields.insert("apiVersion".to_owned(), json!(resource.api_version));
            fields.insert("kind".to_owned(), json!(resource.kind));
            objects.push((resource, document));
        }
        Ok(Self(objects))
    }

    /// One service's objects, in turn, as the operator applies them.
    async fn apply(&self, client: &Client, namespace: &str, name: &str) -> kube::Result<()> {
        for (resource, document) in &self.0 {
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
            let mut document = document.clone();
            if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.insert("name".to_owned(), json!(name));
            }
            api.patch(name, &PatchParams::apply("bare"), &Patch::Apply(&document)).await?;
        }
        Ok(())
    }
}

fn resource<K: Resource<DynamicType = ()>>() -> ApiResource {
    ApiResource::erase::<K>(&())
}

/// Objects a second that a bare client applies for `count` services at its better number in flight, half of them each.
pub async fn best(client: &Client, name: &str, sample: &Sample, count: u32) -> anyhow::Result<f64> {
    namespace(client, name).await?;
    let mut best = 0.0_f64;
    let half = count.div_ceil(2);
    for (first, in_flight) in [0, half].into_iter().zip(IN_FLIGHT) {
        let started = Instant::now();
        let services = stream::iter(first..first + half).map(Ok::<_, kube::Error>);
        let apply = |number| async move { sample.apply(client, name, &format!("bare-{number}")).await };
        services.try_for_each_concurrent(in_flight, apply).await?;
        let objects = f64::from(half) * f64::from(u32::try_from(sample.0.len())?);
        best = best.max(objects / started.elapsed().as_secs_f64());
    }
    Ok(best)
}
