//! Counters of the client of control.

use std::time::SystemTime;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::lists::Why;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UnprovenLabel {
    why: Why,
}

/// What the client counts. Cheap to clone.
#[derive(Clone, Default)]
pub struct Metrics {
    pub(super) connected: Gauge,
    pub(super) sessions: Counter,
    pub(super) finds: Counter,
    pub(super) finds_failed: Counter,
    pub(super) impostors: Counter,
    certificate_ends: Gauge,
    unproven_lists: Family<UnprovenLabel, Counter>,
}

impl Metrics {
    /// Makes the counters and registers them; the registry adds the prefix `shoal_control`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("connected", "1 while a session with control lives", metrics.connected.clone());
        registry.register("sessions", "Sessions begun", metrics.sessions.clone());
        registry.register("finds", "Blobs that control was asked for", metrics.finds.clone());
        registry.register("finds_failed", "Blobs that control could not be asked for", metrics.finds_failed.clone());
        let impostors = "Times that something else than this installation's control answered at control.endpoint";
        registry.register("impostors", impostors, metrics.impostors.clone());
        let ends = "When this node's certificate is over, in seconds since 1970; 0 without one";
        registry.register("certificate_expiry_timestamp_seconds", ends, metrics.certificate_ends.clone());
        let unproven = "Piece lists, and parts of them, that did not prove to be their author's and were not believed";
        registry.register("unproven_lists", unproven, metrics.unproven_lists.clone());
        metrics
    }

    pub(super) fn unproven_list(&self, why: Why) {
        self.unproven_lists.get_or_create(&UnprovenLabel { why }).inc();
    }

    #[cfg(test)]
    pub(super) fn unproven_lists(&self, why: Why) -> u64 {
        self.unproven_lists.get_or_create(&UnprovenLabel { why }).get()
    }

    pub(super) fn certified_until(&self, ends: SystemTime) {
        let seconds = ends.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.certificate_ends.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }
}
