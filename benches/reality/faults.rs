//! Diagnosis on the real server (control.md §9, §11 G9): faults made with real means, all at the same time, each on a
//! service of its own; what counts is the first bottleneck that the planner names.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;
use yolo_loadgen::client::{Client, Limits, Target};
use yolo_loadgen::pictures::{Mode, Pictures};
use yolo_loadgen::schedule::{Phase, arrivals};
use yolo_operator::build::KnobsDocument;
use yolo_planner::explain::{Bottleneck, BottleneckKind};
use yolo_planner::policy::{Accelerator, Knob, LatencyTarget, Mode as KnobMode};
use yolo_planner::units::{BatchSize, Bytes, Ratio, Replicas, Seconds};
use yolo_planner::{Knobs, Policy};
use yolo_testkit::figures::Figure;

use crate::pod::{Launch, Pod};
use crate::watch::Watch;

/// Three whole windows of a minute, the one under way, and what a fault needs before.
const LENGTH: Duration = Duration::from_secs(270);
/// Share of the faults whose name must come first: 8 of 10.
const NAMED_MIN: f64 = 0.8;
/// One whole window of a healthy device, before it is slowed.
const HEALTHY: Duration = Duration::from_secs(75);
/// Between two restarts of a server that does not stay.
const RESTART: Duration = Duration::from_secs(15);
/// How long a slow client's upload stops half-way.
const UPLOAD: Duration = Duration::from_millis(150);

/// What is done to a service beside its load.
enum Deed {
    Nothing,
    Restarts,
    /// Its pod is replaced by one of the same class on a device that is slower.
    Slower(Launch),
    /// Its memory limit is set so that this share is used.
    MemoryUsed(f64),
}

