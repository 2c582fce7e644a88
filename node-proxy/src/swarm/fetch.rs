//! One blob from its parents: keeps as many streams busy as there should be, until every block is in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_proto::frame::Run;
use shoal_proto::{BlockSet, Digest, Layout};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tracing::Instrument;

use super::crew::{Crew, How, Start};
use super::intake::Intake;
use super::pick::Board;
use super::stream::{Ended, Finished, Stream};
use super::wire::Loss;
use super::{Event, Ground, Halt, Parent, Survey, Swarm};

/// The ground is looked at no more often than this: it changes with every block, and every look wakes the streams.
const SURVEY_EVERY: Duration = Duration::from_millis(4);

/// What the streams of one fetch share.
pub(super) struct Shared {
    pub(super) swarm: Arc<Swarm>,
    pub(super) ground: Arc<dyn Ground>,
    pub(super) digest: Digest,
    pub(super) layout: Layout,
    pub(super) board: Mutex<Board>,
    pub(super) intake: Mutex<Intake>,
    pub(super) events: mpsc::Sender<Event>,
    /// Tells the streams to look at the board again.
    pub(super) bump: watch::Sender<()>,
    /// Tells the fetch that the last block is in.
    pub(super) wake: Notify,
    /// Whether another parent would take the place of one that has nothing for us.
    spare: AtomicBool,
    /// So many of the parents hold the blob whole.
    holders: AtomicU8,
}

impl Shared {
    pub(super) fn holders(&self) -> u8 {
        self.holders.load(Ordering::Relaxed)
    }

    pub(super) fn is_done(&self) -> bool {
        self.board.lock().is_done()
    }

    pub(super) fn spare(&self) -> bool {
        self.spare.load(Ordering::Relaxed)
    }

    /// Brings the board up to date with the ground.
    fn survey(&self) {
        // Asked without the board's lock: the ground has locks of its own.
        let Survey { done, known, focuses } = self.ground.survey();
        let mut board = self.board.lock();
        board.set_all_known(known);
        let new = done.minus(board.done());
        new.runs().iter().flat_map(Run::blocks).for_each(|block| board.set_done(block));
        board.set_focuses(&focuses);
        drop(board);
        self.bump.send_replace(());
    }

    /// Whether the ground has every block. It may have thrown one away after the board was told of it, when a sealed list
    /// contradicted the one that grew: such a block is missing again.
    fn confirm(&self) -> bool {
        let here = self.ground.survey().done;
        let lost = BlockSet::full(self.layout).minus(&here);
        let mut board = self.board.lock();
        lost.runs().iter().flat_map(Run::blocks).for_each(|block| board.set_missing(block));
        lost.is_empty()
    }
}

/// The streams of one fetch. Dropping it ends them.
struct Streams {
    shared: Arc<Shared>,
    crew: Crew,
    running: JoinSet<Finished>,
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
            intake: Mutex::default(),
            events,
            bump: watch::Sender::new(()),
            wake: Notify::new(),
            spare: AtomicBool::new(false),
            holders: AtomicU8::new(0),
        });
        let span = tracing::Span::current();
        let crew = Crew::new(self.config.streams);
        let mut streams = Streams { shared: shared.clone(), crew, running: JoinSet::new(), span };
        streams.rename(&parents.borrow_and_update());
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
                    streams.let_go().await;
                    return Ok(());
                }
                stale = true;
            }
            let again = streams.fill(now);
            let resurvey = surveyed.map_or(now, |at| at + SURVEY_EVERY);
            tokio::select! {
                Some(ended) = streams.running.join_next() => streams.ended(ended).await?,
                result = parents.changed(), if parents_live => match result {
                    Ok(()) => streams.rename(&parents.borrow_and_update()),
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

impl Streams {
    /// Takes control's new set of candidates.
    fn rename(&mut self, parents: &[Parent]) {
        let holders = parents.iter().filter(|parent| parent.complete).count().try_into().unwrap_or(u8::MAX);
        self.shared.holders.store(holders, Ordering::Relaxed);
        let retired = self.crew.rename(parents);
        let mut board = self.shared.board.lock();
        retired.into_iter().for_each(|seat| board.retire(seat));
        drop(board);
        self.shared.bump.send_replace(());
    }

    /// Starts streams while there are candidates that are ready. Returns when the next one will be.
    fn fill(&mut self, now: Instant) -> Option<Instant> {
        let assigned = self.shared.swarm.me.borrow().is_some();
        if assigned {
            let board = self.shared.board.lock();
            let starts: Vec<Start> = std::iter::from_fn(|| self.crew.start(now, &board)).collect();
            drop(board);
            starts.into_iter().for_each(|start| self.start(start));
        }
        let spare = assigned && self.crew.has_spare(now);
        if spare != self.shared.spare.swap(spare, Ordering::Relaxed) {
            self.shared.bump.send_replace(());
        }
        self.crew.due(now).filter(|_| assigned)
    }

    fn start(&mut self, start: Start) {
        let span = tracing::info_span!(
            parent: &self.span,
            "parent",
            peer.node = %start.parent.node,
            peer.addr = %start.parent.addr.0,
            bytes = tracing::field::Empty
        );
        let stream = Stream::new(self.shared.clone(), start);
        self.running.spawn(stream.run().instrument(span));
    }

    async fn ended(&mut self, ended: Result<Finished, tokio::task::JoinError>) -> Result<(), Halt> {
        let Finished { seat, parent, score, ended } = match ended {
            Ok(ended) => ended,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // Streams are aborted only when the fetch is.
            Err(_) => return Ok(()),
        };
        let (how, event) = match ended {
            Ended::Left => (How::Left, None),
            Ended::Useless | Ended::Lost(Loss::Unassigned, _) => (How::Useless, None),
            Ended::Busy(after) => (How::Busy(after), None),
            Ended::Halted => return Err(Halt),
            Ended::Lost(loss, owed) => {
                loss.log(&self.shared.digest, &parent.node, owed);
                let metrics = &self.shared.swarm.metrics;
                metrics.count_loss(&loss);
                let node = parent.node;
                match loss {
                    Loss::Lied(block) | Loss::Unasked(block) => {
                        metrics.refused.inc();
                        (How::Lied, Some(Event::Lied { node, block }))
                    }
                    loss => (How::Lost, Some(Event::Lost { node, why: loss.to_string() })),
                }
            }
        };
        // Also of a seat that was retired and never taken.
        self.shared.board.lock().leave(seat);
        self.crew.ended(seat, score, how, Instant::now());
        if let Some(event) = event {
            // A reader that is gone has no use for it.
            let _ = self.shared.events.send(event).await;
        }
        Ok(())
    }

    /// After the last block: gives streams that owe nothing the chance to lay their connection to rest.
    async fn let_go(&mut self) {
        let idle = async { while self.running.join_next().await.is_some() {} };
        // Streams that owe nothing see the end at once; the bound is for those that wait for a second copy.
        let _ = tokio::time::timeout(Duration::from_millis(2), idle).await;
    }
}
