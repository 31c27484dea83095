//! Equal images that are in flight together are run once, whoever gives up.

use tower::ServiceExt;
use yolo_server::http;

use crate::support::{call, emulated, eventually, metric, png, post, predict, start_gated};

#[tokio::test]
async fn an_image_whose_batch_has_begun_is_run_for_others_when_the_first_to_ask_gives_up() {
    for leaves in [false, true] {
        let (server, gate) = start_gated(emulated(0, 1)).await;
        server.app().offer_knobs(br#"{"cacheBytes":1048576}"#);
        let images = async || metric(&server, "yolo_batched_images_total").await;
        let (before, held, picture) = (images().await, gate.hold().await, png(8, 8, [1; 3]));
        if leaves {
            tokio::select! {
                answer = predict(&server, &picture) => panic!("{}", answer.body),
                () = gate.begun(1) => {}
            }
        } else {
            let first = call(&server, post("/predict?timeout_ms=3000", picture.clone()));
            assert_eq!(tokio::join!(first, gate.begun(1)).0.code(), "deadline_exceeded");
        }
        let (second, ()) = tokio::join!(predict(&server, &picture), async { drop(held) });
        assert_eq!(second.status, 200, "{}", second.body);
        assert!((images().await - before - 1.0).abs() < 1e-9, "one image ran");
        let left = metric(&server, r#"yolo_cancelled_total{where="running"}"#).await;
        assert!((left - f64::from(u8::from(leaves))).abs() < 1e-9, "{left} left");
        server.stop().await;
    }
}

#[tokio::test]
async fn who_waits_already_takes_over_when_the_first_to_ask_leaves_before_its_batch_begins() {
    let (server, gate) = start_gated(emulated(0, 1)).await;
    server.app().offer_knobs(br#"{"cacheBytes":1048576}"#);
    let images = async || metric(&server, "yolo_batched_images_total").await;
    let (before, held, picture) = (images().await, gate.hold().await, png(8, 8, [1; 3]));
    let asks = |picture: Vec<u8>| tokio::spawn(http::router(server.app()).oneshot(post("/predict", picture)));
    let busy = asks(png(8, 8, [2; 3]));
    gate.begun(1).await;
    let (first, predictor) = (asks(picture.clone()), server.app().predictor().unwrap());
    eventually("it waits for the worker", async || predictor.batcher().queued() == 1).await;
    let second = asks(picture);
    eventually("it waits for the first", async || metric(&server, "yolo_images_in_flight").await > 2.5).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    drop(held);
    for answer in [busy, second] {
        assert_eq!(answer.await.unwrap().unwrap().status(), 200);
    }
    assert!((images().await - before - 2.0).abs() < 1e-9, "the picture ran once");
    assert!((metric(&server, r#"yolo_cancelled_total{where="queue"}"#).await - 1.0).abs() < 1e-9);
    server.stop().await;
}
