//! Words that contradict others, and what follows when one turned out to be false.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shoal_proto::{Digest, NodeId};

use super::super::event::{Cause, Fact, FinderId, Meta, Notice, Say, Signature, Stop};
use super::{Key, State, Step};

/// Blobs of which holdings that contradict others' words are remembered.
const MOST_BLOBS: usize = 256;
/// Different things that are remembered as said of one blob.
const MOST_CLAIMS: usize = 8;

/// What holders say of one blob, and who says so.
type Claims = BTreeMap<(u64, [u8; 32]), BTreeMap<NodeId, (Arc<Fact>, Signature)>>;

/// Holdings that contradict others' words and wait for those to be proven wrong; more are not remembered. What many say alike is
/// looked at once, and only when the blob has changed.
#[derive(Debug, Default)]
pub(super) struct Contested {
    claims: BTreeMap<Key, Claims>,
    changed: BTreeSet<Key>,
}

impl Contested {
    pub(super) fn insert(&mut self, key: Key, node: NodeId, meta: Arc<Fact>, signature: Signature) {
        if self.claims.len() >= MOST_BLOBS && !self.claims.contains_key(&key) {
            return;
        }
        let claims = self.claims.entry(key).or_default();
        let claim = (meta.size, meta.root);
        // A node's last word counts.
        claims.retain(|_, nodes| {
            nodes.remove(&node);
            !nodes.is_empty()
        });
        if claims.len() < MOST_CLAIMS || claims.contains_key(&claim) {
            claims.entry(claim).or_default().insert(node, (meta, signature));
        }
    }

    /// A blob has changed: what contradicts it may not do so any more.
    pub(super) fn touch(&mut self, key: &Key) {
        if self.claims.contains_key(key) {
            self.changed.insert(key.clone());
        }
    }

    /// Forgets what a node says otherwise of a blob, or of all.
    pub(super) fn forget(&mut self, node: &NodeId, digest: Option<Digest>) {
        self.claims.retain(|key, claims| {
            if digest.is_none_or(|digest| digest == key.1) {
                claims.retain(|_, nodes| {
                    nodes.remove(node);
                    !nodes.is_empty()
                });
            }
            !claims.is_empty()
        });
    }

    /// Those whose word nothing contradicts any more, of the blobs that have changed.
    pub(super) fn take_agreed(&mut self, agrees: impl Fn(&Key, &Meta) -> bool) -> Vec<(NodeId, Arc<Fact>, Signature)> {
        let mut agreed = Vec::new();
        for key in std::mem::take(&mut self.changed) {
            let Some(claims) = self.claims.get_mut(&key) else { continue };
            claims.retain(|_, nodes| {
                let holds = nodes.values().next().is_some_and(|(meta, _)| agrees(&key, meta));
                if holds {
                    let nodes = std::mem::take(nodes).into_iter();
                    agreed.extend(nodes.map(|(node, (meta, signature))| (node, meta, signature)));
                }
                !holds
            });
            if claims.is_empty() {
                self.claims.remove(&key);
            }
        }
        agreed
    }
}

impl State {
    /// Takes those as holders whose word nothing contradicts any more.
    pub(super) fn reconsider(&mut self, step: &mut Step<'_>) {
        let (blobs, rest) = (&self.blobs, &self.rest);
        let agrees = |key: &Key, meta: &Meta| {
            let same = |held: &Arc<Fact>| held.root == meta.root && held.size == meta.size;
            rest.get(key).is_none_or(|rest| same(rest.meta())) && blobs.get(key).is_none_or(|blob| blob.agrees(meta))
        };
        for (node, fact, signature) in self.contested.take_agreed(agrees) {
            self.hold(&node, fact, signature, step);
        }
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
                && node.held.remove(&key.1)
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
