//! Holds the dependency arrows of ARCHITECTURE.md: `cargo metadata` is the evidence, not a reviewer's eye.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a failed test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// The only allowed normal and build dependencies between our own packages.
const ARROWS: &[(&str, &[&str])] = &[
    ("yolo-operator", &["yolo-api", "yolo-planner"]),
    ("yolo-api", &[]),
    ("yolo-planner", &[]),
    ("yolo-vision", &[]),
    ("yolo-server", &["yolo-vision"]),
    ("yolo-loadgen", &[]),
    ("yolo-simulator", &["yolo-planner"]),
    ("yolo-testkit", &["yolo-loadgen"]),
    ("yolo-bench", &["yolo-loadgen", "yolo-server", "yolo-testkit", "yolo-vision"]),
    ("kubectl-yolo", &["yolo-api", "yolo-planner", "yolo-simulator", "yolo-loadgen"]),
];

/// What the dev-dependencies of a crate under `crates/` may add (the root's tests may use any crate).
const TEST_ARROWS: &[&str] = &["yolo-testkit", "yolo-loadgen", "yolo-simulator"];

/// What a pure crate never links: clocks, chance, I/O, Kubernetes clients, HTTP.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("yolo-planner", &["kube", "k8s-openapi", "tokio", "rand", "chrono", "jiff", "reqwest", "hyper", "axum"]),
    // `image` and its decoders: three formats are read, no other parser is compiled in.
    ("yolo-vision", &["ort", "tokio", "hyper", "axum", "kube", "rand", "image", "gif", "tiff", "exr", "ravif"]),
    ("yolo-api", &["tokio", "kube-client", "kube-runtime", "hyper", "axum"]),
    ("yolo-server", &["kube", "k8s-openapi", "kube-client"]),
];

struct Package {
    name: String,
    normal: BTreeSet<String>,
    dev: BTreeSet<String>,
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let packages = workspace();
    let ours: BTreeSet<&str> = packages.iter().map(|p| p.name.as_str()).collect();
    let arrows: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    for package in &packages {
        let allowed = arrows.get(package.name.as_str()).unwrap_or_else(|| {
            panic!("{}: a new crate needs a line in ARCHITECTURE.md and in ARROWS of this test", package.name)
        });
        for dependency in package.normal.iter().filter(|d| ours.contains(d.as_str())) {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{} -> {dependency} is not an arrow of ARCHITECTURE.md",
                package.name
            );
        }
        if package.name == "yolo-operator" {
            continue;
        }
        for dependency in package.dev.iter().filter(|d| ours.contains(d.as_str())) {
            assert!(
                allowed.contains(&dependency.as_str()) || TEST_ARROWS.contains(&dependency.as_str()),
                "{} may not use {dependency} in its tests",
                package.name
            );
        }
    }
}

#[test]
fn pure_crates_link_no_clock_no_client_no_runtime() {
    for (package, forbidden) in FORBIDDEN {
        let tree = cargo(&["tree", "--offline", "-p", package, "-e", "normal", "--prefix", "none", "--format", "{p}"]);
        let linked: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        assert!(linked.contains(package), "cargo tree did not list {package} itself:\n{tree}");
        for name in *forbidden {
            assert!(!linked.contains(name), "{package} links {name}, directly or through another crate");
        }
    }
}

fn workspace() -> Vec<Package> {
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--format-version", "1", "--no-deps", "--offline"])).unwrap();
    let packages: Vec<Package> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let (mut normal, mut dev) = (BTreeSet::new(), BTreeSet::new());
            for dependency in package["dependencies"].as_array().unwrap() {
                let kind = if dependency["kind"] == "dev" { &mut dev } else { &mut normal };
                kind.insert(dependency["name"].as_str().unwrap().to_owned());
            }
            Package { name: package["name"].as_str().unwrap().to_owned(), normal, dev }
        })
        .collect();
    assert!(packages.len() > 1, "cargo metadata listed no workspace");
    packages
}

fn cargo(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(args).output().unwrap();
    assert!(output.status.success(), "cargo {args:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
