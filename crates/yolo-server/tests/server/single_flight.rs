//! Equal images that are in flight together are run once, whoever gives up.

use crate::support::{call, emulated, metric, png, post, predict, start_gated};

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
