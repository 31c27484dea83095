//! What sampling 200 pods costs the operator, from the pods themselves and through a real Prometheus.
//!
//! A real server makes one page of metrics under load; a second process replays it on 200 loopback addresses over real
//! HTTP, so that this process' CPU time is the sampler's alone. Prints a table, writes `target/figures/sampler.json`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a bench that cannot run must stop")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use futures::StreamExt;
use futures::channel::mpsc;
use tokio::net::TcpListener;
use yolo_loadgen::client::{Client, Limits, Target};
use yolo_loadgen::pictures::{Mode, Pictures};
use yolo_loadgen::schedule::{Phase, arrivals};
use yolo_operator::admin;
use yolo_operator::clock::Clock;
use yolo_operator::fleet::{PodPhase, PodView, ServiceId};
use yolo_operator::metrics::Metrics;
use yolo_operator::sampler::{ADMIN_PORT, Endpoint, Setup, Snapshots, Source, start};
use yolo_server::Server;
use yolo_server::args::{Config, EngineKind};
use yolo_testkit::figures::{self, Figure};

const PODS: u8 = 200;
/// The first reads every pod once and opens the connections; the others are measured.
const ROUNDS: u32 = 6;
/// Set in the second process: it serves the page that it reads from its standard input.
const RESPONDER: &str = "YOLO_BENCH_RESPONDER";
/// The kernel's unit of a process' CPU time, fixed for user space on Linux.
const TICKS_PER_S: f64 = 100.0;

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if std::env::var_os(RESPONDER).is_some() {
        return runtime.block_on(respond());
    }
    let page = runtime.block_on(real_page());
    let _responder = Ended(responder(&page));
    let mut all = vec![Figure::reported("sampler_page_bytes", as_f64(page.len()), "bytes")];
    all.extend(runtime.block_on(measure("pods", None)));
    match prometheus() {
        Ok((_process, url, _folder)) => all.extend(runtime.block_on(measure("prometheus", Some(&url)))),
        Err(error) => println!("SKIPPED sampler through Prometheus: {error}"),
    }
    print!("{}", figures::table(&all));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/figures");
    figures::write(&folder, "operator", "make bench-operator", &mut all).unwrap();
}

/// Runs the sampler for some rounds: seconds a round, and cores that it keeps busy at one round in 5 s.
async fn measure(source: &str, url: Option<&str>) -> Vec<Figure> {
    let metrics = Arc::new(Metrics::new());
    let (rounds_sent, mut rounds) = mpsc::channel(1);
    let (snapshots, clock) = (Snapshots::default(), Clock::start());
    let pods: Vec<PodView> = (1..=PODS).map(pod).collect();
    let service = pods[0].service.clone();
    let listed = BTreeMap::from([(service.clone(), pods.clone())]);
    let running = start(Setup {
        source: Source::new(url.map(|url| Endpoint { url: url.to_owned(), ..Endpoint::default() })).unwrap(),
        pods: Arc::new(move || listed.clone()),
        snapshots: snapshots.clone(),
        rounds: rounds_sent,
        clock,
        metrics: metrics.clone(),
    });
    let mut marks = Vec::new();
    while marks.len() <= ROUNDS as usize {
        rounds.next().await.unwrap();
        let snapshot = snapshots.of(&service).unwrap();
        // Prometheus has no page before its own first scrape.
        if marks.is_empty() && pods.iter().any(|pod| snapshot.knobs_generation(&pod.uid).is_none()) {
            continue;
        }
        marks.push((cpu_s(), Instant::now(), round_s(&metrics)));
    }
    let (snapshot, now) = (snapshots.of(&service).unwrap(), clock.now());
    let live = pods.iter().filter(|pod| snapshot.signal(&pod.uid, now).live().is_some()).count();
    assert_eq!(live, pods.len(), "every pod has a live sample");
    drop(running);
    let (first, last) = (marks[0], marks[marks.len() - 1]);
    let cores = (last.0 - first.0) / (last.1 - first.1).as_secs_f64();
    let round = (last.2 - first.2) / f64::from(ROUNDS);
    let (round_id, cpu_id) = (format!("sampler_{source}_{PODS}_round"), format!("sampler_{source}_{PODS}_cpu"));
    let round = match url {
        // 1 000 pods, five times as many, must fit into one interval of 5 s.
        None => Figure::at_most(round_id, round, "s", 1.0),
        // The time of Prometheus itself, on this machine.
        Some(_) => Figure::reported(round_id, round, "s"),
    };
    vec![round, Figure::at_most(cpu_id, cores, "cores", 0.1)]
}

