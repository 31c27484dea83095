//! The exposition: docs/metrics.md and the server agree, both formats do, Prometheus' own checker finds nothing.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::support::{admin, emulated, eventually, png, predict, start, value_of};

/// A row of docs/metrics.md.
struct Row {
    series: String,
    kind: String,
    /// Label and its values; none if they are known later.
    labels: Vec<(String, Vec<String>)>,
}

/// The table of docs/metrics.md.
fn documented() -> Vec<Row> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
    let text = std::fs::read_to_string(file).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let row = |line: &str| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let label = |label: &str| {
            let (name, values) = label.split_once('=').unwrap_or((label, ""));
            let values = values.split(',').filter(|value| !value.is_empty()).map(ToOwned::to_owned).collect();
            (name.trim_matches('`').to_owned(), values)
        };
        Row {
            series: cells[1].trim_matches('`').to_owned(),
            kind: cells[2].to_owned(),
            labels: cells[3].split_whitespace().map(label).collect(),
        }
    };
    rows.map(row).collect()
}

/// Name of each family of a classic exposition, with its type.
fn exposed(text: &str) -> BTreeMap<String, String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

#[tokio::test]
async fn every_series_is_there_before_the_first_request_and_is_documented() {
    let server = start(emulated(0, 1)).await;
    let (_, text) = admin(&server, "/metrics").await;
    let rows = documented();
    assert!(rows.len() > 60, "{} rows", rows.len());
    let mut undocumented = exposed(&text);
    for Row { series, kind, labels } in &rows {
        let found = undocumented.remove(series);
        let known_later = !labels.is_empty() && labels.iter().all(|(_, values)| values.is_empty());
        assert!(found.as_ref() == Some(kind) || found.is_none() && known_later, "{series} is exposed as {found:?}");
        let sample = if kind == "histogram" { format!("{series}_count") } else { series.clone() };
        let samples: Vec<_> = text.lines().filter(|line| line.starts_with(&sample)).collect();
        if labels.is_empty() {
            assert!(value_of(&text, &sample).is_some(), "{sample} is missing in\n{text}");
        }
        for (label, values) in labels {
            for value in values {
                let pair = format!("{label}=\"{value}\"");
                assert!(samples.iter().any(|line| line.contains(&pair)), "{sample} without {pair} in\n{text}");
            }
        }
    }
    assert!(undocumented.is_empty(), "add a row to docs/metrics.md for {undocumented:?}");
    assert!(text.contains("yolo_model_info{name=\"pretended\",task=\"detect\""));
    server.stop().await;
}

#[tokio::test]
async fn prometheus_own_checker_finds_nothing() {
    let server = start(emulated(0, 1)).await;
    predict(&server, &png(8, 8, [1; 3])).await;
    let (_, text) = admin(&server, "/metrics").await;
    let checker =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    match checker {
        Ok(mut checker) => {
            checker.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            let output = checker.wait_with_output().unwrap();
            let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && complaints.is_empty(), "{complaints}");
        }
        Err(error) => {
            println!("SKIPPED prometheus_own_checker_finds_nothing: promtool: {error} (make packages)");
            assert!(std::env::var_os("CI").is_none(), "promtool is required in CI");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn both_formats_show_the_same_values() {
    let server = start(emulated(0, 1)).await;
    predict(&server, &png(8, 8, [1; 3])).await;
    let app = server.app();
    // Read anew at each scrape.
    let moving = |line: &str| ["memory", "cpu", "process_"].iter().any(|word| line.contains(word));
    let steady = |text: &str| {
        let samples = text.lines().filter(|line| !line.starts_with('#') && !moving(line));
        samples.map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    // A worker books its time just after the answer: the two readings may differ once.
    eventually("same values", async || {
        let (classic, open) = (app.metrics.encode(false).unwrap(), app.metrics.encode(true).unwrap());
        assert!(open.ends_with("# EOF\n") && !classic.contains("# EOF"));
        steady(&classic) == steady(&open)
    })
    .await;
    server.stop().await;
}
