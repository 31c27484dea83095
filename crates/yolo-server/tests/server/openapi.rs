//! `/openapi.json` says what the server does: every answer, errors too, is checked against it.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};

use crate::support::{Answer, emulated, multipart, png, post, send, start, start_patient};

fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

/// The document, made strict: a property that it does not name is an error.
async fn document(server: &yolo_server::Server) -> Value {
    let mut document = send(server, get("/openapi.json")).await.body;
    close(&mut document["components"]);
    document
}

fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.contains_key("properties") {
                fields.entry("additionalProperties").or_insert(json!(false));
            }
            fields.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// Checks an answer against what the document promises for its operation, status and media type.
fn assert_promised(document: &Value, (method, path): (&Method, &str), answer: &Answer) {
    let operation = &document["paths"][path][method.as_str().to_lowercase()];
    let response = &operation["responses"][answer.status.as_str()];
    assert!(response.is_object(), "{method} {path} does not promise {}: {}", answer.status, answer.body);
    for name in response["headers"].as_object().unwrap().keys() {
        assert!(answer.headers.contains_key(name.to_lowercase()), "{method} {path} {}: no {name}", answer.status);
    }
    let media_type = answer.headers["content-type"].to_str().unwrap();
    let content = &response["content"][media_type];
    assert!(content.is_object(), "{method} {path} {} does not promise {media_type}", answer.status);
    if media_type == "application/json" {
        let mut schema = content["schema"].clone();
        schema["components"] = document["components"].clone();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<_> = validator.iter_errors(&answer.body).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{method} {path} {}: {errors:?} in {}", answer.status, answer.body);
    }
}

#[tokio::test]
async fn every_answer_is_as_the_document_promises() {
    let server = start(emulated(0, 1)).await;
    let document = document(&server).await;
    let whole = png(32, 32, [1, 2, 3]);
    let drawn = |media_type| Request::post("/predict").header("accept", media_type).body(whole.clone().into()).unwrap();
    for request in [
        post("/predict", whole.clone()),
        post("/predict?normalize=true", whole.clone()),
        post("/predict?conf=1", whole.clone()),
        drawn("image/png"),
        drawn("image/jpeg"),
        post("/predict", ""),
        post("/predict?max_det=0", whole.clone()),
        post("/predict?model=other", whole.clone()),
        post("/predict", "no picture"),
        post("/predict", whole[..whole.len() - 20].to_vec()),
        multipart("/predict/batch", &[("file", &whole), ("file", b"no picture")]),
        multipart("/predict/batch", &[("file", b"no picture")]),
        multipart("/predict/batch", &[]),
        get("/models"),
        get("/version"),
        Request::delete("/predict").body(Body::empty()).unwrap(),
    ] {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let answer = send(&server, request).await;
        let operation = if method == Method::DELETE { &Method::POST } else { &method };
        assert_promised(&document, (operation, &path), &answer);
    }
    server.stop().await;
}

#[tokio::test]
async fn refusals_for_load_and_time_are_as_the_document_promises() {
    let server = start_patient(emulated(100, 0)).await;
    let document = document(&server).await;
    let late = send(&server, post("/predict?timeout_ms=20", png(8, 8, [1; 3]))).await;
    assert_eq!(late.status, 504);
    assert_promised(&document, (&Method::POST, "/predict"), &late);
    server.app().offer_knobs(br#"{"deadlineMillis":1,"maxBatchSize":1}"#);
    let pictures: Vec<_> = (2..8).map(|shade| png(8, 8, [shade; 3])).collect();
    let requests = pictures.iter().map(|picture| send(&server, post("/predict", picture.clone())));
    let answers = futures::future::join_all(requests).await;
    assert!(answers.iter().any(|answer| answer.status == 429));
    for answer in &answers {
        assert_promised(&document, (&Method::POST, "/predict"), answer);
    }
    server.stop().await;
}

#[tokio::test]
async fn every_documented_parameter_is_taken_from_query_form_and_json() {
    let server = start(emulated(0, 1)).await;
    let document = document(&server).await;
    let operation = &document["paths"]["/predict"]["post"];
    let model = send(&server, get("/models")).await.body["models"][0].clone();
    let parameters = operation["parameters"].as_array().unwrap();
    let in_query: Vec<_> = parameters.iter().filter(|parameter| parameter["in"] == "query").collect();
    assert!(in_query.len() >= 9);
    let picture = png(8, 8, [1; 3]);
    for parameter in in_query {
        let name = parameter["name"].as_str().unwrap();
        let value = match name {
            "imgsz" => model["imgsz"][0].to_string(),
            "model" => model["name"].as_str().unwrap().to_owned(),
            _ => parameter["schema"]["examples"][0].to_string().replace('"', ""),
        };
        let by_query = send(&server, post(&format!("/predict?{name}={value}"), picture.clone())).await;
        let by_form = send(&server, multipart("/predict", &[("file", &picture), (name, value.as_bytes())])).await;
        assert_eq!((by_query.status.as_u16(), by_form.status.as_u16()), (200, 200), "{name}={value}: {}", by_form.body);
        for media_type in ["multipart/form-data", "application/json"] {
            let schema = &operation["requestBody"]["content"][media_type]["schema"];
            assert!(schema["properties"][name].is_object(), "{media_type} does not document {name}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn the_page_shows_every_operation_and_loads_nothing_from_elsewhere() {
    let server = start(emulated(0, 1)).await;
    let document = document(&server).await;
    let answer = send(&server, get("/docs")).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["content-type"]),
        (200, &"text/html; charset=utf-8".parse().unwrap())
    );
    assert!(answer.headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    let page = std::str::from_utf8(&answer.bytes).unwrap();
    assert!(!page.contains("://") && !page.contains("src=") && !page.contains("@import"), "an outside asset");
    for path in document["paths"].as_object().unwrap().keys() {
        assert!(page.contains(path), "{path} is not on the page");
    }
    server.stop().await;
}
