//! Counters of the content store.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tonic::{Code, Status};

/// A call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Method {
    Info,
    Update,
    List,
    Delete,
    Read,
    Status,
    ListStatuses,
    Write,
    Abort,
}

impl EncodeLabelValue for Method {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let word = match self {
            Self::Info => "info",
            Self::Update => "update",
            Self::List => "list",
            Self::Delete => "delete",
            Self::Read => "read",
            Self::Status => "status",
            Self::ListStatuses => "list_statuses",
            Self::Write => "write",
            Self::Abort => "abort",
        };
        EncodeLabelValue::encode(&word, encoder)
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Ended(Code);

impl EncodeLabelValue for Ended {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let word = match self.0 {
            Code::Ok => "ok",
            Code::InvalidArgument => "invalid_argument",
            Code::NotFound => "not_found",
            Code::AlreadyExists => "already_exists",
            Code::FailedPrecondition => "failed_precondition",
            Code::OutOfRange => "out_of_range",
            Code::Unavailable => "unavailable",
            Code::Aborted => "aborted",
            Code::ResourceExhausted => "resource_exhausted",
            Code::DataLoss => "data_loss",
            _ => "internal",
        };
        EncodeLabelValue::encode(&word, encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: Method,
    code: Ended,
}

/// Cheap to clone: all clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    calls: Family<Call, Counter>,
    pub(super) read_bytes: Counter,
    pub(super) written_bytes: Counter,
    writers: Gauge,
    compared: Gauge,
    missing: Gauge,
}

/// A `Write` stream that is open.
pub(super) struct Writer(Gauge);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Registers them as `shoal_content_*`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("calls", "Calls of containerd by method and code", metrics.calls.clone());
        registry.register("read_bytes", "Bytes that containerd read", metrics.read_bytes.clone());
        registry.register("written_bytes", "Bytes that containerd wrote", metrics.written_bytes.clone());
        registry.register("writers", "Write streams that are open", metrics.writers.clone());
        registry.register(
            "compared",
            "1 since this node knows what containerd knows; before, nothing of what was found at start is evicted",
            metrics.compared.clone(),
        );
        registry.register(
            "missing_blobs",
            "Blobs that containerd knew at the last comparison and this node lacks",
            metrics.missing.clone(),
        );
        metrics
    }

    pub(super) fn count(&self, method: Method, code: Code) {
        self.calls.get_or_create(&Call { method, code: Ended(code) }).inc();
    }

    pub(super) fn counted<T>(&self, method: Method, answer: Result<T, Status>) -> Result<T, Status> {
        self.count(method, answer.as_ref().err().map_or(Code::Ok, Status::code));
        answer
    }

    pub(super) fn writer(&self) -> Writer {
        self.writers.inc();
        Writer(self.writers.clone())
    }

    pub(super) fn compared(&self, missing: usize) {
        self.compared.set(1);
        self.missing.set(i64::try_from(missing).unwrap_or(i64::MAX));
    }
}
