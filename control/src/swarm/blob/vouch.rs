//! What authors signed, kept as it came and told to finders: who vouches for a root, and the parts of a list that grows.
//!
//! Control does not check signatures: a finder does, and says when one does not prove what it should. Then another author is named to it, and when
//! there is none, it may read the origin.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use shoal_proto::{BlockIndex, NodeId};

use super::super::around::Around;
use super::super::event::{Certificate, Fact, FinderId, Meta, Proof, Say, Signature};
use super::super::finder::Finder;
use super::{Blob, List, RUN, Seal};

/// Those who vouch for a root whose signatures are kept: as many as a finder is told of nodes. A blob may have ten thousand holders.
const MOST_VOUCHERS: usize = 16;

/// A holder who signed the root.
#[derive(Debug)]
pub(in super::super) struct Voucher {
    node: NodeId,
    /// As the node says it: the signature is over its media type too.
    meta: Arc<Fact>,
    signature: Signature,
    /// By what it is checked when the node is gone.
    certificate: Option<Arc<Certificate>>,
}

impl Voucher {
    /// `None`: nothing is signed.
    pub(in super::super) fn new(
        node: &NodeId,
        meta: &Arc<Fact>,
        signature: &Signature,
        certificate: Option<Arc<Certificate>>,
    ) -> Option<Self> {
        let signed = !signature.is_empty();
        signed.then(|| Self { node: node.clone(), meta: meta.clone(), signature: signature.clone(), certificate })
    }

    pub(super) fn node(&self) -> &NodeId {
        &self.node
    }

    /// It signed the root of these bytes.
    pub(super) fn is_for(&self, meta: &Meta) -> bool {
        self.meta.root == meta.root && self.meta.size == meta.size
    }
}

/// Hashes as their writer signed them.
#[derive(Debug)]
pub(super) struct Part {
    first: BlockIndex,
    hashes: Bytes,
    proof: Option<Proof>,
}

impl Seal {
    /// Who proves the root to a finder, with what and how; `None`: nobody does.
    pub(super) fn vouches_to(
        &self,
        finder: &Finder,
        whole: &BTreeSet<NodeId>,
        around: &Around<'_>,
    ) -> Option<(NodeId, Arc<Fact>, Signature)> {
        let fine = |node: &NodeId| around.may_name(node, finder) && finder.may_prove(node);
        if self.vouchers.is_empty() {
            // Nobody signs here; or those who did are gone, and the finder asks a holder itself.
            let author = std::iter::once(&self.author).chain(whole).find(|node| fine(node));
            return author.map(|author| (author.clone(), self.meta.clone(), Signature::new()));
        }
        let author = self.vouchers.iter().find(|voucher| voucher.node == self.author);
        let voucher = author.into_iter().chain(&self.vouchers).find(|voucher| fine(&voucher.node))?;
        Some((voucher.node.clone(), voucher.meta.clone(), voucher.signature.clone()))
    }

    /// A holder has signed the root.
    pub(super) fn vouch(&mut self, voucher: Voucher) {
        if let Some(known) = self.vouchers.iter_mut().find(|known| known.node == voucher.node) {
            *known = voucher;
        } else if self.vouchers.len() < MOST_VOUCHERS || voucher.node == self.author {
            self.vouchers.truncate(MOST_VOUCHERS - 1);
            self.vouchers.push(voucher);
        }
    }

    /// A holder is gone. Another who checked the whole vouches for the root from now on, `first` if nobody signed; what the last one
    /// signed stays, as what it said does.
    pub(super) fn pass_on(&mut self, node: &NodeId, first: &NodeId) {
        self.vouchers.retain(|voucher| voucher.node != *node);
        if self.author == *node {
            self.author = self.vouchers.first().map_or(first, |voucher| &voucher.node).clone();
        }
    }

    /// By what a voucher's signature is checked when the node is gone.
    pub(super) fn certificate_of(&self, node: &NodeId) -> Option<&Arc<Certificate>> {
        self.vouchers.iter().find(|voucher| voucher.node == *node)?.certificate.as_ref()
    }
}

