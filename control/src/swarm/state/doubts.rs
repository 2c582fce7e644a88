//! Words that contradict others, and what follows when one turned out to be false.

use std::sync::Arc;

use shoal_proto::{Digest, NodeId};

use super::super::event::{Cause, FinderId, Meta, Notice, Say, Stop};
use super::{Key, State, Step};

impl State {
    /// Takes those as holders whose word nothing contradicts any more.
    pub(super) fn reconsider(&mut self, step: &mut Step<'_>) {
        if self.contested.is_empty() {
            return;
        }
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
        let Some(blob) = self.blobs.get(key) else { return };
        let told = blob.finders.get(&finder).and_then(|finder| finder.vouched.as_ref()) == Some(&author);
        let sealed = blob.seal.as_ref().is_some_and(|seal| seal.author == author || told);
        let listed = blob.list.as_ref().is_some_and(|list| list.author == author || list.writers.contains(&author));
        if author != *reporter && (sealed || listed || self.distrust.is_blamed(key, &author, step.now)) {
            self.complain(&author, reporter, key, step);
        }
        if !sealed && !listed {
            return;
        }
        let Some(blob) = self.blobs.get_mut(key) else { return };
        let writers = blob.list.as_ref().map(|list| list.writers.clone()).unwrap_or_default();
        for liar in writers.iter().chain([&author]) {
            self.distrust.blame(key, liar, step.now);
        }
        let holders = std::mem::take(&mut blob.whole);
        for holder in &holders {
            if let Some(node) = self.nodes.get_mut(holder)
                && node.held.remove(&key.1).is_some()
            {
                self.counts.holdings -= 1;
            }
        }
        self.touch(key, step, |blob, around| {
            (blob.seal, blob.list) = (None, None);
            blob.forget_seal();
            for holder in &holders {
                blob.seat(holder, around);
            }
            let wrote = |node: &NodeId| *node == author || writers.contains(node);
            for other in blob.finders.values_mut().filter(|other| wrote(&other.node)) {
                other.denied = true;
            }
            if let Some(entry) = blob.finders.get_mut(&finder) {
                // It throws the blob away, and sends its reader to the registry (I1).
                (entry.may_read, entry.blocks) = (false, 0);
            }
            blob.review_all(around);
            let suspects: Vec<_> = blob.permits.iter().filter(|p| wrote(&p.node)).map(|p| p.finder).collect();
            let now = around.now;
            blob.drop_permits(|permit| wrote(&permit.node), Cause::Distrusted, around);
            for id in suspects.into_iter().flatten().filter(|id| blob.finders.contains_key(id)).collect::<Vec<_>>() {
                blob.change(id, around, |entry| entry.failed(now));
                around.say(id, Say::Stop(Stop::Revoked));
            }
            blob.start_over(around);
            around.notice(Notice::AuthorLied { author, writers, reporter: reporter.clone() });
            blob.changed(around.now);
            blob.flush_all(around.now);
        });
    }
}
