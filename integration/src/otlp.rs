//! A receiver of traces (OTLP over gRPC), so that what the daemons export can be looked at from outside.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Write as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value},
};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// The receiver's port.
pub const PORT: u16 = 4317;

/// A span as it was received.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct SpanRecord {
    /// Trace, in hex.
    pub trace: String,
    /// Span, in hex.
    pub span: String,
    /// Parent, in hex; empty for a root.
    pub parent: String,
    /// Name.
    pub name: String,
    /// `service.name` of the process.
    pub service: String,
    /// `service.instance.id` of the process.
    pub instance: String,
    /// Nanoseconds since the epoch.
    pub start: u64,
    /// Nanoseconds since the epoch.
    pub end: u64,
    /// Attributes, as text.
    pub attributes: BTreeMap<String, String>,
}

impl SpanRecord {
    /// How long it took, in seconds.
    pub fn seconds(&self) -> f64 {
        self.end.saturating_sub(self.start) as f64 / 1e9
    }
}

/// What was received so far.
#[derive(Debug, Clone, Default)]
pub struct Spans(Arc<Mutex<Vec<SpanRecord>>>);

impl Spans {
    /// A copy of all spans.
    pub fn all(&self) -> Vec<SpanRecord> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, spans: impl IntoIterator<Item = SpanRecord>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(spans);
    }
}

/// The receiver; it ends when dropped.
pub struct Receiver {
    spans: Spans,
    kept: Kept,
    serving: JoinHandle<()>,
}

impl Receiver {
    /// Serves on the listener.
    pub fn spawn(listener: TcpListener) -> Self {
        let spans = Spans::default();
        let kept = Kept::default();
        let service = TraceServiceServer::new(Sink(spans.clone(), kept.clone())).max_decoding_message_size(64 << 20);
        let serving = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            if let Err(error) =
                tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await
            {
                tracing::error!(%error, "trace receiver ended");
            }
        });
        Self { spans, kept, serving }
    }

    /// From now on everything that comes is written to a file as well, whatever it says: events, links and states too.
    ///
    /// # Errors
    /// When the file can't be made.
    pub fn keep_in(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(())
    }

    /// What was received; grows as it comes in.
    pub fn spans(&self) -> &Spans {
        &self.spans
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Where requests are written as they came.
type Kept = Arc<Mutex<Option<File>>>;

struct Sink(Spans, Kept);

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let request = request.into_inner();
        if let Some(file) = self.1.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            file.write_all(&request.encode_to_vec()).map_err(|error| Status::internal(error.to_string()))?;
        }
        for resource in request.resource_spans {
            let of = attributes(resource.resource.map(|resource| resource.attributes).unwrap_or_default());
            let get = |key: &str| of.get(key).cloned().unwrap_or_default();
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.0.add(spans.map(|span| SpanRecord {
                trace: hex::encode(span.trace_id),
                span: hex::encode(span.span_id),
                parent: hex::encode(span.parent_span_id),
                name: span.name,
                service: get("service.name"),
                instance: get("service.instance.id"),
                start: span.start_time_unix_nano,
                end: span.end_time_unix_nano,
                attributes: attributes(span.attributes),
            }));
        }
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

fn attributes(list: Vec<KeyValue>) -> BTreeMap<String, String> {
    list.into_iter().map(|pair| (pair.key, text(pair.value))).collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::DoubleValue(number)) => number.to_string(),
        Some(any_value::Value::BoolValue(truth)) => truth.to_string(),
        _ => String::new(),
    }
}

/// What the trace of one blob on one node shows.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
pub struct BlobTrace {
    /// Which node's mirror was asked.
    pub node: String,
    /// What it was asked, as containerd did.
    pub url: String,
    /// The trace that the mirror's span is in.
    pub trace: String,
    /// The mirror's span took this long, in seconds.
    pub seconds: f64,
    /// Instances of every service that had a part, by service name.
    pub services: BTreeMap<String, BTreeSet<String>>,
    /// Names of the spans, `service/name`, without repeats.
    pub spans: BTreeSet<String>,
    /// Instances whose spans say that they read the origin.
    pub origin_readers: BTreeSet<String>,
    /// Instances, other than the node's, that served a parent's part.
    pub serving_peers: BTreeSet<String>,
}

