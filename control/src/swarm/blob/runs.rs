//! Which blocks are read next from the origin and by whom: runs of a large blob, how many read at once, and case (c) of I6, a
//! reader that is slow.
//!
//! What always holds: no block is covered by two permits; runs are handed out from the lowest unread block on, because that is
//! what readers wait for; what a reader took along when it went is read again, and counted.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use shoal_proto::{BlockIndex, Layout, NodeId};

use super::super::around::Around;
use super::super::event::{At, Cause, FinderId, Notice, Say};
use super::super::finder::Finder;
use super::super::meter::Meter;
use super::super::permit::{Permit, SILENT, WHOLE};
use super::Blob;

/// Above this size a permit may cover a run: a smaller blob is read sooner than a reader is found to be slow (decision 006).
const CUT_ABOVE: u64 = 16 << 20;
/// The first run of a reader while several read, or it is found out whether they should; then as much as it has read already, up to
/// [`SHORT`]. So a slow one does not hold up the others with a long one. One that reads alone reads to the end.
const FIRST: u64 = 4 << 20;
/// Pieces of such a run at most, unless that is less than the first: all that is read at a time then lies in the 32 pieces from which
/// nodes fetch first.
const SHORT: u32 = 8;
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
/// Everything was read, nobody has it all, and nobody has had more than anybody before for this long: what was read is gone.
const STUCK: At = At::from_secs(5);

/// How many should read, and what is being tried.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Beside the first.
    more: usize,
    trial: Option<Trial>,
    next_trial: At,
    /// The first reader was held against another, or was known to be fast.
    compared: bool,
    /// What the two read together then, bytes a second: the one that goes on should read as much.
    both: Option<u64>,
    next_move: At,
    moves: u32,
    /// Who was slow when speeds were looked at last, and since when.
    suspect: Option<(FinderId, At)>,
    /// How many read when speeds were looked at last.
    readers: usize,
    /// When speeds are looked at next.
    pub(super) look: At,
}

#[derive(Debug)]
struct Trial {
    since: At,
    /// Bytes a second, of all before. `None`: the first reader is held against another from the start.
    before: Option<u64>,
}

/// A node that reads now.
#[derive(Debug)]
struct Reader {
    id: FinderId,
    node: NodeId,
    /// Bytes a second, of all readers over the same span; `None`: too early to tell.
    rate: Option<u64>,
    /// Where the first of its runs starts.
    first: BlockIndex,
    permits: usize,
    /// Everything that its permits cover is read.
    closing: bool,
}

impl Reader {
    /// It does not hold up those who wait for its run.
    fn keeps_up(&self, best: Option<u64>) -> bool {
        self.rate.zip(best).is_none_or(|(rate, best)| rate * 3 > best * 2)
    }
}

/// Whether one more reader helps: bytes a second without and with it.
fn gains(before: u64, after: u64) -> bool {
    after * 100 >= before * (100 + GAIN)
}

impl Blob {
    /// How the blob is cut, when it is read in runs.
    fn cut(&self) -> Option<Layout> {
        let known = self.list.as_ref().map(|list| list.hashes.layout());
        known.or_else(|| Layout::of(self.hint?).ok()).filter(|layout| layout.size() > CUT_ABOVE)
    }

    /// The first block that nobody has read and nobody is to read.
    fn next_unread(&self, layout: Layout) -> Option<BlockIndex> {
        let mut at = 0;
        loop {
            let block = self.list.as_ref().map_or(at, |list| list.read.first_missing(at));
            if block >= layout.blocks() {
                return None;
            }
            match self.permits.iter().find(|permit| permit.run.contains(&block)) {
                Some(permit) => at = permit.run.end,
                None => return Some(block),
            }
        }
    }

    /// Bytes from the first unread block on.
    fn unread(&self, layout: Layout) -> u64 {
        let first = self.list.as_ref().map_or(0, |list| list.read.first_missing(0));
        layout.size() - layout.block_range(first).start
    }

    /// A run from a block on: to the end of some piece, and not into what is read or covered.
    fn run_from(&self, start: BlockIndex, last: BlockIndex, layout: Layout) -> Range<BlockIndex> {
        let last = last.clamp(start + 1, layout.blocks());
        let taken = |block: &BlockIndex| {
            self.list.as_ref().is_some_and(|list| list.read.contains(*block))
                || self.permits.iter().any(|permit| permit.run.contains(block))
        };
        start..(start + 1..last).find(taken).unwrap_or(last)
    }

    /// Where a short run of a node ends that starts at a block.
    fn short(&self, node: &NodeId, start: BlockIndex, layout: Layout) -> BlockIndex {
        let own = self.list.as_ref().and_then(|list| list.by.get(node)).map_or(0, |own| own.len());
        let most = (layout.piece_size() * u64::from(SHORT)).max(FIRST);
        let bytes = (u64::from(own) * layout.block_size()).clamp(FIRST, most);
        let last = layout.block_at(layout.block_range(start).start + bytes - 1).min(layout.blocks() - 1);
        layout.piece_blocks(layout.piece_of(last)).end
    }