/// Who sends.
#[derive(Clone, Copy)]
enum Clients {
    /// Poisson arrivals of these rates at the pods in turn, images/s.
    Open(&'static [f64]),
    /// As many callers, each with one request in flight.
    Closed(u64),
    /// Poisson arrivals, images/s, each of which takes [`UPLOAD`] to arrive.
    Slow(f64),
}

struct Fault {
    name: &'static str,
    expected: &'static [BottleneckKind],
    policy: Policy,
    knobs: Knobs,
    launch: Launch,
    clients: Clients,
    pictures: (Arc<Pictures>, Mode),
    deed: Deed,
}

/// What came of one fault.
struct Verdict {
    name: &'static str,
    expected: &'static [BottleneckKind],
    named: Option<Bottleneck>,
    after: Duration,
}

/// Makes every fault and prints what was named first for each.
pub async fn diagnose(pages: Arc<Pictures>, thumbnails: Arc<Pictures>) -> anyhow::Result<Vec<Figure>> {
    let faults = faults(&pages, &thumbnails);
    let verdicts = futures::future::try_join_all((31..).zip(faults).map(|(index, fault)| run(index, fault))).await?;
    println!("{:<22} {:<18} {:<18} {:>6}  evidence", "fault", "expected", "named first", "after");
    let mut right = 0_u32;
    for verdict in &verdicts {
        let kind = verdict.named.as_ref().map(|named| named.kind);
        right += u32::from(kind.is_some_and(|kind| verdict.expected.contains(&kind)));
        let evidence: Vec<String> = verdict
            .named
            .iter()
            .flat_map(|named| &named.evidence)
            .map(|evidence| format!("{} {:.3} (limit {:.3})", evidence.name, evidence.value, evidence.limit))
            .collect();
        let named = kind.map_or_else(|| "nothing".to_owned(), |kind| format!("{kind:?}"));
        let expected = format!("{:?}", verdict.expected);
        println!(
            "{:<22} {expected:<18} {named:<18} {:>4} s  {}",
            verdict.name,
            verdict.after.as_secs(),
            evidence.join("; ")
        );
    }
    let count = u32::try_from(verdicts.len())?;
    let share = f64::from(right) / f64::from(count.max(1));
    let missed: Vec<&str> = verdicts
        .iter()
        .filter(|verdict| !verdict.named.as_ref().is_some_and(|named| verdict.expected.contains(&named.kind)))
        .map(|verdict| verdict.name)
        .collect();
    let note = format!("{right} of {count}; not named first: {}", missed.join(", "));
    Ok(vec![Figure::at_least("real_faults_named_first", share, "ratio", NAMED_MIN).noted(note)])
}

async fn run(index: u8, fault: Fault) -> anyhow::Result<Verdict> {
    let Fault { name, expected, mut policy, knobs, launch, clients, pictures, deed } = fault;
    let document = KnobsDocument::new(&policy, &knobs).numbered(1);
    let count = if let Clients::Open(rates) = clients { rates.len() } else { 1 };
    let mut pods = Vec::new();
    for number in 1..=u8::try_from(count)? {
        pods.push(Pod::start((index, name), number, (&launch, &document)).await?);
    }
    if let (Deed::MemoryUsed(share), Some(pod)) = (&deed, pods.first()) {
        policy.memory_limit = Bytes::new(pod.limit_memory(*share)?);
    }
    let views = |pods: &[Pod]| pods.iter().map(|pod| pod.view.clone()).collect::<Vec<_>>();
    let mut watch = Watch::start(policy, knobs, views(&pods))?;
    // The servers time their batches before anyone comes, as those of a new service do.
    watch.round().await?;
    let mut loads = load(&pods, clients, &pictures)?;
    let started = Instant::now();
    let begins = if matches!(deed, Deed::Slower(_)) { started + HEALTHY } else { started };
    let mut due = match &deed {
        Deed::Restarts => started + RESTART,
        Deed::Slower(_) => begins,
        Deed::Nothing | Deed::MemoryUsed(_) => started + 2 * LENGTH,
    };
    let mut named = None;
    while named.is_none() && started.elapsed() < LENGTH {
        tokio::select! {
            round = watch.round() => {
                let found = round?.decision.explanation.bottlenecks.into_iter().next();
                // A first look has nothing to compare with; that is no bottleneck.
                let told = |kind| !matches!(kind, BottleneckKind::None | BottleneckKind::NoMetrics);
                named = found.filter(|found| told(found.kind) && Instant::now() >= begins);
            }
            () = sleep_until(due) => match &deed {
                Deed::Slower(slower) => {
                    due += 2 * LENGTH;
                    pods.clear();
                    pods.push(Pod::start((index, name), 2, (slower, &document)).await?);
                    watch.replace(views(&pods));
                    loads = load(&pods, clients, &pictures)?;
                }
                Deed::Restarts | Deed::Nothing | Deed::MemoryUsed(_) => {
                    due += RESTART;
                    for pod in &mut pods {
                        pod.restart().await?;
                    }
                    watch.replace(views(&pods));
                }
            },
        }
    }
    drop(loads);
    Ok(Verdict { name, expected, named, after: started.elapsed() })
}

/// Starts the clients of `pods`; they end with what is returned.
fn load(
    pods: &[Pod],
    clients: Clients,
    (pictures, mode): &(Arc<Pictures>, Mode),
) -> anyhow::Result<Vec<AbortOnDropHandle<()>>> {
    let mut tasks = Vec::new();
    let schedule = |rate_per_second, seed| arrivals(&[Phase { rate_per_second, length: 2 * LENGTH }], seed);
    for (number, pod) in pods.iter().enumerate() {
        let (pictures, mode, address) = (pictures.clone(), *mode, pod.api());
        let target = Target { address, host: address.to_string(), path: "/predict".to_owned() };
        let client = Client::new(target, Limits::default(), &[], Instant::now())?;
        let task = match clients {
            Clients::Open(rates) => {
                let arrivals = schedule(rates.get(number).copied().unwrap_or(0.0), number as u64);
                tokio::spawn(async move {
                    client.run(arrivals, (&pictures, mode), std::future::pending()).await;
                })
            }
            Clients::Closed(callers) => tokio::spawn(async move {
                client.run_closed((callers, 2 * LENGTH), (&pictures, mode)).await;
            }),
            Clients::Slow(rate) => {
                let arrivals = schedule(rate, 0);
                tokio::spawn(async move {
                    let started = Instant::now();
                    for arrival in arrivals {
                        sleep_until(started + arrival.at).await;
                        tokio::spawn(upload_slowly(address, pictures.body(mode, arrival.index)));
                    }
                })
            }
        };
        tasks.push(AbortOnDropHandle::new(task));
    }
    Ok(tasks)
}

/// A request whose second half comes [`UPLOAD`] after its first.
async fn upload_slowly(address: std::net::SocketAddr, picture: hyper::body::Bytes) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let head = format!(
        "POST /predict HTTP/1.1\r\nHost: {address}\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        picture.len()
    );
    let (first, second) = picture.split_at(picture.len() / 2);
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(first).await?;
    tokio::time::sleep(UPLOAD).await;
    stream.write_all(second).await?;
    stream.read_to_end(&mut Vec::new()).await?;
    Ok(())
}

