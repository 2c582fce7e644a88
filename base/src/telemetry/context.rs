//! The trace context in headers.

use std::collections::HashMap;

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::{MetadataKey, MetadataMap};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The `traceparent` that a call made inside `span` should carry; `None` when nothing is traced.
#[must_use]
pub fn traceparent_of(span: &Span) -> Option<String> {
    let mut headers = HashMap::new();
    inject(span, &mut headers);
    headers.remove("traceparent")
}

/// Makes `span` a child of the caller's. To be called before the span is entered; a `traceparent` that does not parse
/// counts as none.
pub fn set_parent(span: &Span, traceparent: &str) {
    extract(span, &HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]));
}

/// Puts the context of `span` into the headers of a request that is about to be sent.
pub fn inject_http(span: &Span, headers: &mut http::HeaderMap) {
    inject(span, &mut HttpHeaders(headers));
}

/// Makes `span` a child of whoever sent these headers. To be called before the span is entered.
pub fn extract_http(span: &Span, headers: &http::HeaderMap) {
    if headers.contains_key("traceparent") {
        extract(span, &HttpHeadersOf(headers));
    }
}

/// Puts the context of `span` into the metadata of a call that is about to be made.
pub fn inject_grpc(span: &Span, metadata: &mut MetadataMap) {
    inject(span, &mut Metadata(metadata));
}

/// Makes `span` a child of whoever sent this metadata. To be called before the span is entered.
pub fn extract_grpc(span: &Span, metadata: &MetadataMap) {
    if metadata.contains_key("traceparent") {
        extract(span, &MetadataOf(metadata));
    }
}

fn inject(span: &Span, carrier: &mut dyn Injector) {
    let context = span.context();
    if context.span().span_context().is_valid() {
        TraceContextPropagator::new().inject_context(&context, carrier);
    }
}

fn extract(span: &Span, carrier: &dyn Extractor) {
    if span.is_disabled() {
        return;
    }
    let context = TraceContextPropagator::new().extract_with_context(&opentelemetry::Context::new(), carrier);
    if context.span().span_context().is_valid() {
        // Fails only when nothing is traced, which is fine, or when the span has been entered, which is a mistake here.
        if let Err(error) = span.set_parent(context) {
            tracing::trace!(?error, "the caller's trace is not continued");
        }
    }
}

struct HttpHeaders<'a>(&'a mut http::HeaderMap);

impl Injector for HttpHeaders<'_> {
    fn set(&mut self, key: &str, value: String) {
        if value.is_empty() {
            return;
        }
        if let (Ok(name), Ok(value)) = (http::HeaderName::try_from(key), http::HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

struct HttpHeadersOf<'a>(&'a http::HeaderMap);

impl Extractor for HttpHeadersOf<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

struct Metadata<'a>(&'a mut MetadataMap);

impl Injector for Metadata<'_> {
    fn set(&mut self, key: &str, value: String) {
        if value.is_empty() {
            return;
        }
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}

struct MetadataOf<'a>(&'a MetadataMap);

impl Extractor for MetadataOf<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0
            .keys()
            .filter_map(|key| match key {
                tonic::metadata::KeyRef::Ascii(key) => Some(key.as_str()),
                tonic::metadata::KeyRef::Binary(_) => None,
            })
            .collect()
    }
}
