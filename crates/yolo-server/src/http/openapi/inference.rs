//! The Open Inference Protocol below `/v2`.

use schemars::JsonSchema;
use schemars::generate::SchemaGenerator;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::errors::{MODEL, NAMED_MODEL, PICTURE, SOUND, UPLOAD, responses};
use super::{answered, headers, path_parameter};
use crate::http::error::Code;
use crate::http::oip::{ModelConfig, ModelIndex, ModelMetadata, ServerMetadata, Statistics};

/// Name of [`OipError`] among the schemas.
const ERROR: &str = "InferenceError";

/// What a failed request below `/v2` is answered.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "InferenceError")]
struct OipError {
    /// The code and a sentence that says what to change.
    error: String,
}

/// Every path.
pub(super) fn paths(schemas: &mut SchemaGenerator) -> Map<String, Value> {
    // So that it is among the definitions.
    schemas.subschema_for::<OipError>();
    let mut paths = Map::new();
    let server = answered::<ServerMetadata>(schemas, "Name, version and extensions");
    let index = answered::<Vec<ModelIndex>>(schemas, "The models");
    let all = answered::<Statistics<'_>>(schemas, "Counts and times");
    let empty = || json!({"description": "Yes", "headers": headers()});
    for (path, method, operation) in [
        ("/v2", "get", read("v2_server", "The server's metadata", &server, &[])),
        ("/v2/health/live", "get", read("v2_live", "Whether the server works", &empty(), &[&[Code::EngineFailed]])),
        ("/v2/health/ready", "get", read("v2_ready", "Whether the server serves images", &empty(), &[SOUND])),
        ("/v2/repository/index", "post", read("v2_index", "The models of this server", &index, &[])),
        ("/v2/models/stats", "get", read("v2_stats", "What all models have done so far", &all, &[MODEL])),
    ] {
        paths.insert(path.to_owned(), json!({method: operation}));
    }
    let model = path_parameter("model", "The model's name.");
    let version = path_parameter("version", "The model's version.");
    of_model(schemas, &mut paths, ("/v2/models/{model}", "v2_model"), &json!([model]));
    let of_version = ("/v2/models/{model}/versions/{version}", "v2_version");
    of_model(schemas, &mut paths, of_version, &json!([model, version]));
    paths
}

fn read(id: &str, summary: &str, answer: &Value, errors: &[&[Code]]) -> Value {
    json!({"operationId": id, "summary": summary, "responses": responses(json!({"200": answer}), ERROR, errors)})
}

/// The paths below one that names a model.
fn of_model(
    schemas: &mut SchemaGenerator,
    paths: &mut Map<String, Value>,
    (prefix, id): (&str, &str),
    parameters: &Value,
) {
    let metadata = answered::<ModelMetadata>(schemas, "Inputs, of which a request names one, and outputs");
    let config = answered::<ModelConfig>(schemas, "The configuration");
    let statistics = answered::<Statistics<'_>>(schemas, "Counts and times");
    let ready = json!({"description": "It is", "headers": headers()});
    for (end, summary, answer, errors) in [
        ("", "The model's metadata", metadata, [NAMED_MODEL].as_slice()),
        ("/config", "What the model's configuration would be in Triton", config, [NAMED_MODEL].as_slice()),
        ("/ready", "Whether the model is served", ready, [NAMED_MODEL, SOUND].as_slice()),
        ("/stats", "What the model has done so far", statistics, [NAMED_MODEL].as_slice()),
    ] {
        let mut operation = read(&format!("{id}{}", end.replace('/', "_")), summary, &answer, errors);
        operation["parameters"] = parameters.clone();
        paths.insert(format!("{prefix}{end}"), json!({"get": operation}));
    }
    paths.insert(format!("{prefix}/infer"), json!({"post": infer(&format!("{id}_infer"), parameters)}));
}

fn infer(id: &str, parameters: &Value) -> Value {
    let found = json!({
        "description": "The wanted tensors",
        "headers": headers(),
        "content": {"application/json": {"schema": response()}, "application/octet-stream": {}},
    });
    json!({
        "operationId": id,
        "summary": "Run the model on tensors",
        "description": "Input `image` (BYTES `[N]`: encoded files; in JSON as base64) is answered with detections, \
                        padded with zeros: `num_detections`, `boxes`, `scores`, `classes`, and of a segmentation `masks` \
                        (run lengths as JSON), of a pose `keypoints`, of rotated boxes `angles`. Input `images` (FP32 or \
                        UINT8 `[b,3,h,w]`) is answered with the model's own outputs. With the header \
                        `Inference-Header-Content-Length`, tensors follow the JSON in binary.",
        "parameters": parameters,
        "requestBody": {
            "required": true,
            "content": {"application/json": {"schema": request()}, "application/octet-stream": {}},
        },
        "responses": responses(json!({"200": found}), ERROR, &[UPLOAD, PICTURE]),
    })
}

fn shape() -> Value {
    json!({"type": "array", "items": {"type": "integer", "minimum": 0}})
}

fn datatype() -> Value {
    json!({"type": "string", "enum": ["BYTES", "FP32", "INT32", "UINT8"]})
}

fn request() -> Value {
    let parameters = json!({"type": "object"});
    let input = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "enum": ["image", "images"]},
            "shape": shape(),
            "datatype": datatype(),
            "parameters": parameters,
            "data": {"type": "array"},
        },
        "required": ["name", "shape", "datatype"],
    });
    let output = json!({
        "type": "object",
        "properties": {"name": {"type": "string"}, "parameters": parameters},
        "required": ["name"],
    });
    json!({
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "parameters": {
                "type": "object",
                "description": "Those of /predict, `timeout` in microseconds, and `binary_data_output`.",
            },
            "inputs": {"type": "array", "items": input, "minItems": 1, "maxItems": 1},
            "outputs": {"type": "array", "items": output},
        },
        "required": ["inputs"],
    })
}

fn response() -> Value {
    let output = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "shape": shape(),
            "datatype": datatype(),
            "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer"}}},
            "data": {"type": "array", "items": {"type": ["number", "string", "null"]}},
        },
        "required": ["name", "shape", "datatype"],
        "additionalProperties": false,
    });
    json!({
        "type": "object",
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": output},
        },
        "required": ["model_name", "model_version", "outputs"],
        "additionalProperties": false,
    })
}
