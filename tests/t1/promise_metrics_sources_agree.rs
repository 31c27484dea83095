//! The pods themselves and a real Prometheus give the same samples; a source that is lost never says zero.
//!
//! Real servers with the emulated engine, real load, the `prometheus` of the distribution. No Kubernetes is needed.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc;
use jiff::Timestamp;
use tempfile::TempDir;
use yolo_loadgen::client::{Client, Limits, Target};
use yolo_loadgen::pictures::{Mode, Pictures};
use yolo_loadgen::schedule::{Phase, arrivals};
use yolo_operator::clock::Clock;
use yolo_operator::fleet::{PodPhase, PodView, ServiceId};
use yolo_operator::metrics::Metrics;
use yolo_operator::sampler::{ADMIN_PORT, Endpoint, Running, Setup, Snapshots, Source, start};
use yolo_planner::observation::{NoData, Sample, Signal};
use yolo_server::Server;
use yolo_server::args::{Config, EngineKind};

const POD: &str = "fork-7d9f-x2v.1";
/// What the guarded Prometheus asks for.
const TOKEN: &str = "of-today";
/// Not a divisor of the sampler's 5 s, so that the two sources look at different moments.
const SCRAPE_INTERVAL: &str = "3s";
/// The longest wait in these tests is that for staleness: three scrapes of at most 6 s.
const PATIENCE: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
async fn both_sources_count_each_image_once_and_an_outage_is_stale_not_zero() {
    let ip = loopback(1);
    let Some(mut prometheus) = Prometheus::start(ip) else { return };
    let server = Server::start(emulated(ip)).await.unwrap();
    let mut by_pod = Follower::start(None, ip);
    let mut by_prometheus = Follower::start(Some(prometheus.endpoint()), ip);
    by_pod.until("the pod's first reading", Follower::has_looked).await;
    by_prometheus.until("the first reading through Prometheus", Follower::has_looked).await;

    let sent = load(server.api_address()).await;
    assert!(sent > 20, "the load is too small to show anything: {sent}");
    by_pod.until("all images in the pod's samples", |seen| seen.sum.done >= sent).await;
    by_prometheus.until("all images in the samples through Prometheus", |seen| seen.sum.done >= sent).await;
    assert_eq!(by_pod.sum, by_prometheus.sum);
    assert_filled(by_pod.busiest.as_ref().unwrap());
    assert_eq!((by_pod.sum.arrivals, by_pod.sum.done, by_pod.sum.answers), (sent, sent, sent));
    let (direct, through) = (by_pod.last.clone().unwrap(), by_prometheus.last.clone().unwrap());
    assert_eq!((&direct.curve, direct.workers, direct.applied), (&through.curve, through.workers, through.applied));
    let apart_s = direct.until.since(through.until).abs();
    assert!(apart_s < 15.0, "the two sources' clocks differ: their newest samples are {apart_s} s apart");

    let quiet = |seen: &Follower| seen.last.as_ref().is_some_and(|last| last.arrivals == 0);
    by_pod.until("a live zero from the pod", quiet).await;
    by_prometheus.until("a live zero through Prometheus", quiet).await;
    assert!(by_prometheus.signal().live().is_some(), "no traffic is data");

    prometheus.stop();
    let last = by_prometheus.last.clone().unwrap();
    by_prometheus.until("the sample to go stale", |seen| seen.signal().live().is_none()).await;
    let Signal::Stale { last: kept, age } = by_prometheus.signal() else { panic!("{:?}", by_prometheus.signal()) };
    assert_eq!(kept, last, "an outage changes nothing but the age");
    assert!(age.get() > 15.0, "{age:?}");
    by_pod.until("another sample of the pod", |seen| seen.signal().live().is_some()).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_server_is_a_reset_and_never_negative_traffic() {
    let ip = loopback(2);
    let server = Server::start(emulated(ip)).await.unwrap();
    let mut pod = Follower::start(None, ip);
    pod.until("the first reading", Follower::has_looked).await;
    let sent = load(server.api_address()).await;
    pod.until("the load", |seen| seen.sum.done >= sent).await;
    server.stop().await;
    let again = restarted(ip).await;
    pod.until("the reset", |seen| seen.signal() == Signal::NoData(NoData::CounterReset)).await;
    pod.until("a sample of the new process", |seen| seen.signal().live().is_some()).await;
    assert_eq!((pod.sum.arrivals, pod.sum.done), (sent, sent));
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_behind_tls_gets_the_token_of_the_moment() {
    let ip = loopback(3);
    let Some(prometheus) = Prometheus::start(ip) else { return };
    let guard = Guard::start(SocketAddr::new(ip, 9443), &prometheus.url);
    let server = Server::start(emulated(ip)).await.unwrap();

    let stranger = Endpoint { url: guard.endpoint.url.clone(), ..Endpoint::default() };
    let mut refused = Follower::start(Some(stranger), ip);
    refused.until("the refusal of an unknown certificate", |seen| seen.trouble().contains("certificate")).await;

    let token_file = guard.endpoint.token_file.clone().unwrap();
    std::fs::remove_file(&token_file).unwrap();
    let mut follower = Follower::start(Some(guard.endpoint.clone()), ip);
    follower.until("the missing token", |seen| seen.trouble().contains("--prometheus-token-file")).await;
    std::fs::write(&token_file, "\n").unwrap();
    follower.until("the empty token", |seen| seen.trouble().contains("the file is empty")).await;
    std::fs::write(&token_file, "of-yesterday\n").unwrap();
    follower.until("the refusal of an old token", |seen| seen.trouble().contains("HTTP status 401")).await;
    std::fs::write(&token_file, format!("{TOKEN}\n")).unwrap();
    follower.until("a reading with the new token", Follower::has_looked).await;
    assert_eq!(follower.trouble(), "");
    server.stop().await;
}

/// What a source has counted since it began.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    arrivals: u64,
    done: u64,
    shed: u64,
    errors: u64,
    batches: BTreeMap<u32, u64>,
    batch_millis: u64,
    images_timed: u64,
    answers: u64,
    body_bytes: u64,
    decoded: u64,
    cache_misses: u64,
}

/// A sampler of one pod, and what it has told so far.
struct Follower {
    _running: Running,
    snapshots: Snapshots,
    rounds: mpsc::Receiver<ServiceId>,
    clock: Clock,
    last: Option<Sample>,
    busiest: Option<Sample>,
    batch_s: f64,
    sum: Sum,
}

impl Follower {
    fn start(prometheus: Option<Endpoint>, ip: IpAddr) -> Self {
        let (snapshots, clock) = (Snapshots::default(), Clock::start());
        let (trigger, rounds) = mpsc::channel(1);
        let running = start(Setup {
            source: Source::new(prometheus).unwrap(),
            pods: Arc::new(move || BTreeMap::from([(service(), vec![pod(ip)])])),
            snapshots: snapshots.clone(),
            rounds: trigger,
            clock,
            metrics: Arc::new(Metrics::new()),
        });
        Self {
            _running: running,
            snapshots,
            rounds,
            clock,
            last: None,
            busiest: None,
            batch_s: 0.0,
            sum: Sum::default(),
        }
    }

    fn signal(&self) -> Signal<Sample> {
        let snapshot = self.snapshots.of(&service()).expect("a round has ended");
        snapshot.signal(POD, self.clock.now())
    }

    /// Why the pod could not be read; empty if it could.
    fn trouble(&self) -> String {
        let snapshot = self.snapshots.of(&service());
        snapshot.and_then(|snapshot| snapshot.trouble().map(str::to_owned)).unwrap_or_default()
    }

    fn has_looked(&self) -> bool {
        self.snapshots.of(&service()).is_some_and(|snapshot| snapshot.knobs_generation(POD).is_some())
    }

    /// Follows round after round until `condition`.
    async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let rounds = async {
            loop {
                self.rounds.next().await.expect("the sampler runs");
                self.take();
                if condition(self) {
                    return;
                }
            }
        };
        let ended = tokio::time::timeout(PATIENCE, rounds).await;
        assert!(ended.is_ok(), "{what} did not come within {PATIENCE:?}: {:?}, {:?}", self.sum, self.trouble());
    }

    fn take(&mut self) {
        let Signal::Live { value: sample, .. } = self.signal() else { return };
        if self.last.as_ref().is_some_and(|last| last.until == sample.until) {
            return;
        }
        let sum = &mut self.sum;
        sum.arrivals += sample.arrivals;
        sum.done += sample.done;
        sum.shed += sample.shed;
        sum.errors += sample.errors;
        for batch in &sample.batches {
            *sum.batches.entry(batch.size.get()).or_default() += batch.count;
            self.batch_s += batch.seconds.get();
        }
        sum.batch_millis = Duration::from_secs_f64(self.batch_s + 1e-9).as_millis().try_into().unwrap();
        sum.images_timed += sample.inference.count();
        sum.answers += sample.api.count();
        sum.body_bytes += sample.body_bytes.get();
        sum.decoded += sample.stages.decode.count;
        sum.cache_misses += sample.cache.misses;
        if self.busiest.as_ref().is_none_or(|busiest| busiest.arrivals < sample.arrivals) {
            self.busiest = Some(sample.clone());
        }
        self.last = Some(sample);
    }
}

