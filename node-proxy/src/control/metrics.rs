//! Counters of the client of control.

use std::time::SystemTime;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What the client counts. Cheap to clone.
#[derive(Clone, Default)]
pub struct Metrics {
    pub(super) connected: Gauge,
    pub(super) sessions: Counter,
    pub(super) finds: Counter,
    pub(super) finds_failed: Counter,
    certificate_ends: Gauge,
}

impl Metrics {
    /// Makes the counters and registers them; the registry adds the prefix `shoal_control`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("connected", "1 while a session with control lives", metrics.connected.clone());
        registry.register("sessions", "Sessions begun", metrics.sessions.clone());
        registry.register("finds", "Blobs that control was asked for", metrics.finds.clone());
        registry.register("finds_failed", "Blobs that control could not be asked for", metrics.finds_failed.clone());
        let ends = "When this node's certificate is over, in seconds since 1970; 0 without one";
        registry.register("certificate_expiry_timestamp_seconds", ends, metrics.certificate_ends.clone());
        metrics
    }

    pub(super) fn certified_until(&self, ends: SystemTime) {
        let seconds = ends.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.certificate_ends.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }
}
