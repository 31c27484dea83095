//! Pictures in, detections out; now or later.

use schemars::generate::SchemaGenerator;
use serde_json::{Map, Value, json};

use super::errors::{PICTURE, SUBMISSION, TASK, UPLOAD, responses};
use super::{ERROR, answered, parameters, path_parameter};
use crate::http::answer::{BatchBody, PredictionBody};
use crate::limits;
use crate::tasks::View;

/// `POST /predict`.
pub(super) fn predict(schemas: &mut SchemaGenerator) -> Value {
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
        "requestBody": one_picture(),
        "responses": responses(json!({"200": found}), ERROR, &[UPLOAD, PICTURE]),
    })
}

/// `POST /predict/batch`.
pub(super) fn batch(schemas: &mut SchemaGenerator) -> Value {
    let list =
        |item: Value| json!({"type": "array", "items": item, "minItems": 1, "maxItems": limits::BATCH_PARTS_MAX});
    let found = answered::<BatchBody<'_>>(schemas, "A result or an error for each");
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
        "responses": responses(json!({"200": found}), ERROR, &[UPLOAD, PICTURE]),
    })
}

/// `POST /predict/async`.
pub(super) fn submit(schemas: &mut SchemaGenerator) -> Value {
    let mut parameters = parameters::of_query();
    if let Some(parameters) = parameters.as_array_mut() {
        parameters.push(json!({
            "name": "Idempotency-Key",
            "in": "header",
            "description": "The same key and content name the same task, however often they are sent.",
            "schema": {"type": "string", "minLength": 1, "maxLength": limits::IDEMPOTENCY_KEY_BYTES_MAX},
        }));
    }
    let mut accepted = answered::<View>(schemas, "The task, to be looked at under `Location`");
    accepted["headers"]["Location"] = json!({"description": "The task's path.", "schema": {"type": "string"}});
    json!({
        "operationId": "predict_async",
        "summary": "Find the objects in one picture later, when capacity is spare",
        "description": "Served where tasks are on (`--tasks`). What is wrong with the picture is the task's result.",
        "parameters": parameters,
        "requestBody": one_picture(),
        "responses": responses(json!({"202": accepted}), ERROR, &[UPLOAD, SUBMISSION]),
    })
}

/// `GET` and `DELETE /tasks/{id}`.
pub(super) fn task(schemas: &mut SchemaGenerator) -> Value {
    let mut operation = |id: &str, summary: &str| {
        let shown = answered::<View>(schemas, "The task");
        json!({
            "operationId": id,
            "summary": summary,
            "parameters": [path_parameter("id", "The task's name.")],
            "responses": responses(json!({"200": shown}), ERROR, &[TASK]),
        })
    };
    json!({
        "get": operation("task", "Look at a task and its result"),
        "delete": operation("cancel_task", "Withdraw a task that has not ended"),
    })
}

fn base64() -> Value {
    json!({"type": "string", "contentEncoding": "base64", "description": "The file in base64."})
}

fn one_picture() -> Value {
    json!({"required": true, "content": body(&json!({"file": {}}), &json!({"image": base64()}))})
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
