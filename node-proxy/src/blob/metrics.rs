//! Counters of the engine.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::upstream::Trouble;
use crate::origin::OriginError;

/// Why a node read the origin, or whose leave it had (I6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Leave {
    /// Under a permit: the "once" of the cluster.
    Permit,
    /// Control could not be reached: outside "once".
    NoControl,
    /// What control gave of the list did not prove to be its author's, and nobody else gave one: outside "once".
    Unproven,
    /// The node has no cluster.
    Alone,
    /// One byte, to learn a size that author and manifest do not agree on: outside "once".
    Doubt,
}

/// Why a read of the origin ended before the last block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Failure {
    /// 404.
    NotFound,
    /// 401 or 403.
    Denied,
    /// 429, or 503 with Retry-After.
    Busy,
    /// No connection, no headers, a body that broke, another 5xx.
    Unreachable,
    /// A body that stopped.
    Stalled,
    /// It said nothing to others a moment ago, and was not asked.
    Silent,
    /// An answer that makes no sense, as one of another size than the manifest names.
    Nonsense,
    /// A rule of ours forbids to go there.
    Refused,
    /// It ignores ranges, and only some of the blob was to be read.
    NoRanges,
    /// Its bytes are not those of the piece list.
    Contradicted,
    /// Disk or layout of this node.
    Here,
}

impl Failure {
    pub(super) fn of(trouble: &Trouble) -> Self {
        match trouble {
            Trouble::Here(_) => Self::Here,
            Trouble::Contradicted => Self::Contradicted,
            Trouble::NoRanges => Self::NoRanges,
            Trouble::Origin(error) => match error {
                OriginError::NotFound { .. } => Self::NotFound,
                OriginError::Unauthorized { .. } | OriginError::Denied { .. } => Self::Denied,
                OriginError::Busy { .. } => Self::Busy,
                OriginError::Unreachable { .. } => Self::Unreachable,
                OriginError::Stalled { .. } => Self::Stalled,
                OriginError::Silent { .. } => Self::Silent,
                OriginError::Nonsense { .. } | OriginError::Range => Self::Nonsense,
                OriginError::Refused { .. } => Self::Refused,
            },
        }
    }
}

/// How a flight ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Outcome {
    /// The blob is held.
    Held,
    /// Nobody waited any more.
    Abandoned,
    /// The whole did not match its digest.
    Mismatched,
    /// Anything else; the log has the reason.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LeaveLabel {
    leave: Leave,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabel {
    why: Failure,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

/// What the engine counts. Cheap to clone.
#[derive(Clone, Default)]
pub struct Metrics {
    pub(super) flights: Gauge,
    pub(super) from_origin: Counter,
    pub(super) from_peers: Counter,
    pub(super) local: Counter,
    pub(super) located: Counter,
    origin_reads: Family<LeaveLabel, Counter>,
    origin_failures: Family<FailureLabel, Counter>,
    ended: Family<OutcomeLabel, Counter>,
}

impl Metrics {
    /// Makes the counters and registers them; the registry adds the prefix `shoal_blob`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("flights", "Flights now", metrics.flights.clone());
        let bytes = |registry: &mut Registry, name: &str, help: &str, counter: &Counter| {
            registry.register_with_unit(name, help, Unit::Bytes, counter.clone());
        };
        bytes(registry, "from_origin", "Bytes that flights read from the origin", &metrics.from_origin);
        bytes(registry, "from_peers", "Verified bytes that flights took from peers", &metrics.from_peers);
        bytes(registry, "local", "Bytes given to readers out of held blobs", &metrics.local);
        registry.register("origin_reads", "Reads of the origin, by whose leave", metrics.origin_reads.clone());
        let help = "Blobs that a known peer was found to hold while control was away";
        registry.register("located", help, metrics.located.clone());
        let help = "Reads of the origin that ended before the last block, by why";
        registry.register("origin_failures", help, metrics.origin_failures.clone());
        registry.register("flights_ended", "Flights that ended, by how", metrics.ended.clone());
        metrics
    }

    pub(super) fn origin_read(&self, leave: Leave) {
        self.origin_reads.get_or_create(&LeaveLabel { leave }).inc();
    }

    pub(super) fn origin_failed(&self, why: Failure) {
        self.origin_failures.get_or_create(&FailureLabel { why }).inc();
    }

    pub(super) fn end(&self, outcome: Outcome) {
        self.ended.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Bytes read from the origin, taken from peers, and given out of held blobs, since the start.
    pub fn bytes(&self) -> (u64, u64, u64) {
        (self.from_origin.get(), self.from_peers.get(), self.local.get())
    }
}
