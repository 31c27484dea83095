//! Asynchronous tasks in memory: what comes back, what is bounded, what a drain waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::http::{Request, StatusCode};
use yolo_server::{Config, Server, limits};

use crate::errors::fragile_predictor;
use crate::support::{Answer, call, emulated, eventually, metric, png, post, predict, start, start_gated, value_of};

/// An image takes `ms`, and a batch of them as much longer: batching does not pay.
fn with_tasks(ms: u64) -> Config {
    Config { tasks: true, ..emulated(0, ms) }
}

pub async fn submit(server: &Server, picture: &[u8]) -> String {
    let answer = call(server, post("/predict/async", picture.to_vec())).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.body);
    let location = answer.headers["location"].to_str().unwrap().to_owned();
    assert_eq!(answer.body["status"], "queued");
    assert_eq!(location, format!("/tasks/{}", answer.body["task_id"].as_str().unwrap()));
    location
}

pub async fn get(server: &Server, location: &str) -> Answer {
    call(server, Request::get(location).body(Body::empty()).unwrap()).await
}

pub async fn delete(server: &Server, location: &str) -> Answer {
    call(server, Request::delete(location).body(Body::empty()).unwrap()).await
}

pub async fn ended(server: &Server, location: &str) -> Answer {
    let mut answer = get(server, location).await;
    eventually("task ends", async || {
        answer = get(server, location).await;
        // A store that was too slow to say it says nothing about the task.
        !["queued", "running"].contains(&answer.body["status"].as_str().unwrap_or_default())
            && answer.code() != "store_unavailable"
    })
    .await;
    answer
}

/// A picture with so many bytes.
pub fn padded_png(shade: u8, bytes: usize) -> Vec<u8> {
    let mut picture = png(8, 8, [shade; 3]);
    picture.resize(bytes, 0);
    picture
}

pub fn with_key(picture: &[u8], key: &str) -> Request<Body> {
    Request::post("/predict/async?conf=0.3").header("idempotency-key", key).body(picture.to_vec().into()).unwrap()
}

