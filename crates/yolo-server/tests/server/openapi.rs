//! `/openapi.json` says what the server does: every answer, errors too, is checked against it.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::{Method, Request};
use base64::Engine as _;
use serde_json::{Value, json};
use yolo_server::{Config, http};

use crate::support::{Answer, emulated, eventually, json as json_body, multipart, png, post, send, start, start_gated};

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
    let Some(media_type) = answer.headers.get("content-type").map(|value| value.to_str().unwrap()) else {
        assert!(response["content"].is_null() && answer.bytes.is_empty(), "{method} {path} {}", answer.status);
        return;
    };
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
        get("/openapi.json"),
        get("/docs"),
        get("/v2"),
        get("/v2/health/live"),
        get("/v2/health/ready"),
        post("/v2/repository/index", ""),
        get("/v2/models/stats"),
    ] {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let answer = send(&server, request).await;
        assert_promised(&document, (&method, &path), &answer);
    }
    server.stop().await;
}

#[tokio::test]
async fn answers_about_tasks_are_as_the_document_promises() {
    let server = start(Config { tasks: true, ..emulated(0, 1) }).await;
    let document = document(&server).await;
    let keyed =
        |content: Vec<u8>| Request::post("/predict/async").header("idempotency-key", "mine").body(content.into());
    let accepted = send(&server, keyed(png(8, 8, [1; 3])).unwrap()).await;
    assert_eq!(accepted.status, 202);
    assert_eq!(send(&server, keyed(png(8, 8, [2; 3])).unwrap()).await.status, 409);
    let task = accepted.headers["location"].to_str().unwrap().to_owned();
    eventually("the task has ended", async || send(&server, get(&task)).await.body["status"] == "succeeded").await;
    let failing =
        send(&server, post("/predict/async", "no picture")).await.headers["location"].to_str().unwrap().to_owned();
    eventually("the other has failed", async || send(&server, get(&failing)).await.body["status"] == "failed").await;
    let delete = |path: &str| Request::delete(path).body(Body::empty()).unwrap();
    for (path, request) in [
        ("/predict/async", keyed(png(8, 8, [1; 3])).unwrap()),
        ("/predict/async", keyed(png(8, 8, [2; 3])).unwrap()),
        ("/predict/async", post("/predict/async", "")),
        ("/predict/async", post("/predict/async?conf=2", png(8, 8, [3; 3]))),
        ("/tasks/{id}", get(&task)),
        ("/tasks/{id}", get(&failing)),
        ("/tasks/{id}", get("/tasks/unknown")),
        ("/tasks/{id}", get("/tasks/%ff")),
        ("/tasks/{id}", delete(&task)),
        ("/tasks/{id}", delete("/tasks/unknown")),
        ("/tasks/{id}", delete("/tasks/%ff")),
    ] {
        let method = request.method().clone();
        assert_promised(&document, (&method, path), &send(&server, request).await);
    }
    server.stop().await;
}

