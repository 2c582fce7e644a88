//! What can be counted of preheats.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Metrics of the room. The registry passed in has the room's prefix.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub(super) running: Gauge,
    pub(super) created: Counter,
    pub(super) done: Counter,
    pub(super) failed: Counter,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("running", "Preheats that go on", metrics.running.clone());
        registry.register("created", "Preheats that were made", metrics.created.clone());
        registry.register("done", "Preheats after which all their nodes held the image", metrics.done.clone());
        registry.register("failed", "Preheats of which a node failed", metrics.failed.clone());
        metrics
    }
}
