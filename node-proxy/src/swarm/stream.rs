//! One parent at work in one fetch: wants go out, blocks come in and are checked.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use shoal_proto::frame::{Frame, Hello, Run};
use shoal_proto::identity::Known;
use shoal_proto::{BlockIndex, Hash, PieceList};
use tokio::sync::watch;
use tokio::time::sleep_until;

use super::crew::Start;
use super::fetch::Shared;
use super::pick::Seat;
use super::score::Score;
use super::wire::{Connection, Loss};
use super::{Answer, Event, Parent};

/// Blocks above this are hashed off the async threads, and may take longer than the silence to arrive.
const LARGE_BLOCK: usize = 1 << 20;

/// Why a stream ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Control named it no more, or all is done.
    Left,
    /// It has nothing for us that others do not bring, and another candidate waits.
    Useless,
    /// It has no slot; come back after.
    Busy(Duration),
    /// The flight takes no more.
    Halted,
    /// It can't be used. True: it owed us blocks.
    Lost(Loss, bool),
}

/// What is left of a stream that ended.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) seat: Seat,
    pub(super) parent: Parent,
    /// What was learnt of the parent.
    pub(super) score: Score,
    pub(super) ended: Ended,
}

/// The state of one stream, for as long as it runs.
pub(super) struct Stream {
    pub(super) fetch: Arc<Shared>,
    pub(super) parent: Parent,
    pub(super) seat: Seat,
    pub(super) score: Score,
    /// Blocks still to come of each want, in order.
    wants: VecDeque<u32>,
    /// Bytes of checked blocks that were taken.
    bytes: u64,
    /// Since when the parent has owed the next block.
    owing_since: Instant,
    /// It ended while blocks were owed.
    owed: bool,
    /// It only waits with the block that it owes: others may be asked for it.
    late: bool,
    /// And nothing of that block comes.
    idle: bool,
}

/// Gives the seat's blocks back to the others, however the stream ends.
struct Seated(Arc<Shared>, Seat);

impl Seated {
    fn sit(fetch: &Arc<Shared>, seat: Seat) -> Self {
        fetch.board.lock().join(seat);
        fetch.swarm.metrics.streams.inc();
        Self(fetch.clone(), seat)
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.0.board.lock().leave(self.1);
        self.0.swarm.metrics.streams.dec();
        self.0.bump.send_replace(());
    }
}

impl Stream {
    pub(super) fn new(fetch: Arc<Shared>, start: Start) -> Self {
        Self {
            fetch,
            parent: start.parent,
            seat: start.seat,
            score: start.score,
            wants: VecDeque::new(),
            bytes: 0,
            owing_since: Instant::now(),
            owed: false,
            late: false,
            idle: false,
        }
    }

    /// Runs until the parent is of no more use, and says why.
    pub(super) async fn run(mut self) -> Finished {
        let ended = match self.drive().await {
            Ok(ended) => ended,
            Err(loss) => Ended::Lost(loss, self.owed),
        };
        tracing::Span::current().record("bytes", self.bytes);
        Finished { seat: self.seat, parent: self.parent, score: self.score, ended }
    }

    async fn drive(&mut self) -> Result<Ended, Loss> {
        let fetch = self.fetch.clone();
        let open = super::open_frame(fetch.digest, fetch.holders());
        let (mut connection, size) = match fetch.swarm.open(&self.parent, &open, fetch.layout).await? {
            Answer::Blob(connection, served) => (connection, served.size),
            Answer::Busy(connection, after) => {
                fetch.swarm.rest(self.parent.clone(), connection);
                return Ok(Ended::Busy(after));
            }
        };
        if size != fetch.layout.size() {
            return Err(Loss::Protocol(format!("its blob has {size} bytes, not {}", fetch.layout.size())));
        }
        let seated = Seated::sit(&fetch, self.seat);
        let ended = match self.serve(&mut connection).await {
            // The codec refuses a block that is too long by its head.
            Err(Loss::Oversize(why)) => {
                let awaited = fetch.board.lock().awaited(self.seat);
                Err(awaited.map_or(Loss::Oversize(why), Loss::Lied))
            }
            ended => ended,
        };
        // A connection that still owes us blocks is cheaper to drop than to drain.
        let settled = fetch.board.lock().outstanding(self.seat) == 0;
        self.owed = !settled;
        drop(seated);
        if settled && matches!(ended, Ok(Ended::Left | Ended::Useless | Ended::Busy(_)) | Err(Loss::Gone)) {
            fetch.swarm.rest(self.parent.clone(), connection);
        }
        ended
    }

