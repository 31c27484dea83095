//! A ready pod for each service: an object, and behind its address a page of metrics that a real server wrote.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Context;
use axum::Router;
use axum::routing::get;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use yolo_operator::admin;
use yolo_operator::sampler::ADMIN_PORT;
use yolo_server::Server;
use yolo_server::args::{Config, EngineKind};

use crate::services::Fleet;

/// Addresses that the pods share.
const ADDRESSES: u8 = 250;
/// Requests of this bench at once.
const IN_FLIGHT: usize = 16;

/// The pods' pages, served until this is dropped.
pub struct Pods {
    count: u32,
    _pages: Vec<AbortOnDropHandle<()>>,
}

impl Pods {
    pub fn count(&self) -> f64 {
        f64::from(self.count)
    }
}

/// Makes a ready pod for the first `count` services.
pub async fn start(client: &Client, fleet: &Fleet, count: u32) -> anyhow::Result<Pods> {
    let page: &'static str = page().await?.leak();
    let mut pages = Vec::new();
    for number in 1..=ADDRESSES {
        let listener = TcpListener::bind(SocketAddr::new(address(number), ADMIN_PORT)).await?;
        let router = Router::new().route("/metrics", get(move || async move { page }));
        pages.push(AbortOnDropHandle::new(tokio::spawn(admin::serve(listener, router))));
    }
    let make = |number| pod(client, fleet, number);
    stream::iter(0..count).map(anyhow::Ok).try_for_each_concurrent(IN_FLIGHT, make).await?;
    Ok(Pods { count, _pages: pages })
}

async fn pod(client: &Client, fleet: &Fleet, number: u32) -> anyhow::Result<()> {
    let name = Fleet::name(number);
    let deployment = Api::<Deployment>::namespaced(client.clone(), fleet.namespace()).get(&name).await?;
    let template = deployment.spec.context("a spec")?.template;
    let metadata = template.metadata.context("labels")?;
    let pod = json!({"metadata": {"name": name, "labels": metadata.labels, "annotations": metadata.annotations},
        "spec": template.spec});
    let pods: Api<Pod> = Api::namespaced(client.clone(), fleet.namespace());
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
    let ip = address(u8::try_from(number % u32::from(ADDRESSES))? + 1);
    let ready = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": jiff::Timestamp::now().to_string()}]}});
    pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(&ready)).await?;
    Ok(())
}

/// What an idle server writes that has applied its first knobs.
async fn page() -> anyhow::Result<String> {
    let config = Config {
        engine: EngineKind::Emulated,
        api_address: SocketAddr::new(address(0), 8080),
        grpc_address: SocketAddr::new(address(0), 8001),
        admin_address: SocketAddr::new(address(0), ADMIN_PORT),
        ..Config::new("emulated.onnx")
    };
    let server = Server::start(config).await?;
    let page = reqwest::get(format!("http://{}/metrics", server.admin_address())).await?.text().await?;
    server.stop().await;
    Ok(page.replace("yolo_knobs_generation 0", "yolo_knobs_generation 1"))
}

/// An address of this bench alone, 127.101.0.0/24.
fn address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 101, 0, number))
}
