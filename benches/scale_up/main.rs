//! One real scale-up on the local cluster beside its simulation (control.md §10, "Calibrate": a real start for L, a real
//! step held out).
//!
//! `real` deploys a service on the emulated engine, offers it a step up and down, and watches. `simulated` replays the
//! same arrivals in `yolo-simulator` under the planner and the policy of the same manifest. What no manifest says is
//! measured: the start-up in the run itself, a request's cost besides engine and queue before the step. The operator's
//! rounds begin at any moment, which the seed of a simulation shifts by whole seconds: the time to the order is compared
//! with all of them, everything after it with those whose rounds fall into the same second as the real ones. Figures are
//! medians. Wants root, `make image`, and a machine that does nothing else.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "seconds of a run and counts of pods, not negative and far below 2^52"
)]

mod real;
mod simulated;
mod watch;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use yolo_simulator::course::{self, Comparison, Course};
use yolo_simulator::world::SCRAPE_S;
use yolo_testkit::cluster::LocalCluster;
use yolo_testkit::demo::drive::Stage;
use yolo_testkit::demo::install::{self, Release};
use yolo_testkit::demo::progress::Progress;
use yolo_testkit::demo::scenario::ServiceScript;
use yolo_testkit::demo::site::Site;
use yolo_testkit::figures::{self, Figure};

use real::Real;

/// Name of the bench's cluster.
const CLUSTER: &str = "scale-up";

/// The service. Its script's `calm_rate_max` is the rate before and after the step.
const SERVICES: &[ServiceScript] = &[ServiceScript {
    name: "scale-up",
    title: "scale-up (emulated engine)",
    manifest: "benches/scale_up/service.yaml",
    pictures: "pages/thumbnails",
    // Half of what one pod carries at its best batch, 44 images/s.
    calm_rate_max: 24.0,
}];
/// The step: more than three pods' best rate.
const STEP: f64 = 6.0;
/// Before it: the planner's first minute is a cold one.
const CALM: Duration = Duration::from_secs(90);
/// The step lasts several start-ups and a whole window of the targets after them.
const HIGH: Duration = Duration::from_secs(150);
/// After it: the hold of 30 s, then a pod less each 30 s.
const LOW_AGAIN: Duration = Duration::from_secs(150);

/// Five runs for each second that a round may begin with.
const SEEDS: RangeInclusive<u64> = 1..=5 * SCRAPE_S as u64;

/// The planner acts once a round on samples up to a round old.
const ORDER_APART_S_MAX: f64 = 2.0 * SCRAPE_S as f64;
/// Rounding to whole pods may fall to either side.
const REPLICAS_APART_MAX: f64 = 1.0;
/// Kept-alive connections lead to new pods only as they are recycled, every 15 s; the simulator balances requests.
const RECOVERY_APART_S_MAX: f64 = 15.0;
/// What an autoscaler costs, simulated, is worth as much as this.
const POD_SECONDS_ERROR_MAX: f64 = 0.10;
/// As for the model beside the real server (control.md §11, G6).
const P95_ERROR_MAX: f64 = 0.10;

fn main() -> anyhow::Result<()> {
    figures::stamp();
    let repository = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let outcome = run(&repository);
    LocalCluster::down(CLUSTER)?;
    let mut figures = outcome?;
    print!("{}", figures::table(&figures));
    figures::add("scale-up", "make bench-scale-up", &mut figures)
}

fn run(repository: &Path) -> anyhow::Result<Vec<Figure>> {
    let cache = std::env::var_os("YOLO_CACHE").map(PathBuf::from).context("YOLO_CACHE is set by make")?;
    let manifest = simulated::Manifest::read(&repository.join("benches/scale_up/service.yaml"))?;
    let progress = Arc::new(Progress::start());
    let release = Release::local(repository.to_owned());
    let site = Arc::new(progress.step("cluster", || Site::local(CLUSTER))?);
    progress.step("images", || install::images(&site, &release))?;
    progress.step("namespaces", || install::namespaces(&site))?;
    progress.step("operator, by helm", || install::operator(&site, &release))?;
    progress.step("service applied and ready", || install::services(&site, repository, SERVICES))?;
    let stage = Stage { site: site.clone(), progress: progress.clone(), cache, services: SERVICES, phases: &[] };
    let real = site.block_on(async |client| real::drive(client, &stage).await)??;
    let simulated = progress.step("simulation", || {
        let world = manifest.world(&real)?;
        Ok(SEEDS.map(|seed| (seed, manifest.run(&world, &real, seed))).collect::<Vec<_>>())
    })?;
    let (order, alike) = rounds(&real, &simulated)?;
    draw(repository, (&real, &alike), manifest.slo_s())?;
    Ok([vec![order], compare(&real, &alike, manifest.slo_s())].concat())
}

