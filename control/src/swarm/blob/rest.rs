//! A blob that nobody looks for: who holds it, and who vouches for it.
//!
//! Most blobs of a cluster are of this kind at any moment, and all else that a blob keeps is about finders and takes twenty times as much. A
//! Find makes it whole again; when the last finder has gone it rests.

use std::sync::Arc;

use shoal_proto::NodeId;

use super::super::around::Around;
use super::super::event::{Certificate, Fact, Signature};
use super::vouch::Voucher;
use super::{Blob, Seal};

/// With more holders a blob does not rest: to seat them all at each Find would cost more than it spares.
const MOST: usize = 64;
/// Holders that there is room for beyond those that there are.
const ROOM: usize = 4;

#[derive(Debug)]
pub(in super::super) struct Rest {
    /// In order, and never empty.
    whole: Vec<NodeId>,
    seal: Seal,
    hint: Option<u64>,
}

impl Rest {
    pub(in super::super) fn holders(&self) -> &[NodeId] {
        &self.whole
    }

    pub(in super::super) fn meta(&self) -> &Arc<Fact> {
        &self.seal.meta
    }

    /// A node that says the very same holds it too. `None`: that must be looked at.
    pub(in super::super) fn take(
        &mut self,
        node: &NodeId,
        fact: &Fact,
        signature: &Signature,
        certificate: Option<Arc<Certificate>>,
    ) -> Option<Arc<Fact>> {
        if *self.seal.meta != *fact {
            return None;
        }
        if let Err(at) = self.whole.binary_search(node) {
            if self.whole.len() >= MOST {
                return None;
            }
            if self.whole.len() == self.whole.capacity() {
                self.whole.reserve_exact(ROOM);
            }
            self.whole.insert(at, node.clone());
        }
        if let Some(voucher) = Voucher::new(node, &self.seal.meta, signature, certificate) {
            self.seal.vouch(voucher);
        }
        Some(self.seal.meta.clone())
    }

    /// A node holds it no more. False: nobody does.
    pub(in super::super) fn let_go(&mut self, node: &NodeId) -> bool {
        if let Ok(at) = self.whole.binary_search(node) {
            self.whole.remove(at);
            let Some(first) = self.whole.first() else { return false };
            self.seal.pass_on(node, first);
        }
        true
    }

    /// A holder has signed the root, for the first time or again.
    pub(in super::super) fn vouch(&mut self, voucher: Voucher) {
        if voucher.is_for(&self.seal.meta) && self.whole.binary_search(voucher.node()).is_ok() {
            self.seal.vouch(voucher);
        }
    }
}

impl Blob {
    /// Somebody looks at a blob that rested.
    pub(in super::super) fn begin(&mut self, rest: Rest, around: &Around<'_>) {
        let Rest { whole, seal, hint } = rest;
        self.whole = whole.into_iter().collect();
        (self.seal, self.hint) = (Some(seal), hint);
        for node in self.whole.clone() {
            self.seat(&node, around);
        }
    }

    /// What is left of it when nobody looks for it; `None`: somebody does, or may come back, or there are too many holders.
    pub(in super::super) fn rest(&mut self) -> Option<Rest> {
        let idle = self.finders.is_empty() && self.permits.is_empty() && self.list.is_none() && self.wake.is_none();
        let few = !self.whole.is_empty() && self.whole.len() <= MOST;
        if !(idle && few && self.gone.is_empty() && self.errand.out.is_none()) {
            return None;
        }
        let seal = self.seal.take()?;
        let mut whole: Vec<NodeId> = Vec::with_capacity(self.whole.len() + ROOM);
        whole.extend(std::mem::take(&mut self.whole));
        Some(Rest { whole, seal, hint: self.hint })
    }
}
