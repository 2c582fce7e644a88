use std::sync::{Arc, Mutex};

use super::*;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::sync::mpsc;

/// A collector: what arrives is handed on.
struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let _ = self.0.send(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn collector() -> (String, mpsc::UnboundedReceiver<ExportTraceServiceRequest>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(Collector(sender)))
            .serve_with_incoming(incoming),
    );
    (endpoint, receiver)
}

fn config(endpoint: Option<String>) -> TelemetryConfig {
    TelemetryConfig { log: "off".to_owned(), otlp_endpoint: endpoint, ..TelemetryConfig::default() }
}

fn text(span: &Span, key: &str) -> Option<String> {
    let value = span.attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value?;
    match value {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_span_arrives_with_dotted_fields_name_kind_parent_and_resource() {
    let (endpoint, mut arrived) = collector().await;
    let (subscriber, guard) = build("shoal-node", "node-1", &config(Some(endpoint)), std::io::sink).unwrap();
    let sent = tracing::subscriber::with_default(subscriber, || {
        let span = tracing::info_span!(
            "request",
            otel.name = "GET blob",
            otel.kind = "server",
            http.url = "/v2/a/b/blobs/sha256:0?ns=docker.io",
            http.method = "GET",
            http.status_code = tracing::field::Empty,
        );
        set_parent(&span, CALLER);
        span.record("http.status_code", 200);
        let mut headers = http::HeaderMap::new();
        inject_http(&span, &mut headers);
        let mut metadata = tonic::metadata::MetadataMap::new();
        inject_grpc(&span, &mut metadata);
        let sent = traceparent_of(&span).unwrap();
        assert_eq!(headers["traceparent"].to_str().unwrap(), sent);
        assert_eq!(metadata.get("traceparent").unwrap().to_str().unwrap(), sent);
        span.in_scope(|| {
            let child = tracing::info_span!("child");
            let far = tracing::info_span!("far");
            extract_grpc(&far, &metadata);
            let far_http = tracing::info_span!("far_http");
            extract_http(&far_http, &headers);
            drop((child, far, far_http));
            tracing::debug_span!(target: "h2", "noise").in_scope(|| {});
        });
        sent
    });
    // No shutdown yet: the spans must come by themselves.
    let batch = tokio::time::timeout(Duration::from_secs(10), arrived.recv()).await.expect("no spans in 10 s").unwrap();
    let resource = &batch.resource_spans[0].resource.as_ref().unwrap().attributes;
    let named =
        |key: &str| resource.iter().find(|attribute| attribute.key == key).map(|found| format!("{:?}", found.value));
    assert!(named("service.name").unwrap().contains("shoal-node"));
    assert!(named("service.instance.id").unwrap().contains("node-1"));

    let spans: Vec<&Span> = batch.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans).collect();
    let by_name =
        |name: &str| *spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name}: {spans:#?}"));
    let request = by_name("GET blob");
    assert_eq!(text(request, "http.url").as_deref(), Some("/v2/a/b/blobs/sha256:0?ns=docker.io"));
    assert_eq!(text(request, "http.method").as_deref(), Some("GET"));
    assert_eq!(text(request, "http.status_code").as_deref(), Some("200"));
    assert_eq!(request.kind, 2, "SERVER");
    assert_eq!(format!("00-{}-{}-01", hex(&request.trace_id), hex(&request.span_id)), sent);
    assert_eq!(hex(&request.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex(&request.parent_span_id), "b7ad6b7169203331");
    for name in ["child", "far", "far_http"] {
        assert_eq!(by_name(name).parent_span_id, request.span_id, "{name}");
        assert_eq!(by_name(name).trace_id, request.trace_id, "{name}");
    }
    assert_eq!(spans.len(), 4, "{spans:#?}");
    guard.shutdown().await;
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn ending_sends_what_is_left_even_on_one_thread() {
    let (endpoint, mut arrived) = collector().await;
    let (subscriber, guard) = build("s", "i", &config(Some(endpoint)), std::io::sink).unwrap();
    tracing::subscriber::with_default(subscriber, || tracing::info_span!("last").in_scope(|| {}));
    guard.shutdown().await;
    let batch = arrived.try_recv().expect("nothing was sent before shutdown returned");
    assert_eq!(batch.resource_spans[0].scope_spans[0].spans[0].name, "last");
}

#[tokio::test]
async fn a_collector_that_is_away_delays_the_end_by_seconds_only() {
    let (subscriber, guard) = build("s", "i", &config(Some("http://127.0.0.1:9".to_owned())), std::io::sink).unwrap();
    tracing::subscriber::with_default(subscriber, || tracing::info_span!("lost").in_scope(|| {}));
    tokio::time::timeout(Duration::from_secs(10), guard.shutdown()).await.expect("it hung");
}

#[test]
fn without_an_endpoint_no_context_is_made() {
    let (subscriber, _guard) = build("s", "i", &config(None), std::io::sink).unwrap();
    tracing::subscriber::with_default(subscriber, || {
        let span = tracing::info_span!("request");
        set_parent(&span, CALLER);
        assert_eq!(traceparent_of(&span), None);
        let mut headers = http::HeaderMap::new();
        inject_http(&span, &mut headers);
        assert!(headers.is_empty());
    });
}

#[tokio::test]
async fn nonsense_from_a_caller_starts_a_trace_of_our_own() {
    let (endpoint, _arrived) = collector().await;
    let (subscriber, guard) = build("s", "i", &config(Some(endpoint)), std::io::sink).unwrap();
    tracing::subscriber::with_default(subscriber, || {
        for nonsense in ["", "x", "00-00000000000000000000000000000000-b7ad6b7169203331-01", "ff-1-2-3"] {
            let span = tracing::info_span!("request");
            set_parent(&span, nonsense);
            assert_ne!(traceparent_of(&span).unwrap(), nonsense);
        }
    });
    guard.shutdown().await;
}

#[tokio::test]
async fn a_bad_filter_or_endpoint_is_refused() {
    let bad = TelemetryConfig { log: "a=b=c".to_owned(), ..TelemetryConfig::default() };
    assert!(matches!(build("s", "i", &bad, std::io::sink), Err(TelemetryError::Filter(..))));
    for endpoint in ["127.0.0.1:4317", "https://collector:4317", "/x", ""] {
        let result = build("s", "i", &config(Some(endpoint.to_owned())), std::io::sink);
        assert!(matches!(result, Err(TelemetryError::Endpoint(..))), "{endpoint}");
    }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn json_lines_are_objects_with_fields_and_span() {
    let lines = Lines::default();
    let config = TelemetryConfig { log_format: LogFormat::Json, ..TelemetryConfig::default() };
    let (subscriber, _guard) = build("s", "i", &config, {
        let lines = lines.clone();
        move || lines.clone()
    })
    .unwrap();
    tracing::subscriber::with_default(subscriber, || {
        tracing::info_span!("request", id = 7).in_scope(|| tracing::info!(bytes = 3, "gave bytes"));
        tracing::debug!("not shown");
    });
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let objects: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects.len(), 1, "{text}");
    assert_eq!((&objects[0]["message"], &objects[0]["bytes"]), (&"gave bytes".into(), &3.into()), "{text}");
    assert_eq!(objects[0]["span"]["id"], 7, "{text}");
}
