//! Requests as spans for an OpenTelemetry collector, over OTLP/gRPC; off unless a collector is named.
//!
//! A span is made when its request is over, from what was measured anyway: nothing is recorded on the way. It has the
//! id that the client was told in `traceparent`. Sampled is what the client samples, and every request whose client
//! names no trace (OpenTelemetry's `parentbased_always_on`).

use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId};
use opentelemetry::{InstrumentationScope, Key, KeyValue};
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{
    ExporterBuildError, OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, SpanExporter,
    WithExportConfig, WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor};

use crate::http::trace::TraceContext;
use crate::predictor::Speed;
use crate::{limits, random, tasks};

/// Name of the service in the traces, unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` give it another.
const SERVICE: &str = env!("CARGO_PKG_NAME");
/// What the library calls a service without a name begins so.
const NAMELESS: &str = "unknown_service";
/// The span of a batch's run.
const INFERENCE: &str = "inference";

/// Where spans go. They are sent in batches by a thread of its own; where the collector is slow or gone, they are lost.
#[derive(Debug)]
pub struct Traces {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
}

/// A request that is over.
#[derive(Debug)]
pub struct RequestSpan<'a> {
    /// Its place in the trace.
    pub context: &'a TraceContext,
    /// Its method.
    pub method: &'a str,
    /// Its endpoint: a closed set, as in the metrics.
    pub endpoint: &'static str,
    /// When its head was there; it ends now.
    pub begun: Instant,
    /// Times of its slowest image, if it held one.
    pub speed: Option<Speed>,
    /// Status of the answer.
    pub status: u16,
    /// Code of the error, if it was one.
    pub error: Option<&'static str>,
}

impl Traces {
    /// Sends spans to `endpoint`, such as `http://collector:4317`, or `https://` with a certificate that the system trusts; without one to where the standard variables
    /// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` and `OTEL_EXPORTER_OTLP_ENDPOINT` say, and without those nowhere.
    ///
    /// Must be called within a tokio runtime, which carries the connection.
    ///
    /// # Errors
    /// If the endpoint is no URL of ours, or no certificate is trusted that one over TLS needs. A collector that does not answer is no error.
    pub fn open(endpoint: Option<&str>) -> Result<Option<Self>, ExporterBuildError> {
        let variables = [OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_EXPORTER_OTLP_ENDPOINT];
        let standard = variables.into_iter().filter_map(|name| std::env::var(name).ok());
        let mut endpoints = endpoint.map(str::to_owned).into_iter().chain(standard);
        let Some(endpoint) = endpoints.find(|endpoint| !endpoint.is_empty()) else { return Ok(None) };
        let mut exporter = SpanExporter::builder().with_tonic().with_endpoint(&endpoint);
        if endpoint.starts_with("https:") {
            // The library trusts nobody by itself. Without need the system's certificates are not read: it may have none.
            exporter = exporter.with_tls_config(ClientTlsConfig::new().with_enabled_roots());
        }
        let exporter = exporter.build()?;
        let mut processor = BatchSpanProcessor::builder(exporter).build();
        processor.set_resource(&resource());
        let scope = InstrumentationScope::builder(SERVICE).with_version(env!("CARGO_PKG_VERSION")).build();
        tracing::info!(endpoint, "Traces are exported.");
        Ok(Some(Self { processor, scope }))
    }

