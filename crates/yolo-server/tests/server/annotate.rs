//! `Accept: image/png` or `image/jpeg`: the picture with what was found drawn into it.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use tower::ServiceExt;
use yolo_server::app::App;
use yolo_server::batcher::Batcher;
use yolo_server::cache::{self, Flight, Lookup};
use yolo_server::engine::emulated as emulated_engine;
use yolo_server::http;
use yolo_server::lifecycle::Stage;
use yolo_server::predictor::Predictor;
use yolo_server::prepare::Preparer;
use yolo_vision::{DecodeLimits, Parameters, Picture, Size, decode};

use crate::support::{Answer, emulated, png, predict, send, start};

const GREY: [u8; 3] = [90, 90, 90];

fn asking(accept: &str, picture: &[u8]) -> Request<Body> {
    Request::post("/predict").header("accept", accept).body(picture.to_vec().into()).unwrap()
}

fn decoded(answer: &Answer) -> Picture {
    assert_eq!(answer.status, 200, "{}", answer.body);
    decode(&answer.bytes, &DecodeLimits::default()).unwrap()
}

fn pixel(picture: &Picture, x: f64, y: f64) -> [u8; 3] {
    let size = picture.size();
    let inside = |at: f64, px: u32| at.clamp(0.0, f64::from(px) - 1.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "inside of the picture")]
    let (x, y) = (inside(x, size.width_px) as usize, inside(y, size.height_px) as usize);
    let at = 3 * (y * size.width_px as usize + x);
    picture.rgb()[at..at + 3].try_into().unwrap()
}

#[tokio::test]
async fn the_picture_comes_back_with_boxes_where_the_objects_are() {
    let server = start(emulated(0, 1)).await;
    let picture = png(320, 240, GREY);
    let found = predict(&server, &picture).await;
    let bounds = &found.body["detections"][0]["box"];
    let edge = |name: &str| bounds[name].as_f64().unwrap();
    let answer = send(&server, asking("image/png", &picture)).await;
    assert_eq!(answer.headers["content-type"], "image/png");
    assert_eq!(answer.headers["x-yolo-emulated"], "1");
    let drawn = decoded(&answer);
    assert_eq!((drawn.size().width_px, drawn.size().height_px), (320, 240));
    for (x, y) in [(edge("x1"), edge("y2")), (edge("x2"), edge("y2"))] {
        assert_ne!(pixel(&drawn, x, y), GREY, "a corner at {x}, {y}");
    }
    let untouched = drawn.rgb().chunks(3).filter(|pixel| *pixel == GREY).count();
    assert!(untouched > 320 * 240 / 2, "{untouched} pixels are as they were");
    server.stop().await;
}

#[tokio::test]
async fn a_jpeg_is_written_too_and_the_drawing_costs_no_second_run() {
    let server = start(emulated(0, 1)).await;
    let picture = png(64, 48, GREY);
    let answers =
        [send(&server, asking("image/*", &picture)).await, send(&server, asking("image/jpeg", &picture)).await];
    for answer in &answers {
        assert_eq!(answer.headers["content-type"], "image/jpeg");
        assert_eq!(decoded(answer).size().width_px, 64);
    }
    assert_eq!(answers[0].bytes, answers[1].bytes, "the same picture is drawn the same");
    assert_eq!(predict(&server, &picture).await.body["cache"], "hit");
    server.stop().await;
}

#[tokio::test]
async fn an_error_stays_json_whatever_is_accepted() {
    let server = start(emulated(0, 1)).await;
    let answer = send(&server, asking("image/png", b"no picture")).await;
    assert_eq!((answer.status.as_u16(), answer.code()), (415, "unsupported_image"));
    server.stop().await;
}

#[tokio::test]
async fn what_another_server_found_is_drawn_within_this_ones_limits() {
    let (app, model) = (Arc::new(App::new()), emulated_engine::load(&emulated(0, 1)).unwrap());
    let batcher = Batcher::start(&model, 1, app.knobs(), &app.metrics).unwrap();
    let limits = DecodeLimits { pixels_max: 100, ..DecodeLimits::default() };
    let preparer = Arc::new(Preparer::new(1, limits, app.metrics.images.clone()));
    let parts = (batcher, preparer);
    app.serve(Predictor::new(model.clone(), Parameters::default(), parts, app.cache(), Arc::clone(&app.metrics)));
    app.lifecycle.advance(Stage::Serving);
    let (picture, cache) = (png(20, 20, GREY), app.cache());
    let content = *blake3::hash(&picture).as_bytes();
    let key = cache::key((&model.sha256, model.info.size()), &Parameters::default(), &content);
    let Lookup::Miss(leader) = cache.lookup(key, Flight::Lead, &model.info).await else { panic!("nothing is there") };
    leader.complete(Arc::new(cache::Answer { size: Size::new(20, 20), detections: Vec::new() }));
    for (accept, status) in [("application/json", 200), ("image/png", 422)] {
        let answer = http::router(Arc::clone(&app)).oneshot(asking(accept, &picture)).await.unwrap();
        assert_eq!(answer.status(), status, "{accept}");
    }
    app.predictor().unwrap().batcher().stop();
}
