//! Which run of blocks to ask of which parent next: a pure function of what is had, known, shown and asked.
//!
//! What always holds:
//! - Only what the parent has shown, and whose hash is known, is asked; never what is done.
//! - A block is asked at one parent at a time, as long as that one is not late with what it owes. In the end game, when every
//!   missing block is asked, a parent with nothing to do gets what another parent would send last: then a block is asked at two.
//! - Inside the window the piece at a focus goes first, then what the fewest connected parents have. Among equals the
//!   order is the blob's when there is one parent, else one that differs from node to node (`salt`): children of the same
//!   parents then fetch different pieces first and can pass them on to each other.
//! - A slow parent that is itself still fetching is asked only for what no faster one shows; of a parent whose rate is known no
//!   more is asked at once than it sends in a quarter of a second.
//!
//! Picking looks at a piece as one word of bits (a piece has at most 32 blocks), so that a full window of 32 pieces costs a few
//! hundred instructions, and a board is a few bytes a block.

use std::collections::VecDeque;

use shoal_base::few::Few;
use shoal_proto::frame::Run;
use shoal_proto::{BlockIndex, BlockSet, Layout, PieceIndex};

mod end_game;

/// One connection to a parent within a fetch. Never used again in that fetch.
pub type Seat = u32;

/// What is asked at once of a parent whose rate is known takes about so long: then a slow parent holds little up, and what is
/// outstanding at many parents stays small.
const ASK_AHEAD: f64 = 0.25;
/// A parent that is itself still fetching, and slower than this share of the mean, is not asked for what others show.
const SLOW: f64 = 0.5;

/// So many parents keep a node's link busy with one want at each.
const SEVERAL: usize = 4;

/// Readers whose windows are looked at; those that are further behind come first.
const MOST_FOCUSES: usize = 8;

/// What one parent has shown and was asked.
#[derive(Debug)]
struct Side {
    have: BlockSet,
    /// In the order in which they were asked, which is the order in which they come.
    asked: VecDeque<BlockIndex>,
    /// Bytes per second, 0 until measured.
    rate: f64,
    /// Gets nothing more.
    retired: bool,
    /// The first of `asked` has come and is being written.
    landing: bool,
    /// It shows what it was asked, and does not send it: others may be asked the same, and `flying` does not count it.
    late: bool,
    /// Nothing of what it is late with is on its way: it only waits.
    idle: bool,
    /// Blocks that it brought and that were written.
    brought: u32,
    /// The board's `news` when it had nothing that is known, missing and asked of nobody; 0: it may have.
    dry: u64,
}

/// All that picking looks at.
#[derive(Debug)]
pub struct Board {
    layout: Layout,
    window: u32,
    salt: u64,
    /// Rising, at least one.
    focuses: Vec<BlockIndex>,
    done: BlockSet,
    known: BlockSet,
    landing: BlockSet,
    /// Shown by somebody: `holders` is above 0.
    shown: BlockSet,
    /// Asked of somebody who is not late: `flying` is above 0.
    asked: BlockSet,
    holders: Vec<u16>,
    flying: Vec<u8>,
    /// Bytes per second.
    slow_below: f64,
    seats: Few<Seat, Side>,
    /// Rises whenever a block of whatever parent may have become one to ask for. From 1.
    news: u64,
    /// Retired before they joined.
    retired_early: Vec<Seat>,
    /// So many blocks may be on their way at once, of all parents together.
    most: Option<u32>,
}

impl Board {
    /// A blob of which nothing is done. `window` is in pieces, at least 1.
    pub fn new(layout: Layout, window: u32, salt: u64) -> Self {
        let blocks = layout.blocks() as usize;
        let none = || BlockSet::empty(layout);
        Self {
            layout,
            window: window.max(1),
            salt,
            focuses: vec![0],
            done: none(),
            known: none(),
            landing: none(),
            shown: none(),
            asked: none(),
            holders: vec![0; blocks],
            flying: vec![0; blocks],
            slow_below: 0.0,
            seats: Few::new(),
            news: 1,
            retired_early: Vec::new(),
            most: None,
        }
    }

    /// Whether every block is verified and written.
    pub fn is_done(&self) -> bool {
        self.done.is_full()
    }

    /// The blocks that are verified and written.
    pub const fn done(&self) -> &BlockSet {
        &self.done
    }

