//! The end of a fetch: what one parent would send last is asked of another too, if that one is likely to be done before.

use shoal_proto::BlockIndex;
use shoal_proto::frame::Run;

use super::{Board, Seat, Side};

impl Board {
    /// When all that is missing is asked: a share of what is to come last of all, for a parent with nothing to do. Each block is
    /// asked at two at most, and a parent gets one such run at a time, so what comes twice is bounded by what is outstanding.
    pub(super) fn end_game(&self, seat: Seat, side: &Side) -> Option<Run> {
        if !side.asked.is_empty() || !self.is_end_game() {
            return None;
        }
        let mut others: Vec<(f64, &Side)> = self
            .seats
            .iter()
            .filter(|(other, theirs)| *other != seat && !theirs.asked.is_empty())
            .map(|(_, theirs)| (theirs.asked.len() as f64 / theirs.rate, theirs))
            .collect();
        // The last to be done first; one that was never measured has no end in sight.
        others.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        others.into_iter().find_map(|(_, theirs)| self.share(side, theirs))
    }

    /// Whether all that is missing is asked of somebody.
    pub(super) fn is_end_game(&self) -> bool {
        !self.asked.is_empty() && self.done.is_full_with(&self.asked)
    }

    /// The last blocks that another was asked for, as many as both are done with at the same time.
    fn share(&self, side: &Side, theirs: &Side) -> Option<Run> {
        let fits = |block: BlockIndex| {
            side.have.contains(block)
                && self.known.contains(block)
                && !self.done.contains(block)
                && !self.landing.contains(block)
                && self.flying[block as usize] == 1
        };
        let theirs_to_come = theirs.asked.len() as f64;
        let share = if side.rate == 0.0 || theirs.rate == 0.0 {
            theirs_to_come
        } else {
            (theirs_to_come * side.rate / (side.rate + theirs.rate)).round()
        };
        let mut last_first = theirs.asked.iter().rev().copied().take(share as usize);
        let last = last_first.by_ref().find(|block| fits(*block))?;
        let start = self.layout.piece_blocks(self.layout.piece_of(last)).start;
        let mut first = last;
        for block in last_first {
            if first == start || block + 1 != first || !fits(block) {
                break;
            }
            first = block;
        }
        Some(Run { first, count: last - first + 1 })
    }
}
