//! What is known of one blob in one cluster: who holds it, its piece list, the permit, and who waits.
//!
//! A list keeps the author who began it. When the permit moves, the successor goes on with the same list: what its
//! author wrote was read under a permit, and so is what the successor adds (I1). Everybody who wrote is remembered, so
//! that a blob which does not match its digest names all of them. The list is thrown away when it is reported to be
//! wrong, and when two readers contradict each other; then a reader starts anew by finding again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem::Discriminant;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shoal_proto::{BlockSet, Layout, NodeId, PieceList};

use super::around::Around;
use super::candidates::{ENOUGH, Has, MOST, Servers};
use super::event::{At, Cause, Certificate, Fact, FinderId, Meta, Notice, Say, Signature, Stop, Waiting};
use super::finder::{Finder, LONGEST_PAUSE, RETRY};
use super::permit::Permit;
use super::willing::Willing;

#[cfg(test)]
mod check;
mod errand;
mod offer;
mod pace;
mod rest;
mod runs;
mod settle;
mod vouch;

pub(super) use rest::Rest;
pub(super) use vouch::Voucher;

/// Hashes in one message to a finder: 32 KiB.
const RUN: usize = 1024;
/// Changes of candidates are gathered this long, so that a rush of nodes does not rewrite every set at each step.
const GATHER: At = At::from_millis(100);

/// A list that grows.
#[derive(Debug)]
pub(super) struct List {
    /// Tells one list from the next; never 0.
    number: u64,
    pub(super) author: NodeId,
    pub(super) writers: Vec<NodeId>,
    pub(super) media_type: String,
    pub(super) hashes: PieceList,
    /// The author's, over size and media type; empty where nothing is signed.
    signature: Signature,
    /// What writers signed, as it came, where the head is signed; each brought a hash that was not known.
    parts: Vec<vouch::Part>,
    /// By what writers' signatures are checked, also when they are gone.
    certificates: BTreeMap<NodeId, Arc<Certificate>>,
    /// Blocks that were read from the origin and are with whoever read them, and who that was.
    read: BlockSet,
    by: BTreeMap<NodeId, BlockSet>,
}

#[derive(Debug)]
pub(super) struct Seal {
    pub(super) author: NodeId,
    pub(super) meta: Arc<Fact>,
    /// Some of those who signed the root; the author is among them where things are signed.
    vouchers: Vec<Voucher>,
}

#[derive(Debug, Default)]
pub(super) struct Blob {
    pub(super) whole: BTreeSet<NodeId>,
    pub(super) finders: BTreeMap<FinderId, Finder>,
    pub(super) list: Option<List>,
    pub(super) seal: Option<Seal>,
    pub(super) permits: Vec<Permit>,
    lists: u64,
    /// Its size as a finder was told by a manifest; good for how it is cut, and no more.
    pub(super) hint: Option<u64>,
    pace: pace::Pace,
    /// Readers whose finder went, and when that counts.
    gone: BTreeMap<NodeId, At>,
    /// The most blocks that anybody had, and when that became more or one was read. Not when anybody got one: those that come back
    /// from a crash get some all the time, also when nobody is left who has the last.
    grown: (u32, At),
    /// Finders that take no runs.
    take_none: usize,
    /// Seeds that are sent first.
    errand: errand::Errand,
    /// A node has one finder at most.
    by_node: HashMap<NodeId, FinderId>,
    index: Index,
    /// Everybody that can serve: the whole ones, and finders that have something.
    servers: Servers,
    /// Somebody came who can serve: since anybody without candidates, and since all who have few, were looked at.
    gained: (bool, bool),
    /// What finders were told last of list and seal, and why those wait who have nothing.
    relayed: (u64, Option<Arc<Fact>>),
    explained: Option<Discriminant<Waiting>>,
    /// When the candidates of finders are looked at again.
    flush: Option<At>,
    /// The timer that is set for this blob.
    pub(super) wake: Option<At>,
}

