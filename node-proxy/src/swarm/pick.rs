//! Which run of blocks to ask of which parent next: a pure function of what is had, known, shown and asked.
//!
//! What always holds:
//! - Only what the parent has shown, and whose hash is known, is asked; never what is done.
//! - A block is asked at one parent at a time, as long as that one is not late with what it owes. In the end game, when every missing block is asked, a parent with nothing
//!   to do gets what the slowest other parent was asked last: then a block is asked at two.
//! - Inside the window the piece at the focus goes first, then what the fewest connected parents have. Among equals the
//!   order is the blob's when there is one parent, else one that differs from node to node (`salt`): children of the same
//!   parents then fetch different pieces first and can pass them on to each other.

use std::collections::{BTreeMap, VecDeque};

use shoal_proto::frame::Run;
use shoal_proto::{BlockIndex, BlockSet, Layout, PieceIndex};

/// One connection to a parent within a fetch. Never used again in that fetch.
pub(super) type Seat = u32;

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
}

/// All that picking looks at.
#[derive(Debug)]
pub(super) struct Board {
    layout: Layout,
    window: u32,
    salt: u64,
    focus: BlockIndex,
    done: BlockSet,
    known: BlockSet,
    landing: BlockSet,
    holders: Vec<u16>,
    flying: Vec<u8>,
    seats: BTreeMap<Seat, Side>,
}

