//! Logs and traces: one subscriber for the process, and the W3C trace context that travels with calls.
//!
//! Logs go to stderr. Spans go to an OTLP endpoint (gRPC) when one is configured; without one there is no layer for
//! them, so that a span costs what a log line's context costs, and no context is read or written.
//! A span's fields are exported under the names that they have in the code, dots included (`http.url`);
//! `otel.name` and `otel.kind` set the span's name and kind.
//!
//! Source: W3C Trace Context, level 1; OpenTelemetry protocol 1.x.

mod context;
#[cfg(test)]
mod tests;

use std::io::IsTerminal as _;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, Targets};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};

use crate::config::Faults;
pub use context::{extract_grpc, extract_http, inject_grpc, inject_http, set_parent, traceparent_of};

/// How often finished spans are sent. Often enough to look at a pull while it is still warm.
const EXPORT_EVERY: Duration = Duration::from_secs(1);

/// Spans that wait to be sent; more are dropped. A span is about 1 KiB, so this bounds it to about 2 MiB.
const EXPORT_QUEUE: usize = 2_048;

/// How long a collector may take, also at the end of the process.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// What is logged and traced, and where to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// What is logged: a level (`error`, `warn`, `info`, `debug`, `trace`) or directives by target, such as
    /// `info,node_proxy::swarm=debug`. Does not change what is traced.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Where spans are sent: the gRPC endpoint of an OTLP collector, such as `http://127.0.0.1:4317`. Not set: nothing
    /// is traced.
    pub otlp_endpoint: Option<String>,
    /// Share of traces that are recorded when nobody upstream has decided, 0 to 1. 0 records only what a caller wants.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub otlp_sample_ratio: f64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { log: "info".to_owned(), log_format: LogFormat::Text, otlp_endpoint: None, otlp_sample_ratio: 1.0 }
    }
}

impl TelemetryConfig {
    /// Notes what of it can't be used, under `key`.
    pub fn check(&self, key: &str, faults: &mut Faults) {
        faults.take(&format!("{key}.log"), filter(&self.log));
        if let Some(endpoint) = &self.otlp_endpoint {
            faults.take(&format!("{key}.otlp_endpoint"), check_endpoint(endpoint));
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why telemetry can't start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("log filter `{0}`: {1}")]
    Filter(String, tracing_subscriber::filter::ParseError),
    /// The endpoint is no `http://host:port`.
    #[error("OTLP endpoint `{0}`: {1}")]
    Endpoint(String, String),
    /// Somebody installed a subscriber before.
    #[error("telemetry is installed already")]
    Installed,
}

/// Keeps the export going. Dropping it sends what is left and blocks meanwhile: prefer [`Guard::shutdown`].
#[derive(Debug)]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
}

impl Guard {
    /// Sends the spans that are left, for at most a few seconds.
    pub async fn shutdown(mut self) {
        let Some(provider) = self.provider.take() else { return };
        // The exporter needs this runtime's threads, so that nothing here may block one.
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(EXPORT_TIMEOUT)).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// Installs logs and traces for the whole process. With an endpoint, to be called inside a tokio runtime; the endpoint
/// need not be up.
///
/// # Errors
/// [`TelemetryError`].
pub fn init(service: &str, instance: &str, config: &TelemetryConfig) -> Result<Guard, TelemetryError> {
    let (subscriber, guard) = build(service, instance, config, std::io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::Installed)?;
    Ok(guard)
}

/// What `init` installs.
fn build<W>(
    service: &str,
    instance: &str,
    config: &TelemetryConfig,
    writer: W,
) -> Result<(impl Subscriber + Send + Sync + use<W>, Guard), TelemetryError>
where
    W: for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = filter(&config.log)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(std::io::stderr().is_terminal());
    let lines = match config.log_format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    let provider = config
        .otlp_endpoint
        .as_deref()
        .map(|endpoint| exporting(service, instance, endpoint, config.otlp_sample_ratio))
        .transpose()?;
    let spans = provider.as_ref().map(|provider| {
        // What the exporter itself does must not be traced.
        let ours = Targets::new().with_default(LevelFilter::INFO).with_targets(
            ["h2", "hyper", "hyper_util", "opentelemetry", "opentelemetry_otlp", "opentelemetry_sdk", "tonic", "tower"]
                .map(|target| (target, LevelFilter::OFF)),
        );
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("shoal"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(ours)
    });
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans);
    Ok((subscriber, Guard { provider }))
}

fn filter(text: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder().parse(text).map_err(|error| TelemetryError::Filter(text.to_owned(), error))
}

fn check_endpoint(endpoint: &str) -> Result<(), TelemetryError> {
    let fault = |why: String| TelemetryError::Endpoint(endpoint.to_owned(), why);
    match endpoint.parse::<http::Uri>() {
        Ok(uri) if uri.scheme_str() == Some("http") && uri.host().is_some() => Ok(()),
        Ok(_) => Err(fault("it must look like http://127.0.0.1:4317".to_owned())),
        Err(error) => Err(fault(error.to_string())),
    }
}

fn exporting(service: &str, instance: &str, endpoint: &str, ratio: f64) -> Result<SdkTracerProvider, TelemetryError> {
    let fault = |why: String| TelemetryError::Endpoint(endpoint.to_owned(), why);
    check_endpoint(endpoint)?;
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|error| fault(error.to_string()))?;
    let batches =
        BatchConfigBuilder::default().with_scheduled_delay(EXPORT_EVERY).with_max_queue_size(EXPORT_QUEUE).build();
    let resource = Resource::builder()
        .with_service_name(service.to_owned())
        .with_attributes([
            KeyValue::new("service.namespace", "shoal"),
            KeyValue::new("service.instance.id", instance.to_owned()),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ])
        .build();
    Ok(SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
        .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
        .with_resource(resource)
        .build())
}