/// Finders by what has to be done about them, so that an event costs what it changes and not what there is. All of it follows
/// from the finders themselves: [`Blob::review`] brings one in line.
#[derive(Debug, Default)]
struct Index {
    /// Would read the origin, and can't get the whole from anybody.
    willing: Willing,
    /// Without candidates.
    bare: BTreeSet<FinderId>,
    /// With fewer candidates than there may be.
    hungry: BTreeSet<FinderId>,
    /// Refused by the origin.
    denied: BTreeSet<FinderId>,
    /// Not everybody may be named to it for good: its node has been lied to.
    picky: BTreeSet<FinderId>,
    /// When it may be told again of the first of those that it lost.
    lost: BTreeSet<(At, FinderId)>,
    /// Changed since the blob was settled last.
    dirty: BTreeSet<FinderId>,
    /// Its candidates are to be chosen again at the next flush.
    short: BTreeSet<FinderId>,
    /// Its candidates are to be chosen again at once.
    urgent: BTreeSet<FinderId>,
    /// Was not told of list or seal, because it would not believe who vouches.
    untold: BTreeSet<FinderId>,
}

impl Index {
    fn forget(&mut self, id: FinderId) {
        self.willing.remove(id);
        let all = [
            &mut self.bare,
            &mut self.hungry,
            &mut self.denied,
            &mut self.picky,
            &mut self.dirty,
            &mut self.short,
            &mut self.urgent,
            &mut self.untold,
        ];
        for set in all {
            set.remove(&id);
        }
    }
}

fn mark(set: &mut BTreeSet<FinderId>, id: FinderId, holds: bool) {
    if holds {
        set.insert(id);
    } else {
        set.remove(&id);
    }
}

impl Blob {
    /// Nothing is left to know.
    pub(super) fn is_over(&self) -> bool {
        self.whole.is_empty() && self.finders.is_empty() && self.permits.is_empty()
    }

    /// Who can serve has changed.
    pub(super) fn changed(&mut self, now: At) {
        let at = now + GATHER;
        self.flush = Some(self.flush.map_or(at, |flush| flush.min(at)));
    }

    /// A finder's candidates are no good any more, in a way that can't wait.
    pub(super) fn name_again(&mut self, id: FinderId) {
        self.index.urgent.insert(id);
    }

    /// Everybody's candidates are to be looked at now.
    pub(super) fn flush_all(&mut self, now: At) {
        self.index.short.extend(self.finders.keys());
        self.flush = Some(now);
    }

    /// How many blocks the blob has, when its size is known.
    pub(super) fn blocks(&self) -> Option<u32> {
        let list = self.list.as_ref().map(|list| list.hashes.layout());
        let layout = list.or_else(|| Layout::of(self.seal.as_ref()?.meta.size).ok())?;
        Some(layout.blocks())
    }

    /// A node's finder.
    pub(super) fn finder_of(&self, node: &NodeId) -> Option<FinderId> {
        self.by_node.get(node).copied()
    }

    /// A finder comes.
    pub(super) fn take_in(&mut self, id: FinderId, finder: Finder, around: &Around<'_>) {
        self.by_node.insert(finder.node.clone(), id);
        self.gone.remove(&finder.node);
        self.take_none += usize::from(!finder.runs);
        self.finders.insert(id, finder);
        self.review(id, around);
    }

    /// A finder goes. Nothing is left of it but its permits.
    pub(super) fn let_go(&mut self, id: FinderId, around: &Around<'_>) -> Option<Finder> {
        let finder = self.finders.remove(&id)?;
        self.take_none -= usize::from(!finder.runs);
        if finder.blocks >= self.grown.0 && self.whole.is_empty() {
            self.grown.0 = self.finders.values().map(|finder| finder.blocks).max().unwrap_or(0);
        }
        if self.by_node.get(&finder.node) == Some(&id) {
            self.by_node.remove(&finder.node);
        }
        self.index.forget(id);
        if let Some(at) = finder.lost_until {
            self.index.lost.remove(&(at, id));
        }
        self.servers.told(id, finder.parents.as_deref().unwrap_or_default(), &[]);
        self.may_be_gone(&finder.node, around.now);
        self.seat(&finder.node, around);
        Some(finder)
    }

    /// Changes a finder, and brings in line what follows.
    pub(super) fn change(&mut self, id: FinderId, around: &Around<'_>, change: impl FnOnce(&mut Finder)) {
        if let Some(finder) = self.finders.get_mut(&id) {
            change(finder);
            self.review(id, around);
        }
    }

