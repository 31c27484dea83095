//! Who runs next: requests in turn, a camera's newest frame, spare images on spare capacity.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use yolo_server::batcher::{Batcher, Job, JobError, Lane, Place, Reply, Wanted};
use yolo_server::engine::{EngineInput, emulated};
use yolo_server::knobs::Knobs;
use yolo_server::metrics::Metrics;
use yolo_vision::{Letterbox, Parameters, Size};

use crate::support::{self, Answer, PATIENCE, call, eventually, metric, png, predict, start_gated};

/// A batcher that runs one image at a time, 10 ms each.
async fn one_at_a_time() -> Batcher {
    let model = emulated::load(&support::emulated(10, 0)).unwrap();
    let knobs = Knobs { batch_max: 1, timed_batch_max: 1, deadline: PATIENCE, ..Knobs::default() };
    let batcher = Batcher::start(&model, 1, knobs, &Arc::new(Metrics::new())).unwrap();
    // Idle timing would else stand in the first image's way.
    eventually("timed", async || batcher.load().batch_time > Duration::ZERO && batcher.load().idle_workers == 1).await;
    batcher
}

fn enqueue(batcher: &Batcher, place: &Place) -> Reply {
    let side = Size::new(64, 64);
    let slot = batcher.admit(place, Duration::ZERO, None).unwrap();
    slot.enqueue(Job {
        input: EngineInput { pixels: vec![0; 3 * 64 * 64].into(), size: Size::new(64, 64), content: [0; 32] },
        wanted: Wanted::Detections {
            letterbox: Letterbox::plan(side, side).unwrap(),
            parameters: Parameters::default(),
        },
        place: place.clone(),
        start_by: Some(Instant::now() + PATIENCE),
        answer_by: None,
        begun: Arc::default(),
    })
}

fn spare() -> Place {
    Place { lane: Lane::Spare, ..Place::of_new_request() }
}

/// The names in the order in which their images were done.
async fn order(replies: Vec<(&'static str, Reply)>) -> Vec<&'static str> {
    let named = replies.into_iter().map(|(name, reply)| async move {
        reply.await.unwrap().unwrap();
        name
    });
    named.collect::<FuturesUnordered<_>>().collect().await
}

#[tokio::test]
async fn a_large_request_delays_a_small_one_by_one_batch() {
    let batcher = one_at_a_time().await;
    let (large, small) = (Place::of_new_request(), Place::of_new_request());
    let mut replies: Vec<_> = (0..12).map(|_| ("large", enqueue(&batcher, &large))).collect();
    replies.push(("small", enqueue(&batcher, &small)));
    let order = order(replies).await;
    // One image of the large request runs already when the small one comes, one more has its turn.
    assert!(order.iter().position(|name| *name == "small").unwrap() <= 2, "{order:?}");
    batcher.stop();
}

#[tokio::test]
async fn spare_images_run_last_and_wait_for_room_instead_of_being_refused() {
    let batcher = one_at_a_time().await;
    let mut replies = vec![("running", enqueue(&batcher, &Place::of_new_request()))];
    replies.extend((0..2).map(|_| ("spare", enqueue(&batcher, &spare()))));
    replies.extend((0..6).map(|_| ("interactive", enqueue(&batcher, &Place::of_new_request()))));
    assert!(batcher.admit(&spare(), Duration::ZERO, None).is_err(), "two rounds of the batch that pays are enough");
    assert!(batcher.admit(&Place::of_new_request(), Duration::ZERO, None).is_ok(), "that is nothing to the others");
    let place = spare();
    let (third, order) = tokio::join!(batcher.admit_patiently(&place, Duration::ZERO), order(replies));
    drop(third);
    assert_eq!(order[order.len() - 2..], ["spare"; 2], "{order:?}");
    batcher.stop();
}

#[tokio::test]
async fn whoever_waits_for_room_is_told_when_the_server_stops() {
    let batcher = one_at_a_time().await;
    let replies: Vec<_> = (0..3).map(|_| enqueue(&batcher, &Place::of_new_request())).collect();
    batcher.stop();
    assert!(replies.into_iter().all(|mut reply| reply.try_recv().unwrap().is_ok()), "what is queued is finished");
    let place = spare();
    drop(batcher.admit_patiently(&place, Duration::ZERO).await);
    assert!(matches!(enqueue(&batcher, &spare()).await.unwrap(), Err(JobError::Stopped)));
}

async fn frame(server: &yolo_server::Server, shade: u8) -> Answer {
    let request = Request::post("/predict").header("x-stream-id", "gate");
    call(server, request.body(Body::from(png(8, 8, [shade; 3]))).unwrap()).await
}

#[tokio::test]
async fn a_newer_frame_of_a_stream_replaces_the_queued_one() {
    let (server, gate) = start_gated(support::emulated(0, 1)).await;
    let (held, predictor) = (gate.hold().await, server.app().predictor().unwrap());
    let busy = png(8, 8, [1; 3]);
    let old = async {
        gate.begun(1).await;
        let old = frame(&server, 2).await;
        drop(held);
        old
    };
    let new = async {
        gate.begun(1).await; // until then it is the running one that waits
        eventually("the old one waits", async || predictor.batcher().queued() == 1).await;
        frame(&server, 3).await
    };
    let (running, old, new) = tokio::join!(predict(&server, &busy), old, new);
    assert_eq!((running.status.as_u16(), new.status.as_u16()), (200, 200));
    assert_eq!((old.status.as_u16(), old.code()), (409, "superseded"));
    assert!((metric(&server, r#"yolo_cancelled_total{where="queue"}"#).await - 1.0).abs() < 1e-9);
    assert!((metric(&server, r#"yolo_images_total{outcome="cancelled",source="sync"}"#).await - 1.0).abs() < 1e-9);
    server.stop().await;
}
