//! The Open Inference Protocol over REST, byte by byte; what its public clients make of it is in `clients.rs`.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine as _;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;
use yolo_server::{Server, http};

use crate::support::{emulated, metric, png, predict, start, start_gated, start_patient};

const INFER: &str = "/v2/models/pretended/infer";
const LENGTH: &str = "inference-header-content-length";

struct Answer {
    status: StatusCode,
    json: Value,
    binary: Vec<u8>,
}

async fn call(server: &Server, request: Request<Body>) -> Answer {
    let response = http::router(server.app()).oneshot(request).await.unwrap();
    let status = response.status();
    let length = response.headers().get(LENGTH).map(|length| length.to_str().unwrap().parse().unwrap());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let (json, binary) = bytes.split_at(length.unwrap_or(bytes.len()));
    Answer { status, json: serde_json::from_slice(json).unwrap_or(Value::Null), binary: binary.to_vec() }
}

async fn get(server: &Server, path: &str) -> Answer {
    call(server, Request::get(path).body(Body::empty()).unwrap()).await
}

/// Posts JSON with binary tensors behind it; without any, JSON alone.
async fn infer(server: &Server, json: &Value, binary: Option<&[u8]>) -> Answer {
    let json = json.to_string().into_bytes();
    let mut request = Request::post(INFER);
    if binary.is_some() {
        request = request.header(LENGTH, json.len());
    }
    call(server, request.body([&json, binary.unwrap_or_default()].concat().into()).unwrap()).await
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Files as a `BYTES` tensor.
fn tensor(files: &[&[u8]]) -> Vec<u8> {
    let length = |file: &[u8]| u32::try_from(file.len()).unwrap().to_le_bytes();
    files.iter().flat_map(|file| [&length(file), *file].concat()).collect()
}

fn output<'a>(answer: &'a Answer, name: &str) -> &'a Value {
    answer.json["outputs"].as_array().unwrap().iter().find(|output| output["name"] == name).unwrap()
}

