//! Every request can be found again: by its id, by its trace, in the log.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::Request;
use futures::FutureExt;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use tracing_subscriber::fmt::MakeWriter;
use yolo_server::{Config, http};

use crate::program::{ended, free_address, program, terminate};
use crate::support::{call, emulated, eventually, get, png, predict, send, send_to, start, start_gated};

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

/// A collector that keeps what it gets.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ResourceSpans>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.lock().unwrap().extend(request.into_inner().resource_spans);
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Serves it over OTLP/gRPC.
    async fn start() -> (Self, String) {
        let (collector, address) = Self::over(async |stream| Some(stream)).await;
        (collector, format!("http://{address}"))
    }

    /// Serves it over OTLP/gRPC behind TLS; returns its certificate too, as PEM.
    async fn start_secured() -> (Self, String, String) {
        let identity = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = identity.signing_key.serialize_der().try_into().unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let chain = vec![identity.cert.der().clone()];
        let mut config = versions.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        // A client that does not trust it hangs up.
        let (collector, address) = Self::over(move |stream| acceptor.accept(stream).map(Result::ok)).await;
        (collector, format!("https://localhost:{}", address.port()), identity.cert.pem())
    }

    async fn over<S, F>(secured: impl Fn(TcpStream) -> F + Send + 'static) -> (Self, SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        F: Future<Output = Option<S>> + Send,
    {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = TowerToHyperService::new(TraceServiceServer::new(collector.clone()));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Some(stream) = secured(stream).await else { continue };
                let connection = http2::Builder::new(TokioExecutor::new());
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service.clone()));
            }
        });
        (collector, address)
    }

    fn resources(&self) -> Vec<ResourceSpans> {
        self.0.lock().unwrap().clone()
    }

    /// The spans of a trace by their names.
    fn trace(&self, id: &str) -> BTreeMap<String, Span> {
        let scopes = self.resources().into_iter().flat_map(|resource| resource.scope_spans);
        let spans = scopes.flat_map(|scope| scope.spans).filter(|span| hex(&span.trace_id) == id);
        spans.map(|span| (span.name.clone(), span)).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> &'a str {
    let attribute = attributes.iter().find(|attribute| attribute.key == key);
    match attribute.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(AnyValue::StringValue(text)) => text,
        other => panic!("{key}: {other:?}"),
    }
}

fn traced(uri: &str, trace_id: &str, flags: &str, body: Vec<u8>) -> Request<axum::body::Body> {
    let request = Request::post(uri).header("traceparent", format!("00-{trace_id}-00f067aa0ba902b7-{flags}"));
    request.header("tracestate", "rojo=1").body(body.into()).unwrap()
}

fn collected_at(endpoint: String, config: Config) -> Config {
    Config { otlp_endpoint: Some(endpoint), ..config }
}

#[tokio::test]
async fn a_collector_gets_each_sampled_request_as_a_span_of_its_clients_trace() {
    let (collector, endpoint) = Collector::start().await;
    let (server, gate) = start_gated(collected_at(endpoint, emulated(30, 0))).await;
    let [good, bad, late, unsampled] = ["a", "b", "c", "d"].map(|digit| digit.repeat(32));
    let picture = png(8, 8, [1; 3]);
    let answer = send(&server, traced("/predict", &good, "01", picture.clone())).await;
    let own = answer.headers["traceparent"].to_str().unwrap().split('-').nth(2).unwrap().to_owned();
    send(&server, traced("/predict", &bad, "01", b"no picture".to_vec())).await;
    let held = gate.hold().await;
    send(&server, traced("/predict?timeout_ms=5", &late, "01", png(8, 8, [2; 3]))).await;
    drop(held);
    send(&server, traced("/predict", &unsampled, "00", picture.clone())).await;
    let begun = predict(&server, &picture).await.headers["traceparent"].to_str().unwrap().to_owned();
    let begun = begun.split('-').nth(1).unwrap();
    server.drain().await;

    // No waiting: the drain has flushed.
    let spans = collector.trace(&good);
    let request = &spans["POST predict"];
    assert_eq!((hex(&request.span_id), hex(&request.parent_span_id)), (own, "00f067aa0ba902b7".to_owned()));
    assert_eq!((request.kind, request.trace_state.as_str()), (SpanKind::Server as i32, "rojo=1"));
    assert_eq!(request.status.as_ref().map_or(0, |status| status.code), StatusCode::Unset as i32);
    for name in ["decode", "preprocess", "queue", "inference", "postprocess"] {
        let child = &spans[name];
        assert_eq!(child.parent_span_id, request.span_id, "{name}");
        assert!(request.start_time_unix_nano <= child.start_time_unix_nano, "{name}");
        assert!(child.end_time_unix_nano <= request.end_time_unix_nano, "{name}");
    }
    let inference = &spans["inference"];
    let batch = &inference.attributes.iter().find(|attribute| attribute.key == "yolo.batch_size").unwrap().value;
    assert_eq!(batch.as_ref().unwrap().value, Some(AnyValue::IntValue(1)));
    assert!(spans["decode"].end_time_unix_nano <= spans["queue"].start_time_unix_nano);
    let took = Duration::from_nanos(inference.end_time_unix_nano - inference.start_time_unix_nano);
    assert!(took >= Duration::from_millis(25), "the emulated engine's 30 ms, {took:?}");

    let request = &collector.trace(&bad)["POST predict"];
    assert_eq!(text(&request.attributes, "error.type"), "unsupported_image");
    assert_eq!(request.status.as_ref().map_or(0, |status| status.code), StatusCode::Unset as i32, "the client's fault");
    let request = &collector.trace(&late)["POST predict"];
    let status = request.status.as_ref().unwrap();
    assert_eq!((status.code, status.message.as_str()), (StatusCode::Error as i32, "deadline_exceeded"));
    assert!(collector.trace(&unsampled).is_empty(), "its client does not record it");
    assert_eq!(collector.trace(begun)["POST predict"].parent_span_id, [0_u8; 0], "a trace of its own");

    for resource in collector.resources() {
        let attributes = resource.resource.unwrap().attributes;
        assert_eq!(text(&attributes, "service.name"), "yolo-server");
        assert!(!text(&attributes, "service.instance.id").is_empty(), "the pod's name");
    }
}

