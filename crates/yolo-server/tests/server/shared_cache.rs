//! Results in a real Redis: found by one server, answered by another; misses when Redis is slow, gone or wrong.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use yolo_server::{Config, Server};

use crate::redis::Redis;
use crate::support::{emulated, eventually, metric, png, predict, start};
use crate::tasks::{ended, submit};

fn config(redis: &Redis) -> Config {
    redis.shared_by(emulated(0, 1))
}

async fn cache_of(server: &Server, picture: &[u8]) -> String {
    let answer = predict(server, picture).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer.body["cache"].as_str().unwrap().to_owned()
}

/// Whether `server` stores its answer to this picture: what takes the store longer than it may is not sent again.
async fn stores(redis: &Redis, server: &Server, picture: &[u8]) -> bool {
    let before = redis.answers().await;
    assert_eq!(cache_of(server, picture).await, "miss");
    let stored = eventually("it is stored", async || redis.answers().await > before);
    tokio::time::timeout(Duration::from_secs(1), stored).await.is_ok()
}

#[tokio::test]
async fn an_answer_that_one_server_found_is_not_run_by_another() {
    let Some(redis) = Redis::start("an_answer_that_one_server_found_is_not_run_by_another").await else { return };
    let (one, other) = (start(config(&redis)).await, start(config(&redis)).await);
    let (mut shade, mut missed) = (0, 0.0);
    eventually("an answer is shared", async || {
        shade += 1;
        let picture = png(40, 30, [shade; 3]);
        if !stores(&redis, &one, &picture).await {
            return false;
        }
        let second = predict(&other, &picture).await;
        if second.body["cache"] == "miss" {
            missed += 1.0; // the store took too long
            return false;
        }
        let first = predict(&one, &picture).await;
        assert_eq!((first.body["cache"].as_str(), second.body["cache"].as_str()), (Some("hit"), Some("shared_hit")));
        assert_eq!(first.body["detections"], second.body["detections"]);
        assert_eq!(first.body["image"], second.body["image"]);
        assert_eq!(cache_of(&other, &picture).await, "hit", "and is remembered there");
        true
    })
    .await;
    for (series, expected) in [
        (r#"yolo_cache_requests_total{result="shared_hit"}"#, 1.0),
        (r#"yolo_cache_requests_total{result="miss"}"#, missed),
        (r#"yolo_images_total{outcome="cached",source="sync"}"#, 2.0),
        ("yolo_batched_images_total", missed),
    ] {
        assert!((metric(&other, series).await - expected).abs() < 1e-9, "{series}");
    }
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_task_remembers_what_another_server_found() {
    let Some(redis) = Redis::start("a_task_remembers_what_another_server_found").await else { return };
    let other = redis.shared_by(Config { tasks: true, ..emulated(0, 1) });
    let (one, other) = (start(config(&redis)).await, start(other).await);
    let mut shade = 0;
    eventually("an answer is shared", async || {
        shade += 1;
        let picture = png(40, 30, [shade; 3]);
        if !stores(&redis, &one, &picture).await {
            return false;
        }
        let location = submit(&other, &picture).await;
        let task = ended(&other, &location).await;
        assert_eq!(task.body["status"], "succeeded");
        assert_eq!(cache_of(&other, &picture).await, "hit");
        task.body["result"]["cache"] == "shared_hit"
    })
    .await;
    assert!((metric(&other, r#"yolo_cache_requests_total{result="shared_hit"}"#).await - 1.0).abs() < 1e-9);
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_frozen_redis_costs_a_few_requests_its_time_out_and_the_rest_nothing() {
    let Some(redis) = Redis::start("a_frozen_redis_costs_a_few_requests_its_time_out_and_the_rest_nothing").await
    else {
        return;
    };
    let (server, other) = (start(config(&redis)).await, start(config(&redis)).await);
    cache_of(&server, &png(8, 8, [255; 3])).await;
    redis.freeze();
    let mut delayed = 0;
    for shade in 0..100 {
        let picture = png(8, 8, [shade, 1, 0]);
        let started = Instant::now();
        assert_eq!(cache_of(&server, &picture).await, "miss");
        delayed += u32::from(started.elapsed() >= Duration::from_millis(20));
    }
    let failed = metric(&server, r#"yolo_store_errors_total{operation="cache_get"}"#).await;
    assert!((1.0..=10.0).contains(&failed), "{failed} lookups asked the frozen store");
    println!("{delayed} of 100 requests took 20 ms or more while Redis was frozen");
    redis.thaw();
    let mut shade = 0;
    eventually("answers are shared again", async || {
        shade += 1;
        let picture = png(8, 8, [shade, 2, 0]);
        stores(&redis, &other, &picture).await && cache_of(&server, &picture).await == "shared_hit"
    })
    .await;
    server.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_missing_redis_and_foreign_bytes_in_it_are_misses() {
    let Some(mut redis) = Redis::start("a_missing_redis_and_foreign_bytes_in_it_are_misses").await else { return };
    let (one, other) = (start(config(&redis)).await, start(config(&redis)).await);
    let (mut shade, mut picture) = (30, vec![]);
    eventually("an answer is stored", async || {
        shade += 1;
        picture = png(8, 8, [shade; 3]);
        stores(&redis, &one, &picture).await
    })
    .await;
    redis.overwrite_all(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").await;
    assert_eq!(cache_of(&other, &picture).await, "miss");
    redis.kill();
    for shade in 10..30 {
        assert_eq!(cache_of(&one, &png(8, 8, [shade; 3])).await, "miss");
    }
    let late = start(config(&redis)).await;
    assert_eq!(cache_of(&late, &picture).await, "miss", "a server starts without its store");
    for server in [one, other, late] {
        server.stop().await;
    }
}