    /// Brings all that is noted of a finder in line with what it is.
    pub(super) fn review(&mut self, id: FinderId, around: &Around<'_>) {
        let Some(finder) = self.finders.get(&id) else { return };
        let would_read = self.wants(finder, around);
        let lost_until = finder.lost.values().min().copied();
        let index = &mut self.index;
        if would_read {
            let rank = (finder.failures, finder.slow, Reverse(finder.blocks), id);
            index.willing.put(&finder.registry, rank, finder.not_before, around.now);
        } else {
            index.willing.remove(id);
        }
        mark(&mut index.bare, id, finder.is_bare());
        mark(&mut index.hungry, id, !finder.done && finder.parents.as_ref().map_or(0, Vec::len) < MOST);
        mark(&mut index.denied, id, finder.denied);
        mark(&mut index.picky, id, !finder.liars.is_empty() || around.distrust.has_complained(&finder.node));
        if lost_until != finder.lost_until {
            if let Some(at) = finder.lost_until {
                index.lost.remove(&(at, id));
            }
            index.lost.extend(lost_until.map(|at| (at, id)));
        }
        index.dirty.insert(id);
        let node = finder.node.clone();
        if let Some(finder) = self.finders.get_mut(&id) {
            finder.lost_until = lost_until;
            if finder.done
                && let Some(parents) = finder.parents.take()
            {
                self.servers.told(id, &parents, &[]);
            }
        }
        self.seat(&node, around);
    }

    /// A finder has more blocks, or fewer.
    pub(super) fn grew(&mut self, id: FinderId, blocks: u32, around: &Around<'_>) {
        let blocks = self.blocks().map_or(blocks, |all| blocks.min(all));
        let Some(finder) = self.finders.get_mut(&id) else { return };
        let before = std::mem::replace(&mut finder.blocks, blocks);
        if blocks > self.grown.0 {
            self.grown = (blocks, around.now);
        }
        if (before == 0) == (blocks == 0) {
            self.index.willing.grew(id, blocks);
        } else {
            self.review(id, around);
        }
    }

    /// What is said of many may have changed: all of them, or those that are not like the others.
    pub(super) fn review_all(&mut self, around: &Around<'_>) {
        for id in self.finders.keys().copied().collect::<Vec<_>>() {
            self.review(id, around);
        }
    }

    /// Whether a node can serve, and as what.
    pub(super) fn seat(&mut self, node: &NodeId, around: &Around<'_>) {
        let has = self.has(node);
        let (Some(facts), Some(has)) = (around.facts(node), has) else {
            let namers = self.servers.remove(node);
            if !namers.is_empty() {
                self.changed(around.now);
                self.index.short.extend(namers);
            }
            return;
        };
        let source = around.is_seed(node) || self.permits.iter().any(|permit| permit.node == *node);
        let known = self.servers.get(node);
        let renamed = known.is_some_and(|server| server.facts.addr != facts.addr);
        let whole = has == Has::Whole;
        let completed = known.is_some_and(|server| (server.has == Has::Whole) != whole);
        if self.servers.put(node, facts, has, source) {
            self.gained = (true, true);
            self.changed(around.now);
        } else if renamed || completed {
            self.changed(around.now);
            let namers = self.servers.get(node).map(|server| server.namers.clone()).unwrap_or_default();
            // Who knows of some that have everything need not know of one more at once.
            let knows_some =
                |finder: &Finder| finder.parents.iter().flatten().filter(|parent| parent.complete).count() >= ENOUGH;
            let again = namers
                .into_iter()
                .filter(|id| renamed || !whole || self.finders.get(id).is_some_and(|finder| !knows_some(finder)));
            self.index.short.extend(again.collect::<Vec<_>>());
        }
    }

    /// What finders were told of a seal is void.
    pub(super) fn forget_seal(&mut self) {
        self.finders.values_mut().for_each(|finder| finder.seal = None);
        self.relayed = (0, None);
    }

