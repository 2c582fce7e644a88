//! A seed is sent first: while it may still come for the permit, all others are held back.
//!
//! What always holds: that is before the first read of a blob alone, and for [`PATIENCE`] at most, however many seeds are asked one
//! after the other; whoever has some of the blob on its disk is not held back.

use std::collections::BTreeSet;

use shoal_proto::NodeId;

use super::super::around::Around;
use super::super::event::{At, Effect, FinderId, Notice, Skip, Trouble};
use super::super::order::{Order, Reply};
use super::super::seeds::{ACK, PATIENCE, place};
use super::Blob;

/// What became of the seeds of one blob.
#[derive(Debug, Default)]
pub(in super::super) struct Errand {
    /// The one that is awaited.
    pub(super) out: Option<Out>,
    /// Whoever is next reads: a seed does, or none will.
    over: bool,
    /// Since the first was asked: nobody is held back after that.
    until: Option<At>,
    /// Those that were.
    asked: BTreeSet<NodeId>,
    /// Whoever came by an order, or was left to it, and by which.
    came: Option<(NodeId, Order)>,
}

#[derive(Debug)]
pub(super) struct Out {
    pub(super) order: Order,
    pub(super) seed: NodeId,
    /// It said that it begins.
    begins: bool,
    /// Then it is skipped.
    pub(super) due: At,
}

impl Errand {
    /// When who is awaited is skipped.
    pub(super) fn due(&self) -> Option<At> {
        self.out.as_ref().map(|out| out.due)
    }
}

impl Blob {
    /// Looks at who is awaited: it may be of no use any more, or late.
    pub(super) fn attend(&mut self, around: &mut Around<'_>) {
        let Some(out) = &self.errand.out else { return };
        if !self.permits.is_empty() || !self.whole.is_empty() || self.index.willing.is_empty() {
            // Somebody reads already, or nobody would. What the seed has begun it may go on with, as long as anybody waits.
            let came = self.settle_errand(around).map(|out| (out.seed, out.order));
            self.errand = Errand { over: !self.index.willing.is_empty(), came, ..Errand::default() };
            return;
        }
        let came = self.finder_of(&out.seed).and_then(|id| self.finders.get(&id));
        let skip = match came {
            Some(finder) if finder.denied => Some(Skip::Refused),
            // It waits for its registry, as all do.
            Some(finder) if out.due <= around.now && self.wants(finder, around) => {
                self.take_errand(around);
                return;
            }
            _ if out.due > around.now => None,
            _ if out.begins => Some(Skip::Late),
            _ => Some(Skip::Silent),
        };
        if let Some(why) = skip {
            self.skip_seed(why, around);
        }
    }

    /// Who reads first in the end, when that one would; `None`: a seed is awaited.
    pub(super) fn first_reader(&mut self, heir: FinderId, around: &mut Around<'_>) -> Option<FinderId> {
        if self.errand.over || !self.permits.is_empty() || !self.whole.is_empty() {
            return Some(heir);
        }
        if let Some(out) = &self.errand.out {
            let id = self.finder_of(&out.seed)?;
            if !self.may_begin(id, around) {
                return None;
            }
            self.take_errand(around);
            return Some(id);
        }
        let finder = &self.finders[&heir];
        if self.list.is_some() || finder.blocks > 0 || around.is_seed(&finder.node) || !self.ask_seed(heir, around) {
            self.errand.over = true;
            return Some(heir);
        }
        None
    }

    /// It would read, and nothing keeps it from it now.
    fn may_begin(&self, id: FinderId, around: &Around<'_>) -> bool {
        self.finders.get(&id).is_some_and(|finder| {
            self.wants(finder, around) && finder.not_before.max(around.busy_until(&finder.registry)) <= around.now
        })
    }

    /// Orders the next seed to fetch what a finder looks for. False: there is none, or it is too late.
    fn ask_seed(&mut self, heir: FinderId, around: &mut Around<'_>) -> bool {
        let until = self.errand.until.unwrap_or(around.now + PATIENCE);
        if until <= around.now {
            return false;
        }
        let finder = &self.finders[&heir];
        let (registry, repository, kind) = (finder.registry.to_string(), finder.repository.clone(), finder.kind);
        let place = place(&registry, &repository);
        let key = (around.cluster.clone(), around.digest);
        let fit = |seed: &NodeId| {
            let known = around.rates.of(around.cluster, &registry, seed, around.now);
            let best = around.rates.best_other(around.cluster, &registry, seed, around.now);
            !self.errand.asked.contains(seed)
                && !around.distrust.is_outcast(seed, around.now)
                && !around.distrust.is_blamed(&key, seed, around.now)
                && known.zip(best).is_none_or(|(known, best)| known * 4 >= best)
                && self.finder_of(seed).is_none_or(|id| !self.finders[&id].denied)
        };
        let seed = around.seeds.first((around.cluster, &around.digest), &place, around.now, fit);
        let Some(seed) = seed else { return false };
        let order = Order { number: around.dice.next().max(1), digest: around.digest, kind, registry, repository };
        around.seeds.asks(&seed, key, around.now);
        around.notice(Notice::SeedAsked { seed: seed.clone() });
        around.out.push(Effect::Order { seed: seed.clone(), order: order.clone(), back: false });
        self.errand.until = Some(until);
        self.errand.asked.insert(seed.clone());
        self.errand.out = Some(Out { order, seed, begins: false, due: until.min(around.now + ACK) });
        true
    }

