//! The simulator reads pods as the operator does. The arrow of ARCHITECTURE.md forbids it to use the operator's code, so
//! that the operator's own lines are held to the simulator's constants here.

use std::path::Path;

use yolo_simulator::fleet::LATENCY_EDGES_S;
use yolo_simulator::sampling::{FORGOTTEN_S, SPAN_MAX_S, STALE_SCRAPES};
use yolo_simulator::world::SCRAPE_S;

fn source(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read_to_string(root.join(path)).unwrap()
}

#[test]
fn constants_are_the_operators() {
    let sampler = source("src/sampler.rs");
    assert!(sampler.contains(&format!("pub const INTERVAL: Duration = Duration::from_secs({SCRAPE_S});")));
    let snapshot = source("src/sampler/snapshot.rs");
    for (name, value) in [("STALE_SCRAPES", STALE_SCRAPES), ("FORGOTTEN_S", FORGOTTEN_S), ("SPAN_MAX_S", SPAN_MAX_S)] {
        assert!(snapshot.contains(&format!("const {name}: f64 = {value:.1};")), "{name} is not {value} there");
    }
}

#[test]
fn edges_are_the_servers() {
    let metrics = source("crates/yolo-server/src/metrics.rs");
    let (_, after) = metrics.split_once("const LATENCY_EDGES_S").unwrap();
    let (_, list) = after.split_once("= [").unwrap();
    let (list, _) = list.split_once("];").unwrap();
    let numbers = list.split(',').map(str::trim).filter(|text| !text.is_empty());
    let mut edges: Vec<f64> = numbers.map(|text| text.parse().unwrap()).collect();
    edges.push(10.0);
    assert!(metrics.contains("const LATENCY_LAST_EDGE_S: f64 = 10.0;"));
    assert_eq!(edges, LATENCY_EDGES_S);
}
