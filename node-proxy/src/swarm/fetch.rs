//! One blob from its parents: keeps as many streams busy as there should be, until every block is in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_proto::{BlockIndex, Digest, Layout};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tracing::Instrument;

use super::pick::{Board, Seat};
use super::score::{Score, choose};
use super::stream::{Ended, Stream};
use super::wire::Loss;
use super::{Event, Ground, Halt, Parent, Swarm};

/// The ground is looked at no more often than this: it changes with every block, and looking is linear in the blocks.
const SURVEY_EVERY: Duration = Duration::from_millis(4);

/// What the streams of one fetch share.
pub(super) struct Shared {
    pub(super) swarm: Arc<Swarm>,
    pub(super) ground: Arc<dyn Ground>,
    pub(super) digest: Digest,
    pub(super) layout: Layout,
    pub(super) board: Mutex<Board>,
    pub(super) events: mpsc::Sender<Event>,
    /// Tells the streams to look at the board again.
    pub(super) bump: watch::Sender<()>,
    /// Tells the fetch that the last block is in.
    pub(super) wake: Notify,
    /// Whether another parent would take the place of one that has nothing for us.
    spare: AtomicBool,
}

impl Shared {
    pub(super) fn is_done(&self) -> bool {
        self.board.lock().is_done()
    }

    pub(super) fn spare(&self) -> bool {
        self.spare.load(Ordering::Relaxed)
    }

    /// Whether the ground has every block. It may have thrown one away after the board was told of it, when a sealed list
    /// contradicted the one that grew: such a block is missing again.
    fn confirm(&self) -> bool {
        let lost: Vec<BlockIndex> = (0..self.layout.blocks()).filter(|block| !self.ground.has(*block)).collect();
        let mut board = self.board.lock();
        lost.iter().for_each(|block| board.set_missing(*block));
        lost.is_empty()
    }

    /// Brings the board up to date with the ground.
    fn survey(&self) {
        let missing: Vec<BlockIndex> = self.board.lock().missing().collect();
        // Asked without the board's lock: the ground may have locks of its own.
        let seen: Vec<(BlockIndex, bool, bool)> = missing
            .into_iter()
            .map(|block| (block, self.ground.has(block), self.ground.expected(block).is_some()))
            .collect();
        let focus = self.ground.focus();
        let mut board = self.board.lock();
        for (block, has, known) in seen {
            board.set_known(block, known);
            if has {
                board.set_done(block);
            }
        }
        board.set_focus(focus);
        drop(board);
        self.bump.send_replace(());
    }
}

/// A parent that control named in the life of this fetch.
struct Candidate {
    parent: Parent,
    score: Score,
    /// Whether control names it now.
    named: bool,
    /// Its stream, if it has one.
    seat: Option<Seat>,
}

/// The streams of one fetch. Dropping it ends them.
struct Crew {
    shared: Arc<Shared>,
    candidates: Vec<Candidate>,
    streams: JoinSet<(Parent, Score, Ended)>,
    next: Seat,
    span: tracing::Span,
}

impl Swarm {
    /// Fetches what the ground lacks, until every block is in. Without a usable parent it waits for one. `events` must be
    /// read while this runs. Cancel safe: dropping it ends its streams and their connections, and every block that was
    /// accepted stays accepted.
    ///
    /// # Errors
    /// [`Halt`] when the ground takes no more.
    pub async fn fetch(
        self: &Arc<Self>,
        ground: Arc<dyn Ground>,
        mut parents: watch::Receiver<Arc<[Parent]>>,
        events: mpsc::Sender<Event>,
    ) -> Result<(), Halt> {
        let (digest, layout) = (ground.digest(), ground.layout());
        let mut changed = ground.changed();
        let board = Mutex::new(Board::new(layout, self.config.window, self.salt));
        let shared = Arc::new(Shared {
            swarm: self.clone(),
            ground,
            digest,
            layout,
            board,
            events,
            bump: watch::Sender::new(()),
            wake: Notify::new(),
            spare: AtomicBool::new(false),
        });
        let span = tracing::Span::current();
        let mut crew = Crew { shared: shared.clone(), candidates: Vec::new(), streams: JoinSet::new(), next: 0, span };
        crew.rename(&parents.borrow_and_update());
        let mut me = self.me.clone();
        let (mut parents_live, mut ground_live, mut me_live) = (true, true, true);
        let (mut stale, mut surveyed) = (true, None::<Instant>);
        loop {
            let now = Instant::now();
            if stale && surveyed.is_none_or(|at| at + SURVEY_EVERY <= now) {
                changed.mark_unchanged();
                shared.survey();
                (stale, surveyed) = (false, Some(now));
            }
            if shared.is_done() {
                if shared.confirm() {
                    crew.let_go().await;
                    return Ok(());
                }
                stale = true;
            }
            let again = crew.fill(now);
            let resurvey = surveyed.map_or(now, |at| at + SURVEY_EVERY);
            tokio::select! {
                Some(ended) = crew.streams.join_next() => crew.ended(ended).await?,
                result = parents.changed(), if parents_live => match result {
                    Ok(()) => crew.rename(&parents.borrow_and_update()),
                    Err(_) => parents_live = false,
                },
                result = changed.changed(), if ground_live && !stale => match result {
                    Ok(()) => stale = true,
                    Err(_) => ground_live = false,
                },
                result = me.changed(), if me_live => me_live = result.is_ok(),
                () = shared.wake.notified() => {}
                () = sleep_until(resurvey.into()), if stale => {}
                () = sleep_until(again.unwrap_or(now).into()), if again.is_some() => {}
            }
        }
    }
}