/// The two halves of the metrics contract meet: a name that one of them spells differently would leave a zero here.
fn assert_filled(sample: &Sample) {
    let stages = &sample.stages;
    let passed = [stages.read, stages.hash, stages.decode, stages.preprocess, stages.inference, stages.postprocess];
    assert!(
        passed.iter().chain([&stages.encode]).all(|stage| stage.count > 0 && stage.seconds.get() > 0.0),
        "{stages:?}"
    );
    assert!(stages.decode.workers > 0 && stages.inference.workers > 0, "{stages:?}");
    assert!(sample.per_second.sum > 0 && sample.per_second.sum_sq >= sample.per_second.sum, "{:?}", sample.per_second);
    assert!(sample.batches.iter().all(|batch| batch.seconds_squared.get() > 0.0), "{:?}", sample.batches);
    assert_eq!(sample.ghosts.sizes.len(), 8);
    assert!(sample.ghosts.refs > 0 && sample.ghosts.expected.get() > 0.0, "{:?}", sample.ghosts);
    assert!(sample.cpu_seconds.get() > 0.0 && sample.rss.get() > 0, "{sample:?}");
    assert!(sample.gpu.is_some_and(|gpu| gpu.duty.get() > 0.0), "{:?}", sample.gpu);
    assert!(sample.workers > 0 && !sample.curve.is_empty() && sample.applied.batch.get() > 1, "{sample:?}");
    assert!(sample.overhead.count() > 0 && sample.read.count() > 0, "{sample:?}");
    assert!(sample.cache_bytes.get() > 0 && sample.applied.cache.get() > 0, "{sample:?}");
}

