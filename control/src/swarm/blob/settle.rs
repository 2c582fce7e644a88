//! What follows from a change: permits that move or are granted, and what finders are told of list, seal and waiting.
//!
//! What always holds: it looks at the finders that changed, and at all of them only when something changed for all.

use std::collections::BTreeSet;

use super::super::around::Around;
use super::super::event::{At, Cause, FinderId, Say, Stop, Waiting};
use super::super::finder::Finder;
use super::super::permit::{Permit, SILENT};
use super::Blob;

impl Blob {
    /// Brings everything in line after a change or a timer, and answers when to look again.
    pub(in super::super) fn settle(&mut self, around: &mut Around<'_>) -> Option<At> {
        self.try_again(around);
        // A run can be read only by who knows how the blob is cut.
        self.relay(around);
        self.take_back(around);
        self.read_again(around);
        self.pace(around);
        self.attend(around);
        self.grant(around);
        if self.permits.is_empty() && self.nobody_may(around) {
            for finder in self.finders.keys().copied().collect::<Vec<_>>() {
                self.end(finder, Stop::NotFound, around);
            }
        }
        self.send_away(around);
        self.offer(around);
        self.explain(around);
        self.index.dirty.clear();
        self.next(around)
    }

    /// What a finder could not use may be named to it again, and who paused may read again.
    fn try_again(&mut self, around: &Around<'_>) {
        while let Some((_, id)) = self.index.lost.first().copied().filter(|(at, _)| *at <= around.now) {
            self.change(id, around, |finder| finder.lost.retain(|_, until| *until > around.now));
            self.name_again(id);
        }
        for id in self.index.willing.woken(around.now) {
            self.review(id, around);
        }
    }

    /// Takes overdue permits away, when somebody else would use them better or their holder is gone.
    fn take_back(&mut self, around: &mut Around<'_>) {
        // One that hears nothing is at fault itself when another that asked no earlier has had its answer for as long.
        let hears = |permit: &Permit| {
            self.permits.iter().any(|other| {
                other.finder != permit.finder && other.answered.is_some_and(|at| at + SILENT <= around.now)
            })
        };
        let deaf = |permit: &Permit| {
            permit.answered.is_none() && permit.granted + SILENT <= around.now && permit.lost.is_none() && hears(permit)
        };
        let overdue: Vec<(u64, Option<FinderId>, Cause)> = self
            .permits
            .iter()
            .map(|permit| (permit, if deaf(permit) { (around.now, Cause::NoHeaders) } else { permit.overdue() }))
            .filter(|(_, (due, _))| *due <= around.now)
            .map(|(permit, (_, cause))| (permit.id, permit.finder, cause))
            .collect();
        for (permit, holder, cause) in overdue {
            let Some(id) = holder else {
                self.drop_permits(|other| other.id == permit, cause, around);
                continue;
            };
            let reads_on =
                |other: &Permit| other.finder.is_some_and(|other| other != id && self.may_read_more(other, around));
            if self.reads(id) && (self.successor(around).is_some() || self.permits.iter().any(reads_on)) {
                self.revoke(id, cause, around);
            }
        }
    }

    /// Takes all that a finder reads away from it. It goes on with parents.
    pub(super) fn revoke(&mut self, id: FinderId, cause: Cause, around: &mut Around<'_>) {
        let now = around.now;
        self.drop_permits(|permit| permit.finder == Some(id), cause, around);
        self.change(id, around, |finder| match cause {
            Cause::Slow => finder.slow = true,
            _ => finder.failed(now),
        });
        around.say(id, Say::Stop(Stop::Revoked));
    }

    /// Who should read the origin now, beside those who do.
    pub(super) fn successor(&self, around: &Around<'_>) -> Option<FinderId> {
        self.heir(around, |_| true)
    }

    /// The first in line of those that fit.
    pub(super) fn heir(&self, around: &Around<'_>, fits: impl Fn(&Finder) -> bool) -> Option<FinderId> {
        let may = |registry: &str| around.busy_until(registry) <= around.now;
        let free = |id: FinderId| {
            !self.reads(id) && self.finders.get(&id).is_some_and(|finder| self.wants(finder, around) && fits(finder))
        };
        self.index.willing.first(may, free).map(|rank| rank.3)
    }

    /// The origin refused all who would read, and nobody holds it.
    fn nobody_may(&self, around: &Around<'_>) -> bool {
        around.now >= around.starting
            && self.whole.is_empty()
            && !self.index.denied.is_empty()
            && self.index.willing.is_empty()
    }

    /// Who could wait only for nodes that have lied to it asks the registry itself.
    fn send_away(&mut self, around: &mut Around<'_>) {
        if self.permits.is_empty() {
            return;
        }
        let outcasts = self.permits.iter().any(|permit| around.distrust.is_outcast(&permit.node, around.now));
        let asked: Vec<FinderId> =
            if outcasts { self.finders.keys().copied().collect() } else { self.index.picky.iter().copied().collect() };
        let waits = |id: &FinderId| {
            let finder = &self.finders[id];
            let hopeless = |permit: &Permit| {
                permit.finder != Some(*id) && finder.node != permit.node && !around.may_name(&permit.node, finder)
            };
            !finder.done && self.permits.iter().all(hopeless) && !self.takes_whole(finder, around)
        };
        for finder in asked.into_iter().filter(waits).collect::<Vec<_>>() {
            self.end(finder, Stop::NotFound, around);
        }
    }

