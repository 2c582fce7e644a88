//! Which parents a fetch uses: a pure machine over the candidates that control names. The time is passed in.
//!
//! Owns the record of every candidate that was named in the life of one fetch, and which of them has a stream (a seat on the
//! [`Board`]). Does not own connections: whoever drives it opens a stream for each [`Start`] and says how it ended.
//!
//! What always holds:
//! - A node has at most one seat at a time, and there are never more seats than `streams`.
//! - Only a candidate that control names now gets a seat, and never one that lied.
//! - As long as control names a candidate that has not lied, either it has a seat, or all seats are taken, or [`Crew::due`] says
//!   when it is tried again: a fetch never forgets a parent.

use std::time::{Duration, Instant};

use super::Parent;
use super::pick::{Board, Seat};
use super::score::{Score, choose};

/// A stream to be opened.
#[derive(Debug, Clone)]
pub struct Start {
    /// Its seat on the board. Never given twice in a fetch.
    pub seat: Seat,
    /// To whom.
    pub parent: Parent,
    /// What is known of it; the stream goes on from here and gives it back when it ends.
    pub score: Score,
}

/// How a stream ended, as far as it matters for what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Nothing was wrong: it was retired, or all is done.
    Left,
    /// It had nothing for us that others do not bring, or this node can't ask anybody now: a short rest.
    Useless,
    /// It has no slot, and asks to come back after so long.
    Busy(Duration),
    /// It can't be used: a rest that grows with each loss.
    Lost,
    /// It lied: never again in this fetch.
    Lied,
}

/// A parent that control named in the life of this fetch.
#[derive(Debug)]
struct Candidate {
    parent: Parent,
    score: Score,
    /// Whether control names it now.
    named: bool,
    /// Its stream, if it has one.
    seat: Option<Seat>,
}

impl Candidate {
    fn is_free(&self) -> bool {
        self.named && self.seat.is_none()
    }
}

/// The candidates of one fetch and their seats.
#[derive(Debug)]
pub struct Crew {
    streams: usize,
    candidates: Vec<Candidate>,
    next: Seat,
}

impl Crew {
    /// A fetch without candidates, that uses at most `streams` parents at once, at least 1.
    pub fn new(streams: usize) -> Self {
        Self { streams: streams.max(1), candidates: Vec::new(), next: 0 }
    }

    /// Takes control's new set of candidates, best first. Gives the seats of those that are named no more: they finish what
    /// they owe and are asked nothing further. The record of each stays.
    pub fn rename(&mut self, parents: &[Parent]) -> Vec<Seat> {
        for old in &mut self.candidates {
            old.named = false;
        }
        // In control's order; those named no more follow.
        let mut renamed: Vec<Candidate> = Vec::with_capacity(parents.len());
        for parent in parents {
            if renamed.iter().any(|known| known.parent.node == parent.node) {
                continue;
            }
            let known = self.candidates.iter().position(|old| old.parent.node == parent.node);
            let (score, seat) = match known.map(|at| self.candidates.remove(at)) {
                // The same node at another address has restarted: what was lost there does not count.
                Some(old) if old.seat.is_none() && old.parent.addr != parent.addr && !old.score.is_shunned() => {
                    (Score::default(), None)
                }
                Some(old) => (old.score, old.seat),
                None => (Score::default(), None),
            };
            renamed.push(Candidate { parent: parent.clone(), score, named: true, seat });
        }
        let retired = self.candidates.iter().filter_map(|old| old.seat).collect();
        renamed.append(&mut self.candidates);
        self.candidates = renamed;
        retired
    }

    /// The next stream to open now, if there is room for one and a candidate that is ready. To be called until `None`.
    pub fn start(&mut self, now: Instant, _board: &Board) -> Option<Start> {
        if self.seats() >= self.streams {
            return None;
        }
        let free: Vec<usize> = (0..self.candidates.len()).filter(|at| self.candidates[*at].is_free()).collect();
        let chosen = free[choose(free.iter().map(|at| &self.candidates[*at].score), now)?];
        let seat = self.next;
        self.next += 1;
        let candidate = &mut self.candidates[chosen];
        candidate.seat = Some(seat);
        Some(Start { seat, parent: candidate.parent.clone(), score: candidate.score.clone() })
    }

    /// A stream ended; `score` is what it made of what it was given.
    pub fn ended(&mut self, seat: Seat, mut score: Score, how: How, now: Instant) {
        match how {
            How::Left => {}
            How::Useless => score.idle(now),
            How::Busy(after) => score.busy(now, after),
            How::Lost => score.lost(now),
            How::Lied => score.shun(),
        }
        if let Some(candidate) = self.candidates.iter_mut().find(|one| one.seat == Some(seat)) {
            candidate.seat = None;
            candidate.score = score;
        }
    }

    /// How many streams there are.
    pub fn seats(&self) -> usize {
        self.candidates.iter().filter(|one| one.seat.is_some()).count()
    }

    /// Whether a candidate is ready to take the place of a parent that has nothing for us.
    pub fn has_spare(&self, now: Instant) -> bool {
        self.waiting(now).any(|at| at <= now)
    }

    /// When the next candidate that rests is ready: [`Crew::start`] may then give another stream.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        self.waiting(now).filter(|at| *at > now).min()
    }

    fn waiting(&self, now: Instant) -> impl Iterator<Item = Instant> + '_ {
        self.candidates.iter().filter(|one| one.is_free()).filter_map(move |one| one.score.ready_at(now))
    }
}

#[cfg(test)]
mod tests;
