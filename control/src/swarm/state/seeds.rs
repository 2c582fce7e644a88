//! The machine's seeds: which nodes are, and what they say of orders.

use shoal_proto::{Digest, NodeId};

use super::{State, Step};
use crate::swarm::order::Reply;

impl State {
    /// Brings in line whether a node is a seed, and of which cluster. What it was told on an older session it may not have heard.
    pub(super) fn enlist(&mut self, id: &NodeId, step: &mut Step<'_>) {
        let node = self.nodes.get(id).filter(|node| node.seed && node.orders);
        let cluster = node.and_then(|node| node.cluster.clone());
        for key in self.seeds.is_in(id, cluster.as_ref()) {
            self.touch(&key, step, |blob, around| blob.seed_is_gone(id, around));
        }
    }

    pub(super) fn answered(&mut self, seed: &NodeId, number: u64, digest: Digest, answer: Reply, step: &mut Step<'_>) {
        let Some(cluster) = self.cluster_of(seed).cloned() else { return };
        let key = (cluster, digest);
        if self.blobs.contains_key(&key) {
            self.touch(&key, step, |blob, around| blob.answered(seed, number, answer, around));
        }
    }
}