    /// How many blocks of a run are still to be read.
    fn left(&self, run: &Range<BlockIndex>, layout: Layout) -> u32 {
        let inside = run.start..run.end.min(layout.blocks());
        let read = |block: &BlockIndex| self.list.as_ref().is_some_and(|list| list.read.contains(*block));
        inside.filter(|block| !read(block)).count() as u32
    }

    /// The list is another: counts again what permits still cover, and drops those that cover nothing more.
    pub(in super::super) fn recount(&mut self, around: &Around<'_>) {
        let Some(layout) = self.list.as_ref().map(|list| list.hashes.layout()) else { return };
        let left: Vec<u32> = self.permits.iter().map(|permit| self.left(&permit.run, layout)).collect();
        for (permit, left) in self.permits.iter_mut().zip(left) {
            permit.left = left;
        }
        self.finish(around);
    }

    /// A block was read from the origin by a node, and its hash is known.
    pub(super) fn was_read(&mut self, block: BlockIndex, by: &NodeId) {
        let Some(list) = &mut self.list else { return };
        let layout = list.hashes.layout();
        list.by.entry(by.clone()).or_insert_with(|| shoal_proto::BlockSet::empty(layout)).insert(block);
        if list.read.insert(block) {
            for permit in self.permits.iter_mut().filter(|permit| permit.run.contains(&block)) {
                permit.left = permit.left.saturating_sub(1);
            }
        }
    }

    /// Permits end that cover nothing more. One to the end stays until the blob closes under it.
    pub(super) fn finish(&mut self, around: &Around<'_>) {
        let (over, kept): (Vec<_>, _) =
            std::mem::take(&mut self.permits).into_iter().partition(|permit| !permit.is_whole() && permit.left == 0);
        self.permits = kept;
        for permit in over {
            self.stopped(&permit, around);
        }
    }

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

    /// A permit is no more: its holder may read nothing now.
    pub(super) fn stopped(&mut self, permit: &Permit, around: &Around<'_>) {
        if let Some(id) = permit.finder.filter(|id| !self.reads(*id)) {
            if let Some(finder) = self.finders.get_mut(&id) {
                finder.meter.pause(around.now);
            }
            self.review(id, around);
        }
        self.seat(&permit.node, around);
    }

    /// A permit to the end of a blob that turned out to be large covers a run from now on.
    pub(super) fn cut_permit(&mut self, id: FinderId, around: &mut Around<'_>) {
        let Some(layout) = self.cut().filter(|_| self.finders.get(&id).is_some_and(|finder| finder.runs)) else {
            return;
        };
        let Some(at) = self.permits.iter().position(|permit| permit.finder == Some(id) && permit.is_whole()) else {
            return;
        };
        let mut permit = self.permits.swap_remove(at);
        match self.next_unread(layout) {
            Some(start) => permit.run = self.next_run(&permit.node, start, layout),
            // Everything is read: it stays as it is until the blob closes.
            None => return self.permits.push(permit),
        }
        permit.left = self.left(&permit.run, layout);
        around.say(id, Say::Permit(permit.grant()));
        self.permits.push(permit);
    }

    /// What a node reads next: one that reads alone all to the end, except for what it shows its speed by.
    fn next_run(&self, node: &NodeId, start: BlockIndex, layout: Layout) -> Range<BlockIndex> {
        let begins = !self.pace.compared && self.list.is_none();
        let several = self.pace.more > 0 || self.pace.trial.is_some();
        let last = if begins || several { self.short(node, start, layout) } else { layout.blocks() };
        self.run_from(start, last, layout)
    }

    /// Whoever has a long run keeps the begin of what it lacks of it: others read on behind that. Not one to the end that is not cut.
    fn shorten(&mut self, layout: Layout, around: &mut Around<'_>) {
        for at in 0..self.permits.len() {
            if self.permits[at].is_whole() {
                continue;
            }
            let (node, run) = (&self.permits[at].node, self.permits[at].run.clone());
            let start = self.list.as_ref().map_or(run.start, |list| list.read.first_missing(run.start));
            if start >= layout.blocks() {
                continue;
            }
            let run = run.start..self.short(node, start, layout).min(run.end);
            let left = self.left(&run, layout);
            let permit = &mut self.permits[at];
            if run.end < permit.run.end.min(layout.blocks()) {
                (permit.run, permit.left) = (run, left);
                if let Some(finder) = permit.finder {
                    around.say(finder, Say::Permit(permit.grant()));
                }
            }
        }
    }

