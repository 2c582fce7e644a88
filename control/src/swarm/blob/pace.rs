//! How fast the readers of the origin are: case (c) of I6, a reader that is slow, and whether one more would help.
//!
//! Speeds are what readers say of bytes from the origin, compared over one and the same time. The first reader is held against a
//! second one from the start: alone it shows nothing.

use std::collections::{BTreeMap, BTreeSet};

use shoal_proto::{BlockIndex, NodeId};

use super::super::around::Around;
use super::super::event::{At, Cause, FinderId, Notice};
use super::super::meter::Meter;
use super::super::permit::{FIRST, SHORT};
use super::Blob;

/// So many read one blob at once at most.
const MOST_READERS: usize = 4;
/// Speeds are looked at this often.
const LOOK: At = At::from_millis(250);
/// One more reader stays if it makes the whole faster by at least this many percent.
const GAIN: u64 = 20;
/// One more reader must have shown something by then.
const TRIAL: At = At::from_secs(5);
/// After one that did not help.
const TRY_AGAIN: At = At::from_secs(30);
/// After one that helped, and after a reader was found to be slow.
const TRY_SOON: At = At::from_secs(1);
/// A slow reader is replaced at most this often; doubled each time, because a whole cluster may have become slow.
const BETWEEN_MOVES: At = At::from_secs(5);
/// A seed that reads no faster, in bytes a second, is held against a node. Others are not tried beside a seed: reading is its job.
const SLOW_SEED: u64 = 2 << 20;
/// How many should read, and what is being tried.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Beside the first.
    more: usize,
    trial: Option<Trial>,
    next_trial: At,
    /// The first reader was held against another, or was known to be fast.
    compared: bool,
    /// So many read so much together, bytes a second, and one goes on alone for a while: it may do as much.
    together: Option<(usize, u64)>,
    /// Who was tried last.
    tried: Option<FinderId>,
    next_move: At,
    moves: u32,
    /// Who was slow when speeds were looked at last, and since when.
    suspect: Option<(FinderId, At)>,
    /// How many read when speeds were looked at last.
    readers: usize,
    /// When speeds are looked at next.
    pub(super) look: At,
    /// The seed that reads was held against a node.
    doubted: bool,
}

impl Pace {
    /// How many should read now, one that is tried included.
    pub(super) fn wanted(&self) -> usize {
        1 + self.more + usize::from(self.trial.is_some())
    }

    /// It is known whether the first reader is slow, or it is being found out.
    pub(super) fn is_compared(&self) -> bool {
        self.compared
    }

    /// Somebody begins to read beside others, and is to show how fast it is.
    pub(super) fn tries(&mut self, id: FinderId) {
        self.tried = Some(id);
    }

    /// Who is to show how fast it is alone, if it is about as fast as the others: those before it have shown it.
    pub(super) fn to_be_alone(&self) -> Option<FinderId> {
        self.tried.filter(|_| self.together.is_some())
    }
}

#[derive(Debug)]
struct Trial {
    since: At,
    /// Bytes a second, of all before. `None`: the first reader is held against another from the start.
    before: Option<u64>,
}

/// A node that reads now.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) id: FinderId,
    node: NodeId,
    /// Bytes a second, of all readers over the same span; `None`: too early to tell.
    pub(super) rate: Option<u64>,
    /// Where the first of its runs starts.
    first: BlockIndex,
    pub(super) permits: usize,
    /// Everything that its permits cover is read.
    closing: bool,
}

impl Reader {
    /// It does not hold up those who wait for its run.
    pub(super) fn keeps_up(&self, best: Option<u64>) -> bool {
        self.rate.zip(best).is_none_or(|(rate, best)| rate * 3 > best * 2)
    }
}

/// Whether one more reader helps: bytes a second without and with it.
fn gains(before: u64, after: u64) -> bool {
    after * 100 >= before * (100 + GAIN)
}

impl Blob {
    /// A reader has the origin's answer. Those that read beside it share the way with it from now on.
    pub(super) fn measure(&mut self, id: FinderId, now: At) {
        let Some(finder) = self.finders.get_mut(&id) else { return };
        let begins = finder.meter.is_cold(now);
        finder.meter.note(now, finder.origin_bytes);
        let others = self.permits.iter().filter_map(|permit| permit.finder).filter(|other| begins && *other != id);
        for other in others.collect::<BTreeSet<_>>() {
            if let Some(finder) = self.finders.get_mut(&other) {
                finder.meter.restart();
            }
        }
    }