impl Crew {
    /// Takes control's new set of candidates. One that is named no more finishes what it owes; the record of each stays.
    fn rename(&mut self, parents: &[Parent]) {
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
        let mut board = self.shared.board.lock();
        for old in &self.candidates {
            if let Some(seat) = old.seat {
                board.retire(seat);
            }
        }
        drop(board);
        renamed.append(&mut self.candidates);
        self.candidates = renamed;
        self.shared.bump.send_replace(());
    }

    /// Starts streams while there are candidates that are ready. Returns when the next one will be.
    fn fill(&mut self, now: Instant) -> Option<Instant> {
        let streams = self.shared.swarm.config.streams.max(1);
        let assigned = self.shared.swarm.me.borrow().is_some();
        let free = |one: &Candidate| assigned && one.named && one.seat.is_none();
        while self.streams.len() < streams {
            let ready: Vec<usize> = (0..self.candidates.len()).filter(|at| free(&self.candidates[*at])).collect();
            let Some(chosen) = choose(ready.iter().map(|at| &self.candidates[*at].score), now) else { break };
            self.start(ready[chosen]);
        }
        let waiting = || self.candidates.iter().filter(|one| free(one)).filter_map(|one| one.score.ready_at(now));
        let spare = waiting().any(|at| at <= now);
        if spare != self.shared.spare.swap(spare, Ordering::Relaxed) {
            self.shared.bump.send_replace(());
        }
        waiting().filter(|at| *at > now).min()
    }

    fn start(&mut self, at: usize) {
        let seat = self.next;
        self.next += 1;
        let candidate = &mut self.candidates[at];
        candidate.seat = Some(seat);
        let parent = candidate.parent.clone();
        let span = tracing::info_span!(
            parent: &self.span, "parent", peer.node = %parent.node, peer.addr = %parent.addr.0, bytes = tracing::field::Empty
        );
        let stream = Stream::new(self.shared.clone(), parent, seat, candidate.score.clone());
        self.streams.spawn(stream.run().instrument(span));
    }

    async fn ended(&mut self, ended: Result<(Parent, Score, Ended), tokio::task::JoinError>) -> Result<(), Halt> {
        let (parent, mut score, ended) = match ended {
            Ok(ended) => ended,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // Streams are aborted only when the fetch is.
            Err(_) => return Ok(()),
        };
        let now = Instant::now();
        let mut event = None;
        match ended {
            Ended::Left => {}
            Ended::Busy(after) => score.busy(now, after),
            Ended::Halted => return Err(Halt),
            Ended::Lost(Loss::Unassigned, _) => score.idle(now),
            Ended::Lost(loss, owed) => {
                loss.log(&self.shared.digest, &parent.node, owed);
                let metrics = &self.shared.swarm.metrics;
                metrics.count_loss(&loss);
                score.lost(now);
                let node = parent.node.clone();
                event = Some(match loss {
                    Loss::Lied(block) | Loss::Unasked(block) => {
                        metrics.refused.inc();
                        score.shun();
                        Event::Lied { node, block }
                    }
                    loss => Event::Lost { node, why: loss.to_string() },
                });
            }
        }
        if let Some(candidate) = self.candidates.iter_mut().find(|one| one.parent.node == parent.node) {
            candidate.seat = None;
            candidate.score = score;
        }
        if let Some(event) = event {
            // A reader that is gone has no use for it.
            let _ = self.shared.events.send(event).await;
        }
        Ok(())
    }

    /// After the last block: gives streams that owe nothing the chance to lay their connection to rest.
    async fn let_go(&mut self) {
        let idle = async { while self.streams.join_next().await.is_some() {} };
        // Streams that owe nothing see the end at once; the bound is for those that wait for a second copy.
        let _ = tokio::time::timeout(Duration::from_millis(2), idle).await;
    }
}