    async fn serve(&mut self, connection: &mut Connection) -> Result<Ended, Loss> {
        let fetch = self.fetch.clone();
        let config = &fetch.swarm.config;
        let mut bump = fetch.bump.subscribe();
        let mut me = fetch.swarm.me.clone();
        let said = connection.said.clone();
        let mut known = config.tls.as_ref().map(|tls| tls.known.clone());
        let (mut heard, mut useful) = (Instant::now(), Instant::now());
        loop {
            self.top_up(connection).await?;
            let owes = !self.wants.is_empty();
            let listening = connection.listening_since();
            (heard, self.owing_since) = (listening.max(heard), listening.max(self.owing_since));
            heard = heard.max(connection.heard_at());
            let late = owes && self.owing_since.elapsed() >= config.silence;
            if late != self.late {
                self.late = late;
                if late {
                    fetch.swarm.metrics.late.inc();
                    tracing::info!(digest = %fetch.digest, peer.node = %self.parent.node, "parent is late with what it shows");
                    fetch.intake.lock().late(Instant::now());
                }
                fetch.board.lock().set_late(self.seat, late);
                fetch.bump.send_replace(());
            }
            // Bytes of the block are what counts here: a parent that says that it waits sends none.
            let idle = late && connection.heard_at() <= self.owing_since;
            if idle != self.idle {
                self.idle = idle;
                fetch.board.lock().set_idle(self.seat, idle);
                fetch.bump.send_replace(());
            }
            if owes {
                useful = Instant::now();
            } else if fetch.is_done() || fetch.board.lock().is_retired(self.seat) {
                return Ok(Ended::Left);
            } else if useful.elapsed() >= config.useless_after && fetch.spare() {
                return Ok(Ended::Useless);
            } else {
                heard = Instant::now();
            }
            let deadline =
                if owes { heard.max(self.owing_since) + config.silence } else { heard + config.useless_after };
            tokio::select! {
                frame = connection.next() => {
                    if let Some(ended) = self.take(frame?).await? {
                        return Ok(ended);
                    }
                    heard = Instant::now();
                }
                () = sleep_until(deadline.into()) => {
                    let heard = heard.max(connection.heard_at()).max(connection.listening_since());
                    if owes && heard.elapsed() >= config.silence {
                        return Err(Loss::Silent(config.silence));
                    }
                }
                _ = bump.changed() => {}
                () = news(&mut known) => {}
                () = moved(&mut me, &said) => return Err(Loss::Unassigned),
            }
            if !connection.is_fit(config) {
                return Err(Loss::Identity("the parent's certificate counts no more".into()));
            }
            if !self.wants.is_empty() && self.owing_since.elapsed() >= config.patience {
                return Err(Loss::Waits(config.patience));
            }
        }
    }

    /// Keeps wants queued at the parent.
    async fn top_up(&mut self, connection: &mut Connection) -> Result<(), Loss> {
        while let Some(run) = self.next_want() {
            if self.wants.is_empty() {
                self.owing_since = Instant::now();
            }
            self.wants.push_back(run.count);
            connection.send(&Frame::Want(run)).await?;
        }
        Ok(())
    }

