//! How far a finder is, and who brought it there.

use shoal_proto::NodeId;

use super::{State, Step};
use crate::swarm::event::{FinderId, Key, MOST_FED};

impl State {
    /// A finder says who fed it. For people alone: nothing is decided by it.
    pub(super) fn fed(&mut self, finder: FinderId, key: &Key, fed: Vec<(NodeId, u64)>) {
        let Some(entry) = self.blobs.get_mut(key).and_then(|blob| blob.finders.get_mut(&finder)) else { return };
        for (node, bytes) in fed {
            match entry.fed.iter().position(|(known, _)| *known == node) {
                Some(at) => entry.fed[at].1 = bytes,
                None if entry.fed.len() < MOST_FED => entry.fed.push((node, bytes)),
                None => {}
            }
        }
    }

    pub(super) fn progress(
        &mut self,
        finder: FinderId,
        key: &Key,
        blocks: u32,
        origin_bytes: u64,
        step: &mut Step<'_>,
    ) {
        let Some(blob) = self.blobs.get_mut(key) else { return };
        let total = blob.blocks();
        let Some(entry) = blob.finders.get(&finder) else { return };
        let matters = (entry.blocks == 0) != (blocks == 0);
        let reads = blob.permits.iter().any(|permit| permit.finder == Some(finder) && permit.answered.is_some());
        for permit in blob.permits.iter_mut().filter(|permit| permit.finder == Some(finder)) {
            if origin_bytes > permit.origin_bytes {
                permit.origin_bytes = origin_bytes;
                permit.touch(step.now);
            }
            permit.closing |= total.is_some_and(|total| blocks >= total);
        }
        if let Some(entry) = blob.finders.get_mut(&finder) {
            entry.origin_bytes = origin_bytes;
            if reads {
                entry.meter.note(step.now, origin_bytes);
                if let Some(rate) = entry.meter.rate(step.now) {
                    self.rates.note(&key.0, &entry.registry, &entry.node, rate, step.now);
                }
            }
        }
        if matters {
            self.touch(key, step, |blob, around| blob.grew(finder, blocks, around));
        } else {
            self.quietly(key, step, |blob, around| blob.grew(finder, blocks, around));
        }
    }
}
