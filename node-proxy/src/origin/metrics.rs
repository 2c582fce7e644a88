//! Counters of the origin client.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::OriginError;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Asked {
    /// A manifest, or its head.
    Manifest,
    /// A blob, or its head.
    Blob,
    /// Whether an anonymous token can read a repository.
    Access,
    /// A token.
    Token,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Outcome {
    Ok,
    Unauthorized,
    Denied,
    NotFound,
    Range,
    Busy,
    Unreachable,
    Silent,
    Refused,
    Nonsense,
}

/// How a body failed after its headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Broken {
    /// The connection ended before the last byte.
    Cut,
    /// No byte came for too long.
    Silent,
    /// More bytes came than were announced.
    Long,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BrokenLabel {
    how: Broken,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    kind: Asked,
    outcome: Outcome,
}

/// What the origin client counts. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    requests: Family<Labels, Counter>,
    bytes: Counter,
    broken: Family<BrokenLabel, Counter>,
    seconds: Histogram,
}

impl Metrics {
    /// Makes the counters and registers them; the registry adds the prefix `shoal_origin`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            bytes: Counter::default(),
            broken: Family::default(),
            // 5 ms to 20 s: a cache on the same network, up to the longest wait for headers.
            seconds: Histogram::new(exponential_buckets(0.005, 2.0, 13)),
        };
        registry.register(
            "requests",
            "Requests to registries, redirects and retries not counted",
            metrics.requests.clone(),
        );
        registry.register("bytes", "Bytes of bodies from registries", metrics.bytes.clone());
        registry.register("bodies_broken", "Bodies that failed after their headers, by how", metrics.broken.clone());
        let help = "From a request to its headers, redirects and tokens included";
        registry.register_with_unit("headers", help, Unit::Seconds, metrics.seconds.clone());
        metrics
    }

    pub(super) fn asked<T>(&self, kind: Asked, result: &Result<T, OriginError>, took: Duration) {
        let outcome = match result {
            Ok(_) => Outcome::Ok,
            Err(OriginError::Unauthorized { .. }) => Outcome::Unauthorized,
            Err(OriginError::Denied { .. }) => Outcome::Denied,
            Err(OriginError::NotFound { .. }) => Outcome::NotFound,
            Err(OriginError::Range) => Outcome::Range,
            Err(OriginError::Busy { .. }) => Outcome::Busy,
            Err(OriginError::Unreachable { .. } | OriginError::Stalled { .. }) => Outcome::Unreachable,
            Err(OriginError::Silent { .. }) => Outcome::Silent,
            Err(OriginError::Refused { .. }) => Outcome::Refused,
            Err(OriginError::Nonsense { .. }) => Outcome::Nonsense,
        };
        self.requests.get_or_create(&Labels { kind, outcome }).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    pub(super) fn got(&self, bytes: usize) {
        self.bytes.inc_by(bytes as u64);
    }

    pub(super) fn broke(&self, how: Broken) {
        self.broken.get_or_create(&BrokenLabel { how }).inc();
    }

    /// Bytes of bodies so far.
    pub fn received(&self) -> u64 {
        self.bytes.get()
    }
}
