//! `GET /openapi.json`, made from the types that are answered, and `GET /docs`, a page made from that document.
#![expect(
    clippy::indexing_slicing,
    reason = "a JSON value gives null for what it lacks, and takes what is set; all are objects written here"
)]

mod page;
mod parameters;

use std::sync::LazyLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use super::about::{ModelsBody, VersionBody};
use super::answer::{BatchBody, PredictionBody};
use super::error::{Code, ErrorBody};
use crate::limits;

static DOCUMENT: LazyLock<Value> = LazyLock::new(build);
static DOCUMENT_TEXT: LazyLock<String> = LazyLock::new(|| DOCUMENT.to_string());
static PAGE: LazyLock<String> = LazyLock::new(|| page::render(&DOCUMENT));

/// The document; the same for every server of this version.
pub(super) async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT_TEXT.as_str()).into_response()
}

/// The page; it loads nothing but itself, and a browser holds it to that.
pub(super) async fn page() -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob:; \
                  connect-src 'self'; form-action 'self'";
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, policy)];
    (headers, PAGE.as_str()).into_response()
}

fn build() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let settings = settings.with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut schemas = settings.into_generator();
    let paths = json!({
        "/predict": {"post": predict(&mut schemas)},
        "/predict/batch": {"post": batch(&mut schemas)},
        "/models": {"get": json!({
            "operationId": "models",
            "summary": "The served model",
            "responses": responses(json!({"200": answered::<ModelsBody<'_>>(&mut schemas, "The served models")})),
        })},
        "/version": {"get": json!({
            "operationId": "version",
            "summary": "The program's version",
            "responses": responses(json!({"200": answered::<VersionBody>(&mut schemas, "The version")})),
        })},
    });
    // So that it is among the definitions.
    schemas.subschema_for::<ErrorBody<'_>>();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "yolo-server",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Pictures in, what a YOLO model sees in them out.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": schemas.take_definitions(true)},
    })
}

fn predict(schemas: &mut SchemaGenerator) -> Value {
    let mut found = answered::<PredictionBody<'_>>(schemas, "What was found, or the picture with it drawn in");
    for media_type in ["image/jpeg", "image/png"] {
        found["content"][media_type] = json!({});
    }
    json!({
        "operationId": "predict",
        "summary": "Find the objects in one picture",
        "description": "JPEG, PNG or WebP. With `Accept: image/jpeg` or `image/png` the answer is the picture itself, \
                        with what was found drawn into it.",
        "parameters": parameters::of_query(),
        "requestBody": {"required": true, "content": body(&json!({"file": {}}), &json!({"image": base64()}))},
        "responses": responses(json!({"200": found})),
    })
}

fn batch(schemas: &mut SchemaGenerator) -> Value {
    let list =
        |item: Value| json!({"type": "array", "items": item, "minItems": 1, "maxItems": limits::BATCH_PARTS_MAX});
    json!({
        "operationId": "predict_batch",
        "summary": "Find the objects in several pictures",
        "description": "Each picture has its own result or error, in the order in which they were sent. The answer is \
                        200 if one of them was usable.",
        "parameters": parameters::of_query(),
        "requestBody": {
            "required": true,
            "content": body(&json!({"file": list(json!({}))}), &json!({"images": list(base64())})),
        },
        "responses": responses(json!({"200": answered::<BatchBody<'_>>(schemas, "A result or an error for each")})),
    })
}

fn base64() -> Value {
    json!({"type": "string", "contentEncoding": "base64", "description": "The file in base64."})
}

/// The ways of sending pictures; `form` and `document` hold the picture's field.
fn body(form: &Value, document: &Value) -> Value {
    let with_parameters = |pictures: &Value| {
        let mut properties = parameters::as_properties();
        properties.extend(pictures.as_object().cloned().unwrap_or_default());
        let required: Vec<_> = pictures.as_object().into_iter().flat_map(Map::keys).collect();
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    };
    json!({
        "multipart/form-data": {"schema": with_parameters(form)},
        "application/json": {"schema": with_parameters(document)},
        "image/jpeg": {},
        "image/png": {},
        "image/webp": {},
    })
}

fn answered<T: schemars::JsonSchema>(schemas: &mut SchemaGenerator, description: &str) -> Value {
    let schema = schemas.subschema_for::<T>();
    json!({"description": description, "headers": headers(), "content": {"application/json": {"schema": schema}}})
}

fn headers() -> Value {
    let text = |description: &str| json!({"description": description, "schema": {"type": "string"}});
    json!({
        "X-Request-Id": text("The client's, or a new one."),
        "traceparent": text("The client's W3C trace, continued by this request's span."),
    })
}

/// The given answers, and one for each status of an error.
fn responses(mut responses: Value) -> Value {
    for code in Code::ALL {
        let response = &mut responses[code.status().as_str()];
        let codes = match response["description"].as_str() {
            Some(codes) => format!("{codes}, `{}`", code.as_str()),
            None => format!("`{}`", code.as_str()),
        };
        let mut headers = headers();
        if matches!(code.status().as_u16(), 429 | 503) {
            headers["Retry-After"] = json!({"description": "Seconds.", "schema": {"type": "integer"}});
        }
        let schema = json!({"$ref": "#/components/schemas/Error"});
        *response = json!({
            "description": codes,
            "headers": headers,
            "content": {"application/json": {"schema": schema}},
        });
    }
    responses
}