    fn next_want(&self) -> Option<Run> {
        let most = self.fetch.intake.lock().most(Instant::now());
        let mut board = self.fetch.board.lock();
        board.set_most(most);
        let room = self.wants.len() < board.queue(self.fetch.swarm.config.queue);
        room.then(|| board.ask(self.seat)).flatten()
    }

    async fn take(&mut self, frame: Frame) -> Result<Option<Ended>, Loss> {
        match frame {
            Frame::Block { block, bytes } => return self.take_block(block, bytes).await,
            Frame::Have(runs) => self.fetch.board.lock().show(self.seat, &runs),
            Frame::Wait => {}
            Frame::Busy { retry_after_ms } => {
                return Ok(Some(Ended::Busy(Duration::from_millis(retry_after_ms.into()))));
            }
            Frame::Gone => return Err(Loss::Gone),
            Frame::Refused(refusal) => return Err(Loss::Refused(refusal)),
            _ => return Err(Loss::Protocol("unexpected frame while it serves".into())),
        }
        Ok(None)
    }

    async fn take_block(&mut self, block: BlockIndex, bytes: Bytes) -> Result<Option<Ended>, Loss> {
        let fetch = self.fetch.clone();
        if fetch.board.lock().awaited(self.seat) != Some(block) {
            return Err(Loss::Unasked(block));
        }
        let arrived = Instant::now();
        let len = bytes.len();
        // Another author's list may have replaced the one that was known when the block was asked for; then nobody is
        // to blame, and the block is asked for again.
        let written = if let Some(expected) = fetch.ground.expected(block) {
            if len != fetch.layout.block_len(block) || hash(bytes.clone()).await != expected {
                return Err(Loss::Lied(block));
            }
            // Not in the `if`: the lock must be free while the block is written.
            let first = fetch.board.lock().land(self.seat);
            if first {
                if self.bytes == 0 {
                    let _ = fetch.events.send(Event::Serving { node: self.parent.node.clone() }).await;
                }
                if fetch.ground.accept(block, bytes, &self.parent.node).await.is_err() {
                    return Ok(Some(Ended::Halted));
                }
                self.bytes += len as u64;
                fetch.swarm.metrics.received.inc_by(len as u64);
            } else {
                fetch.swarm.metrics.spare.inc_by(len as u64);
            }
            first
        } else {
            fetch.board.lock().set_known(block, false);
            false
        };
        fetch.intake.lock().landed(arrived);
        self.score.served(len, arrived.saturating_duration_since(self.owing_since));
        self.owing_since = Instant::now();
        if let Some(left) = self.wants.front_mut() {
            *left -= 1;
            if *left == 0 {
                self.wants.pop_front();
            }
        }
        let mut board = fetch.board.lock();
        board.set_rate(self.seat, self.score.rate());
        board.settle(self.seat, written);
        let done = board.is_done();
        drop(board);
        if done {
            fetch.bump.send_replace(());
            fetch.wake.notify_one();
        }
        Ok(None)
    }
}

/// The hash of a block; a large one is hashed where it holds nobody up.
async fn hash(bytes: Bytes) -> Hash {
    if bytes.len() <= LARGE_BLOCK {
        return PieceList::hash(&bytes);
    }
    tokio::task::spawn_blocking(move || PieceList::hash(&bytes)).await.expect("hashing does not panic")
}

/// Returns when certificates were declared void, of whomever.
async fn news(known: &mut Option<watch::Receiver<Arc<Known>>>) {
    let changed = match known {
        Some(known) => known.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}

/// Returns when this node is no more of the cluster that it said to the parent (I3). Its epoch may change: control gives
/// another one whenever it was restarted.
async fn moved(me: &mut watch::Receiver<Option<Hello>>, said: &Hello) {
    let left = |now: &Option<Hello>| now.as_ref().is_none_or(|now| now.cluster != said.cluster);
    if me.wait_for(left).await.is_err() {
        // Nobody is left who could move this node.
        std::future::pending::<()>().await;
    }
}
