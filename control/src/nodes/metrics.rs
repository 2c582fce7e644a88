//! What can be counted of nodes.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Metrics of the room. The registry passed in has the room's prefix.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub(super) live: Gauge,
    pub(super) sessions: Gauge,
    pub(super) registered: Counter,
    pub(super) expired: Counter,
    pub(super) moved: Counter,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("live", "Nodes whose lease has not ended", metrics.live.clone());
        registry.register("sessions", "Nodes that are connected", metrics.sessions.clone());
        registry.register("registrations", "Sessions begun", metrics.registered.clone());
        registry.register("leases_expired", "Nodes that went silent", metrics.expired.clone());
        registry.register("moves", "Live nodes whose cluster changed", metrics.moved.clone());
        metrics
    }
}
