//! What is known of one blob in one cluster: who holds it, its piece list, the permit, and who waits.
//!
//! A list keeps the author who began it. When the permit moves, the successor goes on with the same list: what its
//! author wrote was read under a permit, and so is what the successor adds (I1). Everybody who wrote is remembered, so
//! that a blob which does not match its digest names all of them. The list is thrown away when it is reported to be
//! wrong, and when two readers contradict each other; then a reader starts anew by finding again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shoal_proto::{Layout, NodeId, PieceList};

use super::around::{Around, Node};
use super::candidates::{Candidate, Pool};
use super::event::{At, Cause, Effect, FinderId, Meta, Notice, ParentSaid, Say, Stop, Waiting};
use super::finder::{Finder, LONGEST_PAUSE, RETRY};
use super::permit::Permit;

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
}

#[derive(Debug)]
pub(super) struct Seal {
    pub(super) author: NodeId,
    pub(super) meta: Arc<Meta>,
}

#[derive(Debug, Default)]
pub(super) struct Blob {
    pub(super) whole: BTreeSet<NodeId>,
    pub(super) finders: BTreeMap<FinderId, Finder>,
    pub(super) list: Option<List>,
    pub(super) seal: Option<Seal>,
    pub(super) permit: Option<Permit>,
    lists: u64,
    /// When the candidates of all finders are looked at again.
    flush: Option<At>,
    /// The timer that is set for this blob.
    pub(super) wake: Option<At>,
}

impl Blob {
    /// Nothing is left to know.
    pub(super) fn is_over(&self) -> bool {
        self.whole.is_empty() && self.finders.is_empty() && self.permit.is_none()
    }

    /// Who can serve has changed.
    pub(super) fn changed(&mut self, now: At) {
        self.flush.get_or_insert(now + GATHER);
    }

    /// Who can serve has changed, in a way that can't wait.
    pub(super) fn flush_now(&mut self, now: At) {
        self.flush = Some(now);
    }

    /// How many blocks the blob has, when its size is known.
    pub(super) fn blocks(&self) -> Option<u32> {
        let list = self.list.as_ref().map(|list| list.hashes.layout());
        let layout = list.or_else(|| Layout::of(self.seal.as_ref()?.meta.size).ok())?;
        Some(layout.blocks())
    }

    /// What finders were told of a seal is void.
    pub(super) fn forget_seal(&mut self) {
        self.finders.values_mut().for_each(|finder| finder.seal = None);
    }

    /// Makes a node a holder of the whole. False: it contradicts those who hold it, and is refused.
    pub(super) fn add_whole(&mut self, node: &NodeId, meta: &Arc<Meta>, around: &mut Around<'_>) -> bool {
        match &mut self.seal {
            Some(seal) if seal.meta.root != meta.root || seal.meta.size != meta.size => {
                if !self.whole.is_empty() {
                    let first = seal.author.clone();
                    around.notice(Notice::RootsDiffer { first, later: node.clone() });
                    return false;
                }
                // Those who said so hold it no more, and whoever checked the whole knows better.
                *seal = Seal { author: node.clone(), meta: meta.clone() };
            }
            Some(seal) => {
                if self.whole.is_empty() {
                    seal.author = node.clone();
                }
            }
            None => {
                // Blocks of a list that grows are with readers already: another's word must not void it while it is read.
                let read = self.list.as_ref().filter(|list| self.permit.is_some() && list.author != *node);
                match read.map(|list| (list.hashes.root(), list)) {
                    Some((None, _)) => return false,
                    Some((Some(root), list)) if root != meta.root => {
                        let first = list.author.clone();
                        around.notice(Notice::RootsDiffer { first, later: node.clone() });
                        return false;
                    }
                    Some(_) | None => self.seal = Some(Seal { author: node.clone(), meta: meta.clone() }),
                }
            }
        }
        self.list = None;
        if self.whole.insert(node.clone()) {
            self.changed(around.now);
        }
        true
    }

    /// Whether a node that says so now would be taken as a holder of the whole.
    pub(super) fn agrees(&self, meta: &Meta) -> bool {
        match &self.seal {
            Some(seal) => self.whole.is_empty() || (seal.meta.root == meta.root && seal.meta.size == meta.size),
            None => self.permit.is_none() || self.list.is_none(),
        }
    }

    /// A node holds it no more. Another who checked the whole vouches for the root from now on.
    pub(super) fn remove_whole(&mut self, node: &NodeId, now: At) -> bool {
        let had = self.whole.remove(node);
        if had {
            self.changed(now);
            if let Some(seal) = self.seal.as_mut().filter(|seal| seal.author == *node)
                && let Some(other) = self.whole.first()
            {
                seal.author = other.clone();
            }
        }
        had
    }