/// The distribution's Prometheus, scraping one pod; ends with this value.
struct Prometheus {
    process: Child,
    url: String,
    _folder: TempDir,
}

impl Prometheus {
    /// `None` if this machine has none: the test is skipped, which is a failure under CI.
    fn start(pod: IpAddr) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let address = SocketAddr::new(pod, 9090);
        let scrape = format!(
            "global: {{scrape_interval: {SCRAPE_INTERVAL}, scrape_timeout: 2s}}\n\
             scrape_configs:\n\
             - job_name: pods\n  static_configs:\n  - targets: ['{}']\n    labels: {{namespace: kitchen, pod: {POD}}}\n",
            SocketAddr::new(pod, ADMIN_PORT)
        );
        std::fs::write(folder.path().join("prometheus.yml"), scrape).unwrap();
        let process = Command::new("prometheus")
            .arg("--config.file=prometheus.yml")
            .arg("--storage.tsdb.path=data")
            .arg(format!("--web.listen-address={address}"))
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match process {
            Ok(process) => Some(Self { process, url: format!("http://{address}"), _folder: folder }),
            Err(error) if std::env::var_os("CI").is_none() => {
                let thread = std::thread::current();
                // Not `eprintln!`, which libtest swallows for a test that passes.
                let _ = writeln!(std::io::stderr(), "SKIPPED {}: prometheus: {error}", thread.name().unwrap_or("main"));
                None
            }
            Err(error) => panic!("prometheus: {error}"),
        }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint { url: self.url.clone(), ..Endpoint::default() }
    }

    fn stop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// nginx in front of a Prometheus, with TLS and a token, as clusters have it; ends with this value.