    /// Makes a node a holder of the whole. False: it contradicts those who hold it, and is refused.
    pub(super) fn add_whole(
        &mut self,
        node: &NodeId,
        meta: &Arc<Fact>,
        vouches: Option<Voucher>,
        around: &mut Around<'_>,
    ) -> bool {
        let sealed = || Seal { author: node.clone(), meta: meta.clone(), vouchers: Vec::new() };
        match &mut self.seal {
            Some(seal) if seal.meta.root != meta.root || seal.meta.size != meta.size => {
                if !self.whole.is_empty() {
                    let first = seal.author.clone();
                    around.notice(Notice::RootsDiffer { first, later: node.clone() });
                    return false;
                }
                // Those who said so hold it no more, and whoever checked the whole knows better.
                *seal = sealed();
            }
            Some(seal) => {
                if self.whole.is_empty() {
                    seal.author = node.clone();
                    seal.vouchers.clear();
                }
            }
            None => {
                // Blocks of a list that grows are with readers already: another's word must not void it while it is read.
                let read = self.list.as_ref().filter(|list| !self.permits.is_empty() && list.author != *node);
                match read.map(|list| (list.hashes.root(), list)) {
                    Some((None, _)) => return false,
                    Some((Some(root), list)) if root != meta.root => {
                        let first = list.author.clone();
                        around.notice(Notice::RootsDiffer { first, later: node.clone() });
                        return false;
                    }
                    Some(_) | None => self.seal = Some(sealed()),
                }
            }
        }
        self.list = None;
        let new = self.whole.insert(node.clone());
        if let Some(voucher) = vouches {
            self.vouch(voucher, around);
        }
        if new {
            self.changed(around.now);
            self.seat(node, around);
            // Whoever would have read the origin has somebody to get all of it from.
            for id in self.index.willing.ids() {
                self.review(id, around);
            }
        }
        true
    }

    /// Whether a node that says so now would be taken as a holder of the whole.
    pub(super) fn agrees(&self, meta: &Meta) -> bool {
        match &self.seal {
            Some(seal) => self.whole.is_empty() || (seal.meta.root == meta.root && seal.meta.size == meta.size),
            None => self.permits.is_empty() || self.list.is_none(),
        }
    }

    /// A node holds it no more. Another who checked the whole vouches for the root from now on.
    pub(super) fn remove_whole(&mut self, node: &NodeId, around: &Around<'_>) {
        if !self.whole.remove(node) {
            return;
        }
        if let (Some(seal), Some(first)) = (&mut self.seal, self.whole.first()) {
            seal.pass_on(node, first);
        }
        self.seat(node, around);
        self.fewer_hold_it(around);
    }

    /// Who could get all of it from somebody may not any more.
    pub(super) fn fewer_hold_it(&mut self, around: &Around<'_>) {
        self.changed(around.now);
        let believed = self.whole.iter().filter(|holder| !around.distrust.is_outcast(holder, around.now));
        if believed.take(2).count() < 2 {
            // With one left, that one may itself look for it.
            self.review_all(around);
            return;
        }
        // Most have the others; a few can't use some of them.
        let lost = self.index.lost.iter().map(|(_, id)| *id);
        for id in self.index.picky.iter().copied().chain(lost).collect::<BTreeSet<_>>() {
            self.review(id, around);
        }
    }

    /// A node may not be named any more, to one finder or to any.
    pub(super) fn shun(&mut self, node: &NodeId, to: Option<FinderId>, around: &mut Around<'_>) {
        if let Some(id) = to {
            self.review(id, around);
        } else {
            if self.whole.contains(node) {
                self.fewer_hold_it(around);
            }
            self.oust(node, around);
        }
        let Some(server) = self.servers.get(node) else { return };
        let again: Vec<FinderId> = server.namers.iter().copied().filter(|id| to.is_none_or(|to| to == *id)).collect();
        if !again.is_empty() {
            self.index.short.extend(again);
            self.changed(around.now);
        }
    }

    /// Who is named to nobody reads for itself alone: all others would wait for what they can't get from it.
    fn oust(&mut self, node: &NodeId, around: &mut Around<'_>) {
        let finder = self.finder_of(node);
        let reads = finder.is_some_and(|id| self.reads(id));
        // Those, too, that wait for it to come back.
        self.drop_permits(|permit| permit.node == *node, Cause::Distrusted, around);
        let Some(id) = finder else { return };
        self.change(id, around, |finder| finder.denied = true);
        if reads {
            around.say(id, Say::Stop(Stop::Revoked));
        }
    }

