//! Every request can be found again: by its id, by its trace, in the log.

use std::io;
use std::sync::{Arc, Mutex};

use axum::http::Request;
use serde_json::Value;
use tracing_subscriber::fmt::MakeWriter;

use crate::support::{call, emulated, png, send, start};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().map_err(|_| io::Error::other("another test panicked"))?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_trace_is_continued_in_the_answer_even_if_it_is_an_error() {
    let server = start(emulated(0, 1)).await;
    for body in [png(8, 8, [1; 3]), b"no picture".to_vec()] {
        let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let request = Request::post("/predict").header("traceparent", &parent).body(body.into()).unwrap();
        let answer = send(&server, request).await;
        let continued = answer.headers["traceparent"].to_str().unwrap();
        assert!(continued.starts_with(&format!("00-{TRACE}-")) && continued.ends_with("-01"), "{continued}");
        assert_ne!(continued, parent, "the server's own span");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_request_id_is_kept_if_it_is_fit_and_made_if_not() {
    let server = start(emulated(0, 1)).await;
    for (given, kept) in [("order-17", true), ("", false), (&"x".repeat(129), false)] {
        let request = Request::get("/version").header("x-request-id", given).body(axum::body::Body::empty()).unwrap();
        let id = send(&server, request).await.headers["x-request-id"].clone();
        assert!(!id.is_empty() && (id == given) == kept, "{given} -> {id:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn each_request_is_one_line_of_the_log_that_names_it() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().json().with_writer(log.clone()).finish();
    let server = start(emulated(0, 1)).await;
    // For the whole process: what one thread alone listens to may be lost while others log for the first time.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let request = Request::post("/predict?conf=0.5").header("x-request-id", "well logged");
    call(
        &server,
        request
            .header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-00"))
            .body(png(8, 8, [1; 3]).into())
            .unwrap(),
    )
    .await;
    let request = Request::post("/predict").header("x-request-id", "badly logged");
    call(&server, request.body("no picture".into()).unwrap()).await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ours = |line: &&Value| line["fields"]["request_id"].as_str().is_some_and(|id| id.ends_with(" logged"));
    let lines: Vec<_> = lines.iter().filter(ours).collect();
    let [good, bad] = lines.as_slice() else { panic!("two requests, two lines:\n{text}") };
    assert_eq!(good["target"], "yolo_server::request");
    let good = &good["fields"];
    assert_eq!((&good["request_id"], &good["trace_id"]), (&"well logged".into(), &TRACE.into()));
    assert_eq!((&good["method"], &good["path"], &good["status"]), (&"POST".into(), &"/predict".into(), &200.into()));
    assert!(good["duration_ms"].as_f64().unwrap() >= good["queue_and_inference_ms"].as_f64().unwrap());
    assert_eq!((&bad["fields"]["status"], &bad["fields"]["error"]), (&415.into(), &"unsupported_image".into()));
    server.stop().await;
}