/// The time to the order beside that of all runs, and the runs whose rounds begin with the second of the real ones.
fn rounds(real: &Real, simulated: &[(u64, Course)]) -> anyhow::Result<(Figure, Vec<Course>)> {
    let step_s = real.high.0 as f64;
    let order_s = real.course.order_s(step_s).context("no order after the step")?;
    let expected = simulated.iter().map(|(_, course)| course.order_s(step_s).unwrap_or(f64::INFINITY)).collect();
    let order = Pair { real: order_s, simulated: expected, unit: "s" };
    // The operator's answer to a round is seen a fraction of a second after it.
    let second = (step_s + order_s) as u64 % u64::from(SCRAPE_S);
    let alike = simulated.iter().filter(|(seed, _)| seed % u64::from(SCRAPE_S) == second);
    let alike = alike.map(|(_, course)| course.clone()).collect();
    Ok((order.apart("time_to_order_apart", ORDER_APART_S_MAX), alike))
}

/// Draws the run beside the simulated one that paid for the median of pod-seconds.
fn draw(repository: &Path, (real, simulated): (&Real, &[Course]), slo_s: f64) -> anyhow::Result<()> {
    let cost = |course: &&Course| course.pod_seconds((0, real.seconds));
    let mut typical: Vec<&Course> = simulated.iter().collect();
    typical.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
    let simulated = typical.get(typical.len() / 2).context("no seed")?;
    let folder = repository.join("target/control");
    std::fs::create_dir_all(&folder).with_context(|| format!("failed to create {}", folder.display()))?;
    let title = "a scale-up on the local cluster and its simulation (emulated engine, 20 ms + 20 ms an image)";
    let arrivals = real.trace().rates;
    Comparison { title: title.to_owned(), arrivals: &arrivals, real: &real.course, simulated, slo_s }
        .draw(&folder.join("scale-up.svg"))
}

/// The real value of a figure beside the simulated ones.
struct Pair {
    real: f64,
    simulated: Vec<f64>,
    unit: &'static str,
}

impl Pair {
    fn of(real: &Course, simulated: &[Course], unit: &'static str, value: impl Fn(&Course) -> f64) -> Self {
        Self { real: value(real), simulated: simulated.iter().map(&value).collect(), unit }
    }

    fn median(&self) -> f64 {
        course::median(self.simulated.clone()).unwrap_or(f64::NAN)
    }

    fn note(&self) -> String {
        let least = self.simulated.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.simulated.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let Self { real, unit, .. } = self;
        format!("real {real:.1} {unit}, simulated {:.1} ({least:.1} to {most:.1})", self.median())
    }

    /// The distance of the two.
    fn apart(&self, id: &str, limit: f64) -> Figure {
        Figure::at_most(id, told((self.real - self.median()).abs()), self.unit, limit).noted(self.note())
    }

    /// The simulated one's error, as a share of the real one.
    fn error(&self, id: &str, limit: f64) -> Figure {
        Figure::at_most(id, told((self.median() / self.real - 1.0).abs()), "ratio", limit).noted(self.note())
    }
}

/// What never happened is a miss, not an infinity in the file.
fn told(value: f64) -> f64 {
    if value.is_finite() { value } else { f64::MAX }
}

fn compare(real: &Real, simulated: &[Course], slo_s: f64) -> Vec<Figure> {
    let (course, high, whole) = (&real.course, real.high, (real.high.0, real.seconds));
    let pair = |unit, value: &dyn Fn(&Course) -> f64| Pair::of(course, simulated, unit, value);
    let at_the_end = |second: usize| move |run: &Course| run.pods.get(second - 1).copied().map_or(f64::NAN, f64::from);
    let recovery = pair("s", &|run| run.recovery_s(high, slo_s));
    let recovered = high.0 + recovery.real.max(recovery.median()).ceil() as usize;
    let p95 = pair("ms", &|run| 1e3 * run.p95_s((recovered, high.1)).unwrap_or(f64::NAN));
    let missed = pair("%", &|run| 1e2 * run.missed_share(high, slo_s));
    let batch = pair("images", &|run| run.batch.get(high.1 - 1).copied().map_or(f64::NAN, f64::from));
    let level = course::apart(&course.pods, &course::median_pods(simulated), whole, ORDER_APART_S_MAX as usize);
    vec![
        pair("pods", &at_the_end(high.1)).apart("replicas_at_the_end_of_the_step_apart", REPLICAS_APART_MAX),
        pair("pods", &at_the_end(real.seconds)).apart("replicas_at_the_end_apart", REPLICAS_APART_MAX),
        Figure::at_most("replicas_over_time_apart", level.into(), "pods", REPLICAS_APART_MAX)
            .noted(format!("beyond what the simulation holds within {ORDER_APART_S_MAX:.0} s")),
        recovery.apart("recovery_apart", RECOVERY_APART_S_MAX),
        pair("pod·s", &|run| run.pod_seconds(whole)).error("pod_seconds_error", POD_SECONDS_ERROR_MAX),
        p95.error("p95_after_recovery_error", P95_ERROR_MAX),
        Figure::reported("late_or_refused_during_the_step", missed.real, "%").noted(missed.note()),
        Figure::reported("batch_at_the_end_of_the_step", batch.real, "images").noted(batch.note()),
        Figure::reported("start_up", real.startup_s(), "s").over(&real.startups_s).noted("from the order to readiness"),
        Figure::reported("overhead_a_request", 1e3 * real.overhead_s, "ms")
            .noted("besides engine and queue, before the step"),
        Figure::reported("cpu_an_image", 1e3 * real.cpu_s, "ms").noted("before the step"),
    ]
}