struct Guard {
    process: Child,
    endpoint: Endpoint,
    _folder: TempDir,
}

impl Guard {
    fn start(address: SocketAddr, prometheus: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let identity = rcgen::generate_simple_self_signed([address.ip().to_string()]).unwrap();
        std::fs::write(file("server.crt"), identity.cert.pem()).unwrap();
        std::fs::write(file("server.key"), identity.signing_key.serialize_pem()).unwrap();
        std::fs::write(file("token"), TOKEN).unwrap();
        let temporary =
            ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path {kind};"));
        let configuration = format!(
            "daemon off; master_process off; pid pid; events {{}}
             http {{
                 access_log off;
                 {}
                 server {{
                     listen {address} ssl;
                     ssl_certificate server.crt;
                     ssl_certificate_key server.key;
                     if ($http_authorization != 'Bearer {TOKEN}') {{ return 401; }}
                     location / {{ proxy_pass {prometheus}; }}
                 }}
             }}",
            temporary.concat()
        );
        std::fs::write(file("nginx.conf"), configuration).unwrap();
        // Debian keeps servers where only root's shell looks.
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("nginx");
        command.env("PATH", path).arg("-p").arg(folder.path()).args(["-c", "nginx.conf", "-e", "error.log"]);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nginx: make packages");
        let endpoint = Endpoint {
            url: format!("https://{address}"),
            ca_file: Some(file("server.crt")),
            token_file: Some(file("token")),
        };
        Self { process, endpoint, _folder: folder }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An address of this test process alone, so that the fixed ports of pods are free on it.
fn loopback(test: u8) -> IpAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 128 | (test << 4) | (high & 15), low, 1))
}

fn service() -> ServiceId {
    ServiceId { namespace: "kitchen".to_owned(), name: "fork".to_owned() }
}

fn pod(ip: IpAddr) -> PodView {
    PodView {
        uid: POD.to_owned(),
        namespace: service().namespace,
        name: POD.to_owned(),
        service: service(),
        ip: Some(ip),
        phase: PodPhase::Ready,
        created: Timestamp::UNIX_EPOCH,
        ready_since: Some(Timestamp::UNIX_EPOCH),
        class: 0,
        node: None,
        knobs_annotation: None,
        deletion_cost: None,
        oom_killed: None,
        termination: None,
        restarts: 0,
        waiting: None,
    }
}

fn emulated(ip: IpAddr) -> Config {
    Config {
        engine: EngineKind::Emulated,
        emulated_alpha_micros: 20_000,
        emulated_beta_micros: 2_000,
        api_address: SocketAddr::new(ip, 8080),
        grpc_address: SocketAddr::new(ip, 8001),
        admin_address: SocketAddr::new(ip, ADMIN_PORT),
        ..Config::new("emulated.onnx")
    }
}

/// Starts a server where one has just ended, as soon as the kernel gives its ports back.
async fn restarted(ip: IpAddr) -> Server {
    let start = async {
        loop {
            match Server::start(emulated(ip)).await {
                Ok(server) => return server,
                Err(yolo_server::StartError::Listen { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, start).await.expect("the ports stay taken")
}

/// Sends distinct pictures at 60/s for 2 s, open loop, and returns how many; all must be answered.
async fn load(api: SocketAddr) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/yolo-vision/fixtures/decode/baseline-420.jpg");
    std::fs::copy(fixture, folder.path().join("picture.jpg")).unwrap();
    let pictures = Pictures::read(folder.path(), 1).unwrap();
    let target = Target { address: api, host: "fork".to_owned(), path: "/predict".to_owned() };
    let client = Client::new(target, Limits::default(), &[], tokio::time::Instant::now()).unwrap();
    let phase = Phase { rate_per_second: 60.0, length: Duration::from_secs(2) };
    let sent = client.run(arrivals(&[phase], 7), (&pictures, Mode::Distinct), std::future::pending()).await;
    assert!(sent.outcomes().iter().all(|outcome| outcome.ending.is_success()), "{:?}", sent.outcomes());
    sent.outcomes().len().try_into().unwrap()
}
