//! The fleet: its services, changes of them, and one that can never be applied.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use yolo_api::v1alpha1::YoloInferenceService;
use yolo_testkit::cluster::wait_for;

/// Field manager of this bench.
const MANAGER: &str = "bench";
/// Requests of this bench at once.
const IN_FLIGHT: usize = 16;
/// How long the operator may take for one change.
const PATIENCE: Duration = Duration::from_mins(1);
/// Objects of a page of a list.
const PAGE: u32 = 500;

/// The services of one namespace.
pub struct Fleet {
    namespace: &'static str,
    count: u32,
}

/// How long changes took from the service to its Deployment.
pub struct Probed {
    pub p95_s: f64,
    pub all_s: Vec<f64>,
}

/// Installs the committed CRD and waits until it is served.
pub async fn install_crd(client: &Client) -> anyhow::Result<()> {
    let crd: Value = serde_yaml_ng::from_str(include_str!("../../crds/yoloinferenceservices.yaml"))?;
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    let name = "yoloinferenceservices.yolo-operator.io";
    definitions.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&crd)).await?;
    let listed = async || Api::<YoloInferenceService>::all(client.clone()).list(&ListParams::default()).await.ok();
    wait_for("the CRD to be served", PATIENCE, listed).await?;
    Ok(())
}

/// Creates a namespace.
pub async fn namespace(client: &Client, name: &str) -> anyhow::Result<()> {
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    Ok(())
}

impl Fleet {
    /// Creates the namespace and its services.
    pub async fn create(client: &Client, namespace_name: &'static str, count: u32) -> anyhow::Result<Self> {
        namespace(client, namespace_name).await?;
        let fleet = Self { namespace: namespace_name, count };
        fleet.apply_all(client, "1Gi").await?;
        Ok(fleet)
    }

    pub fn namespace(&self) -> &'static str {
        self.namespace
    }

    /// Name of the service with this number.
    pub fn name(number: u32) -> String {
        format!("service-{number}")
    }

    /// Gives every service other memory, which changes every Deployment.
    pub async fn change_all(&self, client: &Client) -> anyhow::Result<()> {
        self.apply_all(client, "2Gi").await
    }

    /// Fails unless every object of every service exists.
    pub async fn has_everything(&self, client: &Client) -> anyhow::Result<()> {
        let expected = usize::try_from(self.count)?;
        let counts = [
            ("ConfigMaps", self.listed::<ConfigMap>(client).await?),
            ("Deployments", self.listed::<Deployment>(client).await?),
            ("NetworkPolicies", self.listed::<NetworkPolicy>(client).await?),
            ("PodDisruptionBudgets", self.listed::<PodDisruptionBudget>(client).await?),
            ("Services", self.listed::<Service>(client).await?),
        ];
        for (kind, count) in counts {
            ensure!(count == expected, "{count} {kind} of {expected} are there");
        }
        Ok(())
    }

    /// Changes `count` services, one after the other.
    pub async fn probe(&self, client: &Client, count: u32) -> anyhow::Result<Probed> {
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), self.namespace);
        let mut all_s = Vec::new();
        for number in 0..count.min(self.count) {
            let name = Self::name(number);
            let before = deployments.get(&name).await?.metadata.generation;
            // Another value at each probe of the same service.
            let memory = format!("{}Mi", 3000 + before.unwrap_or_default());
            let started = Instant::now();
            self.apply(client, &name, &memory).await?;
            let changed = async || {
                let now = deployments.get_metadata(&name).await.ok()?;
                (now.metadata.generation > before).then_some(())
            };
            wait_for("the changed Deployment", PATIENCE, changed).await?;
            all_s.push(started.elapsed().as_secs_f64());
        }
        all_s.sort_by(f64::total_cmp);
        let p95_s = all_s.get(all_s.len() * 95 / 100).copied().context("no probe")?;
        Ok(Probed { p95_s, all_s })
    }

    /// Adds a service whose Deployment is a stranger's: it fails at every try.
    pub async fn poison(&self, client: &Client) -> anyhow::Result<()> {
        let strangers: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "poison"},
            "spec": {"selector": {"matchLabels": {"app": "stranger"}}, "template": {
                "metadata": {"labels": {"app": "stranger"}},
                "spec": {"containers": [{"name": "stranger", "image": "localhost/stranger:1"}]}}},
        }))?;
        Api::namespaced(client.clone(), self.namespace).create(&PostParams::default(), &strangers).await?;
        self.apply(client, "poison", "1Gi").await?;
        Ok(())
    }

    async fn apply_all(&self, client: &Client, memory: &str) -> anyhow::Result<()> {
        let numbers = stream::iter(0..self.count).map(Ok);
        let apply = |number| async move { self.apply(client, &Self::name(number), memory).await };
        numbers.try_for_each_concurrent(IN_FLIGHT, apply).await.map_err(Into::into)
    }

    async fn apply(&self, client: &Client, name: &str, memory: &str) -> kube::Result<()> {
        let document = json!({
            "apiVersion": "yolo-operator.io/v1alpha1", "kind": "YoloInferenceService", "metadata": {"name": name},
            "spec": {
                "model": {"source": {"imagePath": "/models/emulated.onnx"}},
                "accelerator": {"emulated": {"alphaMicros": 5000, "betaMicros": 2000, "device": "Cpu"}},
                "targets": {"apiLatency": {"threshold": "200ms"}},
                "server": {"resources": {"memory": memory}},
            },
        });
        let api: Api<YoloInferenceService> = Api::namespaced(client.clone(), self.namespace);
        api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&document)).await.map(drop)
    }

    /// Number of objects of one kind that services own.
    async fn listed<K>(&self, client: &Client) -> anyhow::Result<usize>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(client.clone(), self.namespace);
        let mut params = ListParams::default().limit(PAGE);
        let mut count = 0;
        loop {
            let page = api.list_metadata(&params).await?;
            count += page.items.iter().filter(|object| object.metadata.owner_references.is_some()).count();
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                return Ok(count);
            }
        }
    }
}