    /// Takes a request that is over, if its trace is sampled. Never waits.
    pub fn record(&self, request: &RequestSpan<'_>) {
        let TraceContext { trace_id, parent_id, span_id, sampled, state } = request.context;
        let ids = (TraceId::from_hex(trace_id), SpanId::from_hex(span_id));
        let (true, (Ok(trace_id), Ok(span_id))) = (*sampled, ids) else { return };
        let parent_id = parent_id.as_deref().and_then(|id| SpanId::from_hex(id).ok());
        let now = (Instant::now(), SystemTime::now());
        let place = |span_id| SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, false, state.clone());
        let mut span = self.span(place(span_id), now, (request.begun, now.0));
        span.parent_span_id = parent_id.unwrap_or(SpanId::INVALID);
        span.parent_span_is_remote = parent_id.is_some();
        span.span_kind = SpanKind::Server;
        span.name = format!("{} {}", request.method, request.endpoint).into();
        span.attributes = attributes(request);
        if request.status >= 500 {
            // By convention only the server's own faults are errors of its span.
            span.status = Status::error(request.error.unwrap_or_default());
        }
        self.processor.on_end(span);
        let Some(speed) = request.speed else { return };
        for Stage { name, begun, ended } in stages(&speed) {
            let Ok(child_id) = SpanId::from_hex(&random::digits()) else { continue };
            let mut child = self.span(place(child_id), now, (begun, ended));
            child.parent_span_id = span_id;
            child.name = name.into();
            if name == INFERENCE {
                let images = i64::try_from(speed.batch_size).unwrap_or(i64::MAX);
                child.attributes = vec![KeyValue::new("yolo.batch_size", images)];
            }
            self.processor.on_end(child);
        }
    }

    /// A bare span from `begun` to `ended`; `now` on both clocks.
    fn span(
        &self,
        span_context: SpanContext,
        now: (Instant, SystemTime),
        (begun, ended): (Instant, Instant),
    ) -> SpanData {
        let on_calendar = |at: Instant| now.1 - now.0.saturating_duration_since(at);
        SpanData {
            span_context,
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: "".into(),
            start_time: on_calendar(begun),
            end_time: on_calendar(ended),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }

    /// Sends what is left and ends; blocks for at most [`limits::TRACES_FLUSH_MAX`].
    pub fn flush(&self) {
        if let Err(error) = self.processor.shutdown_with_timeout(limits::TRACES_FLUSH_MAX) {
            tracing::warn!(%error, "The last traces were not sent.");
        }
    }
}

/// A part of a request's time.
struct Stage {
    name: &'static str,
    begun: Instant,
    ended: Instant,
}

/// What an image that was run went through; its batch's time is its own. What was skipped is left out.
fn stages(speed: &Speed) -> Vec<Stage> {
    let Speed { enqueued: Some(enqueued), decode, preprocess, queue, inference, postprocess, .. } = *speed else {
        return Vec::new();
    };
    // It is queued as soon as it is prepared.
    let begun = enqueued.checked_sub(decode + preprocess).unwrap_or(enqueued);
    let lengths = [
        ("decode", decode),
        ("preprocess", preprocess),
        ("queue", queue),
        (INFERENCE, inference),
        ("postprocess", postprocess),
    ];
    let one_after_the_other = lengths.into_iter().scan(begun, |at, (name, length)| {
        let begun = std::mem::replace(at, *at + length);
        Some(Stage { name, begun, ended: begun + length })
    });
    one_after_the_other.filter(|stage| stage.ended > stage.begun).collect()
}

/// Whose spans they are.
fn resource() -> Resource {
    let standard = Resource::builder().build();
    let named = standard.get(&Key::from_static_str("service.name"));
    let named = named.is_some_and(|name| !name.as_str().starts_with(NAMELESS));
    let builder = Resource::builder().with_attributes([
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", tasks::host()),
        KeyValue::new("host.name", tasks::host()),
    ]);
    if named { builder } else { builder.with_service_name(SERVICE) }.build()
}

/// By OpenTelemetry's semantic conventions for HTTP; times in seconds.
fn attributes(request: &RequestSpan<'_>) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("http.request.method", request.method.to_owned()),
        KeyValue::new("http.route", request.endpoint),
        KeyValue::new("http.response.status_code", i64::from(request.status)),
    ];
    attributes.extend(request.error.map(|code| KeyValue::new("error.type", code)));
    if let Some(speed) = request.speed {
        let stages: [(&str, Duration); 4] = [
            ("yolo.read_seconds", speed.read),
            ("yolo.decode_seconds", speed.decode),
            ("yolo.preprocess_seconds", speed.preprocess),
            ("yolo.postprocess_seconds", speed.postprocess),
        ];
        attributes.extend(stages.map(|(name, time)| KeyValue::new(name, time.as_secs_f64())));
    }
    attributes
}