    /// The finder that reads under the permit.
    pub(super) fn reads(&self, finder: FinderId) -> bool {
        self.permit.as_ref().is_some_and(|permit| permit.finder == Some(finder))
    }

    pub(super) fn drop_permit(&mut self, cause: Cause, around: &mut Around<'_>) {
        if let Some(permit) = self.permit.take() {
            self.changed(around.now);
            around.notice(Notice::Moved { node: permit.node, cause });
        }
    }

    fn takes_whole(&self, finder: &Finder, around: &Around<'_>) -> bool {
        let usable = |holder: &NodeId| {
            *holder != finder.node && !finder.lost.contains_key(holder) && around.may_name(holder, finder)
        };
        self.whole.iter().any(usable)
    }

    /// Under the permit, the origin has answered. Err: too large to be cut.
    pub(super) fn headers(&mut self, size: u64, media_type: String, around: &mut Around<'_>) -> Result<(), ()> {
        let Some(permit) = &mut self.permit else { return Ok(()) };
        let layout = Layout::of(size).map_err(|_| ())?;
        permit.headers = true;
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
            self.list = Some(List {
                number: self.lists,
                author: node.clone(),
                writers: vec![node],
                media_type,
                hashes: PieceList::new(layout),
            });
        }
        self.changed(around.now);
        Ok(())
    }

    /// Under the permit, more hashes. They go to all who follow the list.
    pub(super) fn hashes(&mut self, finder: FinderId, first: u32, hashes: &Bytes, around: &mut Around<'_>) {
        let Some(permit) = self.permit.as_mut().filter(|permit| permit.finder == Some(finder)) else { return };
        permit.touch(around.now);
        let Some(list) = &mut self.list else { return };
        if list.hashes.set_run(first, hashes).is_err() {
            let (first, later) = (list.author.clone(), permit.node.clone());
            self.list = None;
            if first == later {
                self.end(finder, Stop::Invalid("list"), around);
                self.drop_permit(Cause::Distrusted, around);
            } else {
                around.notice(Notice::ReadersDiffer { first, later });
                self.start_over(around);
            }
            return;
        }
        if !list.writers.contains(&permit.node) {
            list.writers.push(permit.node.clone());
        }
        permit.closing |= list.hashes.is_complete() && list.author == permit.node;
        let number = list.number;
        let listens = |(id, other): &(&FinderId, &Finder)| **id != finder && other.list == number && !other.done;
        for (id, _) in self.finders.iter().filter(listens) {
            for (at, run) in (0u32..).zip(split(hashes)) {
                around.out.push(Effect::Say(*id, Say::Hashes { first: first + at * RUN as u32, hashes: run }));
            }
        }
    }

    /// The list is gone: its reader has to tell all again, and finds again for that.
    pub(super) fn start_over(&mut self, around: &mut Around<'_>) {
        let Some(permit) = &mut self.permit else { return };
        permit.lost.get_or_insert(around.now);
        if let Some(finder) = permit.finder.take() {
            self.end(finder, Stop::Again("what was known of the blob was thrown away"), around);
        }
    }

    /// Ends a finder's stream from this side.
    pub(super) fn end(&mut self, finder: FinderId, stop: Stop, around: &mut Around<'_>) {
        if self.finders.remove(&finder).is_some() {
            around.say(finder, Say::Stop(stop));
            self.changed(around.now);
        }
    }

    /// Brings everything in line after a change or a timer, and answers when to look again.
    pub(super) fn settle(&mut self, around: &mut Around<'_>) -> Option<At> {
        self.try_lost_again(around.now);
        self.take_back(around);
        self.grant(around);
        if self.permit.is_none() && self.nobody_may(around) {
            for finder in self.finders.keys().copied().collect::<Vec<_>>() {
                self.end(finder, Stop::NotFound, around);
            }
        }
        self.send_away(around);
        self.relay(around);
        self.offer(around);
        self.explain(around);
        self.next(around)
    }

    /// What a finder could not use may be named to it again.
    fn try_lost_again(&mut self, now: At) {
        let mut again = false;
        for finder in self.finders.values_mut() {
            let before = finder.lost.len();
            finder.lost.retain(|_, until| *until > now);
            again |= finder.lost.len() < before;
        }
        if again {
            self.flush_now(now);
        }
    }

    /// Takes an overdue permit away, when somebody else would use it better or its holder is gone.
    fn take_back(&mut self, around: &mut Around<'_>) {
        let Some(permit) = &self.permit else { return };
        let (due, cause) = permit.overdue();
        if around.now < due {
            return;
        }
        let holder = permit.finder;
        let Some(id) = holder else { return self.drop_permit(cause, around) };
        if self.successor(around, holder).is_none() {
            return;
        }
        self.drop_permit(cause, around);
        if let Some(finder) = self.finders.get_mut(&id) {
            finder.failed(around.now);
            around.say(id, Say::Stop(Stop::Revoked));
        }
    }

    /// Who should read the origin now: who failed least, then who has most, then who came first.
    fn successor(&self, around: &Around<'_>, not: Option<FinderId>) -> Option<FinderId> {
        let willing = |(id, finder): &(&FinderId, &Finder)| {
            Some(**id) != not
                && self.wants(finder, around)
                && finder.not_before <= around.now
                && around.busy_until(&finder.registry) <= around.now
        };
        let best = |(id, finder): &(&FinderId, &Finder)| (finder.failures, std::cmp::Reverse(finder.blocks), **id);
        self.finders.iter().filter(willing).min_by_key(best).map(|(id, _)| *id)
    }

    /// Would read the origin and has nobody to get all of it from.
    fn wants(&self, finder: &Finder, around: &Around<'_>) -> bool {
        finder.may_read && !finder.denied && !finder.done && !self.takes_whole(finder, around)
    }

    fn grant(&mut self, around: &mut Around<'_>) {
        if self.permit.is_some() || around.now < around.starting {
            return;
        }
        let Some(id) = self.successor(around, None) else { return };
        let node = self.finders[&id].node.clone();
        let permit = Permit::new(around.dice.next().max(1), node.clone(), id, around.now);
        around.say(id, Say::Permit(permit.id));
        around.notice(Notice::Granted { node });
        self.permit = Some(permit);
        if let Some(finder) = self.finders.get_mut(&id) {
            finder.waiting = None;
        }
    }

    /// The origin refused all who would read, and nobody holds it.
    fn nobody_may(&self, around: &Around<'_>) -> bool {
        around.now >= around.starting
            && self.whole.is_empty()
            && self.finders.values().any(|finder| finder.denied)
            && self.finders.values().all(|finder| finder.denied || finder.done || !finder.may_read)
    }

    /// Who could wait only for a node that has lied to it asks the registry itself.
    fn send_away(&mut self, around: &mut Around<'_>) {
        let Some(permit) = &self.permit else { return };
        let waits = |(id, finder): &(&FinderId, &Finder)| {
            permit.finder != Some(**id)
                && finder.node != permit.node
                && !finder.done
                && !self.takes_whole(finder, around)
                && !around.may_name(&permit.node, finder)
        };
        for finder in self.finders.iter().filter(waits).map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end(finder, Stop::NotFound, around);
        }
    }

    /// Tells every finder of the list or the seal, if it does not know.
    fn relay(&mut self, around: &mut Around<'_>) {
        let reader = self.permit.as_ref().and_then(|permit| permit.finder);
        for (id, finder) in self.finders.iter_mut().filter(|(_, finder)| !finder.done) {
            if let Some(seal) = &self.seal {
                // Who vouches for it may be nobody that this finder was lied to by.
                let vouches =
                    std::iter::once(&seal.author).chain(&self.whole).find(|node| around.may_name(node, finder));
                if finder.seal.as_ref() != Some(&seal.meta)
                    && let Some(author) = vouches.cloned()
                {
                    finder.seal = Some(seal.meta.clone());
                    finder.list = 0;
                    finder.vouched = Some(author.clone());
                    around.say(*id, Say::Sealed { author, meta: seal.meta.clone() });
                }
            } else if let Some(list) = &self.list {
                let writes = reader == Some(*id) && list.author == finder.node;
                if finder.list != list.number && !writes && around.may_name(&list.author, finder) {
                    finder.list = list.number;
                    finder.seal = None;
                    let (author, media_type) = (list.author.clone(), list.media_type.clone());
                    around.say(*id, Say::Head { author, size: list.hashes.layout().size(), media_type });
                    for (first, run) in list.hashes.runs(RUN) {
                        around.say(*id, Say::Hashes { first, hashes: run.into() });
                    }
                }
            }
        }
    }

    /// Whether a finder's node can serve blocks to others: it has one, or the origin is sending it some.
    fn serves(&self, id: FinderId, finder: &Finder) -> bool {
        let reading = self.permit.as_ref().is_some_and(|permit| permit.finder == Some(id) && permit.headers);
        !finder.done && (finder.blocks > 0 || reading)
    }

    /// Names candidates: at once to who has none yet, to all when what changed has been gathered.
    fn offer(&mut self, around: &mut Around<'_>) {
        let all = self.flush.is_some_and(|at| at <= around.now);
        if all {
            self.flush = None;
        }
        let lacks = |finder: &Finder| !finder.done && finder.parents.as_ref().is_none_or(Vec::is_empty);
        if !all && !self.finders.values().any(lacks) {
            return;
        }
        let mut pool = Pool::default();
        let partial =
            self.finders.iter().filter(|(id, finder)| self.serves(**id, finder)).map(|(_, finder)| &finder.node);
        for (node, complete) in self.whole.iter().map(|node| (node, true)).chain(partial.map(|node| (node, false))) {
            let Some(Node { cluster: Some(cluster), addr, location, uploads, slots, .. }) = around.nodes.get(node)
            else {
                continue;
            };
            if cluster == around.cluster {
                let (addr, uploads, slots) = (*addr, *uploads, *slots);
                pool.push(Candidate { node, addr, complete, uploads, slots, location, named: 0 });
            }
        }
        let mut said = Vec::new();
        for (id, finder) in self.finders.iter().filter(|(_, finder)| !finder.done && (all || lacks(finder))) {
            let location = around.nodes.get(&finder.node).map(|node| node.location.as_slice()).unwrap_or_default();
            let current = finder.parents.as_deref().unwrap_or_default();
            let mut liars = finder.liars.clone();
            liars.extend(finder.lost.keys().cloned());
            liars.extend(around.distrust.shunned_by(&finder.node, around.now).cloned());
            let chosen = pool.choose(&finder.node, location, &liars, current, around.dice);
            if !same(&chosen, current) {
                said.push((*id, chosen));
            }
        }
        for (id, chosen) in said {
            if let Some(finder) = self.finders.get_mut(&id) {
                finder.parents = Some(chosen.clone());
                if !chosen.is_empty() {
                    finder.waiting = None;
                }
            }
            around.say(id, Say::Parents(chosen));
        }
    }

    /// Tells who has neither parents nor the permit what it waits for, when that has changed.
    fn explain(&mut self, around: &mut Around<'_>) {
        let waits = |id: &FinderId, finder: &Finder| {
            !finder.done && finder.parents.as_ref().is_none_or(Vec::is_empty) && !self.reads(*id)
        };
        let waiting: Vec<FinderId> = self.finders.iter().filter(|(id, f)| waits(id, f)).map(|(id, _)| *id).collect();
        if waiting.is_empty() {
            return;
        }
        let reason = match &self.permit {
            Some(Permit { finder: None, .. }) => Waiting::HolderConnects,
            Some(Permit { headers: false, .. }) => Waiting::HolderWaits,
            Some(_) => Waiting::HolderReads,
            None if around.now < around.starting => Waiting::Starting { left: around.starting - around.now },
            None => match self.retry(around, None) {
                Some(at) => Waiting::Busy { left: at.saturating_sub(around.now) },
                None => Waiting::Nobody,
            },
        };
        for id in waiting {
            let Some(finder) = self.finders.get_mut(&id) else { continue };
            // The time that is left is no news by itself.
            let known = finder.waiting.is_some_and(|w| std::mem::discriminant(&w) == std::mem::discriminant(&reason));
            if !known {
                finder.waiting = Some(reason);
                around.say(id, Say::Waiting(reason));
            }
        }
    }

    /// When the first of those may be asked to read who may not now.
    fn retry(&self, around: &Around<'_>, not: Option<FinderId>) -> Option<At> {
        let others = self.finders.iter().filter(|(id, finder)| Some(**id) != not && self.wants(finder, around));
        let from = others.map(|(_, finder)| finder.not_before.max(around.busy_until(&finder.registry)));
        from.filter(|at| *at > around.now).min()
    }

    fn next(&self, around: &Around<'_>) -> Option<At> {
        let due = match self.permit.as_ref().map(|permit| (permit.finder, permit.overdue().0)) {
            // Overdue, and nobody is there to take it: looked at again when somebody comes, or may.
            Some((holder, at)) if at <= around.now => self.retry(around, holder),
            Some((_, at)) => Some(at),
            None if self.finders.is_empty() => None,
            None if around.now < around.starting => Some(around.starting),
            None => self.retry(around, None),
        };
        let flush = self.flush.filter(|_| !self.finders.is_empty());
        let lost = self.finders.values().flat_map(|finder| finder.lost.values().copied()).min();
        [due, flush, lost].into_iter().flatten().min()
    }
}

fn same(chosen: &[ParentSaid], current: &[ParentSaid]) -> bool {
    chosen.len() == current.len() && chosen.iter().all(|parent| current.contains(parent))
}

fn split(hashes: &Bytes) -> impl Iterator<Item = Bytes> + '_ {
    (0..hashes.len()).step_by(RUN * 32).map(|at| hashes.slice(at..(at + RUN * 32).min(hashes.len())))
}

/// How long an origin's wish to be left alone is respected.
pub(super) fn pause(asked: Duration) -> At {
    asked.clamp(RETRY, LONGEST_PAUSE)
}
