//! The schema's own promises, without a cluster: every rule accepts and refuses, everything is bounded, and the
//! defaults of the schema and of the types are the same.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "helpers of tests fail by panicking")]

use std::collections::BTreeSet;

use kube_cel::Validator;
use serde_json::{Value, json};
use yolo_api::v1alpha1::{YoloInferenceService, targets::Targets, validate::client};

/// The CRD's `OpenAPI` schema of `v1alpha1`.
fn schema() -> Value {
    let crd = serde_json::to_value(yolo_api::crd::definition()).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

fn object(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "yolo-operator.io/v1alpha1", "kind": "YoloInferenceService",
        "metadata": {"name": name}, "spec": spec,
    })
}

/// Visits `schema` and every schema in it, with its path.
fn walk(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(property, &format!("{path}.{name}"), visit);
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            walk(&schema[inner], &format!("{path}[]"), visit);
        }
    }
}

/// The message of every rule; one that several places share is one.
fn rule_messages() -> BTreeSet<String> {
    let mut messages = BTreeSet::new();
    walk(&schema(), "", &mut |path, schema| {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let message = rule["message"].as_str();
            messages.insert(message.unwrap_or_else(|| panic!("a rule of {path} has no message")).to_owned());
        }
    });
    messages
}

/// What the schema says against `object`.
fn judge(object: &Value) -> Vec<String> {
    let errors = Validator::new().validate_with_defaults(&schema(), object, None).err();
    errors.iter().flatten().map(|error| error.message.clone()).collect()
}

fn cases() -> Vec<Value> {
    serde_yaml_ng::from_str(include_str!("../fixtures/rules.yaml")).unwrap()
}

#[test]
fn every_rule_has_one_accepted_and_one_refused_case() {
    let messages = rule_messages();
    assert!(!messages.is_empty());
    for case in cases() {
        let says = case["says"].as_str().unwrap();
        assert_eq!(messages.iter().filter(|message| message.contains(says)).count(), 1, "{says}");
        assert!(case["accept"].is_object() && case["reject"].is_object(), "{says}");
    }
    for message in messages {
        let covered = cases().iter().filter(|case| message.contains(case["says"].as_str().unwrap())).count();
        assert_eq!(covered, 1, "cases of the rule {message:?}");
    }
}

#[test]
fn every_rule_accepts_and_refuses_with_its_message() {
    for case in cases() {
        let says = case["says"].as_str().unwrap();
        let name = |which: &str| case["name"][which].as_str().unwrap_or("a");
        assert_eq!(judge(&object(name("accept"), &case["accept"])), Vec::<String>::new(), "accepted case of {says}");
        let refused = judge(&object(name("reject"), &case["reject"]));
        assert!(refused.iter().any(|message| message.contains(says)), "{says} is not among {refused:?}");
    }
}

#[test]
fn address_range_that_the_operator_would_leave_out_is_refused() {
    for (cidr, except) in [
        ("10.0.0.0", None),
        ("10.0.0.0/33", None),
        ("::ffff:10.0.0.0/104", None),
        ("10.0.0.0/8", Some("11.1.0.0/16")),
        ("10.0.0.0/8", Some("10.0.0.0/8")),
    ] {
        let block = json!({"cidr": cidr, "except": except.map_or_else(Vec::new, |part| vec![part])});
        let peer = json!({"ipBlock": block});
        assert!(client(&serde_json::from_value(peer.clone()).unwrap()).is_err(), "{peer}");
        let network = json!({"allowedClients": [peer]});
        let spec = json!({"model": {"source": {"imagePath": "/models/a.onnx"}}, "network": network});
        assert!(judge(&object("a", &spec)).iter().any(|message| message.contains("ipBlock.")), "{spec}");
    }
}

