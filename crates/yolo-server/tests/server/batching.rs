//! The batcher learns what pays, obeys its knobs in place, and drops what nobody waits for.

use yolo_server::Server;
use yolo_server::args::EmulatedDevice;

use crate::support::{
    Answer, admin, call, emulated, eventually, metric, png, post, predict, start, start_gated, value_of,
};

const NO_CACHE: &str = r#""cacheBytes":0,"deadlineMillis":60000"#;

/// Sends `count` different pictures at once.
async fn burst(server: &Server, count: u8) -> Vec<Answer> {
    let pictures: Vec<_> = (0..count).map(|shade| png(8, 8, [shade, 1, 1])).collect();
    futures::future::join_all(pictures.iter().map(|picture| predict(server, picture))).await
}

pub async fn idle_timing_is_done(server: &Server, sizes: &[usize]) {
    for size in sizes {
        let series = format!(r#"yolo_batch_curve_seconds{{size="{size}",stat="mean"}}"#);
        eventually(&series, async || value_of(&admin(server, "/metrics").await.1, &series).is_some()).await;
    }
}

fn largest_batch(answers: &[Answer]) -> u64 {
    assert!(answers.iter().all(|answer| answer.status == 200));
    answers.iter().map(|answer| answer.body["batch_size"].as_u64().unwrap()).max().unwrap()
}

#[tokio::test]
async fn on_a_gpu_like_curve_it_learns_at_idle_to_batch_and_obeys_the_limit_at_once() {
    let server = start(emulated(20, 1)).await;
    server.app().offer_knobs(format!(r#"{{"generation":1,"maxBatchSize":8,"batchMax":8,{NO_CACHE}}}"#).as_bytes());
    idle_timing_is_done(&server, &[1, 2, 4, 8]).await;
    eventually("8 pays", async || (metric(&server, "yolo_batch_limit_effective").await - 8.0).abs() < 1e-9).await;
    // However late the images come, they are awaited.
    server.app().offer_knobs(br#"{"maxQueueDelayMicros":1000000}"#);
    assert_eq!(largest_batch(&burst(&server, 24).await), 8);
    server.app().offer_knobs(br#"{"generation":2,"maxBatchSize":2,"maxQueueDelayMicros":0}"#);
    assert_eq!(largest_batch(&burst(&server, 12).await), 2);
    server.app().offer_knobs(br#"{"generation":3,"maxBatchSize":1}"#);
    assert_eq!(largest_batch(&burst(&server, 4).await), 1);
    assert!((metric(&server, "yolo_knobs_generation").await - 3.0).abs() < 1e-9);
    server.stop().await;
}

#[tokio::test]
async fn a_delay_lets_a_batch_fill() {
    let server = start(emulated(10, 1)).await;
    server.app().offer_knobs(format!(r#"{{"maxBatchSize":4,"batchMax":4,{NO_CACHE}}}"#).as_bytes());
    idle_timing_is_done(&server, &[1, 2, 4]).await;
    server.app().offer_knobs(br#"{"maxQueueDelayMicros":1000000}"#);
    let answers = burst(&server, 4).await;
    assert!(answers.iter().all(|answer| answer.body["batch_size"] == 4), "the fourth image completes the batch");
    server.stop().await;
}

/// Checks how many images ran out of time in the queue, and while they ran.
async fn expired(server: &Server, counts: [f64; 2]) {
    for (place, count) in ["queue", "running"].into_iter().zip(counts) {
        let series = format!(r#"yolo_deadline_exceeded_total{{where="{place}"}}"#);
        assert!((metric(server, &series).await - count).abs() < 1e-9, "{place}");
    }
}

#[tokio::test]
async fn images_past_their_deadline_are_dropped_before_they_cost() {
    let (server, gate) = start_gated(emulated(200, 0)).await;
    let late = async |timeout_ms: u32| {
        // Shorter than a run, it is no matter of load, and never refused.
        let late = call(&server, post(&format!("/predict?timeout_ms={timeout_ms}"), png(8, 8, [2; 3]))).await;
        assert_eq!((late.status.as_u16(), late.code()), (504, "deadline_exceeded"));
    };
    let (held, first) = (gate.hold().await, png(8, 8, [1; 3]));
    let (running, ()) = tokio::join!(predict(&server, &first), async {
        gate.begun(1).await;
        late(100).await;
        drop(held);
    });
    assert_eq!(running.status, 200);
    let predictor = server.app().predictor().unwrap();
    eventually("at rest", async || predictor.batcher().load().idle_workers == 1 && predictor.batcher().queued() == 0)
        .await;
    assert!((metric(&server, "yolo_batched_images_total").await - 1.0).abs() < 1e-9, "only one image ran");
    expired(&server, [1.0, 0.0]).await;
    let mut timeout_ms = 50; // doubled where a busy machine did not begin it in time
    eventually("one runs out of time while it runs", async || {
        timeout_ms *= 2;
        let held = gate.hold().await;
        late(timeout_ms).await;
        drop(held);
        metric(&server, r#"yolo_deadline_exceeded_total{where="running"}"#).await > 0.5
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn idle_workers_share_what_waits() {
    let mut config = emulated(40, 1);
    (config.sessions, config.emulated_device) = (Some(2), EmulatedDevice::Cpu);
    let server = start(config).await;
    server.app().offer_knobs(format!(r#"{{"maxBatchSize":4,"batchMax":4,{NO_CACHE}}}"#).as_bytes());
    idle_timing_is_done(&server, &[1, 2, 4]).await;
    // Nobody pulls before four are there; then each worker takes its half.
    server.app().offer_knobs(br#"{"maxQueueDelayMicros":1000000}"#);
    eventually("both idle", async || server.app().predictor().unwrap().batcher().load().idle_workers == 2).await;
    let answers = burst(&server, 4).await;
    let sizes: Vec<_> = answers.iter().map(|answer| answer.body["batch_size"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [2; 4]);
    server.stop().await;
}