#[tokio::test]
async fn pictures_in_json_are_answered_as_predict_answers_them() {
    let server = start(emulated(0, 1)).await;
    let picture = png(64, 48, [9, 8, 7]);
    let input = json!({"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64(&picture)]});
    let answer = infer(&server, &json!({"id": "mine", "inputs": [input]}), None).await;
    assert_eq!(answer.status, 200, "{}", answer.json);
    assert_eq!((&answer.json["id"], &answer.json["model_name"]), (&json!("mine"), &json!("pretended")));
    let expected = predict(&server, &picture).await.body["detections"].as_array().unwrap().clone();
    let found = expected.len();
    assert_eq!(output(&answer, "num_detections")["data"], json!([found]));
    let boxes = output(&answer, "boxes");
    assert_eq!((&boxes["shape"], &boxes["datatype"]), (&json!([1, found, 4]), &json!("FP32")));
    let edges = boxes["data"].as_array().unwrap();
    for (detection, edges) in expected.iter().zip(edges.chunks(4)) {
        for (edge, name) in edges.iter().zip(["x1", "y1", "x2", "y2"]) {
            let expected = detection["box"][name].as_f64().unwrap();
            assert!((edge.as_f64().unwrap() - expected).abs() < 1e-4, "{name}: {edge}, {expected}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn an_output_is_asked_for_once() {
    let server = start(emulated(0, 1)).await;
    let input = json!({"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64(&png(8, 8, [1; 3]))]});
    let wanted = json!([{"name": "boxes"}, {"name": "scores"}, {"name": "boxes"}]);
    let answer = infer(&server, &json!({"inputs": [input], "outputs": wanted}), None).await;
    assert_eq!(answer.status, 400, "{}", answer.json);
    assert!(answer.json["error"].as_str().unwrap().contains("boxes is asked for twice"), "{}", answer.json);
    server.stop().await;
}

#[tokio::test]
async fn binary_outputs_follow_the_json_in_their_order() {
    let server = start(emulated(0, 1)).await;
    let (first, second) = (png(64, 64, [1; 3]), png(64, 64, [2; 3]));
    let files = tensor(&[&first, &second]);
    let input =
        json!({"name": "image", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": files.len()}});
    let wanted = json!([
        {"name": "classes", "parameters": {"binary_data": true}},
        {"name": "scores"},
        {"name": "num_detections", "parameters": {"binary_data": true}},
    ]);
    let answer = infer(&server, &json!({"inputs": [input], "outputs": wanted}), Some(&files)).await;
    assert_eq!(answer.status, 200, "{}", answer.json);
    let names: Vec<_> = answer.json["outputs"].as_array().unwrap().iter().map(|output| &output["name"]).collect();
    assert_eq!(names, ["classes", "scores", "num_detections"]);
    let most = output(&answer, "classes")["shape"][1].as_u64().unwrap();
    assert_eq!(output(&answer, "classes")["parameters"]["binary_data_size"], 8 * most);
    assert_eq!(output(&answer, "scores")["data"].as_array().unwrap().len() as u64, 2 * most);
    let counts = answer.binary.split_at(usize::try_from(8 * most).unwrap()).1.as_chunks().0.iter().copied();
    let counts: Vec<_> = counts.map(i32::from_le_bytes).collect();
    let mut expected = Vec::new();
    for picture in [&first, &second] {
        expected
            .push(i32::try_from(predict(&server, picture).await.body["detections"].as_array().unwrap().len()).unwrap());
    }
    assert_eq!(counts, expected);
    server.stop().await;
}

#[tokio::test]
async fn a_body_without_json_is_one_picture() {
    let server = start(emulated(0, 1)).await;
    let picture = png(64, 64, [3; 3]);
    let answer = call(&server, Request::post(INFER).header(LENGTH, "0").body(picture.into()).unwrap()).await;
    assert_eq!(answer.status, 200, "{}", answer.json);
    assert_eq!(output(&answer, "num_detections")["parameters"]["binary_data_size"], 4);
    server.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_a_sentence() {
    let server = start(emulated(0, 1)).await;
    let picture = png(64, 64, [3; 3]);
    let files = tensor(&[&picture]);
    let binary = |shape: Value, size: usize| {
        let parameters = json!({"binary_data_size": size});
        json!({"inputs": [{"name": "image", "shape": shape, "datatype": "BYTES", "parameters": parameters}]})
    };
    let plain = |name: &str, datatype: &str, shape: Value, data: Value| json!({"inputs": [{"name": name, "shape": shape, "datatype": datatype, "data": data}]});
    let size = files.len();
    for (json, tail, word) in [
        (binary(json!([1]), size), Some(&files[..size - 1]), "binary_data_size"),
        (binary(json!([1]), size - 1), Some(&files[..size - 1]), "longer than the data"),
        (binary(json!([1]), size), Some(&[files.as_slice(), b"x"].concat()[..]), "follow the last tensor"),
        (binary(json!([2]), size), Some(&files[..]), "does not fit"),
        (binary(json!([1_u64 << 40, 1_u64 << 40]), size), Some(&files[..]), "1 to 64"),
        (binary(json!([0]), 0), Some(&[][..]), "1 to 64"),
        (binary(json!([-1]), size), Some(&files[..]), "JSON"),
        (plain("image", "BYTES", json!([1]), json!(["*"])), None, "base64"),
        (plain("image", "BYTES", json!([1]), json!([1])), None, "BYTES"),
        (plain("image", "FP64", json!([1]), json!([1])), None, "FP64"),
        (plain("image", "FP32", json!([1]), json!([1])), None, "BYTES"),
        (plain("images", "FP32", json!([1, 3, 1, 1]), json!([0, 0, 0])), None, "3, 64, 64"),
        (plain("images", "BYTES", json!([1]), json!([base64(&picture)])), None, "FP32 or UINT8"),
        (plain("pixels", "FP32", json!([1]), json!([1])), None, "pixels"),
        (plain("image", "FP32", json!([2]), json!([1])), None, "8 bytes"),
        (plain("image", "BYTES", json!([1]), json!([[[[["deep"]]]]])), None, "JSON"),
        (json!({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES"}]}), None, "data"),
        (json!({"inputs": []}), None, "one input"),
        (json!({}), None, "inputs"),
        (json!([]), None, "JSON"),
    ] {
        let answer = infer(&server, &json, tail).await;
        assert_eq!(answer.status, 400, "{json}: {}", answer.json);
        let text = answer.json["error"].as_str().unwrap();
        assert!(text.contains(word), "{json}: {text}");
    }
    let beyond = Request::post(INFER).header(LENGTH, "999").body("{}".into()).unwrap();
    assert_eq!(call(&server, beyond).await.status, 400);
    let broken = json!({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64(b"GIF89a")]}]});
    let answer = infer(&server, &broken, None).await;
    assert_eq!((answer.status.as_u16(), answer.json["error"].is_string()), (415, true), "{}", answer.json);
    server.stop().await;
}

#[tokio::test]
async fn the_model_and_the_server_describe_themselves() {
    let server = start(emulated(0, 1)).await;
    let metadata = get(&server, "/v2/models/pretended").await.json;
    assert_eq!(metadata["platform"], "onnx_onnxv1");
    let version = metadata["versions"][0].as_str().unwrap();
    let of_version = format!("/v2/models/pretended/versions/{version}");
    for path in ["/v2/health/live", "/v2/health/ready", "/v2/models/pretended/ready", &format!("{of_version}/ready")] {
        assert_eq!(get(&server, path).await.status, 200, "{path}");
    }
    assert_eq!(get(&server, &of_version).await.json, metadata);
    assert!(get(&server, "/v2").await.json["extensions"].as_array().unwrap().contains(&json!("binary_tensor_data")));
    for path in ["/v2/models/other", "/v2/models/other/ready", "/v2/models/pretended/versions/0/stats", "/v2/nothing"] {
        let answer = get(&server, path).await;
        assert_eq!((answer.status.as_u16(), answer.json["error"].is_string()), (404, true), "{path}: {}", answer.json);
    }
    assert_eq!(get(&server, INFER).await.status, 405);
    predict(&server, &png(8, 8, [1; 3])).await;
    let statistics = get(&server, "/v2/models/pretended/stats").await.json["model_stats"][0].clone();
    let batches = statistics["batch_stats"].as_array().unwrap();
    assert!(batches.iter().any(|batch| batch["batch_size"] == 1 && batch["compute_infer"]["ns"].as_u64().unwrap() > 0));
    let counted = statistics["inference_count"].as_f64().unwrap();
    assert!((metric(&server, "yolo_batched_images_total").await - counted).abs() < 1e-9, "{counted}");
    server.stop().await;
}

#[tokio::test]
async fn requests_and_images_are_counted_as_those_of_predict_are() {
    let server = start_patient(emulated(0, 1)).await;
    let pictures: Vec<_> = (1..=5).map(|level| base64(&png(64, 64, [level; 3]))).collect();
    let input = json!({"name": "image", "shape": [5], "datatype": "BYTES", "data": pictures});
    assert_eq!(infer(&server, &json!({"inputs": [input]}), None).await.status, 200);
    assert_eq!(infer(&server, &json!({"inputs": []}), None).await.status, 400);
    for (series, value) in [
        (r#"yolo_http_requests_total{endpoint="v2",code="200"}"#, 1.0),
        (r#"yolo_http_requests_total{endpoint="v2",code="400"}"#, 1.0),
        (r#"yolo_images_total{outcome="ok",source="sync"}"#, 5.0),
        (r#"yolo_images_total{outcome="bad_image",source="sync"}"#, 1.0),
        ("yolo_arrivals_total", 5.0),
        ("yolo_images_in_flight", 0.0),
    ] {
        assert!((metric(&server, series).await - value).abs() < 1e-9, "{series}");
    }
    server.stop().await;
}

#[tokio::test]
async fn prepared_pictures_are_queued_one_by_one_and_answered_with_the_models_outputs() {
    let server = start_patient(emulated(0, 1)).await;
    let pixels: Vec<u8> = [7_u8, 9].iter().flat_map(|level| vec![*level; 3 * 64 * 64]).collect();
    let shape = json!([2, 3, 64, 64]);
    let parameters = json!({"binary_data_size": pixels.len()});
    let input = json!({"name": "images", "shape": shape, "datatype": "UINT8", "parameters": parameters});
    let answer = infer(&server, &json!({"inputs": [input]}), Some(&pixels)).await;
    assert_eq!(answer.status, 200, "{}", answer.json);
    let found = output(&answer, "output0");
    assert_eq!((&found["shape"], &found["datatype"]), (&json!([2, 8, 6]), &json!("FP32")));
    let values = found["data"].as_array().unwrap();
    assert_eq!(values.len(), 2 * 8 * 6);
    assert_ne!(values[..48], values[48..], "each image has its own outputs");
    for (series, value) in [
        (r#"yolo_images_total{outcome="ok",source="sync"}"#, 2.0),
        ("yolo_arrivals_total", 2.0),
        (r#"yolo_batches_total{size="1"}"#, 2.0),
        ("yolo_images_in_flight", 0.0),
    ] {
        let counted = metric(&server, series).await;
        assert!((counted - value).abs() < 1e-9, "{series}: {counted}");
    }
    server.stop().await;
}

#[tokio::test]
async fn prepared_pictures_keep_the_deadlines_of_others() {
    let (server, gate) = start_gated(emulated(100, 0)).await;
    let input = |timeout: u32| {
        let zeros = vec![0; 3 * 64 * 64];
        let input = json!({"name": "images", "shape": [1, 3, 64, 64], "datatype": "UINT8", "data": zeros});
        json!({"inputs": [input], "parameters": {"timeout": timeout}})
    };
    assert_eq!(infer(&server, &input(0), None).await.status, 200, "so it knows what one takes");
    let held = gate.hold().await;
    assert_eq!(infer(&server, &input(20_000), None).await.status, 504);
    drop(held);
    server.app().offer_knobs(br#"{"deadlineMillis":1,"maxBatchSize":1}"#);
    let all = (0..6).map(|_| async { infer(&server, &input(0), None).await.status.as_u16() });
    let statuses = futures::future::join_all(all).await;
    assert!(statuses.contains(&429), "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 429, 504].contains(status)), "{statuses:?}");
    server.stop().await;
}
