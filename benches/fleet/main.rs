//! What a fleet of services costs (issue 6): how fast their objects are applied beside a bare client, the operator's memory,
//! what it reads and writes at rest, a restart, and what a poison object does to the others.
//!
//! A real API server and etcd without controllers (T1), the real operator program in a process of its own. Pods are objects
//! that this bench makes; behind their addresses a page of metrics that a real server wrote. The argument is the number of
//! services (1 000). Prints a table, adds to `operator.json` in the folder that `YOLO_FIGURES` names.

mod audit;
mod bare;
mod operator;
mod pods;
mod services;

use std::time::{Duration, Instant};

use anyhow::Context;
use kube::Client;
use yolo_testkit::cluster::{LocalCluster, Tier};
use yolo_testkit::figures::{self, Figure};

use operator::{Operator, Program};
use services::Fleet;

const CLUSTER: &str = "bench-fleet";
const SERVICES: u32 = 1000;
/// More pods would ask more of this machine's sampler and API server than of the operator's bookkeeping.
const PODS_MAX: u32 = 1000;
/// Kinds of objects that every service has.
const KINDS: [&str; 5] = ["ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service"];
/// Over which reads and writes at rest are counted.
const COUNTED: Duration = Duration::from_mins(1);
/// Changes of single services, in turn, whose way to the Deployment is timed.
const PROBES: u32 = 60;

fn main() -> anyhow::Result<()> {
    let count = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let count = count.map_or(Ok(SERVICES), |count| count.parse()).context("the argument is a number of services")?;
    let program = std::env::var_os("YOLO_OPERATOR_PROGRAM").context("YOLO_OPERATOR_PROGRAM is set by make")?;
    // What a killed run left.
    LocalCluster::down(CLUSTER)?;
    let cluster = LocalCluster::up(CLUSTER, Tier::T1)?;
    let outcome = cluster.block_on(async |client| measure(&cluster, &client, program.into(), count).await);
    cluster.stop()?;
    let mut all = outcome??;
    print!("{}", figures::table(&all));
    figures::add("operator", "make bench-operator", &mut all)
}

async fn measure(
    cluster: &LocalCluster,
    client: &Client,
    program: std::path::PathBuf,
    count: u32,
) -> anyhow::Result<Vec<Figure>> {
    let program = Program::new(cluster, program)?;
    services::install_crd(client).await?;
    let sample = sample(client, &program).await?;
    let fleet = Fleet::create(client, "fleet", count).await?;
    let mut all = Vec::new();

    let half = count.div_ceil(2);
    let before = bare::best(client, "bare-before", &sample, half).await?;
    let started = Instant::now();
    let operator = program.start().await?;
    let objects = count * u32::try_from(KINDS.len())?;
    operator.until("every object applied", |page| page.applied(&KINDS) >= f64::from(objects)).await?;
    let applied_s = started.elapsed().as_secs_f64();
    let after = bare::best(client, "bare-after", &sample, half).await?;
    fleet.has_everything(client).await?;
    let (rate, bare) = (f64::from(objects) / applied_s, f64::midpoint(before, after));
    all.push(Figure::at_least(format!("fleet_{count}_applied_rate_of_bare"), rate / bare, "ratio", 0.8));
    all.push(Figure::reported(format!("fleet_{count}_applied"), applied_s, "s"));
    all.push(Figure::reported(format!("fleet_{count}_bare_client"), bare, "/s").over(&[before, after]));

    let pods = pods::start(client, &fleet, count.min(PODS_MAX)).await?;
    operator.until("every pod sampled", |page| page.sum("yolo_operator_sampler_pods", "Live") >= pods.count()).await?;
    all.extend(at_rest(cluster, &operator, count).await?);

    operator.stop().await?;
    fleet.change_all(client).await?;
    let started = Instant::now();
    let operator = program.start().await?;
    operator.until("every Deployment changed", |page| page.applied(&["Deployment"]) >= f64::from(count)).await?;
    let restart_s = started.elapsed().as_secs_f64();
    all.push(Figure::at_most(format!("fleet_{count}_restart"), restart_s, "s", 60.0));

    let healthy = fleet.probe(client, PROBES).await?;
    fleet.poison(client).await?;
    operator
        .until("a failure of the poison object", |page| page.sum("yolo_operator_reconciles_total", "apply") > 0.0)
        .await?;
    let beside = fleet.probe(client, PROBES).await?;
    all.push(Figure::at_most(format!("fleet_{count}_beside_poison_p95"), beside.p95_s / healthy.p95_s, "ratio", 1.2));
    all.push(Figure::reported(format!("fleet_{count}_change_applied_p95"), healthy.p95_s, "s").over(&healthy.all_s));
    operator.stop().await?;
    Ok(all)
}

/// The objects that the operator makes of one service, which the bare client then makes as many times.
async fn sample(client: &Client, program: &Program) -> anyhow::Result<bare::Sample> {
    let fleet = Fleet::create(client, "sample", 1).await?;
    let operator = program.start().await?;
    operator.until("the sample's objects", |page| page.applied(&KINDS) >= 5.0).await?;
    fleet.has_everything(client).await?;
    let sample = bare::Sample::read(client, "sample", &Fleet::name(0)).await?;
    operator.stop().await?;
    Ok(sample)
}

async fn at_rest(cluster: &LocalCluster, operator: &Operator, count: u32) -> anyhow::Result<Vec<Figure>> {
    audit::quiet(cluster).await?;
    let (from, cpu_s) = (audit::end(cluster)?, operator.cpu_s()?);
    // Not a wait for something to happen: counted is what happens in this time.
    tokio::time::sleep(COUNTED).await;
    let seen = audit::since(cluster, from)?;
    let cores = (operator.cpu_s()? - cpu_s) / COUNTED.as_secs_f64();
    let services = f64::from(count);
    let name = |figure: &str| format!("fleet_{count}_{figure}");
    Ok(vec![
        Figure::at_most(name("writes_at_rest"), seen.writes, "writes", 0.0).noted(seen.written),
        Figure::reported(name("status_writes_at_rest"), seen.status_writes / services, "/service"),
        Figure::at_most(name("reads_at_rest"), seen.reads / services, "/service", 1.0),
        Figure::at_most(name("memory"), operator.resident_mb()?, "MB", 0.024_f64.mul_add(services, 60.0)),
        Figure::reported(name("cpu_at_rest"), cores, "cores"),
    ])
}
