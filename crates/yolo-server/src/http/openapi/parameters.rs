//! The parameters of a prediction as the document describes them.

use serde_json::{Map, Value, json};

/// Name, schema with its range, and what it does; each schema has an example.
fn all() -> [(&'static str, Value); 10] {
    let number = |description: &str| json!({"type": "number", "minimum": 0, "maximum": 1, "description": description});
    let switch = |description: &str| json!({"type": "boolean", "examples": [true], "description": description});
    let with_example = |mut schema: Value, example: Value| {
        schema["examples"] = json!([example]);
        schema
    };
    [
        ("conf", with_example(number("Lowest confidence of a detection."), json!(0.25))),
        ("iou", with_example(number("Overlap past which the weaker of two boxes of a class is dropped."), json!(0.7))),
        (
            "max_det",
            json!({"type": "integer", "minimum": 1, "maximum": 3000, "examples": [300],
                   "description": "Most detections; with masks at most 300."}),
        ),
        (
            "classes",
            json!({"type": "string", "pattern": "^([0-9]+(,[0-9]+)*)?$", "examples": ["0,2"],
                   "description": "Class numbers to keep, separated by commas."}),
        ),
        ("agnostic_nms", switch("Let boxes of different classes suppress each other.")),
        ("normalize", switch("Coordinates in fractions of the picture instead of pixels.")),
        (
            "masks",
            json!({"type": "string", "enum": ["polygon", "rle", "none"], "examples": ["polygon"],
                   "description": "Form of the masks that a segmentation model finds."}),
        ),
        (
            "imgsz",
            json!({"type": "integer", "minimum": 1, "description": "Side of the model's input: one of those served."}),
        ),
        ("model", json!({"type": "string", "description": "The served model's name."})),
        (
            "timeout_ms",
            json!({"type": "integer", "minimum": 1, "maximum": 600_000, "examples": [60_000],
                   "description": "Milliseconds for the whole answer; past it 504."}),
        ),
    ]
}

/// As parameters of the query.
pub(super) fn of_query() -> Value {
    let query = |(name, mut schema): (&str, Value)| {
        let description = schema["description"].take();
        if let Some(schema) = schema.as_object_mut() {
            schema.remove("description");
        }
        json!({"name": name, "in": "query", "description": description, "schema": schema})
    };
    all().into_iter().map(query).chain(of_headers()).collect()
}

fn of_headers() -> impl Iterator<Item = Value> {
    let headers = [
        ("X-Request-Id", "Names the request in answers and logs."),
        ("traceparent", "W3C trace context, continued."),
        ("tracestate", "What other systems keep of the trace, passed on to the collector."),
        ("Cache-Control", "`no-cache`: run the model even if the answer is remembered."),
        ("X-Stream-Id", "Names a camera: a newer frame takes the place of its queued predecessor, which gets 409."),
        ("X-Retry-Attempt", "Greater than 1: the request was sent before, and is no new demand."),
    ];
    let header = |(name, description)| json!({"name": name, "in": "header", "description": description, "schema": {"type": "string"}});
    headers.into_iter().map(header)
}

/// As fields of a form or a JSON body.
pub(super) fn as_properties() -> Map<String, Value> {
    all().into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
}