    /// Those that changed and those that are never like the others; or all.
    fn whom(&self, all: bool, others: &BTreeSet<FinderId>) -> Vec<FinderId> {
        if all { self.finders.keys().copied().collect() } else { self.index.dirty.union(others).copied().collect() }
    }

    /// Tells every finder of the list or the seal, if it does not know.
    fn relay(&mut self, around: &mut Around<'_>) {
        let relayed =
            (self.list.as_ref().map_or(0, |list| list.number), self.seal.as_ref().map(|seal| seal.meta.clone()));
        let all = self.relayed != relayed;
        self.relayed = relayed;
        let ids = self.whom(all, &self.index.untold);
        for id in ids {
            let reads = self.reads(id);
            let Some(finder) = self.finders.get_mut(&id).filter(|finder| !finder.done) else { continue };
            let mut told = true;
            if let Some(seal) = &self.seal {
                if finder.seal.as_ref() == Some(&seal.meta) {
                    continue;
                }
                // Who vouches for it may be nobody that this finder was lied to by.
                let vouches = seal.vouches_to(finder, &self.whole, around);
                told = vouches.is_some();
                if let Some((author, meta, signature)) = vouches {
                    finder.seal = Some(seal.meta.clone());
                    finder.list = 0;
                    finder.vouched = Some(author.clone());
                    super::vouch::introduce(id, finder, &author, seal.certificate_of(&author), around);
                    around.say(id, Say::Sealed { author, meta, signature });
                }
            } else if let Some(list) = &self.list {
                if finder.list == list.number {
                    continue;
                }
                let writes = reads && list.author == finder.node;
                told = writes || (around.may_name(&list.author, finder) && finder.may_prove(&list.author));
                if told {
                    finder.list = list.number;
                    finder.seal = None;
                    list.tell(id, finder, writes, around);
                }
            }
            super::mark(&mut self.index.untold, id, !told);
            if told && !std::mem::replace(&mut finder.begun, true) {
                let node = finder.node.clone();
                self.seat(&node, around);
            }
        }
    }

    /// Tells who has neither parents nor a permit what it waits for, when that has changed.
    fn explain(&mut self, around: &mut Around<'_>) {
        if self.index.bare.is_empty() {
            return;
        }
        let reason = if self.permits.is_empty() {
            match self.retry(around) {
                _ if around.now < around.starting => Waiting::Starting { left: around.starting - around.now },
                _ if let Some(due) = self.errand.due() => Waiting::Seed { left: due.saturating_sub(around.now) },
                Some(at) => Waiting::Busy { left: at.saturating_sub(around.now) },
                None => Waiting::Nobody,
            }
        } else if self.permits.iter().any(|permit| permit.finder.is_some() && permit.answered.is_some()) {
            Waiting::HolderReads
        } else if self.permits.iter().any(|permit| permit.finder.is_some()) {
            Waiting::HolderWaits
        } else {
            Waiting::HolderConnects
        };
        let kind = std::mem::discriminant(&reason);
        let all = self.explained.replace(kind) != Some(kind);
        let ids: Vec<FinderId> = if all {
            self.index.bare.iter().copied().collect()
        } else {
            self.index.dirty.intersection(&self.index.bare).copied().collect()
        };
        for id in ids {
            if self.reads(id) {
                continue;
            }
            let Some(finder) = self.finders.get_mut(&id) else { continue };
            // The time that is left is no news by itself.
            if finder.waiting.is_none_or(|known| std::mem::discriminant(&known) != kind) {
                finder.waiting = Some(reason);
                around.say(id, Say::Waiting(reason));
            }
        }
    }

    /// When the first of those may be asked to read who may not now.
    fn retry(&self, around: &Around<'_>) -> Option<At> {
        self.index.willing.retry(around.now, |registry| around.busy_until(registry), |id| self.reads(id))
    }

    fn next(&self, around: &Around<'_>) -> Option<At> {
        let dues = self.permits.iter().map(|permit| permit.overdue().0);
        let due = match dues.min() {
            // Overdue, and nobody is there to take it: looked at again when somebody comes, or may.
            Some(at) if at <= around.now => self.retry(around),
            Some(at) => Some(at),
            None if self.finders.is_empty() => None,
            None if around.now < around.starting => Some(around.starting),
            None => self.retry(around),
        };
        let flush = self.flush.filter(|_| !self.finders.is_empty());
        let lost = self.index.lost.first().map(|(at, _)| *at);
        let others = [self.next_look(around), self.next_loss(around)];
        [due, flush, lost, self.errand.due()].into_iter().chain(others).flatten().min()
    }
}
