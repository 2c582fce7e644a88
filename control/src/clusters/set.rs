use std::sync::Arc;

use shoal_proto::ClusterId;

use super::Cluster;
use crate::scope::{ClusterScope, Explanation, Facts, Refusal, Scopes, fold};

/// Where a node belongs, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// `None`: the node runs alone and reads the origin.
    pub cluster: Option<Arc<Cluster>>,
    /// One sentence for people.
    pub reason: String,
}

/// All clusters at one moment, with their scopes ready to decide.
#[derive(Debug, Clone, Default)]
pub struct ClusterSet {
    generation: u64,
    /// In the order of `scopes.clusters()`: oldest first.
    clusters: Vec<Arc<Cluster>>,
    scopes: Scopes,
}

impl ClusterSet {
    /// Compiles a set, in any order.
    ///
    /// # Errors
    /// What [`Scopes::check`] refuses.
    pub fn new(generation: u64, mut clusters: Vec<Cluster>) -> Result<Self, Vec<Refusal>> {
        clusters.sort_by_key(|cluster| cluster.seq);
        let scopes = Scopes::check(clusters.iter().map(scope_of).collect())?;
        Ok(Self { generation, clusters: clusters.into_iter().map(Arc::new).collect(), scopes })
    }

    /// Grows with each change of any cluster.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Oldest first.
    pub fn clusters(&self) -> &[Arc<Cluster>] {
        &self.clusters
    }

    /// The cluster with this id.
    pub fn get(&self, id: &ClusterId) -> Option<&Arc<Cluster>> {
        self.clusters.iter().find(|cluster| cluster.id == *id)
    }

    /// The cluster with this id, else the one with this name.
    pub fn find(&self, id_or_name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.iter().find(|cluster| cluster.id.as_str() == id_or_name).or_else(|| self.named(id_or_name))
    }

    /// The cluster with this name, without regard to case.
    pub fn named(&self, name: &str) -> Option<&Arc<Cluster>> {
        let key = fold(name.trim());
        self.clusters.iter().find(|cluster| fold(&cluster.name) == key)
    }

    /// Decides for one node; a blank `pin` is none. Cheap: ten thousand nodes take a few milliseconds.
    pub fn decide(&self, facts: &Facts, pin: Option<&str>) -> Decision {
        let crate::scope::Decision { cluster, reason } = self.scopes.decide(facts, pin);
        Decision { cluster: cluster.map(|position| self.clusters[position].clone()), reason }
    }

    /// Decides, and tells of every cluster what it matched on.
    pub fn explain(&self, facts: &Facts, pin: Option<&str>) -> Explanation {
        self.scopes.explain(facts, pin)
    }

    pub(super) fn canonical(&self) -> &[ClusterScope] {
        self.scopes.clusters()
    }
}

fn scope_of(cluster: &Cluster) -> ClusterScope {
    let Cluster { id: _, seq, version: _, name, default, idc, location, cidrs } = cluster.clone();
    ClusterScope { rank: seq, name, default, idc, location, cidrs }
}
