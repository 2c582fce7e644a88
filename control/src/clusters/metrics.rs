use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Change, ClusterSet};

/// What the room counts. Made by [`Metrics::register`]; the default is registered nowhere.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    clusters: Gauge,
    generation: Gauge,
    changes: Family<Labels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Kind {
    Created,
    Updated,
    Deleted,
}

impl Metrics {
    /// Makes and registers them; the registry passed in has the room's prefix.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("live", "Clusters that there are", metrics.clusters.clone());
        registry.register("generation", "Count of writes that ever happened", metrics.generation.clone());
        registry.register("changes", "Clusters created, updated and deleted", metrics.changes.clone());
        metrics
    }

    pub(super) fn published(&self, set: &ClusterSet) {
        self.clusters.set(i64::try_from(set.clusters().len()).unwrap_or(i64::MAX));
        self.generation.set(i64::try_from(set.generation()).unwrap_or(i64::MAX));
    }

    pub(super) fn changed(&self, change: &Change) {
        let kind = match change {
            Change::Created(_) => Kind::Created,
            Change::Updated { .. } => Kind::Updated,
            Change::Deleted(_) => Kind::Deleted,
        };
        self.changes.get_or_create(&Labels { kind }).inc();
    }
}
