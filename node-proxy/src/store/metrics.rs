//! What the store counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::Usage;

/// Cheap to clone: all clones count together.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    held_bytes: Gauge,
    held_blobs: Gauge,
    shared_bytes: Gauge,
    partial_bytes: Gauge,
    ingest_bytes: Gauge,
    claimed_bytes: Gauge,
    claimed_blobs: Gauge,
    quota_bytes: Gauge,
    pub(super) evictions: Counter,
    pub(super) evicted_bytes: Counter,
    pub(super) sidecars_read: Counter,
    pub(super) write_seconds: Histogram,
    pub(super) sync_seconds: Histogram,
}

impl Metrics {
    pub(super) fn new() -> Self {
        // From a write into the page cache (tens of microseconds) to a disk that stalls (seconds).
        let write = [0.000_05, 0.000_1, 0.000_25, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5];
        let sync = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
        Self {
            held_bytes: Gauge::default(),
            held_blobs: Gauge::default(),
            shared_bytes: Gauge::default(),
            partial_bytes: Gauge::default(),
            ingest_bytes: Gauge::default(),
            claimed_bytes: Gauge::default(),
            claimed_blobs: Gauge::default(),
            quota_bytes: Gauge::default(),
            evictions: Counter::default(),
            evicted_bytes: Counter::default(),
            sidecars_read: Counter::default(),
            write_seconds: Histogram::new(write),
            sync_seconds: Histogram::new(sync),
        }
    }

    pub(super) fn show(&self, usage: Usage) {
        self.held_bytes.set(usage.held.cast_signed());
        self.held_blobs.set(usage.held_blobs.cast_signed());
        self.shared_bytes.set(usage.shared.cast_signed());
        self.partial_bytes.set(usage.partial.cast_signed());
        self.ingest_bytes.set(usage.ingests.cast_signed());
        self.claimed_bytes.set(usage.claimed.cast_signed());
        self.claimed_blobs.set(usage.claimed_blobs.cast_signed());
        self.quota_bytes.set(usage.quota.cast_signed());
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("held_bytes", "Bytes of held blobs that are the store's alone", self.held_bytes.clone());
        registry.register("held_blobs", "Held blobs", self.held_blobs.clone());
        let shared = "Bytes of held blobs that are files of containerd's too";
        registry.register("shared_bytes", shared, self.shared_bytes.clone());
        registry.register(
            "partial_bytes",
            "Bytes of partial blobs, counted whole from their start on",
            self.partial_bytes.clone(),
        );
        registry.register(
            "ingest_bytes",
            "Bytes that containerd writes into this node's content store, or left there",
            self.ingest_bytes.clone(),
        );
        registry.register("claimed_bytes", "Bytes of held blobs that are containerd's", self.claimed_bytes.clone());
        registry.register("claimed_blobs", "Held blobs that are containerd's", self.claimed_blobs.clone());
        registry.register(
            "quota_bytes",
            "Bound on held, partial and ingested bytes together, 0 for none; what is containerd's may go beyond",
            self.quota_bytes.clone(),
        );
        registry.register("evictions", "Blobs that went to make room", self.evictions.clone());
        registry.register("evicted_bytes", "Bytes of blobs that went to make room", self.evicted_bytes.clone());
        registry.register(
            "sidecars_read",
            "Held blobs that the index did not know at start",
            self.sidecars_read.clone(),
        );
        registry.register("write_seconds", "Time to hand one block to the file system", self.write_seconds.clone());
        registry.register("sync_seconds", "Time to bring a blob's bytes to the disk", self.sync_seconds.clone());
    }
}
