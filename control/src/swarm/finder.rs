//! One Find stream, as its blob keeps it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use shoal_proto::{Kind, NodeId};

use super::event::{Ask, At, Fact, ParentSaid, Waiting};
use super::meter::Meter;

/// A finder whose reading failed may try again after this long, doubled with each failure.
pub(super) const RETRY: At = At::from_secs(1);
/// The longest such pause, and the longest that an origin may keep a cluster away by one answer.
pub(super) const LONGEST_PAUSE: At = At::from_secs(60);
/// How long a finder is not told of a parent that it could not use. Long enough that it does not come back to the same
/// dead end at once, short enough for a parent that was only restarted.
pub(super) const LOST: At = At::from_secs(5);
/// Authors whose signatures a finder may refuse before it is told of none any more: it has the wrong time, or other authorities, and gains
/// nothing by hearing of all.
const MOST_UNPROVEN: usize = 4;

#[derive(Debug)]
pub(super) struct Finder {
    pub(super) node: NodeId,
    pub(super) registry: Arc<str>,
    pub(super) repository: String,
    pub(super) kind: Kind,
    pub(super) may_read: bool,
    pub(super) blocks: u32,
    /// It may be given a run.
    pub(super) runs: bool,
    /// Bytes that it read from the origin in this flight, and how fast it reads now.
    pub(super) origin_bytes: u64,
    /// Who gave it how many bytes, as it says itself: for people alone, at most [`MOST_FED`](super::event::MOST_FED).
    pub(super) fed: Vec<(NodeId, u64)>,
    pub(super) meter: Meter,
    pub(super) failures: u32,
    /// Its reading was slow beside another's: others are asked to read before it.
    pub(super) slow: bool,
    /// No permit before.
    pub(super) not_before: At,
    /// The origin refused it: it is not asked to read again.
    pub(super) denied: bool,
    pub(super) done: bool,
    /// A seed that was ordered to fetch, and reads before all others.
    pub(super) ordered: bool,
    pub(super) liars: HashSet<NodeId>,
    /// Parents that it can't use, and until when that is believed.
    pub(super) lost: HashMap<NodeId, At>,
    /// When the first of those is believed no more, as it is noted for the blob's timer.
    pub(super) lost_until: Option<At>,
    pub(super) parents: Option<Vec<ParentSaid>>,
    /// Its candidates are not changed for a better mix before this.
    pub(super) mix_at: At,
    /// It was told, or has said, how large the blob is: its node answers who opens it there.
    pub(super) begun: bool,
    /// Which list it was told of.
    pub(super) list: u64,
    pub(super) seal: Option<Arc<Fact>>,
    /// Who vouches for the seal, as it was told.
    pub(super) vouched: Option<NodeId>,
    /// Whose certificate it was told, and when that was issued.
    pub(super) introduced: BTreeMap<NodeId, u64>,
    /// Authors whose signatures did not prove to be theirs.
    pub(super) unproven: Vec<NodeId>,
    pub(super) waiting: Option<Waiting>,
}

impl Finder {
    pub(super) fn new(node: NodeId, ask: &Ask) -> Self {
        Self {
            node,
            registry: ask.registry.as_str().into(),
            repository: ask.repository.clone(),
            kind: ask.kind,
            may_read: ask.may_read_origin,
            blocks: ask.blocks,
            runs: ask.runs,
            origin_bytes: 0,
            fed: Vec::new(),
            meter: Meter::default(),
            failures: 0,
            slow: false,
            not_before: At::ZERO,
            denied: false,
            done: false,
            ordered: false,
            liars: HashSet::new(),
            lost: HashMap::new(),
            lost_until: None,
            parents: None,
            mix_at: At::ZERO,
            begun: false,
            list: 0,
            seal: None,
            vouched: None,
            introduced: BTreeMap::new(),
            unproven: Vec::new(),
            waiting: None,
        }
    }

    /// Whether an author's signature may prove something to it.
    pub(super) fn may_prove(&self, author: &NodeId) -> bool {
        self.unproven.len() < MOST_UNPROVEN && !self.unproven.contains(author)
    }

    /// An author's signature did not.
    pub(super) fn doubts(&mut self, author: NodeId) {
        if self.may_prove(&author) {
            self.unproven.push(author);
        }
    }

    /// Nobody was named to it, or nobody that is left.
    pub(super) fn is_bare(&self) -> bool {
        !self.done && self.parents.as_ref().is_none_or(Vec::is_empty)
    }

    pub(super) fn failed(&mut self, now: At) {
        let pause = RETRY.saturating_mul(1 << self.failures.min(6)).min(LONGEST_PAUSE);
        self.failures += 1;
        self.not_before = now + pause;
    }
}
