//! What people see of the swarm at one moment. Each look holds the swarm's lock for as long as it takes: milliseconds with a hundred
//! thousand digests.

use shoal_proto::{ClusterId, Digest, NodeId};

use super::{Repository, Swarm, Waiting};

/// A blob in one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobView {
    /// Where.
    pub cluster: ClusterId,
    /// Which.
    pub digest: Digest,
    /// Bytes, once somebody knows.
    pub size: Option<u64>,
    /// Content-Type as the origin gave it; `None` or empty when nobody knows.
    pub media_type: Option<String>,
    /// Nodes that hold it whole.
    pub holders: usize,
    /// Nodes that fetch it.
    pub flights: usize,
}

/// A node that has a blob, whole or in part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderView {
    /// Who.
    pub node: NodeId,
    /// Where.
    pub cluster: ClusterId,
    /// It holds the whole.
    pub complete: bool,
    /// Verified bytes on its disk; `None`: nobody knows how large the blob is.
    pub bytes: Option<u64>,
}

/// A node that a flight was told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Who.
    pub node: NodeId,
    /// It holds the whole.
    pub complete: bool,
    /// That came from it in this flight, as the fetching node said last.
    pub bytes: u64,
}

/// A flight: one node's fetch of one digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlightView {
    /// Who.
    pub node: NodeId,
    /// Where.
    pub cluster: ClusterId,
    /// What.
    pub digest: Digest,
    /// Where it would be read from.
    pub repository: Repository,
    /// Bytes of the blob, once somebody knows.
    pub size: Option<u64>,
    /// Verified bytes on the node's disk; `None` while the size is not known.
    pub bytes: Option<u64>,
    /// Of these, read from the origin in this flight.
    pub origin_bytes: u64,
    /// It has the permit to read the origin now, or one of several.
    pub reads_origin: bool,
    /// Everything is there and checked.
    pub complete: bool,
    /// Whom it was told to fetch from, best first, then others that gave it something before.
    pub parents: Vec<Parent>,
    /// Why it has neither parents nor the permit.
    pub waiting: Option<Waiting>,
    /// The seed that was ordered to fetch it, and is waited for.
    pub seed: Option<NodeId>,
    /// It is a seed's, and control ordered it.
    pub ordered: bool,
}

impl Swarm {
    /// Blobs that `keep` lets through, in the order of digests, then clusters, behind `after`; at most `most`.
    pub fn blobs(
        &self,
        keep: impl Fn(&ClusterId, &Digest) -> bool,
        after: Option<&(Digest, ClusterId)>,
        most: usize,
    ) -> Vec<BlobView> {
        self.inner.lock().state.blobs(keep, after, most)
    }

    /// One blob in one cluster; `None`: nobody there holds it or looks for it.
    pub fn blob(&self, cluster: &ClusterId, digest: &Digest) -> Option<BlobView> {
        self.inner.lock().state.blob(cluster, digest)
    }

    /// Who has a blob in a cluster, whole or in part, by node.
    pub fn holders(&self, cluster: &ClusterId, digest: &Digest) -> Vec<HolderView> {
        self.inner.lock().state.holders(cluster, digest)
    }

    /// Flights that `keep` lets through, in the order of nodes, then digests, behind `after`; at most `most`.
    pub fn flights(
        &self,
        keep: impl Fn(&ClusterId, &NodeId, &Digest) -> bool,
        after: Option<&(NodeId, Digest)>,
        most: usize,
    ) -> Vec<FlightView> {
        self.inner.lock().state.flying(keep, after, most)
    }
}
