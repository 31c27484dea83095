//! The ready pods of one service, and what their own metrics say.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use yolo_loadgen::scrape::{self, Page};

use super::site::Site;
use super::timeline::{Look, PodLook};

/// A ready pod and where its metrics are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyPod {
    /// Its name.
    pub name: String,
    address: SocketAddr,
    path: String,
}

impl ReadyPod {
    /// Its metrics now; `None` if it cannot be asked, as a pod that is just going.
    pub async fn page(&self) -> Option<Page> {
        scrape::page(self.address, &self.path).await.ok()
    }
}

/// Finds the pods of one service.
#[derive(Clone)]
pub struct Pods {
    api: Api<Pod>,
    site: Arc<Site>,
    namespace: String,
    service: String,
}

impl Pods {
    /// The pods of the custom resource `service`.
    pub fn new(client: Client, site: Arc<Site>, (namespace, service): (&str, &str)) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, site, namespace: namespace.to_owned(), service: service.to_owned() }
    }

    /// Those that are ready and stay, in the order of their names.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn ready(&self) -> Result<Vec<ReadyPod>, kube::Error> {
        let ours = ListParams::default().labels(&format!("yolo-operator.io/service={}", self.service));
        let mut ready: Vec<_> = self.api.list(&ours).await?.iter().filter_map(|pod| self.ready_pod(pod)).collect();
        ready.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(ready)
    }

    /// Asks all ready pods at once.
    ///
    /// # Errors
    /// If the API server does not answer. A pod that does not answer is left out.
    pub async fn look(&self, at: Duration) -> Result<Look, kube::Error> {
        let ready = self.ready().await?;
        let looks = join_all(ready.iter().map(async |pod| {
            let page = pod.page().await?;
            Some(PodLook {
                name: pod.name.clone(),
                arrivals_total: page.value("yolo_arrivals_total", &[])?,
                batch: page.value("yolo_batch_limit", &[])?,
                cache_bytes: page.value("yolo_cache_capacity_bytes", &[])?,
            })
        }));
        Ok(Look { at, pods: looks.await.into_iter().flatten().collect() })
    }

    fn ready_pod(&self, pod: &Pod) -> Option<ReadyPod> {
        let status = pod.status.as_ref()?;
        let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        if !ready || pod.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let ip: IpAddr = status.pod_ip.as_ref()?.parse().ok()?;
        let name = pod.name_any();
        let (address, path) = self.site.pod_metrics(&self.namespace, &name, ip);
        Some(ReadyPod { name, address, path })
    }
}