    fn readers(&self, around: &Around<'_>) -> Vec<Reader> {
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

    /// Whether a finder may be given one more run now.
    fn may_read_more(&self, id: FinderId, around: &Around<'_>) -> bool {
        let fine = |finder: &Finder| {
            finder.runs && self.wants(finder, around) && around.busy_until(&finder.registry) <= around.now
        };
        self.finders.get(&id).is_some_and(fine)
    }

    /// Who is granted what next; `None`: nothing more for now.
    pub(super) fn next_grant(&self, around: &Around<'_>) -> Option<(FinderId, Range<BlockIndex>)> {
        if self.permits.iter().any(Permit::is_whole) {
            return None;
        }
        let Some(layout) = self.cut() else {
            return self.successor(around).filter(|_| self.permits.is_empty()).map(|id| (id, WHOLE));
        };
        let start = self.next_unread(layout)?;
        let readers = self.readers(around);
        let nodes = self.permits.iter().map(|permit| &permit.node).collect::<BTreeSet<_>>().len();
        let best = readers.iter().filter_map(|reader| reader.rate).max();
        // Who came first of those that are about as fast as the fastest: equal ones must not take turns because of small differences.
        let about_best = |reader: &&Reader| reader.rate.zip(best).is_none_or(|(rate, best)| rate * 5 >= best * 4);
        let fastest = readers.iter().find(about_best);
        let wanted = 1 + self.pace.more + usize::from(self.pace.trial.is_some());
        let has_room = |reader: &&Reader| reader.permits == 1 && self.may_read_more(reader.id, around);
        let id = if nodes == 0 {
            let id = self.successor(around)?;
            if !self.finders[&id].runs {
                return Some((id, WHOLE));
            }
            id
        } else if self.permits.iter().all(|permit| start < permit.run.start) {
            // What everybody waits for was taken from a reader: the fastest goes on with it at once.
            fastest.filter(has_room).map(|reader| reader.id).or_else(|| self.idle(around, best))?
        } else if nodes < wanted {
            self.idle(around, best)?
        } else {
            // Ahead of the end of its run, so that the next one's answer comes before it has nothing to read.
            let few = |reader: &&Reader| {
                let mine = self.permits.iter().find(|permit| permit.finder == Some(reader.id));
                mine.is_some_and(|permit| permit.left * 4 <= (permit.run.end - permit.run.start))
            };
            let stays = |reader: &&Reader| nodes <= wanted || fastest.is_some_and(|best| best.id == reader.id);
            let next = readers.iter().filter(has_room).filter(few).filter(stays).filter(|reader| reader.keeps_up(best));
            next.max_by_key(|reader| (reader.rate, std::cmp::Reverse(reader.id)))?.id
        };
        Some((id, self.next_run(&self.finders[&id].node, start, layout)))
    }

    /// Somebody who reads nothing now and was not found to be slow, nor half as fast as the best who reads.
    fn idle(&self, around: &Around<'_>, best: Option<u64>) -> Option<FinderId> {
        let rate = |finder: &Finder| around.rates.of(around.cluster, &finder.registry, &finder.node, around.now);
        let good = |finder: &Finder| rate(finder).zip(best).is_none_or(|(rate, best)| rate * 2 > best);
        self.heir(around, |finder| finder.runs && !finder.slow && good(finder))
    }

    pub(super) fn grant(&mut self, around: &mut Around<'_>) {
        if around.now < around.starting {
            return;
        }
        while let Some((id, run)) = self.next_grant(around) {
            if self.permits.is_empty() && !self.pace.compared && self.list.is_none() && self.is_fast(id, around) {
                (self.pace.compared, self.pace.next_trial) = (true, around.now + TRY_AGAIN);
                continue;
            }
            let node = self.finders[&id].node.clone();
            let mut permit = Permit::new(around.dice.next().max(1), node.clone(), id, around.now);
            permit.run = run;
            if let Some(layout) = self.cut() {
                permit.left = self.left(&permit.run, layout);
            }
            around.say(id, Say::Permit(permit.grant()));
            around.notice(Notice::Granted { node });
            self.permits.push(permit);
            self.change(id, around, |finder| finder.waiting = None);
        }
    }

    /// It was measured beside others within the last minutes, and is not slow.
    fn is_fast(&self, id: FinderId, around: &Around<'_>) -> bool {
        let finder = &self.finders[&id];
        let own = around.rates.of(around.cluster, &finder.registry, &finder.node, around.now);
        let best = around.rates.best_other(around.cluster, &finder.registry, &finder.node, around.now);
        own.zip(best).is_some_and(|(own, best)| own * 5 >= best * 2)
    }

    /// The first reader is held against another from the start, unless it is known to be fast: with a blob of some seconds it
    /// would be done before it is found out.
    fn compare(&mut self, around: &mut Around<'_>) {
        if self.pace.compared || self.permits.len() != 1 || self.permits[0].closing || self.permits[0].is_whole() {
            return;
        }
        let Some(layout) = self.cut().filter(|layout| self.unread(*layout) > FIRST * 2) else { return };
        if self.idle(around, None).is_some() {
            self.pace.compared = true;
            self.pace.trial = Some(Trial { since: around.now, before: None });
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
        if readers.len() < self.pace.readers && self.pace.trial.is_none() {
            // Those that are left share the way with fewer from now on.
            for reader in &readers {
                self.finders.get_mut(&reader.id).expect("it reads").meter.restart();
            }
        }
        self.pace.readers = readers.len();
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
        if slow.is_none() {
            self.try_one_more(&readers, around);
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
                (Some(after), None) => {
                    self.pace.both = Some(after);
                    (self.pace.trial, self.pace.next_trial) = (None, around.now + TRY_SOON);
                }
                (Some(after), Some(before)) if gains(before, after) => {
                    // A much faster one takes the place of all: it shows less than it could beside them.
                    self.pace.more = if readers.iter().all(|reader| reader.keeps_up(best)) { wanted } else { 0 };
                    (self.pace.trial, self.pace.next_trial) = (None, around.now + TRY_SOON);
                }
                (Some(_), Some(_)) => {
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
        if let Some(both) = self.pace.both.take().filter(|_| wanted == 1) {
            if !gains(before, both) {
                self.pace.next_trial = around.now + TRY_AGAIN;
                return;
            }
            // On with two, and a third beside them.
            (self.pace.more, before) = (1, both);
        }
        let Some(layout) = self.cut().filter(|_| readers.len() < MOST_READERS) else { return };
        if self.unread(layout) > layout.piece_size() * u64::from(3 * SHORT) && self.idle(around, best).is_some() {
            self.pace.trial = Some(Trial { since: around.now, before: Some(before) });
            self.shorten(layout, around);
        }
    }

    /// When speeds are looked at next, if anything could follow from it.
    pub(super) fn next_look(&self, around: &Around<'_>) -> Option<At> {
        let reads = self.permits.iter().any(|permit| permit.answered.is_some() && !permit.closing);
        let others = self.permits.len() > 1 || self.finders.len() > 1;
        (reads && others).then(|| self.pace.look.max(around.now + At::from_millis(1)))
    }

    /// A node that read the origin has no finder any more. It may come back; if not, what it read may be nowhere.
    pub(super) fn may_be_gone(&mut self, node: &NodeId, now: At) {
        if self.cut().is_some() && self.list.as_ref().is_some_and(|list| list.by.contains_key(node)) {
            self.gone.insert(node.clone(), now + SILENT);
        }
    }

    /// Blocks that went with their readers are read again, unless somebody has everything that was read.
    pub(super) fn read_again(&mut self, around: &mut Around<'_>) {
        let due: Vec<NodeId> =
            self.gone.iter().filter(|(_, at)| **at <= around.now).map(|(node, _)| node.clone()).collect();
        for node in due {
            self.gone.remove(&node);
            let Some(list) = &mut self.list else { continue };
            let known = list.hashes.known();
            if self.finders.values().any(|finder| !finder.done && finder.blocks >= known) {
                continue;
            }
            let Some(blocks) = list.by.remove(&node) else { continue };
            let elsewhere = |block: &BlockIndex| list.by.values().any(|others| others.contains(*block));
            let runs = blocks.runs();
            let own = runs.iter().flat_map(shoal_proto::frame::Run::blocks);
            let again: Vec<BlockIndex> = own.filter(|block| !elsewhere(block)).collect();
            for block in &again {
                list.read.remove(*block);
            }
            around.notice(Notice::ReadAgain { blocks: again.len() as u32 });
        }
        if self.stuck_at(around).is_some_and(|at| at <= around.now)
            && let Some(list) = &mut self.list
        {
            list.read = shoal_proto::BlockSet::empty(list.hashes.layout());
            list.by.clear();
            self.grown.1 = around.now;
            around.notice(Notice::ReadAgain { blocks: list.hashes.layout().blocks() });
        }
    }

    /// When it is time to believe that what was read is gone.
    fn stuck_at(&self, around: &Around<'_>) -> Option<At> {
        let list = self.list.as_ref().filter(|_| self.permits.is_empty() && self.whole.is_empty())?;
        let all_read = self.cut().is_some() && list.read.is_full() && !self.index.willing.is_empty();
        (all_read && around.now >= around.starting).then_some(self.grown.1 + STUCK)
    }

    /// When to look again at readers that went.
    pub(super) fn next_loss(&self, around: &Around<'_>) -> Option<At> {
        self.gone.values().copied().chain(self.stuck_at(around)).min()
    }
}
