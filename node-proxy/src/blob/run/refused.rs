//! A list that did not prove to be its author's: the flight goes on without it.
//!
//! Control hears of it and names another author or gives a permit. Whether it does or not, a holder is asked itself: it checked the SHA-256 of the whole,
//! and its connection proves who it is. When nobody has anything, the origin is read (I8), outside "once" (I6).

use std::collections::BTreeSet;
use std::sync::Arc;

use shoal_proto::NodeId;
use tokio::time::Instant;

use super::super::metrics::Leave;
use super::super::upstream;
use super::{KNOWN_PATIENCE, Runner, STALL, start};
use crate::swarm::{Parent, Sighting};

/// Some of the list is not believed.
pub(super) struct Refused {
    since: Instant,
    /// Holders that were asked for their own.
    asked: BTreeSet<NodeId>,
}

impl Runner {
    pub(super) fn on_refused(&mut self, author: &NodeId) {
        tracing::debug!(digest = %self.flight.digest(), %author, "goes on without that author");
        self.refused.get_or_insert_with(|| Refused { since: Instant::now(), asked: BTreeSet::new() });
        self.ask_holders();
    }

    /// Asks those that hold the blob whole for their list, each once.
    pub(super) fn ask_holders(&mut self) {
        let complete = self.flight.body(|body| body.list.is_complete()).unwrap_or(false);
        let Some(refused) = self.refused.as_mut().filter(|_| !complete && self.locating.is_none()) else { return };
        let parents = self.parents.borrow().clone();
        let new = |parent: &&Parent| parent.complete && refused.asked.insert(parent.node.clone());
        let holders: Vec<Parent> = parents.iter().filter(new).cloned().collect();
        if holders.is_empty() {
            return;
        }
        let (peers, digest) = (Arc::clone(&self.inner.peers), self.flight.digest());
        self.locating = Some(start(async move {
            match tokio::time::timeout(KNOWN_PATIENCE, peers.locate(digest, holders)).await {
                Ok(Sighting::Whole(located)) => Some(located),
                _ => None,
            }
        }));
    }

    /// After a while without anything from anybody the origin is read.
    pub(super) fn go_on_without_a_list(&mut self) {
        self.ask_holders();
        let waited = self.refused.as_ref().is_some_and(|refused| refused.since.elapsed() >= STALL);
        let idle = self.reads.is_empty() && self.leave.is_none() && self.locating.is_none();
        if !waited || !idle || self.grown.1.elapsed() < STALL {
            return;
        }
        if self.may_read_origin() {
            self.start_origin(Leave::Unproven, 0, upstream::WHOLE);
        } else {
            self.leave = Some(Leave::Unproven);
        }
    }
}