/// The pods' page as a real server writes it after two seconds of load, in batches of several sizes.
async fn real_page() -> String {
    let ip = address(0);
    let config = Config {
        engine: EngineKind::Emulated,
        api_address: SocketAddr::new(ip, 8080),
        grpc_address: SocketAddr::new(ip, 8001),
        admin_address: SocketAddr::new(ip, ADMIN_PORT),
        ..Config::new("emulated.onnx")
    };
    let server = Server::start(config).await.unwrap();
    load(server.api_address()).await;
    let admin = server.admin_address();
    let page = tokio::task::spawn_blocking(move || http_get(admin)).await.unwrap();
    server.stop().await;
    page
}

async fn load(api: SocketAddr) {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/yolo-vision/fixtures/decode/baseline-420.jpg");
    std::fs::copy(fixture, folder.path().join("picture.jpg")).unwrap();
    let pictures = Pictures::read(folder.path(), 1).unwrap();
    let target = Target { address: api, host: "fork".to_owned(), path: "/predict".to_owned() };
    let client = Client::new(target, Limits::default(), &[], tokio::time::Instant::now()).unwrap();
    let phase = Phase { rate_per_second: 200.0, length: Duration::from_secs(2) };
    client.run(arrivals(&[phase], 7), (&pictures, Mode::Distinct), std::future::pending()).await;
}

fn http_get(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

fn responder(page: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(RESPONDER, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let mut ready = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    assert_eq!(ready, "ready\n");
    child
}

async fn respond() {
    let page = std::io::read_to_string(std::io::stdin()).unwrap();
    let page: &'static str = page.leak();
    for number in 1..=PODS {
        let listener = TcpListener::bind(SocketAddr::new(address(number), ADMIN_PORT)).await.unwrap();
        tokio::spawn(admin::serve(listener, Router::new().route("/metrics", get(move || async move { page }))));
    }
    println!("ready");
    std::future::pending::<()>().await;
}

fn prometheus() -> std::io::Result<(Ended, String, tempfile::TempDir)> {
    let folder = tempfile::tempdir()?;
    let mut config = "global: {scrape_interval: 5s}\nscrape_configs:\n- job_name: pods\n  static_configs:\n".to_owned();
    for pod in (1..=PODS).map(pod) {
        let target = SocketAddr::new(pod.ip.unwrap(), ADMIN_PORT);
        config += "  - targets: ['";
        config += &target.to_string();
        config += "']\n    labels: {namespace: kitchen, pod: ";
        config += &pod.name;
        config += "}\n";
    }
    std::fs::write(folder.path().join("prometheus.yml"), config)?;
    let listen = SocketAddr::new(address(0), 9090);
    let process = Command::new("prometheus")
        .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"])
        .arg(format!("--web.listen-address={listen}"))
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok((Ended(process), format!("http://{listen}"), folder))
}

/// A child that ends with this value.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An address of this bench alone, 127.100.100.0/24.
fn address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 100, 100, number))
}

fn pod(number: u8) -> PodView {
    let service = ServiceId { namespace: "kitchen".to_owned(), name: "fork".to_owned() };
    PodView {
        uid: format!("uid-{number}"),
        namespace: service.namespace.clone(),
        name: format!("fork-{number}"),
        service,
        ip: Some(address(number)),
        phase: PodPhase::Ready,
        created: jiff::Timestamp::UNIX_EPOCH,
        ready_since: Some(jiff::Timestamp::UNIX_EPOCH),
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

/// CPU seconds of this process, user and system.
fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = [11, 12].iter().map(|index| fields[*index].parse::<f64>().unwrap()).sum();
    ticks / TICKS_PER_S
}

/// Seconds of all rounds so far, as the operator's own metric has them.
fn round_s(metrics: &Metrics) -> f64 {
    let text = metrics.text();
    let line = text.lines().find_map(|line| line.strip_prefix("yolo_operator_sampler_round_duration_seconds_sum "));
    line.unwrap().parse().unwrap()
}

#[expect(clippy::cast_precision_loss, reason = "a page is far below 2^53 bytes")]
fn as_f64(bytes: usize) -> f64 {
    bytes as f64
}
