//! One service as its clients meet it: address, pictures, load, and what one pod can carry.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kube::api::Api;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;
use yolo_loadgen::client::{Client as LoadClient, Limits};
use yolo_loadgen::pictures::{Mode, Pictures};
use yolo_loadgen::record::Recording;
use yolo_loadgen::schedule::{self, Phase};

use super::drive::Stage;
use super::install::SERVICES_NAMESPACE;
use super::pods::Pods;
use super::scenario::{PhaseScript, ServiceScript};
use super::status::{self, Spec};
use super::timeline::{Look, Track};
use crate::cluster::wait_for;

/// A pod that uses less than this share of its quota over [`SETTLE_LOOK`] has ended its own timing of batches.
const IDLE_SHARE: f64 = 0.1;
const SETTLE_LOOK: Duration = Duration::from_secs(2);
/// Looks until it is given up: a minute.
const SETTLE_LOOKS: usize = 30;

/// From the readiness of a pod to the first answer through the Service; kube-proxy takes a second or two.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A service under load.
pub struct Served {
    /// Its script.
    pub script: ServiceScript,
    /// Calm rate in images a second; set after the probe.
    pub calm_rate: f64,
    spec: Spec,
    load: LoadClient,
    pictures: Pictures,
    pods: Pods,
    recording: Recording,
}

/// What all ready pods have used and served since their start.
struct Usage {
    cpu_seconds: f64,
    images: f64,
    quota_cores: f64,
    batch: f64,
}

impl Served {
    /// Finds the Service and reads the pictures.
    ///
    /// # Errors
    /// If the Service has no address yet, or the pictures are missing.
    pub async fn open(client: &Client, stage: &Stage, script: ServiceScript, epoch: Instant) -> anyhow::Result<Self> {
        let services: Api<Service> = Api::namespaced(client.clone(), SERVICES_NAMESPACE);
        let spec = services.get(script.name).await?.spec.context("a Service without spec")?;
        let ip: IpAddr = spec.cluster_ip.context("a Service without an address")?.parse()?;
        let port = spec.ports.unwrap_or_default().into_iter().find(|port| port.name.as_deref() == Some("http"));
        let port = u16::try_from(port.context("a Service without the port http")?.port)?;
        let target = stage.site.service(SERVICES_NAMESPACE, script.name, (ip, port), "/predict");
        let object = status::api(client.clone(), SERVICES_NAMESPACE).get(script.name).await?;
        let run = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
        Ok(Self {
            script,
            calm_rate: 0.0,
            spec: Spec::deserialize(object.data.get("spec").context("a custom resource without spec")?)?,
            load: LoadClient::new(target, Limits::default(), &[ip], epoch)?,
            pictures: Pictures::read(&stage.cache.join(script.pictures), run)?,
            pods: Pods::new(client.clone(), stage.site.clone(), (SERVICES_NAMESPACE, script.name)),
            recording: Recording::default(),
        })
    }

    /// Sends the first picture until it is answered, and returns both. kube-proxy lets the Service's address lead to a
    /// pod some moments after that is ready.
    ///
    /// # Errors
    /// With the last failure, if there is no answer 200 in time.
    pub async fn answer(&self) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
        let page = self.pictures.body(Mode::Repeated, 0);
        let last = Mutex::new(String::new());
        let answered = wait_for("an answer of /predict", ANSWER_LIMIT, async || {
            let failure = match self.load.once(page.clone()).await {
                Ok((200, answer)) => return Some(answer),
                Ok((status, answer)) => format!("{status} {}", String::from_utf8_lossy(&answer)),
                Err(failure) => format!("{:#}", anyhow::Error::from(failure)),
            };
            *last.lock().unwrap_or_else(PoisonError::into_inner) = failure;
            None
        });
        let answer = answered.await.with_context(|| {
            format!("{}: {}", self.script.name, last.lock().unwrap_or_else(PoisonError::into_inner))
        })?;
        Ok((page.to_vec(), answer.to_vec()))
    }

    /// Images a second that one pod can carry: what an emulated device declares at the pods' batch limit, else the CPU
    /// quota over the CPU seconds an image, which a short and light load shows.
    ///
    /// # Errors
    /// If no pod shows its metrics, or none took an image.
    pub async fn capacity(&mut self, probe: Duration, rate_per_second: f64) -> anyhow::Result<f64> {
        let idle = self.settle().await?;
        if let Some(declared) = self.spec.emulated_capacity(idle.batch) {
            return Ok(declared);
        }
        let arrivals = schedule::arrivals(&[Phase { rate_per_second, length: probe }], 0);
        self.load.run(arrivals, (&self.pictures, Mode::Distinct), std::future::pending()).await;
        let after = self.usage().await?;
        let images = after.images - idle.images;
        ensure!(images > 0.0, "no image arrived at the pods of {}", self.script.name);
        Ok(after.quota_cores * images / (after.cpu_seconds - idle.cpu_seconds))
    }

    /// Waits until the pods have ended what they do by themselves after their start.
    async fn settle(&self) -> anyhow::Result<Usage> {
        let mut before = self.usage().await?;
        for _ in 0..SETTLE_LOOKS {
            tokio::time::sleep(SETTLE_LOOK).await;
            let now = self.usage().await?;
            let cores = (now.cpu_seconds - before.cpu_seconds) / SETTLE_LOOK.as_secs_f64();
            if cores < IDLE_SHARE * now.quota_cores {
                return Ok(now);
            }
            before = now;
        }
        anyhow::bail!("the pods of {} are busy without load", self.script.name)
    }

    async fn usage(&self) -> anyhow::Result<Usage> {
        let mut usage = Usage { cpu_seconds: 0.0, images: 0.0, quota_cores: 0.0, batch: 0.0 };
        for pod in self.pods.ready().await? {
            let Some(page) = pod.page().await else { continue };
            usage.cpu_seconds += page.sum("yolo_cpu_usage_seconds_total", &[]);
            usage.images += page.sum("yolo_arrivals_total", &[]);
            usage.quota_cores = usage.quota_cores.max(page.sum("yolo_cpu_quota_cores", &[]));
            usage.batch = usage.batch.max(page.sum("yolo_batch_limit", &[]));
        }
        ensure!(usage.batch >= 1.0, "no ready pod of {} shows its metrics", self.script.name);
        Ok(usage)
    }

    /// Sends the load of `phase` until `stopped` turns true, and keeps what came of it.
    pub async fn load(&mut self, phase: &PhaseScript, seed: u64, mut stopped: watch::Receiver<bool>) {
        let rate_per_second = self.calm_rate * phase.factor;
        // A sender that is gone means the same as a stop.
        let stop = async move { drop(stopped.wait_for(|stop| *stop).await) };
        self.offer((&[Phase { rate_per_second, length: phase.most }], seed), phase.mode, stop).await;
    }

    /// Sends the arrivals that `seed` draws of `phases` until they or `stop` end, and keeps what came of them.
    pub async fn offer(&mut self, (phases, seed): (&[Phase], u64), mode: Mode, stop: impl Future<Output = ()>) {
        let arrivals = schedule::arrivals(phases, seed);
        let recording = self.load.run(arrivals, (&self.pictures, mode), stop).await;
        self.recording.append(recording);
    }

    /// Its track with these looks.
    pub fn into_track(self, looks: Vec<Look>) -> Track {
        let ServiceScript { name, title, .. } = self.script;
        let p95_target_ms = self.spec.api_threshold_ms();
        Track { service: name, title, p95_target_ms, looks, recording: self.recording }
    }
}