#[test]
fn expressions_of_both_selectors_are_judged_alike_and_as_the_operator_does() {
    for selector in ["namespaceSelector", "podSelector"] {
        for (expression, good) in [
            (json!({"key": "app", "operator": "NotIn", "values": ["shop"]}), true),
            (json!({"key": "app", "operator": "Exists"}), true),
            (json!({"key": "app", "operator": "DoesNotExist", "values": []}), true),
            (json!({"key": "app", "operator": "In", "values": []}), false),
            (json!({"key": "app", "operator": "Exists", "values": ["shop"]}), false),
            (json!({"key": "app", "operator": "in", "values": ["shop"]}), false),
        ] {
            let mut peer = json!({});
            peer[selector] = json!({"matchExpressions": [expression]});
            assert_eq!(client(&serde_json::from_value(peer.clone()).unwrap()).is_ok(), good, "{peer}");
            let network = json!({"allowedClients": [peer]});
            let spec = json!({"model": {"source": {"imagePath": "/models/a.onnx"}}, "network": network});
            let refused = judge(&object("a", &spec));
            assert_eq!(refused.is_empty(), good, "{spec}: {refused:?}");
            assert!(
                refused.iter().all(|message| message.contains("matchExpressions of allowedClients")),
                "{refused:?}"
            );
        }
    }
}

#[test]
fn every_text_list_and_map_is_bounded() {
    walk(&schema(), "", &mut |path, schema| {
        let bounded = |key: &str| schema[key].is_u64() || schema["enum"].is_array() || schema["format"] == "date-time";
        match schema["type"].as_str() {
            // metadata is the API server's, which has its own bounds
            _ if path == ".metadata" || path == ".kind" || path == ".apiVersion" => {}
            Some("string") => assert!(bounded("maxLength"), "text {path}"),
            Some("array") => assert!(bounded("maxItems"), "list {path}"),
            Some("object") if schema["additionalProperties"].is_object() => {
                assert!(bounded("maxProperties"), "map {path}");
            }
            _ => {}
        }
    });
}

#[test]
fn every_field_of_the_spec_is_described() {
    walk(&schema()["properties"]["spec"], "spec", &mut |path, schema| {
        // embedded Kubernetes types: their own documentation has the texts
        let embedded = ["affinity", "tolerations", "topologySpread", "allowedClients"].iter().any(|e| path.contains(e));
        if !embedded && !path.ends_with("[]") {
            assert!(schema["description"].is_string(), "{path} has no description");
        }
    });
}

#[test]
fn defaults_of_the_schema_are_those_of_the_types() {
    let smallest: Value = serde_yaml_ng::from_str(include_str!("../../../examples/smallest.yaml")).unwrap();
    let by_schema = kube_cel::apply_defaults(&schema(), &smallest);
    let by_types: YoloInferenceService = serde_json::from_value(smallest).unwrap();
    assert_eq!(serde_json::from_value::<YoloInferenceService>(by_schema.clone()).unwrap(), by_types);
    assert_eq!(by_schema["spec"]["scaling"]["batch"], json!({"min": 1, "max": 16}));
}

#[test]
fn absent_targets_are_all_six_and_present_ones_only_those_listed() {
    let spec = |targets: Value| -> YoloInferenceService {
        let mut spec = json!({"model": {"source": {"imagePath": "/models/a.onnx"}}});
        spec["targets"] = targets;
        serde_json::from_value(object("a", &spec)).unwrap()
    };
    assert_eq!(spec(Value::Null).spec.targets().into_owned(), Targets::default());
    let listed = spec(json!({"throughput": {"imagesPerSecond": 5}})).spec.targets().into_owned();
    assert_eq!(listed.throughput.map(|target| target.images_per_second), Some(5));
    assert!(listed.api_latency.is_none() && listed.memory_per_worker.is_none());
    assert_eq!(listed.window, Targets::default().window);
}

#[test]
fn every_example_is_what_the_types_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");
    let mut names = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let written: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let read: YoloInferenceService = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(lost(&written["spec"], &serde_json::to_value(&read.spec).unwrap(), "spec"), None, "{path:?}");
        names.push(path.file_name().unwrap().to_owned());
    }
    assert!(names.len() >= 5, "{names:?}");
}

/// The first field of `written` that `read` does not have: a field that the types do not know.
fn lost(written: &Value, read: &Value, path: &str) -> Option<String> {
    match written {
        Value::Object(fields) => {
            fields.iter().find_map(|(name, value)| lost(value, &read[name], &format!("{path}.{name}")))
        }
        Value::Array(items) => {
            items.iter().enumerate().find_map(|(at, value)| lost(value, &read[at], &format!("{path}[{at}]")))
        }
        _ => read.is_null().then(|| path.to_owned()),
    }
}
