//! Words that contradict others, and what follows when one turned out to be false.

use std::sync::Arc;

use shoal_proto::{Digest, NodeId};

use super::super::event::{Cause, FinderId, Meta, Notice, Say, Stop};
use super::{Key, State, Step};

impl State {
    /// Takes those as holders whose word nothing contradicts any more.
    pub(super) fn reconsider(&mut self, step: &mut Step<'_>) {
        let agreed: Vec<(NodeId, Digest, Arc<Meta>)> = self
            .contested
            .iter()
            .flat_map(|(key, nodes)| nodes.iter().map(move |(node, meta)| (key, node, meta)))
            .filter(|(key, _, meta)| self.blobs.get(*key).is_none_or(|blob| blob.agrees(meta)))
            .map(|(key, node, meta)| (node.clone(), key.1, meta.clone()))
            .collect();
        for (node, digest, meta) in agreed {
            self.forget_contested(&node, Some(digest));
            self.hold(&node, digest, meta, step);
        }
    }

    /// Forgets what a node says otherwise of a blob, or of all.
    pub(super) fn forget_contested(&mut self, node: &NodeId, digest: Option<Digest>) {
        self.contested.retain(|key, nodes| {
            if digest.is_none_or(|digest| digest == key.1) {
                nodes.remove(node);
            }
            !nodes.is_empty()
        });
    }

    /// A whole blob did not match its digest: the author's word is forgotten, and that of all who said the same.
    pub(super) fn mismatch(
        &mut self,
        finder: FinderId,
        key: &Key,
        reporter: &NodeId,
        author: NodeId,
        step: &mut Step<'_>,
    ) {
        let Some(blob) = self.blobs.get_mut(key) else { return };
        let told = blob.finders.get(&finder).and_then(|finder| finder.vouched.as_ref()) == Some(&author);
        let sealed = blob.seal.as_ref().is_some_and(|seal| seal.author == author || told);
        let listed = blob.list.as_ref().is_some_and(|list| list.author == author || list.writers.contains(&author));
        if author != *reporter && (sealed || listed || self.distrust.is_blamed(key, &author, step.now)) {
            self.distrust.complain(&author, reporter, step.now);
        }
        if !sealed && !listed {
            return;
        }
        let writers = blob.list.as_ref().map(|list| list.writers.clone()).unwrap_or_default();
        for liar in writers.iter().chain([&author]) {
            self.distrust.blame(key, liar, step.now);
        }
        for holder in std::mem::take(&mut blob.whole) {
            if let Some(node) = self.nodes.get_mut(&holder)
                && node.held.remove(&key.1).is_some()
            {
                self.counts.holdings -= 1;
            }
        }
        self.touch(key, step, |blob, around| {
            (blob.seal, blob.list) = (None, None);
            blob.forget_seal();
            for finder in
                blob.finders.values_mut().filter(|other| other.node == author || writers.contains(&other.node))
            {
                finder.denied = true;
            }
            if let Some(entry) = blob.finders.get_mut(&finder) {
                // It throws the blob away, and sends its reader to the registry (I1).
                (entry.may_read, entry.blocks) = (false, 0);
            }
            let suspect = blob.permit.as_ref().filter(|permit| permit.node == author || writers.contains(&permit.node));
            match suspect.map(|permit| permit.finder) {
                None => blob.start_over(around),
                Some(holder) => {
                    blob.drop_permit(Cause::Distrusted, around);
                    if let Some((id, entry)) = holder.and_then(|id| Some((id, blob.finders.get_mut(&id)?))) {
                        entry.failed(around.now);
                        around.say(id, Say::Stop(Stop::Revoked));
                    }
                }
            }
            around.notice(Notice::AuthorLied { author, writers, reporter: reporter.clone() });
            blob.flush_now(around.now);
        });
    }
}
