//! `GET /openapi.json`, made from the types that are answered, and `GET /docs`, a page made from that document.
#![expect(
    clippy::indexing_slicing,
    reason = "a JSON value gives null for what it lacks, and takes what is set; all are objects written here"
)]

mod errors;
mod inference;
mod page;
mod parameters;
mod pictures;

use std::sync::LazyLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Value, json};

use super::about::{ModelsBody, VersionBody};
use super::error::ErrorBody;
use errors::{MODEL, responses};

/// Name of [`ErrorBody`] among the schemas.
const ERROR: &str = "Error";

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
    let models = answered::<ModelsBody<'_>>(&mut schemas, "The served models");
    let version = answered::<VersionBody>(&mut schemas, "The version");
    let of_type = |media_type: &str| {
        let content = json!({media_type: {}});
        json!({"200": {"description": "It", "headers": headers(), "content": content}})
    };
    let mut paths = json!({
        "/predict": {"post": pictures::predict(&mut schemas)},
        "/predict/batch": {"post": pictures::batch(&mut schemas)},
        "/predict/async": {"post": pictures::submit(&mut schemas)},
        "/tasks/{id}": pictures::task(&mut schemas),
        "/models": {"get": {
            "operationId": "models",
            "summary": "The served model",
            "responses": responses(json!({"200": models}), ERROR, &[MODEL]),
        }},
        "/version": {"get": {
            "operationId": "version",
            "summary": "The program's version",
            "responses": responses(json!({"200": version}), ERROR, &[]),
        }},
        "/openapi.json": {"get": {
            "operationId": "openapi",
            "summary": "This document",
            "responses": responses(of_type("application/json"), ERROR, &[]),
        }},
        "/docs": {"get": {
            "operationId": "docs",
            "summary": "This document for people",
            "responses": responses(of_type("text/html; charset=utf-8"), ERROR, &[]),
        }},
    });
    if let Some(paths) = paths.as_object_mut() {
        paths.extend(inference::paths(&mut schemas));
    }
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

fn path_parameter(name: &str, description: &str) -> Value {
    json!({"name": name, "in": "path", "required": true, "description": description, "schema": {"type": "string"}})
}