impl Board {
    /// A blob of which nothing is done. `window` is in pieces, at least 1.
    pub(super) fn new(layout: Layout, window: u32, salt: u64) -> Self {
        let blocks = layout.blocks() as usize;
        Self {
            layout,
            window: window.max(1),
            salt,
            focus: 0,
            done: BlockSet::empty(layout),
            known: BlockSet::empty(layout),
            landing: BlockSet::empty(layout),
            holders: vec![0; blocks],
            flying: vec![0; blocks],
            seats: BTreeMap::new(),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.done.is_full()
    }

    /// Blocks not done yet, in order.
    pub(super) fn missing(&self) -> impl Iterator<Item = BlockIndex> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            let block = self.done.first_missing(next);
            next = block + 1;
            (block < self.layout.blocks()).then_some(block)
        })
    }

    pub(super) fn set_focus(&mut self, block: BlockIndex) {
        self.focus = block;
    }

    /// Whether the block's hash is known. It may become unknown again, when another author's list replaces the one before.
    pub(super) fn set_known(&mut self, block: BlockIndex, known: bool) {
        if known {
            self.known.insert(block);
        } else {
            self.known.remove(block);
        }
    }

    /// The block is verified and written, whoever brought it.
    pub(super) fn set_done(&mut self, block: BlockIndex) {
        self.done.insert(block);
        self.landing.remove(block);
    }

    /// The block is missing after all: its hash turned out to be another.
    pub(super) fn set_missing(&mut self, block: BlockIndex) {
        self.done.remove(block);
    }

    pub(super) fn join(&mut self, seat: Seat) {
        let side = Side {
            have: BlockSet::empty(self.layout),
            asked: VecDeque::new(),
            rate: 0.0,
            retired: false,
            landing: false,
            late: false,
        };
        self.seats.insert(seat, side);
    }

    /// The parent is gone; what it was asked is free for others.
    pub(super) fn leave(&mut self, seat: Seat) {
        let Some(side) = self.seats.remove(&seat) else { return };
        for block in side.have.runs().iter().flat_map(Run::blocks) {
            self.holders[block as usize] -= 1;
        }
        if let Some(block) = side.asked.front().filter(|_| side.landing) {
            self.landing.remove(*block);
        }
        if !side.late {
            side.asked.iter().for_each(|block| self.flying[*block as usize] -= 1);
        }
    }

    /// The parent is late with what it owes, or no more.
    pub(super) fn set_late(&mut self, seat: Seat, late: bool) {
        let Some(side) = self.seats.get_mut(&seat).filter(|side| side.late != late) else { return };
        side.late = late;
        for block in &side.asked {
            if late {
                self.flying[*block as usize] -= 1;
            } else {
                self.flying[*block as usize] += 1;
            }
        }
    }

    /// The parent is asked nothing more; what it was asked may still come.
    pub(super) fn retire(&mut self, seat: Seat) {
        if let Some(side) = self.seats.get_mut(&seat) {
            side.retired = true;
        }
    }

    pub(super) fn is_retired(&self, seat: Seat) -> bool {
        self.seats.get(&seat).is_none_or(|side| side.retired)
    }

    /// The parent shows more blocks. Runs past the end of the blob are cut.
    pub(super) fn show(&mut self, seat: Seat, runs: &[Run]) {
        let Some(side) = self.seats.get_mut(&seat) else { return };
        for block in runs.iter().flat_map(|run| run.first..run.blocks().end.min(self.layout.blocks())) {
            if side.have.insert(block) {
                self.holders[block as usize] += 1;
            }
        }
    }

    pub(super) fn set_rate(&mut self, seat: Seat, rate: f64) {
        if let Some(side) = self.seats.get_mut(&seat) {
            side.rate = rate;
        }
    }

    /// The block that must come next from the parent.
    pub(super) fn awaited(&self, seat: Seat) -> Option<BlockIndex> {
        self.seats.get(&seat)?.asked.front().copied()
    }

    /// How many blocks the parent still has to send.
    pub(super) fn outstanding(&self, seat: Seat) -> usize {
        self.seats.get(&seat).map_or(0, |side| side.asked.len())
    }

    /// The awaited block came and is right. True: it is to be written. False: another parent brought it before.
    pub(super) fn land(&mut self, seat: Seat) -> bool {
        let Some(side) = self.seats.get_mut(&seat) else { return false };
        let Some(block) = side.asked.front().copied() else { return false };
        side.landing = !self.done.contains(block) && self.landing.insert(block);
        side.landing
    }

    /// The awaited block was dealt with, one way or the other.
    pub(super) fn settle(&mut self, seat: Seat, done: bool) {
        let Some(side) = self.seats.get_mut(&seat) else { return };
        let Some(block) = side.asked.pop_front() else { return };
        self.flying[block as usize] -= u8::from(!side.late);
        if std::mem::take(&mut side.landing) {
            self.landing.remove(block);
        }
        if done {
            self.set_done(block);
        }
    }

    /// Picks and marks what to ask of the parent next.
    pub(super) fn ask(&mut self, seat: Seat) -> Option<Run> {
        let run = self.pick(seat)?;
        let side = self.seats.get_mut(&seat)?;
        for block in run.blocks() {
            side.asked.push_back(block);
            self.flying[block as usize] += u8::from(!side.late);
        }
        Some(run)
    }

    /// What to ask of the parent next: blocks of one piece in a row. `None`: nothing now.
    fn pick(&self, seat: Seat) -> Option<Run> {
        let side = self.seats.get(&seat).filter(|side| !side.retired)?;
        let (pieces, at_focus) = (self.layout.pieces(), self.layout.piece_of(self.focus));
        let mut best: Option<((u16, u64), Run)> = None;
        let mut open = 0;
        for step in 0..pieces {
            let piece = (at_focus + step) % pieces;
            if !self.is_open(piece) {
                continue;
            }
            open += 1;
            if let Some(run) = self.first_run(piece, side) {
                if piece == at_focus {
                    return Some(run);
                }
                let rank = (self.holders[run.first as usize], self.order(piece, step));
                if best.is_none_or(|(least, _)| rank < least) {
                    best = Some((rank, run));
                }
            }
            if open == self.window {
                break;
            }
        }
        best.map(|(_, run)| run).or_else(|| self.end_game(seat, side))
    }

    /// Whether a piece counts in the window: something of it is asked, or could be asked of some parent.
    fn is_open(&self, piece: PieceIndex) -> bool {
        self.layout.piece_blocks(piece).any(|block| {
            let at = block as usize;
            !self.done.contains(block) && (self.flying[at] > 0 || (self.holders[at] > 0 && self.known.contains(block)))
        })
    }

    /// The first blocks in a row of a piece that the parent can be asked; from the focus on, if that is inside.
    fn first_run(&self, piece: PieceIndex, side: &Side) -> Option<Run> {
        let blocks = self.layout.piece_blocks(piece);
        let fits = |block: &BlockIndex| {
            side.have.contains(*block)
                && self.known.contains(*block)
                && !self.done.contains(*block)
                && self.flying[*block as usize] == 0
                && !(side.late && side.asked.contains(block))
        };
        let from = if blocks.contains(&self.focus) { self.focus } else { blocks.start };
        let first = (from..blocks.end).chain(blocks.start..from).find(fits)?;
        let count = (first..blocks.end).take_while(fits).count() as u32;
        Some(Run { first, count })
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

    /// When all that is missing is asked: what the slowest other parent will send last.
    fn end_game(&self, seat: Seat, side: &Side) -> Option<Run> {
        if !side.asked.is_empty() || self.missing().any(|block| self.flying[block as usize] == 0) {
            return None;
        }
        let fits = |block: BlockIndex| {
            side.have.contains(block)
                && self.known.contains(block)
                && !self.done.contains(block)
                && !self.landing.contains(block)
                && self.flying[block as usize] == 1
        };
        let mut others: Vec<&Side> = self.seats.iter().filter(|(other, _)| **other != seat).map(|(_, s)| s).collect();
        others.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        others.into_iter().find_map(|other| {
            let last = other.asked.iter().rev().copied().find(|block| fits(*block))?;
            let start = self.layout.piece_blocks(self.layout.piece_of(last)).start;
            let first = (start..last).rev().take_while(|b| fits(*b) && other.asked.contains(b)).last().unwrap_or(last);
            Some(Run { first, count: last - first + 1 })
        })
    }
}

#[cfg(test)]
mod tests;
