//! Background tasks that watch the services while load runs: pods, status, knobs, Events and `kubectl get yis`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::events::v1::Event;
use kube::Client;
use kube::api::{Api, ListParams};
use kube::runtime::{WatchStreamExt, watcher};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::install::{self, SERVICES_NAMESPACE};
use super::knobs::{self, KnobChange};
use super::pods::Pods;
use super::progress::Progress;
use super::site::Site;
use super::status::{self, Status};
use super::timeline::Look;

/// Between two looks at the pods: fine enough for a plot of minutes and for shares over 20 s.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two prints of `kubectl get yis`.
const PRINT_EVERY: Duration = Duration::from_secs(10);

/// What was seen of one service.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Its status, latest and accumulated.
    pub status: Status,
    /// Its pods, each second.
    pub looks: Vec<Look>,
    /// Its knob changes.
    pub knob_changes: Vec<KnobChange>,
}

type Shared = Arc<Mutex<BTreeMap<String, Seen>>>;

/// The tasks; dropping it ends them.
pub struct Observer {
    seen: Shared,
    _tasks: JoinSet<()>,
}

impl Observer {
    /// Starts to watch `services`; times are offsets from `epoch`.
    pub fn start(
        client: &Client,
        site: &Arc<Site>,
        progress: &Arc<Progress>,
        (services, epoch): (&[&str], Instant),
    ) -> Self {
        let seen = Shared::default();
        let mut tasks = JoinSet::new();
        for &service in services {
            let pods = Pods::new(client.clone(), site.clone(), (SERVICES_NAMESPACE, service));
            tasks.spawn(watch_pods(pods.clone(), keep(&seen, service), epoch));
            tasks.spawn(watch_status(client.clone(), service.to_owned(), keep(&seen, service)));
            tasks.spawn(watch_knobs(client.clone(), service.to_owned(), pods, keep(&seen, service)));
        }
        tasks.spawn(print_events(client.clone(), progress.clone()));
        tasks.spawn(print_services(site.clone(), progress.clone()));
        Self { seen, _tasks: tasks }
    }

    /// What was seen of `service` so far.
    pub fn seen(&self, service: &str) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(service).cloned().unwrap_or_default()
    }
}

/// A function that changes what was seen of `service`.
fn keep(seen: &Shared, service: &str) -> impl Fn(&mut dyn FnMut(&mut Seen)) + Send + Sync + use<> {
    let (seen, service) = (seen.clone(), service.to_owned());
    move |change| change(seen.lock().unwrap_or_else(PoisonError::into_inner).entry(service.clone()).or_default())
}

async fn watch_pods(pods: Pods, keep: impl Fn(&mut dyn FnMut(&mut Seen)), epoch: Instant) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        // A look that the API server did not answer leaves a gap in the plot, and the next one follows in a second.
        if let Ok(look) = pods.look(epoch.elapsed()).await {
            keep(&mut |seen| seen.looks.push(look.clone()));
        }
    }
}

async fn watch_status(client: Client, service: String, keep: impl Fn(&mut dyn FnMut(&mut Seen))) {
    let api = status::api(client, SERVICES_NAMESPACE);
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        let Ok(object) = api.get(&service).await else { continue };
        let Some(status) = object.data.get("status") else { continue };
        keep(&mut |seen| {
            if let Err(failure) = seen.status.update(status) {
                println!("status of {service} has another shape than the CRD says: {failure}");
            }
        });
    }
}

async fn watch_knobs(
    client: Client,
    service: String,
    pods: Pods,
    keep: impl Fn(&mut dyn FnMut(&mut Seen)) + Send + Sync,
) {
    let record = |change| keep(&mut |seen| seen.knob_changes.push(change));
    knobs::measure(client, (SERVICES_NAMESPACE, &service), pods, record).await;
}

async fn print_events(client: Client, progress: Arc<Progress>) {
    // Only of the objects of now: Events of an earlier run's objects outlive them by an hour.
    let services = status::api(client.clone(), SERVICES_NAMESPACE).list(&ListParams::default()).await;
    let current: Vec<_> = services.into_iter().flatten().filter_map(|service| service.metadata.uid).collect();
    let api: Api<Event> = Api::namespaced(client, SERVICES_NAMESPACE);
    let mut events = watcher(api, watcher::Config::default()).default_backoff().applied_objects().boxed();
    loop {
        // An error of the watch is followed by its own retry with backoff.
        let Ok(Some(event)) = events.try_next().await else { continue };
        let Some(about) = event.regarding else { continue };
        if about.uid.is_some_and(|uid| current.contains(&uid)) {
            let text = |value: Option<String>| value.unwrap_or_default();
            progress.say(&format!("event {}: {} - {}", text(about.name), text(event.reason), text(event.note)));
        }
    }
}

async fn print_services(site: Arc<Site>, progress: Arc<Progress>) {
    let mut ticks = tokio::time::interval(PRINT_EVERY);
    loop {
        ticks.tick().await;
        let mut kubectl = site.kubectl();
        kubectl.args(["get", "yis", "--namespace", SERVICES_NAMESPACE]);
        if let Ok(Ok(table)) = tokio::task::spawn_blocking(move || install::run(&mut kubectl)).await {
            for line in table.lines() {
                progress.say(&format!("  {line}"));
            }
        }
    }
}
