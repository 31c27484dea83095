//! Promise: a service whose load outgrows one pod meets its targets again by itself.
//!
//! The whole path: charts by helm into namespaces that enforce Pod Security `restricted`, the real model, real pictures,
//! load through kept-alive connections, pods added by the operator. The same steps as `make demo`, with a shorter story.

use std::path::PathBuf;
use std::sync::Arc;

use yolo_testkit::cluster::{LocalCluster, Tier};
use yolo_testkit::demo::drive::{self, Stage};
use yolo_testkit::demo::install::{self, Release};
use yolo_testkit::demo::progress::Progress;
use yolo_testkit::demo::report;
use yolo_testkit::demo::scenario::{PAGE_LAYOUT, SHORT_PHASES, ServiceScript};
use yolo_testkit::demo::site::Site;
use yolo_testkit::figures;

const SERVICES: &[ServiceScript] = &[PAGE_LAYOUT];

#[test]
fn service_whose_load_triples_meets_its_targets_again() {
    let Some(cluster) = LocalCluster::shared(Tier::T3) else { return };
    let repository = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let release = Release::local(repository.clone());
    let cache = PathBuf::from(std::env::var_os("YOLO_CACHE").expect("YOLO_CACHE is set by make"));

    let site = Arc::new(Site::local(cluster.instance().name()).unwrap());
    install::images(&site, &release).expect("make image has been run");
    install::namespaces(&site).unwrap();
    install::operator(&site, &release).unwrap();
    install::services(&site, &repository, SERVICES).unwrap();

    let progress = Arc::new(Progress::start());
    let stage = Stage { site: site.clone(), progress, cache, services: SERVICES, phases: &SHORT_PHASES };
    let driven = site.block_on(async |client| drive::drive(client, &stage).await).unwrap().unwrap();

    let checks = report::checks(&driven, &SHORT_PHASES);
    let table = figures::table(&[report::figures(&driven), checks.clone()].concat());
    println!("{table}");
    assert!(checks.iter().all(|check| check.met), "{table}");
}
