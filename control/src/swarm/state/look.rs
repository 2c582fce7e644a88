//! The machine, looked at.

use std::collections::BinaryHeap;

use shoal_proto::{ClusterId, Digest, Layout, NodeId};

use super::State;
use crate::swarm::Repository;
use crate::swarm::blob::Blob;
use crate::swarm::event::{FinderId, Key};
use crate::swarm::finder::Finder;
use crate::swarm::look::{BlobView, FlightView, HolderView, Parent};

impl Finder {
    fn is_offered(&self, node: &NodeId) -> bool {
        self.parents.iter().flatten().any(|said| said.node == *node)
    }
}

impl State {
    pub(in crate::swarm) fn blobs(
        &self,
        keep: impl Fn(&ClusterId, &Digest) -> bool,
        after: Option<&(Digest, ClusterId)>,
        most: usize,
    ) -> Vec<BlobView> {
        let behind = |key: &Key| after.is_none_or(|(digest, cluster)| (&key.1, &key.0) > (digest, cluster));
        let all = self.blobs.keys().chain(self.rest.keys());
        let kept = all.filter(|key| behind(key) && keep(&key.0, &key.1));
        let least = least(kept.map(|key| (key.1, &key.0)), most);
        least.into_iter().filter_map(|(digest, cluster)| self.blob(cluster, &digest)).collect()
    }

    pub(in crate::swarm) fn blob(&self, cluster: &ClusterId, digest: &Digest) -> Option<BlobView> {
        let key = (cluster.clone(), *digest);
        if let Some(rest) = self.rest.get(&key) {
            return Some(BlobView {
                cluster: cluster.clone(),
                digest: *digest,
                size: Some(rest.meta().size),
                media_type: Some(rest.meta().media_type.clone()),
                holders: rest.holders().len(),
                flights: 0,
            });
        }
        let blob = self.blobs.get(&key)?;
        Some(BlobView {
            cluster: cluster.clone(),
            digest: *digest,
            size: blob.size(),
            media_type: blob.media_type().map(str::to_owned),
            holders: blob.whole.len(),
            flights: blob.finders.len(),
        })
    }

    pub(in crate::swarm) fn holders(&self, cluster: &ClusterId, digest: &Digest) -> Vec<HolderView> {
        let key = (cluster.clone(), *digest);
        let size = self.rest.get(&key).map(|rest| rest.meta().size);
        let size = size.or_else(|| self.blobs.get(&key).and_then(|blob| blob.size()));
        let view = |node: &NodeId, complete, bytes| HolderView {
            node: node.clone(),
            cluster: cluster.clone(),
            complete,
            bytes,
        };
        if let Some(rest) = self.rest.get(&key) {
            return rest.holders().iter().map(|node| view(node, true, size)).collect();
        }
        let Some(blob) = self.blobs.get(&key) else { return Vec::new() };
        let whole = blob.whole.iter().map(|node| view(node, true, size));
        let parts = blob.finders.values().filter(|finder| !blob.whole.contains(&finder.node) && finder.blocks > 0);
        let parts = parts.map(|finder| view(&finder.node, false, on_disk(size, finder.blocks)));
        let mut holders: Vec<HolderView> = whole.chain(parts).collect();
        holders.sort_by(|a, b| a.node.cmp(&b.node));
        holders
    }

    pub(in crate::swarm) fn flying(
        &self,
        keep: impl Fn(&ClusterId, &NodeId, &Digest) -> bool,
        after: Option<&(NodeId, Digest)>,
        most: usize,
    ) -> Vec<FlightView> {
        let behind = |node: &NodeId, digest: &Digest| after.is_none_or(|(n, d)| (node, digest) > (n, d));
        let all = self.finders.iter().map(|(finder, (key, node))| (node, key.1, &key.0, *finder));
        let kept = all.filter(|(node, digest, cluster, _)| behind(node, digest) && keep(cluster, node, digest));
        let least = least(kept, most);
        least.into_iter().filter_map(|(_, digest, cluster, finder)| self.flight(cluster, digest, finder)).collect()
    }

    fn flight(&self, cluster: &ClusterId, digest: Digest, id: FinderId) -> Option<FlightView> {
        let blob = self.blobs.get(&(cluster.clone(), digest))?;
        let finder = blob.finders.get(&id)?;
        let size = blob.size();
        let offered = finder.parents.iter().flatten().map(|said| (&said.node, said.complete));
        // Who is not named any more may have given most of it.
        let former = finder.fed.iter().map(|(node, _)| (node, blob.whole.contains(node)));
        let former: Vec<_> = former.filter(|(node, _)| !finder.is_offered(node)).collect();
        let given = |node: &NodeId| finder.fed.iter().find(|(known, _)| known == node).map_or(0, |(_, bytes)| *bytes);
        let parent = |(node, complete): (&NodeId, bool)| Parent { node: node.clone(), complete, bytes: given(node) };
        Some(FlightView {
            node: finder.node.clone(),
            cluster: cluster.clone(),
            digest,
            repository: Repository {
                registry: finder.registry.to_string(),
                name: finder.repository.clone(),
                manifest: None,
            },
            size,
            bytes: if finder.done { size } else { on_disk(size, finder.blocks) },
            origin_bytes: finder.origin_bytes,
            reads_origin: blob.permits.iter().any(|permit| permit.finder == Some(id)),
            complete: finder.done,
            parents: offered.chain(former).map(parent).collect(),
            waiting: finder.waiting,
            seed: blob.awaited().cloned(),
            ordered: finder.ordered,
        })
    }
}

impl Blob {
    /// Bytes: as its list says, or a manifest said to whoever looks for it.
    fn size(&self) -> Option<u64> {
        let sealed = self.seal.as_ref().map(|seal| seal.meta.size);
        sealed.or_else(|| self.list.as_ref().map(|list| list.hashes.layout().size())).or(self.hint)
    }

    fn media_type(&self) -> Option<&str> {
        let sealed = self.seal.as_ref().map(|seal| seal.meta.media_type.as_str());
        sealed.or_else(|| self.list.as_ref().map(|list| list.media_type.as_str()))
    }
}

/// Bytes in so many blocks: to a block exactly, as which of them may be the short last one is not said.
fn on_disk(size: Option<u64>, blocks: u32) -> Option<u64> {
    let layout = Layout::of(size?).ok()?;
    Some((u64::from(blocks) * layout.block_size()).min(layout.size()))
}

/// The least `most` of these, in order, in the memory of as many.
fn least<T: Ord>(all: impl Iterator<Item = T>, most: usize) -> Vec<T> {
    let mut heap = BinaryHeap::with_capacity(most + 1);
    for item in all {
        if heap.len() < most {
            heap.push(item);
        } else if heap.peek().is_some_and(|worst| item < *worst) {
            heap.pop();
            heap.push(item);
        }
    }
    heap.into_sorted_vec()
}