    /// Blocks not done yet, in order.
    pub fn missing(&self) -> impl Iterator<Item = BlockIndex> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            let block = self.done.first_missing(next);
            next = block + 1;
            (block < self.layout.blocks()).then_some(block)
        })
    }

    /// Where the windows start: the first block that each reader waits for, in any order. Without readers the first missing one.
    pub fn set_focuses(&mut self, blocks: &[BlockIndex]) {
        self.focuses.clear();
        self.focuses.extend(blocks.iter().copied().filter(|block| *block < self.layout.blocks()));
        self.focuses.sort_unstable();
        self.focuses.dedup();
        self.focuses.truncate(MOST_FOCUSES);
        if self.focuses.is_empty() {
            self.focuses.push(0);
        }
    }

    /// Whether the block's hash is known. It may become unknown again, when another author's list replaces the one before.
    pub fn set_known(&mut self, block: BlockIndex, known: bool) {
        if known {
            self.news += u64::from(self.known.insert(block));
        } else {
            self.known.remove(block);
        }
    }

    /// The same for all blocks at once.
    pub fn set_all_known(&mut self, known: BlockSet) {
        self.known = known;
        self.news += 1;
    }

    /// The block is verified and written, whoever brought it.
    pub fn set_done(&mut self, block: BlockIndex) {
        self.done.insert(block);
        self.landing.remove(block);
    }

    /// The block is missing after all: its hash turned out to be another.
    pub fn set_missing(&mut self, block: BlockIndex) {
        self.done.remove(block);
        self.news += 1;
    }

    /// A parent answered `Open`; it has shown nothing yet.
    pub fn join(&mut self, seat: Seat) {
        let early = self.retired_early.iter().position(|early| *early == seat);
        let side = Side {
            have: BlockSet::empty(self.layout),
            asked: VecDeque::new(),
            rate: 0.0,
            retired: early.map(|at| self.retired_early.swap_remove(at)).is_some(),
            landing: false,
            late: false,
            idle: false,
            brought: 0,
            dry: 0,
        };
        self.seats.insert(seat, side);
    }

    /// The parent is gone; what it was asked is free for others.
    pub fn leave(&mut self, seat: Seat) {
        let Some(side) = self.seats.remove(seat) else { return self.retired_early.retain(|early| *early != seat) };
        self.weigh();
        for block in side.have.runs().iter().flat_map(Run::blocks) {
            self.holders[block as usize] -= 1;
            if self.holders[block as usize] == 0 {
                self.shown.remove(block);
            }
        }
        if let Some(block) = side.asked.front().filter(|_| side.landing) {
            self.landing.remove(*block);
        }
        if !side.late {
            side.asked.iter().for_each(|block| self.falls(*block));
        }
    }

    /// The parent is late with what it owes, or no more.
    pub fn set_late(&mut self, seat: Seat, late: bool) {
        let Some(side) = self.seats.get_mut(seat).filter(|side| side.late != late) else { return };
        side.late = late;
        let owed: Vec<BlockIndex> = side.asked.iter().copied().collect();
        owed.into_iter().for_each(|block| if late { self.falls(block) } else { self.flies(block) });
    }

    /// Nothing comes of what the parent is late with, or something does.
    pub fn set_idle(&mut self, seat: Seat, idle: bool) {
        if let Some(side) = self.seats.get_mut(seat) {
            side.idle = idle;
        }
    }

    /// One more parent is asked for it.
    fn flies(&mut self, block: BlockIndex) {
        self.flying[block as usize] += 1;
        self.asked.insert(block);
    }

    /// One parent less is asked for it.
    fn falls(&mut self, block: BlockIndex) {
        self.flying[block as usize] -= 1;
        if self.flying[block as usize] == 0 {
            self.asked.remove(block);
            self.news += u64::from(!self.done.contains(block));
        }
    }

    /// The parent is asked nothing more; what it was asked may still come.
    pub fn retire(&mut self, seat: Seat) {
        match self.seats.get_mut(seat) {
            Some(side) => side.retired = true,
            // Its `Open` is still on the way.
            None => self.retired_early.push(seat),
        }
    }

    /// Whether the parent is asked nothing more. True for a seat that is gone.
    pub fn is_retired(&self, seat: Seat) -> bool {
        self.seats.get(seat).is_none_or(|side| side.retired)
    }

    /// The parent shows more blocks. Runs past the end of the blob are cut.
    pub fn show(&mut self, seat: Seat, runs: &[Run]) {
        let Some(side) = self.seats.get_mut(seat) else { return };
        for block in runs.iter().flat_map(|run| run.first..run.blocks().end.min(self.layout.blocks())) {
            if side.have.insert(block) {
                side.dry = 0;
                self.holders[block as usize] += 1;
                self.shown.insert(block);
            }
        }
    }

    /// The measured rate of the parent, in bytes per second.
    pub fn set_rate(&mut self, seat: Seat, rate: f64) {
        if let Some(side) = self.seats.get_mut(seat) {
            side.rate = rate;
            self.weigh();
        }
    }

    /// The block that must come next from the parent.
    pub fn awaited(&self, seat: Seat) -> Option<BlockIndex> {
        self.seats.get(seat)?.asked.front().copied()
    }

    /// How many blocks the parent still has to send.
    pub fn outstanding(&self, seat: Seat) -> usize {
        self.seats.get(seat).map_or(0, |side| side.asked.len())
    }

    /// How many wants may be queued at each parent, `most` at most. With several parents one is enough: while one's link waits for the
    /// next want, others fill the node's. And what is asked early of a busy parent can't be asked of an idle one.
    pub fn queue(&self, most: usize) -> usize {
        if self.seats.len() < SEVERAL { most.max(1) } else { 1 }
    }

    /// How many blocks came from this seat and were written.
    pub fn brought(&self, seat: Seat) -> u32 {
        self.seats.get(seat).map_or(0, |side| side.brought)
    }

    /// The awaited block came and is right. True: it is to be written. False: another parent brought it before.
    pub fn land(&mut self, seat: Seat) -> bool {
        let Some(side) = self.seats.get_mut(seat) else { return false };
        let Some(block) = side.asked.front().copied() else { return false };
        side.landing = !self.done.contains(block) && self.landing.insert(block);
        side.landing
    }

    /// The awaited block was dealt with, one way or the other.
    pub fn settle(&mut self, seat: Seat, done: bool) {
        let Some(side) = self.seats.get_mut(seat) else { return };
        let Some(block) = side.asked.pop_front() else { return };
        let (late, landed) = (side.late, std::mem::take(&mut side.landing));
        side.brought += u32::from(done);
        if done {
            self.set_done(block);
        }
        if !late {
            self.falls(block);
        }
        if landed {
            self.landing.remove(block);
        }
    }

    /// Whether it is worth while to [`ask`](Self::ask): false when nothing has changed since it had nothing.
    pub fn may_ask(&self, seat: Seat) -> bool {
        self.seats.get(seat).is_some_and(|side| side.dry != self.news || self.is_end_game())
    }

    /// Bounds what may be on its way at once, of all parents together; `None`: nothing does.
    pub fn set_most(&mut self, most: Option<u32>) {
        self.most = most;
    }

    /// Picks and marks what to ask of the parent next.
    pub fn ask(&mut self, seat: Seat) -> Option<Run> {
        if !self.may_ask(seat) {
            return None;
        }
        let room = self.most.map_or(u32::MAX, |most| most.saturating_sub(self.on_their_way()));
        if room == 0 {
            return None;
        }
        let run = self.pick(seat).map(|run| Run { count: run.count.min(room), ..run });
        let news = self.news;
        let side = self.seats.get_mut(seat)?;
        let Some(run) = run else {
            if !side.retired && !side.have.shares(&self.known, [&self.done, &self.asked]) {
                side.dry = news;
            }
            return None;
        };
        side.asked.extend(run.blocks());
        if !side.late {
            run.blocks().for_each(|block| self.flies(block));
        }
        Some(run)
    }

    /// Blocks that come over this node's link now, or soon. What a parent owes that only waits takes nothing of it, and must not
    /// keep others from being asked.
    fn on_their_way(&self) -> u32 {
        let coming = self.seats.values().filter(|side| !(side.late && side.idle));
        coming.map(|side| side.asked.len()).sum::<usize>() as u32
    }

    /// What to ask of the parent next: blocks of one piece in a row. `None`: nothing now.
    fn pick(&self, seat: Seat) -> Option<Run> {
        let side = self.seats.get(seat).filter(|side| !side.retired)?;
        // Most parents have nothing at most times, and each is asked whenever a block came.
        let has_some = side.have.shares(&self.known, [&self.done, &self.asked]);
        let at_focus = self.focuses.iter().filter(|_| has_some).find_map(|focus| self.at_focus(*focus, side));
        let mut best: Option<((u16, u64), Run)> = None;
        if has_some && at_focus.is_none() {
            self.focuses.iter().for_each(|focus| self.look(*focus, side, &mut best));
        }
        let mut run = at_focus.or(best.map(|(_, run)| run)).or_else(|| self.end_game(seat, side))?;
        if side.rate > 0.0 {
            let ahead = (side.rate * ASK_AHEAD / self.layout.block_size() as f64) as u32;
            run.count = run.count.min(ahead.max(1));
        }
        Some(run)
    }

    /// What the parent can be asked of the piece at a focus, from there on if possible.
    fn at_focus(&self, focus: BlockIndex, side: &Side) -> Option<Run> {
        let piece = self.layout.piece_of(focus);
        let blocks = self.blocks_of(piece);
        let free = self.free(blocks, side);
        let from = focus - blocks.first;
        let bits = if free >> from == 0 { free } else { free >> from << from };
        first_run(bits, blocks)
    }

    /// Looks for the best that the parent can be asked in the window from one focus on.
    fn look(&self, focus: BlockIndex, side: &Side, best: &mut Option<((u16, u64), Run)>) {
        let (pieces, at_focus) = (self.layout.pieces(), self.layout.piece_of(focus));
        let (mut open, mut step) = (0, 0);
        while step < pieces && open < self.window {
            let piece = if at_focus + step < pieces { at_focus + step } else { at_focus + step - pieces };
            let blocks = self.blocks_of(piece);
            let missing = all(blocks) & !self.done.bits(blocks);
            if missing == 0 {
                // To the next piece that lacks something, but not past the end: the window goes on from the start there.
                let next = self.done.first_missing(blocks.first + blocks.count);
                let next = if next == self.layout.blocks() { pieces } else { self.layout.piece_of(next) };
                step += next - piece;
                continue;
            }
            step += 1;
            let asked = self.asked.bits(blocks);
            if missing & (asked | (self.shown.bits(blocks) & self.known.bits(blocks))) == 0 {
                continue;
            }
            open += 1;
            let Some(run) = first_run(self.free(blocks, side), blocks) else { continue };
            let rank = (self.holders[run.first as usize], self.order(piece, step));
            if best.is_none_or(|(least, _)| rank < least) {
                *best = Some((rank, run));
            }
        }
    }

    /// The blocks of a piece that the parent can be asked, as bits.
    fn free(&self, blocks: Run, side: &Side) -> u64 {
        let mut free = side.have.bits(blocks) & self.known.bits(blocks);
        free &= !(self.done.bits(blocks) | self.asked.bits(blocks));
        if side.late && free != 0 {
            let own = side.asked.iter().filter(|block| blocks.blocks().contains(block));
            own.for_each(|block| free &= !(1 << (block - blocks.first)));
        }
        if free != 0 && self.is_slow(side) {
            let others = self.seats.values().filter(|other| !other.retired && !other.late && !self.is_slow(other));
            others.for_each(|other| free &= !other.have.bits(blocks));
        }
        free
    }

    /// Whether a parent that is itself still fetching is well below the others. The fastest never is.
    fn is_slow(&self, side: &Side) -> bool {
        side.rate > 0.0 && side.rate < self.slow_below && !side.have.is_full()
    }

    /// The rate below which a parent is slow, after rates have changed.
    fn weigh(&mut self) {
        let measured = self.seats.values().filter(|side| side.rate > 0.0).map(|side| side.rate);
        let (sum, count) = measured.fold((0.0, 0u32), |(sum, count), rate| (sum + rate, count + 1));
        self.slow_below = if count > 1 { SLOW * sum / f64::from(count) } else { 0.0 };
    }

    fn blocks_of(&self, piece: PieceIndex) -> Run {
        let blocks = self.layout.piece_blocks(piece);
        Run { first: blocks.start, count: blocks.end - blocks.start }
    }

    /// How equals are ordered.
    fn order(&self, piece: PieceIndex, step: u32) -> u64 {
        if self.seats.len() == 1 {
            return u64::from(step);
        }
        // splitmix64: cheap, and neighbours differ.
        let mut mixed = (self.salt ^ u64::from(piece)).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// All bits of a piece.
const fn all(blocks: Run) -> u64 {
    (1 << blocks.count) - 1
}

/// The first bits in a row.
fn first_run(bits: u64, blocks: Run) -> Option<Run> {
    let first = bits.trailing_zeros();
    (bits != 0).then(|| Run { first: blocks.first + first, count: (bits >> first).trailing_ones() })
}

#[cfg(test)]
mod tests;