#[tokio::test]
async fn a_task_ends_with_what_predict_answers() {
    let server = start(with_tasks(1)).await;
    let picture = png(40, 30, [9, 8, 7]);
    let request = Request::post("/predict/async?max_det=2&normalize=true").header("x-request-id", "mine");
    let submitted = call(&server, request.body(picture.clone().into()).unwrap()).await;
    assert_eq!(submitted.status, StatusCode::ACCEPTED, "{}", submitted.body);
    let task = ended(&server, submitted.headers["location"].to_str().unwrap()).await;
    assert_eq!((task.status, task.body["status"].as_str()), (StatusCode::OK, Some("succeeded")), "{}", task.body);
    let result = &task.body["result"];
    assert_eq!((result["request_id"].as_str(), result["cache"].as_str()), (Some("mine"), Some("miss")));
    let answer = call(&server, post("/predict?max_det=2&normalize=true", picture)).await;
    assert_eq!(result["detections"], answer.body["detections"]);
    assert_eq!((&result["image"], &result["model"]), (&answer.body["image"], &answer.body["model"]));
    for (series, expected) in [
        ("yolo_task_arrivals_total", 1.0),
        ("yolo_arrivals_total", 1.0),
        (r#"yolo_tasks{state="succeeded"}"#, 1.0),
        (r#"yolo_tasks{state="running"}"#, 0.0),
        (r#"yolo_tasks_total{state="running"}"#, 1.0),
        (r#"yolo_images_total{outcome="ok",source="async"}"#, 1.0),
        (r#"yolo_images_total{outcome="cached",source="sync"}"#, 1.0),
        (r#"yolo_http_requests_total{endpoint="async",code="202"}"#, 1.0),
    ] {
        assert!((metric(&server, series).await - expected).abs() < 1e-9, "{series}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_bad_picture_fails_its_task_and_a_bad_request_makes_none() {
    let server = start(with_tasks(1)).await;
    let task = submit(&server, b"no picture").await;
    let task = ended(&server, &task).await;
    assert_eq!((task.status, task.body["status"].as_str()), (StatusCode::OK, Some("failed")));
    assert_eq!(task.body["error"]["code"], predict(&server, b"no picture").await.code());
    for (uri, body) in [("/predict/async?confidence=1", "x"), ("/predict/async?conf=2", "x"), ("/predict/async", "")] {
        let answer = call(&server, post(uri, body)).await;
        assert!(answer.status.is_client_error() && !answer.code().is_empty(), "{uri}: {}", answer.body);
    }
    let long = "k".repeat(limits::IDEMPOTENCY_KEY_BYTES_MAX + 1);
    assert_eq!(call(&server, with_key(&png(8, 8, [1; 3]), &long)).await.code(), "invalid_request");
    server.stop().await;
}

#[tokio::test]
async fn a_result_is_gone_after_its_time_and_a_name_never_given_is_unknown() {
    let server = start(Config { tasks_ttl_seconds: 0, ..with_tasks(1) }).await;
    let location = submit(&server, &png(8, 8, [1; 3])).await;
    let gone = ended(&server, &location).await;
    assert_eq!((gone.status, gone.code()), (StatusCode::GONE, "task_expired"));
    assert_eq!(delete(&server, &location).await.code(), "task_expired");
    for unknown in ["/tasks/x", "/tasks/0123456789abcdef", &format!("{location}0")] {
        let answer = get(&server, unknown).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::NOT_FOUND, "not_found"), "{unknown}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_withdrawn_task_is_not_run() {
    let (server, gate) = start_gated(with_tasks(1)).await;
    let held = gate.hold().await;
    let mut locations = Vec::new();
    for shade in 0..8 {
        locations.push(submit(&server, &png(8, 8, [shade; 3])).await);
    }
    let (last, others) = locations.split_last().unwrap();
    assert_eq!(get(&server, last).await.body["status"], "queued");
    let answer = delete(&server, last).await;
    assert_eq!((answer.status, answer.body["status"].as_str()), (StatusCode::OK, Some("cancelled")));
    drop(held);
    for location in others {
        assert_eq!(ended(&server, location).await.body["status"], "succeeded");
    }
    assert_eq!(get(&server, last).await.body["status"], "cancelled");
    assert_eq!(delete(&server, &others[0]).await.body["status"], "succeeded", "too late to withdraw");
    assert!((metric(&server, "yolo_batched_images_total").await - 7.0).abs() < 1e-9);
    server.stop().await;
}

#[tokio::test]
async fn a_running_task_that_is_withdrawn_is_awaited_no_more() {
    let (server, gate) = start_gated(with_tasks(1)).await;
    let held = gate.hold().await;
    let tasks = [submit(&server, &png(8, 8, [1; 3])).await, submit(&server, &png(8, 8, [2; 3])).await];
    for task in &tasks {
        eventually("it is taken on", async || get(&server, task).await.body["status"] == "running").await;
    }
    for task in &tasks {
        assert_eq!(delete(&server, task).await.body["status"], "cancelled");
        assert_eq!(delete(&server, task).await.body["status"], "cancelled", "again");
    }
    let cancelled = r#"yolo_images_total{outcome="cancelled",source="async"}"#;
    eventually("neither is awaited", async || (metric(&server, cancelled).await - 2.0).abs() < 1e-9).await;
    // At most the one in the engine is run to its end; its place is free before.
    let next = submit(&server, &png(8, 8, [3; 3])).await;
    eventually("the next is taken on", async || get(&server, &next).await.body["status"] != "queued").await;
    drop(held);
    assert_eq!(ended(&server, &next).await.body["status"], "succeeded");
    assert!(metric(&server, "yolo_batched_images_total").await < 2.5);
    assert_eq!(get(&server, &tasks[0]).await.body["status"], "cancelled", "its end came first");
    server.stop().await;
}

#[tokio::test]
async fn a_task_that_waits_for_a_failing_engine_goes_on_with_the_model_that_replaces_it() {
    let server = start(with_tasks(1)).await;
    let (app, fails) = (server.app(), Arc::new(AtomicBool::new(false)));
    app.serve(fragile_predictor(&app, &fails)).unwrap().batcher().stop();
    fails.store(true, Ordering::SeqCst);
    let mut shade = 0;
    eventually("its engine counts as failed", async || {
        shade += 1;
        predict(&server, &png(9, 9, [shade; 3])).await.code() == "engine_failed"
    })
    .await;
    let tasks = [submit(&server, &png(8, 8, [1; 3])).await, submit(&server, &png(8, 8, [2; 3])).await];
    for task in &tasks {
        eventually("it is taken on", async || get(&server, task).await.body["status"] == "running").await;
    }
    let broken = app.serve(fragile_predictor(&app, &Arc::default())).unwrap();
    for task in &tasks {
        assert_eq!(ended(&server, task).await.body["status"], "succeeded");
    }
    eventually("nobody holds the one that fails", async || Arc::strong_count(&broken) == 1).await;
    broken.batcher().stop();
    server.stop().await;
}

#[tokio::test]
async fn only_work_that_is_new_counts_as_demand() {
    let (server, gate) = start_gated(with_tasks(1)).await;
    let held = gate.hold().await; // none of the large ones ends
    let series = ["yolo_task_arrivals_total", "yolo_retries_total", "yolo_rejected_total{reason=\"queue_full\"}"];
    let counted = async || {
        let mut counts = Vec::new();
        for series in series {
            counts.push(metric(&server, series).await.round());
        }
        counts
    };
    for (picture, status, demand) in [
        (png(8, 8, [1; 3]), StatusCode::ACCEPTED, [1.0, 0.0, 0.0]),
        (png(8, 8, [1; 3]), StatusCode::ACCEPTED, [1.0, 1.0, 0.0]),
        (png(8, 8, [2; 3]), StatusCode::CONFLICT, [1.0, 1.0, 0.0]),
    ] {
        assert_eq!(call(&server, with_key(&picture, "order-7")).await.status, status);
        assert_eq!(counted().await, demand);
    }
    let marked = Request::post("/predict/async").header("x-retry-attempt", "2").body(png(8, 8, [3; 3]).into()).unwrap();
    assert_eq!(call(&server, marked).await.status, StatusCode::ACCEPTED);
    assert_eq!(counted().await, [1.0, 2.0, 0.0], "its client says so");
    let (large, mut shade) = (|shade| padded_png(shade, limits::TASKS_BYTES_MAX / 4), 0);
    let refused = loop {
        let answer = call(&server, post("/predict/async", large(shade))).await;
        if answer.status != StatusCode::ACCEPTED {
            break answer;
        }
        shade += 1;
    };
    assert_eq!(refused.code(), "queue_full");
    let offered = 2.0 + f64::from(shade);
    assert_eq!(counted().await, [offered, 2.0, 0.0], "refused it is demand, but no image that somebody waits for");
    let again = call(&server, post("/predict/async", large(shade))).await;
    assert_eq!((again.code(), counted().await), ("queue_full", vec![offered, 3.0, 0.0]), "the same demand");
    drop(held);
    server.stop().await;
}

#[tokio::test]
async fn an_idempotency_key_makes_one_task_of_equal_requests_and_refuses_others() {
    let server = start(with_tasks(1)).await;
    let picture = png(8, 8, [1; 3]);
    let first = call(&server, with_key(&picture, "order-7")).await;
    let again = call(&server, with_key(&picture, "order-7")).await;
    assert_eq!((again.status, &again.headers["location"]), (StatusCode::ACCEPTED, &first.headers["location"]));
    ended(&server, first.headers["location"].to_str().unwrap()).await;
    let done = call(&server, with_key(&picture, "order-7")).await;
    assert_eq!((done.status, done.body["status"].as_str()), (StatusCode::ACCEPTED, Some("succeeded")));
    let other = call(&server, with_key(&png(8, 8, [2; 3]), "order-7")).await;
    assert_eq!((other.status, other.code()), (StatusCode::CONFLICT, "idempotency_conflict"));
    server.stop().await;
}

#[tokio::test]
async fn a_full_house_refuses_with_a_time_to_come_back() {
    let server = start(with_tasks(300)).await;
    let mut accepted = 0;
    let refused = loop {
        let shade = [u8::try_from(accepted % 256).unwrap(), u8::try_from(accepted / 256).unwrap(), 0];
        let answer = call(&server, post("/predict/async", png(1, 1, shade))).await;
        if answer.status != StatusCode::ACCEPTED {
            break answer;
        }
        accepted += 1;
    };
    assert_eq!((refused.status, refused.code()), (StatusCode::TOO_MANY_REQUESTS, "queue_full"));
    let ended = metric(&server, r#"yolo_tasks{state="succeeded"}"#).await;
    assert!(f64::from(accepted) >= 1_000.0 && f64::from(accepted) <= 1_000.0 + ended, "{accepted}, {ended} ended");
    assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 30, "300 s of work wait");
}

#[tokio::test]
async fn a_drain_waits_for_tasks_and_takes_no_more() {
    let server = start(with_tasks(50)).await;
    let app = server.app();
    for shade in 0..6 {
        submit(&server, &png(8, 8, [shade; 3])).await;
    }
    let draining = tokio::spawn(server.drain());
    let router = yolo_server::http::router(std::sync::Arc::clone(&app));
    eventually("new tasks are refused", async || {
        let answer = tower::ServiceExt::oneshot(router.clone(), post("/predict/async", png(8, 8, [9; 3]))).await;
        answer.unwrap().status() == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
    draining.await.unwrap();
    let text = app.metrics.encode(false).unwrap();
    let succeeded = value_of(&text, r#"yolo_tasks_total{state="succeeded"}"#).unwrap();
    let submitted = value_of(&text, r#"yolo_tasks_total{state="queued"}"#).unwrap();
    assert!(succeeded >= 6.0 && (succeeded - submitted).abs() < 1e-9, "{succeeded} of {submitted}");
}

#[tokio::test]
async fn a_server_without_tasks_says_how_to_get_them() {
    let server = start(emulated(0, 1)).await;
    for request in [post("/predict/async", png(8, 8, [1; 3])), Request::get("/tasks/1").body(Body::empty()).unwrap()] {
        let answer = call(&server, request).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::NOT_FOUND, "not_found"));
        assert!(answer.body["error"]["message"].as_str().unwrap().contains("--tasks"));
    }
    server.stop().await;
}