/// A service of one pod with the emulated `device` and usual targets, whose batch and cache stay as they are.
fn service(accelerator: Accelerator, batch: u32) -> (Policy, Knobs) {
    let one = Replicas::new(1);
    let mut policy = Policy { replicas: Knob::auto(one, one), accelerator, ..Policy::default() };
    policy.batch.mode = KnobMode::Off;
    policy.cache = Knob { mode: KnobMode::Off, min: Bytes::default(), max: Bytes::default() };
    let mut knobs = Knobs::initial(&policy);
    knobs.max_batch_size = BatchSize::try_from(batch).unwrap_or_default();
    (policy, knobs)
}

/// Latency targets in milliseconds, both at p95.
fn within(policy: &mut Policy, inference_ms: u32, api_ms: u32) {
    let target = |millis| Some(LatencyTarget { threshold: Seconds::millis(millis), quantile: Ratio::percent(95) });
    (policy.targets.inference, policy.targets.api) = (target(inference_ms), target(api_ms));
}

fn faults(pages: &Arc<Pictures>, thumbnails: &Arc<Pictures>) -> Vec<Fault> {
    let one = "--sessions=1";
    let fault = |name, expected, clients, launch| {
        let (policy, knobs) = service(Accelerator::Gpu, 16);
        let pictures = (thumbnails.clone(), Mode::Distinct);
        Fault { name, expected, policy, knobs, launch, clients, pictures, deed: Deed::Nothing }
    };
    let healthy = || Launch::emulated(20_000, 2_000, &[one]);

    // Pictures for an input of 640 pixels are decoded whole: some 10 ms of CPU time each.
    let curve = Launch::emulated(10_000, 5_000, &[one, "--emulated-device=cpu"]);
    let throttled = Launch { cores: Some(0.2), side_px: 640, ..curve };
    let mut throttled = fault("CPU throttled", &[BottleneckKind::CpuPreprocess], Clients::Closed(4), throttled);
    (throttled.policy, throttled.knobs) = service(Accelerator::Cpu, 1);
    throttled.pictures.0 = pages.clone();

    let slow_start = Launch::emulated(40_000, 4_000, &[one]);
    let mut single = fault("batch forced to 1", &[BottleneckKind::SmallBatches], Clients::Open(&[19.0]), slow_start);
    (single.policy, single.knobs) = service(Accelerator::Gpu, 1);
    within(&mut single.policy, 200, 500);

    let repeating = Clients::Open(&[15.0]);
    let mut uncached = fault("cache off", &[BottleneckKind::CacheTooSmall], repeating, healthy());
    uncached.pictures.1 = Mode::Repeated;
    let mut small = fault("small cache", &[BottleneckKind::CacheTooSmall], repeating, healthy());
    small.pictures.1 = Mode::Repeated;
    let bytes = Bytes::new(4_096);
    small.policy.cache = Knob { mode: KnobMode::Off, min: bytes, max: bytes };
    small.knobs.cache_bytes = bytes;

    let quick = Launch { side_px: 640, ..Launch::emulated(2_000, 500, &[one, "--cpu-request=500"]) };
    let decoding = &[BottleneckKind::CpuPreprocess, BottleneckKind::GpuStarved];
    let mut decode = fault("decode-bound pictures", decoding, Clients::Closed(6), quick);
    decode.pictures.0 = pages.clone();

    let upload = fault("slow uploads", &[BottleneckKind::NetworkUpload], Clients::Slow(8.0), healthy());

    let mut memory = fault("memory limit", &[BottleneckKind::MemoryPressure], Clients::Open(&[10.0]), healthy());
    memory.deed = Deed::MemoryUsed(0.92);

    let heavy = Launch::emulated(80_000, 20_000, &[one]);
    let mut few = fault("few replicas", &[BottleneckKind::CapacityShort], Clients::Open(&[45.0]), heavy);
    (few.policy, few.knobs) = service(Accelerator::Gpu, 8);
    within(&mut few.policy, 300, 700);

    let mut reload = fault("restart loop", &[BottleneckKind::ModelReload], Clients::Open(&[10.0]), healthy());
    reload.deed = Deed::Restarts;

    let mut uneven = fault("uneven routing", &[BottleneckKind::Imbalance], Clients::Open(&[36.0, 4.0]), healthy());
    let two = Replicas::new(2);
    // The largest batch is the best one then: one fault at a time.
    within(&mut uneven.policy, 200, 500);
    uneven.policy.replicas = Knob::auto(two, two);
    uneven.knobs.replicas = two;

    let mut slowed = fault("device slowed", &[BottleneckKind::DeviceSlowed], Clients::Open(&[12.0]), healthy());
    slowed.deed = Deed::Slower(Launch::emulated(32_000, 3_200, &[one]));

    vec![throttled, single, uncached, small, decode, upload, memory, few, reload, uneven, slowed]
}
