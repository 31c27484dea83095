//! The exposition: both formats, all series from 0, clean for Prometheus' own checker.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::support::{admin, emulated, eventually, png, predict, start, value_of};

/// A name of each group that the operator reads.
const FROM_ZERO: [&str; 25] = [
    "process_start_time_seconds",
    r#"yolo_http_requests_total{endpoint="predict",code="429"}"#,
    r#"yolo_http_request_duration_seconds_count{outcome="shed"}"#,
    r#"yolo_http_request_duration_seconds_bucket{le="0.115",outcome="ok"}"#,
    "yolo_inference_duration_seconds_count",
    r#"yolo_inference_duration_seconds_bucket{le="0.1"}"#,
    r#"yolo_stage_duration_seconds_count{stage="decode"}"#,
    r#"yolo_images_total{outcome="coalesced",source="sync"}"#,
    "yolo_arrivals_total",
    "yolo_arrival_bin_images_squared_total",
    "yolo_batched_images_total",
    "yolo_worker_busy_seconds_total",
    "yolo_batch_limit",
    "yolo_knobs_generation",
    "yolo_knobs_rejected_total",
    "yolo_queue_depth",
    r#"yolo_rejected_total{reason="predicted_late"}"#,
    r#"yolo_deadline_exceeded_total{where="queue"}"#,
    r#"yolo_cancelled_total{where="running"}"#,
    r#"yolo_cache_requests_total{result="hit"}"#,
    r#"yolo_cache_ghost_hits_total{size="1073741824"}"#,
    "yolo_cache_ghost_expected_total",
    "yolo_memory_working_set_bytes",
    "yolo_cpu_usage_seconds_total",
    "yolo_ready",
];

#[tokio::test]
async fn every_series_is_there_before_the_first_request() {
    let server = start(emulated(0, 1)).await;
    let (_, text) = admin(&server, "/metrics").await;
    for series in FROM_ZERO {
        assert!(value_of(&text, series).is_some(), "{series} is missing in\n{text}");
    }
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
            println!("SKIPPED prometheus_own_checker_finds_nothing: promtool: {error}");
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
    // A worker books its time just after the answer: the two readings may differ once.
    let steady = || FROM_ZERO.into_iter().filter(|series| !series.contains("memory") && !series.contains("cpu"));
    eventually("same values", async || {
        let (classic, open) = (app.metrics.encode(false).unwrap(), app.metrics.encode(true).unwrap());
        assert!(open.ends_with("# EOF\n") && !classic.contains("# EOF"));
        steady().all(|series| value_of(&classic, series) == value_of(&open, series))
    })
    .await;
    server.stop().await;
}