    /// The finder that reads under a permit.
    pub(super) fn reads(&self, finder: FinderId) -> bool {
        self.permits.iter().any(|permit| permit.finder == Some(finder))
    }

    /// Takes permits back.
    pub(super) fn drop_permits(&mut self, which: impl Fn(&Permit) -> bool, cause: Cause, around: &mut Around<'_>) {
        let (gone, kept) = std::mem::take(&mut self.permits).into_iter().partition(which);
        self.permits = kept;
        for permit in gone {
            self.changed(around.now);
            let waited = matches!(cause, Cause::Lost | Cause::Silent | Cause::NoHeaders | Cause::Slow);
            if waited && around.is_seed(&permit.node) {
                around.seeds.pause(&permit.node, around.now);
            }
            self.stopped(&permit, around);
            around.notice(Notice::Moved { node: permit.node, cause });
        }
    }

    fn takes_whole(&self, finder: &Finder, around: &Around<'_>) -> bool {
        let usable = |holder: &NodeId| {
            *holder != finder.node && !finder.lost.contains_key(holder) && around.may_name(holder, finder)
        };
        self.whole.iter().any(usable) && self.is_proven_to(finder, around)
    }

    /// Under a permit, the origin has answered. Err: too large to be cut.
    pub(super) fn headers(
        &mut self,
        id: FinderId,
        permit: u64,
        size: u64,
        (media_type, signature): (String, Signature),
        around: &mut Around<'_>,
    ) -> Result<(), ()> {
        let held = |held: &&mut Permit| held.id == permit && held.finder == Some(id);
        let Some(permit) = self.permits.iter_mut().find(held) else { return Ok(()) };
        let layout = Layout::of(size).map_err(|_| ())?;
        permit.answered.get_or_insert(around.now);
        permit.touch(around.now);
        permit.closing = layout.blocks() == 0;
        let node = permit.node.clone();
        if self.seal.is_some() && self.whole.is_empty() {
            self.seal = None;
        }
        // Another size than the last reader's: what that one wrote is of no use.
        let other = self.list.as_ref().filter(|list| list.hashes.layout() != layout);
        if let Some(list) = other {
            around.notice(Notice::ReadersDiffer { first: list.author.clone(), later: node.clone() });
            self.list = None;
        }
        if self.seal.is_none() && self.list.is_none() {
            self.lists += 1;
            self.grown = (0, around.now);
            let certificate = around.certificate(&node).map(|certificate| (node.clone(), certificate.clone()));
            let certificates = certificate.into_iter().collect();
            self.list = Some(List {
                number: self.lists,
                author: node.clone(),
                writers: vec![node],
                media_type,
                hashes: PieceList::new(layout),
                signature,
                parts: Vec::new(),
                certificates,
                read: BlockSet::empty(layout),
                by: BTreeMap::new(),
            });
            // Its author knows what it says itself; what others add it is told as all are.
            if let Some(finder) = self.finders.get_mut(&id) {
                (finder.list, finder.seal) = (self.lists, None);
            }
            self.recount(around);
        }
        self.measure(id, around.now);
        self.cut_permit(id, around);
        self.changed(around.now);
        self.review(id, around);
        Ok(())
    }

