//! Schema pieces that the derive cannot express.

use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema, transform::transform_subschemas};
use serde_json::{Map, Value, json};

/// Most entries of a map of labels, annotations or selectors.
pub const MAP_ENTRIES_MAX: u32 = 32;
/// Most characters of a map value: a label value has 63, an annotation may carry a little JSON.
const MAP_VALUE_CHARS_MAX: u32 = 1024;
/// Bounds given to embedded Kubernetes types, which have none of their own.
const EMBEDDED_CHARS_MAX: u32 = 256;
const EMBEDDED_ITEMS_MAX: u32 = 16;

/// A bounded map of text to text.
pub fn text_map(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": MAP_ENTRIES_MAX,
        "additionalProperties": { "type": "string", "maxLength": MAP_VALUE_CHARS_MAX },
    })
}

/// The schema of an embedded Kubernetes type with every string, list and map bounded and the texts left out
/// (`kubectl explain` of the original type has them; here they would be most of the CRD's bytes).
pub fn embedded<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = T::json_schema(generator);
    bound(&mut schema);
    schema
}

/// The schema of `status.conditions`: as [`embedded`], but a message may be as long as `status::clip` leaves it.
pub fn conditions(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = embedded::<Vec<Condition>>(generator);
    // Inlined, because a reference would share the bound with every other embedded type.
    let mut condition = embedded::<Condition>(generator);
    if let Some(message) = condition.pointer_mut("/properties/message/maxLength") {
        *message = Value::from(super::status::TEXT_CHARS_MAX);
    }
    schema.insert("items".to_owned(), condition.into());
    schema
}

/// The schema of the peers of a network policy: as [`embedded`], and what an expression must be in either of its selectors.
pub fn peers(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = embedded::<Vec<NetworkPolicyPeer>>(generator);
    let rule = json!([{
        "rule": "has(self.values) && size(self.values) > 0 ? self.operator in ['In', 'NotIn'] : self.operator in ['Exists', 'DoesNotExist']",
        "message": "matchExpressions of allowedClients need the operator In or NotIn with values, or Exists or DoesNotExist without",
    }]);
    for selector in ["namespaceSelector", "podSelector"] {
        let path = format!("/items/properties/{selector}/properties/matchExpressions/items");
        if let Some(Value::Object(expression)) = schema.pointer_mut(&path) {
            expression.insert("x-kubernetes-validations".to_owned(), rule.clone());
        }
    }
    schema
}

fn bound(schema: &mut Schema) {
    if let Some(object) = schema.as_object_mut() {
        object.remove("description");
        for (kind, key, limit) in [
            ("string", "maxLength", EMBEDDED_CHARS_MAX),
            ("array", "maxItems", EMBEDDED_ITEMS_MAX),
            ("object", "maxProperties", MAP_ENTRIES_MAX),
        ] {
            let is_map = kind != "object" || object.contains_key("additionalProperties");
            if is_map && is_of(object, kind) && !object.contains_key(key) && !object.contains_key("enum") {
                object.insert(key.to_owned(), Value::from(limit));
            }
        }
    }
    transform_subschemas(&mut |sub: &mut Schema| bound(sub), schema);
}

fn is_of(object: &Map<String, Value>, kind: &str) -> bool {
    match object.get("type") {
        Some(Value::String(one)) => one == kind,
        Some(Value::Array(several)) => several.iter().any(|one| one == kind),
        _ => false,
    }
}
