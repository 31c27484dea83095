//! The wait for the pool that decodes and draws: who is late there is told so, and costs nothing.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use yolo_server::Server;
use yolo_server::batcher::Place;
use yolo_server::prepare::Turn;

use crate::support::{Answer, call, emulated, eventually, metric, png, post, predict, start};

/// Occupies every thread of the pool until the sender is dropped.
async fn occupied(server: &Server) -> mpsc::Sender<()> {
    let (release, mut released) = mpsc::channel::<()>();
    let threads = metric(server, r#"yolo_stage_workers{stage="decode"}"#).await;
    let (told, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let mut chain = Vec::new();
    while f64::from(u32::try_from(chain.len()).unwrap()) < threads {
        // Each waits for the next one's end, the last one for the sender.
        let (done, next) = mpsc::channel::<()>();
        let wait = std::mem::replace(&mut released, next);
        let (predictor, told) = (server.app().predictor().unwrap(), told.clone());
        chain.push(tokio::spawn(async move {
            let place = Place::of_new_request();
            let work = move || {
                let _ = (told.send(()), wait.recv());
                drop(done);
                Ok(())
            };
            predictor
                .preparer()
                .run(&Turn { place: &place, start_by: None, answer_by: None, unrun: false }, work)
                .await
                .unwrap();
        }));
        begun.recv().await.unwrap();
    }
    release
}

async fn drawn(server: &Server, uri: &str, picture: &[u8]) -> Answer {
    let request = Request::post(uri).header("accept", "image/png").body(Body::from(picture.to_vec()));
    call(server, request.unwrap()).await
}

#[tokio::test]
async fn a_picture_whose_deadline_passes_before_a_decoder_is_free_is_not_decoded() {
    let server = start(emulated(0, 1)).await;
    server.app().offer_knobs(br#"{"deadlineMillis":200}"#);
    let release = occupied(&server).await;
    let begun = Instant::now();
    let late = predict(&server, &png(8, 8, [1; 3])).await;
    assert_eq!((late.status.as_u16(), late.code()), (504, "deadline_exceeded"));
    assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
    assert!((metric(&server, r#"yolo_deadline_exceeded_total{where="queue"}"#).await - 1.0).abs() < 1e-9);
    assert!(metric(&server, r#"yolo_stage_queued{stage="decode"}"#).await < 0.5, "it waits no longer");
    drop(release);
    server.app().offer_knobs(br#"{"deadlineMillis":60000}"#);
    assert_eq!(predict(&server, &png(8, 8, [2; 3])).await.status, 200);
    let decoded = r#"yolo_stage_duration_seconds_count{stage="decode"}"#;
    assert!((metric(&server, decoded).await - 1.0).abs() < 1e-9, "the late one was not decoded");
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_before_a_decoder_is_free_is_counted_as_one_that_left_the_queue() {
    let server = start(emulated(0, 1)).await;
    server.app().offer_knobs(br#"{"deadlineMillis":60000}"#);
    let release = occupied(&server).await;
    let waiting = r#"yolo_stage_queued{stage="decode"}"#;
    let picture = png(8, 8, [1; 3]);
    tokio::select! {
        answer = predict(&server, &picture) => panic!("{}", answer.body),
        () = eventually("it waits", async || metric(&server, waiting).await > 0.5) => {}
    }
    assert!((metric(&server, r#"yolo_cancelled_total{where="queue"}"#).await - 1.0).abs() < 1e-9);
    let timed_out = call(&server, post("/predict?timeout_ms=50", picture.clone())).await;
    assert_eq!(timed_out.code(), "deadline_exceeded");
    assert!((metric(&server, r#"yolo_cancelled_total{where="queue"}"#).await - 1.0).abs() < 1e-9, "it did not leave");
    drop(release);
    server.stop().await;
}

#[tokio::test]
async fn whoever_waits_too_long_to_have_a_picture_drawn_is_told_so() {
    let server = start(emulated(0, 1)).await;
    let picture = png(64, 48, [1; 3]);
    assert_eq!(predict(&server, &picture).await.status, 200); // remembered
    server.app().offer_knobs(br#"{"deadlineMillis":60000}"#);
    let release = occupied(&server).await;
    let late = drawn(&server, "/predict?timeout_ms=100", &picture).await;
    assert_eq!((late.status.as_u16(), late.code()), (504, "deadline_exceeded"), "its own time-out");
    server.app().offer_knobs(br#"{"deadlineMillis":100}"#);
    let late = drawn(&server, "/predict", &picture).await;
    assert_eq!((late.status.as_u16(), late.code()), (504, "deadline_exceeded"));
    drop(release);
    eventually("drawn", async || drawn(&server, "/predict", &picture).await.status == 200).await;
    server.stop().await;
}

/// Names of this process' threads that give way to others.
fn nice_threads() -> Vec<String> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("stat")).ok());
    let nice = |stat: String| {
        let (name, fields) = stat.split_once('(')?.1.rsplit_once(')')?;
        (fields.split_whitespace().nth(16)? == "5").then(|| name.to_owned())
    };
    stats.filter_map(nice).collect()
}

#[tokio::test]
async fn decoders_and_the_engine_give_way_to_the_handlers() {
    let server = start(emulated(0, 1)).await;
    predict(&server, &png(8, 8, [1; 3])).await;
    let names = nice_threads();
    assert!(names.iter().any(|name| name.starts_with("inference-")), "{names:?}");
    assert!(names.iter().any(|name| name.starts_with("tokio")), "the decoders: {names:?}");
    server.stop().await;
}