    /// Under a permit, more hashes. They go to all who follow the list.
    pub(super) fn hashes(
        &mut self,
        finder: FinderId,
        first: u32,
        hashes: &Bytes,
        signature: Signature,
        around: &mut Around<'_>,
    ) {
        let Some(node) = self.finders.get(&finder).map(|finder| finder.node.clone()).filter(|_| self.reads(finder))
        else {
            return;
        };
        let count = (hashes.len() / 32) as u32;
        for permit in self.permits.iter_mut().filter(|permit| permit.finder == Some(finder)) {
            if permit.run.start < first.saturating_add(count) && first < permit.run.end {
                permit.touch(around.now);
            }
        }
        let Some(list) = &mut self.list else { return };
        let known = list.hashes.known();
        if list.hashes.set_run(first, hashes).is_err() {
            let (first, later) = (list.author.clone(), node);
            self.list = None;
            if first == later {
                self.end(finder, Stop::Invalid("list"), around);
                self.drop_permits(|permit| permit.finder == Some(finder), Cause::Distrusted, around);
            } else {
                around.notice(Notice::ReadersDiffer { first, later });
                self.start_over(around);
            }
            return;
        }
        if !list.writers.contains(&node) {
            list.writers.push(node.clone());
        }
        let proof = list.note_part(&node, first, hashes, signature, list.hashes.known() > known, around);
        let (number, closing) = (list.number, list.hashes.is_complete() && list.author == node);
        self.grown.1 = around.now;
        (first..first + count).for_each(|block| self.was_read(block, &node));
        for permit in self.permits.iter_mut().filter(|permit| permit.finder == Some(finder)) {
            permit.closing |= closing;
        }
        self.finish(around);
        let listens = |(id, other): &(&FinderId, &Finder)| **id != finder && other.list == number && !other.done;
        let ids: Vec<FinderId> = self.finders.iter().filter(listens).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(proof) = &proof {
                self.introduce(id, &proof.author, around);
                let (hashes, proof) = (hashes.clone(), Some(proof.clone()));
                around.say(id, Say::Hashes { first, hashes, proof });
                continue;
            }
            for (at, hashes) in (0u32..).zip(split(hashes)) {
                around.say(id, Say::Hashes { first: first + at * RUN as u32, hashes, proof: None });
            }
        }
    }

    /// What a finder asks is not there: true for all who would ask the same repository; another may have it.
    pub(super) fn deny_all_like(&mut self, id: FinderId, around: &Around<'_>) {
        let Some(Finder { registry, repository, .. }) = self.finders.get(&id) else { return };
        let same = |other: &Finder| other.registry == *registry && other.repository == *repository;
        let ids: Vec<FinderId> = self.finders.iter().filter(|(_, other)| same(other)).map(|(id, _)| *id).collect();
        for id in ids {
            self.change(id, around, |finder| finder.denied = true);
        }
    }

    /// The list is gone: its readers have to tell all again, and find again for that.
    pub(super) fn start_over(&mut self, around: &mut Around<'_>) {
        let mut readers = Vec::new();
        for permit in &mut self.permits {
            permit.lost.get_or_insert(around.now);
            readers.extend(permit.finder.take());
        }
        for finder in readers {
            self.end(finder, Stop::Again("what was known of the blob was thrown away"), around);
        }
    }

    /// Ends a finder's stream from this side.
    pub(super) fn end(&mut self, finder: FinderId, stop: Stop, around: &mut Around<'_>) {
        if self.let_go(finder, around).is_some() {
            around.say(finder, Say::Stop(stop));
            self.changed(around.now);
        }
    }

    /// Would read the origin and has nobody to get all of it from.
    fn wants(&self, finder: &Finder, around: &Around<'_>) -> bool {
        finder.may_read && !finder.denied && !finder.done && !self.takes_whole(finder, around)
    }

    /// How much a node can serve; `None` if nobody may be told of it.
    fn has(&self, node: &NodeId) -> Option<Has> {
        if self.whole.contains(node) {
            return Some(Has::Whole);
        }
        let id = self.by_node.get(node)?;
        let finder = self.finders.get(id).filter(|finder| !finder.done)?;
        let reads = || self.permits.iter().any(|permit| permit.finder == Some(*id) && permit.answered.is_some());
        match finder.blocks {
            0 if reads() => Some(Has::Part),
            0 => finder.begun.then_some(Has::Nothing),
            _ => Some(Has::Part),
        }
    }
}

fn split(hashes: &Bytes) -> impl Iterator<Item = Bytes> + '_ {
    (0..hashes.len()).step_by(RUN * 32).map(|at| hashes.slice(at..(at + RUN * 32).min(hashes.len())))
}

/// How long an origin's wish to be left alone is respected.
pub(super) fn pause(asked: Duration) -> At {
    asked.clamp(RETRY, LONGEST_PAUSE)
}
