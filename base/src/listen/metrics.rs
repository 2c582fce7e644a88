//! What a listener for HTTP refuses.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Clones share the numbers.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    refused: Family<Labels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    reason: Reason,
}

/// Why a connection or a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Reason {
    /// There are too many connections.
    Connections,
    /// No handshake, or none in time.
    Handshake,
    /// Too many headers, or too long ones.
    Headers,
    /// A body that is too large.
    Body,
    /// It took too long: headers, body, or to read its answer.
    Slow,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let help = "HTTP connections and requests that were refused for a limit, by reason";
        registry.register("http_refused", help, metrics.refused.clone());
        metrics
    }

    pub(super) fn refused(&self, reason: Reason) {
        self.refused.get_or_create(&Labels { reason }).inc();
    }

    /// How many were refused for that.
    pub fn refusals(&self, reason: Reason) -> u64 {
        self.refused.get_or_create(&Labels { reason }).get()
    }
}