#[tokio::test]
async fn a_collector_that_is_gone_or_hangs_costs_no_request_its_time() {
    let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = free_address();
    for address in [hangs.local_addr().unwrap(), gone] {
        let server = start(collected_at(format!("http://{address}"), emulated(0, 1))).await;
        let router = http::router(server.app());
        let begun = Instant::now();
        // More spans than wait for a collector at most.
        for number in 0..3_000 {
            let request =
                Request::get("/version").header("traceparent", format!("00-{number:032x}-00f067aa0ba902b7-01"));
            let request = request.body(axum::body::Body::empty()).unwrap();
            assert_eq!(router.clone().oneshot(request).await.unwrap().status(), 200);
        }
        assert!(begun.elapsed() < Duration::from_secs(15), "{address}: {:?}", begun.elapsed());
        assert_eq!(predict(&server, &png(8, 8, [1; 3])).await.status, 200);
        let draining = Instant::now();
        server.drain().await;
        assert!(draining.elapsed() < Duration::from_secs(15), "{address}: {:?}", draining.elapsed());
    }
}

#[tokio::test]
async fn the_standard_variable_names_the_collector_and_a_signal_flushes() {
    let (collector, endpoint) = Collector::start().await;
    let trace_id = "e".repeat(32);
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_SERVICE_NAME", "cameras")];
    // The last flush has its limit, and this slow machine's collector may miss it.
    for _ in 0..3 {
        traced_by_a_program(&trace_id, &variables).await;
        if collector.trace(&trace_id).contains_key("POST predict") {
            break;
        }
    }
    assert!(collector.trace(&trace_id).contains_key("POST predict"), "{:?}", collector.resources());
    let attributes = collector.resources().remove(0).resource.unwrap().attributes;
    assert_eq!(text(&attributes, "service.name"), "cameras");
}

#[tokio::test]
async fn a_collector_behind_tls_is_told_only_if_its_certificate_is_trusted() {
    let trace_id = "f".repeat(32);
    for trusted in [true, false] {
        let (collector, endpoint, own) = Collector::start_secured().await;
        let (_, _, another) = Collector::start_secured().await;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, if trusted { own } else { another }).unwrap();
        let roots = file.path().to_str().unwrap();
        for _ in 0..3 {
            traced_by_a_program(&trace_id, &[("YOLO_OTLP_ENDPOINT", &endpoint), ("SSL_CERT_FILE", roots)]).await;
            if collector.trace(&trace_id).contains_key("POST predict") {
                break;
            }
        }
        assert_eq!(collector.trace(&trace_id).contains_key("POST predict"), trusted, "{:?}", collector.resources());
    }
}

/// Runs the program with these variables, sends it one request of a trace and ends it.
async fn traced_by_a_program(trace_id: &str, variables: &[(&str, &str)]) {
    let (api, admin): (SocketAddr, SocketAddr) = (free_address(), free_address());
    let mut child = program("pretended.onnx")
        .args(["--engine=emulated", "--imgsz=64", "--drain-propagation-seconds=0"])
        .args(["--api-address".to_owned(), api.to_string(), "--admin-address".to_owned(), admin.to_string()])
        .envs(variables.iter().copied())
        .spawn()
        .unwrap();
    eventually("ready", async || get(admin, "/readyz").await.is_ok_and(|(status, _)| status == 200)).await;
    assert_eq!(send_to(api, traced("/predict", trace_id, "01", png(8, 8, [1; 3]))).await.status, 200);
    terminate(&child);
    assert!(ended(&mut child).await.success());
}