    pub(super) fn readers(&self, around: &Around<'_>) -> Vec<Reader> {
        let ids: BTreeSet<FinderId> = self.permits.iter().filter_map(|permit| permit.finder).collect();
        let mine = |id: FinderId| self.permits.iter().filter(move |permit| permit.finder == Some(id));
        let known = ids.iter().filter_map(|id| Some((*id, &self.finders.get(id)?.meter)));
        let (measured, meters): (Vec<FinderId>, Vec<&Meter>) =
            known.filter(|(_, meter)| !meter.is_cold(around.now)).unzip();
        let rates = Meter::together(&meters, around.now).unwrap_or_default();
        let rates: BTreeMap<FinderId, u64> = measured.into_iter().zip(rates).collect();
        let reader = |id: FinderId| {
            Some(Reader {
                id,
                node: self.finders.get(&id)?.node.clone(),
                rate: rates.get(&id).copied(),
                first: mine(id).map(|permit| permit.run.start).min()?,
                permits: mine(id).count(),
                closing: mine(id).all(|permit| permit.closing),
            })
        };
        ids.into_iter().filter_map(reader).collect()
    }

    /// Who is to read first was measured beside others within the last minutes, and is not slow: true when that is new.
    pub(super) fn spare_comparison(&mut self, id: FinderId, around: &Around<'_>) -> bool {
        let finder = &self.finders[&id];
        let seed = around.is_seed(&finder.node);
        let own = around.rates.of(around.cluster, &finder.registry, &finder.node, around.now);
        let best = around.rates.best_other(around.cluster, &finder.registry, &finder.node, around.now);
        let fast = own.zip(best).is_some_and(|(own, best)| own * 5 >= best * 2);
        if self.pace.compared || !(fast || seed) {
            return false;
        }
        (self.pace.compared, self.pace.next_trial) = (true, around.now + TRY_AGAIN);
        true
    }

    /// The first reader is held against another from the start, unless it is known to be fast: with a blob of some seconds it
    /// would be done before it is found out.
    fn compare(&mut self, around: &mut Around<'_>) {
        if self.pace.compared || self.permits.len() != 1 || around.now < around.starting {
            return;
        }
        let Some(layout) = self.cut().filter(|layout| self.unread(*layout) > FIRST * 2) else { return };
        let permit = &self.permits[0];
        // Not the one that a node brought along from before control started, before it told of all that it has: the other would read it
        // again.
        let has = permit.finder.and_then(|id| self.finders.get(&id)).map_or(0, |finder| finder.blocks);
        let told = self.list.as_ref().is_some_and(|list| list.hashes.known() >= has);
        let begun = told || (has == 0 && permit.run.end <= self.short(&permit.node, permit.run.start, layout));
        if !permit.closing && !permit.is_whole() && begun && self.idle(around, None).is_some() {
            self.pace.compared = true;
            self.pace.trial = Some(Trial { since: around.now, before: None });
            around.notice(Notice::OneMore { beside: 1 });
            self.shorten(layout, around);
        }
    }

    /// Looks at how fast the readers are: takes from one that is slow, and finds out whether one more would help.
    pub(super) fn pace(&mut self, around: &mut Around<'_>) {
        self.compare(around);
        if around.now < self.pace.look || !self.permits.iter().any(|permit| permit.answered.is_some()) {
            return;
        }
        self.pace.look = around.now + LOOK;
        let readers = self.readers(around);
        let before = std::mem::replace(&mut self.pace.readers, readers.len());
        if readers.len() < before && self.pace.trial.is_none() {
            // Those that are left share the way with fewer from now on: what they showed so far says nothing of that.
            for reader in &readers {
                self.finders.get_mut(&reader.id).expect("it reads").meter.restart();
            }
            return;
        }
        let slow = self.slow(&readers, around);
        let before = self.pace.suspect.filter(|(id, _)| slow == Some(*id));
        self.pace.suspect = before.or(slow.map(|id| (id, around.now)));
        // One look alone may have caught it at a bad moment.
        if let Some((slow, _)) = before.filter(|(_, since)| *since + LOOK <= around.now) {
            self.pace.suspect = None;
            self.pace.next_move = around.now + BETWEEN_MOVES * (1 << self.pace.moves.min(6));
            self.pace.moves += 1;
            self.pace.more = self.pace.more.min(readers.len().saturating_sub(2));
            (self.pace.trial, self.pace.next_trial) = (None, around.now + TRY_SOON);
            self.revoke(slow, Cause::Slow, around);
            return;
        }
        let alone = readers.first().filter(|reader| readers.len() == 1 && around.is_seed(&reader.node));
        match alone.filter(|_| slow.is_none() && self.pace.trial.is_none()).map(|reader| reader.rate) {
            Some(rate) => self.doubt_seed(rate, around),
            None if slow.is_none() => self.try_one_more(&readers, around),
            None => {}
        }
    }

    /// A seed reads alone, and so slowly that a node may do better.
    fn doubt_seed(&mut self, rate: Option<u64>, around: &mut Around<'_>) {
        let Some(layout) = self.cut().filter(|layout| self.unread(*layout) > FIRST * 2) else { return };
        let slow = rate.is_some_and(|rate| rate < SLOW_SEED);
        if slow && !self.pace.doubted && self.idle(around, None).is_some() {
            self.pace.doubted = true;
            self.pace.trial = Some(Trial { since: around.now, before: None });
            around.notice(Notice::OneMore { beside: 1 });
            self.shorten(layout, around);
        }
    }