#[tokio::test]
async fn answers_of_the_inference_protocol_are_as_the_document_promises() {
    let server = start(emulated(0, 1)).await;
    let document = document(&server).await;
    let version = send(&server, get("/v2/models/pretended")).await.body["versions"][0].as_str().unwrap().to_owned();
    let picture = base64::engine::general_purpose::STANDARD.encode(png(8, 8, [1; 3]));
    let of = |name: &str, datatype: &str, shape: Value, data: Value| json!({"id": "mine", "inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]});
    let good = of("image", "BYTES", json!([1]), json!([picture]));
    let raw = of("images", "UINT8", json!([1, 3, 64, 64]), json!(vec![0; 3 * 64 * 64]));
    let bad = of("image", "BYTES", json!([1]), json!(["R0lG"]));
    for (template, prefix) in [
        ("/v2/models/{model}", "/v2/models/pretended".to_owned()),
        ("/v2/models/{model}", "/v2/models/other".to_owned()),
        ("/v2/models/{model}", "/v2/models/%ff".to_owned()),
        ("/v2/models/{model}/versions/{version}", format!("/v2/models/pretended/versions/{version}")),
    ] {
        for end in ["", "/config", "/ready", "/stats"] {
            let answer = send(&server, get(&format!("{prefix}{end}"))).await;
            assert_promised(&document, (&Method::GET, &format!("{template}{end}")), &answer);
        }
        let path = format!("{template}/infer");
        let mut statuses = Vec::new();
        for body in [&good, &raw, &bad, &json!({"inputs": []})] {
            let answer = send(&server, json_body(&format!("{prefix}/infer"), body)).await;
            assert_promised(&document, (&Method::POST, &path), &answer);
            statuses.push(answer.status.as_u16());
        }
        let expected = match prefix.as_str() {
            "/v2/models/other" => [404; 4],
            "/v2/models/%ff" => [400; 4],
            _ => [200, 200, 415, 400],
        };
        assert_eq!(statuses, expected, "{prefix}");
        let binary = Request::post(format!("{prefix}/infer")).header("inference-header-content-length", "0");
        let answer = send(&server, binary.body(png(8, 8, [1; 3]).into()).unwrap()).await;
        assert_promised(&document, (&Method::POST, &path), &answer);
    }
    server.stop().await;
}

/// The paths in a router's debug text, as it writes them: `"/predict"`.
fn routes(router: &axum::Router) -> BTreeSet<String> {
    let text = format!("{router:?}");
    let text = text.split("fallback_router").next().unwrap();
    let quoted = text.split('"').skip(1).step_by(2);
    let path = |route: &str| if route.len() > 1 { route.trim_end_matches('/').to_owned() } else { route.to_owned() };
    quoted.filter(|text| text.starts_with('/') && !text.contains('*')).map(path).collect()
}

#[tokio::test]
async fn every_route_and_method_is_in_the_document_and_nothing_else() {
    let server = start(Config { tasks: true, ..emulated(0, 1) }).await;
    let document = document(&server).await;
    let documented = document["paths"].as_object().unwrap();
    let routes = routes(&http::router(server.app()));
    assert_eq!(routes, documented.keys().cloned().collect(), "the router's paths and the document's");
    for (path, operations) in documented {
        // What a path takes is told to whoever asks for something else.
        let request = Request::patch(path.replace(['{', '}'], "x")).body(Body::empty()).unwrap();
        let answer = send(&server, request).await;
        assert_eq!((answer.status.as_u16(), path), (405, path));
        let allowed = answer.headers["allow"].to_str().unwrap().to_lowercase();
        let allowed: BTreeSet<_> = allowed.split(',').filter(|method| *method != "head").collect();
        let documented: BTreeSet<_> = operations.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(allowed, documented, "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn each_operation_lists_only_errors_that_it_can_answer() {
    let server = start(emulated(0, 1)).await;
    let document = document(&server).await;
    let statuses = |path: &str, method: &str| -> Vec<String> {
        document["paths"][path][method]["responses"].as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(statuses("/version", "get"), ["200", "414", "431", "500"]);
    assert_eq!(statuses("/models", "get"), ["200", "414", "431", "500", "503"]);
    assert_eq!(statuses("/tasks/{id}", "get"), ["200", "400", "404", "410", "414", "431", "500", "503"]);
    assert!(!statuses("/predict", "post").contains(&"410".to_owned()));
    assert!(!statuses("/predict/async", "post").contains(&"504".to_owned()), "nobody waits for it");
    for status in ["400", "404", "408", "409", "413", "415", "422", "429", "500", "503", "504"] {
        assert!(statuses("/predict", "post").contains(&status.to_owned()), "{status}");
        assert!(statuses("/v2/models/{model}/infer", "post").contains(&status.to_owned()), "{status}");
    }
    server.stop().await;
}

#[tokio::test]
async fn refusals_for_load_and_time_are_as_the_document_promises() {
    let (server, gate) = start_gated(emulated(100, 0)).await;
    let document = document(&server).await;
    assert_eq!(send(&server, post("/predict", png(8, 8, [0; 3]))).await.status, 200, "so it knows what one takes");
    let held = gate.hold().await;
    let late = send(&server, post("/predict?timeout_ms=20", png(8, 8, [1; 3]))).await;
    drop(held);
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
