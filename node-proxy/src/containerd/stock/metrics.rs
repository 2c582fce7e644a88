use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// What is counted of containerd's store. Cheap to clone.
#[derive(Clone, Default)]
pub struct Metrics {
    pub(super) shared: Counter,
    pub(super) adopted: Counter,
    pub(super) lent: Counter,
    pub(super) left: Counter,
    pub(super) differ: Counter,
    pub(super) hashed_bytes: Counter,
}

impl Metrics {
    /// Makes the counters and registers them; the registry adds the prefix `shoal_stock`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let help = "Blobs whose own copy gave way to containerd's";
        registry.register("shared_blobs", help, metrics.shared.clone());
        registry.register("adopted_blobs", "Blobs that containerd had before this node", metrics.adopted.clone());
        registry.register("lent_blobs", "Blobs that were linked into containerd's store", metrics.lent.clone());
        registry.register("left_blobs", "Shared blobs that containerd removed", metrics.left.clone());
        let help = "Files of containerd's that have other bytes than their digest says";
        registry.register("wrong_blobs", help, metrics.differ.clone());
        registry.register("hashed_bytes", "Bytes of containerd's that were hashed", metrics.hashed_bytes.clone());
        metrics
    }
}