/// Finds the request at the mirror of `instance` whose `http.url` asks for `digest`, and tells what served it: the spans below
/// it, or below the flight that it joined (its parent).
///
/// Of several requests for the blob the one with most spans is taken: another may only have read what was there.
pub fn blob_trace(spans: &[SpanRecord], instance: &str, repository: &str, digest: &str) -> Option<BlobTrace> {
    let path = format!("/v2/{repository}/blobs/{digest}?ns=");
    let at_mirror = |span: &&SpanRecord| {
        span.instance == instance && span.attributes.get("http.url").is_some_and(|url| url.starts_with(&path))
    };
    let (entry, served) = spans
        .iter()
        .filter(at_mirror)
        .map(|entry| (entry, served_by(spans, entry)))
        .max_by_key(|(_, served)| served.len())?;
    let mut found = BlobTrace {
        node: instance.to_owned(),
        url: entry.attributes["http.url"].clone(),
        trace: entry.trace.clone(),
        seconds: entry.seconds(),
        ..BlobTrace::default()
    };
    for span in served {
        found.services.entry(span.service.clone()).or_default().insert(span.instance.clone());
        found.spans.insert(format!("{}/{}", span.service, span.name));
        // The origin is what is asked by an absolute URL; containerd's own requests name a path.
        let asks_origin =
            span.attributes.get("http.url").is_some_and(|url| url.starts_with("https://") && url.contains(digest));
        if asks_origin {
            found.origin_readers.insert(span.instance.clone());
        }
        if span.service == "shoal-node" && span.instance != instance {
            found.serving_peers.insert(span.instance.clone());
        }
    }
    Some(found)
}

/// The spans of one trace that are below the entry's parent (the entry's own when that is no span of the same process).
fn served_by<'a>(spans: &'a [SpanRecord], entry: &'a SpanRecord) -> Vec<&'a SpanRecord> {
    let of_trace: Vec<&SpanRecord> = spans.iter().filter(|span| span.trace == entry.trace).collect();
    let flight = of_trace.iter().find(|span| span.span == entry.parent && span.instance == entry.instance);
    let mut below = vec![*flight.unwrap_or(&entry)];
    let mut at = 0;
    while let Some(parent) = below.get(at) {
        let parent = parent.span.clone();
        below.extend(of_trace.iter().filter(|span| span.parent == parent));
        at += 1;
    }
    below
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(ids: [&str; 3], service: &str, instance: &str, url: &str) -> SpanRecord {
        let [trace, span, parent] = ids.map(str::to_owned);
        SpanRecord {
            trace,
            span,
            parent,
            name: "x".into(),
            service: service.into(),
            instance: instance.into(),
            start: 0,
            end: 1_500_000_000,
            attributes: [("http.url".to_owned(), url.to_owned())].into(),
        }
    }

    const URL: &str = "/v2/lab/demo/blobs/sha256:aa?ns=r";
    const ORIGIN: &str = "https://r/v2/lab/demo/blobs/sha256:aa";

    #[test]
    fn one_trace_over_three_processes_is_told_apart_from_others() {
        let spans = [
            span(["t1", "1", ""], "shoal-node", "a2", URL),
            span(["t1", "2", "1"], "shoal-control", "control", ""),
            span(["t1", "3", "1"], "shoal-node", "a1", ""),
            span(["t2", "1", ""], "shoal-node", "a1", URL),
            span(["t2", "2", "1"], "shoal-node", "a1", ORIGIN),
        ];
        let second = blob_trace(&spans, "a2", "lab/demo", "sha256:aa").unwrap();
        assert_eq!(second.services.len(), 2);
        assert_eq!(second.serving_peers, ["a1".to_owned()].into());
        assert!(second.origin_readers.is_empty());
        let first = blob_trace(&spans, "a1", "lab/demo", "sha256:aa").unwrap();
        assert_eq!(first.origin_readers, ["a1".to_owned()].into());
        assert!((first.seconds - 1.5).abs() < 1e-9);
        assert_eq!(blob_trace(&spans, "b1", "lab/demo", "sha256:aa"), None);
    }

    #[test]
    fn a_request_that_joined_a_flight_shows_the_flight_and_not_its_neighbours() {
        let spans = [
            span(["t", "manifest", ""], "shoal-node", "a1", "/v2/lab/demo/manifests/1?ns=r"),
            span(["t", "flight", "manifest"], "shoal-node", "a1", ""),
            span(["t", "read", "flight"], "shoal-node", "a1", ORIGIN),
            span(["t", "request", "flight"], "shoal-node", "a1", URL),
            span(["t", "other", "manifest"], "shoal-node", "a1", ""),
            span(["t", "far", "other"], "shoal-node", "a2", ""),
        ];
        let found = blob_trace(&spans, "a1", "lab/demo", "sha256:aa").unwrap();
        assert_eq!(found.origin_readers, ["a1".to_owned()].into());
        assert!(found.serving_peers.is_empty());
    }
}
