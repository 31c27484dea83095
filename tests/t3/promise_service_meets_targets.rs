//! Promise: a service whose load outgrows one pod meets its targets again by itself.
//!
//! The whole path: charts by helm into namespaces that enforce Pod Security `restricted`, the real model, real pictures,
//! load through kept-alive connections, pods added by the operator. The same steps as `make demo`, with a shorter story.

use std::sync::Arc;

use yolo_testkit::demo::drive::{self, Stage};
use yolo_testkit::demo::install;
use yolo_testkit::demo::progress::Progress;
use yolo_testkit::demo::report;
use yolo_testkit::demo::scenario::{PAGE_LAYOUT, SHORT_PHASES, ServiceScript};
use yolo_testkit::figures;

use crate::product::product;

const SERVICES: &[ServiceScript] = &[ServiceScript { manifest: "tests/t3/page-layout.yaml", ..PAGE_LAYOUT }];

#[test]
fn service_whose_load_triples_meets_its_targets_again() {
    let Some(product) = product() else { return };
    let (site, cache) = (product.site.clone(), product.cache.clone());
    install::services(&site, &product.repository, SERVICES).unwrap();

    let progress = Arc::new(Progress::start());
    let stage = Stage { site: site.clone(), progress, cache, services: SERVICES, phases: &SHORT_PHASES };
    let driven = site.block_on(async |client| drive::drive(client, &stage).await).unwrap().unwrap();

    let checks = report::checks(&driven, &SHORT_PHASES);
    let table = figures::table(&[report::figures(&driven), checks.clone()].concat());
    println!("{table}");
    assert!(checks.iter().all(|check| check.met), "{table}");
}