    /// I6 (c): a reader slower than a quarter of what another node measures; with several at once, one that everybody waits for or
    /// is just compared, and that is slower than two fifths of another: they share the origin's link, so that the other shows less than it could.
    fn slow(&self, readers: &[Reader], around: &Around<'_>) -> Option<FinderId> {
        if around.now < self.pace.next_move {
            return None;
        }
        let lowest = readers.iter().map(|reader| reader.first).min()?;
        // Just to be compared: there is nothing to be lost with either.
        let beside = self.pace.trial.as_ref().is_some_and(|trial| trial.before.is_none());
        let judged = readers.iter().filter(|reader| !reader.closing).filter_map(|reader| Some((reader, reader.rate?)));
        let (reader, rate) = judged
            .filter(|(reader, rate)| {
                let here = readers.iter().filter(|other| other.id != reader.id).filter_map(|other| other.rate).max();
                let registry = &self.finders[&reader.id].registry;
                // What others measured earlier, each alone, says nothing of one that shares the way with others now.
                let alone = readers.len() == 1;
                let known =
                    around.rates.best_other(around.cluster, registry, &reader.node, around.now).filter(|_| alone);
                let quarter = here.max(known).is_some_and(|best| rate * 4 < best);
                quarter || ((reader.first == lowest || beside) && here.is_some_and(|best| rate * 5 < best * 2))
            })
            .min_by_key(|(_, rate)| *rate)?;
        // Somebody must be there who is likely to do better.
        let faster = |other: &Reader| other.id != reader.id && other.rate.is_some_and(|other| other > rate * 2);
        let takes_over = |other: &Reader| faster(other) && self.may_read_more(other.id, around);
        let better = |node: &NodeId, registry: &str| {
            around.rates.of(around.cluster, registry, node, around.now).is_none_or(|other| other > rate * 2)
        };
        let fresh = || self.heir(around, |finder| !finder.slow && better(&finder.node, &finder.registry));
        (readers.iter().any(takes_over) || fresh().is_some()).then_some(reader.id)
    }

    fn try_one_more(&mut self, readers: &[Reader], around: &mut Around<'_>) {
        let rates: Option<Vec<u64>> = readers.iter().map(|reader| reader.rate).collect();
        let all = rates.map(|rates| rates.iter().sum::<u64>());
        let wanted = 1 + self.pace.more;
        let best = readers.iter().filter_map(|reader| reader.rate).max();
        if let Some(Trial { since, before }) = self.pace.trial {
            let over = around.now >= since + TRIAL;
            match (all.filter(|_| readers.len() > wanted), before) {
                // Four slow ones fill the origin's link as well as a fast one, which shows no more than they beside them. But their
                // own links are slow too, when they pass on what they read.
                (Some(after), before) if before.is_none_or(|before| gains(before, after)) => {
                    (self.pace.together, self.pace.more) = (Some((readers.len(), after)), 0);
                    (self.pace.trial, self.pace.next_trial) = (None, around.now + TRY_SOON);
                }
                (Some(_), _) => {
                    (self.pace.trial, self.pace.next_trial) = (None, around.now + TRY_AGAIN);
                }
                // It found no reader, or lost it, or its run was over before it could be measured.
                (None, _) if over => (self.pace.trial, self.pace.next_trial) = (None, around.now + TRY_AGAIN),
                (None, _) => {}
            }
            return;
        }
        let Some(before) = all.filter(|_| readers.len() == wanted && around.now >= self.pace.next_trial) else {
            return;
        };
        let mut before = before;
        if let Some((count, together)) = self.pace.together.take().filter(|_| wanted == 1) {
            if !gains(before, together) {
                self.pace.next_trial = around.now + TRY_AGAIN;
                return;
            }
            // On with as many, and one more beside them.
            (self.pace.more, before) = (count - 1, together);
        }
        let Some(layout) = self.cut() else { return };
        if self.pace.more > 0 {
            self.shorten(layout, around);
        }
        if self.pace.wanted() == MOST_READERS {
            self.pace.next_trial = around.now + TRY_AGAIN;
        } else if self.unread(layout) > layout.piece_size() * u64::from(3 * SHORT) && self.idle(around, best).is_some()
        {
            self.pace.trial = Some(Trial { since: around.now, before: Some(before) });
            around.notice(Notice::OneMore { beside: readers.len() });
            self.shorten(layout, around);
        }
    }

    /// When speeds are looked at next, if anything could follow from it.
    pub(super) fn next_look(&self, around: &Around<'_>) -> Option<At> {
        let reads = self.permits.iter().any(|permit| permit.answered.is_some() && !permit.closing);
        let others = self.permits.len() > 1 || self.finders.len() > 1;
        (reads && others).then(|| self.pace.look.max(around.now + At::from_millis(1)))
    }
}
