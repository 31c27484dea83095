//! Model files that are torn, or that ask for more than there is: the server does not start, says why, and survives no
//! surprise on the way: no panic, no flood of memory.

use std::fs;
use std::path::Path;
use std::time::Instant;

use prost::Message;
use serde_json::Value;
use yolo_server::engine::LoadError;
use yolo_server::engine::ort::{Options, load};

use crate::onnx::runtime_is_there;
use crate::program::program;
use crate::support::{PATIENCE, fixture};

/// Of ONNX's protocol-buffer messages the fields that are used here, by the numbers of `onnx.proto3`.
mod proto {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Model {
        #[prost(int64, tag = "1")]
        pub ir_version: i64,
        #[prost(message, optional, tag = "7")]
        pub graph: Option<Graph>,
        #[prost(message, repeated, tag = "8")]
        pub opset_import: Vec<Opset>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Opset {
        #[prost(int64, tag = "2")]
        pub version: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Graph {
        #[prost(message, repeated, tag = "1")]
        pub node: Vec<Node>,
        #[prost(string, tag = "2")]
        pub name: String,
        #[prost(message, repeated, tag = "5")]
        pub initializer: Vec<Tensor>,
        #[prost(message, repeated, tag = "11")]
        pub input: Vec<Value>,
        #[prost(message, repeated, tag = "12")]
        pub output: Vec<Value>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Node {
        #[prost(string, repeated, tag = "1")]
        pub input: Vec<String>,
        #[prost(string, repeated, tag = "2")]
        pub output: Vec<String>,
        #[prost(string, tag = "4")]
        pub op_type: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Tensor {
        #[prost(int64, repeated, tag = "1")]
        pub dims: Vec<i64>,
        #[prost(int32, tag = "2")]
        pub data_type: i32,
        #[prost(int64, repeated, tag = "7")]
        pub int64_data: Vec<i64>,
        #[prost(string, tag = "8")]
        pub name: String,
        #[prost(bytes = "vec", tag = "9")]
        pub raw_data: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Value {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(message, optional, tag = "2")]
        pub kind: Option<Type>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Type {
        #[prost(message, optional, tag = "1")]
        pub tensor: Option<TensorType>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct TensorType {
        #[prost(int32, tag = "1")]
        pub elem_type: i32,
        #[prost(message, optional, tag = "2")]
        pub shape: Option<Shape>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Shape {
        #[prost(message, repeated, tag = "1")]
        pub dim: Vec<Dimension>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Dimension {
        #[prost(int64, tag = "1")]
        pub value: i64,
    }
}

const FLOAT: i32 = 1;
const INT64: i32 = 7;
/// Of 64 x 64 pixels and three classes.
const DETECTIONS: [i64; 3] = [1, 7, 84];

/// `output0 = base + max(weights)`, of plain detection's shapes, where `weights` is `initializer`, or what the operator `first` makes of it.
fn model(opset: i64, initializer: proto::Tensor, first: Option<&str>) -> Vec<u8> {
    let value = |name: &str, dims: &[i64]| {
        let shape = proto::Shape { dim: dims.iter().map(|value| proto::Dimension { value: *value }).collect() };
        let tensor = proto::TensorType { elem_type: FLOAT, shape: Some(shape) };
        proto::Value { name: name.to_owned(), kind: Some(proto::Type { tensor: Some(tensor) }) }
    };
    let node = |operator: &str, input: &[&str], output: &str| proto::Node {
        input: input.iter().map(ToString::to_string).collect(),
        output: vec![output.to_owned()],
        op_type: operator.to_owned(),
    };
    let weights = if first.is_some() { "made" } else { "given" };
    let made = first.map(|operator| node(operator, &["given"], "made"));
    let rest = [node("ReduceMax", &[weights], "largest"), node("Add", &["base", "largest"], "output0")];
    let base = proto::Tensor { name: "base".to_owned(), ..floats(&DETECTIONS, 4 * 7 * 84) };
    let graph = proto::Graph {
        node: made.into_iter().chain(rest).collect(),
        name: "hostile".to_owned(),
        initializer: vec![initializer, base],
        input: vec![value("images", &[1, 3, 64, 64])],
        output: vec![value("output0", &DETECTIONS)],
    };
    let opset_import = vec![proto::Opset { version: opset }];
    proto::Model { ir_version: 8, graph: Some(graph), opset_import }.encode_to_vec()
}

fn floats(dims: &[i64], bytes: usize) -> proto::Tensor {
    let name = "given".to_owned();
    proto::Tensor { dims: dims.to_vec(), data_type: FLOAT, int64_data: vec![], name, raw_data: vec![0; bytes] }
}

/// How the program ended: its exit code, its last words, the most memory that it ever had.
async fn refused(folder: &Path, model: &[u8]) -> (Option<i32>, Value, u64) {
    let (file, log) = (folder.join("served.onnx"), folder.join("log"));
    fs::write(&file, model).unwrap();
    fs::write(&log, "null").unwrap();
    let mut child = program(file.to_str().unwrap())
        .args(["--sessions=1", "--api-address=127.0.0.1:0", "--admin-address=127.0.0.1:0", "--termination-log"])
        .arg(&log)
        .spawn()
        .unwrap();
    let (begun, mut peak_kib) = (Instant::now(), 0);
    let status = loop {
        // Gone once it has ended: the last reading counts.
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        peak_kib = peak.map_or(peak_kib, |kib| kib.parse().unwrap());
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it neither serves nor ends");
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    };
    let told = serde_json::from_str(&fs::read_to_string(&log).unwrap()).unwrap();
    (status.code(), told, peak_kib)
}

#[tokio::test]
async fn a_model_that_asks_for_too_much_ends_the_program_with_its_reason() {
    if !runtime_is_there("a_model_that_asks_for_too_much_ends_the_program_with_its_reason") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let shape = proto::Tensor {
        dims: vec![2],
        data_type: INT64,
        int64_data: vec![1 << 20, 1 << 20],
        name: "given".to_owned(),
        raw_data: vec![],
    };
    let sound = folder.path().join("sound.onnx");
    fs::write(&sound, model(17, floats(&[4], 16), None)).unwrap();
    assert!(load(&Options::new(&sound)).is_ok(), "nothing else is wrong with the others");
    for (name, model, reason) in [
        ("an opset of the future", model(9_999, floats(&[1], 4), None), "opset"),
        ("no opset", model(0, floats(&[1], 4), None), "domain_version of 0"),
        ("a giant tensor of few bytes", model(17, floats(&[1 << 40], 16), None), "given"),
        ("a large tensor of few bytes", model(17, floats(&[500_000_000], 16), None), "given"),
        ("a large tensor of no bytes", model(17, floats(&[500_000_000], 0), None), "given"),
        ("a giant tensor of no bytes", model(17, floats(&[1 << 20, 1 << 20], 0), None), "given"),
        ("more values than numbers count", model(17, floats(&[1 << 32, 1 << 32], 16), None), "overflow"),
        ("a negative size", model(17, floats(&[-4], 16), None), "dimensions"),
        ("a giant tensor that is computed", model(17, shape, Some("ConstantOfShape")), "memory"),
    ] {
        let (code, told, peak_kib) = refused(folder.path(), &model).await;
        println!("{name}: {code:?}, {peak_kib} KiB, {told}");
        assert_eq!(code, Some(1), "{name}: {told}");
        let message = told["message"].as_str().unwrap();
        assert!(message.contains(reason), "{name}: {told}");
        assert!(peak_kib > 0 && peak_kib < 256 << 10, "{name}: {peak_kib} KiB");
    }
}

#[test]
fn a_model_cut_anywhere_is_refused() {
    if !runtime_is_there("a_model_cut_anywhere_is_refused") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (path, whole) = (folder.path().join("cut.onnx"), fs::read(fixture("standard.onnx")).unwrap());
    // Cut between two fields behind its graph it is a model still, of which only its digest tells that it is another.
    let is_torn = |end: usize| proto::Model::decode(&whole[..end]).map_or(true, |model| model.graph.is_none());
    let torn: Vec<_> = (0..whole.len()).step_by(16).filter(|end| is_torn(*end)).collect();
    assert!(torn.len() > 200, "{}", torn.len());
    for end in torn {
        fs::write(&path, &whole[..end]).unwrap();
        let refused = load(&Options::new(&path)).expect_err("a model without its end");
        assert!(matches!(refused, LoadError::Truncated { .. } | LoadError::Unsupported { .. }), "{end}: {refused}");
        assert!(refused.to_string().contains("cut.onnx"), "{end}: {refused}");
    }
}
