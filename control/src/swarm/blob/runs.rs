//! Which blocks are read next from the origin and by whom: runs of a large blob.
//!
//! What always holds: no block is covered by two permits; runs are handed out from the lowest unread block on, because that is
//! what readers wait for; what a reader took along when it went is read again, and counted.

use std::collections::BTreeSet;
use std::ops::Range;

use shoal_proto::{BlockIndex, Layout, NodeId};

use super::super::around::Around;
use super::super::event::{At, FinderId, Notice, Say};
use super::super::finder::Finder;
use super::super::permit::{CLOSING, FIRST, Permit, SHORT, SILENT, WHOLE};
use super::Blob;
use super::pace::Reader;

/// Above this size a permit may cover a run: a smaller blob is read sooner than a reader is found to be slow (decision 006).
const CUT_ABOVE: u64 = 16 << 20;
/// Everything was read, nobody has it all, and nobody has had more than anybody before for this long: what was read is gone.
const STUCK: At = At::from_secs(5);

impl Blob {
    /// How the blob is cut, when it is read in runs. Not while somebody holds it whom a reader can't use: the list is sealed, what
    /// readers say is not added to it, and a run would never be seen to end.
    pub(super) fn cut(&self) -> Option<Layout> {
        if self.seal.is_some() && !self.whole.is_empty() {
            return None;
        }
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
    pub(super) fn unread(&self, layout: Layout) -> u64 {
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
    pub(super) fn short(&self, node: &NodeId, start: BlockIndex, layout: Layout) -> BlockIndex {
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
        let Some(layout) = self.list.as_ref().map(|list| list.hashes.layout()).or_else(|| self.cut()) else { return };
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

    /// What a seed reads that comes for the first of it.
    fn all_of(&self, id: FinderId) -> Range<BlockIndex> {
        let cut = self.cut().filter(|_| self.finders[&id].runs);
        cut.map_or(WHOLE, |layout| self.next_run(&self.finders[&id].node, 0, layout))
    }

    /// What a node reads next: one that reads alone all to the end, except for what it shows its speed by.
    fn next_run(&self, node: &NodeId, start: BlockIndex, layout: Layout) -> Range<BlockIndex> {
        let begins = !self.pace.is_compared() && self.list.is_none();
        let last = if begins || self.pace.wanted() > 1 { self.short(node, start, layout) } else { layout.blocks() };
        self.run_from(start, last, layout)
    }

    /// Whoever has a long run keeps the begin of what it lacks of it: others read on behind that. Not one to the end that is not cut.
    pub(super) fn shorten(&mut self, layout: Layout, around: &mut Around<'_>) {
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

    /// Whether a finder may be given one more run now.
    pub(super) fn may_read_more(&self, id: FinderId, around: &Around<'_>) -> bool {
        let fine = |finder: &Finder| {
            let ready = finder.not_before.max(around.busy_until(&finder.registry)) <= around.now;
            finder.runs && ready && self.wants(finder, around)
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
        let about_best =
            |reader: &&Reader| best.is_none_or(|best| reader.rate.is_some_and(|rate| rate * 5 >= best * 4));
        let to_be_alone = |reader: &&Reader| self.pace.to_be_alone() == Some(reader.id);
        let fastest = readers.iter().filter(about_best).find(to_be_alone).or_else(|| readers.iter().find(about_best));
        let wanted = self.pace.wanted();
        let has_room = |reader: &&Reader| reader.permits == 1 && self.may_read_more(reader.id, around);
        let id = if nodes == 0 {
            let id = self.heir(around, |finder| !finder.runs).or_else(|| self.successor(around))?;
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
                mine.is_some_and(|permit| permit.left.saturating_mul(4) <= permit.run.end - permit.run.start)
            };
            let stays = |reader: &&Reader| nodes <= wanted || fastest.is_some_and(|best| best.id == reader.id);
            let next = readers.iter().filter(has_room).filter(few).filter(stays).filter(|reader| reader.keeps_up(best));
            next.max_by_key(|reader| (reader.rate, std::cmp::Reverse(reader.id)))?.id
        };
        Some((id, self.next_run(&self.finders[&id].node, start, layout)))
    }

    /// Somebody who reads nothing now and was not found to be slow, nor half as fast as the best who reads.
    pub(super) fn idle(&self, around: &Around<'_>, best: Option<u64>) -> Option<FinderId> {
        // Whoever takes none found out that the registry ignores ranges: the others would, too, each by a request.
        if self.take_none > 0 {
            return None;
        }
        let rate = |finder: &Finder| around.rates.of(around.cluster, &finder.registry, &finder.node, around.now);
        let good = |finder: &Finder| rate(finder).zip(best).is_none_or(|(rate, best)| rate * 2 > best);
        self.heir(around, |finder| finder.runs && !finder.slow && good(finder))
    }

    pub(super) fn grant(&mut self, around: &mut Around<'_>) {
        if around.now < around.starting {
            return;
        }
        while let Some((heir, run)) = self.next_grant(around) {
            let Some(id) = self.first_reader(heir, around) else { return };
            let spared = self.permits.is_empty() && self.list.is_none() && self.spare_comparison(id, around);
            if spared && id == heir {
                continue;
            }
            let run = if id == heir { run } else { self.all_of(id) };
            if !self.permits.is_empty() && !self.reads(id) {
                self.pace.tries(id);
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
        // Somebody who has all of it brings it to its disk.
        let patience = if self.grown.0 >= list.hashes.layout().blocks() { CLOSING } else { STUCK };
        (all_read && around.now >= around.starting).then_some(self.grown.1 + patience)
    }

    /// When to look again at readers that went.
    pub(super) fn next_loss(&self, around: &Around<'_>) -> Option<At> {
        self.gone.values().copied().chain(self.stuck_at(around)).min()
    }
}
