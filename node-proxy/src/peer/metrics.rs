use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use shoal_proto::frame::Refusal;

/// `shoal_peer_*`. Clones share the numbers.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub(super) served: Counter,
    pub(super) connections: Gauge,
    pub(super) uploads: Gauge,
    pub(super) opens: Family<OpenLabels, Counter>,
    pub(super) refused: Family<RefusedLabels, Counter>,
}

/// How an `Open` was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Answer {
    Blob,
    Busy,
    Gone,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OpenLabels {
    answer: Answer,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RefusedLabels {
    reason: Reason,
}

/// Why a connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Reason {
    Cluster,
    Version,
    Network,
    Protocol,
    Draining,
    /// Its certificate does not fit.
    Identity,
    /// The TLS handshake failed: no certificate, or one that does not count here.
    Handshake,
    /// `max_connections` are open.
    Full,
    /// No hello in time.
    Silent,
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Cluster => Self::Cluster,
            Refusal::Version => Self::Version,
            Refusal::Network => Self::Network,
            Refusal::Protocol => Self::Protocol,
            Refusal::Draining => Self::Draining,
            Refusal::Identity => Self::Identity,
        }
    }
}

impl Metrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let (m, at) = (&metrics, registry);
        at.register("served_bytes", "Bytes of blocks written to children", m.served.clone());
        at.register("open_connections", "Connections of children", m.connections.clone());
        at.register("active_uploads", "Blobs being served now", m.uploads.clone());
        at.register("opens", "Blobs asked for by children, by answer", m.opens.clone());
        at.register("refused_connections", "Connections refused, by reason", m.refused.clone());
        metrics
    }

    /// Bytes served since the start, for heartbeats.
    pub fn served_bytes(&self) -> u64 {
        self.served.get()
    }

    pub(super) fn opened(&self, answer: Answer) {
        self.opens.get_or_create(&OpenLabels { answer }).inc();
    }

    pub(super) fn refuse(&self, reason: impl Into<Reason>) {
        self.refused.get_or_create(&RefusedLabels { reason: reason.into() }).inc();
    }
}