    /// A seed says what becomes of an order.
    pub(in super::super) fn answered(&mut self, seed: &NodeId, number: u64, answer: Reply, around: &mut Around<'_>) {
        let until = self.errand.until;
        let Some(out) = self.errand.out.as_mut().filter(|out| out.seed == *seed && out.order.number == number) else {
            return;
        };
        match answer {
            Reply::Begins => (out.begins, out.due) = (true, until.unwrap_or(out.due)),
            // Its announcement may have been on its way when others were asked; it comes before this word.
            Reply::Holds | Reply::Refuses => self.skip_seed(Skip::Refused, around),
            Reply::Untold => self.skip_seed(Skip::Untold, around),
        }
    }

    /// A seed that is awaited is gone, or will not have heard.
    pub(in super::super) fn seed_is_gone(&mut self, seed: &NodeId, around: &mut Around<'_>) {
        if self.errand.out.as_ref().is_some_and(|out| out.seed == *seed) {
            self.skip_seed(Skip::Gone, around);
        }
    }

    fn skip_seed(&mut self, why: Skip, around: &mut Around<'_>) {
        let Some(Out { order, seed, .. }) = self.settle_errand(around) else { return };
        if matches!(why, Skip::Silent | Skip::Late) {
            around.seeds.pause(&seed, around.now);
            // When it comes to itself it need not begin with what others have by then.
            around.out.push(Effect::Order { seed: seed.clone(), order, back: true });
        }
        around.notice(Notice::SeedSkipped { seed, why });
    }

    fn take_errand(&mut self, around: &mut Around<'_>) {
        self.errand.over = true;
        let Some(Out { seed, order, .. }) = self.settle_errand(around) else { return };
        around.seeds.works(&seed);
        self.errand.came = Some((seed.clone(), order));
        if let Some(id) = self.finder_of(&seed)
            && let Some(finder) = self.finders.get_mut(&id)
        {
            finder.ordered = true;
        }
        around.notice(Notice::SeedCame { seed });
    }

    /// A finder went on purpose. When none is left but the seed that was ordered for others, and nobody holds the blob, nobody waits for it:
    /// the order is taken back.
    pub(in super::super) fn recall_seed(&mut self, around: &mut Around<'_>) {
        let sent = self.errand.out.as_ref().map(|out| &out.seed).or(self.errand.came.as_ref().map(|(seed, _)| seed));
        let Some(seed) = sent else { return };
        if !self.whole.is_empty() || self.finders.values().any(|finder| finder.node != *seed) {
            return;
        }
        let came = self.errand.came.take();
        let order = self.settle_errand(around).map(|out| (out.seed, out.order)).or(came);
        if let Some((seed, order)) = order {
            around.out.push(Effect::Order { seed, order, back: true });
        }
    }

    /// A seed could not read: it is asked for less for a while.
    pub(in super::super) fn note_failure(&self, id: FinderId, why: Trouble, around: &mut Around<'_>) {
        let Some(finder) = self.finders.get(&id).filter(|finder| around.is_seed(&finder.node)) else { return };
        match why {
            Trouble::Unreachable => around.seeds.pause(&finder.node, around.now),
            Trouble::Denied | Trouble::NotFound => {
                around.seeds.closes(&finder.node, place(&finder.registry, &finder.repository), around.now);
            }
            Trouble::Busy(_) | Trouble::Abandoned => {}
        }
    }

    /// Nobody is awaited any more.
    fn settle_errand(&mut self, around: &mut Around<'_>) -> Option<Out> {
        let out = self.errand.out.take()?;
        around.seeds.settles(&out.seed, &(around.cluster.clone(), around.digest));
        Some(out)
    }

    /// Which seed is awaited.
    pub(in super::super) fn awaited(&self) -> Option<&NodeId> {
        self.errand.out.as_ref().map(|out| &out.seed)
    }
}
