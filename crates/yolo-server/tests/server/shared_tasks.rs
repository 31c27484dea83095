//! Tasks in a real Redis: any server takes, shows and runs them; what happens when one dies, or Redis does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use yolo_server::{Config, limits};

use crate::errors::fragile_predictor;
use crate::redis::Redis;
use crate::support::{call, emulated, eventually, metric, png, post, predict, start};
use crate::tasks::{delete, ended, get, submit, with_key};

fn quick(redis: &Redis) -> Config {
    redis.shared_by(Config { tasks: true, ..emulated(0, 1) })
}

/// An image takes so long that this server does not end a task while a test looks.
fn slow(redis: &Redis, ms: u64) -> Config {
    redis.shared_by(Config { tasks: true, tasks_reclaim_seconds: 1, ..emulated(0, ms) })
}

#[tokio::test]
async fn any_server_takes_and_shows_any_task() {
    let Some(redis) = Redis::start("any_server_takes_and_shows_any_task").await else { return };
    let (one, other) = (start(quick(&redis)).await, start(quick(&redis)).await);
    let mut locations = Vec::new();
    for shade in 0..20 {
        locations.push(submit(&one, &png(8, 8, [shade; 3])).await);
    }
    for (shade, location) in (0..).zip(&locations) {
        let task = ended(&other, location).await;
        assert_eq!(task.body["status"], "succeeded", "{}", task.body);
        let answer = predict(&other, &png(8, 8, [shade; 3])).await;
        assert_eq!(task.body["result"]["detections"], answer.body["detections"]);
    }
    let ended = r#"yolo_tasks_total{state="succeeded"}"#;
    assert!((metric(&one, ended).await + metric(&other, ended).await - 20.0).abs() < 1e-9);
    let first = call(&one, with_key(&png(9, 9, [1; 3]), "k")).await;
    let again = call(&other, with_key(&png(9, 9, [1; 3]), "k")).await;
    assert_eq!((again.status, &again.headers["location"]), (StatusCode::ACCEPTED, &first.headers["location"]));
    let conflict = call(&other, with_key(&png(9, 9, [2; 3]), "k")).await;
    assert_eq!((conflict.status, conflict.code()), (StatusCode::CONFLICT, "idempotency_conflict"));
    assert_eq!(get(&one, "/tasks/0123").await.code(), "not_found");
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_withdrawn_or_expired_task_leaves_nothing_behind() {
    let Some(redis) = Redis::start("a_withdrawn_or_expired_task_leaves_nothing_behind").await else { return };
    let server = start(Config { tasks_ttl_seconds: 1, ..slow(&redis, 200) }).await;
    let mut locations = Vec::new();
    for shade in 0..6 {
        locations.push(submit(&server, &png(8, 8, [shade; 3])).await);
    }
    let last = locations.pop().unwrap();
    assert_eq!(delete(&server, &last).await.body["status"], "cancelled");
    for location in &locations {
        eventually("gone", async || get(&server, location).await.status == StatusCode::GONE).await;
    }
    assert_eq!(get(&server, &last).await.code(), "task_expired");
    let left = ["yolo:{kitchen/fork}:b", "yolo:{kitchen/fork}:q"];
    assert_eq!(redis.other_keys().await, left, "the empty queue and its sum");
    assert!((metric(&server, "yolo_batched_images_total").await - 5.0).abs() < 1e-9);
    server.stop().await;
}

#[tokio::test]
async fn results_that_need_more_than_their_room_push_out_the_oldest() {
    let test = "results_that_need_more_than_their_room_push_out_the_oldest";
    let Some(redis) = Redis::start(test).await else { return };
    let server = start(quick(&redis)).await;
    let first = call(&server, with_key(&png(8, 8, [1; 3]), "k")).await.headers["location"].to_str().unwrap().to_owned();
    ended(&server, &first).await;
    let second = submit(&server, &png(8, 8, [2; 3])).await;
    ended(&server, &second).await;
    redis.inflate_first_ended(limits::TASKS_BYTES_MAX).await;
    assert_eq!(get(&server, &first).await.body["status"], "succeeded");
    let third = submit(&server, &png(8, 8, [3; 3])).await;
    eventually("the first one gives way", async || get(&server, &first).await.code() == "task_expired").await;
    assert_eq!(get(&server, &second).await.body["status"], "succeeded");
    assert_eq!(ended(&server, &third).await.body["status"], "succeeded");
    let other = call(&server, with_key(&png(8, 8, [4; 3]), "k")).await;
    assert_eq!(other.status, StatusCode::ACCEPTED, "its key is free again: {}", other.body);
    server.stop().await;
}

#[tokio::test]
async fn a_running_task_is_stopped_by_a_delete_at_any_server() {
    let Some(redis) = Redis::start("a_running_task_is_stopped_by_a_delete_at_any_server").await else { return };
    let runs = start(slow(&redis, 2_000)).await;
    let tasks = [submit(&runs, &png(8, 8, [1; 3])).await, submit(&runs, &png(8, 8, [2; 3])).await];
    for task in &tasks {
        eventually("it is taken on", async || get(&runs, task).await.body["status"] == "running").await;
    }
    let other = start(quick(&redis)).await;
    for task in &tasks {
        assert_eq!(delete(&other, task).await.body["status"], "cancelled");
        assert_eq!(delete(&other, task).await.body["status"], "cancelled", "again");
    }
    let ended = r#"yolo_tasks_total{state="cancelled"}"#;
    assert!((metric(&other, ended).await - 2.0).abs() < 1e-9, "each once");
    // At most the one in the engine is run to its end; what waits is never run.
    eventually("the other one leaves the queue", async || {
        metric(&runs, r#"yolo_cancelled_total{where="queue"}"#).await >= 1.0
    })
    .await;
    let cancelled = r#"yolo_images_total{outcome="cancelled",source="async"}"#;
    eventually("neither is awaited", async || (metric(&runs, cancelled).await - 2.0).abs() < 1e-9).await;
    assert!(metric(&runs, "yolo_batched_images_total").await < 1.5);
    runs.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_dead_servers_task_is_taken_over() {
    let Some(redis) = Redis::start("a_dead_servers_task_is_taken_over").await else { return };
    let dying = start(slow(&redis, 1_000)).await;
    let location = submit(&dying, &png(8, 8, [1; 3])).await;
    eventually("it runs", async || get(&dying, &location).await.body["status"] == "running").await;
    dying.stop().await;
    // The dead one's last sign of life is older than the heir, but not so old that the heir takes over before it is asked.
    let heir = start(Config { tasks_reclaim_seconds: 5, ..quick(&redis) }).await;
    let left = get(&heir, &location).await.body;
    assert_eq!(left["status"], "running", "not answered by the one that died: {left}");
    let ended = ended(&heir, &location).await.body;
    assert_eq!(ended["status"], "succeeded", "{ended}");
    eventually("the dead one is forgotten", async || redis.consumers().await == 1).await;
    heir.stop().await;
}

#[tokio::test]
async fn a_task_that_another_server_runs_is_not_counted_as_queued() {
    let Some(redis) = Redis::start("a_task_that_another_server_runs_is_not_counted_as_queued").await else { return };
    // Each takes on as many as its engine runs and has waiting: two.
    let servers = [start(slow(&redis, 3_000)).await, start(slow(&redis, 3_000)).await];
    let mut tasks = Vec::new();
    for shade in 0..4 {
        tasks.push(submit(&servers[0], &png(8, 8, [shade; 3])).await);
    }
    for server in &servers {
        let (queued, running) = (r#"yolo_tasks{state="queued"}"#, r#"yolo_tasks{state="running"}"#);
        eventually("it has its fill", async || metric(server, running).await > 1.5).await;
        assert!(metric(server, queued).await < 0.5, "two run elsewhere");
    }
    for task in &tasks {
        delete(&servers[0], task).await;
    }
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test]
async fn a_server_whose_engine_fails_leaves_tasks_to_the_others() {
    let Some(redis) = Redis::start("a_server_whose_engine_fails_leaves_tasks_to_the_others").await else { return };
    // What it takes before it knows that it fails is soon taken over.
    let (broken, other) = (start(slow(&redis, 1)).await, start(slow(&redis, 1)).await);
    let fails = Arc::new(AtomicBool::new(false));
    broken.app().serve(fragile_predictor(&broken.app(), &fails)).unwrap().batcher().stop();
    fails.store(true, Ordering::SeqCst);
    let mut shade = 0;
    eventually("its engine counts as failed", async || {
        shade += 1;
        predict(&broken, &png(9, 9, [shade; 3])).await.code() == "engine_failed"
    })
    .await;
    // More than both read at once, so that it would get some.
    let mut locations = Vec::new();
    for shade in 0..30 {
        locations.push(submit(&broken, &png(8, 8, [shade; 3])).await);
    }
    for location in &locations {
        let ended = ended(&other, location).await.body;
        assert_eq!(ended["status"], "succeeded", "{ended}");
    }
    broken.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_task_that_takes_longer_than_a_reclaim_is_run_once() {
    let Some(redis) = Redis::start("a_task_that_takes_longer_than_a_reclaim_is_run_once").await else { return };
    let (busy, idle) = (start(slow(&redis, 1_500)).await, start(slow(&redis, 1)).await);
    // Whoever takes them: the slow one gets some.
    let mut locations = Vec::new();
    for shade in 0..10 {
        locations.push(submit(&busy, &png(8, 8, [shade; 3])).await);
    }
    for location in &locations {
        assert_eq!(ended(&idle, location).await.body["status"], "succeeded");
    }
    let images = "yolo_batched_images_total";
    let (one, other) = (metric(&busy, images).await, metric(&idle, images).await);
    assert!(one >= 1.0 && (one + other - 10.0).abs() < 1e-9, "{one} + {other}");
    busy.stop().await;
    idle.stop().await;
}

#[tokio::test]
async fn without_redis_tasks_are_unavailable_and_predictions_are_not() {
    let Some(mut redis) = Redis::start("without_redis_tasks_are_unavailable_and_predictions_are_not").await else {
        return;
    };
    let server = start(quick(&redis)).await;
    let kept = submit(&server, &png(8, 8, [1; 3])).await;
    ended(&server, &kept).await;
    redis.kill();
    let started = Instant::now();
    for _ in 0..8 {
        let refused = call(&server, post("/predict/async", png(8, 8, [2; 3]))).await;
        assert_eq!((refused.status, refused.code()), (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable"));
        assert!(refused.headers.contains_key("retry-after"));
        assert_eq!(get(&server, &kept).await.code(), "store_unavailable");
        assert_eq!(predict(&server, &png(8, 8, [3; 3])).await.status, StatusCode::OK);
    }
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    assert!(metric(&server, r#"yolo_store_errors_total{operation="task_submit"}"#).await >= 1.0);
    redis.restart().await;
    eventually("tasks are taken again", async || {
        call(&server, post("/predict/async", png(8, 8, [4; 3]))).await.status == StatusCode::ACCEPTED
    })
    .await;
    let location = submit(&server, &png(8, 8, [5; 3])).await;
    assert_eq!(ended(&server, &location).await.body["status"], "succeeded");
    assert_eq!(get(&server, &kept).await.code(), "task_expired", "its memory is gone");
    server.stop().await;
}
