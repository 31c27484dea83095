//! A model with a dynamic input is served at several sizes: requests choose among those that are warm.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};
use tokio::sync::Notify;
use yolo_server::{Config, StartError};

use crate::onnx::{config, runtime_is_there};
use crate::support::{
    emulated, eventually, fixture, get, json as json_body, metric, multipart, png, post, send, start, start_gated,
};

#[tokio::test]
async fn a_request_chooses_a_warm_size_and_is_told_of_them_otherwise() {
    let server = start(Config { imgsz: vec![64, 128], ..emulated(0, 1) }).await;
    let picture = png(200, 100, [1; 3]);
    let unnamed = send(&server, post("/predict", picture.clone())).await;
    let named = send(&server, post("/predict?imgsz=64", picture.clone())).await;
    assert_eq!(
        (&unnamed.body["cache"], &named.body["cache"]),
        (&json!("miss"), &json!("hit")),
        "the first is the default"
    );
    let larger = send(&server, multipart("/predict", &[("file", &picture), ("imgsz", b"128")])).await;
    assert_eq!((larger.status.as_u16(), &larger.body["cache"]), (200, &json!("miss")), "another size, another answer");
    // Made-up boxes lie at shares of the input, so after projection both sizes find the same.
    assert_eq!(larger.body["detections"][0]["class"], unnamed.body["detections"][0]["class"]);
    for uri in ["/predict?imgsz=96", "/predict/batch?imgsz=96"] {
        let cold = send(&server, post(uri, picture.clone())).await;
        assert_eq!((cold.status.as_u16(), cold.code()), (422, "imgsz_unavailable"), "{uri}: {}", cold.body);
        assert!(cold.body["error"]["message"].as_str().unwrap().contains("64 or 128"), "{}", cold.body);
    }
    let model = &send(&server, get_request("/models")).await.body["models"][0];
    assert_eq!((&model["imgsz"], &model["sizes"]), (&json!([64, 64]), &json!([[64, 64], [128, 128]])));
    let series = get(server.admin_address(), "/metrics").await.unwrap().1;
    let info = series.lines().find(|line| line.starts_with("yolo_model_info{")).unwrap();
    assert!(info.contains(r#"imgsz="64,128""#), "{info}");
    server.stop().await;
}

fn get_request(path: &str) -> axum::http::Request<axum::body::Body> {
    axum::http::Request::get(path).body(axum::body::Body::empty()).unwrap()
}

#[tokio::test]
async fn tensors_choose_by_their_shape() {
    let server = start(Config { imgsz: vec![64, 128], ..emulated(0, 1) }).await;
    let tensor = |side: usize| {
        let data = vec![0; 3 * side * side];
        json!({"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 3, side, side], "data": data}]})
    };
    for (side, status) in [(64, 200), (128, 200), (96, 400)] {
        let answer = send(&server, json_body("/v2/models/pretended/infer", &tensor(side))).await;
        assert_eq!(answer.status, status, "{side}: {}", answer.body);
    }
    let metadata = send(&server, get_request("/v2/models/pretended")).await.body;
    assert_eq!(metadata["inputs"][1]["shape"], json!([-1, 3, -1, -1]));
    server.stop().await;
}

#[tokio::test]
async fn a_batch_holds_one_size_and_every_picture_gets_its_answer() {
    if !runtime_is_there("a_batch_holds_one_size_and_every_picture_gets_its_answer") {
        return;
    }
    let sizes = [64, 96, 32];
    let (server, gate) =
        start_gated(Config { imgsz: sizes.to_vec(), ..config(fixture("classify-any-size.onnx")) }).await;
    let colours = BTreeMap::from([("red", [250, 4, 4]), ("green", [4, 250, 4]), ("yellow", [250, 250, 4])]);
    // Every picture once, so that none is another's answer.
    let at = |side: u32, picture: Vec<u8>| send(&server, post(&format!("/predict?imgsz={side}"), picture));
    // Alone, they make the time of one known: then two are run together until their time is known too, by three batches.
    for (side, width) in sizes.into_iter().flat_map(|side| (20..23).map(move |width| (side, width))) {
        assert_eq!(at(side, png(width, 40, [250, 4, 4])).await.body["batch_size"], 1);
    }
    server.app().offer_knobs(br#"{"maxBatchSize":8}"#);
    let (held, predictor) = (gate.hold().await, server.app().predictor().unwrap());
    let asked: Vec<_> = [32, 64, 96].into_iter().cycle().zip(colours.iter().cycle()).take(18).enumerate().collect();
    let answers = async {
        gate.begun(10).await;
        let answers = asked
            .iter()
            .map(|(index, (side, (_, colour)))| at(*side, png(40 + u32::try_from(*index).unwrap(), 40, **colour)));
        futures::future::join_all(answers).await
    };
    let all_wait = async {
        eventually("they wait", async || predictor.batcher().queued() == 18).await;
        drop(held);
    };
    let (_, answers, ()) = tokio::join!(at(64, png(30, 40, [250, 4, 4])), answers, all_wait);
    for ((_, (side, (name, _))), answer) in asked.iter().zip(answers) {
        assert_eq!((answer.status.as_u16(), &answer.body["detections"][0]["name"]), (200, &json!(name)), "{side}");
        assert_eq!(answer.body["batch_size"], 2, "{side}");
    }
    assert!(metric(&server, "yolo_engine_errors_total").await < 0.5, "no batch had to be taken apart");
    server.stop().await;
}

/// Why a server of this configuration does not start, and what its termination log says of it.
async fn refused(config: Config) -> (StartError, Value) {
    let log = tempfile::NamedTempFile::new().unwrap();
    let config = Config { termination_log: log.path().to_owned(), ..config };
    let failed = Box::pin(yolo_server::run(config, std::future::pending(), &Notify::new())).await;
    (failed.unwrap_err(), serde_json::from_str(&fs::read_to_string(log.path()).unwrap()).unwrap())
}

#[tokio::test]
async fn a_static_model_refuses_a_second_size_at_its_start() {
    if !runtime_is_there("a_static_model_refuses_a_second_size_at_its_start") {
        return;
    }
    let (error, told) = refused(Config { imgsz: vec![64, 96], ..config(fixture("standard.onnx")) }).await;
    assert!(matches!(error, StartError::Model(_)), "{error:?}");
    assert_eq!(told["code"], "model_unsupported");
    assert!(told["message"].as_str().unwrap().contains("cannot run at 96x96: its input is static, 64x64"), "{told}");
}

#[tokio::test]
async fn more_sizes_than_a_server_can_warm_are_refused_at_its_start() {
    let sizes = |count: u32| (1..=count).map(|step| 32 * step).collect();
    let server = start(Config { imgsz: sizes(8), ..emulated(0, 0) }).await;
    server.stop().await;
    let (error, told) = refused(Config { imgsz: sizes(9), ..emulated(0, 0) }).await;
    assert!(matches!(error, StartError::InputSizes { asked: 9 }), "{error:?}");
    assert_eq!(told["message"], "9 input sizes, at most 8: name fewer in --imgsz");
}