impl List {
    /// Notes what a writer said. The proof of it, where things are signed; what brings nothing new is not kept.
    pub(super) fn note_part(
        &mut self,
        node: &NodeId,
        first: BlockIndex,
        hashes: &Bytes,
        signature: Signature,
        new: bool,
        around: &Around<'_>,
    ) -> Option<Proof> {
        if self.signature.is_empty() {
            return None;
        }
        if let Some(certificate) = around.certificate(node) {
            self.certificates.insert(node.clone(), certificate.clone());
        }
        let proof = Some(Proof { author: node.clone(), signature }).filter(|proof| !proof.signature.is_empty());
        if new {
            self.parts.push(Part { first, hashes: hashes.clone(), proof: proof.clone() });
        }
        proof
    }

    /// Tells a finder all that is known; `writes`: it is the author, and knows the head.
    pub(super) fn tell(&self, id: FinderId, finder: &mut Finder, writes: bool, around: &mut Around<'_>) {
        if !writes {
            let (author, size) = (self.author.clone(), self.hashes.layout().size());
            let (media_type, signature) = (self.media_type.clone(), self.signature.clone());
            if !signature.is_empty() {
                introduce(id, finder, &author, self.certificates.get(&author), around);
            }
            around.say(id, Say::Head { author, size, media_type, signature });
        }
        if self.signature.is_empty() {
            for (first, run) in self.hashes.runs(RUN) {
                around.say(id, Say::Hashes { first, hashes: run.into(), proof: None });
            }
            return;
        }
        for Part { first, hashes, proof } in &self.parts {
            if let Some(Proof { author, .. }) = proof {
                introduce(id, finder, author, self.certificates.get(author), around);
            }
            around.say(id, Say::Hashes { first: *first, hashes: hashes.clone(), proof: proof.clone() });
        }
    }
}

/// Tells a finder by what to check a node's signatures, if it does not know: by the node's certificate of now, or when it is gone, by the last.
pub(super) fn introduce(
    id: FinderId,
    finder: &mut Finder,
    node: &NodeId,
    last: Option<&Arc<Certificate>>,
    around: &mut Around<'_>,
) {
    let Some(certificate) = around.certificate(node).or(last).cloned() else { return };
    if finder.introduced.insert(node.clone(), certificate.issued) != Some(certificate.issued) {
        around.say(id, Say::Author { node: node.clone(), certificate });
    }
}

impl Blob {
    /// Tells a finder by what to check a writer's signatures.
    pub(super) fn introduce(&mut self, id: FinderId, node: &NodeId, around: &mut Around<'_>) {
        let last = self.list.as_ref().and_then(|list| list.certificates.get(node));
        if let Some(finder) = self.finders.get_mut(&id) {
            introduce(id, finder, node, last, around);
        }
    }

    /// A holder has signed the root, for the first time or again.
    pub(in super::super) fn vouch(&mut self, voucher: Voucher, around: &Around<'_>) {
        let Some(seal) = self.seal.as_mut().filter(|seal| voucher.is_for(&seal.meta)) else { return };
        if !self.whole.contains(&voucher.node) {
            return;
        }
        seal.vouch(voucher);
        // Those who would believe nobody may believe this one.
        for id in self.index.untold.iter().copied().collect::<Vec<_>>() {
            self.review(id, around);
        }
    }

    /// Whether somebody proves the root to a finder.
    pub(super) fn is_proven_to(&self, finder: &Finder, around: &Around<'_>) -> bool {
        // Whom a finder was lied to by is looked at where holders are.
        let doubtless = finder.unproven.is_empty();
        doubtless || self.seal.as_ref().is_none_or(|seal| seal.vouches_to(finder, &self.whole, around).is_some())
    }

    /// What was told as an author's word did not prove to be that: the finder is told of another author, or may read the origin.
    pub(in super::super) fn unproven(&mut self, id: FinderId, author: NodeId, around: &mut Around<'_>) {
        let listed = self.list.as_ref().filter(|list| list.author == author).map(|list| list.number);
        self.change(id, around, |finder| {
            if finder.vouched.as_ref() == Some(&author) {
                (finder.seal, finder.vouched) = (None, None);
            }
            if listed == Some(finder.list) {
                finder.list = 0;
            }
            finder.doubts(author);
        });
    }
}
